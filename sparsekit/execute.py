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
    Raises ValueError for a plan that is not one of the problem, and NoBackendError, with the reasons, if no backend
    can. The backward pass of what it returns raises ValueError.
    """
    if needs_gradients(problem.q, problem.k, problem.v):
        with torch.no_grad():
            out = attend(problem, plan, compress=compress, backend=backend, check=check, clock=clock)
        return inference_only(out, problem.q, problem.k, problem.v)
    return run(problem, plan or Plan(), [], compress, backend, check, clock)


def run(
    problem: Problem, plan: Plan, short: list[Problem], compress: str, backend: str, check: bool, clock: Clock
) -> Output:
    """Like `attend`, without a look at gradients.

    `short` holds the compressed problem if there is one already, and nothing afterwards: it is large.
    """
    begun = begin(problem, plan, short, compress, backend, check, clock)
    return begun if isinstance(begun, Output) else begun(problem)


def begin(
    problem: Problem, plan: Plan, short: list[Problem], compress: str, backend: str, check: bool, clock: Clock
) -> Output | Step:
    """Like `run`, but return the step that decompresses, where there is one, without taking it.

    It may be given another problem, which differs in nothing but where q, k and v lie, and holds none of them itself.
    """
    device = problem.q.device.type
    if is_abstract(problem.q):
        plan.check(problem)
        return Output(*shapes(problem.q, problem.v))
    plan.check(problem, contents=check)

    def call(op: str, *args: Any) -> Any:
        # the named backend attends; what stands beside that it does too, where it can
        can = op == "attend" or backend == "auto" or dispatch.why_not(backend, op, *args) is None
        return dispatch.run(op, device, *args, backend=backend if can else "auto")

    if plan.dense_last:
        out = run(problem, replace(plan, dense_last=0), short, compress, backend, False, clock)
        with clock("attend"):
            return _with_last(problem, plan, out, call)
    if plan.queries is None and plan.keys is None:
        with clock("attend"):
            return call("attend", problem, Plan(blocks=plan.blocks))
    if compress == "indexed":
        with clock("attend"):
            out = call("attend", problem, replace(plan, fill=None))
        if plan.local:
            with clock("fill"):
                out = plan.fill_in(problem, out, call("sliding_window", problem, plan))
        return out
    loose = plan.queries is not None and problem.full  # all padding is the compressed problem's, and stays behind
    with clock("compress"):
        unread = loose and plan.blocks is None and _by_tiles(problem, backend)  # a block may reach further than a tile
        kept = short.pop() if short else call("gather_tokens", replace(problem, loose=unread), plan)
    with clock("attend"):
        out = call("attend", replace(kept, loose=loose), Plan(blocks=plan.blocks))
    del kept  # as large as the output at a third of the tokens: make room for that

    def decompress(problem: Problem) -> Output:
        with clock("decompress"):
            return call("scatter_tokens", problem, plan, out)

    return decompress


def _by_tiles(problem: Problem, backend: str) -> bool:
    """Whether what attends reads tiles of rows, up to the last one that holds no padding: all our kernels do."""
    if backend == "auto":
        return problem.q.is_cuda and dispatch.no_gpu_kernel(problem, Plan()) is None
    return backend not in dispatch.AUTO["cpu"]


def _with_last(problem: Problem, plan: Plan, out: Output, call: Callable[..., Output]) -> Output:
    """`out`, in place, with the last queries' rows by dense attention."""
    p, first = problem, max(problem.q.shape[2] - plan.dense_last, 0)
    if not p.full:  # sequences of several lengths: from the first slot that is a last one in any
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
