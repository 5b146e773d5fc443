"""Compiles every Triton kernel for a GPU that need not be here: python compile_triton.py sm_80|sm_90|sm_100|gfx942

It prints a line for each variant: its spills in bytes, its shared memory, and the shared memory of the family's GPUs.
"""

import re
import subprocess
import sys
import tempfile
from itertools import product
from pathlib import Path

import torch
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from sparsekit_kernels.triton import attend, gather_tokens, scatter_tokens

SHARED = {
    "sm_80": 99,
    "sm_90": 227,
    "sm_100": 227,
    "gfx942": 64,
}  # KiB for each program; sm_80 also stands for sm_86, 89 and 120


def compile_kernel(kernel, name, pointers, constants, warps=4, stages=2):
    """Compile the kernel for the target `name`; arguments other than pointers and constants are i32, `scale` fp32."""
    target = GPUTarget("hip", name, 64) if name.startswith("gfx") else GPUTarget("cuda", int(name[3:]), 32)
    names = kernel.arg_names
    assert not (set(pointers) | set(constants)) - set(names)
    signature = {n: "constexpr" if n in constants else "i32" for n in names} | pointers
    signature |= {n: "fp32" for n in ("scale",) if n in names}
    aligned = [n for n in names if "*" in pointers.get(n, "") or re.search(r"_[bhl]$|^block_", n)]
    source = ASTSource(
        kernel,
        signature=signature,
        constexprs={(names.index(n),): value for n, value in constants.items()},
        attrs={(names.index(n),): [["tt.divisibility", 16]] for n in aligned},
    )
    return triton.compile(source, target=target, options={"num_warps": warps, "num_stages": stages})


def spills(kernel):
    """Return the bytes of memory that replace registers. AMD's scalars in lanes of a vector register do not count."""
    if "amdgcn" in kernel.asm:
        return int(re.search(r"private_segment_fixed_size:\s*(\d+)", kernel.asm["amdgcn"])[1])
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        usage = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True)
    return sum(int(n) for n in re.findall(r"(?:STACK|LOCAL):(\d+)", usage.stdout + usage.stderr))


def line(name, what, kernel):
    shared = kernel.metadata.shared / 1024
    return f"{name} {what} spills {spills(kernel)} shared {shared:.0f} KiB {'fits' if shared <= SHARED[name] else 'of'}"


def tensors(dtype, low, **others):
    return {n: f"*{dtype}" for n in low.split()} | {n: f"*{kind}" for n, kind in others.items()}


def attend_kernels(name):
    pointers = dict.fromkeys("q_idx k_idx reach first whole counts indices".split(), "*i32") | {"lse": "*fp32"}
    for dtype, D, sparse, some in product(("bf16", "fp16"), (64, 128, 256), (False, True), (False, True)):
        if (dtype, D) != ("bf16", 128) and (sparse == some or (dtype == "fp16" and D != 128)):
            continue  # fp16 differs from bf16 only in the type of one instruction
        M, N, warps, stages = attend.tiles(D, torch.bfloat16, name, sparse)
        described = name in attend.DESCRIBED and not some
        constants = dict(
            M=M, N=N, D=D, DV=D, D_TILE=D, DV_TILE=D, PER=128 // N if sparse else 1, SPARSE=sparse, EVEN=True,
            SOME_QUERIES=some, SOME_KEYS=some, DESCRIBED=described, WINDOW=False, WIDE=tl.float32, PRECISION="tf32",
        )  # fmt: skip
        low = tensors(dtype, "q k v o")
        if described:
            low |= dict.fromkeys("kv", f"tensordesc<{dtype}[1, 1, {N}, {D}]>")
        for window in (False, True) if (dtype, some) == ("bf16", False) else (False,):
            given = low | pointers, constants | dict(WINDOW=window)
            kernel = compile_kernel(attend._attend, name, *given, warps, stages)
            yield f"attend {dtype} D={D} sparse={sparse} indexed={some} window={window}", kernel


def gather_kernels(name):
    pointers = dict.fromkeys("q_idx k_idx q_pos k_pos new_q_pos new_k_pos".split(), "*i32")
    for D, near in product((64, 128, 256), (0, gather_tokens.NEAR)):
        constants = dict(D=D, DV=D, D_TILE=D, DV_TILE=D, ROWS=gather_tokens.ROWS, NEAR=near)
        low = tensors("bf16", "q k v new_q new_k new_v")
        kernel = compile_kernel(gather_tokens._gather, name, low | pointers, constants, gather_tokens.WARPS)
        yield f"gather_tokens D={D} near={near}", kernel


def scatter_kernels(name):
    pointers = dict.fromkeys("ranks lows highs sinks".split(), "*i32") | {"short_lse": "*fp32", "lse": "*fp32"}
    for D, fill in product((64, 128, 256), (False, True)):
        M, N, warps, stages = (
            scatter_tokens.fill_tiles(D, torch.bfloat16, name) if fill else (scatter_tokens.COPIED, 16, 4, 2)
        )
        constants = dict(
            M=M, N=N, D=D, DV=D, D_TILE=D, DV_TILE=D, SOME=True, SHORT=True, FILL=fill, WIDE=tl.float32,
            PRECISION="tf32",
        )  # fmt: skip
        low = tensors("bf16", "q k v short_o o")
        kernel = compile_kernel(scatter_tokens._scatter, name, low | pointers, constants, warps, stages)
        yield f"scatter_tokens D={D} fill={fill}", kernel


def sink_kernels(name):
    m, warps = scatter_tokens.ADDED
    pointers = dict.fromkeys("q_pos k_pos".split(), "*i32") | {"lse": "*fp32"}
    for D, N in product((64, 128), (16, 64)):
        constants = dict(M=m, N=N, D=D, DV=D, D_TILE=D, DV_TILE=D, WIDE=tl.float32, PRECISION="tf32", o_d=1)
        low = tensors("bf16", "q k v o")
        yield f"sinks D={D} N={N}", compile_kernel(scatter_tokens._add_sinks, name, low | pointers, constants, warps)


def main(name):
    for kernels in (attend_kernels, gather_kernels, scatter_kernels, sink_kernels):
        for what, kernel in kernels(name):
            print(line(name, what, kernel), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
