"""Draws the picture of an evaluation: accuracy over speed-up."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import fill
from types import MappingProxyType
from typing import Any

from ..plots import new_figure, save_whole
from .rows import Row, ranked

NEAR = 10  # a second panel shows the rows at most this many percentage points below the best


def draw_front(
    rows: Sequence[Row], path: Path | str, *, title: str = "", marked: Mapping[str, str] = MappingProxyType({})
) -> Path:
    """Draw accuracy over speed-up for the rows of one length; a step line marks the front.

    Accuracy is the difference from dense attention on the same prompts, in percentage points. Points on the front have
    the numbers of `ranked(rows)`, colours stand for first stages, bars for 95% intervals. `marked` maps pipelines that
    get a ring and a letter to their text in the legend. If some points are far below the best, a second panel shows
    those near it. Returns `path`; the file is written whole or not at all. Raises ImportError without matplotlib,
    ValueError if no row has both figures.
    """
    placed = [row for row in rows if row.standing and row.speed_up]
    if not placed:
        raise ValueError("rows: got none with answers and a speed-up; allowed are rows with both: measure some first")
    best, steps = max(map(_points, placed)), ranked(placed)
    near = [row for row in placed if _points(row) > best - NEAR]
    panels = {"all": placed} | ({f"within {NEAR:g} points of the best": near} if 1 < len(near) < len(placed) else {})
    rings = [row for row in placed if row.pipeline in marked]
    listed = [(str(number), row.pipeline, row) for number, row in enumerate(steps, 1)]
    listed += [(chr(ord("a") + at), marked[row.pipeline], row) for at, row in enumerate(rings)]
    texts = [f"{sign}  {called}: {row.speed_up:.2f}x, {_points(row):+.1f}" for sign, called, row in listed]
    names = [fill(text, 75 * len(panels)) for text in texts]
    figure = new_figure(7 * len(panels), 5.2 + 0.19 * sum(name.count("\n") + 1 for name in names))
    from matplotlib.lines import Line2D
    from matplotlib.ticker import LogLocator, MaxNLocator

    families = sorted({row.family for row in placed if not row.dense})
    colours = {family: f"C{i % 10}" for i, family in enumerate(families)} | {"dense": "#222222"}
    for axes, (name, shown) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        for row in shown:
            assert row.standing
            bars = [[_points(row) - 100 * row.standing.low], [100 * row.standing.high - _points(row)]]
            strong = dict(alpha=1.0, ms=8, elinewidth=1.2, zorder=4) if row.front else {}
            weak: dict[str, Any] = dict(alpha=0.45, ms=5, elinewidth=0.6, zorder=3)
            how: dict[str, Any] = dict(color=colours[row.family], fmt="s" if row.dense else "o") | weak | strong
            axes.errorbar(row.speed_up, _points(row), bars, **how)
        line = [row for row in steps if row in shown]
        axes.step([row.speed_up for row in line], [*map(_points, line)], where="pre", color="#888888", zorder=2)
        for at, (sign, _, row) in enumerate(listed):
            if row not in shown:
                continue
            ringed = sign.isalpha()
            if ringed:
                axes.plot(row.speed_up, _points(row), "o", ms=11, mfc="none", mec="#222222", zorder=5)
            side = -14 if at % 2 else 6  # neighbouring points may nearly coincide
            where: dict[str, Any] = dict(xytext=(-14 if ringed else 6, side), textcoords="offset points", zorder=5)
            axes.annotate(sign, (row.speed_up, _points(row)), fontweight="bold", **where)
        axes.set_axisbelow(True)
        axes.grid(color="#eeeeee")
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_locator(LogLocator(base=2) if _wide(shown) else MaxNLocator(6))
        axes.xaxis.set_major_formatter(lambda x, _: f"{x:.3g}x")
        axes.set(
            xlabel="attention, speed-up over the fastest dense, log scale", ylabel="answers right, points from dense"
        )
        axes.set_title(name if len(panels) > 1 else "")
    handles = [Line2D([], [], marker="s" if f == "dense" else "o", ls="", color=c, label=f) for f, c in colours.items()]
    figure.axes[0].legend(handles=handles, loc="best", fontsize="small")
    dots = [Line2D([], [], marker="s" if row.dense else "o", ls="", color=colours[row.family]) for _, _, row in listed]
    figure.legend(dots, names, loc="outside lower center", fontsize="small", frameon=False)
    figure.suptitle(title)
    return save_whole(figure, path)


def _points(row: Row) -> float:
    return 100 * row.standing.value if row.standing else 0.0


def _wide(rows: Sequence[Row]) -> bool:
    """Return whether speed-ups lie so far apart that powers of two are good ticks."""
    speeds = [row.speed_up for row in rows if row.speed_up]
    return max(speeds) > 4 * min(speeds)
