"""A random Llama whose tokens are bytes, for prompts of up to 2,048."""

from pathlib import Path

from sparsekit.testing import small_model
from sparsekit.testing.small_model import END as END
from sparsekit.testing.small_model import byte_tokenizer as byte_tokenizer


def save_tiny_llama(path: Path) -> None:
    small_model(path, tokenizer=byte_tokenizer(), longest=2048)
