"""Compiles our calls of FlashAttention-4 for a GPU that need not be here: python compile_flash.py sm_90|sm_100

It prints a line for each variant. Tensors are torch's fake ones, which have shapes but no memory.
"""

import os
import sys
import time

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from sparsekit import Blocks, Problem
from sparsekit_kernels.flash.attend import fourth

BF16, FP16 = torch.bfloat16, torch.float16
DENSE = dict(H=8, G=2, Q=1024, K=1024, D=128, dtype=BF16, causal=True, lengths=0, lists=0, size=None, window=None)
VARIANTS = {
    "both": [
        dict(),
        dict(dtype=FP16),
        dict(Q=700, K=4097, G=8, D=64),
        dict(D=36, Dv=20),
        dict(D=256),
        dict(lengths=1),
        dict(lengths=8, dtype=FP16),
        dict(window=128),
        dict(window=128, Q=700, K=4097, D=64),
    ],
    "sm_90": [
        dict(causal=False),
        dict(Q=1, K=4097),
        dict(lengths=8, causal=False),
        dict(lengths=8, window=128),
        dict(lists=8, size=(128, 128)),
        dict(lists=8, size=(128, 128), dtype=FP16),
        dict(lists=2, size=(128, 128), causal=False),
        dict(lists=1, size=(128, 128)),
        dict(lists=8, size=(64, 64)),
        dict(lists=8, size=(64, 16), D=64),
        dict(lists=8, size=(192, 96), D=64, causal=False),
        dict(lists=8, size=(192, 128), D=96, causal=False),
        dict(lists=8, size=(256, 48)),
        dict(lists=8, size=(128, 128), D=36, Dv=20),
        dict(lists=8, size=(128, 128), D=192, Dv=128),
        dict(lists=8, size=(128, 112), D=192),
        dict(lists=8, size=(64, 80), D=256),
        dict(lists=8, size=(64, 64), Q=127, K=1000),
        dict(lists=8, size=(128, 128), lengths=8),
        dict(lists=8, size=(128, 128), lengths=8, causal=False),
        dict(lists=1, size=(128, 128), lengths=2, causal=False),
    ],
    "sm_100": [  # other cases ask the driver for the number of processors
        dict(D=160, Dv=100),
        dict(lists=8, size=(256, 128)),
        dict(lists=8, size=(256, 128), dtype=FP16, D=64),
        dict(lists=1, size=(256, 256)),
        dict(lists=8, size=(512, 128)),
        dict(lists=8, size=(256, 128), D=36, Dv=20),
        dict(lists=8, size=(256, 128), D=192, Dv=128),
        dict(lists=8, size=(128, 128), D=256),
        dict(lists=8, size=(256, 128), lengths=8),
    ],
}


def compile_one(H, G, Q, K, D, dtype, causal, lengths, lists, size, window, major, Dv=None, B=2):
    def empty(*shape, dtype=torch.int32):
        return torch.empty(*shape, dtype=dtype, device="cuda")

    q, k, v = empty(B, H, Q, D, dtype=dtype), empty(B, G, K, D, dtype=dtype), empty(B, G, K, Dv or D, dtype=dtype)
    h = max(lengths, 1)
    p = Problem(q, k, v, empty(B, h, Q), empty(B, h, K), 0.1, causal, queries_last=True, full=not lengths)
    blocks = None
    if size:
        I, J = -(-Q // size[0]), -(-K // size[1])
        blocks = Blocks(empty(B, lists, I), empty(B, lists, I, min(3, J)), size, J)
    out = fourth(p, blocks, major, window)
    assert out.o.shape == (B, H, Q, Dv or D) and out.lse.shape == (B, H, Q)


def main(target):
    os.environ |= {"FLASH_ATTENTION_ARCH": target, "CUTE_DSL_ARCH": f"{target}a", "FLASH_ATTENTION_NUM_SMS": "132"}
    for variant in VARIANTS["both"] + VARIANTS[target]:
        start = time.perf_counter()
        with FakeTensorMode():
            compile_one(**DENSE | variant, major=int(target[3:]) // 10)
        said = " ".join(f"{name}={value}" for name, value in variant.items())
        print(target, "attend", said, f"compiled in {time.perf_counter() - start:.1f} s", flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
