"""The seeded inputs on which plans and outputs of the authors' code were recorded, and the cases.

They come from numpy's RandomState, whose stream never changes. bench/speed/peers/record_vectors.py ran the authors'
code on the same inputs; data/README.md says how.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy
import torch
from safetensors.torch import load_file

DATA = Path(__file__).parent / "data"
ROWS = 48  # output rows stored, spread over the sequence


@dataclass(frozen=True)
class Case:
    """The shape and kind of the inputs, the authors' parameters, and whether our result must be equal."""

    L: int
    heads: tuple[int, int]  # query heads, key/value heads
    D: int
    seed: int
    parameters: dict[str, Any]
    sharp: float = 1.0  # scale of q: how peaked attention is
    shunned: tuple[int, int] = (0, 0)  # keys that no query looks at: their probability is zero
    dtype: torch.dtype = torch.float32
    equal: bool = True
    note: str = field(default="", kw_only=True)


TOKEN_COVERAGE = {
    "small window": Case(700, (4, 4), 16, 0, dict(tau=0.05, voters=32, pool=7, min_tokens=64)),
    "the defaults": Case(1500, (4, 4), 16, 1, dict(tau=0.005, voters=128, pool=7, min_tokens=1024)),
    "grouped heads": Case(640, (8, 2), 32, 2, dict(tau=0.3, voters=64, pool=5, min_tokens=16)),
    "the floor of tokens": Case(700, (2, 2), 16, 3, dict(tau=0.9, voters=32, pool=1, min_tokens=300)),
    "peaked": Case(900, (4, 1), 16, 4, dict(tau=0.02, voters=48, pool=3, min_tokens=0), sharp=3.0),
    "nothing under tau": Case(400, (2, 2), 16, 5, dict(tau=1e-9, voters=32, pool=7, min_tokens=64)),
    "too short": Case(160, (2, 2), 16, 6, dict(tau=0.5, voters=32, pool=7, min_tokens=128)),
    "half precision": Case(
        700, (4, 4), 16, 7, dict(tau=0.2, voters=32, pool=7, min_tokens=64), dtype=torch.float16, equal=False,
        note="theirs rounds the scores to the dtype of q, which ties many",
    ),
    "window no multiple of the tile": Case(
        400, (2, 2), 16, 8, dict(tau=0.2, voters=20, pool=7, min_tokens=64), equal=False, note="theirs scores inf",
    ),
}  # fmt: skip

FLEX_PREFILL = {
    "vertical-slash": Case(1024, (4, 4), 16, 10, dict(gamma=0.9, tau=0.0, block_size=128)),
    "published": Case(1280, (4, 2), 32, 11, dict(gamma=0.9, tau=0.1, block_size=128)),
    "low gamma": Case(1536, (4, 4), 16, 12, dict(gamma=0.5, tau=0.0, block_size=128), sharp=2.0),
    "query-aware": Case(1280, (4, 2), 16, 13, dict(gamma=0.8, tau=0.9, block_size=128)),
    "both kinds of heads": Case(1280, (8, 4), 16, 14, dict(gamma=0.7, tau=0.25, block_size=128), sharp=1.5),
    "budgets": Case(
        1536, (4, 4), 16, 15, dict(gamma=0.6, tau=0.3, block_size=128, min_budget=300, max_budget=600), sharp=1.5
    ),
    "too short": Case(256, (2, 2), 16, 16, dict(gamma=0.5, tau=0.0, block_size=128)),
    "small blocks": Case(
        1024, (4, 4), 16, 17, dict(gamma=0.9, tau=0.0, block_size=32), equal=False,
        note="theirs divides the token count by 128 whatever the block",
    ),
    "ragged length": Case(
        1100, (4, 4), 16, 18, dict(gamma=0.7, tau=0.0, block_size=128), sharp=2.0, equal=False,
        note="theirs pools distances from the far end, so that block diagonals are shifted",
    ),
    "a block of probability zero": Case(
        1024, (2, 2), 16, 19, dict(gamma=0.9, tau=1.0, block_size=128), shunned=(256, 384), equal=False,
        note="theirs has a distance of NaN there and never takes the head for query-aware",
    ),
}  # fmt: skip


def inputs(case: Case) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return q [1, H, L, D], k and v [1, G, L, D]: neighbours attend to each other, and all queries to a few keys."""
    random = numpy.random.RandomState(case.seed)
    (H, G), L, D = case.heads, case.L, case.D
    noise = random.randn(G, L, D)
    drift = numpy.empty_like(noise)
    drift[:, 0] = noise[:, 0]
    for i in range(1, L):
        drift[:, i] = 0.97 * drift[:, i - 1] + (1 - 0.97**2) ** 0.5 * noise[:, i]
    common = random.randn(G, 1, D)
    heavy = random.rand(G, L, 1) < 0.02
    k = drift + 0.5 * random.randn(G, L, D) + 1.5 * heavy * common
    k[:, slice(*case.shunned)] -= 400 * common
    q = drift.repeat(H // G, 0) + 0.7 * common.repeat(H // G, 0) + 0.5 * random.randn(H, L, D)
    v = random.randn(G, L, D)
    return tuple(torch.from_numpy(x[None]).to(case.dtype) for x in (case.sharp * q, k, v))  # type: ignore[return-value]


def rows(case: Case) -> torch.Tensor:
    """Return the indices of the output rows that are stored."""
    return torch.linspace(0, case.L - 1, ROWS).round().long()


def recorded(method: str) -> dict[str, torch.Tensor]:
    """Return the recorded results of the authors' code: "case/name" -> tensor."""
    return load_file(DATA / f"{method}.safetensors")
