"""Compiles the scoring kernels for a GPU that need not be here: compile_triton_scores.py sm_80|sm_90|sm_100|gfx942

It prints a line for each variant, as compile_triton.py does.
"""

import sys
from itertools import product

import torch
import triton.language as tl
from compile_triton import compile_kernel, line, tensors

from sparsekit.problem import PAD
from sparsekit_kernels.triton import (
    block_map,
    block_means,
    coverage_count,
    coverage_mask,
    query_aware,
    seen_blocks,
    select_tokens,
    threshold_blocks,
    token_budget,
    token_votes,
    topk_mask,
    vertical_slash_blocks,
)
from sparsekit_kernels.triton import window_scores as ws


def window_kernels(name):
    """Yield the kernels for 128 rows of 4 heads a group, with padding and without, where some tensors are None."""
    pointers = tensors("fp32", "top total log", number="i32")
    yield "join", compile_kernel(ws._join, name, pointers, dict(N=8, T=128, WIDE=tl.float32))
    order = dict(R=ws.FOLD, HEADS=4, ROWS=16)
    for padded in (False, True):
        pointers, nothing = tensors("fp32", "parts folded columns distances"), dict(length=None)
        constants = order | dict(N=1024, WIDE=tl.float32)
        given = pointers | {"length": "*i64"}, constants
        kernel = compile_kernel(ws._sums, name, *(given if padded else (pointers, constants | nothing)))
        yield f"sums padded={padded}", kernel
        pointers, none = tensors("bf16", "q rows", last="i32", number="i32"), "reach start real first".split()
        constants = order | dict(N=16, D=128, D_TILE=128, q_d=1)
        given, nothing = (pointers | tensors("i64", "reach start real", first="i32"), constants), dict.fromkeys(none)
        kernel = compile_kernel(ws._rows, name, *(given if padded else (pointers, constants | nothing)))
        yield f"rows padded={padded}", kernel
    for dtype, D in product(("bf16", "fp16", "fp32"), (64, 128, 256)):
        if (dtype == "fp16" and D != 128) or (D == 64 and name != "sm_90"):
            continue  # fp16 differs from bf16 only in one instruction's type; a small head dim needs few registers
        for step, R in (("exponentials", 1), ("columns", 1), ("diagonals", ws.FOLD)):
            M, N, launch = ws.tiles(D, 4 if dtype == "fp32" else 2, name, step)
            HEADS, ROWS = ws.split(4, 128 // R, M)
            kernel, results, shape = (
                (ws._exponentials, "top total", dict(M=M))
                if step == "exponentials"
                else (ws._probabilities, "log parts folded", dict(R=R, HEADS=HEADS, ROWS=ROWS))
            )
            pointers = tensors(dtype, "rows k", last="i32") | tensors("fp32", results)
            constants = shape | dict(N=N, D=D, D_TILE=D, WIDE=tl.float32, k_d=1)
            warps, nothing = (launch["num_warps"], launch["num_stages"]), dict(lowest=None, first=None)
            yield f"{step} {dtype} D={D}", compile_kernel(kernel, name, pointers, constants | nothing, *warps)
            pointers |= tensors("i32", "lowest first")
            yield f"{step} {dtype} D={D} window", compile_kernel(kernel, name, pointers, constants, *warps)


def held_kernels(name):
    for n in (128, topk_mask.HELD // 2, topk_mask.HELD):  # fewest warps, most warps, most entries for a thread
        given = topk_mask.places(torch.empty(1, n))
        warps = given.pop("num_warps")
        pointers = tensors("fp32", "scores", keep="i32")
        for op, result in ((topk_mask._topk_mask, {"mask": "*i1"}), (select_tokens._select_tokens, {"idx": "*i32"})):
            yield f"{op.__name__[1:]} held n={n}", compile_kernel(op, name, pointers | result, given, warps)
        pointers = tensors("fp32", "scores", keep="i32", bounds_of="i32", counts="i32")
        yield f"select_tokens search n={n}", compile_kernel(select_tokens._search, name, pointers, given, warps)
        pointers = tensors("fp32", "votes", drop="i64") | {"tau": "fp32"}
        kernel = compile_kernel(token_budget._token_budget, name, pointers, given | dict(PER_ROW=False), warps)
        yield f"token_budget held n={n}", kernel

    pointers = tensors("fp32", "scores", keep="i32", bounds_of="i32", counts="i32", idx="i32")
    constants = dict(SHARE=select_tokens.SHARE, WIDE=tl.float32)
    kernel = compile_kernel(select_tokens._take, name, pointers, constants, select_tokens.WARPS)
    yield "select_tokens take", kernel


def row_kernels(name):
    for n in (128, topk_mask.STEP):
        row = torch.empty(1, n)
        counted, added = topk_mask.sizes(row), topk_mask.sizes(row, mass=True)
        few, many = counted.pop("num_warps"), added.pop("num_warps")
        counted |= dict(PLACES=0)  # a longer row does not fit in registers
        pointers = tensors("fp32", "scores", keep="i32")
        kernel = compile_kernel(topk_mask._topk_mask, name, pointers | {"mask": "*i1"}, counted, few)
        yield f"topk_mask n={n}", kernel
        kernel = compile_kernel(select_tokens._select_tokens, name, pointers | {"idx": "*i32"}, counted, few)
        yield f"select_tokens n={n}", kernel
        pointers = tensors("fp32", "votes", drop="i64") | {"tau": "fp32"}
        kernel = compile_kernel(token_budget._token_budget, name, pointers, added | dict(PER_ROW=False, PLACES=0), many)
        yield f"token_budget n={n}", kernel
        for more in (added | dict(SMALLEST=False), added | dict(SMALLEST=True)):
            pointers = tensors("fp32", "scores limit", mask="i1")
            kernel = compile_kernel(coverage_mask._coverage_mask, name, pointers, more, many)
            yield f"coverage_mask n={n} smallest={more['SMALLEST']}", kernel
            pointers = tensors("fp32", "scores limit", counts="i64")
            kernel = compile_kernel(coverage_count._coverage_count, name, pointers, more, many)
            yield f"coverage_count n={n} smallest={more['SMALLEST']}", kernel
    for per_head in (False, True):
        pointers = tensors("fp32", "scores votes mean") | (tensors("i64", "scored real") if per_head else {})
        constants = dict(POOL=7, M=token_votes.HEADS, N=token_votes.TOKENS, PER_HEAD=per_head, WIDE=tl.float32, s_l=1)
        kernel = compile_kernel(token_votes._token_votes, name, pointers, constants, token_votes.WARPS)
        yield f"token_votes per_head={per_head}", kernel
    for smallest in (False, True):
        M, N = coverage_mask.TILE
        constants = dict(MASS=True, SMALLEST=smallest, SHARES=coverage_mask.SHARES, WIDE=tl.float32)
        pointers = tensors("fp32", "scores limit masses sums", lows="i32", counts="i32")
        without = {pointer: x for pointer, x in pointers.items() if pointer != "counts"}
        kernel = compile_kernel(coverage_mask._bin_share, name, without, constants | dict(M=M, N=N))
        yield f"coverage_mask bins smallest={smallest}", kernel
        constants |= dict(N=M * N)
        yield (
            f"coverage_mask counts smallest={smallest}",
            compile_kernel(coverage_mask._count_share, name, pointers, constants),
        )
        pointers = tensors("fp32", "scores limit masses", lows="i32", aboves="i32", equals="i32")
        kernel = compile_kernel(coverage_mask._mark_share, name, pointers | {"mask": "*i1"}, constants)
        yield f"coverage_mask marks smallest={smallest}", kernel
        del pointers["scores"], constants["MASS"], constants["N"]
        kernel = compile_kernel(coverage_count._fit, name, pointers | {"counts": "*i64"}, constants)
        yield f"coverage_count of shares smallest={smallest}", kernel
    constants = dict(MASS=False, SMALLEST=False, SHARES=coverage_mask.SHARES, WIDE=tl.float32)
    pointers = tensors("fp32", "scores limit masses", lows="i32", aboves="i32", equals="i32", idx="i32")
    kernel = compile_kernel(select_tokens._take_share, name, pointers, constants | dict(N=M * N))
    yield "select_tokens of shares", kernel
    pointers = tensors("fp32", "scores limit masses sums", lows="i32")
    yield (
        "coverage_mask bins of counts",
        compile_kernel(coverage_mask._bin_share, name, pointers, constants | dict(M=M, N=N)),
    )


def block_kernels(name):
    for D in (64, 128, 256):
        pointers = tensors("fp32", "probe means pooled", aware="i1") | {"tau": "fp32"}
        constants = dict(N=query_aware.SIZE // D, D_TILE=D, PER_HEAD=False, WIDE=tl.float32, q_d=1, k_d=1, p_l=1)
        kernel = compile_kernel(query_aware._query_aware, name, pointers, constants, query_aware.WARPS)
        yield f"query_aware D={D}", kernel
    for dtype, D in (("bf16", 64), ("bf16", 128), ("fp16", 128), ("fp32", 256)):
        pointers = tensors(dtype, "x", pos="i32", means="fp32")
        constants = dict(wanted=None, N=8192 // D, D_TILE=D, PAD=PAD, WIDE=tl.float32, x_d=1, pos_l=1)
        yield f"block_means {dtype} D={D}", compile_kernel(block_means._block_means, name, pointers, constants)
    del constants["wanted"]
    kernel = compile_kernel(block_means._block_means, name, pointers | {"wanted": "*i1"}, constants)
    yield "block_means of some heads", kernel
    for window in (False, True):
        pointers = tensors("fp32", "q k weights mass", heads="i1", last="i32") | {"gamma": "fp32"}
        constants = dict(M=threshold_blocks.ROWS, N=threshold_blocks.KEYS, D_STEP=threshold_blocks.DIMS)
        constants |= dict(WIDE=tl.float32) | ({} if window else {"first": None})
        pointers |= tensors("i32", "first") if window else {}
        kernel = compile_kernel(block_map._rows, name, pointers, constants, block_map.WARPS)
        yield f"rows of a map window={window}", kernel
    pattern = tensors("i1", "verticals slashes extra", first="i32", last="i32")
    for extra in (False, True):
        constants = dict(EXTRA=extra, N=1024)
        count, write = vertical_slash_blocks._count, vertical_slash_blocks._write
        yield f"count extra={extra}", compile_kernel(count, name, pattern | {"counts": "*i32"}, constants)
        yield f"write extra={extra}", compile_kernel(write, name, pattern | {"indices": "*i32"}, constants)
    for window in (False, True):
        pointers = tensors("fp32", "q k edges", reach="i64") | (tensors("i64", "start") if window else {})
        pointers |= {"scale": "fp32", "margin": "fp32"}
        constants = dict(M=threshold_blocks.ROWS, N=threshold_blocks.KEYS, S=128, D_STEP=threshold_blocks.DIMS)
        constants |= dict(WIDE=tl.float32)
        constants |= dict(reach_l=1) | ({"start_l": 1} if window else {"start": None})
        yield f"edges window={window}", compile_kernel(threshold_blocks._edges, name, pointers, constants)
        lists = {name: kind for name, kind in pointers.items() if name != "margin"} | tensors("i32", "counts indices")
        for write in (False, True):
            kernel = compile_kernel(threshold_blocks._lists, name, lists, constants | dict(WRITE=write))
            yield f"lists window={window} write={write}", kernel
    pointers = tensors("i32", "reach counts indices whole part")
    yield "seen_blocks", compile_kernel(seen_blocks._seen_blocks, name, pointers, dict(M=128, N=1024))


if __name__ == "__main__":
    for kernels in (window_kernels, held_kernels, row_kernels, block_kernels):
        for what, kernel in kernels(sys.argv[1]):
            print(line(sys.argv[1], what, kernel), flush=True)
