"""Every family of models in every mode of calling them, judged: python bench/transformers_matrix.py [--check]

Tiny random models under sparsekit beside the same model under SDPA (eager where it has no SDPA), on the transformers
that is installed. Writes bench/records/transformers-VERSION.json, and docs/transformers.md from these files and those
of bench/transformers_sweep.py; with --check it judges nothing, and exits 1 if the page is not what they say.
"""

import json
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import transformers
import typer
from rich.progress import track
from torch import Tensor
from transformers import PreTrainedModel, StaticCache

import sparsekit as sk
from bench import transformers_sweep
from sparsekit import Pipeline, oracle
from sparsekit.files import write_whole
from sparsekit.integrations.transformers import LayerCall, sparsify

ROOT = Path(__file__).parent.parent
RECORDS = ROOT / "bench" / "records"
PAGE = ROOT / "docs" / "transformers.md"

SMALL = dict(
    vocab_size=64, hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4,
    num_key_value_heads=2, head_dim=16, max_position_embeddings=512, pad_token_id=0, eos_token_id=None,
    bos_token_id=None,
)  # fmt: skip
SLIDING = dict(sliding_window=24, layer_types=("sliding_attention", "full_attention", "full_attention"))
EXPERTS = dict(num_experts_per_tok=2, moe_intermediate_size=32)
LATENT = dict(
    num_key_value_heads=4, head_dim=8, q_lora_rank=24, kv_lora_rank=16, qk_nope_head_dim=16, qk_rope_head_dim=8,
    v_head_dim=12, n_routed_experts=4, n_group=2, topk_group=1, first_k_dense_replace=1,
)  # fmt: skip
# a family's classes, and how a tiny one is made
FAMILIES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "Llama": ("LlamaForCausalLM", "LlamaConfig", {}),
    "Mistral": ("MistralForCausalLM", "MistralConfig", dict(sliding_window=24)),
    "Qwen2": ("Qwen2ForCausalLM", "Qwen2Config", SLIDING | dict(use_sliding_window=True)),
    "Qwen3": ("Qwen3ForCausalLM", "Qwen3Config", SLIDING | dict(use_sliding_window=True)),
    "Qwen3-MoE": ("Qwen3MoeForCausalLM", "Qwen3MoeConfig", EXPERTS | dict(num_experts=4)),
    "Gemma 2": ("Gemma2ForCausalLM", "Gemma2Config", SLIDING),
    "Gemma 3": ("Gemma3ForCausalLM", "Gemma3TextConfig", SLIDING),
    "Gemma 4": (
        "Gemma4ForCausalLM",
        "Gemma4TextConfig",
        SLIDING | dict(vocab_size_per_layer_input=64, hidden_size_per_layer_input=8, num_kv_shared_layers=1),
    ),
    "Phi-3": ("Phi3ForCausalLM", "Phi3Config", dict(sliding_window=24)),
    "GPT-OSS": ("GptOssForCausalLM", "GptOssConfig", SLIDING | dict(num_local_experts=4, num_experts_per_tok=2)),
    "GLM-4": ("Glm4ForCausalLM", "Glm4Config", {}),
    "OLMo 2": ("Olmo2ForCausalLM", "Olmo2Config", {}),
    "Cohere 2": ("Cohere2ForCausalLM", "Cohere2Config", SLIDING),
    "DeepSeek-V3": ("DeepseekV3ForCausalLM", "DeepseekV3Config", EXPERTS | LATENT),
}

# settings that keep everything: by no stage, by tokens and blocks, by block lists
DENSE = (
    Pipeline(),
    Pipeline([sk.TokenCoverage(tau=0.0), sk.FlexPrefill(gamma=1.0, tau=0.0)]),
    Pipeline([sk.BlockTopK(keep=1.0, block_size=8)]),
)
STACKED = Pipeline(
    [
        sk.TokenCoverage(tau=0.3, voters=8, pool=3, min_tokens=8),
        sk.FlexPrefill(gamma=0.5, block_size=8),
        sk.Decompress(sk.SlidingWindow(4)),
    ],
    break_even=0,  # so short, dense attention is faster anywhere
)
BLOCKS = Pipeline([sk.FlexPrefill(gamma=0.5, block_size=8)], break_even=0)
CLOSE = 1e-5  # relative, in float32, after three layers: what rounding leaves


def build(family: str) -> PreTrainedModel:
    """A tiny model of a family with random weights. Raises AttributeError where transformers lacks the family."""
    model, config, how = FAMILIES[family]
    torch.manual_seed(0)
    how = SMALL | {name: list(value) if isinstance(value, tuple) else value for name, value in how.items()}
    return getattr(transformers, model)(getattr(transformers, config)(**how)).eval()


def reference(model: PreTrainedModel) -> str:
    return "sdpa" if model._supports_sdpa else "eager"


# --- modes ----------------------------------------------------------------------------------------------------------


def ids(*shape: int, seed: int = 1) -> Tensor:
    return torch.randint(1, 64, shape, generator=torch.Generator().manual_seed(seed))


def whole(model: PreTrainedModel) -> Tensor:
    return model(ids(2, 90)).logits


def without_cache(model: PreTrainedModel) -> Tensor:
    return model(ids(1, 90), use_cache=False).logits


def left_padded(model: PreTrainedModel) -> Tensor:
    mask = torch.ones(2, 90, dtype=torch.long)
    mask[0, :37] = 0
    return model(ids(2, 90) * mask, attention_mask=mask).logits[mask.bool()]


def right_padded(model: PreTrainedModel) -> Tensor:
    mask = torch.ones(2, 90, dtype=torch.long)
    mask[1, 60:] = 0
    return model(ids(2, 90) * mask, attention_mask=mask).logits[mask.bool()]


def chunks(model: PreTrainedModel) -> Tensor:
    mask = torch.ones(2, 90, dtype=torch.long)
    mask[0, :5] = 0
    first = model(ids(2, 90)[:, :40], attention_mask=mask[:, :40], use_cache=True)
    return model(ids(2, 90)[:, 40:], attention_mask=mask, past_key_values=first.past_key_values).logits


def static_cache(model: PreTrainedModel) -> Tensor:
    cache = StaticCache(config=model.config, max_cache_len=128)
    first = model(ids(1, 90)[:, :50], past_key_values=cache).logits
    return torch.cat([first, model(ids(1, 90)[:, 50:], past_key_values=cache).logits], 1)


POSITIONS = torch.cat([torch.arange(50), torch.arange(40)])[None]


def packed(model: PreTrainedModel) -> Tensor:
    return model(ids(1, 90), position_ids=POSITIONS, use_cache=False).logits


def packed_by_bounds(model: PreTrainedModel) -> Tensor:
    """As a collator for packed training data says it; with the cache that transformers makes unasked."""
    bounds = torch.tensor([0, 50, 90], dtype=torch.int32)
    said = dict(cu_seq_lens_q=bounds, cu_seq_lens_k=bounds, max_length_q=50, max_length_k=50)
    return model(ids(1, 90), position_ids=POSITIONS, **said).logits


def one_by_one(model: PreTrainedModel) -> Tensor:
    """What packed sequences must equal: SDPA itself does not read their bounds."""
    return torch.cat([model(x).logits for x in ids(1, 90).split([50, 40], 1)], 1)


def one_by_one_by_positions(model: PreTrainedModel) -> Tensor:
    answer = one_by_one(model)
    if error(packed(model), answer) > CLOSE:
        raise ValueError("the model reads positions that start anew as one sequence")
    return answer


def _generate(model: Any, rows: int = 2, **how: Any) -> Tensor:
    out = model.generate(
        ids(rows, 60), max_new_tokens=6, do_sample=False, output_logits=True, return_dict_in_generate=True, **how
    )
    return torch.stack(out.logits)


def generate(model: PreTrainedModel) -> Tensor:
    return _generate(model)


def generate_left_padded(model: PreTrainedModel) -> Tensor:
    mask = torch.ones(2, 60, dtype=torch.long)
    mask[1, :21] = 0
    return _generate(model, attention_mask=mask)


def generate_in_chunks(model: PreTrainedModel) -> Tensor:
    return _generate(model, prefill_chunk_size=40)


def generate_static(model: PreTrainedModel) -> Tensor:
    return _generate(model, cache_implementation="static")


def attention_weights(model: PreTrainedModel) -> Tensor:
    out = model(ids(2, 40), output_attentions=True)
    if len(out.attentions) != model.config.num_hidden_layers:
        raise ValueError("the model gives no attention weights")
    return torch.cat([x.flatten() for x in (out.logits, *out.attentions)])


def compiled(model: PreTrainedModel) -> Tensor:
    torch._dynamo.reset()
    return torch.compile(model, backend="eager")(ids(2, 90)).logits


@dataclass(frozen=True)
class Mode:
    """A way to call a model, and what its answer must equal."""

    run: Callable[[PreTrainedModel], Tensor]
    truth: Callable[[PreTrainedModel], Tensor]
    eager: bool = False  # the truth is eager attention's, SDPA cannot say it


MODES = {
    "whole prefill": Mode(whole, whole),
    "`use_cache=False`": Mode(without_cache, without_cache),
    "left-padded": Mode(left_padded, left_padded),
    "right-padded": Mode(right_padded, right_padded),
    "chunks, padded": Mode(chunks, chunks),
    "StaticCache, two chunks": Mode(static_cache, static_cache),
    "packed, positions": Mode(packed, one_by_one_by_positions),
    "packed, `cu_seq_lens`": Mode(packed_by_bounds, one_by_one),
    "generate": Mode(generate, generate),
    "generate, left-padded": Mode(generate_left_padded, generate_left_padded),
    "`prefill_chunk_size`": Mode(generate_in_chunks, generate_in_chunks),
    "generate, static": Mode(generate_static, generate_static),
    "`output_attentions`": Mode(attention_weights, attention_weights, eager=True),
    "`torch.compile`": Mode(compiled, whole),
}

# --- judging --------------------------------------------------------------------------------------------------------


class Wrong(AssertionError):
    """An answer that is not what it must equal."""


@dataclass(frozen=True)
class Cell:
    """How a family fared in a mode. Every answer was right, or there is none."""

    sparse: bool  # some layer computed less than dense
    dense: tuple[str, ...]  # why layers ran dense in spite of their pipeline
    unsupported: str | None = None  # what the model itself said


def judge(model: PreTrainedModel, mode: Mode) -> Cell:
    """Dense settings must equal the reference, sparse ones the oracle. Raises Wrong."""
    model.set_attn_implementation("eager" if mode.eager else reference(model))
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            expected = mode.truth(model)
        except Exception as refusal:  # whatever a model says to what it does not do
            return Cell(False, (), f"{type(refusal).__name__}: {str(refusal).splitlines()[0]}")
        for pipeline in DENSE:
            with sparsify(model, pipeline):
                _require(error(mode.run(model), expected), f"{pipeline} is not dense attention")
        sparse, reasons = False, set[str]()
        for pipeline in (STACKED, BLOCKS):
            calls: list[LayerCall] = []
            with sparsify(model, pipeline, watch=calls.append) as handle:
                answer = mode.run(model)
            for call in calls:
                if call.output is not None:
                    truth = oracle(call.problem, call.plan).o
                    _require(error(call.output.o, truth), f"{pipeline}, layer {call.layer}: not the plan's pairs")
            ran_sparse = any(call.plan.density(call.problem) < 1 for call in calls)
            if not ran_sparse:
                _require(error(answer, expected), f"{pipeline}: dense, but not right")
            sparse, reasons = sparse or ran_sparse, reasons | set(handle.dense.values())
    return Cell(sparse, tuple(sorted(reasons)))


def error(answer: Tensor, truth: Tensor) -> float:
    """|answer - truth| / |truth|, Frobenius."""
    return ((answer.double() - truth.double()).norm() / truth.double().norm()).item()


def _require(found: float, what: str) -> None:
    if not found < CLOSE:
        raise Wrong(f"{what}: error {found:.3g}")


# --- the page -------------------------------------------------------------------------------------------------------


def main(
    check: Annotated[bool, typer.Option("--check", help="Judge and write nothing; exit 1 if the page is old")] = False,
    records: Annotated[Path, typer.Option(help="Folder of the transformers-VERSION.json files")] = RECORDS,
    docs: Annotated[Path, typer.Option(help="The page")] = PAGE,
) -> None:
    """Judge all families in all modes on the installed transformers, and bring the page up to date."""
    if not check:
        record = {
            "transformers": transformers.__version__,
            "torch": torch.__version__,
            "families": {name: _row(name) for name in track(FAMILIES, transformers.__version__)},
        }
        write_whole(records / f"transformers-{transformers.__version__}.json", json.dumps(record, indent=1) + "\n")
        write_whole(docs, page(records))
    elif docs.read_text() != page(records):
        typer.echo(f"{docs.name}: not what the records say; run python bench/transformers_matrix.py")
        raise typer.Exit(1)


def _row(family: str) -> dict[str, Any] | None:
    """Of each mode its cell; None where transformers lacks the family."""
    try:
        model = build(family)
    except AttributeError:
        return None
    return {name: vars(judge(model, mode)) for name, mode in MODES.items()}


def read(records: Path = RECORDS) -> list[dict[str, Any]]:
    """The record of each transformers version, the lowest first."""
    found = [json.loads(path.read_text()) for path in records.glob("transformers-*.json")]
    return sorted(found, key=lambda record: [int(part) for part in record["transformers"].split(".")])


def page(records: Path = RECORDS) -> str:
    """One table a version, and what its marks mean; then what the sweep of all classes found."""
    tables = (line for record in read(records) for line in _table(record))
    return "\n".join([INTRODUCTION, *tables, *_sweeps(records)]) + "\n"


def _sweeps(records: Path) -> Iterator[str]:
    for path in sorted(records.glob("transformers/sweep-*.jsonl")):
        found = transformers_sweep.read(path)
        versions = sorted({f"transformers {x['transformers']}, torch {x['torch']}" for x in found.values()})
        yield f"\n## Every decoder class of {'; '.join(versions)}\n"
        yield SWEEP
        yield from transformers_sweep.paragraph(found)


HOW = transformers_sweep
SWEEP = f"""From `python bench/transformers_sweep.py`: tiny models as transformers' own model tests build them or, where
none does, of a small config by its fields' names, with random weights of standard deviation {HOW.SPREAD}. Each is
called with {HOW.TOKENS} random tokens, with a left-padded batch of them, with what its tests give it (images, sounds),
and with random tokens after that; random numbers stand for another part's output where it needs one. Under
`{HOW.DENSE}` and `{HOW.KEEP_ALL}` nothing may change; `{HOW.SPARSE}` tells which
layers are sparse. Names are without ForCausalLM and the like.
"""


INTRODUCTION = """# Transformers, family by family

Written by `python bench/transformers_matrix.py` from `bench/records/`; change nothing here. Tiny random models of each
family, called in each mode. In every cell that is not empty, settings that keep everything give the answers of the
same model under SDPA (eager where it has none), and what sparse settings compute equals dense attention under the
plan's pairs in float64.

- **sparse**: every layer ran its pipeline, alone blocks and tokens with blocks, and computed less than dense.
- **sparse (1)**: some layers ran dense, for the reason with that number; a warning names it.
- **dense (1)**: all layers ran dense, through the model's own attention.
- **-**: not supported by the model itself, by this version of transformers, for the reason with that number.

In layers with a sliding window a token stage keeps every token and a block stage chooses inside the window: the layer
runs its pipeline, and is counted as such. Dense layers run the model's own SDPA on a CPU, to the bit; on a GPU
FlashAttention, as sparsekit calls it, wherever it takes the call.

## What holds for every model

- **Which models.** `sparsify` looks at the code of a model's modules, not at its name. A layer can run a pipeline if
  its attention asks transformers' `AttentionInterface`, has a number (`layer_idx`), and gives every implementation the
  same arguments; whether it is causal the mask of each call says. A model none of whose chosen layers can is a
  ValueError that says why. Parts without such layers, a vision tower or an encoder, keep their own implementation.
- **What runs.** `print(handle)` shows the pipeline of each layer, how often layers were called and how often they were
  sparse, about what the last calls kept, and which layers ran dense and why; `handle.dense` has the reasons that are
  not the pipeline's own by layer, and a warning says each once. Where no layer was sparse in any call, a warning says
  so, with the reason, when the model is given back. The figures are of lists that are counted and not looked at: a
  block counts whole, and of heads that keep different numbers of tokens the largest counts.
- **Decode is dense.** At most 32 new tokens over a cache are decode: a step, or the verification of a draft (prompt
  lookup, an assistant). More are a prefill chunk; a prompt without a cache is a prefill however short it is.
- **Batches.** A row of a padded or packed batch gets what the same row gets alone: its sinks, neighbours, last queries,
  budget, and a `break_even` in keys go by its own tokens. Two exceptions, both of padding in the middle of a row: in a
  layer with a sliding window the model itself counts it, so its neighbours do too; and models that mix tokens outside
  attention (DeepSeek-V4, BLT) read what padding left there, which is zero in a sparse layer. `break_even="auto"` goes
  by the time of the whole call, however many rows it has.
- **Given back.** Handles may be left or restored in any order, entered again, or dropped. `restore()` also takes back
  an earlier call of `sparsify` whose handle nobody holds any more, as a notebook's cell that ran twice leaves it.
- **Copies** (`copy.deepcopy`, `pickle`, replicas, quantised copies) are sparse like the original, and nobody watches
  them. `set_attn_implementation("sdpa")` makes a copy dense.
- **Gradients.** Evaluation runs with or without `torch.no_grad()`. A backward pass through a sparse layer raises a
  ValueError, and so does a model in training mode. Layers without a pipeline can be trained.
- **torch.compile** takes prompts of several lengths; a sparse prefill is a graph break, decode is one graph.
  **torch.export** holds each sparse layer as one operator, `sparsekit::prefill`, for any padding and length.

The `sparsekit.json` beside a model is found by `sparsify(model)`. By `attn_implementation="sparsekit"` alone it is
found only where the layers' config is the one that was loaded: a layer knows nothing else of its model, and inside a
model of several parts (text and vision) the part's config does not know the folder. A layer that finds none says so
and runs dense. There, call `sparsify(model)`. Models that build their attention from a table of classes (GIT, the
vision tower of DeepSeek-OCR 2) cannot be loaded by the name at all: transformers raises a KeyError."""


def _table(record: dict[str, Any]) -> Iterator[str]:
    reasons: list[str] = []

    def numbered(found: list[str]) -> str:
        for reason in found:
            if reason not in reasons:
                reasons.append(reason)
        return f" ({', '.join(str(reasons.index(reason) + 1) for reason in found)})" if found else ""

    def cell(found: dict[str, Any]) -> str:
        if found["unsupported"]:
            return "-" + numbered([found["unsupported"]])
        return ("sparse" if found["sparse"] else "dense") + numbered(found["dense"])

    yield f"\n## transformers {record['transformers']}, torch {record['torch'].partition('+')[0]}\n"
    families = {name: row for name, row in record["families"].items() if row}
    yield f"| mode | {' | '.join(families)} |"
    yield f"|---|{'---|' * len(families)}"
    for mode in MODES:
        yield f"| {mode} | {' | '.join(cell(row[mode]) for row in families.values())} |"
    yield ""
    yield from (f"{number}. {reason}" for number, reason in enumerate(reasons, 1))
    if missing := [name for name, row in record["families"].items() if not row]:
        yield f"\nNot in this version: {', '.join(missing)}."


if __name__ == "__main__":
    typer.run(main)
