"""Tests that layers with the same arguments share one judgement of their call, and any difference makes a new one."""

import copy
import gc
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from closeness import error
from torch import nn
from transformers.masking_utils import causal_mask_function

from bench.transformers_matrix import build, chunks, ids, left_padded, packed, static_cache, whole
from sparsekit import Pipeline
from sparsekit.integrations.transformers import attention as integration
from sparsekit.integrations.transformers import sparsify
from sparsekit.integrations.transformers.attention import MARK, Layer, attention
from sparsekit.integrations.transformers.masks import mask

LOCAL = "streaming(sinks=1, window=8, block_size=8)"
FEWER = "streaming(sinks=1, window=2, block_size=4)"


@pytest.fixture
def llama():
    return build("Llama")


@pytest.fixture
def looks(monkeypatch):
    """Return a list that gets one entry for each judgement."""
    made = []
    monkeypatch.setattr(integration, "_judge", lambda *args, look=integration._judge: made.append(1) or look(*args))
    return made


class Other(nn.Module):
    """Has the attributes of a Llama attention module, but passes an argument that sparsekit does not know."""

    def __init__(self, module):
        super().__init__()
        self.__dict__.update({name: value for name, value in vars(module).items() if not name.startswith("_")})
        self.eval()

    def forward(self, attend):
        return attend(picked=None)


class OneCall:
    """A layer's call with its arguments. `mask()` makes the mask of a new forward pass."""

    def __init__(self, model):
        random = torch.Generator().manual_seed(0)
        self.module = model.model.layers[0].self_attn
        heads, groups = model.config.num_attention_heads, model.config.num_key_value_heads
        self.q, self.k, self.v = (torch.randn(1, h, 60, 16, generator=random) for h in (heads, groups, groups))
        self.config = model.config
        self.given = {"picked": torch.ones(1), **dict.fromkeys(["softcap", "output_attentions", "seq_idx", "s_aux"])}

    def mask(self):
        asked = dict(batch_size=1, q_length=60, kv_length=60, q_offset=0, kv_offset=0, attention_mask=None)
        asked |= dict(mask_function=causal_mask_function, device="cpu", dtype=torch.float32, config=self.config)
        return mask(**asked)

    def answer(self, carrier):
        """Return the layer's output, or the message that it raises, and why it ran dense."""
        layer = self.module.__dict__[MARK]
        layer.dense.clear()
        try:
            found = attention(self.module, self.q, self.k, self.v, carrier, scaling=0.25, **self.given)[0]
        except ValueError as refusal:
            found = str(refusal)
        return found, dict(layer.dense)


def softcap(one):
    one.given["softcap"] = 5.0


def weights(one):
    one.given["output_attentions"] = True


def packed_row(one):
    one.given["seq_idx"] = torch.arange(60)[None] // 30


def sinks(one):
    one.given["s_aux"] = torch.ones(one.q.shape[1])


def shorter(one):
    one.k, one.v = one.k[:, :, :50], one.v[:, :, :50]


def last_queries(one):
    one.q = one.q[:, :, -40:]


def other_pipeline(one):
    layer = one.module.__dict__[MARK]
    one.module.__dict__[MARK] = Layer(Pipeline.from_spec(FEWER), dense=layer.dense)


def no_pipeline(one):
    one.module.__dict__[MARK] = Layer(dense=one.module.__dict__[MARK].dense)


def another_class(one):
    layer = one.module.__dict__[MARK]
    one.module = Other(one.module)
    one.module.__dict__[MARK] = layer


def both_ways(one):
    one.module.is_causal = False


def training(one):
    one.module.training = True


def precision(one):
    one.q, one.k, one.v = one.q.double(), one.k.double(), one.v.double()


CHANGES = [
    softcap,
    weights,
    packed_row,
    sinks,
    shorter,
    last_queries,
    other_pipeline,
    no_pipeline,
    another_class,
    both_ways,
    training,
    precision,
]


@pytest.mark.filterwarnings("ignore:sparsekit")
@pytest.mark.parametrize("change", CHANGES)
@torch.no_grad()
def test_a_layer_that_differs_is_answered_as_in_a_pass_of_its_own(llama, change):
    one = OneCall(llama)
    with sparsify(llama, LOCAL):
        carrier = one.mask()
        plain, why = one.answer(carrier)
        assert not why and torch.equal(one.answer(carrier)[0], plain)
        change(one)
        found, expected = one.answer(carrier), one.answer(one.mask())
    assert found[1] == expected[1]
    if isinstance(expected[0], str):
        assert found[0] == expected[0]
    else:
        assert torch.equal(found[0], expected[0])
        alike = not found[1] and (found[0].shape, found[0].dtype) == (plain.shape, plain.dtype)
        assert not alike or error(found[0], plain) > 1e-4, "the change changes nothing"


@pytest.mark.filterwarnings("ignore:sparsekit")
@torch.no_grad()
def test_another_config_is_looked_at_anew(llama, monkeypatch):
    """With tensor parallelism the config tells the total number of heads, so another config needs a new judgement."""
    monkeypatch.setattr(integration.dist, "is_initialized", lambda: True)
    one = OneCall(llama)
    with sparsify(llama, "token_coverage"):
        carrier = one.mask()
        assert one.answer(carrier)[1] == {}
        one.module.config = copy.deepcopy(llama.config)
        one.module.config.num_attention_heads = 8
        assert "it holds 4 of 8 heads" in one.answer(carrier)[1][0]


@torch.no_grad()
def test_what_is_known_by_its_identity_is_held(llama):
    """An object that is compared by identity stays alive, so that no new object can have its address."""
    one = OneCall(llama)
    with sparsify(llama, LOCAL):
        carrier = one.mask()
        one.answer(carrier)
        given = weakref.ref(one.given["picked"])
        one.given.clear()
        gc.collect()
        assert given() is not None
        del carrier
        gc.collect()
        assert given() is None


@torch.no_grad()
def test_packed_rows_of_two_kinds_under_one_mask(llama):
    one = OneCall(llama)
    with sparsify(llama, LOCAL):
        carrier = one.mask()
        for length in (20, 30):
            one.given["seq_idx"] = torch.arange(60)[None] // length
            assert torch.equal(one.answer(carrier)[0], one.answer(one.mask())[0])


@torch.no_grad()
def test_a_changed_flag_counts_from_the_next_pass_on(llama):
    with sparsify(llama, LOCAL) as handle:
        expected = whole(llama)
        for module in llama.modules():
            module.is_causal = False
        with pytest.warns(match="it is not causal"):
            whole(llama)
        assert set(handle.dense) == {0, 1, 2}
        for module in llama.modules():
            module.is_causal = True
        handle.dense.clear()
        assert torch.equal(whole(llama), expected) and not handle.dense


@torch.no_grad()
def test_one_look_serves_the_layers_of_a_pass_that_run_the_same(llama, looks):
    with sparsify(llama, LOCAL):
        whole(llama)
        assert len(looks) == 1
        whole(llama)
        assert len(looks) == 2
    with sparsify(llama, {0: FEWER, "default": LOCAL}):
        whole(llama)
    assert len(looks) == 4
    with sparsify(llama, "dense"):
        whole(llama)
    assert len(looks) == 5
    whole(llama)
    assert len(looks) == 5


@torch.no_grad()
def test_threads_look_for_themselves(llama):
    modes = [whole, left_padded, packed, chunks, static_cache, lambda model: model(ids(1, 70)).logits] * 2
    with sparsify(llama, LOCAL):
        expected = [mode(llama) for mode in modes]
        with ThreadPoolExecutor(len(modes)) as pool:
            found = list(pool.map(torch.no_grad()(lambda mode: mode(llama)), modes))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
