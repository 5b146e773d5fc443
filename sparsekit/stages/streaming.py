"""Streaming (A-shape): keep the first tokens and the recent ones, by block.

Kept: the key blocks that hold one of the first `sinks` tokens, or one of a query's nearest `window` keys. In a problem
with a sliding window, blocks outside it are dropped.
Nothing is scored. Source: StreamingLLM, arXiv:2309.17453; as a prefill pattern MInference, arXiv:2407.02490 (A-shape).
Differs from the authors' code: whole blocks are kept, so a query sees up to `block_size - 1` more keys on each side.
"""

from dataclasses import dataclass
from typing import ClassVar

from ..band import sinks_and_band
from ..checks import check_amount, check_size
from ..plan import Blocks, Plan
from ..problem import Problem


@dataclass(frozen=True)
class Streaming:
    """A stage that keeps sinks and a local band; its Plan has blocks, the same for all heads with the same positions.

    Args:
        sinks: first tokens, which every query sees, >= 0
        window: nearest keys that every query sees, its own among them, in tokens, >= 1
        block_size: tokens, >= 1, of queries and of keys
    """

    sinks: int = 128
    window: int = 1024
    block_size: int = 128
    chooses: ClassVar[str] = "blocks"

    def __post_init__(self) -> None:
        check_amount(self, "sinks", 0)
        check_amount(self, "window", 1)
        check_size("block_size", self.block_size)

    def __call__(self, problem: Problem) -> Plan:
        m = self.block_size
        if problem.sliding_window is not None and problem.sliding_window <= self.window:
            return Plan()  # no visible key is farther away than `window`
        mask = sinks_and_band(problem, self.sinks, self.window, m)
        # positions count up by one: the longest list is known, and the host need not wait for it
        known = problem.full and problem.queries_last and problem.causal
        width = -(-self.sinks // m) + -(-(self.window + m) // m) + 1 if known else None
        return Plan(blocks=Blocks.of(mask, (m, m), width))


EXAMPLES = (
    Streaming(sinks=1, window=1, block_size=2),
    Streaming(sinks=4, window=8, block_size=4),
    Streaming(sinks=0, window=10_000, block_size=16),
)
DENSE = Streaming(sinks=0, window=2**30)
