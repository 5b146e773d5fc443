"""Tests of the real harness, offline, on two tiny tasks: its command line, and its results beside those of HFLM."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from closeness import error
from tiny_llama import save_tiny_llama

pytest.importorskip("lm_eval.models.huggingface", reason="needs lm-evaluation-harness: pip install sparsekit[lm-eval]")

import lm_eval  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402

from sparsekit.integrations.lm_eval import SparseLM, register  # noqa: E402

DATA = Path(__file__).parent / "data"
TASKS = ["recall_digits", "recall_choice"]
SAME = "token_coverage(tau=0.0) | flex_prefill(gamma=1.0, tau=0.0)"
SPARSE = "token_coverage(tau=0.3, voters=8, pool=3, min_tokens=8, sinks=2) | decompress(fill=sliding_window(4, 2))"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    save_tiny_llama(path)
    return path


@pytest.fixture(autouse=True)
def at_home(monkeypatch, tmp_path_factory):
    cache = str(tmp_path_factory.getbasetemp() / "datasets")
    monkeypatch.chdir(DATA)  # the tasks read their data from this folder
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", cache)
    monkeypatch.setenv("HF_DATASETS_CACHE", cache)  # no other process uses it


def answers(model, how, batch_size=1):
    """Return the harness's answers, texts or (likelihood, greedy) pairs, by task and number of the question."""
    register()
    found = lm_eval.simple_evaluate(
        model, model_args=how, tasks=TASKS, task_manager=TaskManager(include_path=str(DATA), include_defaults=False),
        batch_size=batch_size, device="cpu", bootstrap_iters=0,
    )  # fmt: skip
    return {(task, one["doc_id"]): one["filtered_resps"] for task in TASKS for one in found["samples"][task]}


def likelihoods(found):
    return torch.tensor(
        [[float(pair[0]) for pair in found[key]] for key in sorted(found) if key[0] == "recall_choice"],
        dtype=torch.float64,
    )


def texts(found):
    return [found[key] for key in sorted(found) if key[0] == "recall_digits"]


def test_dense_settings_answer_as_the_harnesss_own_model(folder):
    own = answers("hf", {"pretrained": str(folder)})
    assert len(own) == 12
    for spec in ("dense", SAME):
        mine = answers("sparsekit", {"pretrained": str(folder), "pipeline": spec})
        assert texts(mine) == texts(own)
        assert error(likelihoods(mine), likelihoods(own)) < 1e-5


def test_a_sparse_pipeline_answers_as_the_same_model_called_by_hand(folder):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from sparsekit.integrations.transformers import sparsify

    found = answers("sparsekit", {"pretrained": str(folder), "pipeline": SPARSE})
    assert error(likelihoods(found), likelihoods(answers("hf", {"pretrained": str(folder)}))) > 1e-2
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    questions = [json.loads(line) for line in (DATA / "recall.jsonl").read_text().splitlines()]
    expected, written = [], []
    with sparsify(model, SPARSE), torch.no_grad():
        for one in questions:
            context = tokenizer.encode(f"{one['text']}The number of {one['key']} is")
            for choice in one["choices"]:
                new = tokenizer.encode(f" {choice}")
                logits = model(torch.tensor([[*context, *new[:-1]]])).logits[0, -len(new) :].log_softmax(-1)
                expected.append(logits[range(len(new)), new].sum().item())
            prompt = tokenizer(f"{one['text']}The number of {one['key']} is ", return_tensors="pt")
            out = model.generate(**prompt, max_new_tokens=5, do_sample=False)[0, prompt.input_ids.shape[1] :]
            written.append([tokenizer.decode(out, skip_special_tokens=True).split("\n")[0]])
    assert error(likelihoods(found).flatten(), torch.tensor(expected, dtype=torch.float64)) < 1e-5
    assert texts(found) == written


def test_likelihoods_do_not_depend_on_the_batch(folder):
    """The harness pads a batch on the right without a mask, so the last queries of a short row would be padding."""
    alone = answers("sparsekit", {"pretrained": str(folder), "pipeline": SPARSE})
    batched = answers("sparsekit", {"pretrained": str(folder), "pipeline": SPARSE}, batch_size=4)
    assert error(likelihoods(batched), likelihoods(alone)) < 1e-5


def test_texts_do_not_depend_on_the_batch(folder, monkeypatch):
    """The harness pads prompts on the left with a mask, and the pipeline must not read the padding."""
    from lm_eval.models.huggingface import HFLM

    padded, generate = [], HFLM._model_generate

    def looked_at(self, context, *args, **kwargs):
        padded.append((~kwargs["attention_mask"].bool()).sum(1).tolist())
        return generate(self, context, *args, **kwargs)

    monkeypatch.setattr(HFLM, "_model_generate", looked_at)
    alone = answers("sparsekit", {"pretrained": str(folder), "pipeline": SPARSE})
    assert not any(map(sum, padded))
    padded.clear()
    batched = answers("sparsekit", {"pretrained": str(folder), "pipeline": SPARSE}, batch_size=2)
    assert texts(batched) == texts(alone)
    assert any(max(row) > 0 for row in padded) and all(len(row) == 2 for row in padded), "none was padded"


def test_the_command_line_is_the_harnesss(folder, tmp_path):
    ran = subprocess.run(
        [
            *(sys.executable, "-m", "sparsekit.integrations.lm_eval", "--model", "sparsekit"),
            *("--model_args", f"pretrained={folder},pipeline={SPARSE},dtype=float32"),
            *("--tasks", ",".join(TASKS), "--include_path", DATA, "--device", "cpu"),
            *("--output_path", tmp_path, "--log_samples"),
        ],
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    saved = json.loads(next(tmp_path.rglob("results_*.json")).read_text())
    assert set(saved["results"]) == set(TASKS) and saved["config"]["model"] == "sparsekit"
    assert saved["config"]["model_args"]["pipeline"] == SPARSE, "a spec's own commas and equals signs came through"
    mine = answers("sparsekit", {"pretrained": str(folder), "pipeline": SPARSE})
    lines = next(tmp_path.rglob("samples_recall_choice_*.jsonl")).read_text().splitlines()
    logged = {("recall_choice", one["doc_id"]): one["filtered_resps"] for one in map(json.loads, lines)}
    assert error(likelihoods(logged), likelihoods(mine)) < 1e-5


def test_a_schedule_is_taken_and_restored(folder, tmp_path):
    path = tmp_path / "sparsekit.json"
    path.write_text(json.dumps({"pipeline": {"0-1": "dense", "2-3": SPARSE}}))
    made = SparseLM(str(folder), str(path), device="cpu")
    assert made.model.config._attn_implementation == "sparsekit"
    made.sparsified.restore()
    assert made.model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize(
    "how,message", [({}, "pipeline: got None"), ({"pipeline": "flex_prefil"}, "there is no 'flex_prefil'")]
)
def test_bad_pipelines_are_named(folder, how, message):
    with pytest.raises(ValueError, match=message):
        SparseLM(str(folder), device="cpu", **how)
