"""Every op as a torch.library operator, for compiled and exported models and stages of one's own.

Importing this module registers them as torch.ops.sparsekit.<op>; whoever loads an exported model imports it, too.

An operator has the name of its op, and its arguments, flat and in order; `flat` takes them apart. It returns fresh
tensors, those of the op's answer in order: of a Problem q, k, v, q_pos, k_pos, of an Output o and lse, of Tokens idx,
of Blocks counts and indices. Flags beside them stay behind: `Plan.known` has those of a compressed problem, and
Tokens without theirs are right, if not as fast. There are no gradients. A plan that is none of the problem raises
ValueError, as in `attend`; a problem is not checked: `Problem.of` does.

Pipelines call the plain functions: an operator's dispatch costs each call about 0.1 ms of the host, longer than many
kernels take.

Of an op's definition in `sparsekit/ops/` the function `fake` tells the shapes and dtypes of the answer, and by its
types the operator's arguments.
"""

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, get_args, get_type_hints

import torch
from torch import Tensor

from . import dispatch
from .plan import Blocks, Plan
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
    ranks of `heads_group`); a Plan what `Plan.parts` says; Blocks counts, indices, size, n; an Output o, lse.
    """
    out: list[Any] = []
    for x in args:
        if isinstance(x, Plan):
            out += x.parts()
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
        return Plan.from_parts(*values)
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
