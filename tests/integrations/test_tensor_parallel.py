"""Tests that a model split over two processes gives the answers of one process, with budgets over all heads."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from closeness import error
from tensor_parallel import PIPELINES, answers

from bench.transformers_matrix import build, ids

RANK = Path(__file__).with_name("tensor_parallel.py")


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Return the answers of one process, and those of rank 0 of two."""
    folder = tmp_path_factory.mktemp("model")
    model = build("Llama")
    for layer in model.model.layers:  # heads 2 and 3 attend to few tokens: half the heads would drop others
        layer.self_attn.q_proj.weight.data[32:] *= 30
    model.save_pretrained(folder)
    torch.save(ids(2, 90), folder / "ids.pt")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(RANK.parents[2])}
    subprocess.run([*launch, RANK, folder], check=True, env=env, capture_output=True)
    return answers(model, ids(2, 90)), torch.load(folder / "found.pt")


@pytest.mark.parametrize("name", PIPELINES)
def test_two_ranks_answer_as_one(found, name):
    (alone, tokens, heads), (together, half_tokens, half_heads) = (one[name] for one in found)
    assert heads == [4] * 3 and half_heads == [2] * 3, "the second model is not split"
    for mine, half in zip(tokens, half_tokens, strict=True):
        if mine is not None:
            assert mine.shape[2] < 90, "nothing was dropped"
            assert torch.equal(mine[:, : half.shape[1]], half), "a rank kept other tokens"
    assert error(together, alone) < 1e-5
