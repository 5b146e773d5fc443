"""sparsekit backends"""

from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table

from .. import dispatch
from ..prices import Prices, keep, measure, prices


def backends(
    measure_here: Annotated[
        bool,
        typer.Option(
            "--measure", help="Time attention and the stages here, some seconds; pipelines then know what pays"
        ),
    ] = False,
) -> None:
    """Which backend runs which operation here, and why not; and what is known of times."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if measure_here:
        console = Console(stderr=True)
        with console.status("dense") as status:
            found = measure(device, on_step=status.update)
        console.print(f"Kept in {keep(device, found)}", highlight=False, soft_wrap=True)
    table, reasons = Table("operation", *dispatch.BACKENDS), []
    for what, (op, args) in _samples(device).items():
        cells = []
        for backend in dispatch.BACKENDS:
            reason = dispatch.why_not(backend, op, *args)
            if not dispatch.has(backend, op):
                cells.append("")
            elif reason is None:
                cells.append("yes")
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


def _times(known: Prices | None) -> str:
    if known is None:
        return "No times are known here, so stages always run, on short prompts too: sparsekit backends --measure"
    each = (f"{name} {price.call:.2f} ms, or {price.token:.2f} ms" for name, price in known.stages.items())
    return (
        f"Times known here: dense {known.rate:.3g} TFLOP/s; a stage, of a call or of a million tokens and heads: "
        f"{'; '.join(each)}"
    )


def _samples(device: torch.device) -> dict[str, tuple[str, tuple]]:
    """A name, an op and its arguments, at least one for each op."""
    from .. import Blocks, Output, Plan, Problem, SlidingWindow, Tokens

    x = torch.zeros(1, 1, 256, 64, device=device, dtype=torch.bfloat16 if device.type == "cuda" else torch.float32)
    p, some = Problem.of(x, x, x), torch.ones(1, 1, 2, dtype=torch.bool, device=device)
    kept = Tokens.of(torch.ones(1, 1, 256, dtype=torch.bool, device=device))
    tokens = Plan(kept, kept, fill=SlidingWindow(64))
    blocks = Plan(blocks=Blocks.of(torch.ones(1, 1, 2, 2, dtype=torch.bool, device=device), (128, 128)))
    scores, one = x[..., 0].float(), torch.ones(1, 1, dtype=torch.int32, device=device)
    return {
        "attend": ("attend", (p, Plan())),
        "attend, block lists": ("attend", (p, blocks)),
        "attend, indexed": ("attend", (p, Plan(kept, kept))),
        "gather_tokens": ("gather_tokens", (p, tokens)),
        "scatter_tokens": ("scatter_tokens", (p, tokens, Output(x, scores))),
        "sliding_window": ("sliding_window", (p, tokens)),
        "window_scores": ("window_scores", (p, 128)),
        "select_tokens": ("select_tokens", (scores, one)),
        "topk_mask": ("topk_mask", (scores, one)),
        "coverage_mask": ("coverage_mask", (scores, one.float(), True)),
        "coverage_count": ("coverage_count", (scores, one.float(), True)),
        "token_votes": ("token_votes", (scores, p.lengths()[1], p.lengths()[1], 7, 16)),
        "token_budget": ("token_budget", (scores[0], 0.1, p.lengths()[1])),
        "query_aware": ("query_aware", (x[:, :, 0], x, scores, p.lengths()[1], 1.0, 0.1)),
        "seen_blocks": ("seen_blocks", (blocks.blocks, p.reach())),
        "block_means": ("block_means", (x, p.q_pos, 128)),
        "threshold_blocks": ("threshold_blocks", (p, 0.1, 16, 64, 128)),
        "vertical_slash_blocks": ("vertical_slash_blocks", (some, some, some.int(), some.int(), None, (128, 128))),
    }
