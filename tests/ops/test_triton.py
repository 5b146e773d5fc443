"""The Triton kernels in Triton's interpreter (on a GPU where there is one), and compiled for GPUs that are not here."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from closeness import no_worse, same
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import blocks, problems, randn
from test_cpu import kinds

import sparsekit as sk
from sparsekit import Plan, Problem, SlidingWindow, attend, oracle

pytest.importorskip("triton", reason="the kernels are Triton's, and it is only made for Linux")
WHERE = "cuda" if torch.cuda.is_available() else "cpu"


@settings(max_examples=40)
@given(data=st.data())
def test_attend_is_the_oracle(data):
    p = data.draw(problems())
    plan = Plan(blocks=data.draw(blocks(p))) if data.draw(st.booleans()) else Plan()
    same(attend(p, plan, backend="triton"), oracle(p, plan))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("Q,K", [(389, 389), (130, 389), (1, 129)])
@pytest.mark.parametrize("D,Dv", [(64, 64), (40, 24)])
@pytest.mark.parametrize("causal", [True, False])
def test_the_error_is_that_of_plain_torch(dtype, Q, K, D, Dv, causal):
    """What lies beside the inputs is NaN: a kernel that reads over an end says so."""
    shapes = [(4, Q, D), (2, K, D), (2, K, Dv)]
    q, k, v = (poisoned(randn(i, 2, *shape, dtype=torch.float32).to(WHERE, dtype)) for i, shape in enumerate(shapes))
    p = Problem.of(q, k, v, causal)
    for name, plan in kinds(4, Q, K):
        if plan.fill is None and WHERE == "cpu":
            truth, plain = oracle(p, plan), attend(p, plan, backend="reference")
            out = attend(p, plan, backend="triton", compress="gather")
            no_worse(out.o, plain.o, truth.o, dtype)
            finite = truth.lse.isfinite()
            assert torch.equal(out.lse.isfinite(), finite), name
            no_worse(out.lse[finite], plain.lse[finite], truth.lse[finite], torch.float32)


def poisoned(x):
    """The same values, in the middle of a larger tensor of NaN."""
    room = torch.full((x.shape[0] + 2, x.shape[1] + 2, x.shape[2] + 256, x.shape[3] + 32), float("nan")).to(x)
    inside = room[1:-1, 1:-1, 128:-128, 16:-16]
    inside.copy_(x)
    return inside


def test_it_says_why_not():
    x = randn(0, 1, 1, 8, 4, dtype=torch.float32)
    p = Problem.of(x, x, x)
    kept = sk.Tokens.of(torch.ones(1, 1, 8, dtype=torch.bool))
    assert "gather first" in sk.why_not("triton", "attend", p, Plan(kept, kept))
    wide = randn(0, 1, 1, 8, 300, dtype=torch.float32)
    assert "300 is larger than 256" in sk.why_not("triton", "attend", Problem.of(wide, wide, wide), Plan())
    assert "there is no" in sk.why_not("triton", "sliding_window", p, Plan(kept, kept, fill=SlidingWindow(2)))
    if WHERE == "cpu":
        half = x.bfloat16()
        assert "bfloat16" in sk.why_not("triton", "attend", Problem.of(half, half, half), Plan())
        code = "import torch, sparsekit as sk; x = torch.ones(1, 1, 4, 4); p = sk.Problem.of(x, x, x)\n"
        code += "print(sk.why_not('triton', 'attend', p, sk.Plan()))"
        ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=not_interpreted())
        assert ran.stdout.strip() == "it needs a GPU, and the tensors are on cpu", ran.stderr


@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_100", "gfx942"])
def test_it_compiles_without_spills(target):
    """A process of its own, in which kernels are not interpreted; no GPU is needed."""
    script = Path(__file__).with_name("compile_triton.py")
    ran = subprocess.run([sys.executable, script, target], capture_output=True, text=True, env=not_interpreted())
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert ran.stdout.count("spills 0") == ran.stdout.count("spills") >= 8, ran.stdout


def not_interpreted():
    import os

    return {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {"PYTHONPATH": str(Path.cwd())}
