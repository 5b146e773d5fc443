"""Tests of the kernels for Hopper: the problems they refuse, that they compile, and, on such a GPU, their answers."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from closeness import no_worse, plain_torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import randn
from test_cpu import some, tiles

pytest.importorskip("triton.experimental.gluon", reason="the kernels are Gluon's, which comes with Triton on Linux")

import sparsekit as sk
from sparsekit import Blocks, Output, Plan, Problem, SlidingWindow, Tokens, attend, dispatch, oracle
from sparsekit.problem import PAD
from sparsekit_kernels.hopper import attend as hopper_attend
from sparsekit_kernels.hopper import scatter_tokens, window_scores

HERE = torch.cuda.is_available() and torch.version.hip is None and torch.cuda.get_device_capability()[0] == 9
on_hopper = [pytest.mark.gpu, pytest.mark.skipif(not HERE, reason="it needs a Hopper GPU")]


def problem(B=1, H=4, G=2, Q=300, K=300, D=128, dtype=torch.bfloat16, **more):
    shapes = (B, H, Q, D), (B, G, K, D), (B, G, K, D)
    return Problem.of(*(randn(i, *s, dtype=torch.float32).to(dtype) for i, s in enumerate(shapes)), **more)


def padded(p):
    """Return the same problem without its hints: only its positions describe the padding."""
    return Problem(p.q, p.k, p.v, p.q_pos, p.k_pos, p.scale)


FEW = Tokens.of(torch.arange(300)[None, None] % 10 == 0)
FILL = Plan(FEW, FEW, fill=SlidingWindow(64))


@pytest.mark.parametrize(
    "reason, p, plan",
    [
        ("nothing to attend to", problem(), Plan(FEW, FEW)),
        ("nothing to attend to", problem(), Plan(fill=SlidingWindow(64))),
        ("causal attention", problem(causal=False), FILL),
        ("causal attention", problem(sliding_window=50), FILL),
        ("65 sinks are more than 64", problem(), Plan(FEW, FEW, fill=SlidingWindow(64, sinks=65))),
        ("reads no positions", padded(problem()), FILL),
        ("float32 is not supported", problem(dtype=torch.float32), FILL),
    ],
)
def test_it_says_which_fills_are_not_its_own(reason, p, plan):
    assert reason in scatter_tokens.why_not(p, plan, None)


@pytest.mark.parametrize(
    "reason, p, asked",
    [
        ("no sums by distance", problem(), (256, True)),
        ("100 queries are fewer than 128", problem(), (100,)),
        ("100 queries are fewer than 128", problem(Q=100), (256,)),
        ("reads no positions", problem(sliding_window=50), (256,)),
        ("reads no positions", padded(problem()), (256,)),
        ("float32 is not supported", problem(dtype=torch.float32), (256,)),
    ],
)
def test_it_says_which_scores_are_not_its_own(reason, p, asked):
    assert reason in window_scores.why_not(p, *asked)


BLOCKS = tiles(1, 4, 300, 300, 128, 0.5)


@pytest.mark.parametrize(
    "reason, p, plan",
    [
        ("this plan has none", problem(), Plan()),
        ("gather first", problem(), Plan(FEW, FEW, BLOCKS)),
        ("sliding window", problem(sliding_window=50), Plan(blocks=BLOCKS)),
        (r"block size (64, 64)", problem(), Plan(blocks=tiles(1, 4, 300, 300, 64, 0.5))),
        (r"block size (128, 96)", problem(), Plan(blocks=Blocks.of(torch.ones(1, 1, 3, 4).bool(), (128, 96)))),
        ("float32 is not supported", problem(dtype=torch.float32), Plan(blocks=BLOCKS)),
        ("head dim 96 is not supported", problem(D=96), Plan(blocks=BLOCKS)),
    ],
)
def test_it_says_which_block_lists_are_not_its_own(reason, p, plan):
    assert reason in hopper_attend.why_not(p, plan)


@given(st.integers(1, 64))
def test_a_tile_has_128_rows_of_heads_that_share_their_keys(heads):
    of, rows, both = scatter_tokens.split(heads)
    assert of * rows == 64 and heads % (of * (1 + both)) == 0


def test_they_compile():
    """Check that no kernel serializes its tensor cores, and that only a few numbers of a tile spill."""
    script = Path(__file__).with_name("compile_hopper.py")
    given = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {"PYTHONPATH": str(Path.cwd())}
    ran = subprocess.run([sys.executable, script], capture_output=True, text=True, env=given)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    lines = ran.stdout.splitlines()
    assert len(lines) == 11 and all(line.endswith("KiB fits") for line in lines), ran.stdout
    spilled = {line: int(line.split("spills ")[1].split()[0]) for line in lines}
    assert all(n <= (0 if "window_scores" in line else 24) for line, n in spilled.items()), ran.stdout


def poisoned(x):
    """Return the same values on the GPU, in the middle of a larger tensor of NaN."""
    room = torch.full((x.shape[0] + 2, x.shape[1], x.shape[2] + 256, x.shape[3]), float("nan")).to("cuda", x.dtype)
    inside = room[1:-1, :, 128:-128]
    inside.copy_(x)
    return inside


def there(B, H, G, Q, K, D, dtype, token_major=False, **more):
    shapes = (B, H, Q, D), (B, G, K, D), (B, G, K, D)
    tensors = [poisoned(randn(i, *s, dtype=torch.float32).to(dtype)) for i, s in enumerate(shapes)]
    if token_major:
        tensors = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in tensors]
    return Problem.of(*tensors, **more)


class TestOnHopper:
    """Tests that need a Hopper GPU."""

    pytestmark = on_hopper

    @pytest.mark.parametrize("token_major", [False, True])
    @pytest.mark.parametrize(
        "B,H,G,Q,K,D,window,sinks,dtype",
        [
            (1, 4, 1, 2048, 2048, 128, 512, 16, torch.bfloat16),
            (2, 6, 1, 1000, 1000, 128, 512, 16, torch.bfloat16),
            (1, 7, 1, 1300, 1300, 128, 100, 4, torch.float16),
            (2, 1, 1, 700, 700, 128, 1, 16, torch.bfloat16),
            (1, 3, 3, 700, 700, 64, 1, 0, torch.bfloat16),
            (1, 7, 1, 300, 700, 128, 30, 0, torch.bfloat16),
            (1, 8, 2, 1111, 3000, 128, 512, 64, torch.bfloat16),
            (2, 16, 2, 37, 900, 128, 64, 0, torch.bfloat16),
            (1, 8, 2, 513, 513, 128, 4096, 16, torch.bfloat16),
            (1, 8, 2, 2048, 2048, 64, 512, 20, torch.float16),
            (1, 8, 8, 1537, 1537, 128, 300, 33, torch.bfloat16),
            (1, 16, 2, 5, 5, 128, 3, 2, torch.bfloat16),
        ],
    )
    def test_a_window_with_sinks(self, B, H, G, Q, K, D, window, sinks, dtype, token_major):
        p = there(B, H, G, Q, K, D, dtype, token_major)
        every = Plan(queries=Tokens.of(torch.zeros(1, 1, Q, dtype=torch.bool)), fill=SlidingWindow(window, sinks))
        every = Plan(Tokens(every.queries.idx.cuda(), Q, every.queries.full), fill=every.fill)
        assert sk.why_not("hopper", "scatter_tokens", p, every, None) is None
        out = scatter_tokens.window_and_sinks(p, window, sinks)
        rows = torch.linspace(0, Q - 1, min(Q, 200), device="cuda").long().unique()
        truth, plain = oracle(p, every, rows), plain_torch(p, every, rows)
        no_worse(out.o[:, :, rows], plain.o, truth.o, dtype)
        no_worse(out.lse[:, :, rows], plain.lse, truth.lse, torch.float32)

    def test_kept_queries_get_their_rows(self):
        p, kept = there(2, 8, 2, 1000, 1000, 128, torch.bfloat16), some(1, 1000, 0.2, 8, 2)
        kept = Tokens(kept.idx.cuda(), kept.n, kept.full)
        plan = Plan(kept, kept, fill=SlidingWindow(100))
        S = kept.idx.shape[-1]
        short = Output(torch.full((2, 8, S, 128), 7.0, device="cuda").bfloat16(), torch.full((2, 8, S), 5.0).cuda())
        out = dispatch.run("scatter_tokens", "cuda", p, plan, short, backend="hopper")
        mask = kept.kept()
        assert (out.o[mask] == 7).all() and (out.lse[mask] == 5).all()
        no_worse(out.o[~mask], plain_torch(p, plan).o[~mask], oracle(p, plan).o[~mask], torch.bfloat16)

    @pytest.mark.parametrize("padding", [False, True])
    @pytest.mark.parametrize(
        "B,H,G,Q,K,D,size,density,dtype,causal",
        [
            (1, 4, 1, 2048, 2048, 128, (128, 128), 0.3, torch.bfloat16, True),
            (2, 6, 2, 1500, 1500, 128, (128, 128), 1.0, torch.bfloat16, True),
            (1, 7, 1, 1000, 1000, 128, (128, 64), 0.2, torch.float16, True),
            (1, 8, 2, 2100, 2100, 64, (256, 256), 0.3, torch.bfloat16, True),
            (2, 4, 4, 700, 1900, 128, (128, 192), 0.4, torch.bfloat16, True),
            (1, 16, 2, 4097, 4097, 128, (128, 128), 0.05, torch.bfloat16, True),
            (1, 4, 2, 500, 300, 64, (128, 128), 0.5, torch.bfloat16, False),
            (3, 2, 1, 5, 5, 128, (128, 128), 1.0, torch.bfloat16, True),
            (1, 32, 8, 16384, 16384, 128, (128, 128), 0.05, torch.bfloat16, True),
        ],
    )
    def test_block_lists(self, B, H, G, Q, K, D, size, density, dtype, causal, padding):
        """Some lists are empty."""
        p = there(B, H, G, Q, K, D, dtype, causal=causal)
        I, J = -(-Q // size[0]), -(-K // size[1])
        mask = torch.rand(B, H, I, J, generator=torch.Generator().manual_seed(Q)) < density
        mask[:, ::3, ::4] = False
        plan = Plan(blocks=Blocks.of(mask.cuda(), size))
        if padding:
            k_pos, ends = torch.arange(K, device="cuda"), torch.arange(B, 0, -1, device="cuda") * (K - 1) // B
            q_pos = (k_pos[-Q:] if causal else torch.arange(Q, device="cuda")).expand(B, 1, Q).int()
            k_pos = k_pos.expand(B, 1, K).masked_fill(k_pos >= ends[:, None, None], PAD).int()
            p = Problem(p.q, p.k, p.v, k_pos if Q == K else q_pos, k_pos, p.scale, causal)
        rows = torch.linspace(0, Q - 1, min(Q, 200), device="cuda").long().unique()
        truth, plain = oracle(p, plan, rows), plain_torch(p, plan, rows)
        out = attend(p, plan, backend="hopper")
        no_worse(out.o[:, :, rows], plain.o, truth.o, dtype)
        seen = truth.lse.isfinite()
        assert torch.equal(out.lse[:, :, rows].isfinite(), seen)
        no_worse(out.lse[:, :, rows][seen], plain.lse[seen], truth.lse[seen], torch.float32)
        again = attend(p, plan, backend="hopper")
        assert torch.equal(out.o, again.o) and torch.equal(out.lse, again.lse)

    @pytest.mark.parametrize(
        "B,H,G,Q,K,D,window,dtype,causal",
        [
            (1, 4, 1, 2048, 2048, 128, 512, torch.bfloat16, True),
            (2, 6, 2, 1500, 1500, 128, 512, torch.bfloat16, True),
            (1, 7, 1, 1000, 1000, 128, 200, torch.float16, True),
            (2, 8, 2, 300, 777, 128, 128, torch.bfloat16, True),
            (1, 2, 2, 300, 300, 64, 300, torch.bfloat16, True),
            (1, 12, 2, 4096, 4096, 128, 512, torch.bfloat16, True),
            (1, 4, 2, 500, 300, 128, 512, torch.bfloat16, False),
        ],
    )
    def test_scores_of_the_last_queries(self, B, H, G, Q, K, D, window, dtype, causal):
        p = there(B, H, G, Q, K, D, dtype, causal=causal)
        wide = Problem.of(p.q.double(), p.k.double(), p.v.double(), causal=causal)
        mine = dispatch.run("window_scores", "cuda", p, window, backend="hopper")
        truth, plain = (dispatch.run("window_scores", "cuda", x, window, backend="reference") for x in (wide, p))
        no_worse(mine, plain, truth, torch.float32)
        again = dispatch.run("window_scores", "cuda", p, window, backend="hopper")
        assert torch.equal(mine, again)

    @pytest.mark.parametrize("backend", ["hopper", "triton"])
    @pytest.mark.parametrize("of, bad", [("q", float("nan")), ("q", float("inf")), ("k", float("nan"))])
    def test_scores_of_rows_that_are_no_numbers(self, of, bad, backend):
        p = there(1, 4, 2, 700, 700, 128, torch.bfloat16)
        getattr(p, of)[:, 1, 600] = bad
        wide = Problem.of(p.q.double(), p.k.double(), p.v.double())
        mine = dispatch.run("window_scores", "cuda", p, 256, backend=backend)
        truth, plain = (dispatch.run("window_scores", "cuda", x, 256, backend="reference") for x in (wide, p))
        assert mine.isfinite().all() and truth.isfinite().all()
        no_worse(mine, plain, truth, torch.float32)
