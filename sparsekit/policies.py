"""The steps of a pipeline: stages, which decide what to compute, and policies, which say how it is done."""

from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

from . import dispatch
from .checks import check_amount, check_choice
from .fills import Fill, SlidingWindow, Zeros
from .plan import Plan
from .problem import Problem


@runtime_checkable
class Stage(Protocol):
    """A function from Problem to Plan. Its attribute `chooses`, if it has one, is "tokens" or "blocks"."""

    def __call__(self, problem: Problem, /) -> Plan: ...


@dataclass(frozen=True)
class Compress:
    """The way kept tokens reach the kernel: "gather" copies them, "indexed" reads them through their indices.

    "auto" gathers: in every record in bench/records the copy costs less time than it saves in the kernel after it.

    Args:
        mode: "gather", "indexed" or "auto"
    """

    mode: Literal["auto", "gather", "indexed"] = "auto"

    def __post_init__(self) -> None:
        check_choice("mode", self.mode, ("auto", "gather", "indexed"))


@dataclass(frozen=True)
class Attend:
    """The backend that computes attention, and from how many keys on the stages run.

    Args:
        backend: runs attention or raises NoBackendError, and runs other ops where it can; "auto": the best that can
        check: check every index of a plan before a kernel reads it; this waits for the device
        break_even: number of keys from which on the stages run, else dense; "auto": by measured times; 0: always run
    """

    backend: Literal["auto", "hopper", "flash", "triton", "cpu", "reference"] = "auto"
    check: bool = False
    break_even: Literal["auto"] | int = "auto"

    def __post_init__(self) -> None:
        check_choice("backend", self.backend, dispatch.ALLOWED)
        check_choice("check", self.check, (False, True))
        if self.break_even != "auto":
            check_amount(self, "break_even", 0)


@dataclass(frozen=True)
class Decompress:
    """The output of queries that token stages drop, and the number of last queries that always attend densely.

    `dense_last` queries cost about 2 dense_last / length of dense attention. They change no stage's choice: they still
    vote. Each chunk of a prefill has its own last queries.

    Args:
        fill: what dropped queries see: Zeros(), or SlidingWindow(window, sinks)
        dense_last: number of last queries that attend to every key they see, kept or dropped, in tokens, >= 0
    """

    fill: Fill = field(default_factory=Zeros)
    dense_last: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.fill, Zeros | SlidingWindow):
            raise ValueError(f"fill: got {self.fill!r}; allowed are Zeros() and SlidingWindow(window, sinks): pass one")
        check_amount(self, "dense_last", 0)


@runtime_checkable
class Steps(Protocol):
    """The part of a Pipeline that is enough to read its decisions."""

    compress: Compress
    attend: Attend
    decompress: Decompress
    stages: tuple[Stage, ...]

    def __call__(self, problem: Problem, /) -> Plan: ...

    def decides(self, problem: Problem) -> bool: ...

    def lost(self, problem: Problem) -> Any: ...


Policy: TypeAlias = Compress | Attend | Decompress
POLICIES = (Compress, Attend, Decompress)
