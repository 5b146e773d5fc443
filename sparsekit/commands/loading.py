"""A model, its tokenizer and its prompts, from what a user names on the command line."""

import os
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch

from .. import testbed
from ..extras import needs
from ..parameters import check_count
from ..testbed.text import as_utf8, no_text
from .options import EMBEDDED


@dataclass(frozen=True)
class Loaded:
    model: Any  # in evaluation mode
    tokenizer: testbed.Tokenizer


def load(name: str, device: str) -> Loaded:
    """The model `name`, a folder, a hub id or "embedded", on a device. Raises ValueError for what cannot be loaded."""
    needs("transformers", "hf")
    from huggingface_hub.utils import logging as hub_logging
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    where = torch.device(usable(device))
    logging.disable_progress_bar()
    logging.set_verbosity_error()  # its advice is for authors of scripts
    hub_logging.set_verbosity_error()  # it tells of every retry, and then fails with a reason
    if name == EMBEDDED:
        dtype = torch.float32 if where.type == "cpu" else torch.bfloat16
        return Loaded(testbed.load_model(dtype, where), testbed.ByteTokenizer())
    if not os.path.isdir(name) and not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", name):
        raise ValueError(
            f'MODEL: got {name!r}, which is no folder and no hub id; allowed are both, and "{EMBEDDED}": check the path'
        )
    try:
        AutoConfig.from_pretrained(name)  # first: its absence is what is wrong with most folders
        tokenizer = testbed.TextTokenizer(AutoTokenizer.from_pretrained(name))
        model: Any = AutoModelForCausalLM.from_pretrained(name, dtype="auto")
    except Exception as error:  # whatever is wrong with a folder or a hub, the user has to mend it
        raise ValueError(
            f"MODEL: {name!r} cannot be loaded ({type(error).__name__}: {shorten(str(error), 200)}); allowed are a "
            f'folder or a hub id with a model and its tokenizer, and "{EMBEDDED}": check the path'
        ) from error
    return Loaded(model.to(where).eval(), tokenizer)


def read_prompts(files: Sequence[Path], tokenizer: testbed.Tokenizer, most: int | None = None) -> list[list[int]]:
    """Return the tokens of each file, at most the first `most`. Raises ValueError for a file that is no text.

    UTF-16 and UTF-32 are recognized by their byte order mark, which is not part of the text. A model whose tokens are
    bytes reads what is no text, too, byte by byte: a warning says so.
    """
    if most is not None:
        check_count("most", most, 1)
    prompts = []
    for file in files:
        try:
            data = file.read_bytes()
        except OSError as error:
            raise ValueError(
                f"prompt-file: {str(file)!r} cannot be read ({error.strerror}); allowed is a text file: check the path"
            ) from error
        why, name = no_text(data), f"prompt-file: {str(file)!r}"
        if why and tokenizer.any_bytes:
            warnings.warn(f"sparsekit: {name} is no text: {why}; its bytes are read as they are", stacklevel=2)
            text = data
        else:
            text = as_utf8(data, name)
        tokens = tokenizer.encode(text)[:most]
        if not tokens:
            raise ValueError(f"prompt-file: {str(file)!r} is empty; allowed is a file with text: pass another")
        prompts.append(tokens)
    return prompts


def usable(device: str) -> str:
    """The device's name, "auto" resolved. Raises ValueError for one that cannot be used here."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.ones(1, device=device).item()
    except (RuntimeError, AssertionError) as error:
        why = shorten(str(error).splitlines()[0], 100)
        raise ValueError(
            f"device: got {device!r}, which cannot be used here ({why}); allowed are auto, cpu, and cuda where there "
            "is one: pass one of those"
        ) from error
    return device
