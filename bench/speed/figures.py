"""Pictures of records: speed-up by length, speed-up by the kept part, and the time of each step. Needs matplotlib."""

from pathlib import Path
from typing import Any

from bench.records import Record, foremost
from bench.speed.timing import STEPS
from sparsekit.plots import save_whole

COLOURS = dict(
    zip(
        (*STEPS, "other"),
        ("#4269d0", "#efb118", "#ff725c", "#6cc5b0", "#9aa5b1", "#3ca951", "#a463f2", "#d9d9d9"),
        strict=True,
    )
)


def draw(records: list[Record], folder: Path, name: str) -> list[Path]:
    """Draw the timed records of one chip; return the PNG files `<name>-<what>.png`."""
    timed = foremost([row for row in records if "ms" in row and row["kind"] == "ours" and row["speed_up"]])
    made = {"length": _over_length(timed), "kept": _over_kept(timed), "steps": _steps(timed)}
    return [save_whole(figure, folder / f"{name}-{what}.png") for what, figure in made.items() if figure]


def _figure(width: float, height: float, panels: int = 1) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(1, panels, squeeze=False)[0]


def _over_length(timed: list[Record]) -> Any:
    """Draw the speed-up of pipelines, planning included, by length."""
    lines: dict[str, dict[int, float]] = {}
    for row in timed:
        if row["what"] != "attend":
            lines.setdefault(row["case"], {})[row["length"]] = row["speed_up"]
    lines = {case: points for case, points in lines.items() if len(points) > 1}
    if not lines:
        return None
    figure, (axes,) = _figure(9, 5)
    for i, (case, points) in enumerate(lines.items()):
        at = sorted(points)
        style = "-" if i < 10 else "--"  # there are ten colours
        axes.plot(at, [points[length] for length in at], style, marker="o", label=case)
    axes.axhline(1, color="#888888", linewidth=1, linestyle=":")
    ticks = sorted({length for points in lines.values() for length in points})
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    axes.set_xticks(ticks, [thousands(length) for length in ticks])
    axes.yaxis.set_major_formatter(lambda y, _: f"{y:g}x")
    axes.set(xlabel="tokens", ylabel="speed-up over the fastest dense attention", title="Whole pipelines by length")
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    return figure


def _over_kept(timed: list[Record]) -> Any:
    """Draw attend alone at the longest length, by density of the blocks and by the part of the tokens that is kept."""
    alone = [row for row in timed if row["what"] == "attend"]
    longest = max((row["length"] for row in alone), default=0)
    panels = [
        ("blocks, density ", "density", "density of the blocks", "1 / density", -1),
        ("tokens, kept ", "kept", "part of the tokens kept", "1 / kept²", -2),
    ]
    drawn = []
    for case, at, label, ideal, power in panels:
        lines: dict[str, dict[float, float]] = {}
        for row in alone:
            if row["case"].startswith(case) and row["length"] == longest and "fill" not in row["case"]:
                how = ", indexed" if "indexed" in row["case"] else ""
                lines.setdefault(row["backend"] + how, {})[row[at]] = row["speed_up"]
        if lines:
            drawn.append((lines, label, ideal, power))
    if not drawn:
        return None
    figure, all_axes = _figure(5.5 * len(drawn), 4.6, len(drawn))
    for axes, (lines, label, ideal, power) in zip(all_axes, drawn, strict=True):
        for name, points in lines.items():
            axes.plot(sorted(points), [points[x] for x in sorted(points)], marker="o", label=name)
        ticks = sorted({x for points in lines.values() for x in points})
        axes.plot(ticks, [x**power for x in ticks], color="#888888", linestyle=":", label=ideal)
        axes.set_xscale("log")
        axes.set_yscale("log", base=2)
        axes.set_xticks(ticks, [f"{x:.2g}" for x in ticks])
        axes.minorticks_off()
        axes.yaxis.set_major_formatter(lambda y, _: f"{y:g}x")
        axes.set(xlabel=label, ylabel="speed-up over the fastest dense attention")
        axes.legend(frameon=False)
    figure.suptitle(f"Attention alone, {thousands(longest)} tokens")
    return figure


def _steps(timed: list[Record]) -> Any:
    """Draw the time of each step of a pipeline at the longest length, beside dense attention."""
    whole = [row for row in timed if row["what"] not in ("attend", "dense") and row.get("steps")]
    longest = max((row["length"] for row in whole), default=0)
    bars = {row["case"]: row["steps"] for row in whole if row["length"] == longest}
    if not bars:
        return None
    dense = next(row for row in whole if row["length"] == longest)
    yardstick = {"attend": dense["dense_ms"]["p50"]}
    names, rows = [f"dense, {dense['dense']}", *bars], [yardstick, *bars.values()]
    figure, (left, right) = _figure(13, 1.4 + 0.4 * len(names), 2)
    for axes, shown in ((left, (*STEPS, "other")), (right, [s for s in (*STEPS, "other") if s != "attend"])):
        ends = [0.0] * len(rows)
        for step in shown:
            spent = [steps.get(step, 0.0) for steps in rows]
            if any(spent):
                axes.barh(range(len(names)), spent, left=ends, color=COLOURS[step], label=step)
                ends = [a + b for a, b in zip(ends, spent, strict=True)]
        for i, total in enumerate(ends):
            if total:
                axes.text(total, i, f" {total:,.1f}", va="center")
        axes.set_yticks(range(len(names)), names if axes is left else [""] * len(names))
        axes.invert_yaxis()
        axes.set_xlim(0, 1.18 * max(ends))
        axes.set(xlabel="ms")
    left.set_title("the whole call")
    right.set_title("besides attention")
    figure.suptitle(f"Where the time goes, {thousands(longest)} tokens")
    handles = {label: handle for handle, label in zip(*left.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside right center", frameon=False)
    return figure


def thousands(length: int) -> str:
    """Return a length as text: 131072 becomes "128K"."""
    unit, name = (1024**2, "M") if length % 1024**2 == 0 else (1024, "K") if length % 1024 == 0 else (1, "")
    return f"{length // unit}{name}"
