"""Tests that need a GPU: low precision on tensor cores, long inputs, waits of the host, CUDA graphs."""

import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from closeness import no_worse, plain_torch
from strategies import randn
from test_cpu import some, tiles
from test_grid import test_a_kernel_answers_as_its_definition  # noqa: F401  # on a GPU as well

import sparsekit as sk
from sparsekit import NoBackendError, Pipeline, Plan, Problem, SlidingWindow, attend, dispatch, graphs, oracle, room

pytestmark = pytest.mark.gpu
CHOOSING = (  # stages whose choices have a size that depends on the data
    "token_coverage(tau=0.3, min_tokens=100)",
    "token_coverage(tau=0.3, min_tokens=100, per='group') | decompress(fill=sliding_window(128, sinks=2))",
    "token_coverage(tau=0.3, min_tokens=100) | decompress(fill=sliding_window(128, sinks=2), dense_last=64)",
    "flex_prefill(gamma=0.9)",
    "flex_prefill(gamma=0.9, tau=1)",
    "token_coverage(tau=0.3, min_tokens=100) | flex_prefill(gamma=0.9)",
    "token_coverage(tau=0.3, min_tokens=100) | block_threshold(alpha=0.1, queries='mean')",
)
BACKENDS = [b for b in dispatch.BACKENDS if b != "reference" and dispatch.table()["attend"][b] is None]
DENSE = [b for b in BACKENDS if b != "hopper"]  # backends that attend without block lists, too
# queries, keys, key/value heads, head dim, dtype
CASES = [
    (1, 1, 1, 64, torch.bfloat16),
    (127, 127, 4, 64, torch.bfloat16),
    (129, 129, 8, 128, torch.bfloat16),
    (129, 129, 1, 128, torch.float16),
    (4097, 4097, 4, 128, torch.bfloat16),
    (4097, 4097, 8, 64, torch.float16),
    (1, 4097, 1, 128, torch.float16),
    (1000, 4097, 4, 128, torch.bfloat16),
    (515, 515, 2, 128, torch.float32),
]


def on_gpu(x):
    move = lambda t: t and sk.Tokens(t.idx.cuda(), t.n, t.full)  # noqa: E731
    b = x.blocks
    blocks = b and sk.Blocks(b.counts.cuda(), b.indices.cuda(), b.size, b.n)
    queries = move(x.queries)
    return Plan(queries, queries if x.keys is x.queries else move(x.keys), blocks, x.fill, x.dense_last)


def plans(B, H, Q, K):
    """Yield dense plans, lists per head, some empty, kept tokens with fills and last queries, both, and keys alone."""
    yield "dense", Plan()
    yield "blocks", Plan(blocks=tiles(2, H, Q, K, 128, 0.3, B))
    holes = tiles(3, 1, Q, K, 64, 0.5, B).mask()
    holes[:, :, ::3] = False
    yield "empty lists", Plan(blocks=sk.Blocks.of(holes, (64, 64)))
    if Q == K:
        t, few = some(1, K, 0.4, H, B), some(7, K, 0.05, H, B)
        yield "tokens", Plan(t, t, fill=SlidingWindow(128, sinks=3))
        yield "few tokens", Plan(few, few, fill=SlidingWindow(100, sinks=0))
        yield "window and sinks", Plan(t, t, fill=SlidingWindow(128))
        yield "few tokens, many sinks", Plan(few, few, fill=SlidingWindow(100, sinks=150), dense_last=200)
        yield "last queries besides", Plan(t, t, fill=SlidingWindow(64, sinks=0), dense_last=200)
        yield "tokens and blocks", Plan(t, t, tiles(4, H, t.idx.shape[-1], t.idx.shape[-1], 128, 0.4, B))
    yield (
        "other keys than queries",
        Plan(some(5, Q, 0.5, 1, B), some(6, K, 0.4, H, B), fill=SlidingWindow(200, sinks=0)),
    )


def poisoned(x):
    """Return the same values on the GPU, in the middle of a larger tensor of NaN."""
    room = torch.full((x.shape[0] + 2, x.shape[1], x.shape[2] + 256, x.shape[3]), float("nan")).to("cuda", x.dtype)
    inside = room[1:-1, :, 128:-128]
    inside.copy_(x)
    return inside


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("Q,K,G,D,dtype", CASES)
def test_the_error_is_that_of_plain_torch(backend, Q, K, G, D, dtype):
    q, k, v = (poisoned(randn(i, 3, h, n, D, dtype=torch.float32).to(dtype)) for i, (h, n) in
               enumerate([(8, Q), (G, K), (G, K)]))  # fmt: skip
    p = Problem.of(q, k, v)
    for name, plan in plans(3, 8, Q, K):
        plan = on_gpu(plan)
        rows = torch.linspace(0, Q - 1, min(Q, 64), device="cuda").long()
        truth, plain = oracle(p, plan, rows), plain_torch(p, plan, rows)
        for mode in ("gather", "indexed") if plan.queries else ("gather",):
            try:
                out = attend(p, plan, backend=backend, compress=mode)
            except NoBackendError as reason:
                assert str(reason)
                continue
            assert out.o.isfinite().all(), (name, mode)
            no_worse(out.o[:, :, rows], plain.o, truth.o, dtype)
            finite = truth.lse.isfinite()
            assert torch.equal(out.lse[:, :, rows].isfinite(), finite), (name, mode)
            no_worse(out.lse[:, :, rows][finite], plain.lse[finite], truth.lse[finite], dtype)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("Q,K,window", [(515, 515, 1), (4097, 4097, 100), (1000, 4097, 1024)])
def test_a_sliding_window(backend, Q, K, window):
    x = (poisoned(randn(i, 2, h, n, 128, dtype=torch.float32).to(torch.bfloat16)) for i, (h, n) in
         enumerate([(8, Q), (2, K), (2, K)]))  # fmt: skip
    p = Problem.of(*x, sliding_window=window)
    rows = torch.linspace(0, Q - 1, 64, device="cuda").long()
    ran = []
    for name, plan in plans(2, 8, Q, K):
        plan = on_gpu(plan)
        truth, plain = oracle(p, plan, rows), plain_torch(p, plan, rows)
        for mode in ("gather", "indexed") if plan.queries else ("gather",):
            try:
                out = attend(p, plan, backend=backend, compress=mode)
            except NoBackendError:
                continue
            ran.append(name)
            no_worse(out.o[:, :, rows], plain.o, truth.o, torch.bfloat16)
            assert torch.equal(out.lse[:, :, rows].isfinite(), truth.lse.isfinite()), (name, mode)
    assert backend != "triton" or {"dense", "blocks", "empty lists"} <= set(ran)


@pytest.mark.parametrize("backend", [b for b in BACKENDS if b != "cpu"])
@pytest.mark.parametrize("D", [96, 256, 40])
def test_other_head_dims(backend, D):
    q, k, v = (randn(i, 1, h, 515, D, dtype=torch.float32).to("cuda", torch.bfloat16) for i, h in enumerate((4, 2, 2)))
    p = Problem.of(q, k, v)
    for _, plan in plans(1, 4, 515, 515):
        plan = on_gpu(plan)
        try:
            out = attend(p, plan, backend=backend)
        except NoBackendError:
            continue
        no_worse(out.o, plain_torch(p, plan).o, oracle(p, plan).o, torch.bfloat16)


def test_past_two_to_the_31_elements():
    """A 32-bit offset would overflow before the last head and the last rows."""
    L, H, D = 600_000, 32, 128
    q = torch.randn(1, H, L, D, device="cuda", dtype=torch.bfloat16)
    k, v = (torch.randn(1, 4, L, D, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    assert q.numel() > 2**31
    p = Problem.of(q, k, v)
    kept = (torch.arange(L, device="cuda") % 50 == 0).expand(1, 1, L).clone()
    kept[..., -300:] = True
    t = sk.Tokens.of(kept)
    plan = Plan(t, t, fill=SlidingWindow(64, sinks=0))
    out = attend(p, plan, backend="triton")
    rows = torch.tensor([0, 49, L // 2, L - 400, L - 1], device="cuda")
    last = p.head(H - 1)
    truth = oracle(last, plan.head(H - 1, H), rows)
    assert ((out.o[:, -1:, rows].double() - truth.o).norm() / truth.o.norm()).item() < 2**-6  # the rounding of bfloat16


@pytest.mark.parametrize("D, Dv", [(64, 64), (128, 128), (192, 128), (40, 40)])
@pytest.mark.parametrize("Q, K", [(515, 515), (129, 515), (1, 515), (3000, 3000), (2999, 3000), (1, 3000)])
@pytest.mark.parametrize("causal", [True, False])
def test_dense_calls_of_known_shapes(D, Dv, Q, K, causal):
    """The second call runs the kernel alone. The tensors are transposed [B, L, H, D], as a projection writes them."""
    pipeline = Pipeline([sk.TokenCoverage(), sk.FlexPrefill()], break_even=5000)
    rows = torch.arange(0, Q, 1 + Q // 100, device="cuda")
    for seed in range(2):
        q, k, v = (
            randn(seed, 2, L, h, d, dtype=torch.float32).to("cuda", torch.bfloat16).transpose(1, 2)
            for L, h, d in ((Q, 32, D), (K, 4, D), (K, 4, Dv))
        )
        p = Problem.of(q, k, v, causal)
        plain, truth = plain_torch(p, rows=rows).o, oracle(p, Plan(), rows).o
        no_worse(pipeline(q, k, v, causal=causal)[:, :, rows], plain, truth, torch.bfloat16)


@pytest.mark.parametrize("backend", [b for b in BACKENDS if b != "cpu"])
@pytest.mark.parametrize("spec", ["dense", "streaming(sinks=128, window=512)", "balanced", *CHOOSING])
def test_a_pipeline_of_known_sizes_is_captured_in_a_graph(backend, spec):
    steps = *Pipeline.from_spec(spec).named_form(), sk.Attend(backend, break_even=0)
    pipeline = Pipeline(sorted(steps, key=lambda step: isinstance(step, sk.Decompress)))
    x = [torch.randn(1, h, 2048, 128, device="cuda", dtype=torch.bfloat16) for h in (8, 2, 2)]
    try:
        pipeline(*x)  # compiles
    except NoBackendError as reason:
        pytest.skip(str(reason))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = pipeline(*x)
    for tensor in x:
        tensor.copy_(torch.randn_like(tensor))
    graph.replay()
    torch.testing.assert_close(captured, pipeline(*x))


@pytest.mark.parametrize("spec", [
    "dense", "streaming(sinks=128, window=512)", "block_topk(keep=0.3)", "balanced", *CHOOSING,
])  # fmt: skip
@pytest.mark.parametrize("room_for_all", [True, False])
def test_how_often_the_host_waits(spec, room_for_all, monkeypatch):
    """The host waits once for each choice of unknown size, if there is no room for all entries; else never."""
    if not room_for_all:
        monkeypatch.setattr(room, "most", lambda device: 0)
    pipeline = Pipeline([Pipeline.from_spec(spec)], break_even=0)
    x = [torch.randn(1, h, 4096, 128, device="cuda", dtype=torch.bfloat16) for h in (8, 2, 2)]
    pipeline(*x)
    chosen = 0 if room_for_all else sum(spec.count(name) for name in ("token_coverage", "flex_prefill"))
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            pipeline(*x)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert sum("synchronizing" in str(w.message) for w in caught) <= chosen


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("scale", [-0.1, 0.0])
def test_a_scale_that_is_not_above_zero(backend, scale):
    q, k, v = (randn(i, 1, h, 515, 64, dtype=torch.float32).to("cuda", torch.bfloat16) for i, h in enumerate((4, 2, 2)))
    p = Problem.of(q, k, v, scale=scale)
    seen = torch.ones(515, 515, dtype=torch.bool, device="cuda").tril()
    x = [t.double() for t in (q, k.repeat_interleave(2, 1), v.repeat_interleave(2, 1))]
    scores = (x[0] @ x[1].mT * scale).masked_fill(~seen, float("-inf"))
    if backend in DENSE:
        no_worse(attend(p, backend=backend).o, plain_torch(p).o, scores.softmax(-1) @ x[2], torch.bfloat16)
    for name, plan in plans(1, 4, 515, 515):
        plan = on_gpu(plan)
        try:
            out = attend(p, plan, backend=backend)
        except NoBackendError:
            continue
        assert out.o.isfinite().all(), name
        no_worse(out.o, plain_torch(p, plan).o, oracle(p, plan).o, torch.bfloat16)


@pytest.mark.parametrize("backend", [b for b in DENSE if b != "cpu"])
@pytest.mark.parametrize("window,sinks", [(2**31, 0), (2**40, 2**33), (3, 2**31 + 3)])
def test_a_window_or_sinks_too_large_for_a_position_mean_all(backend, window, sinks):
    q, k, v = (randn(i, 1, h, 515, 64, dtype=torch.float32).to("cuda", torch.bfloat16) for i, h in enumerate((4, 2, 2)))
    p, kept = Problem.of(q, k, v), some(7, 515, 0.2, 4, 1)
    large, whole = (
        on_gpu(Plan(kept, kept, fill=fill)) for fill in (SlidingWindow(window, sinks), SlidingWindow(515, 515))
    )
    truth = oracle(p, whole).o
    assert torch.equal(large.pairs(p), whole.pairs(p)) and torch.equal(large.work(p), whole.work(p))
    no_worse(attend(p, large, backend=backend).o, plain_torch(p, whole).o, truth, torch.bfloat16)


@pytest.mark.parametrize("name", ["attend", "blocks", "window"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_later_key_that_is_no_number_reaches_no_earlier_row(name, bad):
    q, k, v = (randn(i, 1, h, 300, 64, dtype=torch.float32).to("cuda", torch.bfloat16) for i, h in enumerate((4, 2, 2)))
    k[:, :, 200] = bad
    kept = some(7, 300, 0.3, 4, 1)
    plan = {
        "attend": Plan(),
        "blocks": Plan(blocks=tiles(2, 4, 300, 300, 128, 0.7, 1)),
        "window": Plan(kept, kept, fill=SlidingWindow(128, sinks=3)),
    }[name]
    out = attend(Problem.of(q, k, v), on_gpu(plan), backend="triton")
    assert out.o[:, :, :200].isfinite().all()


def test_large_activations_in_float16_choose_what_they_choose_in_float32():
    x = [randn(i, 1, 4, 512, 64, dtype=torch.float32).cuda() for i in range(3)]
    x[:2] = [t * 200 for t in x[:2]]
    for stage in (
        sk.TokenCoverage(tau=0.2, voters=16, min_tokens=8, sinks=2),
        sk.FlexPrefill(gamma=0.9, block_size=64),
    ):
        wide, half = (Problem.of(*y, scale=1 / 320_000) for y in (x, [t.half() for t in x]))
        a, b = stage(wide), stage(half)
        assert abs(a.density(wide) - b.density(half)) < 0.02


@pytest.mark.parametrize("D", [64, 128, 96, 40])
@pytest.mark.parametrize("queries", ["each", "mean"])
def test_block_threshold_chooses_what_it_chooses_on_a_cpu(queries, D):
    """Key blocks have topics, and query blocks look for one, so no score is near the threshold."""
    L, H, G, m = 4096, 8, 2, 128
    topics = torch.eye(D)[torch.randint(16, (1, G, L // m), generator=torch.Generator().manual_seed(1))]
    wanted = torch.eye(D)[torch.randint(16, (1, H, L // m), generator=torch.Generator().manual_seed(2))]
    k, q = (8 * x.repeat_interleave(m, 2) for x in (topics, wanted))
    stage = sk.BlockThreshold(alpha=0.1, sinks=128, window=256, queries=queries)
    here = Problem.of(q, k, k)
    there = Problem.of(*(x.to("cuda", torch.bfloat16) for x in (q, k, k)))
    chosen, expected = stage(there).blocks.mask().cpu(), stage(here).blocks.mask()
    assert torch.equal(chosen, expected) and 0.1 < expected.float().mean() < 0.5
    no_worse(attend(there, stage(there)).o, plain_torch(there, stage(there)).o, oracle(there, stage(there)).o,
             torch.bfloat16)  # fmt: skip


@pytest.fixture
def no_graphs():
    graphs.clear()
    yield graphs
    graphs.clear()


def given(seed, L=2048, H=8):
    return [
        randn(seed + i, 1, h, L, 128, dtype=torch.float32).to("cuda", torch.bfloat16) for i, h in enumerate((H, 2, 2))
    ]


@pytest.mark.parametrize(
    "spec", ["balanced", "lossless", "streaming(sinks=128, window=256) | decompress(dense_last=64)", *CHOOSING]
)
def test_calls_of_a_known_shape_are_a_graph_and_answer_alike(spec, no_graphs):
    pipeline = Pipeline([Pipeline.from_spec(spec)], break_even=0)
    for L in (2048, 1900, 2048):
        for seed in range(0, 15, 3):
            x = given(seed, L)
            assert torch.equal(pipeline(*x), pipeline.output(*x).o)
    assert 2 <= len(no_graphs._held) <= 2 * (1 + no_graphs.PLACES) and not no_graphs._waiting


@pytest.mark.parametrize("spec", ["balanced", *CHOOSING])
def test_tensors_where_the_last_ones_lay_are_read_there(spec, no_graphs):
    pipeline, x = Pipeline([Pipeline.from_spec(spec)], break_even=0), given(0)
    for seed in range(0, 15, 3):
        for mine, other in zip(x, given(seed), strict=True):
            mine.copy_(other)
        assert torch.equal(pipeline(*x), pipeline.output(*x).o)
    assert [graph._copied for graph in no_graphs._held.values()] == [[]]


def test_few_graphs_read_where_tensors_lie(no_graphs):
    pipeline, xs = Pipeline([Pipeline.from_spec("balanced")], break_even=0), [given(3 * i) for i in range(5)]
    for _ in range(2):
        for x in xs:
            expected = pipeline.output(*x).o
            assert all(torch.equal(pipeline(*x), expected) for _ in range(3))
    assert len(no_graphs._held) == 1 + no_graphs.PLACES


def test_what_waits_for_the_device_is_no_graph(no_graphs, monkeypatch):
    monkeypatch.setattr(room, "most", lambda device: 0)
    pipeline = Pipeline([sk.TokenCoverage(tau=0.3, min_tokens=100)], break_even=0)
    for seed in range(0, 9, 3):
        x = given(seed)
        assert torch.equal(pipeline(*x), pipeline.output(*x).o)
    assert not no_graphs._held and len(no_graphs._waiting) == 1


def test_answers_of_a_graph_are_not_overwritten_and_its_memory_is_bounded(no_graphs):
    pipeline = Pipeline([Pipeline.from_spec("balanced")], break_even=0)
    x, y = given(0), given(3)
    pipeline(*x), pipeline(*x)
    first = pipeline(*x)
    before = first.clone()
    pipeline(*y)
    assert torch.equal(first, before)
    for L in range(1200, 1200 + 2 * no_graphs.MOST):
        for _ in range(2):
            pipeline(*given(0, L))
    assert len(no_graphs._held) == no_graphs.MOST


@pytest.mark.parametrize("modes", [(torch.inference_mode, torch.no_grad), (torch.no_grad, torch.inference_mode)])
def test_a_graph_serves_calls_in_either_mode(modes, no_graphs):
    pipeline, x = Pipeline([Pipeline.from_spec("balanced")], break_even=0), given(0)
    expected = pipeline.output(*x).o
    for mode in modes:
        for _ in range(3):
            with mode():
                assert torch.equal(pipeline(*x), expected)
    assert len(no_graphs._held) == 1


def test_threads_and_streams_have_graphs_of_their_own(no_graphs):
    pipeline = Pipeline([Pipeline.from_spec("balanced")], break_even=0)
    xs = [given(3 * i) for i in range(4)]
    expected = [pipeline.output(*x).o for x in xs]
    torch.cuda.synchronize()

    def work(i):
        with torch.cuda.stream(torch.cuda.Stream()):
            answers = [pipeline(*xs[i]) for _ in range(6)]
            torch.cuda.current_stream().synchronize()
        return all(torch.equal(answer, expected[i]) for answer in answers)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(4)))


def test_a_call_inside_somebody_elses_graph_is_recorded_there(no_graphs):
    pipeline, x = Pipeline([Pipeline.from_spec("balanced")], break_even=0), given(0)
    for _ in range(3):
        expected = pipeline(*x)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = pipeline(*x)
    graph.replay()
    assert torch.equal(captured, expected)


@pytest.mark.parametrize("n", [2**15 + 1, 100_003, 2**17])
@pytest.mark.parametrize("rows", [1, 3, 32])
def test_long_rows_are_searched_by_many_programs(rows, n):
    """The entries are whole numbers, so sums are exact, and every program's share of a row has ties."""
    x = randn(n, rows, n, dtype=torch.float32).cuda().mul(4).round().abs()
    x[:, ::1001] = torch.inf
    run = lambda op, *args: [dispatch.run(op, "cuda", *args, backend=by) for by in ("triton", "reference")]  # noqa: E731
    for keep in (0, 1, n // 7, n - 1, n):
        mine, theirs = run("select_tokens", x[:, None], torch.full((rows, 1), keep, device="cuda"))
        assert torch.equal(mine.idx, theirs.idx)
    for tau in (0.0, 0.3, 0.9, 1.0):
        assert torch.equal(*run("token_budget", x, tau, torch.tensor(n)))
    finite = torch.nan_to_num(x, posinf=0.0)
    for largest in (True, False):
        for part in (0.0, 0.3, 0.9, 1.0):
            assert torch.equal(*run("coverage_count", finite, (finite.sum(-1) * part).round(), largest))
