"""The arguments on which tests run an op, and the tensors that they compare in its results."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from sparsekit import Output, Problem, dispatch
from sparsekit.samples import Samples

WHERE = "cuda" if torch.cuda.is_available() else "cpu"


def arguments(op: str, draw: Samples) -> list[tuple]:
    """Return the arguments that an op's definition makes from samples."""
    return [*dispatch.definition(op).samples(draw).values()]


def tensors(answer: Any) -> list[Tensor]:
    """Return the tensors in an op's result, in order."""
    if isinstance(answer, Tensor):
        return [answer]
    values = answer if isinstance(answer, tuple) else vars(answer).values()
    return [x for x in values if isinstance(x, Tensor)]


def doubled(x: Any) -> Any:
    """Return an argument with its numbers in float64."""
    if isinstance(x, Tensor):
        return x.double() if x.is_floating_point() else x
    if isinstance(x, Problem):
        return replace(x, q=x.q.double(), k=x.k.double(), v=x.v.double())
    return Output(x.o.double(), x.lse.double()) if isinstance(x, Output) else x
