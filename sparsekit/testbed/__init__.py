"""A small model that really retrieves, and tasks that show whether a pipeline keeps that ability."""

from .evaluate import Score, ask, evaluate, generate_answer
from .model import MODEL_PATH, load_model
from .sample import Sample
from .tasks import CLAIMED, TASKS, TRAINED
from .text import read_text
from .tokenizer import ByteTokenizer, TextTokenizer, Tokenizer

__all__ = [
    "CLAIMED", "MODEL_PATH", "TASKS", "TRAINED", "ByteTokenizer", "Sample", "Score", "TextTokenizer", "Tokenizer",
    "ask", "evaluate", "generate_answer", "load_model", "read_text",
]  # fmt: skip
