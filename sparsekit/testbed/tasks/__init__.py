"""The retrieval tasks, one file each: `(text, length, seed) -> Sample`, the same sample for the same arguments."""

from collections.abc import Callable

from ..sample import Sample
from .multi_key import multi_key
from .multi_value import multi_value
from .single_key import single_key
from .variable_tracking import variable_tracking

TASKS: dict[str, Callable[[bytes, int, int], Sample]] = {
    "single_key": single_key,
    "multi_key": multi_key,
    "multi_value": multi_value,
    "variable_tracking": variable_tracking,
}

__all__ = ["TASKS", "multi_key", "multi_value", "single_key", "variable_tracking"]
