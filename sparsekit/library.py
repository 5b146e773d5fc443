"""A pipeline, and attention by a plan, as torch.library operators, so that compiled and exported models can hold them.

What is computed depends on the data, so a compiler could not look inside with profit: it sees shapes alone. A pipeline
calls the ops within as plain functions, which spares each call an operator's dispatch; `operators` has an operator for
each, for who puts a compiled stage together from them.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .fills import SlidingWindow
from .inference import REFUSAL
from .parameters import ALL
from .plan import Blocks, Plan, Tokens

if TYPE_CHECKING:
    from .pipeline import Pipeline


@torch.library.custom_op("sparsekit::attention", mutates_args=())
def attention(q: Tensor, k: Tensor, v: Tensor, spec: str, causal: bool, scale: float | None) -> tuple[Tensor, Tensor]:
    """Attention of q [B, H, Q, D] over k [B, G, K, D], v [B, G, K, Dv] by the pipeline of a spec.

    Returns the output [B, H, Q, Dv] and the log-sum-exp [B, H, Q], float32 or wider.
    """
    out = _pipeline(spec).output(q, k, v, causal=causal, scale=scale)
    return out.o.contiguous(), out.lse.contiguous()


@attention.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return shapes(q, v)


@torch.library.custom_op("sparsekit::attention_by_plan", mutates_args=())
def attention_by_plan(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    queries: Tensor | None,
    keys: Tensor | None,
    counts: Tensor | None,
    indices: Tensor | None,
    sizes: Sequence[int],
    spec: str,
    causal: bool,
    scale: float | None,
) -> tuple[Tensor, Tensor]:
    """Attention of exactly the pairs of a plan, taken apart by `parts`; the policies are those of the spec's pipeline.

    Returns the output [B, H, Q, Dv] and the log-sum-exp [B, H, Q], float32 or wider.
    """
    plan = from_parts(queries, keys, counts, indices, sizes)
    out = _pipeline(spec).output(q, k, v, causal=causal, scale=scale, plan=plan)
    return out.o.contiguous(), out.lse.contiguous()


@attention_by_plan.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return shapes(q, v)


def shapes(q: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp of attention, by shape and dtype alone."""
    wide = torch.promote_types(q.dtype, torch.float32)
    return q.new_empty(*q.shape[:3], v.shape[3]), q.new_empty(q.shape[:3], dtype=wide)


@torch.library.custom_op("sparsekit::no_gradients", mutates_args=())
def no_gradients(like: Tensor, gradients: Sequence[Tensor]) -> Tensor:
    """Raise ValueError. A backward pass that is traced ahead holds it, and raises only when it runs.

    It takes gradients, so that it is not among what a compiler computes in the forward pass.
    """
    raise ValueError(REFUSAL)


@no_gradients.register_fake
def _(like: Tensor, gradients: Sequence[Tensor]) -> Tensor:
    return torch.empty_like(like)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs[:3])
    ctx.others = len(inputs) - 3


def _backward(ctx: Any, *gradients: Any) -> tuple[Any, ...]:
    some = [x for x in gradients if x is not None]
    return (*(no_gradients(x, some) for x in ctx.saved_tensors), *[None] * ctx.others)


def refuse_backward(operator: Any) -> None:
    """Make the backward pass of an operator, of q, k, v and what has no gradients, raise ValueError."""
    operator.register_autograd(_backward, setup_context=_save)


refuse_backward(attention)
refuse_backward(attention_by_plan)


def parts(plan: Plan) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None, list[int]]:
    """A plan as an operator takes it: indices of queries and keys (None too if those of the queries), lists, sizes."""
    sizes = []
    for tokens in (plan.queries, plan.keys):
        sizes += [tokens.n, int(tokens.full)] if tokens else [0, 0]
    sizes += [*plan.blocks.size, plan.blocks.n] if plan.blocks else [0, 0, 0]
    fill = plan.fill
    sizes += [fill.window, fill.sinks] if isinstance(fill, SlidingWindow) else [0, 0]
    sizes += [min(plan.dense_last, ALL)]
    queries = plan.queries.idx if plan.queries else None
    keys = plan.keys.idx if plan.keys and plan.keys is not plan.queries else None
    counts, indices = (plan.blocks.counts, plan.blocks.indices) if plan.blocks else (None, None)
    return queries, keys, counts, indices, sizes


def from_parts(
    queries: Tensor | None, keys: Tensor | None, counts: Tensor | None, indices: Tensor | None, sizes: Sequence[int]
) -> Plan:
    """The plan that `parts` took apart."""
    n_q, full_q, n_k, full_k, *size, n, window, sinks, dense_last = sizes
    mine = None if queries is None else Tokens(queries, n_q, bool(full_q))
    theirs = (mine if n_k else None) if keys is None else Tokens(keys, n_k, bool(full_k))
    blocks = None if counts is None or indices is None else Blocks(counts, indices, (size[0], size[1]), n)
    fill = SlidingWindow(window, sinks) if window else None
    return Plan(mine, theirs, blocks, fill, dense_last)


@lru_cache(maxsize=256)
def _pipeline(spec: str) -> "Pipeline":
    from .pipeline import Pipeline

    return Pipeline.from_spec(spec)
