"""What is measured: seeded inputs, and the plans and pipelines that run on them."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from sparsekit import Blocks, Pipeline, Plan, Problem, SlidingWindow, Tokens

BLOCK = 128
Make = Callable[[Problem], Plan]


@dataclass(frozen=True)
class Case:
    """A plan made in advance (`plan`): attend alone is timed; or a pipeline (`spec`): deciding is timed with it."""

    name: str
    plan: Make | None = None
    spec: str | None = None

    def decide(self, problem: Problem) -> Plan:
        return self.plan(problem) if self.plan else Pipeline.from_spec(self.spec or "dense").decide(problem)


def problem(L: int, H: int, G: int, D: int, dtype: torch.dtype, device: torch.device, seed: int = 0) -> Problem:
    """A causal prefill whose attention has the usual shape: near neighbours, the first key, a few keys all look at."""
    random = torch.Generator().manual_seed(seed)
    randn = lambda *shape: torch.randn(*shape, generator=random)  # noqa: E731
    spread = 256  # tokens over which neighbours stay alike
    coarse = randn(G, D, L // spread + 2)
    drift = torch.nn.functional.interpolate(coarse, scale_factor=spread, mode="linear")[..., :L].mT * 1.5
    common = randn(G, 1, D)
    heavy = (torch.rand(G, L, 1, generator=random) < 0.02).float()
    heavy[:, 0] = 2.0
    k = drift + 0.5 * randn(G, L, D) + 1.5 * heavy * common
    q = (drift + 0.7 * common).repeat_interleave(H // G, 0) + 0.5 * randn(H, L, D)
    # in a row: with any other stride SDPA leaves its fused kernel, and would make a poor yardstick
    q, k, v = (x[None].to(device, dtype).contiguous() for x in (q, k, randn(G, L, D)))
    return Problem.of(q, k, v)


def random_blocks(density: float) -> Make:
    """Per head random causal blocks, the first column and the diagonal always: about this part of the dense work."""

    def plan(p: Problem) -> Plan:
        I, H = -(-p.q.shape[2] // BLOCK), p.q.shape[1]
        forced = 2 * I - 1  # of I (I + 1) / 2
        chance = max(0.0, (density * I * (I + 1) / 2 - forced) / (I * (I + 1) / 2 - forced))
        random = torch.Generator().manual_seed(0)
        mask = torch.rand(1, H, I, I, generator=random) < chance
        mask[..., 0] = True
        mask |= torch.eye(I, dtype=torch.bool)
        return Plan(blocks=Blocks.of(mask.tril().to(p.q.device), (BLOCK, BLOCK)))

    return plan


def random_tokens(kept: float, fill: SlidingWindow | None = None) -> Make:
    """Per head a random part of the tokens, the same for queries and keys."""

    def plan(p: Problem) -> Plan:
        L, H = p.q.shape[2], p.q.shape[1]
        order = torch.rand(1, H, L, generator=torch.Generator().manual_seed(0)).argsort(-1)
        t = Tokens(order[..., : round(kept * L)].sort(-1).values.int().to(p.q.device), L)
        return Plan(t, t, fill=fill)

    return plan


CASES = [
    *(Case(f"blocks, density {d}", random_blocks(d)) for d in (0.05, 0.1, 0.2, 0.27, 0.5)),
    *(Case(f"tokens, kept {r}", random_tokens(r)) for r in (0.1, 0.3, 0.5)),
    Case("tokens, kept 0.3, window fill", random_tokens(0.3, SlidingWindow(128))),
    Case("TokenCoverage", spec="token_coverage(tau=0.2)"),
    Case("TokenCoverage, window fill", spec="token_coverage(tau=0.2) | decompress(fill=sliding_window(128))"),
    Case("FlexPrefill", spec="flex_prefill(gamma=0.9)"),
    Case(
        "stacked, window fill",
        spec="token_coverage(tau=0.05) | flex_prefill(gamma=0.95) | decompress(fill=sliding_window(128))",
    ),
]
