"""The choice of the backend that runs an op. A backend is a package, and an op is a module of the same name in it.

Such a module has two functions: one named as the op, and `why_not`, with the same arguments, which says in words
why it cannot run them (None: it can). A backend without the module lacks the op. The module may have a third
function, `kernel`, with the same arguments. It returns a function of tensors alone for later problems of the same
shapes, or None.
The package may have a function `missing`. It takes a device and says what this machine lacks to run any of its ops. It
is called first, so that a user without a GPU does not read about dtypes.
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
}  # the backends that "auto" tries, in order, by device type: a backend is listed once it has been measured there
FIRST = {"attend": "flash"}  # ops of which "auto" tries another backend first: with short lists it is faster there
ALLOWED = ("auto", *BACKENDS)  # values of `Attend.backend`


_clock: ContextVar[Callable[[str], AbstractContextManager]] = ContextVar("clock", default=nullcontext)


class NoBackendError(RuntimeError):
    """No backend can run the op; the message says why, backend by backend."""


def why_not(backend: str, op: str, *args: Any) -> str | None:
    """Return in words why `backend` cannot run `op` on these arguments, or None if it can."""
    if not has(backend, op):
        return f"there is no {BACKENDS[backend]}.{op}"
    if missing := getattr(_module(BACKENDS[backend]), "missing", None):
        if reason := missing(_device(args[0])):
            return reason
    module = _module(f"{BACKENDS[backend]}.{op}")
    return module if isinstance(module, str) else module.why_not(*args)


def no_gpu(device: torch.device, needed: str = "a GPU") -> str | None:
    """Return in words why a device is no GPU, or None if it is one. `needed` is the kind of GPU to name."""
    if device.type == "cuda":
        return None
    where = f"the tensors are on {device.type}" if torch.cuda.is_available() else "there is none here"
    return f"it needs {needed}, and {where}"


def _device(first: Any) -> torch.device:
    """Return the device of an op's first argument: a tensor, a Problem or Blocks."""
    if not isinstance(first, torch.Tensor):
        first = first.q if hasattr(first, "q") else first.counts
    return first.device


def has(backend: str, op: str) -> bool:
    """Return whether the backend has the op, even if this machine cannot run it."""
    return _there_is(f"{BACKENDS[backend]}.{op}")


@cache
def _there_is(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # the package is missing too
        return False


@cache  # the search for a missing module takes longer than a kernel launch
def _module(name: str) -> ModuleType | str:
    """Import a module, or return in words why there is none."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as missing:
        return f"there is no {missing.name}"


@cache  # torch does not cache it, and a call needs it several times
def capability(device: torch.device) -> tuple[int, int]:
    """Return the compute capability of a GPU: (9, 0) is Hopper."""
    return torch.cuda.get_device_capability(device)


def order(op: str, device: str) -> tuple[str, ...]:
    """Return the backends that "auto" tries for an op, in this order."""
    names = AUTO.get(device, AUTO["cpu"])
    return tuple(sorted(names, key=lambda name: name != FIRST.get(op)))


def choose(op: str, device: str, *args: Any, backend: str = "auto") -> str:
    """Return the backend that runs the op: the named one, or for "auto" the first of `order` that can.

    Raises NoBackendError if it cannot run.
    """
    reasons = {}
    for name in order(op, device) if backend == "auto" else (backend,):
        reasons[name] = why_not(name, op, *args)
        if reasons[name] is None:
            return name
    raise NoBackendError(f"no backend can run {op}: " + "; ".join(f"{n}: {r}" for n, r in reasons.items()))


def run(op: str, device: str, *args: Any, backend: str = "auto") -> Any:
    """Run the op on the backend that `choose` returns."""
    name = choose(op, device, *args, backend=backend)
    with _clock.get()(op):
        return getattr(_module(f"{BACKENDS[name]}.{op}"), op)(*args)


def kernel(op: str, device: str, *args: Any, backend: str = "auto") -> Callable[..., Any] | None:
    """Return the backend's function of tensors alone for later problems of the same shapes, or None."""
    name = choose(op, device, *args, backend=backend)
    find = getattr(_module(f"{BACKENDS[name]}.{op}"), "kernel", None)
    return find(*args) if find else None


def no_gpu_kernel(*args: Any) -> str | None:
    """Return in words why no GPU kernel can run attend on these arguments, or None if one can."""
    reasons = {}
    for name in reversed([name for name in order("attend", "cuda") if name not in AUTO["cpu"] and has(name, "attend")]):
        reasons[name] = why_not(name, "attend", *args)
        if reasons[name] is None:
            return None
    return "no GPU kernel can run attend: " + "; ".join(f"{name}: {reason}" for name, reason in reasons.items())


def is_timed() -> bool:
    """Return whether a clock times the ops of this thread."""
    return _clock.get() is not nullcontext


@contextmanager
def timed(clock: Callable[[str], AbstractContextManager]) -> Iterator[None]:
    """Enter `clock(op)` around every op that runs in this thread while the context is open."""
    token = _clock.set(clock)
    try:
        yield
    finally:
        _clock.reset(token)


def ops() -> list[str]:
    """Return the names of all ops, which are the modules of sparsekit.ops."""
    package = importlib.import_module(BACKENDS["reference"])
    return sorted(m.name for m in pkgutil.iter_modules(package.__path__))


def definition(op: str) -> ModuleType:
    """Return the module of sparsekit.ops that defines the op."""
    return importlib.import_module(f"{BACKENDS['reference']}.{op}")


def table() -> dict[str, dict[str, str | None]]:
    """Return, by op and backend, None if the backend has the op, else the reason. `sparsekit backends` prints it."""
    reasons: dict[str, dict[str, str | None]] = {}
    for op in ops():
        reasons[op] = {}
        for backend, package in BACKENDS.items():
            module = _module(f"{package}.{op}")
            reasons[op][backend] = module if isinstance(module, str) else None
    return reasons
