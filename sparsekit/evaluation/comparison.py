"""Compares pipelines on one model: their answers, and the cost of their attention.

Stages always run here, even on prompts too short to gain from them (`break_even=0`). Each result is written to the
records at once, so a run that was cut off continues where it stopped. rows.py makes rows of the records.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..checks import check_choice, check_count
from ..layers import Layers, without_break_even
from ..pipeline import Pipeline
from ..registry import by_new_names
from .ask import after, ask, log_probabilities
from .case import Case, Source
from .price import Contender, Watch, error_text, prices
from .records import Record, Records, provenance

DENSE = "dense"  # the model's own attention, with which answers are compared
EVERY_PAIR = "flex_prefill(gamma=1.0)"  # dense attention by sparsekit's kernels: gamma 1 makes no block lists
TIMED = 3  # prompts of a length whose attention is timed


@dataclass(frozen=True)
class Prompts:
    """A choice of prompts: `each` of every task at every length, and `texts` real texts with the text that follows.

    Raises ValueError if a task cannot be asked at a length.
    """

    source: Source
    tasks: Sequence[str]  # of the source
    lengths: Sequence[int] = (4096,)  # in the unit of the source
    each: int = 4
    texts: int = 0
    seed: int = 0  # of the first prompt of each task and of the first text; the others follow

    def __post_init__(self) -> None:
        check_count("questions", self.each, 1)
        check_count("texts", self.texts, 0)
        for name, given in (("tasks", self.tasks), ("lengths", self.lengths)):
            if not given or len(set(given)) < len(given):
                raise ValueError(f"{name}: got {list(given)}; allowed are one or more different ones: name each once")
        for task in self.tasks:
            check_choice("tasks", task, self.source.groups["all"])
        for length in {min(self.lengths), max(self.lengths)}:  # a question too long for the one, a text for the other
            for task in self.tasks:
                self.source.case(task, self.seed, length)
            if self.texts:
                self.source.passage(self.seed, length)

    def keys(self) -> list[tuple[str, int]]:
        """Return task and seed of each prompt of a length; tasks take turns."""
        return [(task, self.seed + i) for i in range(self.each) for task in self.tasks]

    def seeds(self) -> list[int]:
        """Return the seed of each real text of a length."""
        return [self.seed + i for i in range(self.texts)]


def compare(
    model: Any,
    pipelines: Mapping[str, Pipeline | Layers],
    prompts: Prompts,
    records: Records,
    *,
    name: str,
    timed: int = TIMED,
    again: bool = False,
    commit: str | None = None,
    on_step: Callable[[int, int, str], None] | None = None,
) -> None:
    """Ask `model` every prompt, dense and by each pipeline, time the attention of each, and append to `records`.

    For each real text the records get the loss on the text that follows, and its distance from dense attention.

    `pipelines` maps names to pipelines, which may have stages of the caller's own, or to mappings of layers to
    pipelines. `name` is the model's. Results that `records` already has are not measured again; with `again` times
    are. At each length `timed` prompts are timed (0: none); the pipelines take turns on them with dense attention:
    the model's own, sparsekit's and, on a GPU, cuDNN's. A pipeline that breaks at a length is recorded with the reason
    and left out there until the next run. `on_step(done, total, name)` is called after each pass. Raises ValueError
    for a model in training mode, a name that dense attention has, a pipeline that does not fit the model, and records
    of another model, text, dtype or rope scaling, or of other pipelines under the same names.
    """
    check_count("timed", timed, 0)
    pipelines = {by_new_names(called): pipeline for called, pipeline in pipelines.items()}  # a name may be a spec
    if model.training:
        raise ValueError("model: got one in training mode; allowed is evaluation mode: call model.eval() first")
    yardsticks = _yardsticks(model)
    ways = {DENSE: yardsticks[DENSE]}
    for called, pipeline in pipelines.items():
        if called in yardsticks:
            raise ValueError(f"pipelines: got the name {called!r}, which dense attention has: choose another")
        ways[called] = _by(model, without_break_even(pipeline))
        with ways[called](None):  # raises before anything is measured if the pipeline does not fit the model
            pass
    specs = dict.fromkeys(yardsticks, DENSE) | {called: spec_of(pipeline) for called, pipeline in pipelines.items()}
    header = provenance(model, name, prompts.source.identity, commit) | {"unit": prompts.source.unit}
    _check_same(records.lines, header, specs)

    lines = records.lines
    old = {(x["pipeline"], x["length"], x["task"], x["seed"]) for x in lines if x["kind"] == "answers"}
    old |= {(x["pipeline"], x["length"], None, x["seed"]) for x in lines if x["kind"] == "after"}
    priced = {(x["pipeline"], x["length"]) for x in lines if x["kind"] == "price" and not again}
    keys = [*prompts.keys(), *((None, seed) for seed in prompts.seeds())]  # without a task: a real text
    to_price, to_ask = {}, {}
    for length in prompts.lengths:
        lacking = {called: way for called, way in ways.items() if (called, length) not in priced}
        to_price[length] = yardsticks | lacking if lacking and timed else {}
        to_ask[length] = {key: [called for called in ways if (called, length, *key) not in old] for key in keys}
    total = sum(2 * timed * len(contenders) for contenders in to_price.values())
    total += sum(len(lacking) for keys in to_ask.values() for lacking in keys.values())
    if not total:
        return
    records.append(header)
    run = _Run(records, header["run"], specs, total, on_step)
    for length in prompts.lengths:
        if to_price[length]:
            some = prompts.keys()
            cases = [prompts.source.case(*some[i % len(some)], length) for i in range(timed)]
            ids = [torch.tensor([case.prompt], device=model.device) for case in cases]
            found, broken = prices(model, to_price[length], ids, run.step)
            for called, price in found.items():  # dense ones first: without them the others have no speed-up
                figures = dict(dense=called in yardsticks, tokens=ids[0].shape[1]) | asdict(price)
                run.add("price", called, length, **figures)
            for called, reason in broken.items():
                run.lose(called, length, reason)
        for (task, seed), names in to_ask[length].items():
            left = {called: ways[called] for called in names}
            if left and task is not None:
                _ask(model, prompts.source, prompts.source.case(task, seed, length), left, run)
            elif left:
                _read(model, prompts.source, seed, length, left, ways[DENSE], run)


class _Run:
    """One run: its progress, and the lines it adds to the records."""

    def __init__(
        self,
        records: Records,
        run: str,
        specs: Mapping[str, str],
        total: int,
        on_step: Callable[[int, int, str], None] | None,
    ) -> None:
        self.lost: set[tuple[str, int]] = set()  # each pipeline that broke, with the length
        self._records, self._run, self._specs, self._total, self._on_step = records, run, specs, total, on_step
        self._done = 0

    def step(self, called: str) -> None:
        self._done += 1
        if self._on_step:
            self._on_step(self._done, self._total, called)

    def add(self, kind: str, called: str, length: int, **figures: Any) -> None:
        line: Record = dict(kind=kind, run=self._run, pipeline=called, what=self._specs[called], length=length)
        self._records.append(line | figures)

    @contextmanager
    def of(self, called: str, length: int) -> Iterator[bool]:
        """Yield whether a pipeline still runs at a length; count a step, or record an error and stop it there."""
        going = (called, length) not in self.lost
        try:
            yield going
        except Exception as error:  # one broken pipeline must not end a long run of the others
            self.lose(called, length, error_text(error))
        else:
            if going:
                self.step(called)

    def lose(self, called: str, length: int, reason: str) -> None:
        self.lost.add((called, length))
        self.add("failed", called, length, reason=reason)


def _ask(model: Any, source: Source, case: Case, ways: Mapping[str, Contender], run: _Run) -> None:
    """Record the answer of each way to a prompt."""
    for called, way in ways.items():
        with run.of(called, case.length) as going:
            if going:
                answer = ask(model, case, lambda: way(None))  # noqa: B023  # called before the next way
                figures = dict(answers=len(answer.found), found=sum(answer.found), values=[*map(int, answer.found)])
                figures |= dict(answer=source.decode(answer.likeliest))
                where = dict(task=case.task, seed=case.seed, tokens=len(case.prompt))
                run.add("answers", called, case.length, **where, **figures)


def _read(
    model: Any, source: Source, seed: int, length: int, ways: Mapping[str, Contender], dense: Contender, run: _Run
) -> None:
    """Record figures of the text that follows a real text, for each way in comparison with dense attention."""
    passage = source.passage(seed, length)
    theirs: list[Tensor] = []  # at most one, which every way is compared with; a continued run computes it again
    for called, way in ways.items():
        with run.of(called, length) as going:
            if going:
                theirs = theirs or [log_probabilities(model, passage, lambda: dense(None))]
                ours = theirs[0] if called == DENSE else log_probabilities(model, passage, lambda: way(None))  # noqa: B023
                figures = asdict(after(ours, theirs[0], passage.following)) | dict(following=len(passage.following))
                run.add("after", called, length, seed=seed, tokens=len(passage.prompt), **figures)


def spec_of(pipeline: Pipeline | Layers) -> str:
    """Return a pipeline's spec, or a schedule's as JSON. A pipeline with the user's own stages gives its `str`."""
    if isinstance(pipeline, Mapping):
        return json.dumps(
            {str(layer): one if isinstance(one, str) else spec_of(one) for layer, one in pipeline.items()}
        )
    try:
        return pipeline.to_spec()
    except ValueError:
        return str(pipeline)


def _by(model: Any, pipeline: Pipeline | Layers | str) -> Contender:
    from ..integrations.transformers import sparsify  # transformers is an optional extra

    return lambda watch: sparsify(model, pipeline, watch=watch)


def _yardsticks(model: Any) -> dict[str, Contender]:
    """Return the dense contenders: the model's own attention, sparsekit's and, on a GPU, cuDNN's through torch."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    from ..integrations.transformers.sparsify import NAME

    now = model.config._attn_implementation
    plain = now != NAME and now in ALL_ATTENTION_FUNCTIONS  # an eager one is inside its model's file
    own: Contender = (lambda watch: nullcontext()) if plain else _by(model, DENSE)
    found = {DENSE: own, f"{DENSE}, sparsekit": _by(model, Pipeline.from_spec(f"{EVERY_PAIR} | attend(break_even=0)"))}
    if model.device.type == "cuda" and now == "sdpa":

        @contextmanager
        def cudnn(watch: Watch | None) -> Iterator[None]:
            with own(watch), sdpa_kernel([SDPBackend.CUDNN_ATTENTION]):
                yield

        found[f"{DENSE}, cuDNN"] = cudnn
    return found


def _check_same(lines: Sequence[Record], header: Record, specs: Mapping[str, str]) -> None:
    """Raise ValueError if the lines cannot be compared with those of a run."""
    for line in lines:
        for name in ("model", "weights", "text", "dtype", "rope") if line["kind"] == "run" else ():
            if line.get(name, header[name]) != header[name]:  # older records do not name all of these
                raise ValueError(
                    f"out: got records of {name} {line[name]!r}, and this run has {header[name]!r}; allowed are "
                    f"records of the same {name}: pass another file"
                )
        called = line.get("pipeline", "")
        if called in specs and line["what"] != specs[called]:
            raise ValueError(
                f"pipelines: {called!r} is {line['what']!r} in the records, and here {specs[called]!r}; allowed is one "
                "meaning of a name: choose another"
            )
