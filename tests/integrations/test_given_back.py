"""Tests that `restore` gives back the model as it was, in any order, and that copies of a model stay sparse."""

import copy
import pickle
import subprocess
import sys
import warnings

import pytest
import torch
from closeness import error
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from hypothesis.strategies import data, sampled_from

from bench.transformers_matrix import build, ids, whole
from sparsekit import BlockTopK, Pipeline, Streaming
from sparsekit.integrations.transformers import register, sparsify
from sparsekit.integrations.transformers.attention import MARK
from sparsekit.integrations.transformers.sparsify import Change

LOCAL = "streaming(sinks=1, window=8, block_size=8)"
PIPELINES = [Pipeline([Streaming(sinks=1, window=8, block_size=8)]), Pipeline([BlockTopK(0.4, 8)]), Pipeline()]


def state(model):
    """Return everything that `sparsify` may change: attributes of modules, implementations in configs."""
    modules = {name: {key: id(x) for key, x in module.__dict__.items()} for name, module in model.named_modules()}
    configs = {
        name: vars(module.config).get("_attn_implementation_internal")
        for name, module in model.named_modules()
        if hasattr(module, "config")
    }
    return modules, configs


class Handles(RuleBasedStateMachine):
    """Makes, enters, leaves, restores and drops handles in any order; `stack` models which handle is above which."""

    def __init__(self):
        super().__init__()
        self.model = build("Llama")
        self.before, self.stack, self.base, self.gone = state(self.model), [], None, []

    @rule(pipeline=sampled_from(PIPELINES))
    def make(self, pipeline):
        self.stack = self.held()
        self.stack.append(dict(handle=sparsify(self.model, pipeline), pipeline=pipeline, held=True, entered=0))

    def held(self):
        return [entry for entry in self.stack if entry["held"]]

    @precondition(lambda self: self.held())
    @rule(data=data())
    def enter(self, data):
        entry = data.draw(sampled_from(self.held()))
        entry["handle"].__enter__()  # its place in the stack does not change
        entry["entered"] += 1

    @precondition(lambda self: any(entry["entered"] for entry in self.held()))
    @rule(data=data(), fails=sampled_from([False, True]))
    def leave(self, data, fails):
        entry = data.draw(sampled_from([entry for entry in self.held() if entry["entered"]]))
        entry["handle"].__exit__(*((ValueError, ValueError("x"), None) if fails else (None, None, None)))
        entry["entered"] -= 1
        if not entry["entered"]:
            self.take_out(entry)

    @precondition(lambda self: self.held())
    @rule(data=data(), again=sampled_from([1, 2]))
    def restore(self, data, again):
        entry = data.draw(sampled_from(self.held()))
        for _ in range(again):
            entry["handle"].restore()
        at = next(i for i, other in enumerate(self.stack) if other is entry)
        self.stack = [other for other in self.stack[:at] if other["held"]] + self.stack[at:]
        self.take_out(entry)

    @precondition(lambda self: self.gone)
    @rule(data=data())
    def enter_anew(self, data):
        entry = data.draw(sampled_from(self.gone))
        self.gone = [other for other in self.gone if other is not entry]
        self.stack = self.held()
        entry["handle"].__enter__()
        entry["entered"] = 1
        entry["pipeline"] = entry["own"]
        self.stack.append(entry)

    @precondition(lambda self: self.held())
    @rule(data=data())
    def drop(self, data):
        entry = data.draw(sampled_from(self.held()))
        entry["handle"], entry["held"] = None, False
        self.sink()

    def take_out(self, entry):
        self.stack = [other for other in self.stack if other is not entry]
        entry["entered"] = 0
        entry.setdefault("own", entry["pipeline"])
        self.gone.append(entry)
        self.sink()

    def sink(self):
        """Remove handles on top that nobody holds: their pipeline becomes the one that the handle below sees."""
        while self.stack and not self.stack[-1]["held"]:
            pipeline = self.stack.pop()["pipeline"]
            if self.stack:
                self.stack[-1].setdefault("own", self.stack[-1]["pipeline"])
                self.stack[-1]["pipeline"] = pipeline
            else:
                self.base = pipeline

    @invariant()
    def the_last_one_made_holds(self):
        expected = self.stack[-1]["pipeline"] if self.stack else self.base
        if expected is None:
            assert state(self.model) == self.before
        else:
            assert self.model.config._attn_implementation == "sparsekit"
            found = self.model.model.layers[1].self_attn.__dict__[MARK].pipeline
            assert (found or Pipeline()) == expected


TestHandles = Handles.TestCase
TestHandles.settings = settings(max_examples=60, stateful_step_count=20)


@torch.no_grad()
def test_a_handle_entered_again_is_sparse_again():
    model = build("Llama")
    handle, dense = sparsify(model, LOCAL), whole(model.float())
    sparse = whole(model)
    with handle:
        with handle:
            pass
        assert torch.equal(whole(model), sparse), "left once of twice"
    restored = whole(model)
    with handle:
        assert torch.equal(whole(model), sparse)
    assert torch.equal(whole(model), restored) and not torch.equal(restored, sparse) and torch.equal(dense, sparse)


@torch.no_grad()
def test_a_cell_that_runs_again_is_taken_back_by_one_restore():
    model = build("Llama")
    before = state(model)
    handle = sparsify(model, LOCAL)
    handle = sparsify(model, "flex_prefill")
    handle.restore()
    assert state(model) == before


@torch.no_grad()
def test_a_failure_inside_gives_the_model_back():
    model = build("Llama")
    before = state(model)
    with pytest.raises(RuntimeError), sparsify(model, LOCAL):
        raise RuntimeError
    with pytest.raises(ValueError, match="names"), sparsify(model, LOCAL):
        with sparsify(model, {0: "dense"}):
            raise ValueError("names")
    assert state(model) == before


def replicated(model):
    """Return the copy that torch.nn.DataParallel makes of a module for another device."""
    return model._replicate_for_data_parallel()


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
@torch.no_grad()
def test_a_copy_is_sparse_too(copied):
    model, calls = build("Llama"), []
    with sparsify(model, {"1-2": LOCAL}, watch=calls.append) as handle:
        sparse, seen = whole(model), len(calls)
        other = copied(model)
        assert torch.equal(whole(other), sparse) and len(calls) == seen, "but nobody watches it"
    dense = whole(model)
    assert torch.equal(whole(other), sparse) and not torch.equal(dense, sparse), "the original alone was restored"
    with sparsify(other, "dense"):
        assert error(whole(other), dense) < 1e-5
    assert torch.equal(whole(other), sparse) and not handle.dense
    other.set_attn_implementation("sdpa")
    assert torch.equal(whole(other), dense)


@torch.no_grad()
def test_replicas_and_quantised_copies_are_sparse_too():
    model = build("Llama")
    replica = replicated(model.model.layers[1].self_attn)
    assert MARK not in replica.__dict__
    with sparsify(model, LOCAL):
        assert replicated(model.model.layers[1].self_attn).__dict__[MARK].pipeline == Pipeline.from_spec(LOCAL)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns that this quantisation API is deprecated
            small = torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8)
    sparse = whole(small)
    small.set_attn_implementation("sdpa")
    assert not torch.equal(whole(small), sparse)


def test_a_copy_in_another_process_knows_the_name(tmp_path):
    model = build("Llama")
    with torch.no_grad(), sparsify(model, LOCAL):
        expected = whole(model)
        torch.save(model, tmp_path / "model.pt")
    torch.save((ids(2, 90), expected), tmp_path / "expected.pt")
    code = (
        "import sys, torch; model = torch.load(sys.argv[1], weights_only=False); x, y = torch.load(sys.argv[2])\n"
        "with torch.no_grad(): z = model(x).logits\n"
        "print((z - y).abs().max().item() < 1e-6)"
    )
    files = tmp_path / "model.pt", tmp_path / "expected.pt"
    done = subprocess.run([sys.executable, "-c", code, *map(str, files)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True"


@torch.no_grad()
def test_a_model_that_has_the_name_alone_says_that_it_is_dense():
    model = build("Llama")
    expected = whole(model)
    register()
    model.set_attn_implementation("sparsekit")
    with pytest.warns(UserWarning, match=r"by its name alone and runs dense: there is no sparsekit.json in ''"):
        assert error(whole(model), expected) < 1e-5


@pytest.mark.parametrize("given", [None, "gpt2", object(), torch.nn.Linear(2, 2)])
def test_what_is_no_model_is_named(given):
    with pytest.raises(ValueError, match="model: got .* allowed is a decoder model of transformers"):
        sparsify(given, LOCAL)


@torch.no_grad()
def test_a_module_around_a_model_will_do():
    model, calls = build("Llama"), []
    with sparsify(torch.nn.DataParallel(model), LOCAL, watch=calls.append):
        whole(model)
    assert len(calls) == 3 and all(call.plan.blocks for call in calls)


def test_a_handle_prints_what_runs_where():
    model = build("Llama")
    with sparsify(model, {"1-2": LOCAL}) as handle:
        with torch.no_grad(), pytest.warns(match="runs dense: output_attentions"):
            model(ids(1, 40), output_attentions=True)
        assert str(handle).splitlines() == [
            "LlamaForCausalLM, sparse:",
            "  layers 0: dense",
            "  layers 1-2: Streaming(sinks=1, window=8, block_size=8) -> Attend",
            "  2 prefill calls of layers, none sparse",
            "  layers 1-2 ran dense: output_attentions=True asks for attention weights, and a sparse layer has none",
        ]
    assert str(handle).startswith("LlamaForCausalLM, restored:")
    assert (
        repr(handle) == "<Sparsified LlamaForCausalLM, restored: 2 of 3 layers, 2 prefill calls of layers, none sparse>"
    )


def test_handles_made_in_a_loop_keep_no_chain():
    model = build("Llama")
    before, others = state(model), len(Change._all)
    for _ in range(20):
        handle = sparsify(model, LOCAL)
        assert len(Change._all) <= others + 2
    handle.restore()
    assert state(model) == before and len(Change._all) <= others
