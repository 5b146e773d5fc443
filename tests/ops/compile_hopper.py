"""Compiles the kernels for Hopper; no GPU is needed: python compile_hopper.py

It prints a line for each variant, as compile_triton.py does, with the assembler's warnings about waiting tensor cores.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import triton
from compile_triton import line
from triton.backends.compiler import GPUTarget
from triton.experimental.gluon._runtime import GluonASTSource

from sparsekit_kernels.hopper import COMPUTING, COPYING, REGISTERS, attend, layout, scatter_tokens, window_scores

NAME = "sm_90"


def compile_kernel(kernel, boxes, pointers, constants, dtype):
    """Compile a kernel. Arguments but tensors and constants are i32, `scale` fp32; the copy engine reads `boxes`."""
    names, kind = kernel.arg_names, {torch.bfloat16: "bf16", torch.float16: "fp16"}[dtype]
    constants = constants | dict(COMPUTING=COMPUTING, COPYING=COPYING)
    signature = {n: "constexpr" if n in constants else "i32" for n in names} | {"scale": "fp32"} | pointers
    for name, box in boxes.items():
        of, type_ = (torch.float32, "fp32") if len(box) == 1 else (dtype, kind)
        signature[name] = f"tensordesc<{type_}{box},{layout(box, of)!r}>"
    source = GluonASTSource(
        kernel,
        signature={n: signature[n] for n in names},
        constexprs={(names.index(n),): value for n, value in constants.items()},
        attrs={(names.index(n),): [["tt.divisibility", 16]] for n in names if n in pointers or n.startswith("o_")},
    )
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options=dict(num_warps=4, maxnreg=REGISTERS))


def window_kernels():
    for D, heads, sinks, dtype in (
        (128, 4, 16, torch.bfloat16), (128, 7, 0, torch.float16), (64, 6, 32, torch.bfloat16),
        (128, 8, 64, torch.bfloat16),
    ):  # fmt: skip
        of, rows, both = scatter_tokens.split(heads)
        box, far = [1, 1, scatter_tokens.KEYS, D], [1, 1, max(sinks, 16), D]
        boxes = dict(q=[1, of, rows, D], k=box, v=box, k_sinks=far, v_sinks=far)
        constants = dict(HEADS=of, ROWS=rows, BOTH=both, N=scatter_tokens.KEYS, D=D, SINKS=sinks)
        constants |= dict(STAGES=scatter_tokens.STAGES[sinks])
        pointers = dict(o="*bf16" if dtype == torch.bfloat16 else "*fp16", lse="*fp32", k_pos="*i32")
        kernel = compile_kernel(scatter_tokens._window, boxes, pointers, constants, dtype)
        yield f"scatter_tokens D={D} heads={heads} sinks={sinks} {dtype}", kernel


def block_kernels():
    for D, N, per in ((128, 128, 1), (64, 128, 2), (128, 64, 1)):
        boxes = dict(q=[1, 1, attend.ROWS // 2, D], k=[1, 1, N, D], v=[1, 1, N, D])
        pointers = dict.fromkeys(("counter", "whole", "part", "indices"), "*i32")
        pointers |= dict(reach="*i64", o="*bf16", lse="*fp32")
        constants = dict(N=N, D=D, PER=per, STAGES=attend.STAGES)
        yield f"attend D={D} N={N}", compile_kernel(attend._attend, boxes, pointers, constants, torch.bfloat16)


def score_kernels():
    for D in (128, 64):
        boxes, pointers = dict(q=[1, 1, 64, D], k=[1, 1, window_scores.HELD, D]), dict(top="*fp32", total="*fp32")
        constants = dict(N=window_scores.HELD, D=D, STAGES=window_scores.STAGES[0])
        kernel = compile_kernel(window_scores._exponentials, boxes, pointers, constants, torch.bfloat16)
        yield f"window_scores exponentials D={D}", kernel
        boxes = dict(q=[1, 1, window_scores.LEAST, D], k=[1, 1, 64, D], log=[window_scores.LEAST])
        constants = dict(N=window_scores.LEAST, D=D, STAGES=window_scores.STAGES[1])
        kernel = compile_kernel(window_scores._probabilities, boxes, dict(scores="*fp32"), constants, torch.bfloat16)
        yield f"window_scores probabilities D={D}", kernel


def serialized(kernel):
    """Return the assembler's warnings about tensor cores that wait for one another."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "ptxas"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.ptx"
        path.write_text(kernel.asm["ptx"])
        words = [tool, "-v", "-arch=sm_90a", path, "-o", path.with_suffix(".cubin")]
        said = subprocess.run(words, capture_output=True, text=True, check=True)
    return " serialized" if "are serialized" in said.stdout + said.stderr else ""


def main():
    for kernels in (block_kernels, window_kernels, score_kernels):
        for what, kernel in kernels():
            print(line(NAME, what, kernel) + serialized(kernel), flush=True)


if __name__ == "__main__":
    sys.exit(main())
