"""Time to the first token of a whole model: python -m bench.speed.end_to_end --device cuda --lengths 32K,128K

A model of a named shape with random weights reads a prompt of random tokens into a new cache. With random weights
attention is not sparse, so the parameters of every pipeline here fix how much it computes, whatever the scores are: a
number of tokens or of blocks. The times are for that amount of work; they do not claim that it is enough for a trained
model. The record says what each layer kept and computed. The recipes run beside them with break-even (`auto`): they
find little to skip there, and must cost little.

`--model FOLDER` reads real text with a real model instead. Then the recipes run, each once with its stages forced and
once with break-even (`auto`), which must be no slower than dense attention at any length.

Dense attention is transformers' SDPA and the fastest kernel that sparsekit has; speed-ups are over the faster of both.
First one layer's output is compared with float64 on sampled rows, and a wrong one is not timed. Then the contenders
take turns. Passes of their own show where the time goes and how often a pass waits for the GPU.
"""

import statistics
import traceback
import warnings
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import typer
from rich.console import Console
from rich.progress import track
from torch import Tensor
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    AutoModelForCausalLM,
    DynamicCache,
    LlamaConfig,
    PreTrainedModel,
)
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from bench.records import Record, append, path_for, provenance
from bench.speed import timing
from bench.speed.cases import Spec, coverage, spec, sunk
from bench.speed.contender import Contender, Skipped, work
from bench.speed.inputs import lengths
from bench.speed.judge import Judge, Judged, Wrong
from bench.speed.report import PREFILL, summary
from sparsekit import Pipeline, Plan, dispatch
from sparsekit.commands.loading import Loaded, load
from sparsekit.integrations.transformers import LayerCall, Watch, sparsify
from sparsekit.recipes import PIPELINES
from sparsekit.testbed import read_text

MODELS = {
    "llama-3.1-8b": dict(
        hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32,
        num_key_value_heads=8, head_dim=128, vocab_size=128256, max_position_embeddings=131072,
        rope_parameters={"rope_type": "default", "rope_theta": 500000.0},
    ),
    "tiny": dict(
        hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
        head_dim=16, vocab_size=128, max_position_embeddings=4096,
    ),
}  # fmt: skip
BLOCKS = 0.04  # part of a length that FlexPrefill keeps in key blocks, and again in diagonals
BEHIND, FROM = 1.1, 16384  # dense attention slower by BEHIND at FROM tokens or more is left out afterwards
TIMED = "sparsekit, timed"
progress = Console(stderr=True, width=120)


@dataclass(frozen=True)
class Case:
    """One way to attend in every layer: a pipeline by its spec for a length, or transformers' SDPA."""

    name: str
    spec: Spec | None = None
    dense: bool = False
    break_even: Literal["auto"] | int = 0  # 0: the stages run even if they cost more than they save

    def spec_of(self, length: int) -> str:
        return "dense" if self.spec is None else self.spec(length)

    def on(self, model: PreTrainedModel, length: int, watch: Watch | None = None) -> AbstractContextManager[Any]:
        """Return a context in which the model attends in this way."""
        if self.spec is None:
            return nullcontext()
        pipeline = Pipeline([Pipeline.from_spec(self.spec(length))], break_even=self.break_even)
        return sparsify(model, pipeline, watch=watch)


def blocks(share: float, of: float = 1.0) -> Spec:
    """Return FlexPrefill with fixed lists: gamma is so low that it keeps its least number of blocks.

    `of` is the part of the tokens that it sees.
    """
    return lambda length: f"flex_prefill(gamma=0.01, min_budget={max(round(share * of * length), 1)})"


def stacked(length: int) -> str:
    return coverage(0.3, blocks(BLOCKS, 0.3)(length))(length)


CASES = [
    Case("dense, SDPA", dense=True),
    Case("dense, sparsekit", spec("flex_prefill(gamma=1.0)"), dense=True),  # gamma 1 makes no lists: all pairs
    Case("TokenCoverage, kept 0.3", coverage(0.3)),
    Case("FlexPrefill", blocks(BLOCKS)),
    Case("stacked", stacked),
    Case("TokenCoverage, kept 0.15, window fill with sinks", sunk),
]
ON_REAL = {name: spec(make().to_spec()) for name, make in PIPELINES.items()}
ON_REAL["TokenCoverage, kept 0.15, window fill with sinks"] = sunk
DECIDED = [Case(f"{name}, auto", one, break_even="auto") for name, one in ON_REAL.items()]
REAL = [*CASES[:2], *(Case(name, one) for name, one in ON_REAL.items()), *DECIDED]


@dataclass
class Seen:
    """Observations of one watched pass of a case."""

    backend: str = "sdpa"
    kept: list[float] = field(default_factory=list)  # by layer, like density
    density: list[float] = field(default_factory=list)
    judged: Judged | None = None  # of one layer


def build(name: str, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    """Return a seeded model of a shape, built on its device in its dtype, so that memory holds it once."""
    config = LlamaConfig(**MODELS[name], bos_token_id=None, eos_token_id=None)  # type: ignore[arg-type]
    with torch.random.fork_rng([device] if device.type == "cuda" else []), device:
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa").eval()


def text(loaded: Loaded, length: int) -> Tensor:
    """Return the first tokens [1, L] of the text that evaluations hide facts in. Raises ValueError if it has fewer."""
    data = read_text(None)[: 16 * length]  # more bytes than a token has
    tokens = loaded.tokenizer.encode(data)[:length]
    if len(tokens) < length:
        raise ValueError(f"lengths: got {length:,} tokens; allowed are at most {len(tokens):,}: ask for fewer")
    return torch.tensor([tokens], device=loaded.model.device)


def prompt(model: PreTrainedModel, length: int) -> Tensor:
    """Return seeded random tokens [1, L]."""
    random = torch.Generator().manual_seed(0)
    return torch.randint(model.config.vocab_size, (1, length), generator=random).to(model.device)


@torch.no_grad()
def first_token(model: PreTrainedModel, ids: Tensor) -> Tensor:
    """Read the whole prompt into a new cache and return the most probable next token, [1]."""
    cache = DynamicCache(config=model.config)
    return model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[:, -1].argmax(-1)


def watched(case: Case, model: PreTrainedModel, ids: Tensor) -> Seen:
    """Run a first pass and return what each layer kept and computed, and the middle layer's error (not for SDPA).

    Raises Skipped if a layer could not run the pipeline, Wrong if its output is wrong.
    """
    layers, length = model.config.num_hidden_layers, ids.shape[1]
    if case.spec is None:
        first_token(model, ids)
        return Seen(kept=[1.0] * layers, density=[1.0] * layers)
    seen = Seen()
    refused: list[str] = []

    def watch(call: LayerCall) -> None:
        p, plan = call.problem, call.plan
        seen.kept.append(round(plan.kept(p), 5))
        seen.density.append(round(work(p, plan) / work(p, Plan()), 5))
        if call.layer == layers // 2 and (output := call.output) is not None:
            short = plan.compress(p), Plan(blocks=plan.blocks)
            seen.backend = dispatch.choose("attend", p.q.device.type, *short)
            one = Contender(case.name, seen.backend, "ours", lambda clock: output.o, plan, case.spec_of(length))
            judge = Judge(p, lambda text: progress.print(text, markup=False, highlight=False))
            judge.consider(case.name, seen.backend, "ours", lambda: [one])
            seen.judged = next(iter(judge.judged), None)
            refused.extend(line.get("refused") or line["skipped"] for line in judge.lost)

    with case.on(model, length, watch) as handle:
        first_token(model, ids)
    for layer, reason in handle.dense.items() if case.break_even != "auto" else ():
        raise Skipped(f"layer {layer} ran dense: {reason}")
    for reason in refused:
        raise Wrong(reason)
    return seen


def turns(
    cases: Iterable[Case], model: PreTrainedModel, ids: Tensor, repeats: int
) -> tuple[dict[str, list[float]], dict[str, int | None]]:
    """Return by case the times in ms to the first token, and torch's peak of bytes, the model included.

    Each turn begins with another contender.
    """
    order, device = list(cases), ids.device
    ms: dict[str, list[float]] = {case.name: [] for case in order}
    peak: dict[str, int | None] = dict.fromkeys(ms)
    for turn in track(range(repeats), "turns", console=progress):
        first = turn % max(len(order), 1)
        for case in (*order[first:], *order[:first]):
            with case.on(model, ids.shape[1]):
                one = Contender(case.name, "", PREFILL, lambda clock: first_token(model, ids))
                if device.type == "cuda":
                    torch.cuda.reset_peak_memory_stats(device)
                ms[case.name].append(timing.once(one, device))
                if device.type == "cuda":
                    peak[case.name] = max(peak[case.name] or 0, torch.cuda.max_memory_allocated(device))
    return ms, peak


def look(case: Case, model: PreTrainedModel, ids: Tensor) -> Record:
    """Return, from a pass of its own, the time of attention, its memory, and how often the pass waits for the GPU.

    `attention_bytes` is the peak that a layer's attention holds besides its q, k, v, its output included. A copy of
    the keys, which dense attention does not make, shows there. It and `syncs` are None on a CPU.
    """
    gpu, marks, held = ids.is_cuda, timing.Marks(ids.device), [0]
    with case.on(model, ids.shape[1]):
        first_token(model, ids)  # what a first call compiles or records is no part of what is looked at
        before = model.config._attn_implementation
        within = ALL_ATTENTION_FUNCTIONS[before]

        def timed(*args: Any, **kwargs: Any) -> Any:
            if gpu:
                torch.cuda.reset_peak_memory_stats(ids.device)
                start = torch.cuda.memory_allocated(ids.device)
            marks.mark()
            answer = within(*args, **kwargs)
            marks.mark()
            if gpu:
                held.append(torch.cuda.max_memory_allocated(ids.device) - start)
            return answer

        AttentionInterface.register(TIMED, timed)
        AttentionMaskInterface.register(TIMED, ALL_MASK_ATTENTION_FUNCTIONS[before])
        model.set_attn_implementation(TIMED)
        try:
            timing.wait(ids.device)
            marks.mark()
            syncs = waits(lambda: first_token(model, ids), ids.device)
            marks.mark()
        finally:
            model.set_attn_implementation(before)
    spans = marks.ms()  # between, attention, between, attention, ..., between
    return {
        "attention_ms": round(sum(spans[1::2]), 4),
        "attention_share": round(sum(spans[1::2]) / sum(spans), 4),
        "attention_bytes": max(held) if gpu else None,
        "syncs": syncs,
    }


def waits(run: Callable[[], Any], device: torch.device) -> int | None:
    """Run a function and return how often it waits for the GPU, as far as torch sees it; None on a CPU."""
    if device.type == "cpu":
        run()
        return None
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            run()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum(timing.SYNC in str(warning.message) for warning in caught)


def measure(cases: list[Case], model: PreTrainedModel, ids: Tensor, repeats: int) -> list[Record]:
    """Return the records of one prompt; a case that could not run has its reason instead of a time."""
    length = ids.shape[1]
    seen: dict[str, Seen] = {}
    looks: dict[str, Record] = {}
    lost: list[Record] = []
    for case in cases:
        try:
            found = watched(case, model, ids)
            looks[case.name] = look(case, model, ids)
            seen[case.name] = found
        except Exception as error:  # one that breaks must not cost the others their time on a borrowed GPU
            reason, how = str(error).split("\n")[0], "refused"
            if isinstance(error, Skipped | torch.OutOfMemoryError):
                how = "skipped"
            elif not isinstance(error, Wrong):
                traceback.print_exc()
                reason = f"{type(error).__name__}: {reason}"
            progress.print(f"  {case.name}: {how}: {reason}", markup=False, highlight=False)
            lost.append({"case": named(case), "backend": "", "kind": PREFILL, how: reason})
    timed = [case for case in cases if case.name in seen]
    spent, peaks = turns(timed, model, ids, repeats)
    ms = {name: timing.percentiles(times) for name, times in spent.items()}
    dense = min((case.name for case in timed if case.dense), key=lambda name: ms[name]["p50"], default=None)
    records: list[Record] = []
    for case in timed:
        mine, one = seen[case.name], ms[case.name]
        records.append(
            {
                "case": named(case),
                "backend": mine.backend,
                "kind": PREFILL,
                "what": case.spec_of(length),
                "kept": round(statistics.mean(mine.kept), 5),
                "density": round(statistics.mean(mine.density), 5),
                "layers": {"kept": mine.kept, "density": mine.density},
                "ms": one,
                "error": mine.judged.error if mine.judged else None,
                "plain_torch_error": mine.judged.plain if mine.judged else None,
                "dense": dense,
                "dense_ms": ms[dense] if dense else None,
                "speed_up": round(ms[dense]["p50"] / one["p50"], 3) if dense else None,
                "peak_bytes": peaks[case.name],
                **looks[case.name],
            }
        )
    return records + lost


def named(case: Case) -> str:
    return f"{PREFILL}, {case.name}"


def behind(cases: list[Case], records: list[Record], length: int) -> list[Case]:
    """Return the dense cases to leave out at longer prompts, because another was far faster at this length."""
    slow = {row["case"] for row in records if "ms" in row and (row["speed_up"] or 1.0) * BEHIND < 1}
    return [case for case in cases if case.dense and named(case) in slow and length >= FROM]


def main(
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cpu",
    model: Annotated[
        str, typer.Option(help=f"{', '.join(MODELS)}, or a folder of a real one; default llama-3.1-8b, on a CPU tiny")
    ] = "",
    tokens: Annotated[str, typer.Option("--lengths", help='Such as "32768,128K", ascending; on a CPU 1K')] = "",
    repeats: Annotated[int, typer.Option(help="Timed turns, at least 3")] = 3,
    only: Annotated[str, typer.Option(help="Pipelines whose name contains this; dense attention always runs")] = "",
    records: Annotated[Path | None, typer.Option(help="File to append to; default bench/records/<chip>.jsonl")] = None,
    commit: Annotated[
        str | None, typer.Option(envvar="SPARSEKIT_COMMIT", help="Git revision to record, on a machine without git")
    ] = None,
) -> None:
    """Measure the prefill of a whole model and append to the records; float32 on a CPU, bfloat16 on a GPU."""
    if device not in ("cpu", "cuda"):
        raise typer.BadParameter(f"device: got {device!r}; allowed are cpu, cuda: name one of those")
    where = torch.device(device)
    gpu = where.type == "cuda"
    if gpu and not torch.cuda.is_available():
        raise typer.BadParameter("device: got 'cuda', but torch sees no GPU here: take cpu")
    shape = model or ("llama-3.1-8b" if gpu else "tiny")
    real = Path(shape).is_dir()
    if shape not in MODELS and not real:
        raise typer.BadParameter(
            f"model: got {shape!r}; allowed are {', '.join(MODELS)} and the folder of a model: name one of those"
        )
    cases = [case for case in (REAL if real else CASES + DECIDED) if case.dense or only in case.name]
    if repeats < 3 or all(case.dense for case in cases):
        raise typer.BadParameter(f"{len(cases)} cases and {repeats} repeats: a pipeline and 3 repeats are needed")
    try:
        sizes = sorted(lengths(tokens or ("32K,128K" if gpu else "1K")))
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    path, dtype, refused = records or path_for(where), torch.bfloat16 if gpu else torch.float32, 0
    loaded = load(shape, device, dtype=str(dtype).removeprefix("torch.")) if real else None
    whole = loaded.model if loaded else build(shape, dtype, where)
    shape, axes = loaded.name if loaded else shape, whole.config
    common = provenance(where, commit) | {
        "shape": {
            "name": shape, "B": 1, "H": axes.num_attention_heads, "G": axes.num_key_value_heads,
            "D": getattr(axes, "head_dim", None) or axes.hidden_size // axes.num_attention_heads,
            "layers": axes.num_hidden_layers,
        },
        "dtype": str(dtype).removeprefix("torch."),
        "inputs": "real weights and text" if loaded else "random weights and tokens",
        "auto": dispatch.AUTO[where.type],
        "model_bytes": sum(x.nbytes for x in whole.parameters()),
    }  # fmt: skip
    dropped: list[Record] = []
    for length in sizes:
        progress.print(f"{length:,} tokens, {shape}, {common['dtype']}", highlight=False)
        found = measure(cases, whole, text(loaded, length) if loaded else prompt(whole, length), repeats)
        lines = [common | {"length": length} | line for line in (*found, *dropped)]
        append(path, lines)
        refused += sum("refused" in line for line in lines)
        Console(width=140).print(summary(lines))
        for case in behind(cases, found, length):
            cases.remove(case)
            slower = f"slower than other dense attention by more than {BEHIND - 1:.0%} at {length:,} tokens"
            dropped.append({"case": named(case), "backend": "", "kind": PREFILL, "skipped": slower})
    if refused:
        progress.print(f"{refused} refused: see above")
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
