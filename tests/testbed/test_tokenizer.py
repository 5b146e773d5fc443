"""Tests that a text tokenizer between the tasks and the model changes no answer."""

import pytest
import torch
from tiny_llama import byte_tokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from sparsekit.testbed import (
    TASKS,
    TRAINED,
    ByteTokenizer,
    TextTokenizer,
    evaluate,
    generate_answer,
    load_model,
    read_text,
)

TEXT = read_text()
PAIRS = (("1", "2"), ("t", "h"), ("th", "e"), ("\u0120", "="))  # \u0120 stands for a space


def test_the_embedded_model_answers_the_same_through_one():
    model, samples = load_model(), [TASKS[name](TEXT, 1024, 3) for name in TRAINED]
    through = evaluate(model, samples, tokenizer=TextTokenizer(byte_tokenizer()))
    assert through == evaluate(model, samples) and all(score.whole for score in through)


@pytest.mark.parametrize("tokenizer", [ByteTokenizer(), TextTokenizer(byte_tokenizer(PAIRS))])
def test_what_was_encoded_is_decoded(tokenizer):
    text, answer = b"the key = ", "1212, th\u00e9 = \u20ac12".encode()
    prompt, tokens = tokenizer.encode(text), tokenizer.encode(answer)
    assert tokenizer.decode_after(prompt, tokens) == answer
    assert tokenizer.decode_after([], tokens) == answer and tokenizer.decode_after(prompt, []) == b""


@pytest.mark.parametrize("tokenizer", [ByteTokenizer(), TextTokenizer(byte_tokenizer(PAIRS))])
def test_tokens_begin_where_the_text_so_far_ends(tokenizer):
    text = "the key = 1212, th\u00e9 = \u20ac12".encode()
    tokens, starts = tokenizer.encode(text), tokenizer.starts(text)
    assert len(starts) == len(tokens) and starts == sorted(starts) and starts[0] == 0
    for i, start in enumerate(starts):
        if i == starts.index(start):  # later ones are the rest of a letter
            assert tokenizer.decode_after([], tokens[:i]) == text[:start]


def test_a_tokenizer_without_offsets_is_refused():
    class Slow:
        is_fast = False

    with pytest.raises(ValueError, match="tokenizer: got Slow, which does not say where its tokens begin"):
        TextTokenizer(Slow()).starts(b"text")


def test_a_leading_space_that_a_tokenizer_drops_is_kept():
    """sentencepiece drops the space of a text's first token; a token after a prompt must keep it."""
    made = Tokenizer(models.WordLevel({"\u2581key": 0, "\u2581is": 1, "\u215112": 2, "\u258112": 3}, "\u2581key"))
    made.pre_tokenizer, made.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    tokenizer = TextTokenizer(PreTrainedTokenizerFast(tokenizer_object=made))
    prompt = tokenizer.encode(b"key is")
    assert tokenizer.decode_after(prompt, tokenizer.encode(b"12")) == b" 12"


@torch.no_grad()
def test_an_answer_ends_where_it_should():
    """A token of several bytes may end after the answer's last byte."""
    tokenizer = TextTokenizer(byte_tokenizer(PAIRS))
    the = tokenizer.encode(b"the")
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=261, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    ).eval()
    last = model.model(torch.tensor([tokenizer.encode(b"say ")])).last_hidden_state[0, -1]
    model.lm_head.weight.zero_()[the] = last  # the likeliest by far
    assert generate_answer(model, b"say ", 2, tokenizer) == b"th"
