"""What layers of one prefill pass on, and settings of a layer's own found by calibration."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor

from bench.leads.tokens import VotedTokens
from sparsekit import Plan, Problem, Tokens, dispatch
from sparsekit.problem import to_heads
from sparsekit.schedules import Layers, Measured, by_range, choose


@dataclass
class Passed:
    """What a layer left for the next one in this prefill; one of its own for each prompt."""

    plan: Plan | None = None
    votes: Tensor | None = None


@dataclass(frozen=True)
class Reused:
    """The plan of an earlier layer, where it may still stand; else one of its own, which is passed on."""

    stage: VotedTokens
    passed: Passed
    allowed: float = torch.inf  # most of this layer's own votes that may lie on the tokens it drops, in shares of tau
    anew: bool = False  # decides in any case
    chooses: ClassVar[str] = "tokens"

    def __call__(self, problem: Problem) -> Plan:
        last = self.passed.plan
        if self.anew or last is None or self._missed(problem, last) > self.allowed * self.stage.tau:
            self.passed.plan = self.stage(problem)
        assert self.passed.plan is not None
        return self.passed.plan

    def _missed(self, p: Problem, plan: Plan) -> float:
        """The part of the last queries' votes on earlier tokens that the plan drops, over all heads."""
        if self.allowed == torch.inf or plan.queries is None:
            return 0.0
        scores = dispatch.run("window_scores", p.q.device.type, p, self.stage.window)[0]
        scores = scores[..., : -self.stage.window]
        kept = to_heads(plan.queries.kept(), scores.shape[1])[..., : -self.stage.window]
        return 1 - float((scores * kept).sum() / scores.sum().clamp(min=1e-8))


@dataclass(frozen=True)
class Remembered:
    """A probe: the last queries' votes of this layer and, fading, of those before it."""

    passed: Passed = field(default_factory=Passed)
    fade: float = 1.0  # weight of what the layers before voted, in [0, 1]
    window: int = 128

    def __call__(self, p: Problem) -> Tensor:
        votes = dispatch.run("window_scores", p.q.device.type, p, self.window)[0]
        if self.passed.votes is not None:
            votes = votes + self.fade * self.passed.votes
        self.passed.votes = votes
        return votes


def least_work(measured: Sequence[Measured], target: float) -> Layers:
    """For each layer the candidate of least density whose output error is at most 1 - target."""
    layers = sorted({one.layer for one in measured})
    return choose([replace(one, ms=one.density) for one in measured], layers, target).pipeline


def traded(measured: Sequence[Measured], price: float) -> Layers:
    """For each layer the candidate of least density + price * error: an error costs the same in every layer."""
    best: dict[int, Measured] = {}
    for one in measured:
        cost = lambda m: m.density + price * m.error  # noqa: E731
        if one.layer not in best or cost(one) < cost(best[one.layer]):
            best[one.layer] = one
    return by_range({layer: one.pipeline for layer, one in best.items()})


def only(layers: Mapping[int, bool], pipeline: object) -> dict[int | str, object]:
    """That pipeline in the layers that are true."""
    return {layer: pipeline for layer, chosen in layers.items() if chosen} | {"default": "dense"}


def matched(measured: Sequence[Measured], rule: Callable[[Sequence[Measured], float], Layers], spec: str) -> Layers:
    """The rule's schedule whose mean density is nearest to that of `spec` in all layers."""
    density = {(one.layer, one.pipeline): one.density for one in measured}
    layers = sorted({one.layer for one in measured})
    wanted = sum(density[layer, spec] for layer in layers)
    strengths = sorted({1 - one.error for one in measured}) if rule is least_work else np.geomspace(1e-3, 1e3, 400)

    def off(schedule: Mapping[int, str]) -> float:
        return abs(sum(density[layer, one] for layer, one in schedule.items()) - wanted)

    return min((rule(measured, float(strength)) for strength in strengths), key=off)
