"""Problems to measure: the shapes of real models, with seeded or with real tensors."""

import re
from dataclasses import dataclass

import torch
from torch import Tensor

from sparsekit import Problem

MODEL_HEADS, MODEL_GROUPS, MODEL_DIM, MODEL_LONGEST = 8, 2, 64, 131072  # of the embedded model


@dataclass(frozen=True)
class Shape:
    """The attention of one layer of a model, or of one rank's part of it."""

    name: str
    H: int  # query heads
    G: int  # key/value heads, a divisor of H
    D: int  # head dim


SHAPES = {
    shape.name: shape
    for shape in (
        Shape("llama-3.1-8b", 32, 8, 128),
        Shape("qwen3-8b", 32, 8, 128),
        Shape("mistral-nemo", 32, 8, 128),
        Shape("llama-70b-tp8", 8, 1, 128),  # one of eight ranks
        Shape("qwen2.5-1.5b", 12, 2, 128),
        Shape("embedded", MODEL_HEADS, MODEL_GROUPS, MODEL_DIM),
        Shape("cpu", 8, 8, 64),
        Shape("small", 4, 2, 64),
    )
}


def lengths(text: str) -> list[int]:
    """Parse lengths: "32768,128K,1M" becomes [32768, 131072, 1048576]."""
    units = {"": 1, "K": 1024, "M": 1024**2}
    found = [re.fullmatch(r"\s*(\d+)([KM]?)\s*", word, re.IGNORECASE) for word in text.split(",")]
    if not all(match and int(match[1]) for match in found):
        raise ValueError(f'lengths: got {text!r}; allowed are numbers of tokens such as "32768,128K,1M": write it so')
    return [int(match[1]) * units[match[2].upper()] for match in found if match]


def structured(length: int, shape: Shape, dtype: torch.dtype, device: torch.device) -> Problem:
    """Return a seeded causal prefill with usual attention: to near keys, the first key, and a few keys for all queries.

    Keys drift, so that tokens up to some 256 apart are alike. One key in fifty carries a direction that every query
    looks for, the first key twice. One key/value group is made at a time, so that a million tokens fit in memory.
    """
    random = torch.Generator(device).manual_seed(0)
    randn = lambda *size: torch.randn(*size, generator=random, device=device)  # noqa: E731
    L, D, spread = length, shape.D, 256
    q = torch.empty(1, shape.H, L, D, dtype=dtype, device=device)
    k, v = (torch.empty(1, shape.G, L, D, dtype=dtype, device=device) for _ in range(2))
    for g, heads in enumerate(q[0].split(shape.H // shape.G)):
        coarse = randn(1, D, L // spread + 2)
        drift = torch.nn.functional.interpolate(coarse, scale_factor=spread, mode="linear")[0, :, :L].mT * 1.5
        common = randn(D)
        heavy = (torch.rand(L, 1, generator=random, device=device) < 0.02).float()
        heavy[0] = 2.0
        k[0, g] = drift + 0.5 * randn(L, D) + 1.5 * heavy * common
        v[0, g] = randn(L, D)
        for one in heads:
            one.copy_(drift + 0.7 * common + 0.5 * randn(L, D))
    return Problem.of(q, k, v)


def from_model(length: int, shape: Shape, dtype: torch.dtype, device: torch.device, layer: int = 4) -> Problem:
    """Return the embedded model's q, k, v of a layer, from a prefill of real text with a hidden fact, in a shape.

    Each group of the shape is one of the model's two, taken in turn, with as many of its query heads, again in turn,
    as the shape has for a group. A head dim of r times 64 is the model's r times over, q scaled by 1 / sqrt(r): the
    product is r times as large, the usual scale 1 / sqrt(D) is smaller by sqrt(r), so the scores do not change.
    """
    from sparsekit.integrations.transformers import LayerCall, sparsify
    from sparsekit.testbed import TASKS, load_model, read_text

    if length > MODEL_LONGEST or shape.D % MODEL_DIM:
        raise ValueError(
            f"inputs: got model at {length} tokens with head dim {shape.D}; allowed are at most {MODEL_LONGEST} tokens "
            f"and multiples of {MODEL_DIM}: take structured inputs"
        )
    caught: list[Problem] = []

    def watch(call: LayerCall) -> None:
        if call.layer == layer:
            caught.append(call.problem)

    model = load_model(dtype, device)
    prompt = TASKS["single_key"](read_text(), length, 0).prompt
    with sparsify(model, "dense", watch=watch), torch.no_grad():
        model(torch.tensor([list(prompt)], device=device), use_cache=False, logits_to_keep=1)
    if not caught:
        raise ValueError(f"layer: got {layer}, which the model lacks: name one from 0 on")
    return tiled(caught[0], shape)


def tiled(problem: Problem, shape: Shape) -> Problem:
    """Repeat the heads and the head dim of a problem to a shape, with the same scores; see `from_model`."""
    (H, D), G = problem.q.shape[1::2], problem.k.shape[1]
    wider = shape.D // D
    group = torch.arange(shape.G, device=problem.q.device) % G
    member = torch.arange(shape.H // shape.G, device=problem.q.device) % (H // G)
    head = (group[:, None] * (H // G) + member).flatten()

    def repeat(x: Tensor, heads: Tensor) -> Tensor:
        return x[:, heads].repeat(1, 1, 1, wider).contiguous()

    return Problem.of(repeat(problem.q * wider**-0.5, head), repeat(problem.k, group), repeat(problem.v, group))


INPUTS = {"structured": structured, "model": from_model}
