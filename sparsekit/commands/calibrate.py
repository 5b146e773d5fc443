"""sparsekit calibrate"""

from pathlib import Path
from typing import Annotated

from rich.console import Console
from typer import Option

from .options import Device, Dtype, Model, Most, PromptFiles


def calibrate(
    model: Model,
    prompt_file: PromptFiles,
    pipeline: Annotated[list[str], Option(help="Spec of a candidate; repeat the option for several")],
    target: Annotated[float, Option(help="1 - output error that each layer must reach, in (0, 1]")] = 0.99,
    most: Most = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    out: Annotated[Path, Option(help="Folder for sparsekit.json and schedule.png")] = Path("schedule"),
) -> None:
    """Measure candidates in every layer on your text and write the schedule that saves most time within the target."""
    from .. import calibrate as calibration
    from ..pipeline import Pipeline
    from ..plots import draw_schedule
    from .loading import load, read_prompts
    from .positions import check_lengths
    from .progress import progress

    candidates, console = [Pipeline.from_spec(spec) for spec in pipeline], Console()
    with progress():
        loaded = load(model, device, dtype=dtype)
    prompts = read_prompts(prompt_file, loaded.tokenizer, most)
    check_lengths(loaded.model, zip(prompt_file, prompts, strict=True))
    out.mkdir(parents=True, exist_ok=True)
    with progress() as on_step:
        schedule = calibration.calibrate(loaded.model, prompts, candidates, target=target, on_step=on_step)
    console.print(schedule.table())
    say = lambda line: console.print(line, markup=False, highlight=False, soft_wrap=True)  # noqa: E731
    for line in schedule.legend():
        say(line)
    say(f"schedule: {schedule.save(out)}")
    try:
        say(f"picture: {draw_schedule(schedule, out / 'schedule.png')}")
    except ImportError as missing:
        say(f"picture: none: {missing}")
