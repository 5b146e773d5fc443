"""Stages stacked: decide, compress, attend, decompress.

A Stage looks at a Problem and returns a Plan. A Pipeline chains stages, each on what the one before left, and runs
the plan; it is a Stage itself. What the user leaves out it completes, and prints the whole.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import fields, replace
from functools import partial
from typing import Any, Literal, overload

import torch
from jaxtyping import Float
from torch import Tensor

from . import dispatch, execute, graphs
from .break_even import STREAK, VAIN, Estimate, decided, gain, search_times, worth_it
from .execute import Clock
from .fills import Zeros
from .inference import inference_only, needs_gradients
from .plan import Plan
from .policies import POLICIES, Attend, Compress, Decompress, Policy, Stage
from .problem import Output, Problem, is_abstract
from .registry import is_built_in
from .report import Report, explain
from .spec import brief, parse, step_text, write

SHAPES = 256  # of which a pipeline remembers that they run dense


class Pipeline:
    """Stages in the order they decide; calling it attends.

    `stages` may name, anywhere, `Compress`, `Attend` and `Decompress`, each at most once, to set their policy. A
    Pipeline among the stages counts as its own stages and policies, so recipes stack: [balanced(), FlexPrefill()].
    `Pipeline([])` is dense attention. `break_even` is that of `Attend`: the number of keys from which on the stages
    are worth their overhead.
    Raises ValueError for a second policy of a kind, tokens after blocks, or something that is not a stage.
    """

    def __init__(
        self, stages: Iterable[Stage | Policy] = (), *, break_even: Literal["auto"] | int | None = None
    ) -> None:
        given = tuple(_flatten(stages))
        if break_even is not None:
            given = _with_break_even(given, break_even)
        self.compress: Compress = _only(given, Compress)
        self.attend: Attend = _only(given, Attend)
        self.decompress: Decompress = _only(given, Decompress)
        self.stages: tuple[Stage, ...] = tuple(s for s in given if not isinstance(s, POLICIES))
        self._named = tuple(type(s) for s in given if isinstance(s, POLICIES))
        self._dense: dict[tuple, Callable[..., Tensor] | None] = {}  # what `dense_kernel` found
        self._runs: dict[tuple, bool] = {}  # by shapes, whether the stages run
        self._credit: dict[tuple, float] = {}  # by shapes, ms: what plans saved, less what searches took
        self._lost: dict[tuple, Estimate] = {}  # by shapes, the times of the last plan that did not pay
        _check_order(self.stages)
        try:
            self._spec: str | None = self.to_spec()
        except ValueError:  # a stage of the user's own, without a name
            self._spec = None
        self._lawful = self._spec is not None and is_built_in(self.stages)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Pipeline) and self.normal_form() == other.normal_form()

    def __hash__(self) -> int:
        return hash(self.normal_form())

    def __repr__(self) -> str:
        return f"Pipeline([{', '.join(map(step_text, self.named_form()))}])"

    def __str__(self) -> str:
        return " -> ".join(map(brief, self.normal_form()))

    def normal_form(self) -> tuple[Any, ...]:
        """All steps in the order they run, the ones the user left out among them."""
        tokens = [i for i, s in enumerate(self.stages) if getattr(s, "chooses", None) != "blocks"]
        after = tokens[-1] + 1 if tokens else 0
        compress = (self.compress,) if tokens or Compress in self._named else ()
        decompress = (self.decompress,) if tokens or Decompress in self._named else ()
        return (*self.stages[:after], *compress, *self.stages[after:], self.attend, *decompress)

    def named_form(self) -> list[Any]:
        """The steps the user named, nested pipelines spliced, in the order they run."""
        return [s for s in self.normal_form() if not isinstance(s, POLICIES) or type(s) in self._named]

    @classmethod
    def from_spec(cls, spec: str) -> "Pipeline":
        """A pipeline from text: "token_coverage(tau=0.02) | flex_prefill | decompress(fill=sliding_window(128))".

        Names are the stages' in snake case; "dense" is `Pipeline([])`. Raises ValueError with the position.
        """
        return cls(parse(spec))

    def to_spec(self) -> str:
        """The text that `from_spec` turns into this pipeline."""
        return write(self.named_form())

    def decide(self, problem: Problem, clock: Clock = nullcontext) -> Plan:
        """The plan for a problem: every stage on what the ones before it left; dense where that is faster.

        Raises ValueError if its tensors have no data.
        """
        if needs_gradients(problem.q, problem.k, problem.v):
            with torch.no_grad():
                return self.decide(problem, clock)
        return self._decide(problem, clock)[0]

    def _decide(self, problem: Problem, clock: Clock) -> tuple[Plan, list[Problem]]:
        """The plan, and the compressed problem if a stage wanted to see it."""
        if self.stages and is_abstract(problem.q):
            raise ValueError(
                f"q: got a tensor without data ({type(problem.q).__name__} on {problem.q.device}); a plan depends on "
                "what the tensors hold: pass real ones, or call the pipeline, which answers with shapes"
            )
        if not self.decides(problem):
            return Plan(), []
        plan, short = Plan(), [problem]
        for stage in self.stages:
            if not short:
                with clock("compress"):
                    short = [dispatch.run("gather_tokens", problem.q.device.type, problem, plan)]
            with clock(type(stage).__name__):
                inner = stage(short[0])
            if inner.queries or inner.keys:
                short = []
            plan = plan.then(inner)
        fill, last = self.decompress.fill, self.decompress.dense_last if plan != Plan() else 0
        plan = replace(plan, fill=None if isinstance(fill, Zeros) else fill, dense_last=last)
        saved = gain(plan, problem) if self.attend.break_even == "auto" else None
        if saved is None or saved > 0:
            return plan, short
        if plan != Plan() and (times := decided(plan, problem)):
            if len(self._lost) >= SHAPES:
                self._lost.clear()
            self._lost[problem.q.shape, problem.k.shape] = times
        return Plan(), []

    def lost(self, problem: Problem) -> Estimate | None:
        """Return the times of the last plan for a problem of these shapes that did not pay, so was not run; or None."""
        return self._lost.get((problem.q.shape, problem.k.shape))

    def _decide_again(self, problem: Problem, clock: Clock) -> tuple[Plan, list[Problem]]:
        """Like `_decide`, but dense while searches that were in vain, in calls of these shapes, are not made up for."""
        times = search_times(self.stages, self.attend.break_even, problem, self.decompress)
        if times is None or not times.worth:
            return self._decide(problem, clock)
        shapes = problem.q.shape, problem.k.shape, problem.v.shape, problem.q.dtype, problem.causal
        credit = self._credit.get(shapes, 0.0)
        if credit < 0:
            plan, short = Plan(), list[Problem]()
            credit += VAIN * times.dense
        else:
            plan, short = self._decide(problem, clock)
            credit = min(credit + (gain(plan, problem) or 0.0) - times.overhead, STREAK * times.overhead)
        if len(self._credit) >= SHAPES:
            self._credit.clear()
        self._credit[shapes] = credit
        return plan, short

    def decides(self, problem: Problem) -> bool:
        """Return whether the stages run. They do not below break-even, nor where all queries are dense last ones."""
        enough = problem.q.shape[2] > self.decompress.dense_last
        return enough and worth_it(self.stages, self.attend.break_even, problem, self.decompress)

    def plan(self, q: Tensor, k: Tensor, v: Tensor, *, causal: bool = True, scale: float | None = None) -> Plan:
        """The decision, as data: print, count, draw, store, or pass it to a later call."""
        return self.decide(Problem.of(q, k, v, causal, scale))

    @overload
    def __call__(self, q: Problem, /) -> Plan: ...

    @overload
    def __call__(
        self,
        q: Float[Tensor, "B H Q D"],
        k: Float[Tensor, "B G K D"],
        v: Float[Tensor, "B G K Dv"],
        *,
        causal: bool = True,
        scale: float | None = None,
        plan: Plan | None = None,
    ) -> Float[Tensor, "B H Q Dv"]: ...

    def __call__(self, q, k=None, v=None, *, causal=True, scale=None, plan=None):
        """Attention of q [B, H, Q, D] over k [B, G, K, D], v [B, G, K, Dv]; `plan` reuses an earlier decision.

        With fewer queries than keys the queries sit at the end. `scale` is 1/sqrt(D) if None. Called with a Problem
        alone it is a Stage and returns the Plan. Raises ValueError for bad input, NoBackendError if nobody can. The
        backward pass of what it returns raises ValueError. Of tensors without data, on the meta device or fake, it
        returns one of the answer's shape and dtype.
        """
        if isinstance(q, Problem):
            return self.decide(q)
        if plan is None and (known := self.known_call(q, k, v, causal, scale)):
            if needs_gradients(q, k, v):
                with torch.no_grad():
                    o = known(q, k, v)
                return inference_only(o, q, k, v)
            return known(q, k, v)
        return self.output(q, k, v, causal=causal, scale=scale, plan=plan).o

    def known_call(
        self, q: Tensor, k: Tensor, v: Tensor, causal: bool = True, scale: float | None = None
    ) -> Callable[[Tensor, Tensor, Tensor], Tensor] | None:
        """What to call instead with q, k, v of these shapes, if a call of them has shown it; None: call as ever.

        That is one dense kernel, or all kernels of a sparse call as a CUDA graph. Raises as a call does.
        """
        if (dense := self.dense_kernel(q, k, v, causal, scale)) or not all(isinstance(x, Tensor) for x in (q, k, v)):
            return dense
        lawful = self._lawful and not self.attend.check  # of a stage of the user's own nothing is known
        if not lawful or not q.is_cuda or torch.compiler.is_compiling() or dispatch.is_timed() or is_abstract(q):
            return None
        shapes = q.shape, k.shape, v.shape, q.dtype, q.device, causal, scale
        if shapes not in self._runs:
            if len(self._runs) >= SHAPES:
                self._runs.clear()
            problem = Problem.of(q, k, v, causal, scale)
            alone = dispatch.no_gpu_kernel(problem, Plan()) is None  # plain torch waits for the device
            self._runs[shapes] = alone and bool(self.stages) and self.decides(problem)
        if not self._runs[shapes]:
            return None
        return graphs.graph_call(
            (self._spec, causal, scale), partial(self._all_but_last, causal=causal, scale=scale), q, k, v
        )

    def _all_but_last(
        self, q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float | None
    ) -> Tensor | Callable[[Tensor, Tensor, Tensor], Tensor]:
        """The answer, or the last step of the call, which writes it, as a function of tensors like these."""
        problem = Problem.of(q, k, v, causal, scale)
        begun = self._begin(problem, None, nullcontext)[1]
        if isinstance(begun, Output):
            return begun.o
        if problem.q is not q:  # a scale below zero: the problem has queries of its own
            return begun(problem).o
        rest = {field.name: getattr(problem, field.name) for field in fields(problem)[3:]}  # it holds no q, k, v
        return lambda q, k, v: begun(Problem(q, k, v, **rest)).o

    def dense_kernel(
        self, q: Tensor, k: Tensor, v: Tensor, causal: bool = True, scale: float | None = None
    ) -> Callable[[Tensor, Tensor, Tensor], Tensor] | None:
        """What to call instead with q, k, v of these shapes, if they alone say dense and one kernel is all there is.

        A kernel of a short sequence is done before the host has checked, counted positions and asked each backend
        again; from the second call of a shape on that is known. Raises as a call does.
        """
        if torch.compiler.is_compiling() or dispatch.is_timed() or is_abstract(q):
            return None
        try:
            kinds = q.dtype, k.dtype, v.dtype, q.device, k.device, v.device, type(scale)  # True is 1.0, and no scale
            shapes = q.shape, k.shape, v.shape, kinds, causal, scale
            return self._dense[shapes]
        except (AttributeError, TypeError):  # no tensors, or no numbers: the checks say so
            return None
        except KeyError:
            problem, how = Problem.of(q, k, v, causal, scale), self.attend
        found = None
        if scale is not None and not scale > 0:
            pass  # a kernel is given q as it is, not the problem's, which takes the sign
        elif not self.stages or not self.decides(problem):
            found = dispatch.kernel("attend", q.device.type, problem, Plan(), backend=how.backend)
        if len(self._dense) >= SHAPES:
            self._dense.clear()
        self._dense[shapes] = found
        return found

    def output(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        causal: bool = True,
        scale: float | None = None,
        plan: Plan | None = None,
        clock: Clock = nullcontext,
    ) -> Output:
        """Like a call, with the log-sum-exp beside the output, to merge with attention over other keys.

        Under torch.compile the call is one operator; its steps must have names in a spec.
        """
        if torch.compiler.is_compiling():
            if self._spec is None:
                raise ValueError(
                    "stages: got one that torch.compile cannot hold; allowed are pipelines that to_spec can write: "
                    "wrap the call in torch.compiler.disable"
                )
            if plan is None:
                return Output(*torch.ops.sparsekit.attention(q, k, v, self._spec, causal, scale))
            return Output(*torch.ops.sparsekit.attention_by_plan(q, k, v, *plan.parts(), self._spec, causal, scale))
        return self.run(Problem.of(q, k, v, causal, scale), plan, clock)[1]

    def run(self, problem: Problem, plan: Plan | None = None, clock: Clock = nullcontext) -> tuple[Plan, Output]:
        """Decide, unless a plan is given, and attend: the plan and its output, for any problem.

        Of tensors without data nothing is decided: the plan is dense, and the output has its shapes and dtypes.
        """
        if needs_gradients(problem.q, problem.k, problem.v):
            with torch.no_grad():
                plan, out = self.run(problem, plan, clock)
            return plan, inference_only(out, problem.q, problem.k, problem.v)
        if plan is None and is_abstract(problem.q):
            plan = Plan()
        plan, begun = self._begin(problem, plan, clock)
        return plan, begun if isinstance(begun, Output) else begun(problem)

    def _begin(self, problem: Problem, plan: Plan | None, clock: Clock) -> tuple[Plan, Output | execute.Step]:
        """Like `run`, but without the last step, which decompresses."""
        plan, short = self._decide_again(problem, clock) if plan is None else (plan, [])
        how = self.attend
        return plan, execute.begin(problem, plan, short, self.compress.mode, how.backend, how.check, clock)

    def explain(self, q: Tensor, k: Tensor, v: Tensor, *, causal: bool = True, scale: float | None = None) -> "Report":
        """What each stage keeps, what that costs in accuracy, and where the time goes; prints as a table."""
        with torch.no_grad():
            return explain(self, Problem.of(q, k, v, causal, scale))


def _flatten(stages: Iterable[Any]) -> Iterator[Any]:
    if isinstance(stages, str | Stage) or not isinstance(stages, Iterable):
        raise ValueError(f"stages: got {stages!r}; allowed is a list of stages, or Pipeline.from_spec(text): pass one")
    for stage in stages:
        if isinstance(stage, Pipeline):
            yield from stage.named_form()
        elif isinstance(stage, POLICIES) or (callable(stage) and not isinstance(stage, type)):
            yield stage
        else:
            raise ValueError(
                f"stages: got {stage!r}; allowed are stages, that is functions from Problem to Plan, and Compress(), "
                "Attend(), Decompress(): pass an instance, with parentheses"
            )


def _with_break_even(given: tuple, keys: Literal["auto"] | int) -> tuple:
    """The steps with that policy in their Attend."""
    return (*(step for step in given if not isinstance(step, Attend)), replace(_only(given, Attend), break_even=keys))


def _only(given: tuple, kind: type) -> Any:
    found = [s for s in given if isinstance(s, kind)]
    if len(found) > 1:
        raise ValueError(
            f"stages: got {len(found)} {kind.__name__} steps; a pipeline allows at most one: keep one of {found}"
        )
    return found[0] if found else kind()


def _check_order(stages: tuple[Any, ...]) -> None:
    """Raise ValueError for a token stage after a block stage: lists of blocks are of the tokens that are left."""
    blocks = None
    for stage in stages:
        if getattr(stage, "chooses", None) == "blocks":
            blocks = blocks or stage
        elif getattr(stage, "chooses", None) == "tokens" and blocks is not None:
            raise ValueError(
                f"stages: got {brief(stage)} after {brief(blocks)}; token stages come before block stages, whose "
                f"blocks are of the tokens that are left: move {type(stage).__name__} forward"
            )
