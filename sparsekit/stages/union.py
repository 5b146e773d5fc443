"""Union of block patterns: keep a block if one of the patterns keeps it.

A pipeline keeps the blocks that every block stage keeps; a union keeps those that any of them keeps. It scores nothing.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce
from operator import or_
from typing import ClassVar

from ..plan import Plan
from ..problem import Problem
from .block_topk import BlockTopK
from .streaming import Streaming


@dataclass(frozen=True)
class Union:
    """A stage that keeps the blocks that any of `patterns` keeps; all must choose blocks of one size.

    Args:
        patterns: block stages, at least one, with the same `block_size`
    """

    patterns: tuple
    chooses: ClassVar[str] = "blocks"

    def __init__(self, patterns: Iterable) -> None:
        object.__setattr__(self, "patterns", tuple(patterns))
        wrong = [s for s in self.patterns if getattr(s, "chooses", "blocks") != "blocks"]
        if wrong or not self.patterns:
            raise ValueError(
                f"patterns: got {list(self.patterns)!r}; allowed is a list of at least one stage that chooses blocks: "
                "chain token stages before the Union instead"
            )

    def __call__(self, problem: Problem) -> Plan:
        plans = [pattern(problem) for pattern in self.patterns]
        if any(plan.queries or plan.keys for plan in plans):
            raise ValueError(
                "patterns: one of them chose tokens; allowed are stages that choose blocks: chain token stages "
                "before the Union instead"
            )
        if any(plan.blocks is None for plan in plans):  # one pattern keeps everything
            return Plan()
        return Plan(blocks=reduce(or_, (plan.blocks for plan in plans)))


EXAMPLES = (Union([Streaming(1, 2, 2), BlockTopK(0.3, 2)]), Union([Streaming(1, 1, 4)]))
DENSE = Union([Streaming(1, 2, 128), BlockTopK(1.0, 128)])
