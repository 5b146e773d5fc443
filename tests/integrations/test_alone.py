"""Tests that a row in a padded or packed batch equals the row alone: fills, sinks, last queries, budgets, limits."""

import pytest
import torch
from closeness import error
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.transformers_matrix import build, ids
from sparsekit import Decompress, FlexPrefill, Pipeline, Plan, SlidingWindow, Streaming, TokenCoverage, Tokens, Zeros
from sparsekit.integrations.transformers import sparsify
from sparsekit.problem import PAD

LENGTH = 70
TOKENS = TokenCoverage(tau=0.3, voters=8, pool=3, min_tokens=8, sinks=2)
BLOCKS = FlexPrefill(gamma=0.5, block_size=8)
FILLS = st.one_of(
    st.just(Zeros()),
    st.builds(SlidingWindow, st.integers(1, 90), st.integers(0, 9)),
)
PIPELINES = st.builds(
    lambda stages, fill, last: Pipeline([*stages, Decompress(fill, dense_last=last)]),
    st.sampled_from([[TOKENS], [BLOCKS], [TOKENS, BLOCKS], [TOKENS, Streaming(sinks=1, window=8, block_size=8)]]),
    FILLS,
    st.sampled_from([0, 0, 5]),
)
RUN = st.tuples(st.integers(0, LENGTH - 1), st.integers(1, 30))  # the first slot of padding, and the number of slots


@pytest.fixture(scope="module")
def llama():
    return build("Llama").double()


@pytest.fixture(scope="module")
def qwen3():
    """Return a model whose layer 0 has a sliding window of 24 tokens; layers 1 and 2 have none."""
    return build("Qwen3").double()


def rows_alone(model, mask):
    """Return the logits of each row's real tokens, computed from the row alone."""
    x = ids(len(mask), LENGTH)
    return [model(x[b : b + 1, mask[b].bool()]).logits[0] for b in range(len(mask))]


def rows_together(model, mask, chunk=LENGTH):
    """Return the logits of each row's real tokens, computed in one batch, in chunks."""
    x, cache, logits = ids(len(mask), LENGTH) * mask, None, []
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    for i in range(0, LENGTH, chunk):
        part = slice(i, i + chunk)
        out = model(
            x[:, part],
            attention_mask=mask[:, : i + chunk],
            position_ids=positions[:, part],
            past_key_values=cache,
            use_cache=chunk < LENGTH,
        )
        cache = out.past_key_values
        logits.append(out.logits)
    whole = torch.cat(logits, 1)
    return [whole[b, mask[b].bool()] for b in range(len(mask))]


@settings(max_examples=30)
@given(pipeline=PIPELINES, run=RUN, other=RUN)
@torch.no_grad()
def test_padding_anywhere_in_a_row_changes_nothing(llama, pipeline, run, other):
    mask = torch.ones(2, LENGTH, dtype=torch.long)
    for row, (begin, n) in zip(mask, (run, other), strict=True):
        row[begin : begin + n] = 0
    with sparsify(llama, pipeline):
        for together, alone in zip(rows_together(llama, mask), rows_alone(llama, mask), strict=True):
            assert error(together, alone) < 1e-9


@settings(max_examples=25)
@given(
    pipeline=PIPELINES, padded=st.lists(st.tuples(st.integers(0, LENGTH - 1), st.booleans()), min_size=4, max_size=4)
)
@torch.no_grad()
def test_so_it_is_in_layers_with_a_sliding_window(qwen3, pipeline, padded):
    """Some of the four rows may be longer than the window and others shorter, in any order."""
    mask = torch.ones(4, LENGTH, dtype=torch.long)
    for row, (n, on_the_left) in zip(mask, padded, strict=True):
        row[slice(n) if on_the_left else slice(LENGTH - n, None)] = 0
    with sparsify(qwen3, pipeline):
        for together, alone in zip(rows_together(qwen3, mask), rows_alone(qwen3, mask), strict=True):
            assert error(together, alone) < 1e-9


@settings(max_examples=30)
@given(pipeline=PIPELINES, left=st.integers(0, 30), family=st.sampled_from(["llama", "qwen3"]))
@torch.no_grad()
def test_so_it_is_in_chunks(llama, qwen3, pipeline, left, family):
    """The cache of a layer with a sliding window drops keys before the window."""
    model = dict(llama=llama, qwen3=qwen3)[family]
    mask = torch.ones(2, LENGTH, dtype=torch.long)
    mask[0, :left] = 0
    with sparsify(model, pipeline):
        together = rows_together(model, mask, chunk=35)
        x, alone = ids(2, LENGTH), []
        for b, skip in enumerate((left, 0)):
            first = model(x[b : b + 1, skip:35], use_cache=True)
            second = model(x[b : b + 1, 35:], past_key_values=first.past_key_values)
            alone.append(torch.cat([first.logits, second.logits], 1)[0])
    for one, other in zip(together, alone, strict=True):
        assert error(one, other) < 1e-9


@settings(max_examples=20)
@given(pipeline=PIPELINES, cut=st.integers(1, LENGTH - 1))
@torch.no_grad()
def test_so_it_is_in_a_packed_row(llama, pipeline, cut):
    x = ids(1, LENGTH)
    positions = torch.cat([torch.arange(cut), torch.arange(LENGTH - cut)])[None]
    with sparsify(llama, pipeline):
        packed = llama(x, position_ids=positions, use_cache=False).logits
        alone = torch.cat([llama(part, use_cache=False).logits for part in (x[:, :cut], x[:, cut:])], 1)
    assert error(packed, alone) < 1e-9


@torch.no_grad()
def test_the_length_that_decides_whether_stages_run_is_the_rows_own(llama):
    mask = torch.ones(3, LENGTH, dtype=torch.long)
    mask[1, :40] = 0
    calls = []
    with sparsify(llama, Pipeline([BLOCKS], break_even=50), layers=0, watch=calls.append):
        together, alone = rows_together(llama, mask), rows_alone(llama, mask)
    assert all(error(a, b) < 1e-9 for a, b in zip(together, alone, strict=True))
    first = [call for call in calls if call.layer == 0][:2]
    assert sorted((call.problem.q.shape[0], call.plan == Plan()) for call in first) == [(1, True), (2, False)]


@torch.no_grad()
def test_positions_in_a_fill_are_those_of_the_sequence(llama):
    """The sinks of a left-padded row are its own first tokens; the near keys of a row with a hole skip the hole."""
    mask = torch.ones(2, LENGTH, dtype=torch.long)
    mask[0, :20], mask[1, 30:50] = 0, 0
    calls = []
    fill = SlidingWindow(3, sinks=2)
    with sparsify(llama, Pipeline([TOKENS, Decompress(fill)]), layers=0, watch=calls.append):
        rows_together(llama, mask)
    problem = calls[0].problem
    seen = fill.pairs(problem)[:, 0]
    for row in seen:
        assert row[40].nonzero().flatten().tolist() == [0, 1, 38, 39, 40]


@pytest.mark.gpu
@pytest.mark.parametrize("fill", [SlidingWindow(5, sinks=3), SlidingWindow(5, sinks=0), Zeros()])
@torch.no_grad()
def test_so_it_is_on_a_gpu(fill):
    """The stage keeps every third token of the sequence, a choice that does not depend on rounding."""

    def thirds(problem):
        pos = problem.k_pos
        last = pos == pos.masked_fill(pos == PAD, -1).amax(-1, keepdim=True)
        kept = Tokens.of(((pos % 3 == 0) | last) & (pos != PAD))
        return Plan(kept, kept)

    model = build("Llama").cuda()
    x, mask = ids(2, LENGTH).cuda(), torch.ones(2, LENGTH, dtype=torch.long, device="cuda")
    mask[0, :41], mask[1, 30:50] = 0, 0
    positions, calls = (mask.cumsum(1) - 1).clamp(min=0), []
    with sparsify(model, Pipeline([thirds, Decompress(fill)]), watch=calls.append) as handle:
        together = model(x * mask, attention_mask=mask, position_ids=positions).logits
        alone = [model(x[b : b + 1, mask[b].bool()]).logits[0] for b in range(2)]
    assert not handle.dense and all(call.plan.density(call.problem) < 1 for call in calls)
    for b in range(2):
        assert error(together[b, mask[b].bool()], alone[b]) < 1e-3  # Triton multiplies in TF32
