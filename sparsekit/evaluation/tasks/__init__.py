"""The tasks in words, one file each: a function from a random number generator to a question, fixed by the seed."""

from collections.abc import Callable
from random import Random

from ..question import Question
from .common_words import common_words
from .copy_span import copy_span
from .facts_to_combine import facts_to_combine
from .frequent_words import frequent_words
from .many_shot import many_shot
from .needle_before import needle_before
from .needle_keys import needle_keys
from .needle_questions import needle_questions
from .needle_single import needle_single
from .needle_values import needle_values
from .variable_tracking import variable_tracking

TASKS: dict[str, Callable[[Random], Question]] = {
    "needle_single": needle_single,
    "needle_keys": needle_keys,
    "needle_values": needle_values,
    "needle_questions": needle_questions,
    "needle_before": needle_before,
    "variable_tracking": variable_tracking,
    "common_words": common_words,
    "frequent_words": frequent_words,
    "facts_to_combine": facts_to_combine,
    "many_shot": many_shot,
    "copy_span": copy_span,
}
