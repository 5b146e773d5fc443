"""Every op as a torch.library operator, for compiled and exported models and stages of one's own.

Importing this module registers them as torch.ops.sparsekit.<op>; whoever loads an exported model imports it, too.

An operator has the name of its op, and its arguments, flat and in order; `flat` takes them apart. It returns fresh
tensors, those of the op's answer in order: of a Problem q, k, v, q_pos, k_pos, of an Output o and lse, of Tokens idx,
of Blocks counts and indices. Flags beside them stay behind: `Plan.known` has those of a compressed problem, and
Tokens without theirs are right, if not as fast. There are no gradients. A plan that is none of the problem raises
ValueError, as in `attend`; a problem is not checked: `Problem.of` does.

Pipelines call the plain functions: an operator's dispatch costs each call about 0.1 ms of the host, longer than many
kernels take.

The functions below are the operators' fakes, from which come their arguments: they tell shapes and dtypes alone.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any, get_args, get_type_hints

import torch
from torch import Tensor

from . import dispatch
from .library import from_parts, parts
from .plan import Blocks, Plan, Tokens
from .problem import Output, Problem

_SCHEMAS: dict[Any, str] = {
    Problem: "Tensor q, Tensor k, Tensor v, Tensor q_pos, Tensor k_pos, float scale, bool causal, bool queries_last, "
    "bool full, bool gapless, SymInt? window",
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
    """The arguments of an op as its operator takes them: torch.ops.sparsekit.attend(*flat(problem, plan)).

    A Problem is q, k, v, q_pos, k_pos, scale, causal, queries_last, full, gapless, window (no op looks at the
    ranks of `heads_group`); a Plan what `library.parts` says; Blocks counts, indices, size, n; an Output o, lse.
    """
    out: list[Any] = []
    for x in args:
        if isinstance(x, Plan):
            out += parts(x)
        elif isinstance(x, Problem):
            out += [x.q, x.k, x.v, x.q_pos, x.k_pos, x.scale, x.causal]
            out += [x.queries_last, x.full, x.gapless, x.window]
        elif isinstance(x, Blocks):
            out += [x.counts, x.indices, list(x.size), x.n]
        elif isinstance(x, Output):
            out += [x.o, x.lse]
        else:
            out.append(x)
    return out


def _whole(kind: Any, values: Sequence[Any]) -> Any:
    """An argument of an op again, of what `flat` made of it."""
    if kind is Plan:
        return from_parts(*values)
    if kind is Blocks:
        counts, indices, (m, n), blocks = values
        return Blocks(counts, indices, (m, n), blocks)
    return kind(*values) if kind in (Problem, Output) else values[0]


def _fresh(answer: Any, given: Sequence[Any]) -> Iterator[Tensor]:
    """The tensors of an op's answer, contiguous, none in the memory of another or of one that was given."""
    taken = {x.untyped_storage().data_ptr() for x in given if isinstance(x, Tensor)}
    answer = (answer,) if isinstance(answer, Tensor) else answer if isinstance(answer, tuple) else vars(answer).values()
    for x in answer:
        if isinstance(x, Tensor):
            alone = x.untyped_storage().data_ptr() not in taken
            taken.add(x.untyped_storage().data_ptr())
            yield x.contiguous() if alone else x.clone(memory_format=torch.contiguous_format)


def _operator(fake: Callable[..., Any]) -> torch.library.CustomOpDef:
    """The operator of the op of that name."""
    name, kinds = fake.__name__, get_type_hints(fake)
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
    return operator


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _output(problem: Problem) -> tuple[Tensor, Tensor]:
    q, v = problem.q, problem.v
    return q.new_empty(*q.shape[:3], v.shape[3]), q.new_empty(q.shape[:3], dtype=_wide(q))


@_operator
def attend(problem: Problem, plan: Plan) -> tuple[Tensor, Tensor]:
    return _output(problem)


@_operator
def block_means(x: Tensor, pos: Tensor, size: int) -> Tensor:
    B, g, n, D = x.shape
    return x.new_empty(B, max(g, pos.shape[1]), -(-n // size), D, dtype=_wide(x))


@_operator
def coverage_count(scores: Tensor, mass: Tensor, largest: bool) -> Tensor:
    return scores.new_empty(scores.shape[:-1], dtype=torch.int64)


@_operator
def coverage_mask(scores: Tensor, mass: Tensor, largest: bool) -> Tensor:
    return scores.new_empty(scores.shape, dtype=torch.bool)


@_operator
def gather_tokens(problem: Problem, plan: Plan) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    def kept(x: Tensor, tokens: Tokens | None) -> Tensor:
        if tokens is None:
            return x.new_empty(x.shape)
        _, h, S = tokens.idx.shape
        return x.new_empty(x.shape[0], max(x.shape[1], h), S, *x.shape[3:])

    p, queries, keys = problem, plan.queries, plan.keys
    return kept(p.q, queries), kept(p.k, keys), kept(p.v, keys), kept(p.q_pos, queries), kept(p.k_pos, keys)


@_operator
def query_aware(probe: Tensor, means: Tensor, pooled: Tensor, blocks: Tensor, scale: float, tau: float) -> Tensor:
    return probe.new_empty(probe.shape[:2], dtype=torch.bool)


@_operator
def scatter_tokens(problem: Problem, plan: Plan, short: Output) -> tuple[Tensor, Tensor]:
    return _output(problem)


@_operator
def seen_blocks(blocks: Blocks, reach: Tensor) -> tuple[Tensor, Tensor]:
    B, g, I = blocks.counts.shape
    shape = B, max(g, reach.shape[1]), I
    return reach.new_empty(shape, dtype=torch.int32), reach.new_empty(shape, dtype=torch.int32)


@_operator
def select_tokens(scores: Tensor, keep: Tensor) -> Tensor:
    longest = torch.library.get_ctx().new_dynamic_size(min=1)
    return scores.new_empty(*scores.shape[:-1], longest, dtype=torch.int32)


@_operator
def sliding_window(problem: Problem, plan: Plan) -> tuple[Tensor, Tensor]:
    return _output(problem)


@_operator
def threshold_blocks(problem: Problem, alpha: float, sinks: int, near: int, size: int) -> tuple[Tensor, Tensor]:
    longest = torch.library.get_ctx().new_dynamic_size(min=1)
    q, heads = problem.q, max(problem.k.shape[1], problem.k_pos.shape[1])
    lists = q.shape[0], heads, -(-q.shape[2] // size)
    return q.new_empty(lists, dtype=torch.int32), q.new_empty(*lists, longest, dtype=torch.int32)


@_operator
def token_budget(votes: Tensor, tau: float, most: Tensor) -> Tensor:
    return votes.new_empty(votes.shape[0], dtype=torch.int64)


@_operator
def token_votes(scores: Tensor, scored: Tensor, real: Tensor, pool: int, sinks: int) -> tuple[Tensor, Tensor]:
    B, _, K = scores.shape
    return scores.new_empty(scores.shape), scores.new_empty(B, K)


@_operator
def topk_mask(scores: Tensor, keep: Tensor) -> Tensor:
    return scores.new_empty(scores.shape, dtype=torch.bool)


@_operator
def vertical_slash_blocks(
    verticals: Tensor, slashes: Tensor, first: Tensor, last: Tensor, extra: Tensor | None, size: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    longest = torch.library.get_ctx().new_dynamic_size(min=1)
    counts = first.new_empty(first.shape, dtype=torch.int32)
    return counts, first.new_empty(*first.shape, longest, dtype=torch.int32)


@_operator
def window_scores(problem: Problem, rows: int, diagonals: bool) -> Tensor:
    q, k = problem.q, problem.k
    return q.new_empty(2 if diagonals else 1, *q.shape[:2], k.shape[2], dtype=_wide(q))
