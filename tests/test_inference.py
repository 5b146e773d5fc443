"""Tests of calls with gradients, whose backward pass raises, and of tensors without data, which give shapes."""

from contextlib import nullcontext

import pytest
import torch
from closeness import same
from strategies import MODULES, named, randn
from torch._subclasses import FakeTensorMode

import sparsekit as sk
from sparsekit import Decompress, Pipeline, Plan, Problem, SlidingWindow, Tokens, attend, operators, oracle
from sparsekit.inference import inference_only

COVERAGE = sk.TokenCoverage(tau=0.3, voters=4, pool=3, min_tokens=4, sinks=2)
PIPELINES = [
    Pipeline(),
    Pipeline([COVERAGE]),
    Pipeline([COVERAGE, sk.Compress("indexed")]),
    Pipeline([COVERAGE, Decompress(SlidingWindow(4, sinks=2), dense_last=3)]),
    Pipeline([COVERAGE, sk.Streaming(1, 4, 4), Decompress(SlidingWindow(4, sinks=0))]),
    Pipeline([sk.BlockTopK(0.5, 4)]),
    Pipeline([sk.FlexPrefill(0.7, 0.2, 4), sk.Attend("reference")]),
]
QUERIES = [40, 13]  # of 40 keys


def inputs(Q=40, grad=(True, True, True)):
    shapes = (2, 4, Q, 8), (2, 2, 40, 8), (2, 2, 40, 6)
    return [randn(i, *shape).requires_grad_(needs) for i, (shape, needs) in enumerate(zip(shapes, grad, strict=True))]


def refused(x):
    assert x.requires_grad and x.grad_fn is not None
    with pytest.raises(ValueError, match=r"^pipeline: .*for inference.*torch.no_grad\(\).*for training"):
        x.sum().backward()


@pytest.mark.parametrize("Q", QUERIES)
@pytest.mark.parametrize("pipeline", PIPELINES, ids=str)
@pytest.mark.parametrize("grad", [(True, True, True), (False, False, True), (True, False, False)])
def test_the_forward_pass_is_right_and_the_backward_pass_refused(pipeline, Q, grad):
    q, k, v = inputs(Q, grad)
    with torch.no_grad():
        expected, plan = pipeline.output(q, k, v), pipeline.plan(q, k, v)
    p = Problem.of(q, k, v)
    answers = [
        pipeline.output(q, k, v), pipeline.output(q, k, v, plan=plan), pipeline.run(p)[1], attend(p, plan),
    ]  # fmt: skip
    for out in answers:
        same(out, expected)
        for x in (out.o, out.lse, out.merge(expected).o, out.o * 2):
            refused(x)
    for _ in range(2):  # the second call of a shape may run other code
        torch.testing.assert_close(pipeline(q, k, v), expected.o)
        refused(pipeline(q, k, v))
    for scale in (-0.5, 0.0):
        refused(pipeline(q, k, v, scale=scale))
    pipeline.explain(q, k, v)
    fresh = pipeline.plan(q, k, v)
    assert fresh == plan, "a plan has no graph to keep"


@pytest.mark.parametrize("pipeline", PIPELINES, ids=str)
def test_without_a_need_there_is_no_graph(pipeline):
    q, k, v = inputs()
    with torch.no_grad():
        assert not pipeline(q, k, v).requires_grad
    with torch.inference_mode():
        assert not pipeline(q, k, v).requires_grad
    out = pipeline.output(*(x.detach() for x in (q, k, v)))
    assert not out.o.requires_grad and not out.lse.requires_grad


def test_nothing_inside_records_a_graph():
    seen = []

    def stage(problem):
        seen.append((torch.is_grad_enabled(), (problem.q * 2).requires_grad))
        return Plan()

    q, k, v = inputs()
    Pipeline([stage])(q, k, v), Pipeline([stage]).plan(q, k, v), Pipeline([stage])(Problem.of(q, k, v))
    assert seen == [(False, False)] * 3


@pytest.mark.parametrize("spec", ["dense", "block_topk(keep=0.5, block_size=4)"])
def test_a_compiled_call_refuses_in_its_backward_pass_too(spec):
    pipeline, (q, k, v) = Pipeline.from_spec(spec), inputs()
    plan = pipeline.plan(q, k, v)
    once = torch.compile(lambda q, k, v: pipeline(q * 2, k, v) * 0.5, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(once(q, k, v), pipeline(q * 2, k, v) * 0.5)
    refused(once(q, k, v))
    planned = torch.compile(
        lambda q, k, v: pipeline.output(q, k, v, plan=plan).lse, fullgraph=True, backend="aot_eager"
    )
    refused(planned(q, k, v))
    refused(operators.attention(q, k, v, spec, True, None)[0])


def test_whoever_computes_elsewhere_can_refuse_alike():
    x = torch.ones(3, requires_grad=True)
    with torch.no_grad():
        y = x * 2
    refused(inference_only(y, x))
    assert torch.equal(inference_only(y, x), y)


# --- without data ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("Q", QUERIES)
@pytest.mark.parametrize("pipeline", [*PIPELINES, Pipeline([lambda problem: COVERAGE(problem)])], ids=str)
def test_tensors_without_data_get_the_shapes_of_an_answer(pipeline, Q, dtype):
    q, k, v = (x.detach().to(dtype) for x in inputs(Q))
    real = pipeline.output(q, k, v)
    mode = FakeTensorMode()
    for given, where, inside in (
        ([x.to("meta") for x in (q, k, v)], "meta", nullcontext()),
        ([mode.from_tensor(x) for x in (q, k, v)], "cpu", mode),
    ):
        with inside:
            out = pipeline.output(*given)
            answers = [out, pipeline.run(Problem.of(*given))[1], attend(Problem.of(*given), Plan())]
            answers.append(sk.Output(pipeline(*given), out.lse))
            for found in answers:
                for x, expected in ((found.o, real.o), (found.lse, real.lse)):
                    assert (x.shape, x.dtype, x.device.type) == (expected.shape, expected.dtype, where)
            if pipeline.stages:
                with pytest.raises(ValueError, match="^q: got a tensor without data"):
                    pipeline.plan(*given)
            with pytest.raises(ValueError, match="^q: got shape"):
                pipeline(given[0][0], *given[1:])
    torch.testing.assert_close(pipeline(q, k, v), real.o)


def test_a_module_is_exported_as_before_and_runs():
    pipeline = Pipeline([COVERAGE, Decompress(SlidingWindow(4, sinks=2))])

    class Layer(torch.nn.Module):
        def forward(self, q, k, v):
            return pipeline(q, k, v)

    q, k, v = (x.detach() for x in inputs())
    program = torch.export.export(Layer(), (q, k, v))
    torch.testing.assert_close(program.module()(q, k, v), pipeline(q, k, v))


# --- another default device -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", **named([module.EXAMPLES[0] for module in MODULES] + [sk.FlexPrefill(0.7, 0.5, 4)]))
def test_no_tensor_is_made_on_the_default_device(stage):
    """Check whole and padded problems, chunks, windows, every fill and backend."""
    fills = [SlidingWindow(3, sinks=2), SlidingWindow(3, sinks=0)]
    problems = []
    for Q in QUERIES:
        q, k, v = (x.detach() for x in inputs(Q))
        real = [torch.arange(n) < torch.tensor([n, n - 5])[:, None, None] for n in (Q, 40)]
        ragged = Plan(*(Tokens.of(x) for x in real)).compress(Problem.of(q, k, v))
        problems += [Problem.of(q, k, v), Problem.of(q, k, v, sliding_window=9), ragged]
    for p in problems:
        for fill in fills:
            for backend in ("cpu", "reference"):
                pipeline = Pipeline([stage, sk.Attend(backend), Decompress(fill, dense_last=2)])
                plan, expected = pipeline.run(p)
                with torch.device("meta"):
                    again, out = pipeline.run(p)
                    work, pairs, truth = again.work(p), again.pairs(p), oracle(p, again)
                    kept, density = again.kept(p), again.density(p)
                assert again == plan and (kept, density) == (plan.kept(p), plan.density(p))
                assert torch.equal(out.o, expected.o) and torch.equal(work, plan.work(p))
                assert torch.equal(pairs, plan.pairs(p))
                same(out, truth)


def test_a_dense_call_makes_none_either():
    q, k, v = (x.detach() for x in inputs(13))
    expected = Pipeline()(q, k, v)
    with torch.device("meta"):
        assert torch.equal(Pipeline()(q, k, v), expected)
