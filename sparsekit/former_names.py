"""Old names of fields and arguments, which still work, with a DeprecationWarning."""

import sys
import warnings
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

Class = TypeVar("Class", bound=type)
Function = TypeVar("Function", bound=Callable[..., Any])
PACKAGE = str(Path(__file__).parent)


def renamed(**fields: str) -> Callable[[Class], Class]:
    """Let a dataclass take fields by their old names: @renamed(new="old"), above @dataclass.

    The constructor takes the old keyword, the old attribute can be read, and a pickle with the old field loads, each
    with a warning.
    """
    new_names = {old: new for new, old in fields.items()}

    def decorate(cls: Class) -> Class:
        def __setstate__(self: Any, state: dict[str, Any]) -> None:
            self.__dict__.update(_by_new_names(cls.__name__, new_names, state))

        changed: Any = cls
        changed.__init__ = _renamed(cls.__name__, new_names, cls.__init__)  # type: ignore[misc]
        changed.__setstate__ = __setstate__
        changed._former_names = new_names
        for old, new in new_names.items():
            setattr(cls, old, former(old, new))
        return cls

    return decorate


def renamed_arguments(**arguments: str) -> Callable[[Function], Function]:
    """Let a function take keyword arguments by their old names, with a warning: @renamed_arguments(new="old")."""
    new_names = {old: new for new, old in arguments.items()}
    return lambda function: _renamed(function.__qualname__, new_names, function)


def former(old: str, new: str) -> Any:
    """Return a property for the old name that reads the new one, with a warning."""

    def read(self: Any) -> Any:
        _warn(type(self).__name__, old, new)
        return getattr(self, new)

    return property(read, doc=f"The old name of `{new}`.")


def former_names(cls: Any) -> dict[str, str]:
    """Return the new names of a class's renamed fields, by their old names."""
    return getattr(cls, "_former_names", {})


def _renamed(where: str, new_names: dict[str, str], function: Any) -> Any:
    @wraps(function)
    def call(*args: Any, **given: Any) -> Any:
        return function(*args, **_by_new_names(where, new_names, given))

    return call


def _by_new_names(where: str, new_names: dict[str, str], given: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments by their new names. Raises ValueError for both names at once."""
    if not any(old in given for old in new_names):  # a test that torch.compile can trace
        return given
    for old in new_names.keys() & given.keys():
        new = new_names[old]
        if new in given:
            raise ValueError(
                f"{old}: got {given[old]!r} beside {new}={given[new]!r}; allowed is one of them, because {old!r} is "
                f"the old name of {new!r}: pass {new} alone"
            )
        _warn(where, old, new)
    return {new_names.get(name, name): value for name, value in given.items()}


def _warn(where: str, old: str, new: str) -> None:
    """Warn that a name is an old one; the warning is for the line outside of this package that used it."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_code.co_filename.startswith(PACKAGE):
        level, frame = level + 1, frame.f_back
    text = f"sparsekit: {where}: {old!r} is the old name of {new!r}: write {new}"
    warnings.warn(text, DeprecationWarning, stacklevel=level)
