"""Who runs an op. The address of a piece of code is (backend, op): a package, and a module in it named as the op.

Such a module has two functions: one named as the op, and `why_not`, with the same arguments, which says in words
why it cannot run them (None: it can). A missing module is a backend that lacks the op.
"""

import importlib
import pkgutil
from typing import Any

BACKENDS = {
    "triton": "sparsekit_kernels.triton",
    "cpu": "sparsekit_kernels.cpu",
    "reference": "sparsekit.ops",
}
AUTO = {
    "cpu": ("cpu", "reference"),
    "cuda": ("cpu", "reference"),
}  # what "auto" may try, in order, by device type: a backend joins once it has been measured there
ALLOWED = ("auto", *BACKENDS)


class NoBackendError(RuntimeError):
    """No backend can run the op; the message says why, backend by backend."""


def why_not(backend: str, op: str, *args: Any) -> str | None:
    """In words, why `backend` cannot run `op` on these arguments; None if it can."""
    try:
        module = importlib.import_module(f"{BACKENDS[backend]}.{op}")
    except ModuleNotFoundError as missing:
        return f"there is no {missing.name}"
    return module.why_not(*args)


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
    return getattr(importlib.import_module(f"{BACKENDS[name]}.{op}"), op)(*args)


def ops() -> list[str]:
    """The ops there are: the modules of sparsekit.ops."""
    package = importlib.import_module(BACKENDS["reference"])
    return sorted(m.name for m in pkgutil.iter_modules(package.__path__))


def table() -> dict[str, dict[str, str | None]]:
    """For each op, each backend: None if it has the op, else the reason. `sparsekit backends` prints it."""
    found: dict[str, dict[str, str | None]] = {}
    for op in ops():
        found[op] = {}
        for backend, package in BACKENDS.items():
            try:
                importlib.import_module(f"{package}.{op}")
                found[op][backend] = None
            except ModuleNotFoundError as missing:
                found[op][backend] = f"there is no {missing.name}"
    return found
