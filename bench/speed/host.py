"""The host time that `sparsify` adds to a layer: python -m bench.speed.host --device cpu

A tiny Llama with random weights reads a prompt so short that its arithmetic takes no time compared with its calls.
Each way to attend takes turns with the least code that does the same: an attention function that only calls the
pipeline, or transformers' own SDPA if a pipeline is dense or a token is decoded. The difference, by layer, is the cost
of the integration. On a GPU the host's time ends when the model's forward pass returns; the device may still compute.
The times are printed, not recorded, because records are by chip and not by host.
"""

import cProfile
import pstats
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Annotated, Any

import torch
import typer
from torch import Tensor
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    AutoModelForCausalLM,
    DynamicCache,
    LlamaConfig,
    LlamaForCausalLM,
)
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from bench.speed.timing import wait
from sparsekit import Pipeline
from sparsekit.integrations.transformers import sparsify

LAYERS, TOKENS = 8, 64
SPECS = {
    "streaming": "streaming",
    "top blocks": "block_topk",
    "tokens": "token_coverage",
    "both": "token_coverage | flex_prefill",
}
NEVER = 2**30  # a break-even, in keys, that no prompt here reaches
Forward = Callable[[], Any]


def build(device: torch.device, dtype: torch.dtype, layers: int = LAYERS) -> LlamaForCausalLM:
    """Return a seeded model whose layers compute next to nothing."""
    config = LlamaConfig(
        vocab_size=128, hidden_size=64, intermediate_size=64, num_hidden_layers=layers, num_attention_heads=2,
        num_key_value_heads=1, head_dim=HEAD_DIM[device.type], max_position_embeddings=4096, bos_token_id=None,
        eos_token_id=None,
    )  # fmt: skip
    torch.manual_seed(0)
    with device:
        made = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")
    return made.eval()


HEAD_DIM = {"cpu": 32, "cuda": 64}  # the smallest that the kernels there support


@contextmanager
def bare(model: LlamaForCausalLM, pipeline: Pipeline) -> Any:
    """Return a context in which attention is a call of the pipeline and nothing else."""

    def attend(module: Any, q: Tensor, k: Tensor, v: Tensor, *_: Any, scaling: float, **__: Any) -> tuple[Tensor, None]:
        return pipeline(q, k, v, scale=scaling).transpose(1, 2).contiguous(), None

    AttentionInterface.register("bare", attend)
    AttentionMaskInterface.register("bare", sdpa_mask)
    model.set_attn_implementation("bare")
    try:
        yield
    finally:
        model.set_attn_implementation("sdpa")


def prefill(model: LlamaForCausalLM, tokens: int) -> Forward:
    ids = torch.arange(tokens, device=model.device)[None] % 128
    return lambda: model.model(ids, use_cache=False)


def decode(model: LlamaForCausalLM, tokens: int) -> Forward:
    """Return a function that decodes one token over a cache and removes it from the cache again."""
    cache = DynamicCache(config=model.config)
    model.model(torch.arange(tokens, device=model.device)[None] % 128, past_key_values=cache, use_cache=True)
    one = torch.zeros(1, 1, dtype=torch.int64, device=model.device)

    def step() -> None:
        model.model(one, past_key_values=cache, use_cache=True)
        cache.crop(tokens - cache.get_seq_length())

    return step


def host_ms(model: LlamaForCausalLM, run: Forward, within: Callable[[], AbstractContextManager]) -> tuple[float, float]:
    """Return ms per layer of a forward pass that begins on an idle device: the whole, and its attention and masks."""
    spent = 0.0

    def timed(function: Callable) -> Callable:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal spent
            started = time.perf_counter()
            answer = function(*args, **kwargs)
            spent += time.perf_counter() - started
            return answer

        return call

    with within():
        name = model.config._attn_implementation
        attention, mask = ALL_ATTENTION_FUNCTIONS[name], ALL_MASK_ATTENTION_FUNCTIONS[name]
        AttentionInterface.register(name, timed(attention))
        AttentionMaskInterface.register(name, timed(mask))
        try:
            wait(model.device)
            started = time.perf_counter()
            run()
            whole = time.perf_counter() - started
        finally:
            AttentionInterface.register(name, attention)
            AttentionMaskInterface.register(name, mask)
    layers = model.config.num_hidden_layers
    return whole * 1e3 / layers, spent * 1e3 / layers


def added(
    model: LlamaForCausalLM,
    run: Forward,
    mine: Callable[[], AbstractContextManager],
    least: Callable[[], AbstractContextManager],
    repeats: int,
) -> list[float]:
    """Return ms per layer: the least code, and what is added to its attention, to its fastest and to the whole pass.

    These are medians over turns; turns before the first that counts let caches see the shapes.
    """
    turns = [(*host_ms(model, run, mine), *host_ms(model, run, least)) for _ in range(repeats + 5)][5:]
    whole, attention, least_whole, least_attention = zip(*turns, strict=True)
    median = lambda a, b: statistics.median(x - y for x, y in zip(a, b, strict=True))  # noqa: E731
    return [
        statistics.median(least_attention),
        median(attention, least_attention),
        min(attention) - min(least_attention),
        median(whole, least_whole),
    ]


def call_ms(pipeline: Pipeline, repeats: int, tokens: int, device: torch.device, dtype: torch.dtype) -> float:
    """Return the ms of a call alone, with q [1, 2, L, D] as a projection returns it."""
    q, k, v = (
        torch.randn(1, tokens, h, HEAD_DIM[device.type], device=device, dtype=dtype).transpose(1, 2) for h in (2, 1, 1)
    )
    found = []
    for _ in range(repeats + 5):
        wait(device)
        started = time.perf_counter()
        pipeline(q, k, v)
        found.append((time.perf_counter() - started) * 1e3)
    return statistics.median(found[5:])


def main(
    kind: Annotated[str, typer.Option("--device", help="cpu or cuda")] = "cpu",
    tokens: Annotated[int, typer.Option(help="Tokens of the prompt")] = TOKENS,
    layers: Annotated[int, typer.Option(help="Layers of the model: they share what a pass costs once")] = LAYERS,
    repeats: Annotated[int, typer.Option(help="Turns")] = 200,
    profiled: Annotated[str, typer.Option("--profile", help="Name of a row whose time to profile, too")] = "",
) -> None:
    """Print for each way to attend the host's time of a layer, what sparsify adds to it, and a lone call's time."""
    device = torch.device(kind)
    dtype = torch.float32 if kind == "cpu" else torch.bfloat16
    model = build(device, dtype, layers)
    sparse = {name: Pipeline([Pipeline.from_spec(spec)], break_even=0) for name, spec in SPECS.items()}
    short = Pipeline([Pipeline.from_spec(SPECS["streaming"])], break_even=NEVER)
    cases: dict[str, tuple[Callable, Pipeline, Pipeline | None]] = {
        "prefill, dense": (prefill, Pipeline([]), None),
        "prefill, below break-even": (prefill, short, short),
        **{f"prefill, {name}": (prefill, one, one) for name, one in sparse.items()},
        "decode": (decode, sparse["streaming"], None),
    }
    print(f"{'ms a layer':28}{'call':>8}{'least':>8}{'added':>8}{'of minima':>11}{'to the pass':>13}")
    with torch.inference_mode():
        for name, (make, pipeline, alone) in cases.items():
            if profiled and profiled != name:
                continue
            run = make(model, tokens)
            with sparsify(model, pipeline) as handle:  # entered again it is the same handle, with its caches
                pass
            least = partial(bare, model, alone) if alone else nullcontext
            call = call_ms(pipeline, repeats, tokens, device, dtype)
            found = added(model, run, lambda: handle, least, repeats)
            print("{:28}{:8.3f}{:8.3f}{:8.3f}{:11.3f}{:13.3f}".format(name, call, *found))
            if profiled:
                with handle, cProfile.Profile() as profile:
                    for _ in range(repeats):
                        run()
                pstats.Stats(profile).sort_stats("tottime").print_stats(25)


if __name__ == "__main__":
    typer.run(main)
