"""No gradients: a backward pass through sparse attention raises ValueError instead of giving wrong gradients."""

from typing import Any, NoReturn, TypeVar

import torch
from torch import Tensor

from .problem import Output

REFUSAL = (
    "pipeline: got a backward pass through it; a sparse pipeline is for inference and has no gradients: call it under "
    "torch.no_grad(), or use dense attention, such as torch's scaled_dot_product_attention, for training"
)
Answer = TypeVar("Answer", Tensor, Output)


def needs_gradients(*inputs: Tensor) -> bool:
    """Return whether a result computed from the inputs needs gradients."""
    return torch.is_grad_enabled() and any(x.requires_grad for x in inputs)


def inference_only(answer: Answer, *inputs: Tensor) -> Answer:
    """Return the answer, computed from the inputs under `torch.no_grad()`, so that its backward pass raises ValueError.

    Without that the backward pass would take the answer for a constant, and leave out its gradients without an error.
    """
    tensors = (answer.o, answer.lse) if isinstance(answer, Output) else (answer,)
    results = _WithoutBackward.apply(len(tensors), *tensors, *inputs)
    return type(answer)(*results) if isinstance(answer, Output) else results[0]


class _WithoutBackward(torch.autograd.Function):
    """A function that returns its first `n` tensors, as results that depend on all of them."""

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
