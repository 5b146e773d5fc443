"""Pictures of plans, layer profiles and schedules, in the format of the path's suffix, written whole."""

from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .extras import needs
from .files import write_whole
from .fills import SINKS
from .plan import Plan
from .problem import Problem

if TYPE_CHECKING:
    from .calibrate import LayerProfile
    from .layers import Schedule

ROWS, COLUMNS = 768, 768  # cells of a picture
PALETTE = 128  # colours of a PNG: most are for the edges of letters and lines
SHOWN = 512  # first tokens in a picture of fills: in a whole long prompt 16 sinks would be thinner than a dot
KINDS = {"future": "#e8e8e8", "skipped": "#ffffff", "computed": "#1f5fbf", "fill of a dropped query": "#f08c2e"}

FILLED = {
    "future: no query sees it": "#e8e8e8",
    "skipped": "#ffffff",
    "a kept query sees a kept key": "#1f5fbf",
    "a dropped query sees its window": "#f08c2e",
    "a dropped query sees the first keys (sinks)": "#c2185b",
}


def draw_plan(problem: Problem, plan: Plan, path: Path | str, *, head: int = 0, title: str = "") -> Path:
    """Draw one head of a plan beside dense attention, in the format of the suffix of `path`, such as PNG.

    Left: the dense attention of query rows spread over the sequence, log scale. Right: the pairs the plan computes;
    the larger the computed part of a cell, the darker it is. `head` is a query head of the first sequence. Returns
    `path`, written whole. Raises ImportError without matplotlib, ValueError for a head that does not exist.
    """
    figure = new_figure(13, 6.4)
    from matplotlib.colors import LogNorm, to_rgb
    from matplotlib.patches import Patch

    if not 0 <= head < problem.q.shape[1]:
        raise ValueError(f"head: got {head}; allowed is 0 to {problem.q.shape[1] - 1}: name one of the query heads")
    plan, problem = plan.head(head, problem.q.shape[1]), problem.head(head)
    Q, K = problem.q.shape[2], problem.k.shape[2]
    rows = torch.linspace(0, Q - 1, min(Q, ROWS), device=problem.q.device).round().long().unique()
    visible = problem.visible(rows)[0, 0]
    computed = plan.pairs(problem, rows)[0, 0]
    dropped = plan.dropped(problem)[0, 0, rows, None]

    colours = [torch.tensor(to_rgb(colour), device="cpu") for colour in KINDS.values()]
    shares = [
        _pooled(mask.float()) for mask in (~visible, visible & ~computed, computed & ~dropped, computed & dropped)
    ]
    # a single key must stay visible: computed pairs are drawn darker than their share of the cell
    shares[2:] = [share.pow(0.4) for share in shares[2:]]
    rest = (1 - shares[2] - shares[3]).clamp(min=0) / (shares[0] + shares[1]).clamp(min=1e-9)
    shares[:2] = [share * rest for share in shares[:2]]
    image = torch.einsum("srk,sc->rkc", torch.stack(shares), torch.stack(colours)).clamp(0, 1)
    attention = _attention(problem, rows, visible)

    left, right = figure.subplots(1, 2)
    extent = (0, K, Q, 0)
    drawn = left.imshow(attention.numpy(), extent=extent, norm=LogNorm(1e-6, 1), cmap="magma", interpolation="nearest")
    figure.colorbar(drawn, ax=left, label="largest probability in the cell", shrink=0.8)
    left.set_title("where dense attention looks")
    right.imshow(image.numpy(), extent=extent, interpolation="nearest")
    right.set_title(f"what is computed: kept {plan.kept(problem):.1%}, density {plan.density(problem):.1%}")
    shown = [name for name, share in zip(KINDS, shares, strict=True) if share.any()]
    right.legend(handles=[Patch(facecolor=KINDS[n], edgecolor="#888888", label=n) for n in shown], loc="upper right")
    for axes in (left, right):
        axes.set(xlabel="key", ylabel="query")
    figure.suptitle(title)
    return save_whole(figure, path)


def draw_fills(
    problem: Problem,
    plans: Mapping[str, Plan],
    path: Path | str,
    beside: Sequence[str] = (),
    *,
    head: int = 0,
    title: str = "",
) -> Path:
    """Draw plans that differ only in the fill side by side: one head, the first SHOWN tokens.

    Below each plan is the row of one dropped query, and in words what such a query sees. `plans` are by name; `beside`
    has a text for each, such as the number of right answers. Returns `path`, written whole. Raises ImportError without
    matplotlib.
    """
    needs("matplotlib", "plots")
    figure = new_figure(5.2 * len(plans), 7.6)
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Patch

    heads, one = problem.q.shape[1], problem.head(head)
    rows = torch.arange(min(one.q.shape[2], SHOWN), device=one.q.device)
    end = min(one.k.shape[2], SHOWN)
    visible, place = one.visible(rows)[0, 0, :, :end], one.k_pos[0, 0, :end]
    colours = ListedColormap(list(FILLED.values()))
    panels = figure.subplots(2, len(plans), height_ratios=[14, 1], squeeze=False)
    for i, (name, whole) in enumerate(plans.items()):
        plan, (main, strip) = whole.head(head, heads), panels[:, i]
        computed = plan.pairs(one, rows)[0, 0, :, :end]
        dropped = plan.dropped(one)[0, 0, rows]
        filled = computed & dropped[:, None]
        kind = visible.long() + computed + filled + (filled & (place < (plan.local.sinks if plan.local else 0)))
        example = _far_from_kept(dropped)
        main.imshow(
            kind.cpu().numpy(), extent=(0, end, len(rows), 0), cmap=colours, vmin=0, vmax=4, interpolation="nearest"
        )
        note = beside[i] if beside else ""
        main.set_title(f"{name}\n{plan.density(one):.1%} of the pairs" + (f", {note}" if note else ""))
        main.set(xlabel="key", ylabel="query")
        strip.set(yticks=[], xticks=[])
        strip.set_xlabel(_what_is_seen(plan), fontsize=11)
        if example is not None:
            strip.imshow(
                kind[example, None].cpu().numpy(), extent=(0, end, 1, 0), cmap=colours, vmin=0, vmax=4, aspect="auto"
            )
            strip.set_title(f"the row of query {example} (arrow), which was dropped", fontsize=10, loc="left")
            main.annotate(
                "", (0, example), (-0.06 * end, example), arrowprops=dict(arrowstyle="->"), annotation_clip=False
            )
    legend = [Patch(facecolor=colour, edgecolor="#888888", label=kind) for kind, colour in FILLED.items()]
    figure.legend(handles=legend, loc="outside lower center", ncols=len(legend))
    what = "Which keys each query sees: the same tokens are kept, and only what the dropped queries see differs"
    figure.suptitle(f"{what}\n{title}, the first {end} of {one.k.shape[2]:,} tokens")
    return save_whole(figure, path)


def _far_from_kept(dropped: Tensor) -> int | None:
    """Return the dropped query of the second half that is farthest from kept queries, or None if all are kept."""
    half = len(dropped) // 2
    slot = torch.arange(len(dropped), device=dropped.device)
    if not dropped[half:].any():
        return None
    kept = torch.cat((slot[~dropped], slot.new_tensor([len(dropped)])))
    return half + int((slot[half:, None] - kept).abs().amin(-1).argmax())


def _what_is_seen(plan: Plan) -> str:
    """Return in plain words what a dropped query sees."""
    if plan.local is None:
        return "A dropped query sees nothing:\nits output is zero, and it forgets what it read."
    near = f"A dropped query sees the {plan.local.window} keys nearest to it"
    if not plan.local.sinks:
        return f"{near},\nnot the first ones, on which pretrained models rest."
    return f"{near},\nand the first {plan.local.sinks}, on which pretrained models rest."


def draw_profile(profile: "LayerProfile", path: Path | str) -> Path:
    """Draw the drift of each layer, with layers to sparsify in colour, and below it the attention on the first keys.

    Returns `path`. Raises ImportError without matplotlib.
    """
    needs("matplotlib", "plots")
    figure = new_figure(9, 7 if profile.sinks else 4)
    from matplotlib.patches import Patch

    panels = figure.subplots(2, sharex=True) if profile.sinks else [figure.subplots()]
    kinds = {"sparse": KINDS["computed"], "dense": "#c4c4c4"}
    colours = {layer: kinds["sparse" if layer in profile.layers else "dense"] for layer in profile.drift}
    panels[0].bar(list(profile.drift), list(profile.drift.values()), color=list(colours.values()))
    panels[0].set(ylabel="inter-layer drift, log scale", yscale="log")
    panels[0].legend(handles=[Patch(facecolor=colour, label=kind) for kind, colour in kinds.items()])
    panels[0].set_title(
        f"{len(profile.layers)} of {len(profile.drift)} layers to sparsify, quantile {profile.quantile:g}"
    )
    if profile.sinks:
        bars, sinks = [colours[layer] for layer in profile.sinks], list(profile.sinks.values())
        panels[1].bar(list(profile.sinks), [one.mean for one in sinks], color=bars, label="mean over heads")
        panels[1].plot(list(profile.sinks), [one.largest for one in sinks], "k.", label="largest head")
        panels[1].set(ylabel=f"attention on the first {SINKS} keys", ylim=(0, 1.02))
        panels[1].legend()
    panels[-1].set(xlabel="layer")
    panels[-1].xaxis.get_major_locator().set_params(integer=True)
    return save_whole(figure, path)


def draw_schedule(schedule: "Schedule", path: Path | str) -> Path:
    """Draw the figures of each candidate in each layer; a ring marks the pipeline that a layer gets.

    The upper panel has the scores with the target, the lower one the times. Returns `path`. Raises ImportError without
    matplotlib.
    """
    figure = new_figure(11, 7)
    axes = figure.subplots(2, sharex=True)
    for pipeline in dict.fromkeys(one.pipeline for one in schedule.measured):
        mine = [one for one in schedule.measured if one.pipeline == pipeline]
        colour = "#444444" if pipeline == "dense" else None
        for panel, figures in zip(axes, ([one.score for one in mine], [one.ms for one in mine]), strict=True):
            line = panel.plot([one.layer for one in mine], figures, ".-", label=pipeline, color=colour)[0]
            got = [(one.layer, y) for one, y in zip(mine, figures, strict=True) if one.chosen]
            panel.plot(*zip(*got, strict=True), "o", ms=11, mfc="none", color=line.get_color()) if got else None
    if schedule.target is not None:
        axes[0].axhline(schedule.target, color="#b03030", linestyle="--", label="target")
    axes[0].set(ylabel="1 - output error")
    axes[1].set(xlabel="layer", ylabel="attention, ms a prompt", ylim=(0, None))
    axes[1].xaxis.get_major_locator().set_params(integer=True)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", fontsize="small")
    figure.suptitle(f"attention {schedule.speed_up:.2f} times as fast as dense; rings: what each layer gets")
    return save_whole(figure, path)


def new_figure(width: float, height: float) -> Any:
    """Return an empty figure that needs no screen; its width and height are in inches."""
    needs("matplotlib", "plots")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save_whole(figure: Any, path: Path | str) -> Path:
    """Write a figure, whole, in the format of the path's suffix. Return `path`."""
    return write_whole(Path(path), lambda unfinished: _save(figure, unfinished))


def _save(figure: Any, path: Path) -> None:
    """Write a figure; a PNG gets a palette, which takes a third of the bytes and keeps text sharp."""
    if path.suffix.lower() != ".png":
        figure.savefig(path, dpi=110)
        return
    from PIL import Image  # installed with matplotlib

    drawn = BytesIO()
    figure.savefig(drawn, dpi=110, format="png")
    with Image.open(drawn) as picture:
        few = picture.convert("RGB").quantize(PALETTE, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    few.save(path, optimize=True)


def _attention(problem: Problem, rows: Tensor, visible: Tensor) -> Any:
    """Return the largest dense probability in each cell of query `rows`."""
    scores = (problem.q[0, 0, rows].float() @ problem.k[0, 0].float().mT * problem.scale).masked_fill(
        ~visible, float("-inf")
    )
    return _pooled(scores.softmax(-1).nan_to_num(0.0), largest=True).clamp(min=1e-6)


def _pooled(x: Tensor, largest: bool = False) -> Tensor:
    """Average cells of equally many keys, or take their largest entry: [R, K] -> [R, at most COLUMNS], on the CPU."""
    size = -(-x.shape[1] // COLUMNS)
    cells = torch.nn.functional.pad(x, (0, -x.shape[1] % size)).unflatten(1, (-1, size))
    if largest:
        return cells.amax(-1).cpu()
    count = torch.nn.functional.pad(torch.ones_like(x[:1]), (0, -x.shape[1] % size)).unflatten(1, (-1, size)).sum(-1)
    return (cells.sum(-1) / count).cpu()
