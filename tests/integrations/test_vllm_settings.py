"""Tests of the settings of the plugin for vLLM, which need no vLLM; tests/engines has those that do."""

import json
import subprocess
import sys

import pytest

from sparsekit import Pipeline
from sparsekit.integrations.vllm.settings import LEAST, settings


def test_without_settings_there_is_nothing_to_run():
    assert settings({}, 4) is settings({"another": 1}, 4) is settings(None, 4) is None


def test_a_recipe_runs_in_every_layer():
    found = settings({"sparsekit": {"pipeline": "balanced"}}, 4)
    assert found.pipelines == dict.fromkeys(range(4), Pipeline.from_spec("balanced"))
    assert found.min_tokens == LEAST and found.chunks
    assert str(found).startswith("layers 0-3: block_threshold(")
    assert str(found).endswith("for 4,096 new tokens and more")


def test_a_mapping_and_a_file_name_layers(tmp_path):
    given = {"1-2": "streaming", "default": "dense"}
    (tmp_path / "sparsekit.json").write_text(json.dumps({"pipeline": given}))
    for pipeline in given, str(tmp_path):
        found = settings({"sparsekit": {"pipeline": pipeline, "break_even": 7, "min_tokens": 5, "chunks": False}}, 4)
        streaming = Pipeline([Pipeline.from_spec("streaming")], break_even=7)
        assert found.pipelines == {0: None, 1: streaming, 2: streaming, 3: None}
        assert (found.min_tokens, found.chunks) == (5, False)
        assert "layers 0, 3: dense; layers 1-2: streaming | attend(break_even=7)" in str(found)
        assert str(found).endswith("prompts in chunks run dense")


@pytest.mark.parametrize(
    "given, message",
    [
        ("balanced", 'allowed is an object with a "pipeline"'),
        ({}, 'allowed is an object with a "pipeline"'),
        ({"pipeline": "balanced", "chunk": True}, "did you mean chunks"),
        ({"pipeline": "balanced", "min_tokens": 0}, "min_tokens: got 0"),
        ({"pipeline": "balanced", "chunks": 1}, "chunks: got 1"),
        ({"pipeline": "balancd"}, "did you mean balanced"),
        ({"pipeline": {"3-4": "balanced"}}, "the model has 0 to 3"),
        ({"pipeline": "balanced", "break_even": "always"}, "break_even"),
    ],
)
def test_wrong_settings_say_what_is_allowed(given, message):
    with pytest.raises(ValueError, match=message):
        settings({"sparsekit": given}, 4)


def test_the_plugin_is_an_entry_point_that_imports_nothing_heavy():
    """vLLM only logs an entry point that cannot be imported, so this import must not fail."""
    code = "import sys; from importlib.metadata import entry_points as e\n"
    code += "one, = e(group='vllm.general_plugins', name='sparsekit'); one.load()\n"
    code += "print(sorted({'vllm', 'transformers', 'prometheus_client', 'torch'} & sys.modules.keys()))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ran.stdout.strip() in ("[]", "['torch']"), ran.stdout + ran.stderr
