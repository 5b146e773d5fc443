"""Who runs an op. The address of a piece of code is (backend, op): a package, and a module in it named as the op.

Such a module has two functions: one named as the op, and `why_not`, with the same arguments, which says in words
why it cannot run them (None: it can). A missing module is a backend that lacks the op. It may have a third, `kernel`,
with the same arguments: what to call, with tensors alone, for all further problems of the same shapes (None: nothing).
The package may have a function `missing`: of a device, what this machine lacks to run any of its ops. It is asked
first, so that who has no GPU is not told of a dtype.
"""

import importlib
import importlib.util
import pkgutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from functools import cache
from types import ModuleType
from typing import Any

import torch

BACKENDS = {
    "hopper": "sparsekit_kernels.hopper",
    "flash": "sparsekit_kernels.flash",
    "triton": "sparsekit_kernels.triton",
    "cpu": "sparsekit_kernels.cpu",
    "reference": "sparsekit.ops",
}
AUTO: dict[str, tuple[str, ...]] = {
    "cpu": ("cpu", "reference"),
    "cuda": ("hopper", "flash", "triton", "cpu", "reference"),
}  # what "auto" may try, in order, by device type: a backend joins once it has been measured there
ALLOWED = ("auto", *(name for name in BACKENDS if name != "hopper"))  # who may be named to attend: that one does not


_clock: ContextVar[Callable[[str], AbstractContextManager]] = ContextVar("clock", default=nullcontext)


class NoBackendError(RuntimeError):
    """No backend can run the op; the message says why, backend by backend."""


def why_not(backend: str, op: str, *args: Any) -> str | None:
    """In words, why `backend` cannot run `op` on these arguments, what must change first; None if it can."""
    if not has(backend, op):
        return f"there is no {BACKENDS[backend]}.{op}"
    if missing := getattr(_module(BACKENDS[backend]), "missing", None):
        if reason := missing(_device(args[0])):
            return reason
    found = _module(f"{BACKENDS[backend]}.{op}")
    return found if isinstance(found, str) else found.why_not(*args)


def no_gpu(device: torch.device, needed: str = "a GPU") -> str | None:
    """Return in words why what needs a GPU cannot run on a device; None if that is one."""
    if device.type == "cuda":
        return None
    where = f"the tensors are on {device.type}" if torch.cuda.is_available() else "there is none here"
    return f"it needs {needed}, and {where}"


def _device(first: Any) -> torch.device:
    """Where an op's first argument lies: a tensor, a Problem or Blocks."""
    if not isinstance(first, torch.Tensor):
        first = first.q if hasattr(first, "q") else first.counts
    return first.device


def has(backend: str, op: str) -> bool:
    """Whether the backend has the op, if not what it takes to run it here."""
    return _there_is(f"{BACKENDS[backend]}.{op}")


@cache
def _there_is(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # nor the package
        return False


@cache  # looking for a module that is not there costs more than a kernel launch
def _module(name: str) -> ModuleType | str:
    """A module, or in words why there is none."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as missing:
        return f"there is no {missing.name}"


@cache  # torch looks it up anew each time, and a call asks several times
def capability(device: torch.device) -> tuple[int, int]:
    """The compute capability of a GPU: (9, 0) is Hopper."""
    return torch.cuda.get_device_capability(device)


def choose(op: str, device: str, *args: Any, backend: str = "auto") -> str:
    """The backend that will run the op. One the user names runs or raises; only "auto" chooses, from AUTO."""
    reasons = {}
    for name in AUTO.get(device, AUTO["cpu"]) if backend == "auto" else (backend,):
        reasons[name] = why_not(name, op, *args)
        if reasons[name] is None:
            return name
    raise NoBackendError(f"no backend can run {op}: " + "; ".join(f"{n}: {r}" for n, r in reasons.items()))


def run(op: str, device: str, *args: Any, backend: str = "auto") -> Any:
    """Run the op on the chosen backend."""
    name = choose(op, device, *args, backend=backend)
    with _clock.get()(op):
        return getattr(_module(f"{BACKENDS[name]}.{op}"), op)(*args)


def kernel(op: str, device: str, *args: Any, backend: str = "auto") -> Callable[..., Any] | None:
    """What the chosen backend would have called for further problems of the same shapes, if it can tell."""
    name = choose(op, device, *args, backend=backend)
    find = getattr(_module(f"{BACKENDS[name]}.{op}"), "kernel", None)
    return find(*args) if find else None


def no_gpu_kernel(*args: Any) -> str | None:
    """In words, why nothing but plain torch could attend on a GPU; None if a kernel can."""
    reasons = {}
    for name in reversed([name for name in AUTO["cuda"] if name not in AUTO["cpu"] and has(name, "attend")]):
        reasons[name] = why_not(name, "attend", *args)
        if reasons[name] is None:
            return None
    return "no GPU kernel can run attend: " + "; ".join(f"{name}: {reason}" for name, reason in reasons.items())


def is_timed() -> bool:
    """Whether a clock looks at the ops that run in this thread."""
    return _clock.get() is not nullcontext


@contextmanager
def timed(clock: Callable[[str], AbstractContextManager]) -> Iterator[None]:
    """Inside, `clock(op)` is entered around every op that runs in this thread."""
    token = _clock.set(clock)
    try:
        yield
    finally:
        _clock.reset(token)


def ops() -> list[str]:
    """The ops there are: the modules of sparsekit.ops."""
    package = importlib.import_module(BACKENDS["reference"])
    return sorted(m.name for m in pkgutil.iter_modules(package.__path__))


def definition(op: str) -> ModuleType:
    """The module of sparsekit.ops that says what the op means."""
    return importlib.import_module(f"{BACKENDS['reference']}.{op}")


def table() -> dict[str, dict[str, str | None]]:
    """For each op, each backend: None if it has the op, else the reason. `sparsekit backends` prints it."""
    found: dict[str, dict[str, str | None]] = {}
    for op in ops():
        found[op] = {}
        for backend, package in BACKENDS.items():
            module = _module(f"{package}.{op}")
            found[op][backend] = module if isinstance(module, str) else None
    return found
