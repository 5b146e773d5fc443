"""Stages stacked: decide, compress, attend, decompress.

A Stage looks at a Problem and returns a Plan. A Pipeline chains stages, each on what the one before left, and runs
the plan; it is a Stage itself. What the user leaves out it completes, and prints the whole.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Protocol, overload, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from . import dispatch, graphs, library
from .break_even import STREAK, VAIN, gain, searched, worth_it
from .fills import Fill, SlidingWindow, Zeros
from .inference import inference_only, needs_gradients
from .parameters import check_amount, check_choice
from .plan import Plan
from .problem import Output, Problem, is_abstract, to_heads

if TYPE_CHECKING:
    from .report import Report

Clock = Callable[[str], AbstractContextManager]
SHAPES = 256  # of which a pipeline remembers that they run dense


@runtime_checkable
class Stage(Protocol):
    """One way to decide what to compute. `chooses`, if it has one, is "tokens" or "blocks"."""

    def __call__(self, problem: Problem, /) -> Plan: ...


@dataclass(frozen=True)
class Compress:
    """How the kept tokens reach the kernel: "gather" copies them, "indexed" reads them through their indices.

    "auto" gathers: in every record in bench/records copying is paid back by the kernel that follows it.
    """

    mode: str = "auto"

    def __post_init__(self) -> None:
        check_choice("mode", self.mode, ("auto", "gather", "indexed"))


@dataclass(frozen=True)
class Attend:
    """Who computes."""

    backend: str = "auto"  # one by name attends or raises, and does what else it can; "auto" chooses by capability
    check: bool = False  # look at every index of the plan before a kernel does; waits for the device
    break_even: str | int = "auto"  # keys from which on stages run, else dense; "auto": by measured times; 0: always

    def __post_init__(self) -> None:
        check_choice("backend", self.backend, dispatch.ALLOWED)
        check_choice("check", self.check, (False, True))
        if self.break_even != "auto":
            check_amount(self, "break_even", 0)


@dataclass(frozen=True)
class Decompress:
    """What queries get that the token stages dropped, and which see everything all the same.

    `dense_last` queries cost some 2 dense_last / length of dense attention. The stages decide as without them: the last
    queries vote. Each chunk of a prefill has its own last ones.
    """

    fill: Fill = field(default_factory=Zeros)
    dense_last: int = 0  # last queries that attend to every key they see, kept or not, in tokens, >= 0

    def __post_init__(self) -> None:
        if not isinstance(self.fill, Zeros | SlidingWindow):
            raise ValueError(f"fill: got {self.fill!r}; allowed are Zeros() and SlidingWindow(window, sinks): pass one")
        check_amount(self, "dense_last", 0)


def attend(
    problem: Problem,
    plan: Plan | None = None,
    *,
    compress: str = "auto",
    backend: str = "auto",
    check: bool = False,
    clock: Clock = nullcontext,
) -> Output:
    """Compute exactly the pairs of a plan (dense if None): compress, attend, decompress.

    `compress`, `backend` and `check` are those of `Compress` and `Attend`; `clock(name)` is entered around each step.
    Raises ValueError for a plan that is not one of the problem, and NoBackendError, with the reasons, if no backend
    can. The backward pass of what it returns raises ValueError.
    """
    if needs_gradients(problem.q, problem.k, problem.v):
        with torch.no_grad():
            out = attend(problem, plan, compress=compress, backend=backend, check=check, clock=clock)
        return inference_only(out, problem.q, problem.k, problem.v)
    return _attend(problem, plan or Plan(), [], compress, backend, check, clock)


def _attend(
    problem: Problem, plan: Plan, short: list[Problem], compress: str, backend: str, check: bool, clock: Clock
) -> Output:
    """`short` holds the compressed problem if there is one already, and nothing afterwards: it is large."""
    device = problem.q.device.type
    if is_abstract(problem.q):
        plan.check(problem)
        return Output(*library.shapes(problem.q, problem.v))
    plan.check(problem, contents=check)

    def run(op: str, *args: Any) -> Any:
        # the named backend attends; what stands beside that it does too, where it can
        can = op == "attend" or backend == "auto" or dispatch.why_not(backend, op, *args) is None
        return dispatch.run(op, device, *args, backend=backend if can else "auto")

    if plan.dense_last:
        out = _attend(problem, replace(plan, dense_last=0), short, compress, backend, False, clock)
        with clock("attend"):
            return _with_last(problem, plan, out, run)
    if plan.queries is None and plan.keys is None:
        with clock("attend"):
            return run("attend", problem, Plan(blocks=plan.blocks))
    if compress == "indexed":
        with clock("attend"):
            out = run("attend", problem, replace(plan, fill=None))
        if plan.window:
            with clock("fill"):
                out = plan.fill_in(problem, out, run("sliding_window", problem, plan))
        return out
    with clock("compress"):
        kept = short.pop() if short else run("gather_tokens", problem, plan)
    with clock("attend"):
        out = run("attend", kept, Plan(blocks=plan.blocks))
    del kept  # as large as the output at a third of the tokens: make room for that
    with clock("decompress"):
        return run("scatter_tokens", problem, plan, out)


def _with_last(problem: Problem, plan: Plan, out: Output, run: Callable[..., Output]) -> Output:
    """`out`, in place, with the last queries' rows by dense attention."""
    p, first = problem, max(problem.q.shape[2] - plan.dense_last, 0)
    if not p.full:  # sequences of several lengths: from the first slot that is a last one in any
        last = to_heads(plan.last(p), p.q.shape[1])
        first = int(last.flatten(0, 1).any(0).int().argmax())
    part = replace(p, q=p.q[:, :, first:], q_pos=p.q_pos[..., first:])
    dense, rows = run("attend", part, Plan()), Output(out.o[:, :, first:], out.lse[:, :, first:])
    if not p.full:
        last = last[..., first:]
        dense = Output(torch.where(last[..., None], dense.o, rows.o), torch.where(last, dense.lse, rows.lse))
    rows.o.copy_(dense.o)
    rows.lse.copy_(dense.lse)
    return out


class Pipeline:
    """Stages in the order they decide; calling it attends.

    `stages` may name, anywhere, `Compress`, `Attend` and `Decompress`, each at most once, to set their policy. A
    Pipeline among the stages counts as its own stages and policies, so recipes stack: [balanced(), FlexPrefill()].
    `Pipeline([])` is dense attention. `break_even` is that of `Attend`: the number of keys from which on the stages
    are worth their overhead.
    Raises ValueError for a second policy of a kind, tokens after blocks, or something that is not a stage.
    """

    def __init__(self, stages: Iterable[Any] = (), *, break_even: str | int | None = None) -> None:
        given = tuple(_flatten(stages))
        if break_even is not None:
            given = _with_break_even(given, break_even)
        self.compress: Compress = _only(given, Compress)
        self.attend: Attend = _only(given, Attend)
        self.decompress: Decompress = _only(given, Decompress)
        self.stages: tuple[Stage, ...] = tuple(s for s in given if not isinstance(s, _POLICIES))
        self._named = tuple(type(s) for s in given if isinstance(s, _POLICIES))
        self._dense: dict[tuple, Callable[..., Tensor] | None] = {}  # what `dense_kernel` found
        self._runs: dict[tuple, bool] = {}  # by shapes, whether the stages run
        self._credit: dict[tuple, float] = {}  # by shapes, ms: what plans saved, less what searches took
        _check_order(self.stages)
        try:
            self._spec: str | None = self.to_spec()
        except ValueError:  # a stage of the user's own
            self._spec = None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Pipeline) and self.normal_form() == other.normal_form()

    def __hash__(self) -> int:
        return hash(self.normal_form())

    def __repr__(self) -> str:
        return f"Pipeline([{', '.join(map(_brief_call, self.named_form()))}])"

    def __str__(self) -> str:
        return " -> ".join(map(_brief, self.normal_form()))

    def normal_form(self) -> tuple[Any, ...]:
        """All steps in the order they run, the ones the user left out among them."""
        tokens = [i for i, s in enumerate(self.stages) if getattr(s, "chooses", None) != "blocks"]
        after = tokens[-1] + 1 if tokens else 0
        compress = (self.compress,) if tokens or Compress in self._named else ()
        decompress = (self.decompress,) if tokens or Decompress in self._named else ()
        return (*self.stages[:after], *compress, *self.stages[after:], self.attend, *decompress)

    def named_form(self) -> list[Any]:
        """The steps the user named, nested pipelines spliced, in the order they run."""
        return [s for s in self.normal_form() if not isinstance(s, _POLICIES) or type(s) in self._named]

    @classmethod
    def from_spec(cls, spec: str) -> "Pipeline":
        """A pipeline from text: "token_coverage(tau=0.02) | flex_prefill | decompress(fill=sliding_window(128))".

        Names are the stages' in snake case; "dense" is `Pipeline([])`. Raises ValueError with the position.
        """
        from .spec import parse

        return cls(parse(spec))

    def to_spec(self) -> str:
        """The text that `from_spec` turns into this pipeline."""
        from .spec import write

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
        return (plan, short) if saved is None or saved > 0 else (Plan(), [])

    def _decide_again(self, problem: Problem, clock: Clock) -> tuple[Plan, list[Problem]]:
        """Like `_decide`, but dense while searches that were in vain, in calls of these shapes, are not made up for."""
        times = searched(self.stages, self.attend.break_even, problem, self.decompress)
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
        lawful = self._spec is not None and not self.attend.check  # of a stage of the user's own nothing is known
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
        run = lambda *x: self.output(*x, causal=causal, scale=scale).o  # noqa: E731
        return graphs.held((self._spec, causal, scale), run, q, k, v)

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
                return Output(*library.attention(q, k, v, self._spec, causal, scale))
            return Output(*library.attention_by_plan(q, k, v, *library.parts(plan), self._spec, causal, scale))
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
        plan, short = self._decide_again(problem, clock) if plan is None else (plan, [])
        how = self.attend
        return plan, _attend(problem, plan, short, self.compress.mode, how.backend, how.check, clock)

    def explain(self, q: Tensor, k: Tensor, v: Tensor, *, causal: bool = True, scale: float | None = None) -> "Report":
        """What each stage keeps, what that costs in accuracy, and where the time goes; prints as a table."""
        from .report import explain

        with torch.no_grad():
            return explain(self, Problem.of(q, k, v, causal, scale))


_POLICIES = (Compress, Attend, Decompress)


def _flatten(stages: Iterable[Any]) -> Iterator[Any]:
    if isinstance(stages, str | Stage) or not isinstance(stages, Iterable):
        raise ValueError(f"stages: got {stages!r}; allowed is a list of stages, or Pipeline.from_spec(text): pass one")
    for stage in stages:
        if isinstance(stage, Pipeline):
            yield from stage.named_form()
        elif isinstance(stage, _POLICIES) or (callable(stage) and not isinstance(stage, type)):
            yield stage
        else:
            raise ValueError(
                f"stages: got {stage!r}; allowed are stages, that is functions from Problem to Plan, and Compress(), "
                "Attend(), Decompress(): pass an instance, with parentheses"
            )


def _with_break_even(given: tuple, keys: str | int) -> tuple:
    """The steps with that policy in their Attend, which stands before a Decompress."""
    how = replace(_only(given, Attend), break_even=keys)
    rest = [step for step in given if not isinstance(step, Attend)]
    at = next((i for i, step in enumerate(rest) if isinstance(step, Decompress)), len(rest))
    return (*rest[:at], how, *rest[at:])


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
                f"stages: got {_brief(stage)} after {_brief(blocks)}; token stages come before block stages, whose "
                f"blocks are of the tokens that are left: move {type(stage).__name__} forward"
            )


def _brief(stage: Any) -> str:
    """The name, and the parameters that are not the default."""
    call = _brief_call(stage)
    return call.removesuffix("()")


def _brief_call(stage: Any) -> str:
    if not hasattr(type(stage), "__dataclass_fields__"):
        return getattr(stage, "__name__", repr(stage))
    return f"{type(stage).__name__}({', '.join(f'{n}={_brief_value(v)}' for n, v in changed(stage).items())})"


def _brief_value(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(_brief_value, value))}]"
    return _brief_call(value) if hasattr(type(value), "__dataclass_fields__") else repr(value)


def changed(stage: Any) -> dict[str, Any]:
    """The parameters of a stage that are not the default."""
    try:
        plain = type(stage)()
    except TypeError:  # a parameter without a default: all count
        return {f.name: getattr(stage, f.name) for f in fields(stage)}
    return {f.name: v for f in fields(stage) if (v := getattr(stage, f.name)) != getattr(plain, f.name)}
