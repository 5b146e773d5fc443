"""Test every decoder class of transformers under sparsekit: python bench/transformers_sweep.py --tests FOLDER

The tiny configs are in transformers' tests, which an installed transformers lacks: FOLDER is `tests` of a checkout of
about the same version. Each class runs in its own process, three times: unchanged, with a dense pipeline, and with one
that keeps every block. All three must give the same logits, and leave the model as it was. A fourth run drops blocks,
and counts the layers that compute less than dense. Each class writes one line of JSON; a class that is in the file does
not run again without --again. FastVlm, Gemma3n and PerceptionLM also need timm, torchvision and pillow.
"""

import argparse
import copy
import importlib
import inspect
import json
import multiprocessing
import re
import sys
import time
import traceback
import unittest
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import MagicMock

import torch
import transformers
from torch import Tensor
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig, PreTrainedModel

from sparsekit.integrations.transformers import LayerCall, sparsify

ENDINGS = (
    "ForCausalLM", "WithLMHeadModel", "LMHeadModel", "ForConditionalGeneration", "ModelWithLMHead",
    "ForVisionText2Text", "ForSpeechToText", "ForCausalImageModeling", "CausalModel",
)  # fmt: skip
PLACE = re.compile(r"'?(https?:/|(?<![\w.]))(/[\w.+-]+)+'?")  # a URL or an absolute path
NO_MODEL = re.compile("^Auto|PreTrainedModel")
DENSE, KEEP_ALL, SPARSE = "dense", "block_topk(keep=1.0, block_size=4)", "block_topk(keep=0.4, block_size=4)"
CLOSE = 1e-5  # relative, in float32
TOKENS, PADDING = 48, 11
FAULTS = ("crashed", "wrong", "changed", "silent")  # verdicts
SPREAD = 0.2  # standard deviation of random weights: with the usual one attention is so flat that no mask shows
# fields that limit which tokens a model's own attention sees, with values so small that it leaves some out
NARROW = dict(sliding_window=16, attention_chunk_size=16, index_topk=4, index_topk_blocks=2)
POSITIONS = ("max_position_embeddings", "n_positions", "n_ctx", "max_target_positions", "seq_length", "max_seq_len")

# config fields of a class without a test
SMALL = dict(
    vocab_size=99, hidden_size=32, intermediate_size=48, moe_intermediate_size=16, num_hidden_layers=6,
    num_attention_heads=4, num_key_value_heads=4, head_dim=8, n_shared_experts=1, n_routed_experts=4, num_experts=4,
    num_local_experts=4, num_experts_per_tok=2, n_group=1, topk_group=1, kv_lora_rank=16, q_lora_rank=16,
    qk_rope_head_dim=8, qk_nope_head_dim=8, v_head_dim=8, index_head_dim=16, index_n_heads=2, linear_head_dim=8,
    linear_num_heads=4, linear_key_head_dim=8, linear_value_head_dim=8, linear_num_key_heads=4,
    linear_num_value_heads=4, shared_expert_intermediate_size=16, moe_hidden_size=32, out_hidden_size=32,
    adapter_out_dim=32, text_hidden_size=32, adapter_in_dim=32, adapter_input_size=32, projection_dim=32, depth=2,
    num_heads=4, image_size=28, index_kpool=4,
    pad_token_id=0, bos_token_id=1, eos_token_id=2, image_token_id=3, video_token_id=4, audio_token_id=5,
    image_token_index=3, swa_num_attention_heads=4, swa_num_key_value_heads=4, swa_head_dim=8, sliding_window_size=16,
    unpadded_vocab_size=99, ngram_vocab_size_base=50, hc_lowrank=8, split_ngram_parts=2, condition_dim=32,
    audio_hidden_size=32, blank_token_id=98, embedding_size=32, backbone_hidden_size=32, thinker_hidden_size=32,
)  # fmt: skip
# fields for which such a config needs other values; those of a part are under the part's name
ODD: dict[str, dict[str, Any]] = {
    "Dots3NoteVisionConfig": dict(mlp_layer_types=["dense"] * 6),
    "FunAsrNanoAdaptorConfig": dict(intermediate_size=8),
    "FunAsrNanoEncoderConfig": dict(num_timestamp_prediction_layers=2),
    "Gemma4AssistantConfig": dict(
        text_config=dict(
            layer_types=["sliding_attention", "full_attention"] * 3, num_kv_shared_layers=6,
            hidden_size_per_layer_input=0, vocab_size_per_layer_input=0,
        ),
    ),
    "Gemma4UnifiedAssistantConfig": dict(
        text_config=dict(layer_types=["sliding_attention", "full_attention"] * 3, num_kv_shared_layers=4)
    ),
    "Glm5NextTextConfig": dict(qk_rope_head_dim=0, head_dim=0),
    "Molmo2AdapterConfig": dict(vision_feature_layer=[-1, -2]),
    "Molmo2VisionConfig": dict(image_size=[28, 28]),
    "MuseSparkAudioConfig": dict(num_hidden_layers=4, hidden_sizes=[8, 8, 8, 8]),
    "Qwen2_5OmniTalkerConfig": dict(head_dim=128),
    "Qwen3OmniMoeTalkerConfig": dict(spatial_merge_size=2),
    "Qwen3OmniMoeTalkerTextConfig": dict(shared_expert_intermediate_size=16),
    "Qwen4ExpTextConfig": dict(
        indexer_n_heads=2, indexer_kv_heads=1, indexer_head_dim=16, indexer_budget=8, indexer_compress_ratio=2
    ),
}  # fmt: skip

# for configs that give each token its own embedding and head, the field with their number
OF_EACH_TOKEN = {
    "CsmDepthDecoderConfig": "num_codebooks",
    "Qwen3OmniMoeTalkerCodePredictorConfig": "num_code_groups",
}

Inputs = dict[str, Any]


# parts of the tests' classes that build no model; to import them, more than a checkout's tests would be needed
UNNEEDED = ("test_pipeline_mixin", "test_fsdp_mixin", "test_tensor_parallel_mixin", "test_training_mixin")


class Empty(ModuleType):
    """A module in which every name is an empty class."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


class Skipped(Exception):
    """The reason why a class cannot be tested."""


# --- a tiny model ---------------------------------------------------------------------------------------------------


def class_names() -> list[str]:
    """Return the names of all decoder classes of the installed transformers."""
    return sorted(name for name in dir(transformers) if name.endswith(ENDINGS) and not NO_MODEL.search(name))


def build(name: str, tests: Path) -> tuple[PreTrainedModel, Inputs]:
    """Return a tiny model of a class with random weights, and the inputs that its own tests give it."""
    model_class = getattr(transformers, name)
    refusals = []
    for find, fitted in ((tested, True), (tested, False), (small_and_nothing, True)):
        try:
            config, inputs = find(model_class, tests)
            if hasattr(config, "is_decoder") and not config.is_encoder_decoder:
                config.is_decoder = True  # otherwise the causal class of an encoder attends both ways
            if fitted:
                fit(config)  # some configs raise an error after this, so the second attempt leaves it out
            return weighted(model_class, config), inputs
        except Skipped as reason:
            refusals.append(str(reason))
        except Exception as refusal:
            refusals.append(error_text(refusal))
    raise Skipped("; ".join(dict.fromkeys(refusals)))


def tested(model_class: type[PreTrainedModel], tests: Path) -> tuple[PreTrainedConfig, Inputs]:
    """Return the config and inputs that transformers' own tests use for a class."""
    refusals: list[str] = []
    for test in test_cases(model_class, tests, refusals):
        try:
            torch.manual_seed(0)
            config, inputs, *_ = test.model_tester.prepare_config_and_inputs_for_common()
            config = part_of(config, model_class.config_class)
            if config is None:
                continue
            prepare = getattr(test, "_prepare_for_class", lambda inputs, _: inputs)
            return config, dict(prepare(inputs, model_class))
        except Exception as refusal:
            refusals.append(f"{type(test).__name__}: {error_text(refusal)}")
    raise Skipped(refusals[-1] if refusals else "no test of it in these tests")


def small_and_nothing(model_class: type[PreTrainedModel], _: Path) -> tuple[PreTrainedConfig, Inputs]:
    """Return a small config of a class without tests, such as one of a family younger than the checkout."""
    return small(model_class.config_class), {}


def small(config_class: Any, **odd: Any) -> PreTrainedConfig:
    """Return a small config of a class: fields from SMALL and ODD, and parts that are small too."""
    takes = inspect.signature(config_class).parameters
    odd = ODD.get(config_class.__name__, {}) | odd
    parts = {}
    for name, part in config_class.sub_configs_defaults.items():
        part_class = CONFIG_MAPPING[part.model_type] if part.config_class is AutoConfig else part.config_class
        parts[name] = small(part_class, **odd.get(name, {}))
    return config_class(**{name: value for name, value in SMALL.items() if name in takes} | odd | parts)


def test_cases(model_class: type[PreTrainedModel], tests: Path, refusals: list[str]) -> Iterator[Any]:
    """Yield the test cases of a class's family, after their setUp; those that name the class come first."""
    folder = tests / "models" / model_class.__module__.split(".")[2]
    cases = []
    for path in sorted(folder.glob("test_modeling_*.py")):
        try:
            module = imported(f"tests.models.{folder.name}.{path.stem}")
        except Exception as refusal:
            refusals.append(f"{path.name} cannot be imported: {error_text(refusal)}")
            continue
        for case in vars(module).values():
            if not (
                inspect.isclass(case) and issubclass(case, unittest.TestCase) and case.__module__ == module.__name__
            ):
                continue
            try:
                test: Any = case("setUp")
                test.setUp()
                if hasattr(test, "model_tester"):
                    cases.append(test)
            except Exception as refusal:
                refusals.append(f"{case.__name__}.setUp: {error_text(refusal)}")
    names = lambda test: [c.__name__ for c in getattr(test, "all_model_classes", None) or ()]  # noqa: E731
    yield from sorted(cases, key=lambda test: model_class.__name__ not in names(test))


def imported(name: str) -> ModuleType:
    """Import a module of the tests. Names that the installed transformers lacks are mocked: its version may differ."""
    for _ in range(20):
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as missing:
            sys.modules[str(missing.name)] = MagicMock(__spec__=ModuleSpec(str(missing.name), None))
        except ImportError as missing:
            match = re.match(r"cannot import name '(\w+)' from '([\w.]+)'", str(missing))
            if match is None:
                raise
            setattr(sys.modules[match[2]], match[1], MagicMock())
    return importlib.import_module(name)


def part_of(config: PreTrainedConfig, wanted: Any) -> PreTrainedConfig | None:
    """Return the config of the wanted type: the given config or a part of it, or None."""
    if type(config) is wanted:
        return config
    parts = [part for part in vars(config).values() if isinstance(part, PreTrainedConfig)]
    return next((found for part in parts if (found := part_of(part, wanted)) is not None), None)


def fit(config: PreTrainedConfig) -> None:
    """Give a config enough positions for the tokens of a call, and windows narrower than a call; towers keep theirs."""
    for name in POSITIONS:
        if 0 < number(config, name) < 2 * TOKENS:
            setattr(config, name, 2 * TOKENS)
    if (each := OF_EACH_TOKEN.get(type(config).__name__)) is not None:
        setattr(config, each, 2 * TOKENS)
    for name, few in NARROW.items():
        if number(config, name) > few:
            setattr(config, name, few)
    for name, part in vars(config).items():
        if isinstance(part, PreTrainedConfig) and not any(tower in name for tower in ("vision", "audio", "image")):
            fit(part)


def number(config: PreTrainedConfig, name: str) -> int:
    value = getattr(config, name, None)
    return value if isinstance(value, int) else 0


def weighted(model_class: type[PreTrainedModel], config: PreTrainedConfig) -> PreTrainedModel:
    torch.manual_seed(0)
    model = model_class(config).eval()
    generator = torch.Generator().manual_seed(1)
    for weights in model.parameters():
        if weights.dim() > 1 and weights.is_floating_point():
            weights.data.normal_(0, SPREAD, generator=generator)
    return model


# --- calls ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Call:
    """A way to call a model, with a mask of the tokens that are not padding."""

    inputs: Inputs
    real: Tensor | None = None

    def __call__(self, model: PreTrainedModel) -> Tensor:
        torch.manual_seed(2)  # some models draw random numbers in a call
        out = first_floats(model(**self.inputs))
        if self.real is None:
            return out
        real = self.real[:, -out.shape[1] :]  # some give no logits of the first token
        return out[real] if out.shape[:2] == real.shape else out


def first_floats(out: Any) -> Tensor:
    """Return the logits of an answer, or its first tensor of floats if it has no logits."""
    if torch.is_tensor(getattr(out, "logits", None)):
        return out.logits
    values = out.values() if isinstance(out, dict) else out
    return next(x for x in values if torch.is_tensor(x) and x.is_floating_point())


def calls(model: PreTrainedModel, own: Inputs) -> dict[str, Call]:
    """Return the calls of a model: with random tokens, with a left-padded batch, and with the inputs of its tests."""
    takes = inspect.signature(model.forward).parameters
    own = {name: x for name, x in own.items() if "labels" not in name and (name in takes or "kwargs" in takes)}
    real = torch.ones(2, TOKENS, dtype=torch.long)
    real[0, :PADDING] = 0
    given = GIVEN.get(type(model).__name__)
    shapes = given(model.config) if given is not None else {}
    found = {}
    if model.config.is_encoder_decoder and "decoder_input_ids" in takes:
        encoder = drawn(shapes, 2) or {name: x for name, x in own.items() if not name.startswith("decoder_")}
        rows = len(next(x for x in encoder.values() if torch.is_tensor(x)))
        tokens = random_tokens(model, rows)
        found["tokens"] = Call(encoder | dict(decoder_input_ids=tokens))
        if "decoder_attention_mask" in takes and rows > 1:
            mask = torch.ones(rows, TOKENS, dtype=torch.long)
            mask[0, :PADDING] = 0
            padded = dict(decoder_input_ids=tokens, decoder_attention_mask=mask)
            found["padded"] = Call(encoder | padded, mask.bool())
    elif "input_ids" in takes:
        ids = {} if "inputs_embeds" in shapes else dict(input_ids=random_tokens(model, 2))
        found["tokens"] = Call({name: x[:1] for name, x in ids.items()} | drawn(shapes, 1))
        if "attention_mask" in takes:
            found["padded"] = Call(ids | dict(attention_mask=real) | drawn(shapes, 2), real.bool())
    if shapes:
        return found
    found["own"] = Call(own, real_of(model, own))
    if (longer := followed(model, own)) is not None:
        found["own, longer"] = Call(longer, real_of(model, longer))
    return found


def of_assistant(config: Any) -> dict[str, Any]:
    """Return the shapes of an assistant's inputs from the model for which it drafts: states, keys and values."""
    text = config.text_config
    layers = {kind: text.per_layer_config[text.layer_types.index(kind)] for kind in text.layer_types}
    shared = {kind: [(each.num_key_value_heads, TOKENS, each.head_dim)] * 2 for kind, each in layers.items()}
    return dict(inputs_embeds=(TOKENS, 2 * config.backbone_hidden_size), shared_kv_states=shared)


# inputs that a class needs with tokens, or instead of them, and that its tests lack: the shape of a row, by the config
GIVEN: dict[str, Callable[[Any], dict[str, Any]]] = {
    "CanaryForConditionalGeneration": lambda c: dict(input_features=(TOKENS, c.encoder_config.num_mel_bins)),
    "CsmDepthDecoderForCausalLM": lambda c: dict(backbone_last_hidden_state=(c.backbone_hidden_size,)),
    "Gemma4AssistantForCausalLM": of_assistant,
    "Gemma4UnifiedAssistantForCausalLM": of_assistant,
    "Qwen2_5OmniTalkerForConditionalGeneration": lambda c: dict(thinker_reply_part=(TOKENS, c.embedding_size)),
    "Qwen3OmniMoeTalkerCodePredictorModelForConditionalGeneration": lambda c: dict(
        inputs_embeds=(TOKENS, c.hidden_size)
    ),
    "Qwen3OmniMoeTalkerForConditionalGeneration": lambda c: dict(inputs_embeds=(TOKENS, c.text_config.hidden_size)),
    "SeamlessM4TTextToUnitForConditionalGeneration": lambda c: dict(inputs_embeds=(TOKENS, c.hidden_size)),
}


def drawn(shape: Any, rows: int, generator: torch.Generator | None = None) -> Any:
    """Draw a tensor of normal numbers for the shape of a row; a dict or a list of shapes gives as many tensors."""
    generator = generator or torch.Generator().manual_seed(4)
    if isinstance(shape, dict):
        return {name: drawn(each, rows, generator) for name, each in shape.items()}
    if isinstance(shape, list):
        return tuple(drawn(each, rows, generator) for each in shape)
    return torch.randn(rows, *shape, generator=generator)


def real_of(model: PreTrainedModel, inputs: Inputs) -> Tensor | None:
    mask = inputs.get("decoder_attention_mask" if model.config.is_encoder_decoder else "attention_mask")
    return mask.bool() if torch.is_tensor(mask) and mask.dim() == 2 else None


def followed(model: PreTrainedModel, own: Inputs) -> Inputs | None:
    """Return inputs with random tokens after their own, which may stand for an image; None if they have no tokens."""
    ids = own.get("input_ids")
    if model.config.is_encoder_decoder or not torch.is_tensor(ids) or ids.dim() != 2:
        return None
    longer = dict(own)
    for name, x in own.items():
        if torch.is_tensor(x) and x.shape[:2] == ids.shape:
            more = (
                random_tokens(model, len(ids)) if name == "input_ids" else x.new_zeros(len(ids), TOKENS, *x.shape[2:])
            )
            longer[name] = torch.cat([x, more], 1)
    if torch.is_tensor(mask := longer.get("attention_mask")) and mask.dim() == 2:
        longer["attention_mask"] = mask.new_ones(len(mask), ids.shape[1] + TOKENS)  # no padding in the middle
    return longer


def random_tokens(model: PreTrainedModel, rows: int) -> Tensor:
    """Draw random tokens, but no special ones: those of images, of sounds, or that end a text."""
    text = model.config.get_text_config(decoder=True)
    special = set()
    for config in (model.config, text):
        for name, value in vars(config).items():
            if name.endswith(("token_id", "token_index", "token_ids")):
                special |= {value} if isinstance(value, int) else set(value if isinstance(value, list) else ())
    allowed = torch.tensor([token for token in range(getattr(text, "vocab_size", 32)) if token not in special])
    drawn = torch.randint(len(allowed), (rows, TOKENS), generator=torch.Generator().manual_seed(3))
    return allowed[drawn]


# --- judging --------------------------------------------------------------------------------------------------------


def examine(name: str, tests: Path) -> dict[str, Any]:
    """Return the record of one class."""
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity(50)
    torch.set_grad_enabled(False)
    torch.set_num_threads(1)
    try:
        model, own = build(name, tests)
        truths, refusals = {}, {}
        for call_name, call in calls(model, own).items():
            try:
                truth = call(model)
                if not truth.isfinite().all():
                    refusals[call_name] = "its logits are not finite"
                elif not torch.equal(call(model), truth):
                    refusals[call_name] = "two calls differ"
                else:
                    truths[call_name] = call, truth
            except Exception as refusal:
                refusals[call_name] = error_text(refusal)
        if not truths:
            raise Skipped("; ".join(f"{call}: {reason}" for call, reason in refusals.items()))
    except Skipped as reason:
        return {"skipped": str(reason)}
    except Exception as refusal:
        return {"skipped": f"not built: {error_text(refusal)}"}
    text = model.config.get_text_config(decoder=True)
    layers = next(
        (n for a in ("decoder_layers", "num_hidden_layers", "n_layer") if (n := getattr(text, a, None))), None
    )
    record = {"layers": layers, "not called": refusals} | under_sparsekit(model, truths)
    if CLOSE < worst(record) < float("inf"):
        record["rounding"] = rounding(model, truths)
    return record


def under_sparsekit(model: PreTrainedModel, truths: dict[str, tuple[Call, Tensor]]) -> dict[str, Any]:
    """Return the results of a model under each setting, or why sparsify refuses it."""
    found: dict[str, Any] = {"dense": {}, "keep all": {}, "state": [], "crashed": {}}
    before = state(model)
    for setting, key in ((DENSE, "dense"), (KEEP_ALL, "keep all"), (SPARSE, "changed")):
        found[key], found["crashed"][key] = {}, {}
        seen: list[LayerCall] = []
        try:
            handle = sparsify(model, setting, watch=seen.append if key == "changed" else None)
        except ValueError as refusal:
            return found | {"refused": str(refusal), "state": differences(before, state(model))}
        except Exception as crash:
            found["crashed"][key]["sparsify"] = error_text(crash)
            continue
        for name, (call, truth) in truths.items():
            try:
                found[key][name] = error(call(model), truth)
            except Exception as crash:
                found["crashed"][key][name] = error_text(crash)
        if key == "changed":
            sparse = {call.layer for call in seen if call.plan.density(call.problem) < 1}
            ran = {call.layer for call in seen if call.output is not None}
            found |= {
                "ran": sorted(ran),
                "sparse": sorted(sparse),
                "reasons": {str(layer): why for layer, why in handle.dense.items()},
            }
        try:
            handle.restore()
        except Exception as crash:
            found["crashed"][key]["restore"] = error_text(crash)
        found["state"] = found["state"] or differences(before, state(model))
    found["given back"] = {}
    for name, (call, truth) in truths.items():
        try:
            found["given back"][name] = error(call(model), truth)
        except Exception as crash:
            found["crashed"]["given back"] = {name: error_text(crash)}
    found["crashed"] = {key: crashes for key, crashes in found["crashed"].items() if crashes}
    return found


def rounding(model: PreTrainedModel, truths: dict[str, tuple[Call, Tensor]]) -> float:
    """Return the largest error of the logits in four draws that change each weight by half a unit in the last place."""
    most = 0.0
    for seed in range(4):
        rounded, generator = copy.deepcopy(model), torch.Generator().manual_seed(seed)
        for weights in rounded.parameters():
            if weights.is_floating_point():
                weights.data.mul_(1 + (torch.rand(weights.shape, generator=generator) - 0.5) * 2**-22)
        most = max(most, *(error(call(rounded), truth) for call, truth in truths.values()))
    return most


def error(answer: Tensor, truth: Tensor) -> float:
    """Return |answer - truth| / |truth|, Frobenius norm; infinite if shapes differ or a number is not finite."""
    if answer.shape != truth.shape or not answer.isfinite().all():
        return float("inf")
    found = (answer.double() - truth.double()).norm() / truth.double().norm().clamp(min=1e-30)
    return float(f"{found.item():.3g}")


def configs(model: PreTrainedModel) -> dict[str, PreTrainedConfig]:
    """Return each config of a model and of its parts, by the name of an attribute that holds it."""
    found: dict[int, tuple[str, PreTrainedConfig]] = {}

    def add(name: str, config: Any) -> None:
        if isinstance(config, PreTrainedConfig) and id(config) not in found:
            found[id(config)] = name, config
            for key, part in vars(config).items():
                add(f"{name}.{key}", part)

    for name, module in model.named_modules():
        for key, value in vars(module).items():
            add(f"{name}.{key}", value)
    return dict(found.values())


def state(model: PreTrainedModel) -> dict[str, str]:
    """Return the state of a model without its weights' values: attributes of its modules and of its configs."""
    found = {}
    for name, module in model.named_modules():
        for key, value in vars(module).items():
            found[f"{name}.{key}"] = shown(value)
        found[f"{name}: class"] = type(module).__qualname__
    for name, config in configs(model).items():
        found[f"{name}: implementation"] = repr(config._attn_implementation)
        for key, value in vars(config).items():
            found[f"{name}.{key}"] = shown(value)
    return found


def shown(value: Any) -> str:
    if torch.is_tensor(value):
        return f"{value.dtype} {list(value.shape)}"  # without values: some modules keep a tensor of the last call
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key!r}: {shown(x)}" for key, x in value.items()) + "}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(shown, value))}]"
    plain = value is None or isinstance(value, int | float | str | torch.dtype | torch.device)
    return repr(value) if plain else f"{type(value).__name__} {id(value)}"


def differences(before: dict[str, str], after: dict[str, str]) -> list[str]:
    changed = [key for key in before.keys() | after.keys() if before.get(key) != after.get(key)]
    return [f"{key}: {before.get(key)} -> {after.get(key)}"[:200] for key in sorted(changed)[:8]]


def error_text(refusal: BaseException) -> str:
    """Return an exception as one line, with the place in transformers or sparsekit that raised it."""
    frames = traceback.extract_tb(refusal.__traceback__)
    ours = [f for f in frames if "/transformers/" in f.filename or "/sparsekit/" in f.filename]
    place = f" ({'/'.join(Path(ours[-1].filename).parts[-2:])}:{ours[-1].lineno})" if ours else ""
    text = PLACE.sub("...", " ".join(str(refusal).split()))
    return f"{type(refusal).__name__}: {text[:300]}{place}"


# --- processes ------------------------------------------------------------------------------------------------------


def apart(name: str, tests: Path, seconds: float) -> dict[str, Any]:
    """Run one class in its own process and return its record; a crash or a hang makes a record too."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=lambda: sender.send(examine(name, tests)))
    started = time.monotonic()
    process.start()
    sender.close()
    try:
        record = receiver.recv() if receiver.poll(seconds) else {"skipped": f"not done after {seconds:g} s"}
    except EOFError:
        process.join()
        record = {"skipped": f"its process ended, exit code {process.exitcode}"}
    process.kill()
    process.join()
    about = {"class": name, "transformers": transformers.__version__, "torch": torch.__version__.partition("+")[0]}
    return about | record | {"seconds": round(time.monotonic() - started, 1)}


def read(path: Path) -> dict[str, dict[str, Any]]:
    """Return the last record of each class in a file."""
    lines = path.read_text().splitlines() if path.exists() else []
    records = [json.loads(line) for line in lines if line]
    return {record["class"]: record for record in records}


# --- reading the records --------------------------------------------------------------------------------------------


def verdict(record: dict[str, Any]) -> str:
    """Return skipped, refused or equal, or a fault of sparsekit.

    Faults are crashed, wrong, changed (the model differs after `restore`) and silent (no layer ran its pipeline, and
    there is no reason).
    """
    if "skipped" in record:
        return "skipped"
    if "refused" in record:
        return "changed" if record["state"] else "refused"
    if record["crashed"]:
        return "crashed"
    if worst(record) > max(CLOSE, 2 * record.get("rounding", 0.0)):
        return "wrong"
    if record["state"] or any(record["given back"].values()):
        return "changed"
    return "equal" if record["ran"] or record["reasons"] else "silent"


def worst(record: dict[str, Any]) -> float:
    """Return the largest error of the settings that must change nothing."""
    return max([*record.get("dense", {}).values(), *record.get("keep all", {}).values()], default=0.0)


def line(record: dict[str, Any]) -> str:
    """Return one record as a line."""
    result = verdict(record)
    if result in ("skipped", "refused"):
        return f"{result}: {record[result]}"
    sparse = f"{len(record.get('sparse', ()))} of {record['layers']} layers sparse"
    crashes = [f"{key}, {where}: {why}" for key, each in record["crashed"].items() for where, why in each.items()]
    return ", ".join([result, f"error {worst(record):.2g}", sparse, *crashes[:1], *record["state"][:1]])


def table(records: dict[str, dict[str, Any]]) -> Iterator[str]:
    """Yield the lines of `paragraph`, then a line for each class with a fault."""
    yield from paragraph(records)
    for fault in FAULTS:
        yield from (f"{name}: {line(record)}" for name, record in records.items() if verdict(record) == fault)


def paragraph(records: dict[str, dict[str, Any]]) -> Iterator[str]:
    """Yield the lines of the page about all records: numbers of classes by result and reason."""
    by_verdict: dict[str, dict[str, dict[str, Any]]] = defaultdict(dict)
    for name, record in sorted(records.items()):
        by_verdict[verdict(record)][name] = record
    kinds: dict[str, dict[str, str]] = defaultdict(dict)
    for name, record in by_verdict["equal"].items():
        kinds[how_sparse(record)][name] = reasons(record)
    tried = len(records) - len(by_verdict["skipped"])
    yield (
        f"Of {len(records)} decoder classes {tried} could be built and called. {len(by_verdict['equal'])} give the "
        f"same logits as without sparsekit, to 1e-5 (or twice the error from rounding the weights), and do not differ "
        f"after `restore()`; {len(by_verdict['refused'])} are refused. Of the former:"
    )
    yield ""
    yield f"- {len(kinds['all'])} run sparse in every layer whose attention is causal and goes through the interface."
    yield from listed("sparse in some layers", kinds["some"])
    yield from listed("dense", kinds["none"])
    yield from listed("refused", {name: record["refused"] for name, record in by_verdict["refused"].items()})
    for fault in FAULTS:
        if by_verdict[fault]:
            yield f"- {fault}: {families(by_verdict[fault])}."
    yield from listed("not tried", {name: why_not_tried(record) for name, record in by_verdict["skipped"].items()})


def why_not_tried(record: dict[str, Any]) -> str:
    """Return in words why a class was skipped, as one of a few kinds of reasons."""
    words = record["skipped"]
    if re.search(r"requires the \w+ library", words):
        return "it needs a library that was not installed"
    if 'missing the required "forward"' in words:
        return "it has no forward of its own"
    if re.match(r"(tokens|padded|own): |not built: StopIteration", words):
        return "a call of it needs inputs that its tests do not give, such as another part's output"
    if "layer types producing a cache is different" in words:
        return "its config's check and its layers contradict each other in this version"
    if re.match(r"not done|its process ended", words):
        return "it did not end"
    return "no config of it that is small was found: its tests build none, and sizes by name do not fit each other"


def how_sparse(record: dict[str, Any]) -> str:
    """Return which of the layers with a pipeline dropped something: all, some or none."""
    sparse = set(record["sparse"])
    every = {*record["ran"], *map(int, record["reasons"])} <= sparse
    return ("all" if every else "some") if sparse else "none"


def reasons(record: dict[str, Any]) -> str:
    """Return why layers of a class are never sparse."""
    if record["ran"] and not record["sparse"]:
        return "its calls here are too short to drop anything"
    never = [why for layer, why in record["reasons"].items() if int(layer) not in record["sparse"]]
    return "; ".join(sorted(set(never))) or "the others saw too few keys to drop any"


def listed(title: str, classes: dict[str, str]) -> Iterator[str]:
    """Yield a line for each reason, with its classes. The names of modules in a reason are left out."""
    groups = defaultdict(list)
    for name, reason in classes.items():
        reason = re.sub(r"^model: got \w+, none of whose (chosen )?layers can run a pipeline: ", "", reason)
        reason = re.sub(r"; allowed .*", "", reason)
        groups[re.sub(r"\bits \w+(, \w+)* (?=computes|has no|is no|prepares)", "it ", reason)].append(name)
    for reason, names in sorted(groups.items(), key=lambda group: (-len(group[1]), group[0])):
        yield f"- {len(names)} {title}, {reason}: {families(names)}."


def families(names: Iterable[str]) -> str:
    """Return the names of classes without the endings that many share, each once."""
    return ", ".join(dict.fromkeys(re.sub(f"({'|'.join(ENDINGS)})$", "", name) for name in names))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tests", type=Path, help="the folder `tests` of a checkout of transformers")
    parser.add_argument("--only", nargs="+", metavar="CLASS", help="run only these classes")
    parser.add_argument("--out", type=Path, default=Path("transformers-sweep.jsonl"), help="file of the records")
    parser.add_argument("--again", action="store_true", help="also run classes that are in the file")
    parser.add_argument("--timeout", type=float, default=60, help="most seconds for a class")
    parser.add_argument("--table", action="store_true", help="run nothing, print the results in the file")
    options = parser.parse_args()
    records = read(options.out)
    if not options.table:
        if options.tests is None:
            parser.error("--tests: got nothing; pass the folder `tests` of a checkout of transformers")
        sys.path.insert(0, str(options.tests.resolve().parent))
        sys.modules |= {f"tests.{name}": Empty(name) for name in UNNEEDED}
        imported("tests.causal_lm_tester")  # once, before the first process starts: it takes seconds
        imported("tests.vlm_tester")
        names = [name for name in class_names() if options.only is None or name in options.only]
        names = [name for name in names if options.again or name not in records]
        for number, name in enumerate(names, 1):
            records[name] = apart(name, options.tests, options.timeout)
            with options.out.open("a") as file:
                file.write(json.dumps(records[name]) + "\n")
            print(f"[{number}/{len(names)}] {name}: {line(records[name])}"[:240], flush=True)
    print("\n".join(table(dict(sorted(records.items())))))


if __name__ == "__main__":
    main()
