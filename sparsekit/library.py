"""A pipeline, and attention by a plan, as torch.library operators, so that compiled and exported models can hold them.

What is computed depends on the data, so a compiler could not look inside with profit: it sees shapes alone. A pipeline
calls the ops within as plain functions, which spares each call an operator's dispatch; `operators` has an operator for
each, for who puts a compiled stage together from them.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from .inference import REFUSAL
from .pipeline import Pipeline
from .plan import Plan
from .problem import shapes
from .registry import replacements


@torch.library.custom_op("sparsekit::attention", mutates_args=())
def attention(q: Tensor, k: Tensor, v: Tensor, spec: str, causal: bool, scale: float | None) -> tuple[Tensor, Tensor]:
    """Attention of q [B, H, Q, D] over k [B, G, K, D], v [B, G, K, Dv] by the pipeline of a spec.

    Returns the output [B, H, Q, Dv] and the log-sum-exp [B, H, Q], float32 or wider.
    """
    out = _pipeline(spec, replacements()).output(q, k, v, causal=causal, scale=scale)
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
    """Attention of exactly the pairs of a plan, which `Plan.parts` took apart, with the policies of a spec's pipeline.

    Returns the output [B, H, Q, Dv] and the log-sum-exp [B, H, Q], float32 or wider.
    """
    plan = Plan.from_parts(queries, keys, counts, indices, sizes)
    out = _pipeline(spec, replacements()).output(q, k, v, causal=causal, scale=scale, plan=plan)
    return out.o.contiguous(), out.lse.contiguous()


@attention_by_plan.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return shapes(q, v)


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


@lru_cache(maxsize=256)
def _pipeline(spec: str, replaced: int) -> Pipeline:
    return Pipeline.from_spec(spec)
