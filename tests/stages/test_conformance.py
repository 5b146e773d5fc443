"""Compares our plans and outputs with those of the authors' code, recorded on the same inputs (data/README.md).

They are equal, except for ties, where the authors' code does what the paper says. Where ours differs on purpose, a test
shows both.
"""

import pytest
import torch
from closeness import error
from vectors import FLEX_PREFILL, TOKEN_COVERAGE, inputs, recorded, rows

from sparsekit import Blocks, FlexPrefill, Plan, Problem, TokenCoverage, Tokens, attend, dispatch

THEIR_COVERAGE, THEIR_FLEX = recorded("token_coverage"), recorded("flex_prefill")
TIE = 1e-5  # relative: scores this near are a tie, in whose order float32 rounding decides


def coverage(name):
    """Return the problem, our plan, and the authors' kept [H, S], scores [H, L - voters] and output [H, rows, D]."""
    case = TOKEN_COVERAGE[name]
    p = Problem.of(*inputs(case))
    theirs = [THEIR_COVERAGE[f"{name}/{what}"] for what in ("kept", "scores", "o")]
    return case, p, TokenCoverage(**case.parameters, sinks=0)(p), *theirs


@pytest.mark.parametrize("name", [n for n, case in TOKEN_COVERAGE.items() if case.equal])
def test_token_coverage_keeps_the_authors_tokens(name):
    case, p, plan, theirs, scores, o = coverage(name)
    columns = dispatch.run("window_scores", "cpu", p, case.parameters["voters"])[0]
    assert error(columns[0, :, : scores.shape[1]], scores) < 1e-6
    if not theirs.numel():
        assert plan.kept(p) == plan.density(p) == 1.0, "dense, as theirs"
    else:
        ours = plan.queries.idx[0]
        assert ours.shape == theirs.shape, "as many tokens"
        smooth = torch.nn.functional.avg_pool1d(scores, case.parameters["pool"], 1, case.parameters["pool"] // 2)
        for mine, other, score in zip(ours, theirs, smooth, strict=True):
            swapped = sorted(set(mine.tolist()) ^ set(other.tolist()))
            assert not swapped or score[swapped].max() <= score[swapped].min() * (1 + TIE), "only ties may differ"
        assert plan.queries is plan.keys
    assert error(attend(p, plan).o[0][:, rows(case)], o) < 1e-6


def test_token_coverage_does_not_round_its_scores_where_theirs_does():
    """Check half precision, in which the authors round scores: as many tokens are kept, but others in ties."""
    case, p, plan, theirs, scores, _ = coverage("half precision")
    pool, ours = case.parameters["pool"], plan.queries.idx[0]
    columns = dispatch.run("window_scores", "cpu", p, case.parameters["voters"])[0]
    assert scores.dtype == torch.float16 and columns.dtype == torch.float32
    assert error(scores, columns[0, :, : scores.shape[1]]) < torch.finfo(torch.float16).eps
    assert ours.shape == theirs.shape and not torch.equal(ours, theirs)
    smooth = torch.nn.functional.avg_pool1d(scores.float(), pool, 1, pool // 2)
    for mine, other, score in zip(ours, theirs, smooth, strict=True):
        swapped = sorted(set(mine.tolist()) ^ set(other.tolist()))
        assert not swapped or score[swapped].max() <= score[swapped].min() * (1 + 4 * torch.finfo(torch.float16).eps)


def test_token_coverage_takes_any_number_of_voters_where_theirs_scores_inf():
    _, p, plan, theirs, scores, _ = coverage("window no multiple of the tile")
    assert not scores.isfinite().all() and not theirs.numel(), "theirs: infinite scores, so that it gave up"
    k = p.k.double()
    probability = (p.q.double() @ k.mT * p.scale).masked_fill(~p.visible(), float("-inf")).softmax(-1)
    columns = dispatch.run("window_scores", "cpu", p, 20)[0]
    assert error(columns, probability[:, :, -20:].mean(2)) < 1e-6
    assert plan.queries.idx.shape[-1] < 400


def test_token_coverage_refuses_an_even_pool_where_theirs_makes_a_score_too_many():
    scores = torch.rand(1, 2, 100)
    assert torch.nn.functional.avg_pool1d(scores, 4, 1, 4 // 2).shape[-1] == 101, "the authors' call"
    with pytest.raises(ValueError, match="pool: got 4"):
        TokenCoverage(pool=4)


def flex(name):
    """Return the problem, our mask and the authors' [H, I, I], and their output [H, rows, D]."""
    case = FLEX_PREFILL[name]
    p = Problem.of(*inputs(case))
    theirs, o = THEIR_FLEX[f"{name}/blocks"].bool(), THEIR_FLEX[f"{name}/o"]
    plan = FlexPrefill(**case.parameters)(p)
    ours = plan.blocks.mask()[0] if plan.blocks else torch.ones_like(theirs)
    return case, p, plan, ours.expand_as(theirs), theirs, o


@pytest.mark.parametrize("name", [n for n, case in FLEX_PREFILL.items() if case.equal])
def test_flex_prefill_computes_the_authors_blocks(name):
    case, p, plan, ours, theirs, o = flex(name)
    assert torch.equal(ours, theirs)
    assert error(attend(p, plan).o[0][:, rows(case)], o) < torch.finfo(torch.bfloat16).eps, (
        "their kernel writes bfloat16"
    )


def test_the_cases_take_both_kinds_of_heads():
    """Without the query-aware branch some heads of these cases would differ, so equality tests both branches."""
    for name in ("query-aware", "both kinds of heads"):
        case, p, _, ours, _, _ = flex(name)
        slashed = FlexPrefill(**case.parameters | dict(tau=0.0))(p).blocks.mask()[0]
        differs = (ours != slashed).flatten(1).any(1)
        assert differs.any() and (name == "query-aware" or not differs.all())


def probed(p, mask, m):
    """Return the part [H] of the last `m` queries' attention that lies in the blocks of a mask [H, I, I]."""
    k = p.k.repeat_interleave(p.q.shape[1] // p.k.shape[1], 1)
    probability = (p.q @ k.mT * p.scale).masked_fill(~p.visible(), float("-inf")).softmax(-1)[0, :, -m:]
    pairs = Plan(blocks=Blocks.of(mask[None], (m, m))).pairs(p)[0, :, -m:]
    return (probability * pairs).sum(-1).mean(-1)


def test_flex_prefill_reaches_gamma_with_small_blocks_where_theirs_does_not():
    case, p, _, ours, theirs, _ = flex("small blocks")
    gamma, m = case.parameters["gamma"], case.parameters["block_size"]
    assert (probed(p, theirs, m) < gamma - 0.1).all(), "theirs: a quarter of the blocks it takes"
    assert (probed(p, ours, m) > gamma - 0.1).all()
    assert (ours | ~theirs).all(), "ours computes all that theirs does"


def test_flex_prefill_counts_block_diagonals_from_the_diagonal_where_theirs_shifts_them():
    """The length is no multiple of the block: with the distances pooled from the diagonal, ours covers more."""
    case, p, _, ours, theirs, _ = flex("ragged length")
    m = case.parameters["block_size"]
    assert not torch.equal(ours, theirs)
    gain = probed(p, ours, m) - probed(p, theirs, m)
    assert (gain >= 0).all() and gain.max() > 0.05


def test_flex_prefill_is_query_aware_with_a_probability_of_zero_where_theirs_has_nan():
    case, p, _, ours, theirs, _ = flex("a block of probability zero")
    columns = dispatch.run("window_scores", "cpu", p, 128)[0]
    assert (columns[..., slice(*case.shunned)] == 0).all()
    slashed = FlexPrefill(**case.parameters | dict(tau=0.0))(p).blocks.mask()[0]
    assert torch.equal(theirs, slashed), "theirs: a NaN is not below tau, whatever tau"
    assert not torch.equal(ours, slashed)


def test_tokens_of_theirs_are_lawful_plans():
    """Check attend on the authors' recorded choices, as plans that are independent of our stages."""
    for name, case in TOKEN_COVERAGE.items():
        theirs, o = THEIR_COVERAGE[f"{name}/kept"], THEIR_COVERAGE[f"{name}/o"]
        if case.dtype == torch.float32 and theirs.numel():
            t = Tokens(theirs[None], case.L)
            assert error(attend(Problem.of(*inputs(case)), Plan(t, t)).o[0][:, rows(case)], o) < 1e-6
