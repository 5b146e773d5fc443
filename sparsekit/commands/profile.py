"""sparsekit profile"""

from pathlib import Path
from typing import Annotated

from rich.console import Console
from typer import Option

from .options import Device, Dtype, Model, Most, PromptFiles


def profile(
    model: Model,
    prompt_file: PromptFiles,
    quantile: Annotated[float, Option(help="Part of the layers to sparsify, in [0, 1]")] = 0.5,
    pipeline: Annotated[str | None, Option(help="Spec of a pipeline for those layers; its schedule is written")] = None,
    most: Most = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    out: Annotated[Path, Option(help="Folder for drift.png and sparsekit.json")] = Path("schedule"),
) -> None:
    """Measure how much each layer changes the hidden states: the layers that change them least should be sparse.

    It also measures how much attention rests on the first tokens, and whether the pipeline leaves them out.
    """
    from ..calibrate import profile_layers
    from ..pipeline import Pipeline
    from ..plots import draw_profile
    from .loading import load, read_prompts
    from .positions import check_lengths
    from .progress import progress

    sparse, console = None if pipeline is None else Pipeline.from_spec(pipeline), Console()
    with progress():
        loaded = load(model, device, dtype=dtype)
    prompts = read_prompts(prompt_file, loaded.tokenizer, most)
    check_lengths(loaded.model, zip(prompt_file, prompts, strict=True))
    out.mkdir(parents=True, exist_ok=True)
    with progress() as on_step:
        measured = profile_layers(loaded.model, prompts, quantile=quantile, pipeline=sparse, on_step=on_step)
    console.print(measured.table())
    say = lambda line: console.print(line, markup=False, highlight=False, soft_wrap=True)  # noqa: E731
    if line := measured.warning():
        say(f"WARNING: {line}")
    if sparse is not None:
        say(f"schedule: {measured.schedule(sparse).save(out)}")
    try:
        say(f"picture: {draw_profile(measured, out / 'drift.png')}")
    except ImportError as missing:
        say(f"picture: none: {missing}")
