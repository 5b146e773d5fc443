"""Writes records as tables and pictures: python -m bench.speed.report [--check]

It writes the table between `<!-- results -->` and `<!-- /results -->` in README.md and, if there are records of a GPU,
docs/results.md with its pictures. Every speed-up is over the dense time of the same run.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from bench.records import FOLDER, ROOT, Record, foremost, read
from bench.speed import targets
from bench.speed.figures import draw, thousands
from bench.speed.targets import fastest_in_a_row

BEGIN, END = "<!-- results -->", "<!-- /results -->"
PREFILL = "end to end"  # the kind of a record of a whole model, not of one layer
PAGE = """# Results

`python -m bench.speed.report` writes this page from `bench/records/`; change nothing here. Times are medians, with the
20th and 80th percentile. Speed-ups are over the fastest dense attention of the same run. The column `over FA2` compares
with FlashAttention-2 through torch, as published speed-ups do. The error is |output - truth| / |truth| on sampled rows,
where the truth is float64 attention on the same pairs; `plain torch` is the error of plain torch in the same precision.
`authors` is the authors' own code on the same tensors. `model` inputs are those of a layer of the embedded model, with
its first weights.

Other records show how the time of a call is spent, kernel by kernel, and how much of it the host takes:
[H200](../bench/records/nvidia-h200-kernels.txt), [H200, short calls as
graphs](../bench/records/nvidia-h200-kernels-short.txt), and [H100, short inputs that run
dense](../bench/records/nvidia-h100-80gb-hbm3-kernels.txt). There are also the outputs of the
[GPU tests](../bench/records/nvidia-h200-suite.txt) and of
[compute-sanitizer](../bench/records/compute-sanitizer.txt).
"""
# the cases of the README's table, in its order
HEADLINES = (
    "blocks, density 0.1",
    "tokens, kept 0.3",
    "TokenCoverage, window fill",
    "TokenCoverage, kept 0.3, window fill",
    "FlexPrefill",
    "FlexPrefill, gamma 0.95",
    "stacked, window fill",
)


def main(
    check: Annotated[bool, typer.Option("--check", help="Write nothing; exit 1 if something would change")] = False,
    records: Annotated[Path, typer.Option(help="Folder with the records")] = FOLDER,
    readme: Annotated[Path, typer.Option(help="File with the markers")] = ROOT / "README.md",
    docs: Annotated[Path, typer.Option(help="Folder for results.md and its pictures")] = ROOT / "docs",
) -> None:
    """Update README.md and docs/results.md from the records."""
    chips = {path.stem: read(path) for path in sorted(records.glob("*.jsonl"))}
    gpus = {name: rows for name, rows in chips.items() if name != "cpu"}
    if not check:
        for name, rows in gpus.items():
            draw(latest(layers(rows)), docs, f"results-{name}")
    try:
        texts = {readme: between(readme.read_text(), block({n: layers(rows) for n, rows in (gpus or chips).items()}))}
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    if gpus:
        texts[docs / "results.md"] = page(gpus, [row for rows in chips.values() for row in rows], docs)
    stale = [path for path, text in texts.items() if not path.exists() or path.read_text() != text]
    if check and stale:
        typer.echo(
            f"{', '.join(path.name for path in stale)}: not up to date with the records; "
            "run python -m bench.speed.report"
        )
        raise typer.Exit(1)
    for path in stale:
        path.write_text(texts[path])


def between(text: str, new: str) -> str:
    """Return `text` with `new` between the markers. Raises ValueError unless it has each marker once."""
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ValueError(f"readme: got no {BEGIN} with {END} after it, once each: put both where the table belongs")
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n{new}\n{END}{rest.split(END)[1]}"


def layers(records: Iterable[Record]) -> list[Record]:
    """Return the records of one layer's attention; all tables and pictures but those of whole models use them."""
    return [row for row in records if row["kind"] != PREFILL]


def latest(records: Iterable[Record]) -> list[Record]:
    """Return the newest record of each case on each backend, at each length."""
    newest: dict[tuple, Record] = {}
    for row in sorted(records, key=lambda row: row["date"]):
        name = row["case"], row["backend"], row["shape"]["name"], row["length"], row["inputs"], row["dtype"]
        newest.pop(name, None)  # so that the newest stand last, in the order of their run
        newest[name] = row
    return list(newest.values())


def block(chips: dict[str, list[Record]]) -> str:
    """Return the README's tables, one per chip: the headline cases at the lengths where all of them were measured.

    Each case is on its fastest backend. A chip with fewer of the cases than another is only in docs/results.md.
    """
    ran = {name: len({row["case"] for row in rows} & set(HEADLINES)) for name, rows in chips.items()}
    parts = []
    for rows in (rows for name, rows in chips.items() if ran[name] == max(ran.values())):
        timed = foremost([r for r in latest(rows) if r.get("speed_up") and r["kind"] == "ours"])
        best: dict[tuple[str, int], Record] = {}
        for row in sorted(timed, key=lambda row: row["speed_up"] or 0.0):
            best[row["case"], row["length"]] = row
        if not best:
            continue
        cases = {case for case, _ in best if case in HEADLINES}
        sizes = sorted({length for _, length in best})
        sizes = [n for n in sizes if all((case, n) in best for case in cases)] or sizes
        last = timed[-1]
        axes, chip = last["shape"], ", ".join(sorted({r["gpu"] for r in best.values()}))
        lines = [
            f"One layer, {axes['H']} query and {axes['G']} key/value heads of {axes['D']}, {last['dtype']}, on {chip}. "
            "Speed-ups are over the fastest dense\nattention of the same run. Errors are against float64 of the same "
            "pairs; the column after them has those of plain torch:\n",
            "| | kept | density | error | plain torch | "
            + " | ".join(f"{thousands(length)}: ms | speed-up" for length in sizes)
            + " |",
            "|---|---|---|---|---|" + "---|---|" * len(sizes),
        ]
        for case in HEADLINES:
            own = {length: best[case, length] for length in sizes if (case, length) in best}
            if own:
                last = own[max(own)]
                cells = [f"{_ms(own[n]['ms']['p50'])} | {own[n]['speed_up']:.2f}x" if n in own else "|" for n in sizes]
                lines.append(
                    f"| {case} | {last['kept']:.2f} | {last['density']:.3f} | {last['error']:.1e} | "
                    f"{last['plain_torch_error']:.1e} | {' | '.join(cells)} |"
                )
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def page(gpus: dict[str, list[Record]], everything: list[Record], docs: Path) -> str:
    """Return docs/results.md as Markdown, with links to the pictures in `docs`."""
    parts = [PAGE, "## Targets\n", targets.table(layers(everything)) + "\n"]
    for name, rows in gpus.items():
        parts.append(f"## {rows[-1]['gpu']}\n")
        groups: dict[tuple, list[Record]] = {}
        for row in latest(layers(rows)):
            groups.setdefault((row["shape"]["name"], row["inputs"], row["dtype"], row["length"]), []).append(row)
        parts += [f"![{path.stem}]({path.name})\n" for path in sorted(docs.glob(f"results-{name}-*.png"))]
        for (shape, inputs, dtype, length), mine in sorted(groups.items()):
            axes = mine[0]["shape"]
            parts.append(
                f"### {shape} ({axes['H']} query heads, {axes['G']} key/value heads, head dim {axes['D']}), "
                f"{thousands(length)} tokens, {dtype}, {inputs} inputs\n"
            )
            parts.append(markdown(mine))
        parts += in_a_row(layers(rows))
        parts += prefills([row for row in latest(rows) if row["kind"] == PREFILL])
    return "\n".join(parts)


COLUMNS = ("case", "by", "kept", "density", "ms", "dense ms", "over dense", "over FA2", "error", "plain torch", "syncs")


def markdown(records: list[Record]) -> str:
    """Return a table of the timed records; below it the pipelines as specs, and the cases that were not timed."""
    lines = [f"| {' | '.join((*COLUMNS, 'peak GB'))} |", "|" + "---|" * (len(COLUMNS) + 1)]
    for row in records:
        if "ms" in row:
            spread = f" ({row['ms']['p20']:,.2f} to {row['ms']['p80']:,.2f})"
            cells = _cells(row)
            cells[4] += spread
            peak = "" if row.get("peak_bytes") is None else f"{row['peak_bytes'] / 1e9:.2f}"
            lines.append(f"| {' | '.join([*cells, peak])} |")
    lost = [f"- {row['case']}, {row['backend']}: {row['skipped']}" for row in records if "skipped" in row]
    lost += [f"- {row['case']}, {row['backend']}, REFUSED: {row['refused']}" for row in records if "refused" in row]
    specs = {row["case"]: row["what"] for row in records if row.get("what") not in (None, "attend", "dense")}
    named = [f"- {case}: `{what}`" for case, what in specs.items()]
    for title, listed in (("Pipelines", named), ("Not timed", lost)):
        lines += [f"\n{title}:\n", *listed] if listed else []
    return "\n".join(lines) + "\n"


def in_a_row(records: list[Record]) -> list[str]:
    """Return a table of calls in a row, one after the other, as a model's layers make them."""
    rows = [row for row in latest(records) if row.get("row_ms") and row["kind"] == "ours"]
    lines = [
        "### Calls in a row\n",
        "A model's layers call one after the other, and the host runs ahead. Times are milliseconds per call in such a "
        "row; `dense ms`\nis the fastest dense attention in a row of its own. Errors are in the tables above.\n",
        "| shape | inputs | tokens | case | density | ms | dense ms | over dense |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in sorted(rows, key=lambda row: (row["shape"]["name"], row["inputs"], row["length"])):
        dense = fastest_in_a_row(row, records)
        cells = [row["shape"]["name"], row["inputs"], thousands(row["length"]), row["case"], f"{row['density']:.3f}"]
        cells += [f"{row['row_ms']['p50']:.2f}", f"{dense:.2f}", f"{dense / row['row_ms']['p50']:.2f}x"]
        lines.append(f"| {' | '.join(cells)} |")
    return ["\n".join(lines) + "\n"] if rows else []


WHOLE = (
    "case", "by", "tokens", "kept", "density", "first token, ms", "over dense", "attention", "error", "plain torch",
    "syncs", "peak GB", "a layer's GB",
)  # fmt: skip


FIXED = (
    "Parameters fix how much each pipeline computes: random weights cannot say how much a trained model needs.\n"
    "With `auto` a recipe runs as break-even decides; it finds little to skip here, so this shows what it costs."
)
REAL = "Recipes run by force, and, with `auto`, as break-even decides. The prompt is real text."


def prefills(records: list[Record]) -> list[str]:
    """Return a table for each model that ran whole: time to the first token, and the memory of a layer's attention."""
    parts = []
    models: dict[tuple, list[Record]] = {}
    for row in sorted(records, key=lambda row: row["length"]):
        models.setdefault((row["shape"]["name"], row["inputs"], row["dtype"]), []).append(row)
    for (name, inputs, dtype), rows in sorted(models.items()):
        lines = [
            f"### Prefill of a whole model: {name}, {rows[0]['shape']['layers']} layers, {dtype}, {inputs}\n",
            f"{FIXED if inputs.startswith('random') else REAL}\n"
            "`attention` is attention's part of the time. `peak GB` includes the model's "
            f"{rows[0]['model_bytes'] / 1e9:.2f}. `a layer's GB` is the most\nthat one layer's attention holds "
            "besides its queries, keys and values. Errors are those of the middle layer.\n",
            f"| {' | '.join(WHOLE)} |",
            "|" + "---|" * len(WHOLE),
        ]
        gb = lambda x: "" if x is None else f"{x / 1e9:.2f}"  # noqa: E731
        for row in rows:
            if "ms" in row:
                case, by, kept, density, ms, _, over, _, *rest = _cells(row)
                spread = f"{ms} ({row['ms']['p20']:,.2f} to {row['ms']['p80']:,.2f})"
                cells = [case.removeprefix(f"{PREFILL}, "), by, thousands(row["length"]), kept, density, spread, over]
                share = row["attention_share"]
                cells += [
                    "" if share is None else f"{share:.0%}",
                    *rest,
                    gb(row["peak_bytes"]),
                    gb(row["attention_bytes"]),
                ]
                lines.append(f"| {' | '.join(cells)} |")
        for title, listed in (
            ("Pipelines", [f"- {_of_length(row)}: `{row['what']}`" for row in rows if "ms" in row]),
            ("Not timed", [f"- {_of_length(row)}: {_reason(row)}" for row in rows if "ms" not in row]),
        ):
            lines += [f"\n{title}:\n", *listed] if listed else []
        parts.append("\n".join(lines) + "\n")
    return parts


def _of_length(row: Record) -> str:
    return f"{row['case'].removeprefix(f'{PREFILL}, ')}, {thousands(row['length'])}"


def _reason(row: Record) -> str:
    return row["skipped"] if "skipped" in row else f"REFUSED: {row['refused']}"


def summary(records: list[Record]) -> Table:
    """Return the table for the terminal: the timed records of one length."""
    first = records[0]
    table = Table(title=f"{first['shape']['name']}, {first['length']:,} tokens, {first['dtype']}, run {first['run']}")
    for name in COLUMNS:
        table.add_column(name, justify="left" if name in COLUMNS[:2] else "right")
    for row in records:
        if "ms" in row:
            table.add_row(*_cells(row))
    lost = [row for row in records if "ms" not in row]
    table.caption = f"{len(lost)} not timed; the records have the reasons" if lost else None
    return table


def _ms(x: float) -> str:
    return f"{x:,.0f}" if x >= 100 else f"{x:.1f}" if x >= 10 else f"{x:.2f}"


def _cells(row: Record) -> list[str]:
    ms, flash2 = row["ms"]["p50"], row.get("flash2_ms")
    share = lambda x: "" if x is None else f"{x:.3f}"  # noqa: E731
    small = lambda x: "" if x is None else f"{x:.1e}"  # noqa: E731
    over = lambda x: "" if x is None else f"{x['p50'] / ms:.2f}x"  # noqa: E731
    dense = row["dense_ms"]
    return [
        row["case"],
        row["backend"],
        share(row["kept"]),
        share(row["density"]),
        f"{ms:,.2f}",
        "" if dense is None else f"{dense['p50']:,.2f}",
        over(dense),
        over(flash2),
        small(row["error"]),
        small(row["plain_torch_error"]),
        "" if row.get("syncs") is None else str(row["syncs"]),
    ]


if __name__ == "__main__":
    typer.run(main)
