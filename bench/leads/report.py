"""A table for each lead, from the lines of bench/leads/run.py: python -m bench.leads.report leads.jsonl --out leads.md

Every difference is between a variant and the method it varies on the same prompts: at equal strength, the same tau or
gamma; and at equal work, where the plain method's figures on each prompt are interpolated between its strengths, along
the logarithm of the work, at the variant's work. Work is the part of dense attention's pairs that is computed, the mean
over layers: what attention time could be. Intervals are of 95%.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Annotated, Any

import numpy as np
import typer

from bench.leads.judge import QUESTIONS, TEXT
from bench.leads.variants import Variant, variants
from sparsekit.testbed.statistics import Estimate, bootstrap_difference, difference, mean

Line = Mapping[str, Any]
Prompt = tuple[str, int]  # task, seed
Value = Callable[[Line], float]
# what was found of each lead's label at 32K on an H200; the methods that variants vary have none
VERDICTS: dict[str, str] = {
    "zeros": "loses nearly all: without a fill a dropped token sees nothing",
    "only neighbours": "loses nearly half",
    "Streaming": "loses answers",
    "BlockTopK": "loses answers, better on text",
    "tokens by chance": "worse: it matters which tokens are kept",
    "near 128": "no difference seen",
    "near 512, fill 512": "no more answers, a little better on text; a window of 8192 is in `lossless`",
    "per head": "no difference seen at half the work",
    "pooled over heads": "no difference seen at half the work",
    "one keep for all layers": "no better",
    "per group": "more questions; not sure",
    "per layer": "more questions at tau .1: one head's votes help the others; hardly sure",
    "voting window 32": "fewer questions; not sure",
    "voting window 512": "more questions, mostly by what is always kept; not sure",
    "last 512 choose": "more questions: they ask for what is kept; not sure",
    "spread": "fewer questions: rows in the middle know nothing of what is asked",
    "spread, far keys": "fewer questions",
    "last and spread": "no better",
    "chunks of an eighth": "no better at equal work",
    "FlexPrefill, chunks of an eighth": "no difference seen in answers, a little better on text at gamma .9",
    "newlines": "no better, worse on text",
    "delimiters": "loses answers at tau .4: they take the place of what is asked for",
    "first 64": "no difference seen",
    "runs of 16": "works at tau .1: many more questions at equal work",
    "runs of 64": "works at tau .1: many more questions at equal work",
    "runs of 128": "works at tau .1: many more questions at equal work",
    "runs of 64 by max": "works at tau .1: many more questions at equal work",
    "pool 1": "fewer questions: single tokens are not enough",
    "pool 31": "works best: nearly all questions at tau .1; in the recipes",
    "max": "no difference seen",
    "every second layer decides": "no difference seen",
    "every fourth layer decides": "no better",
    "reused while it covers": "no better: it seldom is cheaper",
    "reused while it misses at most twice tau": "loses answers at tau .4",
    "votes summed over layers": "more questions; not sure",
    "votes fading over layers": "more questions at equal work; not sure",
    "equal error": "no difference that is sure",
    "equal price": "the same answers at less than half the work",
    "tokens or blocks, equal price": "more questions at more work; not sure",
    "stacked, gamma 0.7": "fewer answers; not sure",
    "stacked, gamma 0.9": "no difference seen at a third of the work",
    "votes choose blocks, gamma 0.7": "fewer answers; not sure",
    "votes choose blocks, gamma 0.9": "no difference seen, in one pass instead of two",
    "blocks by votes, band 1": "no more answers than FlexPrefill's that is sure, better on text",
    "blocks by votes, band 4": "no more answers than FlexPrefill's that is sure, better on text",
    "fill window 8": "loses answers: too few neighbours",
    "fill window 32": "no difference seen in answers, worse on text",
    "fill window 512": "no more answers, better on text",
    "fill sinks 16": "no difference seen",
    "dropped queries see 64 far keys": "no difference seen",
    "dropped queries see 512 far keys": "no better",
    "512 far keys, near 128": "no better",
    "all queries, keys and near 128": "no better at equal work",
    "fewer queries than keys": "no more answers, a little better on text at tau .4",
    "fewer keys than queries": "no difference seen",
    "kept queries see all keys": "no better at seven times the work",
    "high half": "nearly all questions at half of dense attention's work: layer 4 is spared",
    "low half": "more questions at half of dense attention's work; not sure",
    "tokens low, FlexPrefill 0.9 high": "no more answers, worse on text",
    "tokens high, FlexPrefill 0.9 low": "no better: right answers less likely",
    "layer 0 alone": "as dense at 88% of its work",
    "layer 1 alone": "as dense at 88% of its work",
    "layer 2 alone": "as dense at 88% of its work",
    "layer 3 alone": "as dense at 88% of its work",
    "layer 4 alone": "fewer questions than any other layer alone; not sure",
    "layer 5 alone": "as dense at 88% of its work",
    "layer 6 alone": "as dense at 88% of its work",
    "layer 7 alone": "as dense at 88% of its work",
    "the others neighbours": "all questions if they stand in what sees all keys, else none",
    "the others plain, tau 0.4": "all questions if they stand in what sees all keys, else few",
    "the others FlexPrefill 0.6": "no better: right answers less likely",
    "the others neighbours and top blocks": "no difference seen",
}
HEAD = (
    "variant", "kept", "work", "ms", "found", "questions", "text, bits",
    "found, equal strength", "questions, equal strength",
    "found, equal work", "questions, equal work", "text, equal work", "answer bits, equal work", "verdict",
)  # fmt: skip


@dataclass(frozen=True)
class Tried:
    """A variant's lines at one length."""

    variant: Variant
    lines: Mapping[Prompt, Line]

    def mean_of(self, name: str) -> float | None:
        """Over layers and the watched prompts."""
        values = [fmean(line[name]) for line in self.lines.values() if name in line]
        return fmean(values) if values else None

    @property
    def ms(self) -> float | None:
        """Deciding and attending in all layers, the median prompt; of stages that were made to be fast."""
        times = [line["ms"] for line in self.lines.values() if "ms" in line]
        return median(times) if times and self.variant.timed else None


def part(line: Line) -> float:
    """The part of the values asked for that were found."""
    return line["found"] / line["answers"]


def bits(line: Line) -> float:
    """Of the right answer, per byte."""
    return line["bits"]


def retrieval(prompt: Prompt) -> bool:
    """Whether it is of the testbed's own tasks."""
    return prompt[0] not in (TEXT, QUESTIONS)


def of(task: str) -> Callable[[Prompt], bool]:
    """The prompts of a task."""
    return lambda prompt: prompt[0] == task


def compare(ours: Mapping[Prompt, float], theirs: Mapping[Prompt, float], parts: bool = True) -> Estimate | None:
    """Ours less theirs on the prompts of both: Newcombe's interval of parts, the bootstrap's of anything else."""
    shared = sorted(ours.keys() & theirs.keys())
    if not shared:
        return None
    mine, other = [ours[p] for p in shared], [theirs[p] for p in shared]
    return difference(mine, other) if parts else bootstrap_difference(mine, other)


def at_density(curve: Sequence[tuple[float, Mapping[Prompt, float]]], work: float) -> dict[Prompt, float] | None:
    """What the curve, of work and figures, has on each prompt at that work; None outside of it."""
    points = sorted(curve, key=lambda point: point[0])
    if len(points) < 2 or not points[0][0] * 0.95 <= work <= points[-1][0] * 1.05:
        return None
    prompts = set.intersection(*(set(values) for _, values in points))
    x = np.log([w for w, _ in points])
    return {p: float(np.interp(np.log(work), x, [values[p] for _, values in points])) for p in prompts}


def figures(tried: Tried, which: Callable[[Prompt], bool], value: Value) -> dict[Prompt, float]:
    """A figure of each prompt of a kind."""
    return {prompt: value(line) for prompt, line in tried.lines.items() if which(prompt)}


def row(tried: Tried, known: Mapping[str, Tried]) -> list[str]:
    """The cells of a variant."""
    v, work = tried.variant, tried.mean_of("density")
    same = known.get(f"{v.plain}, {v.strength}")
    curve = [(w, t) for t in known.values() if t.variant.label == v.plain and (w := t.mean_of("density"))]

    def level(which: Callable[[Prompt], bool], value: Value, parts: bool = True) -> str:
        found = list(figures(tried, which, value).values())
        return "" if not found else shown(mean(found), sign=False) if parts else f"{fmean(found):.3f}"

    def at_strength(which: Callable[[Prompt], bool], value: Value) -> str:
        if same is None or same is tried:
            return ""
        return shown(compare(figures(tried, which, value), figures(same, which, value)))

    def at_work(which: Callable[[Prompt], bool], value: Value, parts: bool = True) -> str:
        if work is None or v.label == v.plain:
            return ""
        theirs = at_density([(w, figures(t, which, value)) for w, t in curve], work)
        return "" if theirs is None else shown(compare(figures(tried, which, value), theirs, parts))

    asked = of(QUESTIONS)
    return [
        v.name,
        "" if (kept := tried.mean_of("kept")) is None else f"{kept:.3f}",
        "" if work is None else f"{work:.4f}",
        "" if (ms := tried.ms) is None else f"{ms:.1f}",
        level(retrieval, part),
        level(asked, part),
        level(of(TEXT), bits, parts=False),
        at_strength(retrieval, part),
        at_strength(asked, part),
        at_work(retrieval, part),
        at_work(asked, part),
        at_work(of(TEXT), bits, parts=False),
        at_work(retrieval, bits, parts=False),
        VERDICTS.get(v.label, ""),
    ]


def shown(one: Estimate | None, sign: bool = True) -> str:
    """A value and its interval; a difference that is one in bold."""
    if one is None:
        return ""
    plus = "+" if sign else ""
    text = f"{one.value:{plus}.3f} ({one.low:{plus}.3f} to {one.high:{plus}.3f})"
    return f"**{text}**" if sign and not one.none else text


def tables(lines: Iterable[Line]) -> str:
    """Markdown: for each length and lead the variants that were run."""
    by: dict[int, dict[str, dict[Prompt, Line]]] = defaultdict(lambda: defaultdict(dict))
    for line in lines:
        if "error" not in line:
            by[line["length"]][line["variant"]][line["task"], line["seed"]] = line
    known = {v.name: v for v in variants()}
    out: list[str] = []
    for length, found in sorted(by.items()):
        tried = {name: Tried(known[name], of_name) for name, of_name in found.items() if name in known}
        out.append(f"# {length:,} bytes\n")
        for lead in dict.fromkeys(t.variant.lead for t in tried.values()):
            rows = [row(t, tried) for t in tried.values() if t.variant.lead == lead]
            used = [i for i in range(len(HEAD)) if i == 0 or any(cells[i] for cells in rows)]
            pick = lambda cells: "| " + " | ".join(cells[i] for i in used) + " |"  # noqa: B023, E731
            prompts = {p for t in tried.values() if t.variant.lead == lead for p in t.lines}
            out.append(f"## {lead}\n\n{len(prompts)} prompts.\n")
            out += [pick(HEAD), pick(["---"] * len(HEAD)), *map(pick, rows), ""]
    return "\n".join(out)


def main(
    files: Annotated[list[Path], typer.Argument(help="What run.py wrote; later lines hold")],
    out: Annotated[Path | None, typer.Option(help="Markdown file; default the screen")] = None,
) -> None:
    """Tables of leads."""
    text = tables(json.loads(line) for file in files for line in file.read_text().splitlines())
    if out is None:
        print(text)
        return
    unfinished = out.with_name(f".{out.name}")
    unfinished.write_text(text + "\n")
    unfinished.replace(out)


if __name__ == "__main__":
    typer.run(main)
