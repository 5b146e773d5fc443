"""Tests of the attention on the first keys against its definition, and of the warning against the plan's pairs."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import padded, problems, randn, whole_plans, windowed
from torch.utils._python_dispatch import TorchDispatchMode

from sparsekit import (
    BlockTopK,
    Decompress,
    FlexPrefill,
    Pipeline,
    Plan,
    Problem,
    SlidingWindow,
    Streaming,
    TokenCoverage,
    oracle,
)
from sparsekit.calibrate import LayerProfile, sinks_left_out
from sparsekit.fills import SINKS
from sparsekit.problem import to_heads
from sparsekit.report import sampled_rows
from sparsekit.sinks import HEAD_RESTS, RESTS, Sinks, measure, over_prompts, share

MOST = 3 * SINKS  # most keys of a problem here, so that many queries see more than the sinks
ANY = st.one_of(problems(most=MOST), windowed(most=MOST), padded(most=MOST))


def by_definition(p, plan, rows):
    """Compute from the whole matrix which queries count, their mass on the sinks, and the part the plan drops."""
    k = to_heads(p.k, p.q.shape[1])
    probability = torch.where(p.visible(), (p.q @ k.mT * p.scale - oracle(p).lse[..., None]).exp(), 0.0)
    sink = to_heads(p.k_pos, p.q.shape[1])[:, :, None] < SINKS
    counts = (p.visible() & ~sink).any(-1)[:, :, rows]
    mass = (probability * sink).sum(-1)[:, :, rows]
    lost = (probability * (sink & ~plan.pairs(p))).sum(-1)[:, :, rows]
    return counts, mass, lost


@given(st.data())
def test_mass_is_that_of_a_full_softmax_and_the_warning_is_where_the_pairs_leave_it_out(data):
    p = data.draw(ANY)
    plan, rows = data.draw(whole_plans(p)), sampled_rows(p)[:: data.draw(st.integers(1, 3))]
    counts, mass, lost = by_definition(p, plan, rows)
    found = measure(p, rows, plan)
    if not counts.any((0, 2)).all():
        assert found is None, "a head none of whose queries sees more than the sinks"
        return
    expected = [mass[:, h][counts[:, h]].mean().item() for h in range(p.q.shape[1])]
    assert found.heads == pytest.approx(expected, rel=1e-9)
    without = measure(p, rows)
    assert without.heads == found.heads and without.warning() is None
    out = counts & (lost >= RESTS) & (lost > mass / 2)
    assert found.left_out == pytest.approx((out.sum() / counts.sum()).item())
    rested = sum(expected) / len(expected) >= RESTS or max(expected) >= HEAD_RESTS
    assert (found.warning() is not None) == bool(out.any() and rested)
    assert bool(found.mend) == bool(out.any())


def resting(K=1024, sinks=True):
    """Return a problem whose queries attend mostly to the first key, or to no key in particular."""
    q, k, v = (randn(i, 1, 4, K, 16) for i in range(3))
    q[..., 0] = 4.0
    k[..., 0] = 0.0
    k[:, :, 0, 0] = 10.0 if sinks else 0.0
    return Problem.of(q, k, v)


PICKY = dict(tau=0.9, voters=16, min_tokens=32)
BLIND = {
    "give dropped queries a SlidingWindow with sinks, not Zeros()": [TokenCoverage(**PICKY)],
    "give SlidingWindow sinks, not sinks=0": [TokenCoverage(**PICKY), Decompress(SlidingWindow(16, sinks=0))],
}
SEEING = [
    [TokenCoverage(**PICKY), Decompress(SlidingWindow(16))],
    [Streaming(sinks=16, window=32, block_size=16)],
    [BlockTopK(0.5, 16)],
    [FlexPrefill(gamma=0.9, block_size=16)],
    [],
]


@pytest.mark.parametrize("mend", BLIND)
def test_a_pipeline_that_leaves_sinks_out_is_told_what_to_do(mend):
    p = resting()
    report = Pipeline(BLIND[mend], break_even=0).explain(p.q, p.k, p.v)
    assert report.sinks.mean > 0.5 and report.sinks.left_out > 0.5
    line = report.warning()
    assert line.endswith(f": {mend}") and f"attention puts {report.sinks.mean:.0%} of its mass on the first 16" in line
    assert f"(head {report.sinks.head}: {report.sinks.largest:.0%})" in line
    assert f"for {report.sinks.left_out:.0%} of the queries" in line
    assert f"\nWARNING: {line}\n" in str(report), "one line, however long"
    small = resting(sinks=False)
    other = Pipeline(BLIND[mend], break_even=0).explain(small.q, small.k, small.v)
    assert other.sinks.mean < RESTS and other.warning() is None, "there is next to nothing there"


@pytest.mark.parametrize("stages", SEEING, ids=str)
def test_a_pipeline_that_sees_the_sinks_is_not_warned_of(stages):
    p = resting()
    report = Pipeline(stages, break_even=0).explain(p.q, p.k, p.v)
    assert report.sinks.mean > 0.5 and report.sinks.left_out == 0 and report.warning() is None
    assert "WARNING" not in str(report) and "attention mass on the first 16 keys (sinks): " in " ".join(report.notes)


def test_kept_queries_that_lose_the_sinks_are_told_apart():
    p = resting()
    rows, whole = sampled_rows(p), Streaming(sinks=16, window=32, block_size=16)(p)
    indices = whole.blocks.indices.clone()
    indices[indices == 0] = 1  # drops the first block
    blind = replace(whole, blocks=replace(whole.blocks, indices=indices))
    assert measure(p, rows, blind).mend == "let the block stage keep the first block"
    plan = TokenCoverage(**PICKY)(p)
    both = plan.then(Streaming(sinks=16, window=32, block_size=16)(plan.compress(p)))
    indices = both.blocks.indices.clone()
    indices[indices == 0] = 1
    of_blocks = replace(both, blocks=replace(both.blocks, indices=indices), fill=SlidingWindow(16))
    assert measure(p, rows, of_blocks).mend == "let the block stage keep the first block", "the keys are there"
    some = replace(plan.keys, idx=plan.keys.idx[..., SINKS:])
    assert measure(p, rows, Plan(keys=some)).mend == "let the token stage keep the first tokens (sinks)"


def test_a_window_with_too_few_sinks_is_told_to_have_more():
    q = torch.zeros(1, 1, 64, 4)
    report = Pipeline([TokenCoverage(**PICKY), Decompress(SlidingWindow(1, sinks=1))]).explain(q, q, q)
    assert report.sinks.mean == pytest.approx(sum(16 / i for i in range(17, 65)) / 48)
    assert report.warning().endswith(": give SlidingWindow more sinks, not sinks=1")


def test_few_keys_have_no_sinks_to_speak_of():
    q = torch.zeros(1, 1, SINKS, 4)
    report = Pipeline([]).explain(q, q, q)
    assert report.sinks is None and report.warning() is None and "sinks" not in str(report)


class Largest(TorchDispatchMode):
    """Records the number of entries of the largest tensor."""

    entries = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, tuple | list) else [out]:
            self.entries = max(self.entries, x.numel() if isinstance(x, torch.Tensor) else 0)
        return out


def test_it_costs_sampled_rows_of_one_head_at_a_time():
    K, rows = 8192, 64
    p = Problem.of(*(torch.ones(1, h, K, 4) for h in (8, 2, 2)))
    plan = TokenCoverage(tau=0.5)(p)
    with Largest() as most:
        measure(p, sampled_rows(p), plan)
    assert most.entries <= rows * K


@given(st.lists(st.lists(st.floats(0, 1), min_size=3, max_size=3), min_size=1, max_size=3), st.floats(0, 1))
def test_prompts_count_alike(heads, left_out):
    found = over_prompts([Sinks(tuple(each), left_out, "x") for each in heads])
    assert found.heads == pytest.approx([sum(each) / len(each) for each in zip(*heads, strict=True)])
    assert found.left_out == pytest.approx(left_out) and found.mend == "x"
    assert found.heads[found.head] == found.largest == max(found.heads)


def test_one_head_that_rests_on_them_is_enough():
    others = (0.01,) * 7
    assert Sinks((HEAD_RESTS, *others), 0.1, "mend").warning() and Sinks((2 * RESTS,) * 8, 0.1, "mend").warning()
    assert Sinks((0.4, *others), 0.1, "mend").warning() is None, "the embedded model has such heads"


def test_layers_are_named_by_the_worst():
    bad, worse, fine = Sinks((0.2, 0.4), 0.5, "mend"), Sinks((0.6, 0.8), 0.5, "mend"), Sinks((0.01, 0.02), 0.9, "mend")
    line = sinks_left_out({0: fine, 1: bad, 2: bad, 3: worse, 7: bad})
    assert line == (
        "in layer 3 attention puts 70% of its mass on the first 16 tokens (head 1: 80%), and the plan leaves them out "
        "for 50% of the queries: mend; likewise layers 1-2, 7"
    )
    assert sinks_left_out({0: fine}) is None and sinks_left_out({}) is None
    profile = LayerProfile({0: 1.0, 1: 2.0}, 0.5, {0: fine, 1: worse})
    assert profile.warning() is None, "the layer stays dense"
    assert LayerProfile({0: 1.0, 1: 2.0}, 1.0, {0: fine, 1: worse}).warning().startswith("in layer 1 attention")


@given(st.floats(0, 1))
def test_more_than_none_is_never_said_to_be_none(x):
    assert (share(x) == "0%") == (x == 0)
