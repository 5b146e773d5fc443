"""Compile every Triton kernel for a GPU that need not be here: python compile_triton.py sm_80|sm_90|sm_100|gfx942

Prints a line a variant, with its spills in bytes (NVIDIA) or registers (AMD).
"""

import re
import subprocess
import sys
import tempfile
from itertools import product
from pathlib import Path

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from sparsekit_kernels.triton.attend import _attend, tiles

POINTERS = {"reach": "*i32", "whole": "*i32", "counts": "*i32", "indices": "*i32", "lse": "*fp32"}


def attend_variants():
    for dtype, D, sparse in product(("bf16", "fp16"), (64, 128, 256), (False, True)):
        M, N, warps = tiles(D)
        constants = dict(M=M, N=N, D=D, DV=D, D_TILE=D, DV_TILE=D, SPARSE=sparse, WIDE=tl.float32, PRECISION="tf32")
        yield dtype, warps, constants


def compile_attend(target, dtype, warps, constants):
    names = _attend.arg_names
    signature = {n: "constexpr" if n in constants else POINTERS.get(n, "i32") for n in names}
    signature |= {n: f"*{dtype}" for n in ("q", "k", "v", "o")} | {"scale": "fp32"}
    aligned = {"q", "k", "v", "o", "q_l", "k_l", "v_l", "q_h", "k_h", "v_h", "block_q", "block_k"}
    source = ASTSource(
        _attend,
        signature=signature,
        constexprs={(names.index(n),): value for n, value in constants.items()},
        attrs={(names.index(n),): [["tt.divisibility", 16]] for n in aligned},
    )
    return triton.compile(source, target=target, options={"num_warps": warps, "num_stages": 2})


def spills(kernel):
    if "amdgcn" in kernel.asm:
        return sum(int(n) for n in re.findall(r"[sv]gpr_spill_count:\s*(\d+)", kernel.asm["amdgcn"]))
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        usage = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True)
    return sum(int(n) for n in re.findall(r"(?:STACK|LOCAL):(\d+)", usage.stdout + usage.stderr))


def main(name):
    target = GPUTarget("hip", name, 64) if name.startswith("gfx") else GPUTarget("cuda", int(name[3:]), 32)
    for dtype, warps, constants in attend_variants():
        kernel = compile_attend(target, dtype, warps, constants)
        print(name, "attend", dtype, f"D={constants['D']}", f"sparse={constants['SPARSE']}", "spills", spills(kernel))


if __name__ == "__main__":
    main(sys.argv[1])
