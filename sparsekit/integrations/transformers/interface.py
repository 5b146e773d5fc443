"""Inspect a module's code to tell whether its attention goes through transformers' attention interface.

The name of a model does not matter. An attention module that goes through the interface looks its attention function up
in an `AttentionInterface`. Some such modules also compare the implementation's name with "sdpa" or "eager" and prepare
different arguments for other names: such a module must keep its own implementation.
"""

import inspect
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from types import CodeType
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, PreTrainedModel

NAME = "sparsekit"  # of the attention implementation
_STOCK: dict[type, str] = {}


def stock(config: Any) -> str:
    """Return the implementation that models of a config run without sparsekit: "sdpa", or "eager" if they lack it.

    It is "sdpa" for a config that belongs to no model class.
    """
    kind = type(config)
    return _STOCK[kind] if kind in _STOCK else _look_up(kind)


@torch.compiler.disable  # it runs once per class of config; after that a compiled decode step reads the table
def _look_up(kind: type) -> str:
    supports = [model._supports_sdpa for model in _subclasses(PreTrainedModel) if model.config_class is kind]
    _STOCK[kind] = "sdpa" if any(supports) or not supports else "eager"
    return _STOCK[kind]


def _subclasses(kind: Any) -> Iterator[Any]:
    for below in kind.__subclasses__():
        yield below
        yield from _subclasses(below)


def goes_through(module: nn.Module) -> bool:
    """Return whether a module looks its attention function up in an AttentionInterface."""
    return _look(type(module)).interface


def decides_by_name(module: nn.Module) -> bool:
    """Return whether a module compares the implementation's name with that of its model's own implementation."""
    return stock(getattr(module, "config", None)) in _look(type(module)).compared


def gives(module: nn.Module, argument: str) -> bool:
    """Return whether a module's own code contains a keyword argument of this name."""
    return argument in _look(type(module)).texts


@dataclass(frozen=True)
class _Look:
    """Facts about the code of a module class."""

    interface: bool  # it reads an AttentionInterface
    texts: frozenset[str]  # its strings, including names of keyword arguments
    compared: frozenset[str]  # the strings in functions that read the implementation's name


def _look(kind: Any) -> _Look:
    return _look_at(kind)


@cache
def _look_at(kind: Any) -> _Look:
    codes = [(function, code) for function in _methods(kind) for code in _codes(function.__code__)]
    return _Look(
        any(isinstance(f.__globals__.get(name), AttentionInterface) for f, code in codes for name in code.co_names),
        frozenset(text for _, code in codes for text in _texts(code)),
        frozenset(text for _, code in codes if "_attn_implementation" in code.co_names for text in _texts(code)),
    )


def eager_forward(module: nn.Module) -> Callable[..., Any] | None:
    """Return the eager attention function of a module's source file, or None if no function has the usual name."""
    space = vars(sys.modules[type(module).__module__])
    names = [
        name for function in _methods(type(module)) for code in _codes(function.__code__) for name in code.co_names
    ]
    wanted = ["eager_attention_forward", *(name for name in names if name.endswith("eager_attention_forward"))]
    return next((space[name] for name in wanted if callable(space.get(name))), None)


def _methods(kind: type) -> Iterator[Any]:
    """Yield the functions of a class and its bases below torch's and transformers' own, without their decorators."""
    for base in kind.__mro__:
        if base in (nn.Module, PreTrainedModel):
            return
        for value in vars(base).values():
            if inspect.isfunction(value):
                yield inspect.unwrap(value)


def _codes(code: CodeType) -> Iterator[CodeType]:
    """Yield a code object and all code objects nested in it."""
    yield code
    for value in code.co_consts:
        if isinstance(value, CodeType):
            yield from _codes(value)


def _texts(code: CodeType) -> set[str]:
    """Return the strings among a code object's constants, including those in tuples and sets."""
    texts = set[str]()
    for value in code.co_consts:
        for item in value if isinstance(value, tuple | frozenset) else (value,):
            texts |= {item} if isinstance(item, str) else set()
    return texts
