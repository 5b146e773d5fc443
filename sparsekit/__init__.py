"""Sparse attention for long-context prefill: stages that stack, with a defined meaning."""

import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

__version__: str


def _is_help() -> bool:
    """Return whether this process only prints the command line's help, for which torch is not imported.

    While Python imports the package of `python -m sparsekit`, `sys.argv[0]` is "-m"; later it is the module's file.
    """
    started, *words = sys.argv or [""]
    if words and not {"-h", "--help"}.intersection(words):
        return False
    if started == "-m":
        return ("-m", __name__) in zip(sys.orig_argv, sys.orig_argv[1:], strict=False)
    return Path(started).name in (__name__, f"{__name__}.exe")


if TYPE_CHECKING or not _is_help():
    from .public import *  # noqa: F403
    from .public import __all__ as __all__
    from .stages import *  # noqa: F403  # type checkers do not see what is added to a list

if not TYPE_CHECKING:  # or every misspelt name would have a type

    def __getattr__(name: str) -> Any:
        """Return the version, or a public name where none was imported yet."""
        if name == "__version__":
            return import_module(f"{__name__}.version").version()
        is_room = any(Path(__file__).with_name(file).exists() for file in (name, f"{name}.py"))
        if not is_room:  # "from . import room" calls this first
            public = import_module(f"{__name__}.public")
            if name == "__all__" or name in public.__all__:
                return getattr(public, name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
