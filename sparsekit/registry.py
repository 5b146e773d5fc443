"""The names that a spec may hold: the built-in stages, policies and fills, and custom stages.

A custom stage gets its name by `register`, or by an entry point of the group `sparsekit.stages` of an installed
package. Entry points are read only for a name that is neither built in nor registered, and only that one is loaded.
"""

import re
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from keyword import iskeyword
from typing import Any, TypeVar

from . import fills, stages
from .former_names import former_names
from .policies import POLICIES
from .presets import PRESETS

GROUP = "sparsekit.stages"
DENSE = "dense"  # the spec of the empty pipeline
Class = TypeVar("Class", bound=type)
_own: dict[str, type] = {}  # by name, the classes from `register` and from entry points
_replaced: list[type] = []  # classes that a later one of the same module and name replaced


def snake(name: str) -> str:
    """Return a class name in snake case: TokenCoverage -> token_coverage, BlockTopK -> block_topk."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name.replace("TopK", "Topk")).lower()


def register(cls: Class) -> Class:
    """Let specs, files and commands use a stage class of yours by its class name in snake case. Returns the class.

    The class is a frozen dataclass whose instances are stages; as a decorator `register` stands above @dataclass. A
    class with the same module and qualified name as an earlier one replaces it. Raises ValueError for a class that is
    no stage, and for a name that is taken.
    """
    _check_class(cls)
    name = snake(cls.__name__)
    holder = _holder(name, cls)
    if holder is not None:
        raise ValueError(
            f"cls: got {_called(cls)}, but {name!r} is {holder}; allowed is a name that is not taken: rename the class"
        )
    if _own.get(name, cls) is not cls:
        _replaced.append(_own[name])
    _own[name] = cls
    return cls


def look_up(name: str) -> Callable[..., Any] | None:
    """Return the class with that name in a spec, or None.

    Raises ValueError for an entry point that cannot be imported, or that is no stage of that name.
    """
    if (found := _built_in().get(name) or _own.get(name)) is None and name in _entries():
        found = _own[name] = _loaded(name)
    return found


def known_names() -> list[str]:
    """Return all names that a spec may hold, recipes too, sorted; entry points are not loaded."""
    return sorted({*_built_in(), *PRESETS, *_own, *_entries()})


def did_you_mean(name: str) -> str:
    """Return " (did you mean ...?)" with the known name that is most like this one; "" if none is."""
    close = get_close_matches(snake(name), [*known_names(), DENSE], 1)
    return f" (did you mean {close[0]}?)" if close else ""


def is_built_in(step: Any) -> bool:
    """Return whether a step, and every step among its parameters, is built in."""
    if isinstance(step, tuple | list):
        return all(map(is_built_in, step))
    if not is_dataclass(step):
        return not callable(step)
    return type(step) in _built_in().values() and all(is_built_in(getattr(step, f.name)) for f in fields(step))


def was_replaced(cls: type) -> bool:
    """Return whether a later class replaced this one."""
    return any(cls is one for one in _replaced)


def replacements() -> int:
    """Count the replacements of a class: pipelines that were parsed before the last one are out of date."""
    return len(_replaced)


def by_new_names(text: str) -> str:
    """Replace old names of built-in stages' parameters in a text with one or more specs, without a warning.

    It is for old files, such as records. Text that is no spec stays as it is.
    """
    for call, old, new in _former_calls():
        text = call.sub(rf"\g<1>{new}", text) if old in text else text
    return text


@cache
def _former_calls() -> list[tuple[re.Pattern[str], str, str]]:
    """Return, for each old name of a parameter, the pattern that finds it in a call, the old and the new name."""
    return [
        (re.compile(rf"(\b(?:{name}|{cls.__name__})\([^()]*?\b){old}(?=\s*=)"), old, new)
        for name, cls in _built_in().items()
        for old, new in former_names(cls).items()
    ]


@cache
def _built_in() -> dict[str, Callable[..., Any]]:
    classes = [getattr(stages, name) for name in stages.__all__]
    classes += [*POLICIES, fills.Zeros, fills.SlidingWindow]
    return {snake(c.__name__): c for c in classes}


@cache
def _entries() -> dict[str, list[EntryPoint]]:
    """Return the entry points by name. Two of one name are an error only once that name is looked up."""
    by_name: dict[str, list[EntryPoint]] = {}
    for entry in entry_points(group=GROUP):
        if entry not in by_name.setdefault(entry.name, []):
            by_name[entry.name].append(entry)
    return by_name


def _loaded(name: str) -> type:
    """Import the class of an entry point; its module may register the class as well."""
    entry, *others = _entries()[name]
    if others:
        both = " and ".join(map(_from, (entry, *others)))
        raise ValueError(f"spec: the name {name!r} is taken twice, by {both}; allowed is one: uninstall the other")
    if name in PRESETS or name == DENSE:
        raise ValueError(f"spec: {_from(entry)} has a name that is built in; allowed is another: rename its class")
    try:
        cls = entry.load()
    except Exception as error:  # another package's module may raise anything
        raise ValueError(
            f"spec: {name!r} is {_from(entry)}, which does not import ({type(error).__name__}: {error}); allowed is "
            "a class that can be imported: repair that package, or uninstall it"
        ) from error
    try:
        _check_class(cls)
    except ValueError as error:
        raise ValueError(f"spec: {name!r} is {_from(entry)}: {error}") from None
    if snake(cls.__name__) != name:
        raise ValueError(
            f"spec: {name!r} is {_from(entry)}, a class that is called {snake(cls.__name__)!r} in a spec; allowed is "
            "that name: give the entry point the class's name in snake case"
        )
    return cls


def _holder(name: str, cls: type) -> str | None:
    """Return in words what else has the name, or None."""
    if name in _built_in() or name in PRESETS or name == DENSE:
        return "built in"
    if name in _own:
        other = _own[name]
        same = (other.__module__, other.__qualname__) == (cls.__module__, cls.__qualname__)
        return None if same else f"the name of {_called(other)}"
    package = cls.__module__.partition(".")[0]
    foreign = [entry for entry in _entries().get(name, ()) if entry.value.partition(":")[0].split(".")[0] != package]
    return f"the name of {_from(foreign[0])}" if foreign else None


def _check_class(cls: Any) -> None:
    """Raise ValueError unless it is a class whose instances can stand in a pipeline and be written as text."""
    why = None
    if not isinstance(cls, type):
        why = "no class"
    elif not any("__call__" in vars(base) for base in cls.__mro__):
        why = "a class whose instances cannot be called with a Problem"
    elif not is_dataclass(cls):
        why = "a class whose parameters are not known, because it is no dataclass (yet)"
    elif cls.__hash__ is None:
        why = "a dataclass that is not frozen"
    elif iskeyword(snake(cls.__name__)):
        why = "a class whose name in snake case is a Python keyword, which no spec can hold"
    if why:
        raise ValueError(
            f"cls: got {_called(cls)}, {why}; allowed is a stage, that is a frozen dataclass with "
            "__call__(self, problem) -> Plan: write @sparsekit.register above @dataclass(frozen=True)"
        )


def _called(cls: Any) -> str:
    return f"{cls.__module__}.{cls.__qualname__}" if isinstance(cls, type) else repr(cls)


def _from(entry: EntryPoint) -> str:
    """Return an entry point as text."""
    package = f" of {entry.dist.name}" if entry.dist else ""
    return f"the entry point {entry.name} = {entry.value}{package}"
