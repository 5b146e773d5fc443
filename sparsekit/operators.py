"""Pipelines, attention by a plan, and every op as torch.library operators, for compiled and exported models.

Importing this module registers them as torch.ops.sparsekit.<name>; `import sparsekit` does.

The work of a pipeline depends on the data, and a compiler knows only shapes: to it a pipeline is one opaque operator.
Inside it the pipeline calls ops as plain functions: an operator's dispatch takes the host about 0.1 ms in each call,
longer than many kernels. The operators of the ops are for authors who build a compiled stage from them.

The operator of an op has the op's name, and its arguments, flat and in order; `flat` makes them. It returns new
tensors, those of the op's result in order: for a Problem q, k, v, q_pos, k_pos, for an Output o and lse, for Tokens
idx, for Blocks counts and indices. Boolean flags are not returned: `Plan.hints` has those of a compressed problem, and
Tokens without their flag give the same results, only slower. There are no gradients. A plan that does not fit its
problem raises ValueError, as in `attend`; a problem is not checked, `Problem.of` does that. In `sparsekit/ops/` the
function `fake` of an op gives the shapes and dtypes of the result, and its type hints give the operator's arguments.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import islice
from typing import Any, get_args, get_type_hints

import torch
from torch import Tensor

from . import dispatch
from .inference import REFUSAL
from .pipeline import Pipeline
from .plan import Blocks, Plan
from .problem import Output, Problem, shapes
from .registry import replacements


@torch.library.custom_op("sparsekit::attention", mutates_args=())
def attention(q: Tensor, k: Tensor, v: Tensor, spec: str, causal: bool, scale: float | None) -> tuple[Tensor, Tensor]:
    """Compute attention of q [B, H, Q, D] over k [B, G, K, D], v [B, G, K, Dv] by the pipeline of a spec.

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
    """Compute attention over the pairs of a plan, given as its `Plan.parts`, with the policies of a spec's pipeline.

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
    """Raise ValueError. A backward pass that is traced ahead contains this operator, and raises only when it runs.

    It takes gradients, so that a compiler cannot compute it in the forward pass.
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
    """Make the backward pass of an operator of q, k, v and arguments without gradients raise ValueError."""
    operator.register_autograd(_backward, setup_context=_save)


refuse_backward(attention)
refuse_backward(attention_by_plan)


@lru_cache(maxsize=256)
def _pipeline(spec: str, replaced: int) -> Pipeline:
    return Pipeline.from_spec(spec)


_SCHEMAS: dict[Any, str] = {
    Problem: "Tensor q, Tensor k, Tensor v, Tensor q_pos, Tensor k_pos, float scale, bool causal, bool queries_last, "
    "bool full, bool gapless, SymInt? sliding_window",
    Plan: "Tensor? queries, Tensor? keys, Tensor? counts, Tensor? indices, SymInt[] sizes",
    Blocks: "Tensor counts, Tensor indices, SymInt[] size, SymInt n",
    Output: "Tensor o, Tensor lse",
    Tensor: "Tensor {}",
    Tensor | None: "Tensor? {}",
    tuple[int, int]: "SymInt[] {}",
    int: "SymInt {}",
    float: "float {}",
    bool: "bool {}",
}


def flat(*args: Any) -> list[Any]:
    """Return an op's arguments as its operator takes them: torch.ops.sparsekit.attend(*flat(problem, plan)).

    A Problem becomes q, k, v, q_pos, k_pos, scale, causal, queries_last, full, gapless, sliding_window (no op needs the
    ranks of `heads_group`); a Plan its `Plan.parts`; Blocks counts, indices, size, n; an Output o, lse.
    """
    out: list[Any] = []
    for x in args:
        if isinstance(x, Plan):
            out += x.parts()
        elif isinstance(x, Problem):
            out += [x.q, x.k, x.v, x.q_pos, x.k_pos, x.scale, x.causal]
            out += [x.queries_last, x.full, x.gapless, x.sliding_window]
        elif isinstance(x, Blocks):
            out += [x.counts, x.indices, list(x.size), x.n]
        elif isinstance(x, Output):
            out += [x.o, x.lse]
        else:
            out.append(x)
    return out


def _whole(kind: Any, values: Sequence[Any]) -> Any:
    """Build an op's argument from the values that `flat` returns for it."""
    if kind is Plan:
        return Plan.from_parts(*values)
    if kind is Blocks:
        counts, indices, (m, n), blocks = values
        return Blocks(counts, indices, (m, n), blocks)
    return kind(*values) if kind in (Problem, Output) else values[0]


def _fresh(answer: Any, given: Sequence[Any]) -> Iterator[Tensor]:
    """Yield the tensors of an op's result, contiguous; none shares memory with another or with an argument."""
    taken = {x.untyped_storage().data_ptr() for x in given if isinstance(x, Tensor)}
    answer = (answer,) if isinstance(answer, Tensor) else answer if isinstance(answer, tuple) else vars(answer).values()
    for x in answer:
        if isinstance(x, Tensor):
            alone = x.untyped_storage().data_ptr() not in taken
            taken.add(x.untyped_storage().data_ptr())
            yield x.contiguous() if alone else x.clone(memory_format=torch.contiguous_format)


def _operator(name: str) -> None:
    """Register the operator of an op."""
    fake = dispatch.definition(name).fake
    kinds = get_type_hints(fake)
    several = get_args(kinds.pop("return"))
    takes = ", ".join(_SCHEMAS[kind].format(argument) for argument, kind in kinds.items())
    schema = f"({takes}) -> {'(' + ', '.join(['Tensor'] * len(several)) + ')' if several else 'Tensor'}"

    def whole(given: Sequence[Any]) -> list[Any]:
        left = iter(given)
        return [_whole(kind, list(islice(left, _SCHEMAS[kind].count(",") + 1))) for kind in kinds.values()]

    @torch.library.custom_op(f"sparsekit::{name}", mutates_args=(), schema=schema)
    def operator(*given: Any) -> Any:
        args = whole(given)
        if list(kinds.values())[:2] == [Problem, Plan]:
            args[1].check(args[0])
        answer = tuple(_fresh(dispatch.run(name, given[0].device.type, *args), given))
        return answer if several else answer[0]

    operator.register_fake(lambda *given: fake(*whole(given)))


for _name in dispatch.ops():
    _operator(_name)
