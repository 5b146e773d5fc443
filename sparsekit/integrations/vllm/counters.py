"""Counters for Prometheus, beside vLLM's own at /metrics.

vLLM shows what one process counts, or, with the folder PROMETHEUS_MULTIPROC_DIR in the environment, what all count. The
server needs that folder, because the engine runs in another process than the server.
"""

import time
from functools import cache
from typing import Any

from ...plan import Plan
from ...problem import Problem
from .batch import Part
from .settings import Settings

EVERY = 60.0  # seconds between two plans of a GPU that are looked at, because the host waits for the GPU then
PARTS = tuple(i / 20 for i in range(1, 21))  # upper ends of the histograms' classes
_looked: dict[str, float] = {}  # by device type, when a plan was last looked at


@cache
def _metrics() -> dict[str, Any]:
    from prometheus_client import Counter, Histogram

    return {
        "prefills": Counter(
            "sparsekit:prefills", "Prefill steps of requests: a prompt in chunks counts once a chunk", ["by", "reason"]
        ),
        "kept": Histogram("sparsekit:kept", "Part of the queries that a plan keeps, by layer and step", buckets=PARTS),
        "density": Histogram(
            "sparsekit:density", "Part of the dense pairs that a plan computes, by layer and step", buckets=PARTS
        ),
    }


def count_requests(how: Settings, common: Any, found: tuple[Part, ...]) -> None:
    """Count the requests of a step that prefill: which of them a pipeline attends to, and why not to the others."""
    if common.is_prefilling is None:
        return
    prefills, starts = common.is_prefilling.tolist(), common.query_start_loc_cpu.tolist()
    sparse = {part.first for part in found if part.dense is None}
    count = _metrics()["prefills"]
    for row in range(common.num_reqs):
        if not prefills[row] or starts[row + 1] == starts[row]:
            continue
        if starts[row] in sparse:
            count.labels("pipeline", "").inc()
        else:
            few = starts[row + 1] - starts[row] < how.min_tokens
            count.labels("engine", "few new tokens" if few else "part of it is in the cache, or unsupported").inc()


def count_plan(plan: Plan, problem: Problem) -> None:
    """Note what a plan keeps and computes: of each plan on a CPU, of one a minute on a GPU."""
    device, now = problem.q.device.type, time.monotonic()
    if device != "cpu" and now - _looked.get(device, -EVERY) < EVERY:
        return
    _looked[device] = now
    _metrics()["kept"].observe(plan.kept(problem))
    _metrics()["density"].observe(plan.density(problem))
