"""sparsekit explore"""

import shlex
import sys
from datetime import date
from pathlib import Path
from typing import Annotated

from rich.console import Console
from typer import Option

from .options import Device, Dtype, Model, Most

PAGE = "explore.html"


def explore(
    model: Model,
    prompt_file: Annotated[Path, Option(help="A text file")],
    pipeline: Annotated[list[str], Option(help="Spec of a pipeline, or a schedule; repeat the option for several")],
    most: Most = None,
    cells: Annotated[
        int | None, Option(help="Most cells of a picture along an axis; default: as many as keep the page at a few MB")
    ] = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    out: Annotated[Path, Option(help=f"Folder for {PAGE}")] = Path("explore"),
) -> None:
    """Write an interactive page that shows what pipelines keep, compute and lose in every layer and head of a model."""
    from .. import explore as exploration
    from ..checks import check_count
    from ..chip import chip
    from ..evaluation.records import versions
    from ..layers import read_pipeline
    from .loading import load, read_prompts
    from .positions import check_lengths
    from .progress import progress

    if cells is not None:
        check_count("cells", cells, 1)
    chosen, console = {text: read_pipeline(text) for text in pipeline}, Console()
    with progress():
        loaded = load(model, device, dtype=dtype)
    tokens = read_prompts([prompt_file], loaded.tokenizer, most)[0]
    check_lengths(loaded.model, [(prompt_file, tokens)])
    out.mkdir(parents=True, exist_ok=True)
    with progress() as on_step:
        result = exploration.explore(loaded.model, tokens, chosen, cells=cells, on_step=on_step)
    say = lambda line: console.print(line, markup=False, highlight=False, soft_wrap=True)  # noqa: E731
    for number, name in enumerate(chosen):
        total = result.totals(number)
        figures = ", ".join(f"{what} {total[what]:.3f}" for what in ("kept", "density", "mass", "error"))
        say(f"{name}: {figures}; mean over layers")
        if line := result.warning(number):
            say(f"WARNING: {line}")
    made = {
        "command": shlex.join(["sparsekit", *sys.argv[1:]]),
        "versions": ", ".join(f"{name} {number}" for name, number in versions().items()),
        "computed on": f"{chip(loaded.model.device)}, {str(loaded.model.dtype).removeprefix('torch.')}",
        "date": date.today().isoformat(),
    }
    pieces = exploration.pieces(loaded.tokenizer, tokens)
    say(f"page: {exploration.write_page(result, out / PAGE, pieces, model=loaded.name, made=made)}")
