"""What layers of one prefill pass on, and settings of a layer's own found by calibration."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from bench.leads.tokens import VotedTokens
from sparsekit import Plan, Problem, dispatch
from sparsekit.problem import to_heads
from sparsekit.schedules import Measured, choose

Rule = Callable[[Sequence[Measured], float], dict[int, Measured]]  # a choice at a strength


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


def least_work(measured: Sequence[Measured], target: float) -> dict[int, Measured]:
    """For each layer the candidate of least density whose output error is at most 1 - target."""
    layers = sorted({one.layer for one in measured})
    return choose([replace(one, ms=one.density) for one in measured], layers, target).chosen


def traded(measured: Sequence[Measured], price: float) -> dict[int, Measured]:
    """For each layer the candidate of least density + price * error: an error costs the same in every layer."""
    best: dict[int, Measured] = {}
    cost = lambda one: one.density + price * one.error  # noqa: E731
    for one in measured:
        if one.layer not in best or cost(one) < cost(best[one.layer]):
            best[one.layer] = one
    return best


def matched(measured: Sequence[Measured], rule: Rule, spec: str) -> dict[int, str]:
    """By layer, the specs of the rule's densest choice that is no denser than `spec` in all layers, but for 2%."""
    work = lambda of: sum(one.density for one in of)  # noqa: E731
    most = 1.02 * work(one for one in measured if one.pipeline == spec)
    strengths = sorted({one.score for one in measured}) if rule is least_work else np.geomspace(1e-3, 1e3, 400)
    made = (rule(measured, float(strength)) for strength in strengths)
    chosen = max((one for one in made if work(one.values()) <= most), key=lambda one: work(one.values()))
    return {layer: one.pipeline for layer, one in chosen.items()}


def only(layers: Mapping[int, bool], pipeline: object) -> dict[int | str, object]:
    """That pipeline in the layers that are true."""
    return {layer: pipeline for layer, chosen in layers.items() if chosen} | {"default": "dense"}
