"""A small model that really retrieves, and the tasks that show whether a method keeps it so."""

from .evaluate import Score, ask, evaluate, generate_answer
from .loss import Bits, bits_after, bits_by_position
from .model import MODEL_PATH, load_model
from .sample import Sample
from .statistics import Estimate, bootstrap_difference, difference, mean
from .tasks import CLAIMED, TASKS, TRAINED
from .text import read_text
from .tokenizer import ByteTokenizer, TextTokenizer, Tokenizer

__all__ = [
    "CLAIMED", "MODEL_PATH", "TASKS", "TRAINED", "Bits", "ByteTokenizer", "Estimate", "Sample", "Score",
    "TextTokenizer", "Tokenizer", "ask", "bits_after", "bits_by_position", "bootstrap_difference", "difference",
    "evaluate", "generate_answer", "load_model", "mean", "read_text",
]  # fmt: skip
