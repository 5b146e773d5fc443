"""Tests of the benchmark's parts: inputs, clocks, dense baselines, and the origin of a record."""

import time

import pytest
import torch
from torch.nn.attention.flex_attention import create_mask, flex_attention
from torch.nn.functional import scaled_dot_product_attention

from bench.records import provenance, slug
from bench.speed import dense, timing
from bench.speed.contender import Contender, Truth, active, work
from bench.speed.inputs import SHAPES, Shape, from_model, lengths, structured, tiled
from sparsekit import FlexPrefill, Plan, SlidingWindow, TokenCoverage, attend, oracle

CPU = torch.device("cpu")


def test_lengths_are_written_as_people_write_them():
    assert lengths("32768, 128K,1m") == [32768, 131072, 1048576]


def test_structured_inputs_are_seeded_and_fit_the_shape():
    shape = Shape("small", 4, 2, 16)
    p, again = (structured(300, shape, torch.float32, CPU) for _ in range(2))
    assert p.q.shape == (1, 4, 300, 16) and p.k.shape == p.v.shape == (1, 2, 300, 16)
    assert torch.equal(p.q, again.q) and torch.equal(p.k, again.k)
    dense_mass = (p.q @ p.k.repeat_interleave(2, 1).mT * p.scale).tril().softmax(-1)
    assert dense_mass.amax(-1).mean() > 5 / 300, "attention is not flat"


def test_a_tiled_problem_has_the_scores_it_had():
    small = structured(64, Shape("small", 4, 2, 16), torch.float64, CPU)
    wide = tiled(small, Shape("wide", 12, 3, 48))
    assert wide.q.shape == (1, 12, 64, 48) and wide.k.shape == (1, 3, 64, 48)
    # the groups in turn, and in each its own query heads in turn
    heads = [0, 1, 0, 1, 2, 3, 2, 3, 0, 1, 0, 1]
    torch.testing.assert_close(oracle(wide).lse, oracle(small).lse[:, heads])
    torch.testing.assert_close(oracle(wide).o, oracle(small).o[:, heads].repeat(1, 1, 1, 3))


def test_inputs_of_the_model_are_a_layers_own():
    p = from_model(2048, SHAPES["llama-3.1-8b"], torch.float32, CPU)
    assert p.q.shape == (1, 32, 2048, 128) and p.k.shape == (1, 8, 2048, 128)
    assert torch.equal(p.k[:, 0], p.k[:, 2]) and not torch.equal(p.k[:, 0], p.k[:, 1])
    plan = TokenCoverage(tau=0.2)(p)
    assert plan.kept(p) < 0.9, "real attention is concentrated"
    with pytest.raises(ValueError, match="at most 131072 tokens"):
        from_model(2**20, SHAPES["llama-3.1-8b"], torch.float32, CPU)


@pytest.mark.parametrize("stage", [None, TokenCoverage(0.3, 4, 3, 0, sinks=2), FlexPrefill(0.6, block_size=16)])
def test_the_truth_by_head_is_the_oracle(stage):
    p = structured(200, Shape("small", 4, 2, 16), torch.float32, CPU)
    plan = stage(p) if stage else Plan()
    plan = Plan(plan.queries, plan.keys, plan.blocks, SlidingWindow(8, sinks=0))
    truth = Truth.of(p, plan)
    torch.testing.assert_close(truth.o, oracle(p, plan, truth.rows).o)
    right = attend(p, plan).o
    assert truth.error(right) <= 2 * truth.plain < 1e-5
    assert truth.error(right * 1.01) == pytest.approx(0.01, rel=1e-3)
    right[:, :, -1] = float("nan")
    assert not truth.error(right) <= 1
    assert work(p, plan) == plan.pairs(p).sum() and active(p, plan) >= work(p, plan) - 4 * 200 * 8


def test_a_step_gets_the_time_that_no_step_inside_it_has():
    clock, began = timing.StepClock(CPU), time.perf_counter()
    with clock("TokenCoverage"):
        time.sleep(0.02)
        with clock("window_scores"):
            time.sleep(0.05)
    time.sleep(0.01)
    with clock("attend"), clock("attend"):
        time.sleep(0.03)
    whole, ms = (time.perf_counter() - began) * 1e3, clock.ms()
    least = {"select": 20, "score": 50, "other": 10, "attend": 30}
    assert set(ms) == set(least) and all(ms[step] >= least[step] for step in least)
    assert sum(ms.values()) <= whole, "no moment counts twice"


def test_names_count_for_the_step_a_reader_knows():
    names = ("FlexPrefill", "Union", "select_tokens", "gather_tokens", "fill", "search", "attend")
    assert [timing.step_of(name) for name in names] == [
        "pattern", "pattern", "select", "compress", "fill", "search", "attend",
    ]  # fmt: skip


def test_each_turn_begins_with_another_contender():
    order = []
    three = [Contender(name, "here", "ours", lambda clock, name=name: order.append(name)) for name in "abc"]
    times = timing.turns(three, 3, CPU, lambda turns: turns)
    assert "".join(order) == "abcbcacababc"
    assert all(len(spent) == 3 for spent in times.values()), "the first turn is not counted"


def test_percentiles_are_interpolated():
    assert timing.percentiles([5.0, 1.0, 3.0, 2.0, 4.0, 6.0]) == {"p20": 2.0, "p50": 3.5, "p80": 5.0}


def test_yardsticks_answer_dense_attention():
    p = structured(256, Shape("grouped", 4, 2, 16), torch.float32, CPU)
    (one,) = dense.contenders("torch SDPA", p)
    assert Truth.of(p, Plan()).error(one.run(timing.nullcontext)) < 1e-5
    for name in ("FlashAttention-4", "FlexAttention"):
        with pytest.raises(dense.Skipped, match="GPU"):
            dense.contenders(name, p)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("length", [256, 300])
def test_the_lists_for_flex_attention_are_a_causal_mask(length):
    mask = dense.causal_mask(length, CPU)
    lower = create_mask(lambda b, h, q, k: q >= k, 1, 1, length, length, device="cpu")
    blocks = -(-length // dense.BLOCK)
    assert torch.equal(mask.to_dense()[0, 0].bool(), torch.ones(blocks, blocks).tril().bool())
    q, k, v = torch.randn(3, 1, 2, length, 16, generator=torch.Generator().manual_seed(0))
    ours = flex_attention(q, k, v, block_mask=mask)
    torch.testing.assert_close(ours, scaled_dot_product_attention(q, k, v, attn_mask=lower))


def test_provenance_without_git_is_what_the_user_says(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert provenance(CPU)["commit"] is None and provenance(CPU)["clean"] is None
    said = provenance(CPU, "0123abc-dirty")
    assert said["commit"] == "0123abc" and said["clean"] is False
    assert provenance(CPU, "0123abc")["clean"] is True
    assert said["run"] != provenance(CPU)["run"] and said["versions"]["torch"] == torch.__version__


def test_file_names_are_lower_case_with_dashes():
    assert slug("NVIDIA H100 80GB HBM3") == "nvidia-h100-80gb-hbm3"
