"""sparsekit demo"""

import warnings
from pathlib import Path
from typing import Annotated

from rich.console import Console
from typer import Argument, Option

from ..extras import needs
from .options import MOST_PROMPTS, Device, Seed


def demo(
    file: Annotated[Path | None, Argument(help="Text to hide facts in; default: Python's standard library")] = None,
    length: Annotated[int, Option(help="Bytes of a prompt, at least 1024")] = 16384,
    questions: Annotated[
        int, Option(max=MOST_PROMPTS, help="Number of prompts, at least 1; each asks one question")
    ] = 4,
    pipeline: Annotated[list[str] | None, Option(help="Spec of a pipeline; repeat the option for several")] = None,
    seed: Seed = 0,
    device: Device = "auto",
    out: Annotated[Path, Option(help="Folder for plan.png and demo.json")] = Path("demo"),
) -> None:
    """Ask a long-context model about real text, dense and sparse, and draw the pairs that one head computes.

    The default pipelines differ in what dropped queries see: nothing, a window, or a window with sinks.
    """
    needs("transformers", "hf")
    from transformers.utils.logging import disable_progress_bar

    from ..demo import PIPELINES, run_demo
    from ..testbed import read_text
    from .loading import usable
    from .progress import progress

    disable_progress_bar()  # transformers' own, for 15 MB, would appear in the middle of ours
    console, device = Console(), usable(device)
    out.mkdir(parents=True, exist_ok=True)
    with progress() as on_step, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "sparsekit: .* ran dense in all")  # the table's density shows it
        result = run_demo(
            read_text(file),
            length=length,
            questions=questions,
            pipelines={f"pipeline {i}": spec for i, spec in enumerate(pipeline, 1)} if pipeline else PIPELINES,
            seed=seed,
            device=device,
            on_step=on_step,
        )
    console.print(result.table())
    for sentence in result.sentences():
        console.print(sentence, markup=False, highlight=False, soft_wrap=True)
    console.print(f"figures: {result.save(out / 'demo.json')}", markup=False, highlight=False, soft_wrap=True)
    try:
        picture = str(result.draw(out / "plan.png"))
    except ImportError as missing:
        picture = f"none: {missing}"
    console.print(f"picture: {picture}", markup=False, highlight=False, soft_wrap=True)
