"""Tests of the plugin in a real engine on a CPU, in an environment of vLLM's own: make test-vllm"""

import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("vllm", reason="vLLM needs another transformers: make test-vllm has an environment of its own")

import engine
import torch

from sparsekit import Pipeline
from sparsekit.integrations.transformers import sparsify
from sparsekit.testbed import load_model

DENSE = "token_coverage(tau=0) | attend(break_even=0)"  # keeps every token, so it equals dense attention
SPARSE = "block_threshold(alpha=0.05, sinks=128, window=256, queries='mean') | attend(break_even=0)"
PROMPTS = [["single_key", 4096, 0], ["single_key", 3000, 1], ["single_key", 1700, 2]]
NATS = 1e-4  # largest difference of a log-probability, over all tokens of all prompts


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    """Return a function that runs an engine once; it returns what the engine answered, and what it printed."""
    model, count = engine.save(tmp_path_factory.mktemp("model") / "embedded"), iter(range(1000))

    def run(settings=None, prompts=PROMPTS, tokens=6, logprobs=True, text=True, expect=0, environment=(), **more):
        task = dict(settings=settings, prompts=prompts, tokens=tokens, logprobs=logprobs, text=text)
        folder = tmp_path_factory.mktemp(f"run{next(count)}")
        (folder / "task.json").write_text(json.dumps(task | dict(model=str(model), engine=more)))
        words = [sys.executable, engine.__file__, folder / "task.json", folder / "answer.json"]
        said = subprocess.run(words, capture_output=True, text=True, env=os.environ | dict(environment), cwd=folder)
        log = said.stdout + said.stderr
        assert (said.returncode == 0) == (expect == 0), log[-5000:]
        return json.loads((folder / "answer.json").read_text()) if expect == 0 else None, log

    return run


@pytest.fixture(scope="session")
def stock(run):
    """Return what the engine answers without sparsekit."""
    return run()[0]


def difference(found, expected):
    assert [len(one) for one in found["logprobs"]] == [len(one) for one in expected["logprobs"]]
    return max(
        abs(x - y)
        for one, other in zip(found["logprobs"], expected["logprobs"], strict=True)
        for x, y in zip(one, other, strict=True)
    )


def steps(found, by):
    return sum(n for name, n in found["counters"].items() if f'prefills_total{{by="{by}"' in name)


def test_without_settings_the_engine_attends_and_the_log_says_so(run):
    found, log = run(prompts=PROMPTS[2:], logprobs=False)
    assert "sparsekit is installed, but has no settings" in log
    assert not found["counters"] and found["text"][0].strip() == engine.prompt(*PROMPTS[2])[1]


def test_a_pipeline_that_keeps_all_equals_the_engine(run, stock):
    found, log = run({"pipeline": DENSE, "min_tokens": 1}, enable_prefix_caching=False)
    assert f"sparsekit: layers 0-7: {DENSE}; for 1 new tokens and more" in log
    assert difference(found, stock) <= NATS and found["text"] == stock["text"]
    assert steps(found, "pipeline") == 6 and steps(found, "engine") == 0
    assert found["counters"]["sparsekit:density_sum"] == found["counters"]["sparsekit:density_count"] == 6 * 8


def test_in_chunks_and_in_mixed_batches_too(run, stock):
    """Steps of 1,500 tokens: two prompts share a step, decoded tokens come beside chunks, and short ends run dense."""
    found, _ = run({"pipeline": DENSE, "min_tokens": 500}, max_num_batched_tokens=1500, max_num_seqs=3)
    assert difference(found, stock) <= NATS and found["text"] == stock["text"]
    assert steps(found, "pipeline") > 6 and steps(found, "engine") > 0


def test_a_schedule_names_layers(run, stock):
    schedule = {"2-5": DENSE, "default": "dense"}
    found, log = run({"pipeline": schedule, "min_tokens": 2000, "chunks": False}, logprobs=False)
    assert f"layers 0-1, 6-7: dense; layers 2-5: {DENSE}" in log
    assert found["text"] == stock["text"]
    assert found["counters"]["sparsekit:density_count"] == 2 * 4  # two prompts are long enough


def test_sparse_attention_equals_that_in_transformers(run):
    found, _ = run({"pipeline": SPARSE, "min_tokens": 1}, text=False)
    model, expected = load_model(), []
    with sparsify(model, Pipeline.from_spec(SPARSE)), torch.no_grad():
        for one in PROMPTS:
            ids = torch.tensor([engine.prompt(*one)[0]])
            logits = model(ids, use_cache=True).logits[0].log_softmax(-1)
            expected.append(logits[:-1].gather(1, ids[0, 1:, None])[:, 0].tolist())
    assert difference(found, {"logprobs": expected}) <= NATS
    sum_of, number = (found["counters"][f"sparsekit:density_{x}"] for x in ("sum", "count"))
    assert 0.2 < sum_of / number < 0.9


def test_prefix_caching_speculation_and_fp8(run, stock):
    """The drafts' verification stays dense; with a quantized cache later chunks do."""
    drafts = {"method": "ngram", "num_speculative_tokens": 4, "prompt_lookup_max": 3}
    how = dict(enable_prefix_caching=True, speculative_config=drafts, max_num_batched_tokens=2048)
    found, _ = run({"pipeline": DENSE, "min_tokens": 500}, logprobs=False, **how)
    assert found["text"] == stock["text"]
    found, log = run({"pipeline": DENSE, "min_tokens": 500}, logprobs=False, kv_cache_dtype="fp8", prompts=PROMPTS[1:])
    assert "chunks of a prompt after its first run dense, because the cache is quantized" in log
    assert found["text"] == stock["text"][1:]


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"pipelin": "balanced"}, 'allowed is an object with a "pipeline"'),
        ({"pipeline": "balanced", "min_token": 5}, "did you mean min_tokens"),
        ({"pipeline": "balancd"}, "did you mean balanced"),
        ({"pipeline": {"0-9": "balanced"}}, "the model has 0 to 7"),
    ],
)
def test_wrong_settings_stop_the_engine(run, settings, message):
    _, log = run(settings, expect=1)
    assert message in log


def test_a_plugin_that_cannot_be_imported_stops_the_engine(run, tmp_path):
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['sparsekit.integrations.vllm.cpu'] = None\n")
    _, log = run({"pipeline": DENSE}, expect=1, environment={"PYTHONPATH": str(tmp_path)})
    assert "sparsekit.integrations.vllm.cpu" in log
