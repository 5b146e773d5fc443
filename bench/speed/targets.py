"""Compares the toolkit's speed with its targets.

Each target is measured on the records of one run, the newest that has the cases. Ratios of times are within that run,
at one length and shape.
"""

from collections.abc import Callable
from dataclasses import dataclass

from bench.records import Record

FA4 = "FlashAttention-4"
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
K128, M1 = 131072, 1048576


@dataclass(frozen=True)
class Measured:
    """The measure of a target in a run."""

    text: str
    share: float  # part of the target that is reached, 1 or more if it is met; the smallest if it has several parts


@dataclass(frozen=True)
class Target:
    name: str
    text: str
    shape: str
    length: int
    measure: Callable[[list[Record]], Measured | None]  # of the timed records of a run at that shape and length


def newest(target: Target, records: list[Record]) -> tuple[Measured, Record] | None:
    """Return the measure of the newest run that has one, and a record of that run."""
    runs: dict[str, list[Record]] = {}
    for record in records:
        if record["shape"]["name"] == target.shape and record["length"] == target.length and "ms" in record:
            runs.setdefault(record["run"], []).append(record)
    for rows in sorted(runs.values(), key=lambda rows: max(row["date"] for row in rows), reverse=True):
        if measured := target.measure(rows):
            return measured, rows[0]
    return None


def _of(rows: list[Record], case: str, backend: str | None = None) -> list[Record]:
    """Return the records whose case begins with `case`: ours, or those of one backend."""
    return [
        row
        for row in rows
        if row["case"].startswith(case) and (row["kind"] == "ours" if backend is None else row["backend"] == backend)
    ]


def _yardstick(rows: list[Record]) -> float | None:
    """Return the ms of dense FlashAttention-4."""
    return next((row["ms"]["p50"] for row in _of(rows, "dense", FA4)), None)


def _blocks(rows: list[Record]) -> Measured | None:
    fa4, lists = _yardstick(rows), _of(rows, "blocks, density ")
    best: dict[float, float] = {}  # by nominal density, the part of the dense rate that active blocks reach
    for row in lists if fa4 else []:
        density = float(row["case"].removeprefix("blocks, density "))
        best[density] = max(best.get(density, 0.0), row["active"] * (fa4 or 0.0) / row["ms"]["p50"])
    many = [share for density, share in best.items() if density >= 0.1]
    if not many or 0.02 not in best:
        return None
    return Measured(
        f"{min(many):.0%} at density .1 and more, {best[0.02]:.0%} at .02", min(min(many) / 0.9, best[0.02] / 0.75)
    )


def _beside_attend(rows: list[Record], *names: str, most: float) -> Measured | None:
    """Measure all steps except attend and fill, for the slowest of the named cases."""
    spent = [
        sum(ms for step, ms in row["steps"].items() if step not in ("attend", "fill"))
        for row in rows
        if row["case"] in names and row["kind"] == "ours"
    ]
    return Measured(f"{max(spent):.2f} ms", most / max(spent)) if spent else None


def _tokens(rows: list[Record]) -> Measured | None:
    fa4 = _yardstick(rows)
    cases = [row for row in _of(rows, "TokenCoverage, kept ") if "fill" not in row["case"]]
    if not fa4 or len(cases) < 2:  # a run with only one kept ratio says little about the others
        return None
    shares = {row["kept"]: fa4 / row["ms"]["p50"] * row["kept"] ** 2 for row in cases}
    text = ", ".join(f"{share:.0%} at kept {kept:.1f}" for kept, share in sorted(shares.items(), reverse=True))
    return Measured(text, min(shares.values()) / 0.9)


def _stacked(rows: list[Record]) -> Measured | None:
    fa4, cases = _yardstick(rows), [row for row in _of(rows, "stacked") if row["case"] == "stacked"]
    if not fa4 or not cases:
        return None
    row = cases[0]
    allowed = 1.15 * (fa4 * row["density"] + 3)
    return Measured(f"{row['ms']['p50']:.1f} ms, allowed {allowed:.1f} ms", allowed / row["ms"]["p50"])


def _alone(rows: list[Record], backend: str) -> list[Record]:
    """Return the records of FlexPrefill's attention alone, by one backend."""
    return [row for row in _of(rows, "FlexPrefill", backend) if row["case"].endswith("attend alone")]


def _rate(row: Record) -> float:
    """Return TFLOP/s on active blocks."""
    s, L = row["shape"], row["length"]
    ms = (row.get("row_ms") or row["ms"])["p50"]
    return 4 * s["H"] * s["D"] * row["active"] * L * (L + 1) / 2 / ms / 1e9


def _over_authors(rows: list[Record]) -> Measured | None:
    """Measure our fastest block-sparse kernel other than FlashAttention-4 beside the authors'."""
    mine = _alone(rows, "hopper") or _alone(rows, "triton")
    theirs = {row["case"]: _rate(row) for row in _alone(rows, "authors")}
    ratios = [_rate(row) / theirs[row["case"]] for row in mine if row["case"] in theirs]
    return Measured(f"{min(ratios):.2f} x", min(ratios) / 1.5) if ratios else None


def _without_flash(rows: list[Record]) -> Measured | None:
    """Measure our fastest block-sparse kernel other than FlashAttention-4 at density .1 and more."""
    rates = [_rate(row) for row in _alone(rows, "hopper") or _alone(rows, "triton") if row["active"] >= 0.1]
    return Measured(f"{min(rates):.0f} TFLOP/s", min(rates) / 450) if rates else None


def _short_lists(rows: list[Record]) -> Measured | None:
    """Measure the same kernel at density .02 and less."""
    rates = [_rate(row) for row in _alone(rows, "hopper") or _alone(rows, "triton") if row["active"] <= 0.02]
    return Measured(f"{min(rates):.0f} TFLOP/s", min(rates) / 270) if rates else None


def _memory(rows: list[Record]) -> Measured | None:
    peaks = [row for row in rows if row["kind"] == "ours" and row["peak_bytes"]]
    if not peaks:
        return None
    worst = max(peaks, key=lambda row: row["peak_bytes"])
    s = worst["shape"]
    held = 2 * (s["H"] + s["G"]) * worst["length"] * s["D"] * BYTES[worst["dtype"]]
    ratio = worst["peak_bytes"] / held
    return Measured(f"{ratio:.2f} x, {worst['peak_bytes'] / 1e9:.1f} GB ({worst['case']})", 1.25 / ratio)


def _cpu(rows: list[Record]) -> Measured | None:
    shares = [row["speed_up"] * row["density"] for row in _of(rows, "blocks, density 0.27")]
    return Measured(f"{max(shares):.0%} at density .27", max(shares) / 0.75) if shares else None


FILLED_ON_CPU = "TokenCoverage, window fill"


def _filled_on_cpu(rows: list[Record]) -> Measured | None:
    found = [row["speed_up"] for row in _of(rows, FILLED_ON_CPU)]
    return Measured(f"{found[0]:.1f} x", found[0] / 12) if found else None


def _search_on_cpu(rows: list[Record]) -> Measured | None:
    """Measure the search of the same call as a part of the dense time."""
    mine = [row for row in _of(rows, FILLED_ON_CPU) if row.get("steps")]
    found = [(row["steps"]["score"] + row["steps"]["select"]) / row["dense_ms"]["p50"] for row in mine]
    return Measured(f"{found[0]:.1%}", 0.03 / found[0]) if found else None


def fastest_in_a_row(row: Record, records: list[Record]) -> float:
    """Return the ms per call of the fastest dense attention in a row of calls, in a record's run, on its tensors."""
    same = (x for x in records if all(x[name] == row[name] for name in ("run", "length", "shape", "inputs")))
    return min(x["row_ms"]["p50"] for x in same if x["kind"] == "dense" and x.get("row_ms"))


def _in_a_row(rows: list[Record], case: str, inputs: str = "structured") -> tuple[float, float, float] | None:
    """Return three times in ms per call in a row: the case, dense attention, and the case minus density x dense."""
    for row in _of(rows, case):
        if row.get("row_ms") and row["inputs"] == inputs:
            dense, ours = fastest_in_a_row(row, rows), row["row_ms"]["p50"]
            return ours, dense, ours - row["density"] * dense
    return None


def _over_dense(aim: float) -> Callable[[list[Record]], Measured | None]:
    def measure(rows: list[Record]) -> Measured | None:
        ms = _in_a_row(rows, "TokenCoverage, kept 0.15, 512 votes")
        return ms and Measured(f"{ms[1] / ms[0]:.2f} x", ms[1] / ms[0] / aim)

    return measure


def _beyond(case: str, most: float) -> Callable[[list[Record]], Measured | None]:
    def measure(rows: list[Record]) -> Measured | None:
        ms = _in_a_row(rows, case)
        return ms and Measured(f"{ms[2]:.2f} ms", most / ms[2])

    return measure


def _search(case: str, most: float, inputs: str) -> Callable[[list[Record]], Measured | None]:
    """Measure a call minus its attention alone."""

    def measure(rows: list[Record]) -> Measured | None:
        mine = [row for row in _of(rows, case) if row.get("row_ms") and row["inputs"] == inputs]
        whole = next((row["row_ms"]["p50"] for row in mine if row["case"] == case), None)
        alone = min((row["row_ms"]["p50"] for row in mine if row["case"] != case), default=None)
        if whole is None or alone is None:
            return None
        return Measured(f"{whole - alone:.2f} ms", most / (whole - alone))

    return measure


def _fill(rows: list[Record]) -> Measured | None:
    """Measure the fastest window with sinks, by any kernel, over FlashAttention-4's window alone."""
    ms = lambda row: (row.get("row_ms") or row["ms"])["p50"]  # noqa: E731
    with_sinks = [ms(row) for row in _of(rows, "fill, window 512, 16 sinks")]
    alone = [ms(row) for row in rows if row["case"] == "fill, window 512" and row["backend"] == "flash"]
    if not with_sinks or not alone:
        return None
    fastest = min(with_sinks)
    return Measured(f"{fastest / alone[0]:.2f} x, {fastest:.2f} ms", 1.15 * alone[0] / fastest)


LLAMA, QWEN = "llama-3.1-8b", "qwen2.5-1.5b"
IN_ROWS = [  # shape, tokens, and the speed-up aimed at: TokenCoverage with many votes and a window fill, over dense
    *((LLAMA, length, aim) for length, aim in ((4096, 0.7), (8192, 1.5), (16384, 3.5), (32768, 7.0), (K128, 20.0))),
    *((QWEN, length, aim) for length, aim in ((8192, 1.0), (16384, 2.5), (32768, 6.0))),
]
FILLED = (LLAMA, 16384), (LLAMA, 32768), (QWEN, 16384)
SEARCHES = ((4096, 0.25), (8192, 0.3), (16384, 0.4), (32768, 0.7), (K128, 1.3))  # tokens, ms
TARGETS = [
    Target(
        "T1",
        "block-sparse attention on active blocks: 90% of the dense FA4 rate at density .1 and more, 75% at .02",
        LLAMA, K128, _blocks,
    ),
    Target(
        "T2",
        "TokenCoverage at kept .3, 128K: at most 2.0 ms besides attention",
        LLAMA, K128, lambda rows: _beside_attend(rows, "TokenCoverage, kept 0.3", most=2.0),
    ),
    Target(
        "T3",
        "FlexPrefill's pattern search, 128K: at most 2.0 ms",
        LLAMA, K128,
        lambda rows: _beside_attend(rows, "FlexPrefill, gamma 0.9", "FlexPrefill, gamma 0.95", most=2.0),
    ),
    Target("T4", "token pipeline at kept r, 128K: 90% of 1/r² over dense FA4", LLAMA, K128, _tokens),
    Target("T5", "stacked, 128K: at most 1.15 x (dense FA4 x density + 3 ms)", LLAMA, K128, _stacked),
    Target(
        "T6", "without FA4, 128K: 1.5 x the authors' block-sparse kernel, on active blocks", LLAMA, K128, _over_authors
    ),
    Target("T6a", "without FA4, 128K: 450 TFLOP/s on active blocks, density .1 and more", LLAMA, K128, _without_flash),
    Target("T6b", "without FA4, 128K: 270 TFLOP/s on active blocks, density .02 and less", LLAMA, K128, _short_lists),
    Target("T7", "1M tokens: at most 1.25 x (Q + K + V + O) of memory", LLAMA, M1, _memory),
    Target("T8", "block-sparse on a CPU, 16K: 75% of 1/density over torch SDPA", "cpu", 16384, _cpu),
    Target("C1", "TokenCoverage with a window fill on a CPU, 16K: 12 x torch SDPA", "cpu", 16384, _filled_on_cpu),
    Target("C2", "its search on a CPU, 16K: at most 3% of torch SDPA's time", "cpu", 16384, _search_on_cpu),
    *(
        Target(
            f"S{n}",
            f"TokenCoverage kept .15, 512 votes, window 512 with 16 sinks, {length // 1024}K, {shape}, in a row: "
            f"{aim} x dense",
            shape, length, _over_dense(aim),
        )
        for n, (shape, length, aim) in enumerate(IN_ROWS, 1)
    ),
    *(
        Target(
            f"F{n}",
            f"FlexPrefill .95 on a model's q, k, v, {length // 1024}K, in a row: at most {most} ms besides attention",
            LLAMA, length, _search("FlexPrefill, gamma 0.95, as published", most, "model"),
        )
        for n, (length, most) in enumerate(SEARCHES, 1)
    ),
    *(
        Target(
            f"O{n}", f"TokenCoverage kept .3, {length // 1024}K, in a row: at most {most} ms beyond its pairs",
            LLAMA, length, _beyond("TokenCoverage, kept 0.3", most),
        )
        for n, (length, most) in enumerate(((32768, 0.5), (K128, 1.3)), 1)
    ),
    *(
        Target(
            f"W{n}",
            f"a fill's window of 512 with 16 sinks, {length // 1024}K, {shape}, in a row: at most 1.15 x "
            "FlashAttention-4's window alone",
            shape, length, _fill,
        )
        for n, (shape, length) in enumerate(FILLED, 1)
    ),
]  # fmt: skip


def table(records: list[Record]) -> str:
    """Return the Markdown table of targets: what was measured, and whether it meets the target."""
    lines = ["| | target | measured | |", "|---|---|---|---|"]
    for target in TARGETS:
        latest = newest(target, records)
        if latest is None:
            lines.append(f"| {target.name} | {target.text} | not measured | |")
            continue
        measured, row = latest
        verdict = "met" if measured.share >= 1 else f"{measured.share:.0%} of the way"
        lines.append(f"| {target.name} | {target.text} | {measured.text}; {row['gpu']} | {verdict} |")
    return "\n".join(lines)
