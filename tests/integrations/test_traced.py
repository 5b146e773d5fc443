"""Tests of a sparsified model: compiled, exported, called with tensors without values; and which calls are decode."""

import copy

import pytest
import torch
from closeness import error
from torch._subclasses import FakeTensorMode

from bench.transformers_matrix import build, ids
from sparsekit import Pipeline, Plan
from sparsekit.integrations.transformers import sparsify
from sparsekit.integrations.transformers.attention import DECODE, prefill

BLOCKS = "block_topk(keep=0.5, block_size=8)"
FILLED = (
    "token_coverage(tau=0.3, voters=8, pool=3, min_tokens=8, sinks=2) | decompress(fill=sliding_window(4, sinks=4))"
)


@pytest.fixture
def llama():
    return build("Llama")


@pytest.mark.parametrize("backend,dynamic", [("aot_eager", None), ("eager", True)])
@torch.no_grad()
def test_a_compiled_model_takes_prompts_of_several_lengths(llama, backend, dynamic):
    lengths, calls = (90, 61, 45), []
    del llama.model.layers[1:]  # one layer is enough: each takes as long, and all are alike
    llama.config.num_hidden_layers = 1
    with sparsify(llama, FILLED, watch=calls.append):
        expected = [llama(ids(1, n)).logits for n in lengths]
        torch._dynamo.reset()
        compiled = torch.compile(llama, backend=backend, dynamic=dynamic)
        for n, answer in zip(lengths, expected, strict=True):
            assert error(compiled(ids(1, n)).logits, answer) < 1e-5
    assert [call.problem.q.shape[2] for call in calls] == [*lengths, *lengths], "a compiled call is watched like any"
    torch._dynamo.reset()


def operators(program):
    return sum(node.target == torch.ops.sparsekit.prefill.default for node in program.graph.nodes)


@pytest.mark.parametrize("spec", [BLOCKS, FILLED])
@torch.no_grad()
def test_an_exported_model_runs_sparse(llama, spec):
    """The exported model also runs with padding that the export did not see."""
    mask = torch.ones(2, 90, dtype=torch.long)
    with sparsify(llama, {"1-2": spec}) as handle:
        program = torch.export.export(llama, (ids(2, 90),), dict(attention_mask=mask, use_cache=False))
        assert operators(program) == 2 and not handle.dense
        mask[0, :37] = 0
        expected = llama(ids(2, 90), attention_mask=mask, use_cache=False).logits
        found = program.module()(ids(2, 90), attention_mask=mask, use_cache=False).logits
    assert error(found[mask.bool()], expected[mask.bool()]) < 1e-5


@torch.no_grad()
def test_an_exported_model_takes_other_lengths_and_packed_sequences(llama):
    length = torch.export.Dim("length", min=8, max=512)
    positions = torch.cat([torch.arange(30), torch.arange(31)])[None]
    with sparsify(llama, BLOCKS):
        program = torch.export.export(
            llama,
            (ids(1, 90),),
            dict(position_ids=torch.arange(90)[None], use_cache=False),
            dynamic_shapes=dict(input_ids={1: length}, position_ids={1: length}, use_cache=None),
        )
        for said in (torch.arange(61)[None], positions):
            expected = llama(ids(1, 61), position_ids=said, use_cache=False).logits
            found = program.module()(ids(1, 61), position_ids=said, use_cache=False).logits
            assert error(found, expected) < 1e-5


@torch.no_grad()
def test_tensors_without_values_give_shapes(llama):
    with sparsify(llama, FILLED) as handle:
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            assert llama(mode.from_tensor(ids(2, 90))).logits.shape == (2, 90, 64)
        assert copy.deepcopy(llama).to("meta")(ids(2, 90).to("meta")).logits.shape == (2, 90, 64)
    assert not handle.dense


@torch.no_grad()
def test_what_an_operator_cannot_hold_is_dense_and_said(llama):
    def mine(problem):
        return Plan()

    with sparsify(llama, Pipeline([mine])) as handle:
        with pytest.warns(UserWarning, match="runs dense"):
            program = torch.export.export(llama, (ids(1, 90),), dict(use_cache=False))
    assert operators(program) == 0 and set(handle.dense) == {0, 1, 2}


def test_the_operator_has_a_right_fake_and_refuses_gradients():
    q, k = (torch.randn(2, heads, 40, 8, requires_grad=True) for heads in (4, 2))
    real = torch.ones(2, 40, dtype=torch.bool)
    real[0, :9] = False
    args = q, k, k, real, None, "block_topk(keep=0.5, block_size=8)", 0.3, None, 0
    torch.library.opcheck(prefill, args, test_utils=["test_schema", "test_faketensor", "test_autograd_registration"])
    with pytest.raises(ValueError, match="a backward pass"):
        prefill(*args)[0].sum().backward()


@pytest.mark.parametrize("draft", [2, 10, DECODE - 1])
@torch.no_grad()
def test_the_verification_of_a_draft_is_decode(llama, draft):
    """Only the prefill runs sparse; the checks of drafted tokens run dense."""
    prompt = ids(1, 20).repeat(1, 6)
    how = dict(max_new_tokens=24, do_sample=False, prompt_lookup_num_tokens=draft)
    calls = []
    with sparsify(llama, FILLED, watch=calls.append):
        llama.generate(prompt, **how)
    assert [call.layer for call in calls] == [0, 1, 2], "one prefill, of the prompt and the first draft"
    assert all(call.problem.q.shape[2] >= 120 and call.plan != Plan() for call in calls)


@torch.no_grad()
def test_an_assistants_drafts_are_decode_too(llama):
    calls, assistant = [], copy.deepcopy(llama)
    with sparsify(llama, FILLED, watch=calls.append):
        llama.generate(ids(1, 120), assistant_model=assistant, max_new_tokens=24, do_sample=False)
    assert len(calls) == 3 and all(call.problem.q.shape[2] >= 120 for call in calls)


@pytest.mark.parametrize("new,sparse", [(1, False), (DECODE, False), (DECODE + 1, True)])
@torch.no_grad()
def test_one_number_tells_decode_from_a_prefill(llama, new, sparse):
    """The number counts only over a cache: a short prompt without one is a prefill."""
    calls = []
    with sparsify(llama, BLOCKS, watch=calls.append):
        cache = llama(ids(1, 20), use_cache=True).past_key_values
        assert len(calls) == 3
        llama(ids(1, new), past_key_values=cache)
    assert len(calls) == (6 if sparse else 3)
