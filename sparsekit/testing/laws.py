"""The laws of stages, one function each: it raises AssertionError if a stage breaks the law on a problem.

`check.py` tries them. A law's name completes the sentence "a stage ...".
"""

from dataclasses import replace
from typing import Any

import torch
from hypothesis import assume
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from ..execute import attend
from ..fills import Zeros
from ..oracle import oracle
from ..pipeline import Pipeline
from ..plan import Plan, Tokens
from ..policies import Decompress
from ..problem import PAD, Problem, to_heads
from ..stages import Streaming, TokenCoverage
from .closeness import same
from .strategies import with_blocks


def lawful(stage: Any, problem: Problem) -> Plan:
    """Return the stage's plan. If the stage refuses the problem with a sentence, hypothesis discards the example."""
    try:
        plan = stage(problem)
    except ValueError as refusal:
        assert type(stage).__name__ in str(refusal), f"its refusal does not name it: {refusal}"
        assume(False)
    assert isinstance(plan, Plan), f"it returned {type(plan).__name__}, and not a Plan"
    return plan


def leaves_its_input_alone(stage: Any, p: Problem) -> None:
    before = p.q.clone(), p.k.clone(), p.v.clone()
    lawful(stage, p)
    assert all(torch.equal(x, y) for x, y in zip(before, (p.q, p.k, p.v), strict=True)), "it changed q, k or v"


def gives_a_lawful_plan(stage: Any, p: Problem) -> None:
    plan = lawful(stage, p)
    for t, n in ((plan.queries, p.q.shape[2]), (plan.keys, p.k.shape[2])):
        if t:
            assert t.n == n and t.idx.dtype == torch.int32 and (t.idx <= n).all() and (t.idx >= 0).all(), (
                "tokens are not int32 indices from 0 to n, the length"
            )
            assert _ascending(t), "tokens do not ascend, or repeat"
            assert t.kept()[..., -1].all(), "the last token is not kept"
    seen = plan.pairs(p).any(-1)
    kept = to_heads(plan.queries.kept(), p.q.shape[1]) if plan.queries else torch.ones_like(seen)
    assert torch.equal(seen, kept), "a kept query sees no key, or a dropped query sees some"
    same(attend(p, plan), oracle(p, plan), "its plan means one thing and is computed as another")


def gives_a_lawful_plan_inside_a_window(stage: Any, p: Problem) -> None:
    """Check the plan of a problem that has a sliding window, and sometimes padding."""
    plan = lawful(stage, p)
    plan.check(p, contents=True)
    real = to_heads(p.q_pos != PAD, p.q.shape[1])
    kept = to_heads(plan.queries.kept(), p.q.shape[1]) if plan.queries else torch.ones_like(real)
    assert torch.equal(plan.pairs(p).any(-1), kept & real), (
        "a kept query sees no key, or a dropped or padding query sees some"
    )
    assert torch.equal(plan.pairs(p), stage(p).pairs(p)), "it gives another plan for the same problem"
    same(attend(p, plan), oracle(p, plan), "its plan means one thing and is computed as another")


def lists_nothing_of_the_future(stage: Any, p: Problem) -> None:
    """Check that block lists hold no block of keys that no query of the block sees: a kernel would read it in vain."""
    plan = lawful(stage, p)
    if plan.blocks is None:
        return
    (m, n), listed = plan.blocks.size, plan.blocks.mask()
    visible = Plan(plan.queries, plan.keys).compress(p).visible()
    Q, K = visible.shape[2:]
    seen = pad(visible, (0, -K % n, 0, -Q % m)).unflatten(3, (-1, n)).unflatten(2, (-1, m)).any(-1).any(3)
    seen = seen.unflatten(1, (listed.shape[1], -1)).any(2)  # a list may serve several heads
    assert not (listed & ~seen).any(), "it lists a block of keys that none of the block's queries sees"


def shows_the_sinks(stage: Any, p: Problem, sinks: int) -> None:
    """Check that each kept query sees the first `sinks` tokens."""
    plan = lawful(stage, p)
    first = p.visible() & (p.k_pos < sinks)[..., None, :]
    kept = to_heads(plan.queries.kept(), p.q.shape[1]) if plan.queries else torch.ones_like(first[..., 0])
    left_out = first & kept[..., None] & ~plan.pairs(p)
    assert not left_out.any(), f"a query does not see one of the first {sinks} tokens, the sinks"


def gives_the_same_plan_twice(stage: Any, p: Problem) -> None:
    assert torch.equal(lawful(stage, p).pairs(p), stage(p).pairs(p)), "it gives another plan for the same problem"


def judges_each_sequence_alone(stage: Any, p: Problem) -> None:
    pairs = lawful(stage, p).pairs(p)
    for b in range(p.q.shape[0]):
        alone = Problem.of(p.q[b : b + 1], p.k[b : b + 1], p.v[b : b + 1], p.causal)
        assert torch.equal(stage(alone).pairs(alone), pairs[b : b + 1]), "one sequence changed another's plan"


def is_not_changed_by_padding(stage: Any, p: Problem, extra: int) -> None:
    """Check that padding at the end of rows changes neither the plan nor the output."""
    room = lambda x, dim, value: torch.cat([x, torch.full_like(x.narrow(dim, 0, 1), value).expand(  # noqa: E731
        *[extra if d == dim else n for d, n in enumerate(x.shape)])], dim)  # fmt: skip
    padded = Problem(
        room(p.q, 2, 0.0), room(p.k, 2, 0.0), room(p.v, 2, 0.0), room(p.q_pos, 2, PAD), room(p.k_pos, 2, PAD),
        p.scale, p.causal,
    )  # fmt: skip
    plan, long = lawful(stage, p), stage(padded)
    n = p.q.shape[2]
    assert torch.equal(long.pairs(padded)[:, :, :n, :n], plan.pairs(p)), "padding changed the choice"
    out = attend(padded, long)
    torch.testing.assert_close(
        out.o[:, :, :n], attend(p, plan).o, atol=1e-10, rtol=1e-10, msg="padding changed the output"
    )
    assert (out.o[:, :, n:] == 0).all() and (out.lse[:, :, n:] == float("-inf")).all(), "a padding query saw something"


def chains_with_the_nested_meaning(stage: Any, p: Problem, fill: Any) -> None:
    coverage = TokenCoverage(tau=0.4, voters=2, pool=3, min_tokens=1, sinks=2)
    local = Streaming(sinks=1, window=3, block_size=getattr(stage, "block_size", 2))
    for chain in ([coverage, stage], [stage, local], [coverage, stage, local]):
        try:
            plan = Pipeline(chain, break_even=0)(p)
        except ValueError as refusal:
            assert str(refusal), "it refuses with an empty message"
            continue
        same(attend(p, plan), oracle(p, plan), "its plan means one thing and is computed as another")
        step, short, density = Plan(), p, 1.0
        for part in chain:
            step = step.then(part(short))
            short = step.compress(p)
            assert step.density(p) <= density + 1e-6, "it adds pairs to those that the stage before it left"
            density = step.density(p)
        assert torch.equal(step.pairs(p), plan.pairs(p)), (
            "in a chain its plan is not its plan for the problem that the stage before it left"
        )
        filled = Pipeline([*chain, Decompress(fill or Zeros())], break_even=0)(p)
        same(attend(p, filled), oracle(p, filled), "its plan means one thing and is computed as another")


def bears_nan_and_inf(stage: Any, p: Problem, bad: float, data: Any) -> None:
    name = data.draw(st.sampled_from(["q", "k", "v"]))
    x = getattr(p, name)
    x.view(-1)[data.draw(st.integers(0, x.numel() - 1))] = bad
    plan = lawful(stage, p)
    for t in (plan.queries, plan.keys):
        assert t is None or (_ascending(t) and (t.idx <= t.n).all()), "tokens do not ascend, or repeat"
    assert attend(p, plan).o.shape == (*p.q.shape[:3], p.v.shape[3]), "the output has another shape"


def is_dense_attention_in_its_dense_setting(stage: Any, p: Problem, size: int) -> None:
    """Check the dense setting with small blocks: a problem of one block would be dense whatever a stage does."""
    dense = with_blocks(stage, size)
    same(oracle(p, lawful(dense, p)), oracle(p, Plan()), "its output is not that of dense attention")
    mask = torch.ones(p.q.shape[2], p.k.shape[2], dtype=torch.bool).tril(p.k.shape[2] - p.q.shape[2])
    sdpa = scaled_dot_product_attention(p.q, p.k, p.v, attn_mask=mask if p.causal else None, enable_gqa=True)
    out = Pipeline([dense], break_even=0)(p.q, p.k, p.v, causal=p.causal)
    torch.testing.assert_close(out, sdpa, atol=1e-9, rtol=1e-9, msg="its output is not torch's")


def is_dense_inside_a_window_in_its_dense_setting(stage: Any, p: Problem, size: int) -> None:
    plan = lawful(with_blocks(stage, size), p)
    assert torch.equal(plan.pairs(p), p.visible()), "it leaves out a pair that dense attention computes"


def looks_at_nothing_of_the_future(stage: Any, p: Problem, cut: int, seed: int) -> None:
    """Check that later tokens do not change which keys earlier blocks of queries see."""
    size = getattr(stage, "block_size", 1)
    at = min(cut, p.q.shape[2]) // size * size  # a block of queries may look at all its own
    plan = lawful(stage, p)
    later = [x.clone() for x in (p.q, p.k, p.v)]
    for x in later:
        x[:, :, at:] = torch.randn(x[:, :, at:].shape, generator=torch.Generator().manual_seed(seed), dtype=x.dtype)
    other = replace(p, q=later[0], k=later[1], v=later[2])
    assert torch.equal(plan.pairs(p)[:, :, :at], lawful(stage, other).pairs(other)[:, :, :at]), (
        "a later token changed which keys an earlier query sees"
    )


def is_what_its_spec_says(stage: Any) -> None:
    """Check that a stage whose class has a name is the same after a round trip through its spec."""
    again = Pipeline.from_spec(Pipeline([stage]).to_spec())
    assert again.stages == (stage,), f"its spec {again.to_spec()!r} makes {again.stages[0]!r}"
    assert hash(again) == hash(Pipeline([stage])), "two pipelines of the same spec have different hashes"


def _ascending(t: Tokens) -> Tensor:
    return ((t.idx[..., 1:] > t.idx[..., :-1]) | (t.idx[..., 1:] == t.n)).all()
