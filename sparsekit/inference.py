"""No gradients: what is computed here has none, and a backward pass says so instead of giving wrong ones."""

from typing import Any, NoReturn, TypeVar

import torch
from torch import Tensor

from .problem import Output

REFUSAL = (
    "pipeline: got a backward pass through it; a sparse pipeline is for inference, and has no gradients: call it under "
    "torch.no_grad(), or take dense attention, such as torch's scaled_dot_product_attention, for training"
)
Answer = TypeVar("Answer", Tensor, Output)


def needs_gradients(*inputs: Tensor) -> bool:
    """Return whether what is computed from the inputs is expected to have gradients."""
    return torch.is_grad_enabled() and any(x.requires_grad for x in inputs)


def inference_only(answer: Answer, *inputs: Tensor) -> Answer:
    """Return the answer, computed from the inputs under `torch.no_grad()`, so that its backward pass raises ValueError.

    Without it the answer would be a constant to the backward pass, which would leave its part out and say nothing.
    """
    tensors = (answer.o, answer.lse) if isinstance(answer, Output) else (answer,)
    found = _WithoutBackward.apply(len(tensors), *tensors, *inputs)
    return type(answer)(*found) if isinstance(answer, Output) else found[0]


class _WithoutBackward(torch.autograd.Function):
    """Hands on the first `n` tensors as results that depend on all."""

    @staticmethod
    def forward(n: int, *tensors: Tensor) -> Any:
        return tuple(x.view_as(x) for x in tensors[:n])

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Keep nothing: there is no backward pass."""

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> NoReturn:
        raise ValueError(REFUSAL)

    jvp = backward
