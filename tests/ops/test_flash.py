"""Tests of FlashAttention: our arguments and reasons to refuse, on any machine; its answers, on a GPU.

Where flash-attn-4 is installed, its calls are compiled, which needs no GPU.
"""

import os
import subprocess
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from closeness import no_worse, plain_torch, same
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import blocks, plans, problems, randn
from test_cpu import some
from torch._subclasses.fake_tensor import FakeTensorMode

import sparsekit as sk
from sparsekit import Blocks, Plan, Problem, SlidingWindow, Tokens, attend, dispatch, oracle
from sparsekit.problem import PAD, to_heads
from sparsekit_kernels import flash
from sparsekit_kernels.flash import attend as attend_by_flash
from sparsekit_kernels.flash import scatter_tokens as scatter_by_flash
from sparsekit_kernels.flash.attend import (
    answer,
    arguments,
    block_sizes,
    head_dims,
    irregular,
    refusal,
    third_or_second,
)

HOPPER, BLACKWELL = 9, 10


@pytest.fixture(autouse=True)
def backend(monkeypatch):
    monkeypatch.setitem(dispatch.BACKENDS, "flash", "sparsekit_kernels.flash")


def half(H=4, G=2, Q=8, K=8, D=16, Dv=16, dtype=torch.bfloat16, **rest):
    q, k, v = torch.zeros(1, H, Q, D, dtype=dtype), torch.zeros(1, G, K, D, dtype=dtype), torch.zeros(1, G, K, Dv)
    return Problem.of(q, k, v.to(dtype), **rest)


def grid(p, size):
    I, J = (-(-n // s) for n, s in zip((p.q.shape[2], p.k.shape[2]), size, strict=True))
    return Blocks.of(torch.ones(1, 1, I, J, dtype=torch.bool), size)


def by_the_documentation(
    q, k, v, softmax_scale, causal, seqused_q=None, seqused_k=None, block_sparse_tensors=None, window_size=None
):
    """Compute in plain torch what FlashAttention-4 documents; entries that it leaves undefined are NaN.

    From its source: it hides keys beyond the end only in the last block of a list.
    """
    (n, Q, H, _), K = q.shape, k.shape[1]
    k, v = (x.repeat_interleave(H // x.shape[2], 2) for x in (k, v))
    n_q, n_k = (
        torch.full((n, 1, 1, 1), size) if used is None else used.view(n, 1, 1, 1)
        for used, size in ((seqused_q, Q), (seqused_k, K))
    )
    row, col = torch.arange(Q)[:, None], torch.arange(K)
    pairs = (col < n_k).expand(n, H, Q, K)
    if causal:
        pairs = pairs & (col <= row + n_k - n_q)
    if window_size:
        before, after = window_size
        pairs = pairs & (col >= row + n_k - n_q - before) & (col <= row + n_k - n_q + after)
    if lists := block_sparse_tensors:
        counts, indices, (m, w) = lists["mask_block_cnt"], lists["mask_block_idx"], lists["block_size"]
        assert counts.dtype == indices.dtype == torch.int32 and indices.stride(3) == 1
        assert counts.shape[0] in (1, n) and counts.shape[1] in (1, H) and indices.shape[:3] == counts.shape
        assert counts.shape[2] == -(-Q // m) and indices.shape[3] <= -(-K // w)
        assert not lists["full_block_cnt"].any()
        listed = torch.arange(indices.shape[3]) < counts[..., None]
        tiles = torch.zeros(*counts.shape, -(-K // w) + 1, dtype=torch.bool)
        tiles = tiles.scatter(3, indices.long().where(listed, tiles.shape[3] - 1), True)[..., :-1]
        last = indices.gather(3, (counts[..., None] - 1).clamp(min=0).long())  # [n, h, I, 1]
        inner = tiles & (torch.arange(tiles.shape[3]) != last)
        inner, tiles = (x.repeat_interleave(m, 2).repeat_interleave(w, 3)[:, :, :Q, :K] for x in (inner, tiles))
        pairs = pairs & tiles if causal else (pairs | inner) & tiles
    scores = (torch.einsum("bqhd,bkhd->bhqk", q, k) * softmax_scale).masked_fill(~pairs, float("-inf"))
    lse = scores.logsumexp(3)
    o = torch.einsum("bhqk,bkhd->bqhd", (scores - lse[..., None]).exp().nan_to_num(0.0), v)
    unused = row[:, 0] >= n_q[:, 0]  # [n, 1, Q]
    return o.masked_fill(unused[:, 0, :, None, None], torch.nan), lse.masked_fill(unused, torch.nan)


@settings(max_examples=200)
@given(data=st.data())
def test_the_call_by_its_documentation_is_the_oracle(data):
    """Check that a problem that is refused without lists would get a wrong output: no refusal is needless."""
    p = data.draw(problems())
    outer = data.draw(plans(p, fill=False))
    p = outer.compress(p)
    if data.draw(st.booleans()):
        p = replace(p, queries_last=False, full=False)
    b = outer.blocks or (data.draw(blocks(p)) if data.draw(st.booleans()) else None)
    if b and data.draw(st.booleans()):
        b = b | data.draw(blocks(p, b.size))
    out = answer(p, *by_the_documentation(**arguments(p, b, data.draw(st.sampled_from([HOPPER, BLACKWELL])))))
    truth = oracle(p, Plan(blocks=b))
    n_q, n_k = ((to_heads(x, p.q.shape[1]) != PAD).sum(-1) for x in (p.q_pos, p.k_pos))
    if irregular(p, told=not (b and p.causal)) is None:
        same(out, truth)
    elif b is None and (n_q <= n_k).all():
        assert not torch.allclose(out.lse, truth.lse, atol=1e-10, rtol=1e-10)


@settings(max_examples=200)
@given(data=st.data())
def test_a_sliding_window_by_its_documentation_is_the_oracle(data):
    """Check whole problems, chunks, padding and gaps, wherever the backend does not refuse them."""
    p = data.draw(problems())
    outer = data.draw(plans(p, fill=False))
    short, fill = Plan(outer.queries, outer.keys).compress(p), SlidingWindow(data.draw(st.integers(1, 12)))
    if data.draw(st.booleans()):
        short = replace(short, queries_last=False, full=False, gapless=False)
    every = Tokens.of(torch.ones(1, 1, short.q.shape[2], dtype=torch.bool))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dispatch, "capability", lambda device: (HOPPER, 0))
        patch.setattr(attend_by_flash, "why_not", lambda p, plan: irregular(p, told=True))
        patch.setattr(scatter_by_flash, "fourth_missing", lambda major: None)
        reason = scatter_by_flash.why_not(short, Plan(every, fill=fill), None)
    if not short.causal:
        assert "causal" in reason
    elif reason is None:
        out = answer(short, *by_the_documentation(**arguments(short, None, HOPPER, fill.window)))
        same(out, oracle(replace(short, sliding_window=fill.window), Plan()))


@pytest.mark.parametrize(
    "reason,plan",
    [
        ("nothing to attend to", Plan(fill=SlidingWindow(4, sinks=0))),
        ("nothing to attend to", Plan(some(0, 8, 0.5, 1))),
    ],
)
def test_it_says_which_fills_are_not_its_own(reason, plan):
    assert reason in scatter_by_flash.why_not(half(), plan, None)


def flash_attention_4(monkeypatch, how="one kernel"):
    """Replace FlashAttention-4 by plain torch with a cache of kernels like its own; return the list of its calls."""
    called = []

    def kernel(q, k, v, out, lse, scale, causal, *room):
        out.copy_(by_the_documentation(q, k, v, scale, causal)[0])

    def forward(q, k, v, scale, causal):
        out, key = q.new_empty(*q.shape[:3], v.shape[3]), (q.dtype, causal)
        if key not in forward.compile_cache:
            forward.compile_cache[key] = kernel
        room = [q.new_empty(5)] if how == "with room of its own" else [None]
        for _ in range(2 if how == "two kernels" else 1):
            forward.compile_cache[key](q, k, v, out, None, scale, causal, *room)
        return out, None

    def flash_attn_func(q, k, v, softmax_scale, causal):
        called.append(causal)
        if how == "no cache":
            return by_the_documentation(q, k, v, softmax_scale, causal)
        return forward(q, k, v, softmax_scale, causal)

    if how != "no cache":
        forward.compile_cache = {}
    interface = SimpleNamespace(_flash_attn_fwd=forward)
    monkeypatch.setitem(sys.modules, "flash_attn", ModuleType("flash_attn"))
    cute = SimpleNamespace(flash_attn_func=flash_attn_func, interface=interface)
    monkeypatch.setitem(sys.modules, "flash_attn.cute", cute)
    monkeypatch.setattr(dispatch, "capability", lambda device: (HOPPER, 0))
    monkeypatch.setattr(attend_by_flash, "fourth_missing", lambda major: None)
    return called


@pytest.mark.parametrize("how", ["one kernel", "two kernels", "with room of its own", "no cache"])
@pytest.mark.parametrize("Dv", [8, 16])
@pytest.mark.parametrize("Q, K", [(20, 20), (7, 20), (1, 20)])
@pytest.mark.parametrize("causal", [True, False])
def test_what_known_shapes_call_is_dense_attention(how, Dv, Q, K, causal, monkeypatch):
    """Check that later calls launch the first call's kernel directly, or, where it works another way, call it again.

    A single query runs in torch, whose kernel splits the keys.
    """
    called = flash_attention_4(monkeypatch, how)
    shapes = (4, Q, 8), (2, K, 8), (2, K, Dv)
    found = None
    for seed in range(3):
        q, k, v = (randn(3 * seed + i, 2, *shape) for i, shape in enumerate(shapes))
        p = Problem.of(q, k, v, causal, scale=0.3)
        found = found or attend_by_flash.kernel(p, Plan())
        torch.testing.assert_close(found(q, k, v), oracle(p).o, atol=1e-10, rtol=1e-10)
    assert len(called) == (0 if Q == 1 and Dv == 8 else {"one kernel": 1, "no cache": 3}.get(how, 4))


@pytest.mark.parametrize("layout", ["gradients", "columns", "odd", "same"])
def test_tensors_that_no_kernel_was_compiled_for(layout, monkeypatch):
    """Check that FlashAttention-4 itself is called for them: it copies them, or computes gradients."""
    called = flash_attention_4(monkeypatch)
    x = [randn(i, 2, h, 20, 8) for i, h in enumerate((4, 2, 2))]
    if layout == "same":
        x[2] = x[1]  # then a kernel's arguments do not tell k from v
    p = Problem.of(*x)
    found = attend_by_flash.kernel(p, Plan())
    change = {
        "gradients": lambda x: x.requires_grad_(),
        "columns": lambda x: x.mT.contiguous().mT,
        "odd": lambda x: torch.cat([x, x[..., :1]], -1)[..., :8],
        "same": lambda x: x,
    }[layout]
    torch.testing.assert_close(found(*map(change, x)), oracle(p).o, atol=1e-10, rtol=1e-10)
    assert len(called) == 2


def test_others_launch_while_one_asks(monkeypatch):
    """Only the preparing thread's launch is held back, and afterwards the cache is as it was."""
    from threading import Thread

    flash_attention_4(monkeypatch)
    forward = sys.modules["flash_attn.cute"].interface._flash_attn_fwd
    cache = forward.compile_cache
    q, k, v = (randn(i, 2, 20, h, 8) for i, h in enumerate((4, 2, 2)))
    beside = []

    def attend(*x):
        other = Thread(target=lambda: beside.append(forward(*x, 0.3, True)[0]))
        other.start()
        other.join()
        return forward(*x, 0.3, True)

    assert flash.launch(attend, q, k, v) is not None
    torch.testing.assert_close(beside[0], by_the_documentation(q, k, v, 0.3, True)[0])
    assert forward.compile_cache is cache
    with pytest.raises(ZeroDivisionError):
        flash.launch(lambda *x: (1 / 0,), q, k, v)
    assert forward.compile_cache is cache


def test_other_shapes_have_no_kernel_alone(monkeypatch):
    monkeypatch.setattr(dispatch, "capability", lambda device: (HOPPER, 0))
    p, seen = half(), grid(half(), (8, 8))
    monkeypatch.setattr(attend_by_flash, "fourth_missing", lambda major: None)
    assert attend_by_flash.kernel(p, Plan(blocks=seen)) is None
    assert attend_by_flash.kernel(replace(p, full=False), Plan()) is None
    assert attend_by_flash.kernel(half(sliding_window=3), Plan()) is None
    assert attend_by_flash.kernel(half(D=12, Dv=12), Plan()) is None
    monkeypatch.setattr(attend_by_flash, "fourth_missing", lambda major: "it is not here")
    assert attend_by_flash.kernel(p, Plan()) is None


@pytest.mark.parametrize("h", [1, 2, 4])
@pytest.mark.parametrize("with_blocks", [False, True])
@pytest.mark.parametrize("told", [True, False])
def test_the_same_tokens_on_both_sides_are_regular(h, with_blocks, told):
    kept = torch.rand(2, h, 50, generator=torch.Generator().manual_seed(h)) < 0.4
    tokens = Tokens.of(kept)
    p = Problem.of(*(randn(i, 2, heads, 50, 8) for i, heads in enumerate((4, 2, 2))))
    short = Plan(tokens, tokens).compress(p)
    assert not short.full and irregular(short, told) is None
    assert irregular(replace(short, queries_last=False), told) is None


def test_padding_of_another_length_on_either_side():
    """The queries are the last keys in each sequence, but their rows are padded differently."""
    p = Problem.of(*(randn(i, 3, heads, 50, 8) for i, heads in enumerate((4, 2, 2))))
    kept = (
        torch.rand(3, 2, 50, generator=torch.Generator().manual_seed(5)) < torch.tensor([0.2, 0.5, 0.9])[:, None, None]
    )
    kept[..., -1] = True
    short = Plan(Tokens.of(kept & (torch.arange(50) > 30)), Tokens.of(kept)).compress(p)
    assert irregular(short, told=True) is None and "keep different tokens" in irregular(short, told=False)
    same(answer(short, *by_the_documentation(**arguments(short, None, HOPPER))), oracle(short, Plan()))


def test_lists_end_with_the_real_keys():
    p = Problem.of(*(randn(i, 3, heads, 50, 8) for i, heads in enumerate((4, 2, 2))), causal=False)
    keys = Tokens.of(torch.rand(3, 2, 50, generator=torch.Generator().manual_seed(6)) < 0.5)
    short = Plan(keys=keys).compress(p)
    every = grid(short, (8, 4))
    b = Blocks(every.counts.expand(3, -1, -1), every.indices.expand(3, -1, -1, -1), every.size, every.n)
    same(answer(short, *by_the_documentation(**arguments(short, b, HOPPER))), oracle(short, Plan(blocks=b)))


@pytest.mark.parametrize(
    "major,given,taken",
    [
        (9, (36, 20), (40, 24)),
        (9, (192, 64), (192, 64)),
        (10, (36, 20), (40, 24)),
        (10, (128, 64), (128, 64)),
        (10, (160, 100), (192, 128)),
        (10, (160, 160), (256, 256)),
        (11, (64, 200), (256, 256)),
    ],
)
def test_head_dims_are_filled_up_to_those_there_are(major, given, taken):
    p = half(D=given[0], Dv=given[1])
    assert head_dims(p, major) == taken
    call = arguments(p, None, major)
    assert (call["q"].shape[3], call["k"].shape[3], call["v"].shape[3]) == (taken[0], *taken)


def test_different_tokens_are_refused_in_words():
    p = Problem.of(*(randn(i, 2, heads, 50, 8) for i, heads in enumerate((4, 2, 2))))
    for plan in (Plan(some(1, 50, 0.5, 1), some(2, 50, 0.5, 1)), Plan(keys=some(3, 50, 0.5, 4))):
        short = plan.compress(p)
        assert "keep different tokens" in irregular(short, True) and "take triton" in irregular(short, False)
        assert irregular(replace(short, causal=False), True) is None
        assert irregular(replace(short, causal=False), False) is None
    ragged = Tokens.of(torch.rand(2, 4, 50, generator=torch.Generator().manual_seed(4)) < 0.5)
    short = Plan(keys=ragged).compress(replace(p, causal=False))
    assert "different lengths" in irregular(short, False) and irregular(short, True) is None


def test_what_is_known_is_not_looked_at():
    """Reading positions would make the host wait for the device, so known hints are used instead."""
    p = half(Q=5)
    unseen = replace(p, q_pos=None, k_pos=None)
    for causal in (True, False):
        for told in (True, False):
            assert irregular(replace(unseen, causal=causal), told) is None
    assert irregular(replace(unseen, full=False), told=True) is None


@pytest.mark.parametrize("major,reason", [(7, "8.0 or newer, and this one has 7.x"), (8, None), (12, None)])
def test_older_gpus_are_refused_for_all_ops(monkeypatch, major, reason):
    monkeypatch.setattr(dispatch, "capability", lambda device: (major, 0))
    said = flash.missing(torch.device("cuda"))
    assert said is reason is None or reason in said


@pytest.mark.parametrize(
    "reason,major,problem,plan",
    [
        ("float32 is not supported", HOPPER, half(dtype=torch.float32), Plan()),
        ("float64 is not supported", 8, half(dtype=torch.float64), Plan()),
        ("head dim 264 is larger than 256", HOPPER, half(D=264), Plan()),
        ("head dim 300 is larger than 256", BLACKWELL, half(Dv=300), Plan()),
        ("gather first", HOPPER, half(), Plan(queries=some(0, 8, 0.5, 1))),
        ("gather first", 12, half(), Plan(keys=some(0, 8, 0.5, 1))),
    ],
)
def test_it_says_why_not(reason, major, problem, plan):
    assert reason in refusal(problem, plan, major, None)


@pytest.mark.parametrize("D,Dv", [(64, 64), (128, 128), (40, 24), (36, 20), (192, 128), (256, 256), (1, 3)])
@pytest.mark.parametrize("major", [8, 9, 10, 11, 12])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_without_lists_it_runs_anywhere_from_ampere_on(D, Dv, major, dtype):
    assert refusal(half(D=D, Dv=Dv, dtype=dtype), Plan(), major, "it is not there") is None


@pytest.mark.parametrize("major,reason", [(8, "silently ignores them"), (12, "has no kernel for them")])
def test_lists_are_refused_where_there_is_no_kernel_for_them(major, reason):
    p = half(Q=256, K=256)
    said = refusal(p, Plan(blocks=grid(p, (128, 128))), major, flash.fourth_missing(major))
    assert "block lists need FlashAttention-4" in said and reason in said and f"{major}.x" in said


def test_lists_are_refused_where_flash_attention_4_is_not_installed():
    p = half(Q=256, K=256)
    missing = flash.fourth_missing(HOPPER) or "it cannot be imported (): pip install sparsekit[flash]"
    assert "pip install sparsekit[flash]" in refusal(p, Plan(blocks=grid(p, (128, 128))), HOPPER, missing)


@pytest.mark.parametrize(
    "major,D,Dv,size,fits",
    [
        (9, 128, 128, (128, 128), True),
        (9, 128, 128, (64, 64), True),
        (9, 64, 64, (192, 16), True),
        (9, 128, 128, (128, 256), False),  # a key block is one tile
        (9, 128, 128, (32, 64), False),
        (9, 128, 128, (128, 40), False),
        (9, 192, 128, (128, 128), True),
        (9, 192, 192, (128, 128), False),
        (9, 192, 192, (128, 112), True),
        (9, 256, 256, (128, 128), False),
        (9, 256, 256, (128, 64), True),
        (10, 128, 128, (256, 128), True),
        (10, 128, 128, (512, 384), True),
        (10, 128, 128, (128, 128), False),  # two tiles of 128 rows are computed together
        (10, 128, 128, (256, 64), False),
        (10, 256, 256, (128, 128), True),
        (11, 128, 128, (128, 128), False),
    ],
)
def test_block_sizes_are_those_of_the_kernels(major, D, Dv, size, fits):
    p = half(Q=1024, K=1024, D=D, Dv=Dv)
    reason = refusal(p, Plan(blocks=grid(p, size)), major, None)
    assert (reason is None) == fits
    assert fits or f"block size {size}" in reason and "take triton" in reason


def test_few_queries_fit_one_tile_of_blackwell():
    p = half(Q=32, K=1024)  # 64 rows with two heads a group
    assert block_sizes(p, BLACKWELL)[0] == 128 and block_sizes(half(Q=65, K=1024), BLACKWELL)[0] == 256


@pytest.mark.skipif(flash.fourth_missing(HOPPER) is not None, reason=f"flash-attn-4: {flash.fourth_missing(HOPPER)}")
@pytest.mark.parametrize("target", ["sm_90", "sm_100"])
def test_it_compiles(target):
    """Compile in a process of its own, with the GPU as target; it needs no GPU."""
    script = Path(__file__).with_name("compile_flash.py")
    path = os.pathsep.join([str(Path.cwd()), os.environ.get("PYTHONPATH", "")])
    hidden = os.environ | {"PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": ""}  # with a GPU they would run
    ran = subprocess.run([sys.executable, script, target], capture_output=True, text=True, env=hidden)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert ran.stdout.count("compiled in") >= 12, ran.stdout


@pytest.mark.parametrize("major", [8, HOPPER, 12])
@pytest.mark.parametrize("Q,K,causal", [(5, 9, True), (9, 9, True), (5, 9, False)])
def test_torchs_kernels_answer_in_our_shapes(major, Q, K, causal, monkeypatch):
    if not torch.cuda.is_available():  # a CUDA build of torch would call the driver
        monkeypatch.setattr("sparsekit_kernels.flash.attend._cudnn_can", lambda *_: False)
    with FakeTensorMode():
        shapes = (2, 8, Q, 36), (2, 2, K, 36), (2, 2, K, 20)
        q, k, v = (torch.empty(shape, dtype=torch.float16, device="cuda") for shape in shapes)
        out = third_or_second(Problem.of(q, k, v, causal), major)
    assert out.o.shape == (2, 8, Q, 20) and out.lse.shape == (2, 8, Q)
    assert out.o.dtype == torch.float16 and out.lse.dtype == torch.float32


def qkv(B, H, G, Q, K, D, Dv, dtype):
    shapes = ((H, Q, D), (G, K, D), (G, K, Dv))
    return [randn(i, B, *shape, dtype=torch.float32).to("cuda", dtype) for i, shape in enumerate(shapes)]


@pytest.mark.gpu
@pytest.mark.parametrize("Q,K,causal", [(300, 300, True), (300, 300, False), (130, 300, True), (1, 300, True)])
@pytest.mark.parametrize("D,Dv", [(64, 64), (128, 128), (36, 20)])
def test_torchs_kernels_are_no_worse_than_plain_torch(Q, K, causal, D, Dv):
    """Check the kernels that run without FlashAttention-4, even where it is installed."""
    p = Problem.of(*qkv(2, 8, 2, Q, K, D, Dv, torch.bfloat16), causal)
    out = third_or_second(p, torch.cuda.get_device_capability()[0])
    truth, plain = oracle(p), plain_torch(p)
    assert out.o.shape == truth.o.shape and out.lse.shape == truth.lse.shape
    no_worse(out.o, plain.o, truth.o, p.q.dtype)
    no_worse(out.lse, plain.lse, truth.lse, torch.float32)


def lists(seed, p, h, size, chance):
    """Return random block lists, every fifth of them empty."""
    B, (m, n) = p.q.shape[0], size
    shape = (B, h, -(-p.q.shape[2] // m), -(-p.k.shape[2] // n))
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < chance
    mask[:, :, ::5] = False
    return Blocks.of(mask.to(p.q.device), size)


def kinds(p):
    """Yield plans that reach every branch of the adapter on this GPU."""
    (B, H, Q, _), (G, K), where = p.q.shape, p.k.shape[1:3], p.q.device
    major = torch.cuda.get_device_capability(where)[0]
    yield "dense", Plan()
    if flash.fourth_missing(major) is None:
        step_m, step_n, most_n = block_sizes(p, major)
        for m, n in ((2 * step_m, most_n or step_n), (3 * step_m, step_n)):
            for h in {1, G, H}:
                yield f"blocks {m} {n} for {h} heads", Plan(blocks=lists(m + h, p, h, (m, n), 0.4))
    if Q == K:
        chance = torch.rand(B, H, Q, generator=torch.Generator().manual_seed(7)).to(where)
        for h in {1, G, H}:
            one = Tokens.of(chance[:, :h].argsort(-1) < -(-Q * 2 // 5))
            yield f"tokens for {h} heads", Plan(one, one)
        if flash.fourth_missing(major) is None:
            for h in {1, G, H}:
                ragged = Tokens.of(chance[:, :h] < torch.linspace(0.1, 0.9, B * h, device=where).view(B, h, 1))
                yield f"ragged tokens for {h} heads", Plan(ragged, ragged, fill=SlidingWindow(20, sinks=3))
                short = Plan(ragged, ragged).compress(p)
                size = block_sizes(short, major)[:2]
                yield f"ragged tokens and blocks, {h}", Plan(ragged, ragged, lists(11, short, H, size, 0.5))


SHAPES = [(1, 1), (1, 4097), (127, 127), (129, 129), (127, 1000), (1000, 1000)]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("Q,K", SHAPES)
@pytest.mark.parametrize("H,G,D,Dv", [(4, 4, 64, 64), (8, 2, 128, 128), (8, 1, 36, 20)])
@pytest.mark.parametrize("causal", [True, False])
def test_the_error_is_that_of_plain_torch(dtype, Q, K, H, G, D, Dv, causal):
    p = Problem.of(*qkv(3, H, G, Q, K, D, Dv, dtype), causal)
    for name, plan in kinds(p):
        compare(p, plan, name)


@pytest.mark.gpu
@pytest.mark.parametrize("D,Dv", [(192, 128), (160, 160), (256, 256)])
def test_wide_heads(D, Dv):
    p = Problem.of(*qkv(2, 4, 2, 300, 300, D, Dv, torch.bfloat16))
    for name, plan in kinds(p):
        compare(p, plan, name)


@pytest.mark.gpu
def test_a_long_odd_sequence():
    p = Problem.of(*qkv(1, 4, 1, 4097, 4097, 128, 128, torch.bfloat16))
    for name, plan in kinds(p):
        compare(p, plan, name)


@pytest.mark.gpu
@pytest.mark.parametrize("layout", ["rows", "transposed", "poisoned", "columns"])
def test_layouts_and_neighbours(layout):
    """Surround the inputs by NaN, which shows in the output of a kernel that reads beyond their ends."""
    from test_triton import poisoned

    change = {
        "rows": lambda x: x,
        "transposed": lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
        "poisoned": poisoned,
        "columns": lambda x: x.mT.contiguous().mT,
    }[layout]
    for Q, K in ((129, 129), (127, 1000), (1, 129)):
        p = Problem.of(*map(change, qkv(3, 8, 2, Q, K, 128, 128, torch.bfloat16)))
        for name, plan in kinds(p):
            compare(p, plan, name)


@pytest.mark.gpu
def test_lists_that_are_all_empty():
    p = Problem.of(*qkv(2, 8, 2, 300, 300, 128, 128, torch.bfloat16))
    major = torch.cuda.get_device_capability()[0]
    size = block_sizes(p, major)[:2]
    plan = Plan(blocks=lists(0, p, 8, size, -1.0))
    if reason := sk.why_not("flash", "attend", p, plan):
        pytest.skip(reason)
    out = attend(p, plan, backend="flash")
    assert not out.o.any() and (out.lse == float("-inf")).all()


@pytest.mark.gpu
def test_other_keys_than_queries_are_refused_or_right():
    p = Problem.of(*qkv(2, 8, 2, 300, 300, 128, 128, torch.bfloat16))
    idx = Plan(*(some(seed, 300, 0.5, 2) for seed in (1, 2)))
    plan = Plan(*(replace(t, idx=t.idx.cuda()) for t in (idx.queries, idx.keys)))
    with pytest.raises(sk.NoBackendError, match="different tokens"):
        attend(p, plan, backend="flash", compress="gather")
    compare(replace(p, causal=False), plan, "without causality")


@pytest.mark.gpu
def test_the_host_need_not_wait():
    p = Problem.of(*qkv(1, 8, 2, 512, 512, 128, 128, torch.bfloat16))
    one = Tokens.of((torch.arange(512, device="cuda") % 2 == 0).expand(1, 1, 512))
    short = Plan(one, one).compress(p)
    cases = [(p, Plan()), (short, Plan())]
    if flash.fourth_missing(torch.cuda.get_device_capability()[0]) is None:
        size = block_sizes(p, torch.cuda.get_device_capability()[0])[:2]
        cases.append((p, Plan(blocks=lists(0, p, 8, size, 0.5))))
    for problem, plan in cases:
        attend(problem, plan, backend="flash")  # compiles
        torch.cuda.set_sync_debug_mode("error")
        try:
            attend(problem, plan, backend="flash")
        finally:
            torch.cuda.set_sync_debug_mode("default")


def compare(p, plan, name, backend="flash"):
    truth, plain = oracle(p, plan), plain_torch(p, plan)
    out = attend(p, plan, backend=backend, compress="gather")
    assert out.o.dtype == p.q.dtype and out.lse.dtype == torch.float32, name
    no_worse(out.o, plain.o, truth.o, p.q.dtype)
    finite = truth.lse.isfinite()
    assert torch.equal(out.lse.isfinite(), finite), name
    assert not out.o[~finite].any(), name
    no_worse(out.lse[finite], plain.lse[finite], truth.lse[finite], torch.float32)


@pytest.mark.gpu
@pytest.mark.parametrize("Q,K", [(1000, 1000), (127, 1000), (1000, 4097)])
@pytest.mark.parametrize("H,G,D,Dv", [(4, 4, 64, 64), (8, 2, 128, 128), (8, 1, 36, 20)])
def test_windows_of_dropped_queries(Q, K, H, G, D, Dv):
    """Check problems with and without padding, choices for all heads or by head, and windows of one to all keys."""
    whole = Problem.of(*qkv(3, H, G, Q, K, D, Dv, torch.bfloat16))
    padded = replace(whole, full=False, **{f"{x}_pos": getattr(whole, f"{x}_pos").clone() for x in "qk"})
    padded.q_pos[..., -37:] = padded.k_pos[..., -37:] = PAD
    for p in (whole, padded):
        for h in {1, G, H}:
            kept = torch.rand(3, h, Q, generator=torch.Generator().manual_seed(h)) < 0.1
            for window, sinks in product((1, 100, 5000), (0, 3, 200)):
                plan = Plan(Tokens.of(kept.cuda()), fill=SlidingWindow(window, sinks))
                short = Plan(plan.queries).compress(p)
                said = sk.why_not("flash", "scatter_tokens", p, plan, short)
                assert (said is None) == (flash.fourth_missing(torch.cuda.get_device_capability()[0]) is None), said
                compare(p, plan, f"{h} choices, window {window}, {sinks} sinks", backend="auto")
