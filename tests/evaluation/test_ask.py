"""Tests of `ask` and `after`: the values found, which attention reads which tokens, and figures of the text after."""

from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import SEEDS
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from sparsekit import Pipeline
from sparsekit.evaluation.ask import after, ask, log_probabilities
from sparsekit.evaluation.case import Case, Passage
from sparsekit.integrations.transformers import sparsify
from sparsekit.layers import without_break_even

VOCABULARY = 300
CONFIG = LlamaConfig(
    vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, head_dim=8, max_position_embeddings=512, initializer_range=0.4,
)  # fmt: skip


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return LlamaForCausalLM(CONFIG).double().eval()


def tokens(seed, n):
    return tuple(torch.randint(VOCABULARY, (n,), generator=torch.Generator().manual_seed(seed)).tolist())


def greedy(model, prompt, n):
    """Return the model's greedy reply; the model reads the whole text again for each token."""
    said = list(prompt)
    for _ in range(n):
        said.append(int(model(torch.tensor([said])).logits[0, -1].argmax()))
    return tuple(said[len(prompt) :])


@given(SEEDS, st.integers(2, 60), st.integers(1, 9), st.data())
@settings(max_examples=25)
def test_a_models_own_reply_is_found_whole_and_one_that_is_not_its_own_is_not(model, seed, n, m, data):
    prompt = tokens(seed, n)
    reply = greedy(model, prompt, m)
    case = Case("t", 0, n, prompt, reply, (tuple(range(m)), (m - 1,)), data.draw(st.integers(0, m - 1)))
    answer = ask(model, case)
    assert answer.found == (True, True) and answer.likeliest == reply, "inside the prefill or after it"
    at = data.draw(st.integers(0, m - 1))
    wrong = (*reply[:at], (reply[at] + 1) % VOCABULARY, *reply[at + 1 :])
    answer = ask(model, replace(case, reply=wrong, values=((at,), tuple(range(m)), tuple(range(at)))))
    assert answer.found == (False, False, True), "the values before it still count as found"
    assert answer.likeliest[: at + 1] == reply[: at + 1]


@pytest.mark.parametrize("inside", [0, 3])
def test_the_prompt_is_read_inside_and_the_reply_outside_and_no_logits_of_a_prompt_are_made(model, inside):
    reads, heads, within = [], [], []

    @contextmanager
    def how():
        within.append(True)
        yield
        within.pop()

    watched = [
        model.model.register_forward_pre_hook(
            lambda _, args, kwargs: reads.append((kwargs["input_ids"].shape[1], bool(within))), with_kwargs=True
        ),
        model.lm_head.register_forward_hook(lambda _, args, out: heads.append(out.shape[1])),
    ]
    try:
        ask(model, Case("t", 0, 50, tokens(1, 50), tokens(2, 8), ((0, 1),), inside), how)
        log_probabilities(model, Passage(0, 60, tokens(1, 50), tokens(2, 10)), how)
    finally:
        for one in watched:
            one.remove()
    assert reads == [(50 + inside, True), (7 - inside, False), (50, True), (9, False)]
    assert heads == [1 + inside, 7 - inside, 1, 9]


@given(SEEDS, st.integers(1, 60), st.integers(1, 20))
@settings(max_examples=25)
def test_the_text_that_follows_costs_what_one_pass_over_all_says(model, seed, n, m):
    prompt, following = tokens(seed, n), tokens(seed + 1, m)
    with torch.no_grad():
        logits = model(torch.tensor([[*prompt, *following]])).logits[0, n - 1 : -1]
    expected = float(F.cross_entropy(logits, torch.tensor(following)))
    found = log_probabilities(model, Passage(seed, n + m, prompt, following))
    assert found.shape == (m, VOCABULARY) and found.dtype == torch.float32
    dense = after(found, found, following)
    assert dense.nll == pytest.approx(expected, rel=1e-5) and dense.kl == 0 and dense.agreement == 1


def test_another_attention_is_told_by_kl_and_agreement(model):
    passage = Passage(0, 160, tokens(5, 120), tokens(6, 40))
    dense = log_probabilities(model, passage)
    blind = without_break_even(Pipeline.from_spec("streaming(sinks=1, window=1, block_size=1)"))
    ours = log_probabilities(model, passage, lambda: sparsify(model, blind))
    found = after(ours, dense, passage.following)
    p, q = dense.double().exp(), ours.double().exp()
    assert found.kl == pytest.approx(float((p * (p / q).log()).sum(-1).mean()), rel=1e-5) and found.kl > 0.01
    assert found.agreement == float((p.argmax(-1) == q.argmax(-1)).double().mean()) < 1
    assert found.kl != pytest.approx(after(dense, ours, passage.following).kl), "from dense attention's"
    full = without_break_even(Pipeline.from_spec("streaming(sinks=1, window=1000, block_size=1)"))
    same = after(log_probabilities(model, passage, lambda: sparsify(model, full)), dense, passage.following)
    assert same.kl < 1e-9 and same.agreement == 1
    assert torch.equal(log_probabilities(model, passage), dense), "nothing is left of a pipeline"


def test_a_model_that_makes_all_logits_is_asked_for_the_last(model):
    class Plain(LlamaForCausalLM):
        def forward(self, input_ids, past_key_values=None, use_cache=None):
            return super().forward(input_ids, past_key_values=past_key_values, use_cache=use_cache)

    plain = Plain(CONFIG).double().eval()
    plain.load_state_dict(model.state_dict())
    for inside in (0, 2):
        case = Case("t", 0, 40, tokens(3, 40), tokens(4, 6), ((0,),), inside)
        assert ask(plain, case) == ask(model, case)
