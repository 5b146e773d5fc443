"""Loads the model, its tokenizer and the prompts that a user names on the command line."""

import os
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch

from .. import problem, testbed
from ..checks import check_choice, check_count, did_you_mean
from ..extras import needs
from ..testbed.text import as_utf8, no_text
from .options import EMBEDDED
from .rope import scaled

GGUF = ".gguf"
DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in problem.DTYPES}
ALSO_CALLED = {"gpu": "cuda", "nvidia": "cuda"}  # other names that users give devices


@dataclass(frozen=True)
class Loaded:
    """A model with its tokenizer and its name in records."""

    model: Any  # in evaluation mode
    tokenizer: testbed.Tokenizer
    name: str
    words: Any = None  # the transformers tokenizer; None for the embedded model, which reads bytes


def load(
    name: str, device: str, rope_scaling: str | None = None, dtype: str = "auto", device_map: str | None = None
) -> Loaded:
    """Return the model `name` (a folder, a .gguf file, a hub id or "embedded") on a device.

    `rope_scaling` stretches its positions: see `rope.scaled`. `dtype` "auto" is the dtype of the saved weights; for
    the embedded model and .gguf files it is float32 on a CPU, else bfloat16. `device_map`, as accelerate reads it,
    spreads the model over devices and replaces `device`. Raises ValueError if the model cannot be loaded, ImportError
    if a package is missing.
    """
    check_choice("dtype", dtype, ("auto", *DTYPES))
    needs("transformers", "hf")
    where = torch.device(usable(device))
    if device_map is not None:
        needs("accelerate", None)
        if device != "auto":
            raise ValueError(
                f"device-map: got {device_map!r} and device {device!r}; allowed is one of the two: leave one out"
            )
    from huggingface_hub.utils import logging as hub_logging
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()  # its advice is for authors of scripts
    hub_logging.set_verbosity_error()  # it reports every retry, and the error at the end has the reason
    default = torch.float32 if where.type == "cpu" else torch.bfloat16
    wanted = default if dtype == "auto" else DTYPES[dtype]
    if name == EMBEDDED:
        for option, value in {"rope-scaling": rope_scaling, "device-map": device_map}.items():
            if value:
                raise ValueError(
                    f"{option}: got {value!r} for the embedded model; allowed is {option} with other models: leave it "
                    "out"
                )
        return Loaded(testbed.load_model(wanted, where), testbed.ByteTokenizer(), name)
    file = Path(name) if name.endswith(GGUF) else None
    if file is not None and not file.is_file():
        raise ValueError(f"MODEL: got {name!r}, which is no file; allowed is a {GGUF} file that exists: check the path")
    if file is None and not os.path.isdir(name) and not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", name):
        raise ValueError(
            f"MODEL: got {name!r}, which is no folder, no {GGUF} file and no hub id; allowed are these three and "
            f'"{EMBEDDED}": check the path'
        )
    if file is not None:
        needs("gguf", "gguf")
    path, how = (str(file.parent), {"gguf_file": file.name}) if file is not None else (name, {})
    with _load_errors(name):
        config = AutoConfig.from_pretrained(path, **how)  # first, because most wrong folders lack a config
    if rope_scaling:
        config = scaled(config, rope_scaling)
    with _load_errors(name):
        tokenizer = AutoTokenizer.from_pretrained(path, **how)
        from_folder: dict[str, Any] = {"dtype": "auto" if dtype == "auto" else wanted}
        how |= _whole_weights(wanted) if file is not None else from_folder
        how |= {"device_map": device_map} if device_map else {}
        model: Any = AutoModelForCausalLM.from_pretrained(path, config=config, **how)
    model = model if device_map else model.to(where)
    return Loaded(model.eval(), testbed.TextTokenizer(tokenizer), _called(name, file), tokenizer)


@contextmanager
def _load_errors(name: str) -> Iterator[None]:
    """Turn any error from loading into a ValueError that tells the user what to check."""
    try:
        yield
    except Exception as error:
        raise ValueError(
            f"MODEL: {name!r} cannot be loaded ({type(error).__name__}: {shorten(str(error), 200)}); allowed are a "
            f'folder, a {GGUF} file or a hub id with a model and its tokenizer, and "{EMBEDDED}": check the path'
        ) from error


def _whole_weights(dtype: torch.dtype) -> dict[str, Any]:
    """Return the arguments that load a .gguf file's weights unpacked; new versions of transformers need to be told."""
    import transformers

    packed = getattr(transformers, "GgufConfig", None)
    return {"dtype": dtype} | ({"quantization_config": packed(dequantize=True)} if packed else {})


def _called(name: str, file: Path | None) -> str:
    """Return the model's name in records: the folder's name, "folder/file" for a file, or the hub id."""
    if file is not None:
        return "/".join(file.resolve().parts[-2:])
    return Path(name).resolve().name if Path(name).is_dir() else name


def read_prompts(
    files: Sequence[Path], tokenizer: testbed.Tokenizer, most: int | None = None, chat: Any = None
) -> list[list[int]]:
    """Return the tokens of each file, at most the first `most`. Raises ValueError for a file that is not text.

    With `chat`, a transformers tokenizer that has a chat template, each file becomes a user's message; the tokens of
    the template do not count towards `most`.

    UTF-16 and UTF-32 are recognized by their byte order mark, which is not part of the text. A model whose tokens are
    bytes reads other files, too, byte by byte, with a warning.
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
            warnings.warn(f"sparsekit: {name} is not text: {why}; its bytes are read as they are", stacklevel=2)
            text = data
        else:
            text = as_utf8(data, name)
        tokens = tokenizer.encode(text)[:most]
        if not tokens:
            raise ValueError(f"prompt-file: {str(file)!r} is empty; allowed is a file with text: pass another file")
        prompts.append(_as_user_message(tokens, tokenizer, chat) if chat else tokens)
    return prompts


def require_chat(loaded: Loaded) -> Any:
    """Return a model's tokenizer. Raises ValueError if it has no chat template."""
    if not getattr(loaded.words, "chat_template", None):
        raise ValueError(
            f"chat: got {loaded.name!r}, whose tokenizer has no chat template; allowed are models that have one: "
            "leave --chat out, or pass such a model"
        )
    return loaded.words


def _as_user_message(tokens: list[int], tokenizer: testbed.Tokenizer, chat: Any) -> list[int]:
    text = tokenizer.decode_after([], tokens).decode(errors="replace")
    message = [{"role": "user", "content": text}]
    whole = chat.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
    return list(chat(whole, add_special_tokens=False, verbose=False)["input_ids"])  # the template adds its own


def usable(device: str) -> str:
    """Return the device's name with "auto" resolved. Raises ValueError for a device that cannot be used here."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    guess = ""
    try:
        torch.device(device)
    except RuntimeError:  # its text lists every device that torch was ever built for
        why = "there is no such device"
        guess = did_you_mean(ALSO_CALLED.get(device.lower(), device), ("auto", "cpu", "cuda"))
    else:
        try:
            torch.ones(1, device=device).item()
            return device
        except (RuntimeError, AssertionError) as error:
            why = shorten(str(error).splitlines()[0], 100)
    raise ValueError(
        f"device: got {device!r}, which cannot be used here ({why}); allowed are auto, cpu, and cuda if there is "
        f"a GPU: pass one of those{guess}"
    )
