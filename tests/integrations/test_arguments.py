"""Tests of layers that pass unknown arguments: they run dense in their own implementation, or are refused."""

import copy

import pytest
import torch
from closeness import error
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaAttention, apply_rotary_pos_emb, eager_attention_forward

from bench.transformers_matrix import build, chunks, generate, ids, left_padded, whole
from sparsekit import Plan
from sparsekit.integrations.transformers import register, sparsify

LOCAL = "streaming(sinks=1, window=8, block_size=8)"


class Odd(LlamaAttention):
    """Llama's attention, but it changes the mask or passes one more argument."""

    def forward(self, hidden_states, position_embeddings, attention_mask=None, past_key_values=None, **kwargs):
        shape = (*hidden_states.shape[:-1], -1, self.head_dim)
        q, k, v = (f(hidden_states).view(shape).transpose(1, 2) for f in (self.q_proj, self.k_proj, self.v_proj))
        q, k = apply_rotary_pos_emb(q, k, *position_embeddings)
        if past_key_values is not None:
            k, v = past_key_values.update(k, v, self.layer_idx)
        interface = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        mask, more = self.chosen(attention_mask, k.shape[2])
        o, weights = interface(self, q, k, v, mask, scaling=self.scaling, **more, **kwargs)
        return self.o_proj(o.reshape(*hidden_states.shape[:-1], -1).contiguous()), weights


class Indexed(Odd):
    """Chooses keys like a model with an indexer: in the mask for "eager" and "sdpa", else by an argument."""

    def chosen(self, mask, keys):
        if self.config._attn_implementation in ("eager", "sdpa"):
            odd = torch.arange(keys) % 3 != 1
            seen = torch.ones(keys, keys, dtype=torch.bool).tril()[None, None] if mask is None else mask[..., :keys]
            return seen & odd if seen.dtype == torch.bool else seen.masked_fill(~odd, torch.finfo(seen.dtype).min), {}
        return mask, dict(indices=torch.arange(keys))


class Talkative(Odd):
    """Passes a tensor, which SDPA ignores, to any implementation."""

    def chosen(self, mask, keys):
        return mask, dict(picked=torch.arange(keys))


class Plain(Odd):
    """Passes an argument that does not change attention."""

    def chosen(self, mask, keys):
        return mask, dict(deterministic=True)


def with_layer(kind, layer=1):
    model = build("Llama")
    model.model.layers[layer].self_attn.__class__ = kind
    return model


@pytest.mark.parametrize("mode", [whole, left_padded])
@torch.no_grad()
def test_a_layer_that_goes_by_the_name_keeps_its_own_implementation_and_the_others_are_sparse(mode):
    model, calls = with_layer(Indexed), []
    config, expected = model.model.layers[1].self_attn.config, mode(model)
    with pytest.warns(UserWarning, match=r"layer 1 \(Indexed\) runs dense: its Indexed prepares other arguments"):
        with sparsify(model, "block_topk(keep=1.0, block_size=8)", watch=calls.append) as handle:
            assert error(mode(model), expected) < 1e-5
            assert set(handle.dense) == {1} and {call.layer for call in calls} == {0, 2}
    with pytest.warns(UserWarning), sparsify(model, LOCAL, watch=calls.append):
        sparse = mode(model)
        assert torch.equal(mode(copy.deepcopy(model)), sparse)
    assert error(sparse, expected) > 1e-3 and torch.equal(mode(model), expected)
    assert model.model.layers[1].self_attn.config is config
    with sparsify(model, {0: LOCAL}) as handle:
        assert not handle.dense, "nothing was asked of the layer"


@torch.no_grad()
def test_a_model_of_nothing_else_is_refused():
    model = build("Llama")
    for layer in model.model.layers:
        layer.self_attn.__class__ = Indexed
    for pipeline in (LOCAL, "dense"):
        with pytest.raises(
            ValueError, match="LlamaForCausalLM, none of whose chosen layers can run a pipeline: its Ind"
        ):
            sparsify(model, pipeline)
    with pytest.raises(ValueError, match="none of whose chosen layers"):
        sparsify(with_layer(Indexed), {1: LOCAL})
    register()
    model.set_attn_implementation("sparsekit")
    with pytest.raises(ValueError, match='attn_implementation: got "sparsekit" for Indexed, which prepares other'):
        whole(model)


@torch.no_grad()
def test_a_tensor_that_nobody_understands_is_an_error():
    model = with_layer(Talkative)
    with sparsify(model, LOCAL), pytest.warns(UserWarning, match="it is given 'picked'"):
        with pytest.raises(
            ValueError, match="Talkative gives its attention 'picked', which neither sparsekit nor SDPA"
        ):
            whole(model)


@pytest.mark.parametrize("mode", [whole, chunks, generate])
@torch.no_grad()
def test_another_argument_makes_the_layer_dense_with_a_reason(mode):
    model, calls = with_layer(Plain), []
    expected = mode(model)
    with sparsify(model, LOCAL, watch=calls.append) as handle:
        with pytest.warns(UserWarning, match=r"layer 1 \(Plain\) runs dense: it is given 'deterministic'"):
            sparse = mode(model)
    assert set(handle.dense) == {1} and not torch.equal(sparse, expected)
    assert all((call.plan == Plan()) == (call.layer == 1) for call in calls)


@torch.no_grad()
def test_what_a_caller_gives_besides_comes_along():
    """A caller's arguments, such as images and flags, reach the attention too; no implementation reads them."""
    model, calls = build("Llama"), []
    with sparsify(model, LOCAL, watch=calls.append) as handle:
        model(ids(1, 90), pixel_values=torch.zeros(3), image_sizes=[(2, 2)], use_cache=True)
    assert not handle.dense and all(call.plan.blocks for call in calls)


@torch.no_grad()
def test_packed_bounds_are_of_one_row_without_a_cache():
    model, bounds = build("Llama"), torch.tensor([0, 40, 90], dtype=torch.int32)
    with sparsify(model, LOCAL):
        with pytest.raises(ValueError, match="cu_seq_lens_q: got bounds for a batch of 2 rows; allowed is one row"):
            model(ids(2, 90), cu_seq_lens_q=bounds)
        cache = model(ids(1, 20)).past_key_values
        with pytest.raises(ValueError, match="cu_seq_lens_q: got it for 90 tokens over a cache of 20"):
            model(ids(1, 90), past_key_values=cache, cu_seq_lens_q=bounds)


@pytest.mark.parametrize("layers", [1.5, object()])
def test_layers_that_are_none_are_named(layers):
    with pytest.raises(ValueError, match="layers: got .* allowed are a number, a range"):
        sparsify(build("Llama"), LOCAL, layers=layers)
