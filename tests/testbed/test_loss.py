"""Loss by position: the same as a plain forward gives, whole or in pieces, byte by byte or through a tokenizer."""

import math
from itertools import pairwise
from random import Random

import pytest
import torch
from tiny_llama import byte_tokenizer
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from sparsekit.integrations.transformers import sparsify
from sparsekit.testbed import TextTokenizer, bits_after, bits_by_position, load_model, loss, read_text
from sparsekit.testbed.sample import cut

TEXT = read_text()
LOSSY = "streaming(sinks=16, window=64)"
RUINOUS = "token_coverage(tau=0.9, min_tokens=16, sinks=2) | attend(break_even=0)"  # dropped tokens see nothing


def tiny(vocab):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocab, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        initializer_range=0.5, tie_word_embeddings=False, max_position_embeddings=4096,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def model():
    return tiny(256)


@pytest.fixture(scope="module")
def plain(model):
    """The bits of each byte but the first of the window of seed 3, from a plain forward."""
    ids = torch.tensor([list(cut(TEXT, 2500, Random(3)))])
    with torch.no_grad():
        return F.cross_entropy(model(ids).logits[0, :-1], ids[0, 1:], reduction="none").double() / math.log(2)


def test_ranges_hold_the_mean_bits_of_their_bytes(model, plain):
    edges = [0, 1, 700, 2100, 2500]
    with pytest.raises(ValueError, match="range 0 to 1 in which no predicted token begins"):
        bits_by_position(model, TEXT, 2500, 3, edges=edges)
    found = bits_by_position(model, TEXT, 2500, 3, edges=[0, *edges[2:]])
    assert [(one.start, one.end) for one in found] == list(pairwise([0, *edges[2:]]))
    for one in found:
        mine = plain[max(one.start, 1) - 1 : one.end - 1]
        assert math.isclose(one.bits, mine.mean(), rel_tol=1e-5)


def test_edges_double_and_may_end_early(model, plain):
    whole = bits_by_position(model, TEXT, 2500, 3)
    assert [(one.start, one.end) for one in whole] == [(0, 1024), (1024, 2048), (2048, 2500)]
    assert bits_by_position(model, TEXT, 2500, 3, edges=[0, 1024, 2048]) == whole[:2]


def test_pieces_do_not_matter(model, monkeypatch):
    whole = bits_by_position(model, TEXT, 2500, 3)
    monkeypatch.setattr(loss, "PIECE", 7)
    for one, other in zip(whole, bits_by_position(model, TEXT, 2500, 3), strict=True):
        assert math.isclose(one.bits, other.bits, rel_tol=1e-5)


def test_bytes_through_a_tokenizer_cost_the_same(model):
    found = bits_by_position(model, TEXT, 2500, 3, tokenizer=TextTokenizer(byte_tokenizer()))
    assert found == bits_by_position(model, TEXT, 2500, 3)


def test_bits_are_per_byte_whatever_a_token_holds():
    """Every prediction equally likely: log2 of the vocabulary a token, so tokens over bytes times that."""
    merges = (("\u0120", "\u0120"), ("t", "h"))  # \u0120 stands for a space
    tokenizer, flat = TextTokenizer(byte_tokenizer(merges)), tiny(257 + len(merges))
    flat.lm_head.weight.data.zero_()
    window = cut(TEXT, 2500, Random(3))
    tokens, starts = tokenizer.encode(window), tokenizer.starts(window)
    assert len(tokens) < 2400
    found = bits_by_position(flat, TEXT, 2500, 3, edges=range(0, 2501, 20), tokenizer=tokenizer)
    for one in found:
        mine = [t for t, start in zip(tokens[1:], starts[1:], strict=True) if one.start <= start < one.end]
        size = len(tokenizer.decode_after([], mine))
        assert math.isclose(one.bits, len(mine) / size * math.log2(257 + len(merges)), rel_tol=1e-6)


def test_the_model_reads_inside():
    model = load_model()
    dense, sparse = (
        bits_by_position(model, TEXT, 2048, 0, how=lambda spec=spec: sparsify(model, spec), edges=[0, 64, 2048])
        for spec in ("dense", LOSSY)
    )
    assert math.isclose(dense[0].bits, sparse[0].bits, rel_tol=1e-5), "a window hides nothing from the first 64"
    assert sparse[1].bits > dense[1].bits + 0.01


def test_a_seed_chooses_the_window(model):
    assert bits_by_position(model, TEXT, 1024, 0) != bits_by_position(model, TEXT, 1024, 1)


def test_logits_that_are_more_than_the_heads_are_refused(model):
    with model.register_forward_hook(lambda _, __, out: out.__setitem__("logits", out.logits * 0.5) or out):
        with pytest.raises(ValueError, match="model: got LlamaForCausalLM, whose logits are not its head's"):
            bits_by_position(model, TEXT, 1024, 0)


@pytest.mark.parametrize("edges", [[0], [], [1, 1024], [0, 2000], [0, 512, 512, 1024], [0, 600, 500]])
def test_bad_edges_are_refused(model, edges):
    with pytest.raises(ValueError, match="edges: got .* for length=1024; allowed are"):
        bits_by_position(model, TEXT, 1024, 0, edges=edges)


def test_a_text_too_short_is_refused(model):
    with pytest.raises(ValueError, match="pass a longer text"):
        bits_by_position(model, TEXT[:500], 1024, 0)


def test_what_follows_is_read_as_a_generation_is(model):
    """Nothing after the prompt is sparse: what a plain forward gives, but for the cache that the prefill left."""
    ids = torch.tensor([list(cut(TEXT, 2500, Random(3)))])
    with torch.no_grad():
        plain = F.cross_entropy(model(ids).logits[0, 2399:-1], ids[0, 2400:]) / math.log(2)
    assert math.isclose(bits_after(model, TEXT, 2400, 3, after=100), plain, rel_tol=1e-5)
    assert math.isclose(
        bits_after(model, TEXT, 2400, 3, after=100, tokenizer=TextTokenizer(byte_tokenizer())), plain, rel_tol=1e-5
    )


def test_a_lossy_prefill_costs_what_follows(model):
    embedded = load_model(torch.float32)
    dense = bits_after(embedded, TEXT, 2000, 1, after=200)
    assert bits_after(embedded, TEXT, 2000, 1, lambda: sparsify(embedded, RUINOUS), after=200) > dense + 0.1
    with pytest.raises(ValueError, match="after: got 0"):
        bits_after(embedded, TEXT, 2000, 1, after=0)
