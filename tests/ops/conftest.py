import functools
from importlib.util import find_spec

import pytest


@pytest.fixture(scope="session", autouse=True)
def the_interpreter_patches_its_language_once():
    """Patch Triton's language once for each function: Triton does it at each call, which takes a third of its time."""
    if not find_spec("triton"):
        yield
        return
    from triton.runtime import interpreter

    patch = functools.cache(interpreter._patch_lang)

    def call(self, *args, **kwargs):
        patch(self.fn)
        return self.rewrite()(*args, **kwargs)

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(interpreter.InterpretedFunction, "__call__", call)
        yield
