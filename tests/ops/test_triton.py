"""Tests of the Triton kernels in its interpreter, and compiled for several GPUs; test_gpu.py runs them on a GPU."""

import math
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest
import torch
from closeness import no_worse, plain_torch, same
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from strategies import covering, padded, plans, problems, randn, tokens
from test_cpu import kinds

import sparsekit as sk
from sparsekit import Output, Plan, Problem, SlidingWindow, Tokens, Zeros, attend, dispatch, oracle
from sparsekit.problem import PAD, to_heads

pytest.importorskip("triton", reason="the kernels are Triton's, and it is only made for Linux")
WHERE = "cuda" if torch.cuda.is_available() else "cpu"
interpreted = pytest.mark.skipif(WHERE == "cuda", reason="the interpreter's: on a GPU test_gpu.py runs the kernels")


@interpreted
@settings(max_examples=40)
@given(data=st.data(), mode=st.sampled_from(["gather", "indexed"]))
def test_attend_is_the_oracle(data, mode):
    """With compress "indexed" the kernel reads kept tokens in place, and writes output rows to their places."""
    p = data.draw(problems(most=12))
    p = replace(p, scale=p.scale * data.draw(st.sampled_from([1, 1, 0, -2])))
    plan = data.draw(plans(p))
    same(attend(p, plan, backend="triton", compress=mode), oracle(p, plan))


@interpreted
@settings(max_examples=40)
@given(data=st.data(), window=st.integers(1, 9))
def test_attend_keeps_to_a_window(data, window):
    """The window counts positions; neighbouring kept tokens may be far apart in them."""
    p = data.draw(problems(causal=True, most=12))
    p = Problem.of(p.q, p.k, p.v, sliding_window=window)
    plan = replace(data.draw(plans(p)), fill=None)
    same(dispatch.run("attend", "cpu", p, plan, backend="triton"), oracle(p, plan))


@interpreted
@settings(max_examples=25)
@given(data=st.data(), mode=st.sampled_from(["gather", "indexed"]), bad=st.sampled_from([math.nan, math.inf]))
def test_what_is_not_finite_in_a_later_key_reaches_no_earlier_row(data, mode, bad):
    p = data.draw(problems(causal=True, square=True, most=12))
    plan, cut = data.draw(plans(p)), data.draw(st.integers(0, p.k.shape[2]))
    k = p.k.clone()
    k[:, :, cut:, 0] = bad
    before, after = (attend(x, plan, backend="triton", compress=mode) for x in (p, replace(p, k=k)))
    same(*(Output(x.o[:, :, :cut], x.lse[:, :, :cut]) for x in (before, after)))


@interpreted
@pytest.mark.parametrize("scale", [1e-45, -1e-40, 0.0, 1e30])
def test_a_scale_may_be_tiny_or_huge(scale):
    """Check a scale that is 0 in float32: a hidden score of -inf times 0 would be NaN."""
    x = [randn(i, 1, h, 37, 16, dtype=torch.float32) for i, h in enumerate((4, 2, 2))]
    p = Problem.of(*x, scale=scale)
    for _, plan in kinds(4, 37, 37, B=1):
        out, truth = attend(p, plan, backend="triton"), oracle(p, plan)
        torch.testing.assert_close(out.o, truth.o.float(), atol=1e-5, rtol=1e-5)
    for seen in (dispatch.run("window_scores", "cpu", p, 5, True, backend=b) for b in ("triton", "reference")):
        assert seen.isfinite().all() and (scale > 1 or ((seen.sum(-1) - 1).abs() < 1e-5).all())


@interpreted
@settings(max_examples=60)
@given(data=st.data())
def test_gathering_is_compressing(data):
    p = data.draw(problems())
    plan = data.draw(plans(p))
    short, expected = dispatch.run("gather_tokens", "cpu", p, plan, backend="triton"), plan.compress(p)
    for name in ("q", "k", "v", "q_pos", "k_pos"):
        assert torch.equal(getattr(short, name), getattr(expected, name)), name
        assert getattr(short, name).dtype == getattr(expected, name).dtype
    assert (short.queries_last, short.full) == (expected.queries_last, expected.full)


@interpreted
@pytest.mark.parametrize("kept", [[0, 3], [100, 1], [299, 300], [128, 64]])
@pytest.mark.parametrize("alike", [True, False])
def test_padding_far_from_what_is_kept_is_neither_written_nor_read(kept, alike):
    """Check tokens with room for all. Padding in the tile of a kept row is read, and so it is zero."""
    x = [randn(i, 1, h, 300, 16) for i, h in enumerate((2, 1, 1))]
    p, slot = Problem.of(*x), torch.arange(300)
    tokens = lambda counts: Tokens(torch.stack([slot.where(slot < n, 300) for n in counts])[None].int(), 300)  # noqa: E731
    queries = tokens(kept)
    plan = Plan(queries, queries if alike else tokens(kept[:1]))
    with mock.patch("sparsekit_kernels.triton.gather_tokens.NEAR", 64), poisoned_room():
        short = dispatch.run("gather_tokens", "cpu", replace(p, loose=True), plan, backend="triton")
        out = attend(p, plan, backend="triton")
    same(out, oracle(p, plan))
    expected = plan.compress(p)
    assert torch.equal(short.q_pos, expected.q_pos) and torch.equal(short.k_pos, expected.k_pos)
    for mine, theirs in ((short.q, expected.q), (short.k, expected.k), (short.v, expected.v)):
        assert mine.shape == theirs.shape
        for h, n in enumerate(kept[: mine.shape[1]]):
            assert torch.equal(mine[:, h, : n + 64], theirs[:, h, : n + 64])
            assert mine[:, h, n + 2 * 64 :].isnan().all()


@interpreted
@settings(max_examples=30)
@given(data=st.data())
def test_rows_are_put_over_others(data):
    from sparsekit_kernels.triton.scatter_tokens import put_rows

    p = data.draw(problems())
    plan = Plan(data.draw(tokens(p, "q")))
    short, out = oracle(plan.compress(p), Plan()), oracle(p, Plan(keys=data.draw(tokens(p, "k"))))
    put, kept = plan.decompress(short), to_heads(plan.queries.kept(), p.q.shape[1])
    expected = Output(torch.where(kept[..., None], put.o, out.o), torch.where(kept, put.lse, out.lse))
    put_rows(plan.queries, short, out)
    same(out, expected)


@interpreted
@settings(max_examples=30)
@given(
    data=st.data(), window=st.integers(1, 9), sinks=st.sampled_from([1, 3, 17, 103, 2**31 - 1]),
    later=st.sampled_from([0, 0, 100]),
)  # fmt: skip
def test_sinks_are_added_to_what_the_window_gives(data, window, sinks, later):
    """Sinks are added for every query, wherever its sequence begins; padding rows do not change."""
    from sparsekit_kernels.triton.scatter_tokens import add_sinks

    p = data.draw(problems(causal=True, most=40) | padded())
    assume(p.causal)
    p = replace(p, **{x: getattr(p, x) + later * (getattr(p, x) != PAD) for x in ("q_pos", "k_pos")})
    alone, both = (
        oracle(p, Plan(Tokens.of(torch.zeros(1, 1, p.q.shape[2], dtype=torch.bool)), fill=SlidingWindow(window, n)))
        for n in (0, sinks)
    )
    add_sinks(p, SlidingWindow(window, sinks), alone)
    same(alone, both)


@interpreted
@settings(max_examples=60)
@given(data=st.data())
def test_scattering_is_decompressing_with_the_fill(data):
    p = data.draw(problems())
    plan = data.draw(plans(p))
    short = oracle(plan.compress(p), Plan(blocks=plan.blocks))
    same(
        dispatch.run("scatter_tokens", "cpu", p, plan, short, backend="triton"),
        dispatch.run("scatter_tokens", "cpu", p, plan, short, backend="reference"),
    )
    if plan.fill not in (None, Zeros()):
        fills = (dispatch.run("sliding_window", "cpu", p, plan, backend=b) for b in ("triton", "reference"))
        same(*fills)


@interpreted
@pytest.mark.parametrize(
    "gpu,dtype,lengths,dims,causal",
    covering(
        2,
        ["sm_80", "sm_90"],  # through pointers, and through tensor descriptors
        [torch.float32, torch.float16],
        [(69, 69), (33, 69), (1, 65)],  # queries, keys: more than one tile of each
        [(64, 64), (40, 24)],  # head dims of keys and values
        [True, False],
    ),
)
def test_the_error_is_that_of_plain_torch(gpu, dtype, lengths, dims, causal, monkeypatch):
    """Surround the inputs by NaN, which shows in the output of a kernel that reads beyond their ends."""
    (Q, K), (D, Dv) = lengths, dims
    monkeypatch.setattr("sparsekit_kernels.triton.attend.target", lambda device: gpu)
    shapes = [(4, Q, D), (2, K, D), (2, K, Dv)]
    q, k, v = (poisoned(randn(i, 1, *shape, dtype=torch.float32).to(WHERE, dtype)) for i, shape in enumerate(shapes))
    p = Problem.of(q, k, v, causal)
    for name, plan in kinds(4, Q, K, B=1):
        truth, plain = oracle(p, plan), plain_torch(p, plan)
        for mode in ("gather", "indexed") if plan.queries else ("gather",):
            out = attend(p, plan, backend="triton", compress=mode)
            assert out.o.dtype == dtype and out.lse.dtype == torch.float32, (name, mode)
            no_worse(out.o, plain.o, truth.o, dtype)
            finite = truth.lse.isfinite()
            assert torch.equal(out.lse.isfinite(), finite), (name, mode)
            no_worse(out.lse[finite], plain.lse[finite], truth.lse[finite], torch.float32)


def poisoned(x):
    """Return the same values, in the middle of a larger tensor of NaN."""
    room = torch.full((x.shape[0] + 2, x.shape[1] + 2, x.shape[2] + 256, x.shape[3] + 32), float("nan")).to(x)
    inside = room[1:-1, 1:-1, 128:-128, 16:-16]
    inside.copy_(x)
    return inside


@contextmanager
def poisoned_room():
    make = torch.Tensor.new_empty, torch.empty, torch.empty_like

    def full(x):
        return x.fill_(
            math.nan if x.is_floating_point() else True if x.dtype == torch.bool else torch.iinfo(x.dtype).max
        )

    with (
        mock.patch.object(torch.Tensor, "new_empty", lambda *a, **k: full(make[0](*a, **k))),
        mock.patch.object(torch, "empty", lambda *a, **k: full(make[1](*a, **k))),
        mock.patch.object(torch, "empty_like", lambda *a, **k: full(make[2](*a, **k))),
    ):
        yield


def test_it_says_why_not():
    x = randn(0, 1, 1, 8, 4, dtype=torch.float32)
    p = Problem.of(x, x, x)
    kept = sk.Tokens.of(torch.ones(1, 1, 8, dtype=torch.bool))
    assert "not a sliding window" in sk.why_not("triton", "sliding_window", p, Plan(kept, kept))
    wide = randn(0, 1, 1, 8, 300, dtype=torch.float32)
    assert "300 is larger than 256" in sk.why_not("triton", "attend", Problem.of(wide, wide, wide), Plan())
    filled, wide = Plan(kept, kept, fill=SlidingWindow(2, sinks=0)), Problem.of(wide, wide, wide)
    assert "300 is larger than 256" in sk.why_not("triton", "scatter_tokens", wide, filled, oracle(wide))
    if WHERE == "cpu":
        half = x.bfloat16()
        assert "bfloat16" in sk.why_not("triton", "attend", Problem.of(half, half, half), Plan())


@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_100", "gfx942"])
def test_it_compiles_without_spills(target):
    """Compile in a process of its own, in which kernels are not interpreted; it needs no GPU."""
    script = Path(__file__).with_name("compile_triton.py")
    ran = subprocess.run([sys.executable, script, target], capture_output=True, text=True, env=not_interpreted())
    assert ran.returncode == 0, ran.stdout + ran.stderr
    lines = ran.stdout.splitlines()
    assert len(lines) >= 15 and all("spills 0 " in line and line.endswith("fits") for line in lines), ran.stdout


def not_interpreted():
    import os

    return {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {
        "PYTHONPATH": os.pathsep.join([str(Path.cwd()), os.environ.get("PYTHONPATH", "")])
    }
