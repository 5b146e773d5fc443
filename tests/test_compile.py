"""Tests of pipelines under torch.compile: each is one operator and gives the same output."""

import pytest
import torch
from strategies import randn
from torch._dynamo.testing import CompileCounter
from torch.library import opcheck

import sparsekit as sk
from sparsekit import Pipeline, Plan, Problem, operators

SPECS = [
    "dense",
    "streaming(sinks=2, window=8, block_size=4)",
    "token_coverage(tau=0.3, voters=4, pool=3, min_tokens=4, sinks=2) | flex_prefill(gamma=0.7, block_size=4) | "
    "decompress(fill=sliding_window(4, sinks=2))",
    "token_coverage(tau=0.3, voters=4, pool=3, min_tokens=4, sinks=2) | decompress(dense_last=6)",
]


def inputs(length=40):
    return randn(0, 2, 4, length, 8), randn(1, 2, 2, length, 8), randn(2, 2, 2, length, 6)


@pytest.mark.parametrize("spec", SPECS)
def test_it_is_a_lawful_operator(spec):
    opcheck(operators.attention, (*inputs(), spec, True, None))
    opcheck(operators.attention, tuple(x.half() for x in inputs()) + (spec, True, 0.3))


@pytest.mark.parametrize("spec", SPECS)
def test_a_pipeline_compiles_without_a_break(spec):
    pipeline, (q, k, v) = Pipeline.from_spec(spec), inputs()

    def layer(q, k, v):
        return pipeline(q * 2, k, v).mul(0.5), pipeline.output(q, k, v, scale=0.5).lse

    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for got, expected in zip(compiled(q, k, v), layer(q, k, v), strict=True):
        torch.testing.assert_close(got, expected)
    longer = inputs(57)
    torch.testing.assert_close(compiled(*longer)[0], layer(*longer)[0])


@pytest.mark.parametrize("spec", SPECS)
def test_lengths_are_variables_from_the_second_on(spec):
    """torch compiles once for the first length and once for any length."""
    pipeline, counter = Pipeline.from_spec(spec), CompileCounter()
    torch.compiler.reset()
    compiled = torch.compile(lambda q, k, v: pipeline(q * 2, k, v), fullgraph=True, backend=counter)
    for length in (40, 57, 64, 99):
        q, k, v = inputs(length)
        torch.testing.assert_close(compiled(q, k, v), pipeline(q * 2, k, v))
    assert counter.frame_count == 2


def test_an_export_holds_the_operator():
    pipeline, (q, k, v) = Pipeline.from_spec(SPECS[1]), inputs()

    class Layer(torch.nn.Module):
        def forward(self, q, k, v):
            return pipeline(q, k, v)

    program = torch.export.export(Layer(), (q, k, v))
    assert "sparsekit.attention" in program.graph_module.code
    torch.testing.assert_close(program.module()(q, k, v), pipeline(q, k, v))


def test_what_a_graph_cannot_hold_is_refused():
    pipeline, (q, k, v) = Pipeline([lambda problem: sk.Plan()]), inputs()
    with pytest.raises(Exception, match="torch.compiler.disable"):
        torch.compile(lambda: pipeline(q, k, v), fullgraph=True, backend="aot_eager")()


@pytest.mark.parametrize("spec", SPECS)
def test_a_plan_compiles_as_data(spec):
    """The plan is made outside the compiled function and is an argument of it."""
    pipeline, dense = Pipeline.from_spec(spec), Pipeline([])
    compiled = torch.compile(
        lambda q, k, v, plan: dense.output(q, k, v, plan=plan), fullgraph=True, backend="aot_eager"
    )
    for length in (40, 57):
        q, k, v = inputs(length)
        plan = pipeline.plan(q, k, v)
        opcheck(operators.attention_by_plan, (q, k, v, *plan.parts(), "dense", True, None))
        got, expected = compiled(q, k, v, plan), pipeline.output(q, k, v)
        torch.testing.assert_close(got.o, expected.o)
        torch.testing.assert_close(got.lse, expected.lse)


def test_a_plan_keeps_its_meaning_in_parts():
    """Plans choose queries, keys or both, the same tokens or different ones."""
    q, k, v = inputs()
    some = sk.Tokens.of(torch.arange(40).remainder(3).bool().expand(2, 1, 40))
    other = sk.Tokens.of(torch.arange(40).remainder(2).bool().expand(2, 1, 40))
    for plan in (sk.Plan(some), sk.Plan(keys=some), sk.Plan(some, some), sk.Plan(some, other, dense_last=3)):
        again = Plan.from_parts(*plan.parts())
        assert (again.queries is again.keys) == (plan.queries is plan.keys)
        assert torch.equal(again.pairs(Problem.of(q, k, v)), plan.pairs(Problem.of(q, k, v)))
