"""A model, its tokenizer and its prompts, from what a user names on the command line."""

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
ALSO_CALLED = {"gpu": "cuda", "nvidia": "cuda"}  # devices, by users


@dataclass(frozen=True)
class Loaded:
    model: Any  # in evaluation mode
    tokenizer: testbed.Tokenizer
    name: str  # of the model
    words: Any = None  # the tokenizer as transformers has it; None of the embedded model, which reads bytes


def load(
    name: str, device: str, rope_scaling: str | None = None, dtype: str = "auto", device_map: str | None = None
) -> Loaded:
    """Return the model `name`, a folder, a .gguf file, a hub id or "embedded", on a device.

    `rope_scaling` stretches its positions: see `rope.scaled`. `dtype` "auto" is that of the folder; of the embedded
    model and a .gguf file float32 on a CPU and else bfloat16. `device_map`, as accelerate reads it, spreads the model
    over devices and takes the place of `device`. Raises ValueError for what cannot be loaded, ImportError for a package
    that it takes.
    """
    check_choice("dtype", dtype, ("auto", *DTYPES))
    needs("transformers", "hf")
    where = torch.device(usable(device))
    if device_map is not None:
        needs("accelerate", None)
        if device != "auto":
            raise ValueError(
                f"device-map: got {device_map!r} and device {device!r}; allowed is one of them: leave one out"
            )
    from huggingface_hub.utils import logging as hub_logging
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()  # its advice is for authors of scripts
    hub_logging.set_verbosity_error()  # it tells of every retry, and then fails with a reason
    small = torch.float32 if where.type == "cpu" else torch.bfloat16
    wanted = small if dtype == "auto" else DTYPES[dtype]
    if name == EMBEDDED:
        for option, value in {"rope-scaling": rope_scaling, "device-map": device_map}.items():
            if value:
                raise ValueError(
                    f"{option}: got {value!r} for the embedded model; allowed are other models: leave it out"
                )
        return Loaded(testbed.load_model(wanted, where), testbed.ByteTokenizer(), name)
    file = Path(name) if name.endswith(GGUF) else None
    if file is not None and not file.is_file():
        raise ValueError(
            f"MODEL: got {name!r}, which is no file; allowed is a {GGUF} file that is there: check the path"
        )
    if file is None and not os.path.isdir(name) and not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", name):
        raise ValueError(
            f"MODEL: got {name!r}, which is no folder, no {GGUF} file and no hub id; allowed are these, and "
            f'"{EMBEDDED}": check the path'
        )
    if file is not None:
        needs("gguf", "gguf")
    path, how = (str(file.parent), {"gguf_file": file.name}) if file is not None else (name, {})
    with _load_errors(name):
        config = AutoConfig.from_pretrained(path, **how)  # first: its absence is what is wrong with most folders
    if rope_scaling:
        config = scaled(config, rope_scaling)
    with _load_errors(name):
        tokenizer = AutoTokenizer.from_pretrained(path, **how)
        as_asked: dict[str, Any] = {"dtype": "auto" if dtype == "auto" else wanted}
        how |= _whole_weights(wanted) if file is not None else as_asked
        how |= {"device_map": device_map} if device_map else {}
        model: Any = AutoModelForCausalLM.from_pretrained(path, config=config, **how)
    model = model if device_map else model.to(where)
    return Loaded(model.eval(), testbed.TextTokenizer(tokenizer), _called(name, file), tokenizer)


@contextmanager
def _load_errors(name: str) -> Iterator[None]:
    """Turn whatever is wrong with a folder, a file or a hub into what the user has to mend."""
    try:
        yield
    except Exception as error:
        raise ValueError(
            f"MODEL: {name!r} cannot be loaded ({type(error).__name__}: {shorten(str(error), 200)}); allowed are a "
            f'folder, a {GGUF} file or a hub id with a model and its tokenizer, and "{EMBEDDED}": check the path'
        ) from error


def _whole_weights(dtype: torch.dtype) -> dict[str, Any]:
    """Return how to load the weights of a .gguf file: unpacked, which new versions of transformers have to be told."""
    import transformers

    packed = getattr(transformers, "GgufConfig", None)
    return {"dtype": dtype} | ({"quantization_config": packed(dequantize=True)} if packed else {})


def _called(name: str, file: Path | None) -> str:
    """Return what records call a model: a folder's name, of a file its folder's too, or the hub id."""
    if file is not None:
        return "/".join(file.resolve().parts[-2:])
    return Path(name).resolve().name if Path(name).is_dir() else name


def read_prompts(
    files: Sequence[Path], tokenizer: testbed.Tokenizer, most: int | None = None, chat: Any = None
) -> list[list[int]]:
    """Return the tokens of each file, at most the first `most`. Raises ValueError for a file that is no text.

    With `chat`, a tokenizer of transformers that has a chat template, each file is what a user says, and what the
    template puts around it comes on top of `most`.

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
        prompts.append(_as_user_message(tokens, tokenizer, chat) if chat else tokens)
    return prompts


def require_chat(loaded: Loaded) -> Any:
    """Return the tokenizer of a model that has a chat template. Raises ValueError for one without."""
    if not getattr(loaded.words, "chat_template", None):
        raise ValueError(
            f"chat: got {loaded.name!r}, whose tokenizer has no chat template; allowed are models that were taught to "
            "chat: leave --chat out, or take one of those"
        )
    return loaded.words


def _as_user_message(tokens: list[int], tokenizer: testbed.Tokenizer, chat: Any) -> list[int]:
    text = tokenizer.decode_after([], tokens).decode(errors="replace")
    message = [{"role": "user", "content": text}]
    whole = chat.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
    return list(chat(whole, add_special_tokens=False, verbose=False)["input_ids"])  # the template has its own


def usable(device: str) -> str:
    """The device's name, "auto" resolved. Raises ValueError for one that cannot be used here."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    guess = ""
    try:
        torch.device(device)
    except RuntimeError:  # it lists all the devices that torch was ever built for
        why = "there is no such device"
        guess = did_you_mean(ALSO_CALLED.get(device.lower(), device), ("auto", "cpu", "cuda"))
    else:
        try:
            torch.ones(1, device=device).item()
            return device
        except (RuntimeError, AssertionError) as error:
            why = shorten(str(error).splitlines()[0], 100)
    raise ValueError(
        f"device: got {device!r}, which cannot be used here ({why}); allowed are auto, cpu, and cuda where there "
        f"is one: pass one of those{guess}"
    )
