"""Triton's interpreter in half of its time: most of it makes types that the interpreter has made before."""

import functools
from contextlib import contextmanager
from dataclasses import replace
from unittest import mock


@contextmanager
def quick_interpreter():
    from triton.language import core
    from triton.runtime import interpreter

    patch = functools.cache(interpreter._patch_lang)
    numpy_type = functools.cache(interpreter._get_np_dtype)
    init_block, init_tensor = core.block_type.__init__, core.tensor.__init__
    blocks, shapes = {}, {}

    def call(self, *args, **kwargs):
        patch(self.fn)
        return self.rewrite()(*args, **kwargs)

    def numpy_type_of(type):
        return numpy_type(core.uint64 if type.scalar.is_ptr() else type.scalar)

    def block(self, element_ty, shape):
        key = str(element_ty), *shape
        if key not in blocks:
            init_block(self, element_ty, shape)
            blocks[key] = vars(self).copy()
        vars(self).update(blocks[key])

    def tensor(self, handle, type):
        if type.name not in shapes:
            init_tensor(self, handle, type)
            shapes[type.name] = dict(shape=self.shape, numel=self.numel)
        vars(self).update(shapes[type.name], handle=handle, type=type, dtype=type.scalar)

    # it works out whether numbers overflow, and looks at the answer only to debug
    builder = interpreter.interpreter_builder
    options = replace(builder.options, sanitize_overflow=builder.options.debug)
    with (
        mock.patch.object(interpreter.InterpretedFunction, "__call__", call),
        mock.patch.object(interpreter, "_get_np_dtype", numpy_type_of),
        mock.patch.object(core.block_type, "__init__", block),
        mock.patch.object(core.tensor, "__init__", tensor),
        mock.patch.object(builder, "options", options),
    ):
        yield
