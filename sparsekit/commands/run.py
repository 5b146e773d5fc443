"""sparsekit run"""

import statistics
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Annotated, Any

import torch
from rich.console import Console
from rich.table import Table
from typer import Option

from ..parameters import check_count
from ..schedules import read_pipeline
from ..timing import now_ms
from .loading import load, read_prompts
from .options import Device, Model, Most, PromptFiles
from .progress import progress

WARM_UP = 64  # tokens, on a CPU


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
    """Greedy, after a warm-up that is not timed.

    On a GPU that is the same prefill, and it is looked at there: kernels are compiled for the lengths they meet, and
    looking waits for the device. A CPU compiles nothing and waits for nothing: a few tokens warm it up.
    """
    from transformers.generation.streamers import BaseStreamer

    from ..integrations.transformers import LayerCall, sparsify

    times, seen = [], []

    class Clock(BaseStreamer):
        def put(self, value: torch.Tensor) -> None:
            times.append(now_ms(model.device))

        def end(self) -> None:
            pass

    def watch(call: LayerCall) -> None:
        p = call.problem
        q, k = (x.new_empty(*x.shape[:3], 0) for x in (p.q, p.k))
        seen.append((call.plan, replace(p, q=q, k=k, v=k)))  # positions are all that counts

    def sparsified(looked_at: bool) -> AbstractContextManager:
        return sparsify(model, pipeline, watch=watch if looked_at else None) if pipeline is not None else nullcontext()

    def generate(ids: torch.Tensor, **how: Any) -> torch.Tensor:
        return model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, **how)

    ids = torch.tensor([prompt], device=model.device)
    with sparsified(looked_at=ids.is_cuda):
        generate(ids if ids.is_cuda else ids[:, :WARM_UP], max_new_tokens=1)
    with sparsified(looked_at=not ids.is_cuda):
        began = now_ms(model.device)
        out = generate(ids, max_new_tokens=tokens, streamer=Clock())  # puts the prompt, then each token
        all_ms = now_ms(model.device) - began
    plans = [(plan.kept(problem), plan.density(problem)) for plan, problem in seen]
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
