"""A model under sparsekit against the same model under SDPA, in the modes people call it in."""

import pytest
import torch
from closeness import error
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    StaticCache,
)

import sparsekit as sk
from sparsekit import Pipeline, oracle
from sparsekit.integrations.transformers import register, sparsify

SMALL = dict(
    vocab_size=64, hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4,
    num_key_value_heads=2, head_dim=16, max_position_embeddings=512, pad_token_id=0, eos_token_id=None,
)  # fmt: skip
SLIDING = dict(sliding_window=24, use_sliding_window=True, max_window_layers=1)
FAMILIES = {
    "Llama": lambda: LlamaForCausalLM(LlamaConfig(**SMALL)),
    "Mistral with a sliding window": lambda: MistralForCausalLM(MistralConfig(**SMALL, sliding_window=24)),
    "Qwen3 with two sliding layers": lambda: Qwen3ForCausalLM(Qwen3Config(**SMALL, **SLIDING)),
}
DENSE = [Pipeline(), Pipeline([sk.TokenCoverage(tau=0.0), sk.FlexPrefill(gamma=1.0, tau=0.0)])]
SPARSE = Pipeline(
    [
        sk.TokenCoverage(tau=0.3, window=8, pool=3, min_tokens=8),
        sk.FlexPrefill(gamma=0.7, block_size=8),
        sk.Decompress(sk.SlidingWindow(4)),
    ]
)


def made(family):
    torch.manual_seed(0)
    model = FAMILIES[family]()
    model.set_attn_implementation("sdpa")
    return model.eval()


@pytest.fixture(params=FAMILIES)
def model(request):
    return made(request.param)


@pytest.fixture(params=["Llama", "Qwen3 with two sliding layers"])
def model_with_full_attention(request):
    """Somewhere in its layers: a sliding layer stays dense."""
    return made(request.param)


def ids(*shape, seed=1):
    return torch.randint(1, 64, shape, generator=torch.Generator().manual_seed(seed))


def whole(model):
    return model(ids(2, 90)).logits


def without_cache(model):
    return model(ids(1, 90), use_cache=False).logits


def left_padded(model):
    mask = torch.ones(2, 90, dtype=torch.long)
    mask[0, :37] = 0
    return model(ids(2, 90) * mask, attention_mask=mask).logits[mask.bool()]


def right_padded(model):
    mask = torch.ones(2, 90, dtype=torch.long)
    mask[1, 60:] = 0
    return model(ids(2, 90) * mask, attention_mask=mask).logits[mask.bool()]


def chunks(model):
    first = model(ids(1, 90)[:, :40], use_cache=True)
    return model(ids(1, 90)[:, 40:], past_key_values=first.past_key_values).logits


def static_cache(model):
    cache = StaticCache(config=model.config, max_cache_len=128)
    return model(ids(1, 90), past_key_values=cache).logits


def packed(model):
    positions = torch.cat([torch.arange(50), torch.arange(40)])[None]
    return model(ids(1, 90), position_ids=positions, use_cache=False).logits


def _generate(model, rows=2, **how):
    out = model.generate(
        ids(rows, 60), max_new_tokens=6, do_sample=False, output_logits=True, return_dict_in_generate=True, **how
    )
    return torch.stack(out.logits)


def generate(model):
    return _generate(model)


def generate_in_chunks(model):
    return _generate(model, prefill_chunk_size=16)


def generate_static(model):
    return _generate(model, cache_implementation="static")


MODES = [
    whole, without_cache, left_padded, right_padded, chunks, static_cache, packed, generate, generate_in_chunks,
    generate_static,
]  # fmt: skip


@pytest.mark.parametrize("mode", MODES, ids=lambda f: f.__name__)
@torch.no_grad()
def test_dense_settings_equal_sdpa(model, mode):
    expected = mode(model)
    for pipeline in DENSE:
        with sparsify(model, pipeline):
            assert error(mode(model), expected) < 1e-5, str(pipeline)


@pytest.mark.parametrize("mode", [whole, chunks, generate_in_chunks], ids=lambda f: f.__name__)
@torch.no_grad()
def test_sparse_settings_equal_the_oracle(model_with_full_attention, mode):
    model = model_with_full_attention
    seen = []
    with sparsify(model, SPARSE, watch=seen.append):
        mode(model)
    assert seen and all(call.ms > 0 for call in seen)
    assert any(call.plan.density(call.problem) < 0.9 for call in seen), "nothing was sparse"
    for call in seen:
        if call.output is not None:
            assert error(call.output.o, oracle(call.problem, call.plan).o) < 1e-5


@torch.no_grad()
def test_masks_that_are_not_plain_causal_stay_dense_and_right(model):
    """A sparse pipeline must not see them: its plan knows nothing of padding, windows or packing."""
    for mode in (left_padded, right_padded, packed):
        expected = mode(model)
        with sparsify(model, SPARSE):
            assert error(mode(model), expected) < 1e-5, mode.__name__


@torch.no_grad()
def test_a_mapping_chooses_by_layer():
    model = FAMILIES["Llama"]().eval()
    seen = []
    local = "streaming(sinks=1, window=8, block_size=8)"
    with sparsify(model, {0: "dense", "1-2": local}, watch=seen.append):
        whole(model)
    assert [call.layer for call in seen] == [0, 1, 2]
    assert [call.plan.blocks is not None for call in seen] == [False, True, True]
    seen.clear()
    with sparsify(model, {"2": "dense", "default": local}, watch=seen.append):
        whole(model)
    assert [call.plan.blocks is not None for call in seen] == [True, True, False]


@torch.no_grad()
def test_restore_leaves_the_model_as_it_was(model_with_full_attention):
    model = model_with_full_attention
    expected = whole(model)
    handle = sparsify(model, SPARSE)
    with sparsify(model, "dense"):
        assert error(whole(model), expected) < 1e-5
    sparse = whole(model)
    assert model.config._attn_implementation == "sparsekit"
    handle.restore()
    handle.restore()
    assert model.config._attn_implementation == "sdpa"
    assert torch.equal(whole(model), expected) and not torch.equal(sparse, expected)
    register()
    model.set_attn_implementation("sparsekit")
    assert error(whole(model), expected) < 1e-5, "the name alone is dense"


@pytest.mark.parametrize(
    "pipeline,message",
    [
        (3, "pipeline: got 3; allowed are a Pipeline, a spec"),
        ("flex_prefil", "position"),
        ({7: "dense"}, "layer 7, but the model has 0 to 2"),
        ({"1-2": "dense", 2: "dense"}, "layer 2 is named twice"),
        ({"2-1": "dense"}, "allowed are a number, a range"),
        ({"some": "dense"}, "allowed are a number, a range"),
    ],
)
def test_bad_pipelines_are_named(pipeline, message):
    model = FAMILIES["Llama"]()
    with pytest.raises(ValueError, match=message):
        sparsify(model, pipeline)
    assert model.config._attn_implementation == "sdpa", "nothing was half done"


def test_training_through_a_sparse_pipeline_is_refused():
    model = FAMILIES["Llama"]().train()
    with sparsify(model, SPARSE), pytest.raises(ValueError, match=r"torch.no_grad\(\)"):
        whole(model)
    with sparsify(model, "dense"):
        whole(model).sum().backward()


def test_a_softcap_is_refused_by_name():
    from transformers import Gemma2Config, Gemma2ForCausalLM

    model = Gemma2ForCausalLM(Gemma2Config(**SMALL)).eval()
    with sparsify(model, "dense"), pytest.raises(ValueError, match="softcap"):
        whole(model)
