"""Compile the scoring kernels for a GPU that need not be here: compile_triton_scores.py sm_80|sm_90|sm_100|gfx942

Prints a line a variant, as compile_triton.py does.
"""

import sys
from itertools import product

import triton.language as tl
from compile_triton import compile_kernel, line, tensors

from sparsekit.problem import PAD
from sparsekit_kernels.triton import (
    block_means,
    coverage_count,
    coverage_mask,
    seen_blocks,
    select_tokens,
    topk_mask,
    vertical_slash_blocks,
)
from sparsekit_kernels.triton import window_scores as ws


def window_kernels(name):
    join = tensors("fp32", "top total share", number="i32")
    yield "join", compile_kernel(ws._join, name, join, dict(N=32, T=128, WIDE=tl.float32), 8)
    folded = tensors("fp32", "folded sums columns distances", length="i32")
    yield "unfold", compile_kernel(ws._unfold, name, folded, dict(N=1024, FOLD=ws.FOLD, WIDE=tl.float32))
    for dtype, D in product(("bf16", "fp16", "fp32"), (64, 128, 256)):
        if dtype == "fp16" and D != 128:
            continue  # as bf16, but for the type of one instruction
        first, second, folding = ws.tiles(D, 4 if dtype == "fp32" else 2, name)
        constants = dict(D=D, D_TILE=D, WIDE=tl.float32, k_d=1, q_d=1, seen_l=1)
        given = tensors(dtype, "q k", seen="i64", share="fp32")
        M, N, warps = first
        pointers = tensors(dtype, "q k", seen="i64", top="fp32", total="fp32")
        kernel = compile_kernel(ws._exponentials, name, pointers, constants | dict(M=M, N=N), warps)
        yield f"exponentials {dtype} D={D}", kernel
        M, N, warps = second
        kernel = compile_kernel(ws._columns, name, given | {"columns": "*fp32"}, constants | dict(M=M, N=N), warps)
        yield f"columns {dtype} D={D}", kernel
        M, N, warps = folding
        pointers = given | tensors("fp32", "folded sums")
        for some in (M, min(M, 32)):
            more = constants | dict(SOME=some, SEVERAL=M // some, N=N, FOLD=ws.FOLD)
            yield f"folded {dtype} D={D} rows={some}", compile_kernel(ws._folded, name, pointers, more, warps)


def row_kernels(name):
    for n in (128, topk_mask.STEP):
        constants = dict(N=n, WIDE=tl.float32, stride=1)
        pointers = tensors("fp32", "scores", keep="i32")
        warps = max(n // 256, 1)  # as `sizes` has it
        kernel = compile_kernel(topk_mask._topk_mask, name, pointers | {"mask": "*i1"}, constants, warps)
        yield f"topk_mask n={n}", kernel
        kernel = compile_kernel(select_tokens._select_tokens, name, pointers | {"idx": "*i32"}, constants, warps)
        yield f"select_tokens n={n}", kernel
        for smallest in (False, True):
            pointers = tensors("fp32", "scores limit", mask="i1")
            more = dict(SMALLEST=smallest)
            kernel = compile_kernel(coverage_mask._coverage_mask, name, pointers, constants | more, warps)
            yield f"coverage_mask n={n} smallest={smallest}", kernel
            pointers = tensors("fp32", "scores limit", counts="i64")
            kernel = compile_kernel(coverage_count._coverage_count, name, pointers, constants | more, warps)
            yield f"coverage_count n={n} smallest={smallest}", kernel


def block_kernels(name):
    for dtype, D in (("bf16", 64), ("bf16", 128), ("fp16", 128), ("fp32", 256)):
        pointers = tensors(dtype, "x", pos="i32", means="fp32")
        constants = dict(N=8192 // D, D_TILE=D, PAD=PAD, WIDE=tl.float32, x_d=1, pos_l=1)
        yield f"block_means {dtype} D={D}", compile_kernel(block_means._block_means, name, pointers, constants)
    pattern = tensors("i1", "verticals slashes extra", first="i32", last="i32")
    for extra in (False, True):
        constants = dict(EXTRA=extra, N=1024)
        count, write = vertical_slash_blocks._count, vertical_slash_blocks._write
        yield f"count extra={extra}", compile_kernel(count, name, pattern | {"counts": "*i32"}, constants)
        yield f"write extra={extra}", compile_kernel(write, name, pattern | {"indices": "*i32"}, constants)
    pointers = tensors("i32", "reach counts indices whole part")
    yield "seen_blocks", compile_kernel(seen_blocks._seen_blocks, name, pointers, dict(M=128, N=1024))


if __name__ == "__main__":
    for kernels in (window_kernels, row_kernels, block_kernels):
        for what, kernel in kernels(sys.argv[1]):
            print(line(sys.argv[1], what, kernel), flush=True)
