"""Run a plan: compress, attend, decompress."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch

from . import dispatch
from .inference import inference_only, needs_gradients
from .plan import Plan
from .problem import Output, Problem, is_abstract, shapes, to_heads

Clock = Callable[[str], AbstractContextManager]
Step = Callable[[Problem], Output]


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
    Raises ValueError for a plan that does not fit the problem, and NoBackendError, with the reasons, if no backend can
    run it. The backward pass of the result raises ValueError.
    """
    if needs_gradients(problem.q, problem.k, problem.v):
        with torch.no_grad():
            out = attend(problem, plan, compress=compress, backend=backend, check=check, clock=clock)
        return inference_only(out, problem.q, problem.k, problem.v)
    return run(problem, plan or Plan(), [], compress, backend, check, clock)


def run(
    problem: Problem, plan: Plan, short: list[Problem], compress: str, backend: str, check: bool, clock: Clock
) -> Output:
    """Do as `attend`, but for tensors that need no gradients.

    `short` is empty or holds the compressed problem, which is popped, so that its memory is free before decompression.
    """
    begun = begin(problem, plan, short, compress, backend, check, clock)
    return begun if isinstance(begun, Output) else begun(problem)


def begin(
    problem: Problem, plan: Plan, short: list[Problem], compress: str, backend: str, check: bool, clock: Clock
) -> Output | Step:
    """Do as `run`, but return the step that writes the answer, where one step does, instead of running it.

    The step may be called with a problem that has other q, k and v of the same shapes: it holds no tensor of this one.
    """
    device = problem.q.device.type
    if is_abstract(problem.q):
        plan.check(problem)
        return Output(*shapes(problem.q, problem.v))
    plan.check(problem, contents=check)

    def call(op: str, *args: Any) -> Any:
        # the named backend must run attention; it runs the other ops where it can
        can = op == "attend" or backend == "auto" or dispatch.why_not(backend, op, *args) is None
        return dispatch.run(op, device, *args, backend=backend if can else "auto")

    if plan.dense_last:
        begun = begin(problem, replace(plan, dense_last=0), short, compress, backend, False, clock)

        def with_last(problem: Problem) -> Output:
            out = begun if isinstance(begun, Output) else begun(problem)
            with clock("attend"):
                return _with_last(problem, plan, out, call)

        return with_last
    if plan.queries is None and plan.keys is None:

        def attend_blocks(problem: Problem) -> Output:
            with clock("attend"):
                return call("attend", problem, Plan(blocks=plan.blocks))

        return attend_blocks
    if compress == "indexed":
        with clock("attend"):
            out = call("attend", problem, replace(plan, fill=None))
        if plan.local:
            with clock("fill"):
                out = plan.fill_in(problem, out, call("sliding_window", problem, plan))
        return out
    loose = plan.queries is not None and problem.full  # only compression pads, and scatter_tokens skips padding
    with clock("compress"):
        unread = loose and plan.blocks is None and _by_tiles(problem, backend)  # a block may reach further than a tile
        kept = short.pop() if short else call("gather_tokens", replace(problem, loose=unread), plan)
    with clock("attend"):
        out = call("attend", replace(kept, loose=loose), Plan(blocks=plan.blocks))
    del kept  # free its memory for the output: at a third of the tokens it is as large

    def decompress(problem: Problem) -> Output:
        with clock("decompress"):
            return call("scatter_tokens", problem, plan, out)

    return decompress


def _by_tiles(problem: Problem, backend: str) -> bool:
    """Return whether the attend kernel reads tiles of rows up to the last that holds a token, as all ours do."""
    if backend == "auto":
        return problem.q.is_cuda and dispatch.no_gpu_kernel(problem, Plan()) is None
    return backend not in dispatch.AUTO["cpu"]


def _with_last(problem: Problem, plan: Plan, out: Output, call: Callable[..., Output]) -> Output:
    """Overwrite the rows of the last queries in `out` with dense attention; return `out`."""
    p, first = problem, max(problem.q.shape[2] - plan.dense_last, 0)
    if not p.full:  # sequences of several lengths: from the first slot that is a last query of any
        last = to_heads(plan.last(p), p.q.shape[1])
        first = int(last.flatten(0, 1).any(0).int().argmax())
    part = replace(p, q=p.q[:, :, first:], q_pos=p.q_pos[..., first:])
    dense, rows = call("attend", part, Plan()), Output(out.o[:, :, first:], out.lse[:, :, first:])
    if not p.full:
        last = last[..., first:]
        dense = Output(torch.where(last[..., None], dense.o, rows.o), torch.where(last, dense.lse, rows.lse))
    rows.o.copy_(dense.o)
    rows.lse.copy_(dense.lse)
    return out
