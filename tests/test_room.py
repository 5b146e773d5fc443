"""Tests of choices with room for all, which need no wait of the host: the same choices with more padding."""

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from strategies import named, problems, randn

from sparsekit import Pipeline, Problem, attend, dispatch, room
from sparsekit.graphs import _Watch
from sparsekit.stages import flex_prefill, token_coverage

STAGES = [*token_coverage.EXAMPLES, *flex_prefill.EXAMPLES]
STACKED = [[a, b] for a in token_coverage.EXAMPLES[:2] for b in flex_prefill.EXAMPLES[:3]]


@pytest.mark.parametrize("stages", **named([[stage] for stage in STAGES] + STACKED))
@settings(max_examples=12)
@given(data=st.data())
def test_a_choice_with_room_for_all_is_the_same(stages, data):
    p, pipeline = data.draw(problems(most=14)), Pipeline(stages, break_even=0)
    assume(p.causal)  # FlexPrefill looks for diagonals
    exact = pipeline(p)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(room, "KNOWN", ())
        plan = pipeline(p)
        out = attend(p, plan, backend="reference")
    assert torch.equal(plan.pairs(p), exact.pairs(p))
    torch.testing.assert_close(out.o, attend(p, exact, backend="reference").o, atol=1e-12, rtol=1e-10)


class _Sized(_Watch):
    """Notes operators whose result has a size that depends on the data, and reads of a tensor's truth value."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._local_scalar_dense.default:  # reads one number, which may be on the host already
            return func(*args, **(kwargs or {}))
        return super().__torch_dispatch__(func, types, args, kwargs)


def _refuse(x):
    raise AssertionError("the host waits for a list")


@pytest.mark.parametrize("stages", **named([[stage] for stage in STAGES] + STACKED))
def test_no_choice_waits_where_there_is_room_for_all(stages, monkeypatch):
    pytest.importorskip("triton", reason="the kernels are Triton's, and it is only made for Linux")
    if torch.cuda.is_available():
        pytest.skip("tests/ops/test_gpu.py sees it on the GPU itself")
    monkeypatch.setitem(dispatch.AUTO, "cpu", ("triton", "reference"))
    monkeypatch.setattr(room, "KNOWN", ())
    monkeypatch.setattr(torch.Tensor, "tolist", _refuse, raising=False)  # it calls no operator on a CPU
    q, k, v = (randn(i, 1, h, 24, 8, dtype=torch.float32) for i, h in enumerate((2, 1, 1)))
    p = Problem.of(q, k, v)
    with _Sized(host="none") as watch:
        plan = Pipeline(stages, break_even=0)(p)
        kept = dispatch.run("gather_tokens", "cpu", p, plan)
    assert not watch.waits and (plan.queries is None or (kept.q_pos is kept.k_pos and not kept.full))
