"""What may stand in a pipeline: stages, which decide what to compute, and policies, which say how it is done."""

from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

from . import dispatch
from .checks import check_amount, check_choice
from .fills import Fill, SlidingWindow, Zeros
from .plan import Plan
from .problem import Problem


@runtime_checkable
class Stage(Protocol):
    """One way to decide what to compute. `chooses`, if it has one, is "tokens" or "blocks"."""

    def __call__(self, problem: Problem, /) -> Plan: ...


@dataclass(frozen=True)
class Compress:
    """How the kept tokens reach the kernel: "gather" copies them, "indexed" reads them through their indices.

    "auto" gathers: in every record in bench/records copying is paid back by the kernel that follows it.

    Args:
        mode: "gather", "indexed" or "auto"
    """

    mode: Literal["auto", "gather", "indexed"] = "auto"

    def __post_init__(self) -> None:
        check_choice("mode", self.mode, ("auto", "gather", "indexed"))


@dataclass(frozen=True)
class Attend:
    """Who computes.

    Args:
        backend: one by name attends or raises, and does what else it can; "auto" chooses by capability
        check: look at every index of the plan before a kernel does; waits for the device
        break_even: keys from which on stages run, else dense; "auto": by measured times; 0: always
    """

    backend: Literal["auto", "flash", "triton", "cpu", "reference"] = "auto"
    check: bool = False
    break_even: Literal["auto"] | int = "auto"

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

    Args:
        fill: what dropped queries see: Zeros(), or SlidingWindow(window, sinks)
        dense_last: last queries that attend to every key they see, kept or not, in tokens, >= 0
    """

    fill: Fill = field(default_factory=Zeros)
    dense_last: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.fill, Zeros | SlidingWindow):
            raise ValueError(f"fill: got {self.fill!r}; allowed are Zeros() and SlidingWindow(window, sinks): pass one")
        check_amount(self, "dense_last", 0)


@runtime_checkable
class Steps(Protocol):
    """A pipeline, as those see it who look at what it decides."""

    compress: Compress
    attend: Attend
    decompress: Decompress
    stages: tuple[Stage, ...]

    def __call__(self, problem: Problem, /) -> Plan: ...

    def decides(self, problem: Problem) -> bool: ...

    def lost(self, problem: Problem) -> Any: ...


Policy: TypeAlias = Compress | Attend | Decompress
POLICIES = (Compress, Attend, Decompress)
