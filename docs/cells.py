"""The examples of a page, as the build of the site and the tests run them.

Every block of ```python is run, in the order of the page, each with the names of those before it. An HTML comment that
begins with <!-- python is run too, unseen by readers: it holds code that only the build of the site needs.
"""

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
    """Write the embedded model with a transformers tokenizer, one token per byte, in place of a model from the hub."""
    from sparsekit.testbed import MODEL_PATH
    from sparsekit.testing.small_model import byte_tokenizer

    folder.mkdir(parents=True, exist_ok=True)
    for name in ("config.json", "model.safetensors"):
        shutil.copyfile(MODEL_PATH / name, folder / name)
    byte_tokenizer(end=None).save_pretrained(folder)
    return folder
