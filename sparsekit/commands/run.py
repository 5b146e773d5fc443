"""sparsekit run"""

import statistics
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from rich.console import Console
from rich.table import Table
from typer import Option

from ..schedules import read_pipeline
from ..timing import now_ms
from .loading import load, read_prompts
from .options import Device, Model, Most, PromptFiles
from .progress import progress


@dataclass(frozen=True)
class Generation:
    """What a model made of a prompt."""

    first_ms: float  # until the first token was there
    all_ms: float
    tokens: list[int]
    kept: float = 1.0  # part of the queries, in [0, 1], mean over layers
    density: float = 1.0  # part of the dense pairs, in [0, 1], mean over layers


def run(
    model: Model,
    prompt_file: PromptFiles,
    pipeline: Annotated[str, Option(help="Spec of a pipeline, or a schedule: a .json file or a folder with one")],
    tokens: Annotated[int, Option(help="Tokens to generate, at least 1")] = 64,
    most: Most = None,
    device: Device = "auto",
) -> None:
    """Go on from a text, dense and sparse: time to the first token, and the two continuations."""
    from ..parameters import check_count

    check_count("tokens", tokens, 1)
    sparse, console = read_pipeline(pipeline), Console()
    loaded = load(model, device)
    for file, prompt in zip(prompt_file, read_prompts(prompt_file, loaded.tokenizer, most), strict=True):
        found = {}
        with progress() as on_step:
            for done, (name, how) in enumerate({"dense": None, "sparse": sparse}.items()):
                on_step(done, 2, name)
                found[name] = _generate(loaded.model, prompt, tokens, how)
        console.print(f"{file}: {len(prompt):,} tokens", markup=False, highlight=False, soft_wrap=True)
        console.print(_table(found))
        same = found["dense"].tokens == found["sparse"].tokens
        for name, one in found.items():
            text = loaded.tokenizer.decode_after(prompt, one.tokens).decode(errors="replace")
            console.print(f"{name}: {text!r}", markup=False, highlight=False, soft_wrap=True)
        console.print("the continuations are the same" if same else "the continuations DIFFER", highlight=False)


def _generate(model: Any, prompt: list[int], tokens: int, pipeline: Any) -> Generation:
    """Greedy; the same prefill runs once before, untimed, to warm up and to be looked at."""
    from contextlib import nullcontext

    from transformers.generation.streamers import BaseStreamer

    from ..integrations.transformers import LayerCall, sparsify

    times, plans = [], []

    class Clock(BaseStreamer):
        def put(self, value: torch.Tensor) -> None:
            times.append(now_ms(model.device))

        def end(self) -> None:
            pass

    def watch(call: LayerCall) -> None:
        plans.append((call.plan.kept(call.problem), call.plan.density(call.problem)))

    ids = torch.tensor([prompt], device=model.device)
    how: dict[str, Any] = dict(attention_mask=torch.ones_like(ids), do_sample=False)
    with sparsify(model, pipeline, watch=watch) if pipeline is not None else nullcontext():
        model.generate(ids, max_new_tokens=1, **how)
    with sparsify(model, pipeline) if pipeline is not None else nullcontext():
        began = now_ms(model.device)
        out = model.generate(ids, max_new_tokens=tokens, streamer=Clock(), **how)  # puts the prompt, then each token
        all_ms = now_ms(model.device) - began
    kept, density = (statistics.mean(column) for column in zip(*plans, strict=True)) if plans else (1.0, 1.0)
    return Generation(times[1] - began, all_ms, out[0, len(prompt) :].tolist(), kept, density)


def _table(found: dict[str, Generation]) -> Table:
    table = Table("", caption="kept: queries, density: pairs, both mean over layers")
    for name in ("first token ms", "speed-up", "all ms", "kept", "density"):
        table.add_column(name, justify="right")
    for name, one in found.items():
        speed_up = f"{found['dense'].first_ms / one.first_ms:.2f}x"
        figures = f"{one.first_ms:,.0f}", speed_up, f"{one.all_ms:,.0f}", f"{one.kept:.3f}", f"{one.density:.3f}"
        table.add_row(name, *figures)
    return table
