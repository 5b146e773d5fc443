"""Test every family of models in every mode of calling them: python bench/transformers_matrix.py [--check]

It compares tiny random models under sparsekit with the same models under SDPA (eager if they have no SDPA), on the
installed transformers. It writes bench/records/transformers-VERSION.json, and docs/transformers.md from these files and
those of bench/transformers_sweep.py. With --check it runs no model, and exits 1 if the page does not match the records.
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
# the classes of each family, and the config fields of a tiny model
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

# settings that keep everything: without a stage, with tokens and blocks, with block lists
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
    break_even=0,  # at these lengths dense attention is always faster
)
BLOCKS = Pipeline([sk.FlexPrefill(gamma=0.5, block_size=8)], break_even=0)
CLOSE = 1e-5  # most relative error in float32 after three layers: rounding stays below it


def build(family: str) -> PreTrainedModel:
    """Return a tiny model of a family with random weights. Raises AttributeError if transformers lacks the family."""
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
    """Call a model with packed sequences as a training collator describes them, and transformers' default cache."""
    bounds = torch.tensor([0, 50, 90], dtype=torch.int32)
    lengths = dict(cu_seq_lens_q=bounds, cu_seq_lens_k=bounds, max_length_q=50, max_length_k=50)
    return model(ids(1, 90), position_ids=POSITIONS, **lengths).logits


def one_by_one(model: PreTrainedModel) -> Tensor:
    """Return the logits that packed sequences must give. SDPA cannot, because it does not read their bounds."""
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
    """A way to call a model, and the call that gives the expected answer."""

    run: Callable[[PreTrainedModel], Tensor]
    truth: Callable[[PreTrainedModel], Tensor]
    eager: bool = False  # the expected answer comes from eager attention, because SDPA cannot give it


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
    """An answer that differs from the expected one."""


@dataclass(frozen=True)
class Cell:
    """The result of a family in a mode. All its answers were right, or the model does not support the mode."""

    sparse: bool  # some layer computed less than dense
    dense: tuple[str, ...]  # why layers ran dense although they had a pipeline
    unsupported: str | None = None  # the model's own error, if it does not support the mode


def judge(model: PreTrainedModel, mode: Mode) -> Cell:
    """Compare dense settings with the reference and sparse ones with the oracle. Raises Wrong if they differ."""
    model.set_attn_implementation("eager" if mode.eager else reference(model))
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            expected = mode.truth(model)
        except Exception as refusal:  # models raise any error for a mode that they do not support
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
    """Return |answer - truth| / |truth|, Frobenius norm."""
    return ((answer.double() - truth.double()).norm() / truth.double().norm()).item()


def _require(relative: float, what: str) -> None:
    """Raise Wrong if an error is not below CLOSE."""
    if not relative < CLOSE:
        raise Wrong(f"{what}: error {relative:.3g}")


# --- the page -------------------------------------------------------------------------------------------------------


def main(
    check: Annotated[
        bool, typer.Option("--check", help="Run no model, write nothing; exit 1 if the page is old")
    ] = False,
    records: Annotated[Path, typer.Option(help="Folder of the transformers-VERSION.json files")] = RECORDS,
    docs: Annotated[Path, typer.Option(help="File of the page")] = PAGE,
) -> None:
    """Test all families in all modes on the installed transformers, and write the page."""
    if not check:
        record = {
            "transformers": transformers.__version__,
            "torch": torch.__version__,
            "families": {name: _row(name) for name in track(FAMILIES, transformers.__version__)},
        }
        write_whole(records / f"transformers-{transformers.__version__}.json", json.dumps(record, indent=1) + "\n")
        write_whole(docs, page(records))
    elif docs.read_text() != page(records):
        typer.echo(f"{docs.name}: does not match the records; run python bench/transformers_matrix.py")
        raise typer.Exit(1)


def _row(family: str) -> dict[str, Any] | None:
    """Return the cell of each mode, or None if transformers lacks the family."""
    try:
        model = build(family)
    except AttributeError:
        return None
    return {name: vars(judge(model, mode)) for name, mode in MODES.items()}


def read(records: Path = RECORDS) -> list[dict[str, Any]]:
    """Return the record of each transformers version, the lowest version first."""
    loaded = [json.loads(path.read_text()) for path in records.glob("transformers-*.json")]
    return sorted(loaded, key=lambda record: [int(part) for part in record["transformers"].split(".")])


def page(records: Path = RECORDS) -> str:
    """Return the page: an introduction, a table for each version, and the results of the sweep of all classes."""
    tables = (line for record in read(records) for line in _table(record))
    return "\n".join([INTRODUCTION, *tables, *_sweeps(records)]) + "\n"


def _sweeps(records: Path) -> Iterator[str]:
    for path in sorted(records.glob("transformers/sweep-*.jsonl")):
        classes = transformers_sweep.read(path)
        versions = sorted({f"transformers {x['transformers']}, torch {x['torch']}" for x in classes.values()})
        yield f"\n## Every decoder class of {'; '.join(versions)}\n"
        yield SWEEP
        yield from transformers_sweep.paragraph(classes)


HOW = transformers_sweep
SWEEP = f"""`python bench/transformers_sweep.py` builds tiny models as transformers' own model tests build them or, if
no test does, from a small config by the names of its fields, with random weights of standard deviation {HOW.SPREAD}.
Each is called with {HOW.TOKENS} random tokens, with a left-padded batch of them, with its tests' inputs (images,
sounds), and with random tokens after these. Random numbers replace another part's output if it is needed. Under
`{HOW.DENSE}` and `{HOW.KEEP_ALL}` the logits must not change; `{HOW.SPARSE}` shows
which layers are sparse. The names below are without endings such as ForCausalLM.
"""


INTRODUCTION = """# Transformers, family by family

`python bench/transformers_matrix.py` writes this page from `bench/records/`; do not edit it. It runs tiny random models
of each family in each mode. In every cell without a "-", settings that keep everything give the answers of the same
model with SDPA (with eager attention if it has no SDPA), and the output of sparse settings equals dense attention under
the plan's pairs in float64.

- **sparse**: every layer ran its pipeline, with blocks alone and with tokens and blocks, and computed less than dense.
- **sparse (1)**: some layers ran dense, for the reason with that number; a warning names it.
- **dense (1)**: all layers ran dense, through the model's own attention, for the reason with that number.
- **- (1)**: the model itself does not support the mode in this version of transformers; the number tells why.

In layers with a sliding window a token stage keeps every token and a block stage chooses inside the window: the layer
runs its pipeline, and counts as such. On a CPU dense layers run the model's own SDPA, with the same bits. On a GPU they
run sparsekit's FlashAttention backend if it supports the call.

## What holds for every model

- **Which models.** `sparsify` inspects the code of a model's modules, not its name. A layer can run a pipeline if its
  attention looks its function up in transformers' `AttentionInterface`, has a number (`layer_idx`), and gives every
  implementation the same arguments. The mask of each call tells whether the call is causal. If none of a model's chosen
  layers can run a pipeline, `sparsify` raises a ValueError with the reason. Parts without such layers, such as a vision
  tower or an encoder, keep their own implementation.
- **What runs.** `print(handle)` shows the pipeline of each layer, how many calls there were and how many were sparse,
  what the last calls kept, and which layers ran dense and why. `handle.dense` has by layer each reason other than the
  pipeline's own choice, and a warning gives each reason once. If no layer was sparse in any call, a warning says so,
  with the reason, when the model is restored. The numbers are approximate, because they follow from the lengths of
  lists: each block counts whole, and the head that keeps the most tokens counts for all heads.
- **Decode is dense.** A call with at most 32 new tokens over a cache is decode: a step, or the verification of a draft
  (prompt lookup, an assistant). With more new tokens it is a prefill chunk. A prompt without a cache is a prefill, even
  if it is short.
- **Batches.** A row of a padded or packed batch gets the same result as it gets alone: its sinks, windows, last
  queries, budget, and a `break_even` in keys depend on its own tokens. There are two exceptions, both for padding in
  the middle of a row. In a layer with a sliding window the model itself counts such padding as keys, so windows of
  stages do too. Models that mix tokens outside attention (DeepSeek-V4, BLT) read the output at padding, which is zero
  in a sparse layer. `break_even="auto"` depends on the time of the whole call, with all its rows.
- **Restoring.** Handles may be left or restored in any order, entered again, or dropped. `restore()` also undoes
  earlier calls of `sparsify` whose handles no longer exist, as after a notebook's cell ran twice.
- **Copies** (`copy.deepcopy`, `pickle`, replicas, quantised copies) are sparse like the original, but do not call its
  `watch`. `set_attn_implementation("sdpa")` makes a copy dense.
- **Gradients.** Evaluation runs with or without `torch.no_grad()`. A backward pass through a sparse layer raises a
  ValueError, and so does a model in training mode. Layers without a pipeline can be trained.
- **torch.compile** supports prompts of several lengths. A sparse prefill is a graph break; decode is one graph.
  **torch.export** holds each sparse layer as one operator, `sparsekit::prefill`, for any padding and length.

`sparsify(model)` finds the `sparsekit.json` in the model's folder. `attn_implementation="sparsekit"` without `sparsify`
finds it only if the layers' config is the one that was loaded. A layer sees no other part of its model, and in a model
of several parts (text and vision) the part's config does not name the folder. A layer that finds no file warns and runs
dense; call `sparsify(model)` then. Models that build their attention from a table of classes (GIT, the vision tower of
DeepSeek-OCR 2) cannot be loaded with this name at all: transformers raises a KeyError."""


def _table(record: dict[str, Any]) -> Iterator[str]:
    reasons: list[str] = []

    def numbered(own: list[str]) -> str:
        for reason in own:
            if reason not in reasons:
                reasons.append(reason)
        return f" ({', '.join(str(reasons.index(reason) + 1) for reason in own)})" if own else ""

    def cell(result: dict[str, Any]) -> str:
        if result["unsupported"]:
            return "-" + numbered([result["unsupported"]])
        return ("sparse" if result["sparse"] else "dense") + numbered(result["dense"])

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
