"""Tests of every family in every mode, with the checks of bench/transformers_matrix.py; and of its page."""

import copy
import subprocess
import sys

import pytest
import transformers

from bench.transformers_matrix import FAMILIES, MODES, ROOT, build, judge, read

RECORDED = {record["transformers"]: record["families"] for record in read()}
COMPILED = {"Llama": 1, "GPT-OSS": 2}  # numbers of layers; compiling is slow, so the records cover other families


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    return request.param, build(request.param)


def shortened(model, layers):
    """Return a copy with only the first layers: the later ones compile to the same code."""
    short = copy.deepcopy(model)
    del short.model.layers[layers:]
    short.config.num_hidden_layers = layers
    return short


@pytest.mark.parametrize("mode", MODES)
def test_a_family_in_a_mode(family, mode):
    name, model = family
    if mode == "`torch.compile`":
        if name not in COMPILED:
            pytest.skip("compiling takes seconds; the committed record has this cell")
        model = shortened(model, COMPILED[name])
    cell = judge(model, MODES[mode])
    recorded = RECORDED.get(transformers.__version__)
    if recorded:
        kept = recorded[name][mode]
        assert (cell.sparse, list(cell.dense), cell.unsupported) == (kept["sparse"], kept["dense"], kept["unsupported"])


def test_the_page_is_what_the_records_say():
    subprocess.run([sys.executable, "bench/transformers_matrix.py", "--check"], cwd=ROOT, check=True)


def test_the_lowest_and_the_newest_version_are_recorded():
    assert [record["transformers"] for record in read()] == ["5.17.0", "5.23.0"]
