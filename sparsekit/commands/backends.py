"""sparsekit backends"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    import torch

    from ..prices import Prices


def backends(
    measure_here: Annotated[
        bool,
        typer.Option(
            "--measure", help="Time attention and the stages here, some seconds; pipelines then know what pays"
        ),
    ] = False,
) -> None:
    """Which backend runs which operation here, and why not; and what is known of times."""
    import torch

    from .. import dispatch
    from ..prices import keep, measure, prices

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if measure_here:
        console = Console(stderr=True)
        with console.status("dense") as status:
            found = measure(device, on_step=status.update)
        console.print(f"Kept in {keep(device, found)}", highlight=False, soft_wrap=True)
    table, reasons = Table("operation", *dispatch.BACKENDS), []
    for what, said in _rows(device):
        cells = []
        for backend, reason in said.items():
            if reason is None:
                cells.append("yes")
            elif reason == "":
                cells.append("")
            else:
                line = f"{backend}: {reason}"
                reasons += [] if line in reasons else [line]
                cells.append(f"no ({reasons.index(line) + 1})")
        table.add_row(what, *cells)
    console = Console()
    console.print(f"Tried with small tensors on {device.type}; an empty cell: there is none", highlight=False)
    console.print(table)
    for number, line in enumerate(reasons, 1):
        console.print(f"({number}) {line}", markup=False, highlight=False, soft_wrap=True)
    for kind, order in dispatch.AUTO.items():
        console.print(f'"auto" on {kind}: {", then ".join(order)}', highlight=False)
    console.print(_times(prices(device)), highlight=False, soft_wrap=True)


def _times(known: "Prices | None") -> str:
    from ..prices import FREE

    if known is None:
        return (
            "No times are known here: the first pipeline that needs them measures once, or sparsekit backends "
            "--measure does; SPARSEKIT_MEASURE=0 in the environment leaves it to you, and stages always run until then"
        )
    each = (f"{name} {price.call:.2f} ms, or {price.token:.2f} ms" for name, price in known.stages.items())
    steps = {"blocks": known.blocks, "tokens": known.tokens, "fill": known.fill}
    beside = (f"{name} {p.call:.2f} ms, or {p.token:.2f} ms" for name, p in steps.items() if p and p != FREE)
    slow = f", {known.slow:.2f} times that time by lists of blocks" if known.slow != 1 else ""
    return (
        f"Times known here: dense {known.rate:.3g} TFLOP/s{slow}; a step, of a call or of a million tokens and heads: "
        f"{'; '.join((*each, *beside))}"
    )


def _rows(device: "torch.device") -> Iterator[tuple[str, dict[str, str | None]]]:
    """Yield an operation, and of each backend why it cannot; None: it can, "": there is none.

    An op has another row where arguments of another kind get other answers.
    """
    import torch

    from .. import dispatch
    from ..samples import Samples

    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    draw = Samples(B=1, H=2, G=1, N=256, D=64, Dv=64, M=128, device=device.type, dtype=dtype)
    for op in dispatch.ops():
        seen = []
        for kind, args in dispatch.definition(op).samples(draw).items():
            said = {b: dispatch.why_not(b, op, *args) if dispatch.has(b, op) else "" for b in dispatch.BACKENDS}
            answers = [reason if reason is None else bool(reason) for reason in said.values()]
            if answers not in seen:
                seen.append(answers)
                yield f"{op}, {kind}" if kind else op, said
