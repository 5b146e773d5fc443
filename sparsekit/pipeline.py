"""Stages stacked: decide, compress, attend, decompress.

A Stage takes a Problem and returns a Plan. A Pipeline chains stages and runs the plan they make; each stage sees what
the stages before it kept. A Pipeline is a Stage itself. It adds the policies that the user did not name.
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

SHAPES = 256  # the most shapes for which a pipeline remembers something
ATTENDED = 2**28  # bytes of queries: below, the host takes longer to launch attention than the GPU to copy its answer


class Pipeline:
    """A list of stages in the order in which they decide; calling it computes attention.

    `stages` may also hold the policies `Compress`, `Attend` and `Decompress`, each at most once, at any place. A
    Pipeline among the stages stands for its own stages and policies, so recipes stack: [balanced(), FlexPrefill()].
    `Pipeline([])` is dense attention. `break_even` sets that of `Attend`: the number of keys from which on the stages
    run; with fewer keys attention is dense.
    Raises ValueError for a second policy of a kind, a token stage after a block stage, or something that is no stage.
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
        self._dense: dict[tuple, Callable[..., Tensor] | None] = {}  # by shapes, the answers of `dense_kernel`
        self._runs: dict[tuple, bool] = {}  # by shapes, whether the stages run
        self._credit: dict[tuple, float] = {}  # by shapes, ms that plans saved minus ms that searches took
        self._lost: dict[tuple, Estimate] = {}  # by shapes, the times of the last plan that did not pay
        _check_order(self.stages)
        try:
            self._spec: str | None = self.to_spec()
        except ValueError:  # a custom stage, which has no name in a spec
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
        """Return all steps in the order they run, with the policies that the user did not name."""
        tokens = [i for i, s in enumerate(self.stages) if getattr(s, "chooses", None) != "blocks"]
        after = tokens[-1] + 1 if tokens else 0
        compress = (self.compress,) if tokens or Compress in self._named else ()
        decompress = (self.decompress,) if tokens or Decompress in self._named else ()
        return (*self.stages[:after], *compress, *self.stages[after:], self.attend, *decompress)

    def named_form(self) -> list[Any]:
        """Return the steps that the user named, in the order they run; a nested pipeline is replaced by its steps."""
        return [s for s in self.normal_form() if not isinstance(s, POLICIES) or type(s) in self._named]

    @classmethod
    def from_spec(cls, spec: str) -> "Pipeline":
        """Read a pipeline: "token_coverage(tau=0.02) | flex_prefill | decompress(fill=sliding_window(128))".

        A step's name is its class name in snake case; "dense" is `Pipeline([])`. Raises ValueError with the position
        of the mistake.
        """
        return cls(parse(spec))

    def to_spec(self) -> str:
        """Return the text that `from_spec` turns into this pipeline."""
        return write(self.named_form())

    def decide(self, problem: Problem, clock: Clock = nullcontext) -> Plan:
        """Compute the plan for a problem; each stage sees what the stages before it kept.

        The plan is dense where dense attention is faster. Raises ValueError if the problem's tensors have no data.
        """
        if needs_gradients(problem.q, problem.k, problem.v):
            with torch.no_grad():
                return self.decide(problem, clock)
        return self._decide(problem, clock)[0]

    def _decide(self, problem: Problem, clock: Clock) -> tuple[Plan, list[Problem]]:
        """Compute the plan; return it with a list that holds the compressed problem if a stage needed it."""
        if self.stages and is_abstract(problem.q):
            raise ValueError(
                f"q: got a tensor without data ({type(problem.q).__name__} on {problem.q.device}); a plan depends on "
                "the values of q, k and v: pass real tensors, or call the pipeline, which returns a tensor without data"
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
        """Return the times of the last plan of these shapes that was not run because dense is faster, or None."""
        return self._lost.get((problem.q.shape, problem.k.shape))

    def _decide_again(self, problem: Problem, clock: Clock) -> tuple[Plan, list[Problem]]:
        """Do as `_decide`, but return a dense plan until calls made up for searches that found no gain."""
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
        """Return whether the stages run: not below break-even, and not where `dense_last` covers all queries."""
        enough = problem.q.shape[2] > self.decompress.dense_last
        return enough and worth_it(self.stages, self.attend.break_even, problem, self.decompress)

    def plan(self, q: Tensor, k: Tensor, v: Tensor, *, causal: bool = True, scale: float | None = None) -> Plan:
        """Compute the plan, as data: print it, count its pairs, draw it, store it, or pass it to a later call."""
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
        """Compute attention of q [B, H, Q, D] over k [B, G, K, D], v [B, G, K, Dv]; `plan` is one from an earlier call.

        With fewer queries than keys the queries are the last tokens. `scale` is 1/sqrt(D) if None. Called with a
        Problem alone, the pipeline is a Stage and returns the Plan. Raises ValueError for bad input, NoBackendError if
        no backend can run it. The backward pass of the result raises ValueError. For tensors without data, on the meta
        device or fake, the result is a tensor without data, of the output's shape and dtype.
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
        """Return a faster function of q, k, v for shapes that were seen before, or None.

        It runs one dense kernel, or all kernels of a sparse call as a CUDA graph. Raises what a call raises.
        """
        if (dense := self.dense_kernel(q, k, v, causal, scale)) or not all(isinstance(x, Tensor) for x in (q, k, v)):
            return dense
        lawful = self._lawful and not self.attend.check  # nothing is known of a custom stage
        if not lawful or not q.is_cuda or torch.compiler.is_compiling() or dispatch.is_timed() or is_abstract(q):
            return None
        shapes = q.shape, k.shape, v.shape, q.dtype, q.device, causal, scale
        if shapes not in self._runs:
            if len(self._runs) >= SHAPES:
                self._runs.clear()
            problem = Problem.of(q, k, v, causal, scale)
            alone = dispatch.no_gpu_kernel(problem, Plan()) is None  # plain torch waits for the device: no graph
            self._runs[shapes] = alone and bool(self.stages) and self.decides(problem)
        if not self._runs[shapes]:
            return None
        return graphs.graph_call(
            (self._spec, causal, scale), partial(self._all_but_last, causal=causal, scale=scale), q, k, v
        )

    def _all_but_last(
        self, q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float | None
    ) -> Tensor | Callable[[Tensor, Tensor, Tensor], Tensor]:
        """Run all but the last step; return that step as a function of q, k, v, or the output if no step is left."""
        problem = Problem.of(q, k, v, causal, scale)
        plan, begun = self._begin(problem, None, nullcontext)
        if isinstance(begun, Output):
            return begun.o
        attends = plan.dense_last or (plan.queries is None and plan.keys is None)
        if attends and q.nbytes < ATTENDED:
            return begun(problem).o
        if problem.q is not q:  # a scale below zero: the problem holds changed queries
            return begun(problem).o
        rest = {field.name: getattr(problem, field.name) for field in fields(problem)[3:]}  # it holds no q, k, v
        return lambda q, k, v: begun(Problem(q, k, v, **rest)).o

    def dense_kernel(
        self, q: Tensor, k: Tensor, v: Tensor, causal: bool = True, scale: float | None = None
    ) -> Callable[[Tensor, Tensor, Tensor], Tensor] | None:
        """Return a function that runs one dense kernel on q, k, v of these shapes, or None.

        It skips validation and backend selection, which take the host longer than a short kernel takes: from the
        second call of a shape on their results are known. Raises what a call raises.
        """
        if torch.compiler.is_compiling() or dispatch.is_timed() or is_abstract(q):
            return None
        try:
            kinds = q.dtype, k.dtype, v.dtype, q.device, k.device, v.device, type(scale)  # True == 1.0, but is no scale
            shapes = q.shape, k.shape, v.shape, kinds, causal, scale
            return self._dense[shapes]
        except (AttributeError, TypeError):  # no tensors, or no numbers: `Problem.of` raises the right error
            return None
        except KeyError:
            problem, how = Problem.of(q, k, v, causal, scale), self.attend
        kernel = None
        if scale is not None and not scale > 0:
            pass  # the kernel gets q itself, and not the problem's, which has the sign of the scale
        elif not self.stages or not self.decides(problem):
            kernel = dispatch.kernel("attend", q.device.type, problem, Plan(), backend=how.backend)
        if len(self._dense) >= SHAPES:
            self._dense.clear()
        self._dense[shapes] = kernel
        return kernel

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
        """Compute attention and its log-sum-exp, which merges the output with attention over other keys.

        The parameters are those of a call; `clock(name)` is entered around each step. Under torch.compile the call is
        one operator, and every step must have a name in a spec.
        """
        if torch.compiler.is_compiling():
            if self._spec is None:
                raise ValueError(
                    "stages: got one without a name in a spec; allowed under torch.compile are pipelines that "
                    "to_spec can write: wrap the call in torch.compiler.disable"
                )
            if plan is None:
                return Output(*torch.ops.sparsekit.attention(q, k, v, self._spec, causal, scale))
            return Output(*torch.ops.sparsekit.attention_by_plan(q, k, v, *plan.parts(), self._spec, causal, scale))
        return self.run(Problem.of(q, k, v, causal, scale), plan, clock)[1]

    def run(self, problem: Problem, plan: Plan | None = None, clock: Clock = nullcontext) -> tuple[Plan, Output]:
        """Decide, unless a plan is given, and attend; return the plan and the output.

        For tensors without data the plan is dense, and the output has its shapes and dtypes, but no data.
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
        """Do as `run`, but return the last step, which writes the answer, instead of running it."""
        plan, short = self._decide_again(problem, clock) if plan is None else (plan, [])
        how = self.attend
        return plan, execute.begin(problem, plan, short, self.compress.mode, how.backend, how.check, clock)

    def explain(self, q: Tensor, k: Tensor, v: Tensor, *, causal: bool = True, scale: float | None = None) -> "Report":
        """Measure what each stage keeps, the output error and the time of each step. The Report prints as a table."""
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
    """Return the steps with `break_even` set in their Attend."""
    return (*(step for step in given if not isinstance(step, Attend)), replace(_only(given, Attend), break_even=keys))


def _only(given: tuple, kind: type) -> Any:
    steps = [s for s in given if isinstance(s, kind)]
    if len(steps) > 1:
        raise ValueError(
            f"stages: got {len(steps)} {kind.__name__} steps; a pipeline allows at most one: keep one of {steps}"
        )
    return steps[0] if steps else kind()


def _check_order(stages: tuple[Any, ...]) -> None:
    """Raise ValueError for a token stage after a block stage: a block list counts in kept tokens."""
    blocks = None
    for stage in stages:
        if getattr(stage, "chooses", None) == "blocks":
            blocks = blocks or stage
        elif getattr(stage, "chooses", None) == "tokens" and blocks is not None:
            raise ValueError(
                f"stages: got {brief(stage)} after {brief(blocks)}; token stages come before block stages, "
                f"because blocks are made of kept tokens: move {type(stage).__name__} forward"
            )
