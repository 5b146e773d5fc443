"""The byte tasks, one file each: `(text, length, seed) -> Sample`, the same sample for the same arguments."""

from collections.abc import Callable

from ..sample import Sample
from .common_words import common_words
from .conversation import conversation
from .copy_span import copy_span
from .frequent_words import frequent_words
from .key_value import key_value
from .multi_key import multi_key
from .multi_query import multi_query
from .multi_value import multi_value
from .number_string import number_string
from .question_answering import question_answering
from .single_key import single_key
from .variable_tracking import variable_tracking

TASKS: dict[str, Callable[[bytes, int, int], Sample]] = {
    "single_key": single_key,
    "multi_key": multi_key,
    "multi_value": multi_value,
    "multi_query": multi_query,
    "variable_tracking": variable_tracking,
    "key_value": key_value,
    "number_string": number_string,
    "copy_span": copy_span,
    "conversation": conversation,
    "common_words": common_words,
    "frequent_words": frequent_words,
    "question_answering": question_answering,
}

# The tasks that the embedded model was trained on and answers right at every length (testbed/model/README.md).
TRAINED: tuple[str, ...] = (
    "single_key", "multi_key", "multi_value", "variable_tracking", "key_value", "number_string", "copy_span",
)  # fmt: skip

# The tasks that a claim may rest on: under dense attention the embedded model finds at least 95% of their answers, at
# 32K and 128K (bench/records/front). It learned others only in part (testbed/model/README.md), or was not asked yet.
CLAIMED: tuple[str, ...] = (*TRAINED, "multi_query", "conversation")

__all__ = [
    "CLAIMED", "TASKS", "TRAINED", "common_words", "conversation", "copy_span", "frequent_words", "key_value",
    "multi_key", "multi_query", "multi_value", "number_string", "question_answering", "single_key",
    "variable_tracking",
]  # fmt: skip
