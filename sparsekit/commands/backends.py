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
            "--measure", help="Time attention and stages here, in seconds; pipelines then know when stages pay off"
        ),
    ] = False,
) -> None:
    """Show which backend runs which operation here, why the others do not, and the times known here."""
    import torch

    from .. import dispatch
    from ..prices import keep, measure, prices

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if measure_here:
        console = Console(stderr=True)
        with console.status("dense") as status:
            measured = measure(device, on_step=status.update)
        console.print(f"Saved to {keep(device, measured)}", highlight=False, soft_wrap=True)
    table, reasons = Table("operation", *dispatch.BACKENDS), []
    for operation, reason_by_backend in _rows(device):
        cells = []
        for backend, reason in reason_by_backend.items():
            if reason is None:
                cells.append("yes")
            elif reason == "":
                cells.append("")
            else:
                line = f"{backend}: {reason}"
                reasons += [] if line in reasons else [line]
                cells.append(f"no ({reasons.index(line) + 1})")
        table.add_row(operation, *cells)
    console = Console()
    tried = f"Tried with small tensors on {device.type}; an empty cell: the backend does not have the operation"
    console.print(tried, highlight=False, soft_wrap=True)
    console.print(table)
    for number, line in enumerate(reasons, 1):
        console.print(f"({number}) {line}", markup=False, highlight=False, soft_wrap=True)
    for kind, order in dispatch.AUTO.items():
        other = "".join(f"; for {op}, {name} first" for op, name in dispatch.FIRST.items() if name in order)
        console.print(f'"auto" on {kind}: {", then ".join(order)}{other}', highlight=False, soft_wrap=True)
    console.print(_times(prices(device)), highlight=False, soft_wrap=True)


def _times(known: "Prices | None") -> str:
    """Return the line that lists the times known on this machine, or says how to measure them."""
    from ..prices import FREE

    if known is None:
        return (
            "No times are known here: the first pipeline that needs them measures once, or sparsekit backends "
            "--measure does. With SPARSEKIT_MEASURE=0 in the environment no pipeline measures; until there are times, "
            "stages always run"
        )
    each = (f"{name} {price.call:.2f} ms, or {price.token:.2f} ms" for name, price in known.stages.items())
    steps = {"blocks": known.blocks, "tokens": known.tokens, "fill": known.fill}
    others = (f"{name} {p.call:.2f} ms, or {p.token:.2f} ms" for name, p in steps.items() if p and p != FREE)
    slow = f", by block lists {known.slow:.2f} times as long" if known.slow != 1 else ""
    return (
        f"Times known here: dense {known.rate:.3g} TFLOP/s{slow}; each step per call, or per million tokens and heads: "
        f"{'; '.join((*each, *others))}"
    )


def _rows(device: "torch.device") -> Iterator[tuple[str, dict[str, str | None]]]:
    """Yield each operation with the reason why each backend cannot run it: None if it can, "" if it has no such op.

    An op has one row for each kind of arguments that gets different answers.
    """
    import torch

    from .. import dispatch
    from ..samples import Samples

    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    draw = Samples(B=1, H=2, G=1, N=256, D=64, Dv=64, M=128, device=device.type, dtype=dtype)
    for op in dispatch.ops():
        seen = []
        for kind, args in dispatch.definition(op).samples(draw).items():
            reasons = {b: dispatch.why_not(b, op, *args) if dispatch.has(b, op) else "" for b in dispatch.BACKENDS}
            answers = [reason if reason is None else bool(reason) for reason in reasons.values()]
            if answers not in seen:
                seen.append(answers)
                yield f"{op}, {kind}" if kind else op, reasons
