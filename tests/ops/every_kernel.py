"""Runs each of our kernels on a small input: compute-sanitizer --tool memcheck python tests/ops/every_kernel.py

It also works with --tool racecheck. Triton's kernels run with rows of one program each, and with rows that programs
share; those for Hopper run if the GPU is one. Each tensor gets memory of its own, so that the tool sees a read past its
end. It prints which ops ran, and fails if one of ours did not.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace

os.environ["PYTORCH_NO_CUDA_MEMORY_CACHING"] = "1"

import torch

from sparsekit import Blocks, Pipeline, Plan, Problem, attend, dispatch
from sparsekit_kernels.triton import coverage_mask

FILL = "decompress(fill=sliding_window(20, sinks=3))"
SPECS = (
    "dense",
    f"token_coverage(tau=0.3, voters=40, min_tokens=30, sinks=2) | {FILL}",
    f'token_coverage(tau=0.3, voters=40, min_tokens=30, sinks=2, per="group") | compress(mode="indexed") | {FILL}',
    "flex_prefill(gamma=0.8, tau=0, block_size=32)",
    "flex_prefill(gamma=0.8, tau=1, block_size=64)",
    "token_coverage(tau=0.3, min_tokens=30, sinks=2) | flex_prefill(gamma=0.8, block_size=32)",
    "block_topk(keep=0.3, block_size=64)",
    'block_threshold(alpha=0.3, sinks=20, window=40, block_size=32, queries="mean")',
    "token_coverage(tau=0.3, voters=40, min_tokens=30, sinks=2) | decompress(fill=sliding_window(20, sinks=0))",
)
# queries, keys, query heads, key heads, head dim, dtype
SHAPES = (
    (389, 389, 4, 2, 128, torch.bfloat16),
    (131, 389, 4, 1, 96, torch.float16),
    (257, 257, 2, 2, 64, torch.float32),
)


def main() -> None:
    ran: set[str] = set()

    @contextmanager
    def note(op: str) -> Iterator[None]:
        ran.add(op)
        yield

    torch.manual_seed(0)
    if torch.cuda.get_device_capability()[0] == 9:
        hopper()
    ours = {op for op, row in dispatch.table().items() if row["triton"] is None}
    each_shape(note)
    print(f"ran with rows of one program: {', '.join(sorted(ours & ran))}", flush=True)
    coverage_mask.LONG = coverage_mask.SPLIT = 64
    each_shape(note)
    if missing := ours - ran:
        raise SystemExit(f"not run: {', '.join(sorted(missing))}")
    print(f"ran: {', '.join(sorted(ours))}")


def each_shape(note: Callable[[str], AbstractContextManager]) -> None:
    dispatch.AUTO["cuda"] = ("triton", "cpu", "reference")
    for Q, K, H, G, D, dtype in SHAPES:
        q, k, v = (torch.randn(2, h, n, D, device="cuda").to(dtype) for h, n in ((H, Q), (G, K), (G, K)))
        with dispatch.timed(note):
            for spec in SPECS:
                pipeline = Pipeline([Pipeline.from_spec(spec)], break_even=0)
                p = Problem.of(q, k, v)
                plan = pipeline.decide(p)
                out = attend(p, plan, compress=pipeline.compress.mode, backend="triton")
                assert out.o.isfinite().all(), spec
                attend(replace(p, sliding_window=50), replace(plan, fill=None), backend="triton")
                if plan.blocks:  # another op that reads the lists
                    dispatch.run("seen_blocks", "cuda", plan.blocks, plan.compress(p).reach())
            # no stage calls this op by its name: the kernels of others call its kernel
            dispatch.run(
                "coverage_mask", "cuda", torch.rand(2, H, K, device="cuda"), torch.rand(2, H, device="cuda"), True
            )


def hopper() -> None:
    """Run the kernels for Hopper. Group sizes, head dims, queries and sinks select kernels or branches in them."""
    dispatch.AUTO["cuda"] = ("hopper", "triton", "cpu", "reference")
    for Q, K, H, G, D, sinks in ((389, 389, 4, 1, 128, 5), (300, 517, 3, 3, 64, 0), (389, 389, 16, 2, 128, 40)):
        q, k, v = (torch.randn(2, h, n, D, device="cuda").bfloat16() for h, n in ((H, Q), (G, K), (G, K)))
        spec = (
            f"token_coverage(tau=0.3, voters=200, min_tokens=30) | decompress(fill=sliding_window(70, sinks={sinks}))"
        )
        pipeline, p = Pipeline([Pipeline.from_spec(spec)], break_even=0), Problem.of(q, k, v)
        plan = pipeline.decide(p)
        short = attend(plan.compress(p))
        for op, args in {"window_scores": (p, 200), "scatter_tokens": (p, plan, short)}.items():
            chosen = dispatch.choose(op, "cuda", *args)
            assert chosen == "hopper", f"{op}: {chosen}"
        assert attend(p, plan).o.isfinite().all(), spec
        for size in (128, 64), (256, 128):
            grid = 2, H, -(-Q // size[0]), -(-K // size[1])
            lists = Plan(blocks=Blocks.of(torch.rand(grid, device="cuda") < 0.6, size))
            assert attend(p, lists, backend="hopper").o.isfinite().all(), size
    print("ran for Hopper: attend, scatter_tokens, window_scores", flush=True)


if __name__ == "__main__":
    main()
