"""The examples of a page, as they are run: by the build of the site, and by the tests.

Every block of ```python is run, in the order of the page, each with the names of those before it. An HTML comment that
begins with <!-- python is run too, and nobody sees it: what differs where the site is built.
"""

import json
import re
import shutil
from pathlib import Path

HEADER = """---
file_format: mystnb
kernelspec:
  name: python3
language_info:
  name: python
  pygments_lexer: ipython3
---

"""
BLOCK = re.compile(r"^```python\n(?P<shown>.*?)^```$|^<!-- python\n(?P<hidden>.*?)^-->$", re.DOTALL | re.MULTILINE)
MODEL = "SPARSEKIT_DOCS_MODEL"  # environment variable: the folder that `small_model` wrote


def blocks(text: str) -> list[str]:
    """Return the code that a page runs, block by block."""
    return [found["shown"] or found["hidden"] for found in BLOCK.finditer(text)]


def as_notebook(text: str) -> str:
    """Return a page with code as one that myst-nb runs, any other as it is."""
    if not blocks(text):
        return text
    return HEADER + BLOCK.sub(_cell, text)


def _cell(found: re.Match) -> str:
    if found["shown"] is not None:
        return f"```{{code-cell}}\n{found['shown']}```"
    return f"```{{code-cell}}\n:tags: [remove-cell]\n{found['hidden']}```"


def small_model(folder: Path) -> Path:
    """Write the embedded model with a tokenizer of transformers, a token a byte: it stands in for a hub's model."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    from sparsekit.testbed import MODEL_PATH

    folder.mkdir(parents=True, exist_ok=True)
    for name in ("config.json", "model.safetensors"):
        shutil.copyfile(MODEL_PATH / name, folder / name)
    letters = Tokenizer(models.BPE(vocab=_letters(), merges=[]))
    letters.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    letters.decoder = decoders.ByteLevel()
    letters.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def _letters() -> dict[str, int]:
    """Return the byte of each letter that byte-level tokenizers write for one."""
    printed = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printed]
    return {chr(byte): byte for byte in printed} | {chr(256 + i): byte for i, byte in enumerate(others)}
