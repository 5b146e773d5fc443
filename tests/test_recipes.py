"""Tests of recipes: the pipelines that their names stand for, and pages about them that agree with the records."""

import re

import pytest
import torch

from bench.accuracy import report
from sparsekit import Pipeline, Problem, recipes
from sparsekit.layers import by_layer


def test_the_page_and_the_table_are_those_of_the_records():
    report.main(check=True)  # it exits if a page is out of date


@pytest.mark.parametrize("name", recipes.PIPELINES)
def test_a_name_stands_for_its_steps(name):
    pipeline = recipes.PIPELINES[name]()
    assert Pipeline.from_spec(name) == pipeline == Pipeline.from_spec(pipeline.to_spec())
    with pytest.raises(ValueError, match=f"{name} takes: none"):
        Pipeline.from_spec(f"{name}(tau=0.1)")


def test_the_reference_names_every_recipe():
    (named,) = re.findall(r"sparsekit\.recipes\n   :members: (.*)", (report.ROOT / "docs" / "api.md").read_text())
    assert set(named.split(", ")) >= set(recipes.PIPELINES)


def test_no_figure_of_the_records_stands_in_a_docstring():
    for text in (recipes.__doc__, recipes.paper.__doc__, *(recipe.__doc__ for recipe in recipes.PIPELINES.values())):
        assert not re.search(r"\d%|\d x |\d ms|\[[-+\d]", text)
    assert "docs/front.md" in recipes.__doc__


def test_a_recipe_chains_with_a_block_stage_of_the_users():
    assert Pipeline.from_spec("streaming | attend(break_even=0)").stages
    both = Pipeline([*recipes.balanced().stages, *Pipeline.from_spec("flex_prefill").stages])
    assert [type(stage).__name__ for stage in both.stages] == ["BlockThreshold", "FlexPrefill"]


def test_lossless_does_more_than_balanced_and_that_more_than_fast():
    """Scores of key blocks differ by up to 12 nats, the same for every query; the first token scores highest."""
    q, k, v = (torch.randn(1, h, 5000, 16, generator=torch.Generator().manual_seed(i)) for i, h in enumerate((4, 2, 2)))
    sought = torch.rand(40, generator=torch.Generator().manual_seed(3)).repeat_interleave(128)[:5000]
    k[..., 0], q[..., 0] = 12 * sought, 4.0
    k[..., 0, 0] = 16.0
    works = [
        Pipeline([recipe()], break_even=0).plan(q, k, v).work(Problem.of(q, k, v)).sum()
        for recipe in (recipes.lossless, recipes.balanced, recipes.fast)
    ]
    assert works[0] > works[1] > works[2]


def test_the_paper_is_one_setting_in_the_layers_named():
    chosen = by_layer(recipes.paper((1, 3)), [0, 1, 2, 3])
    assert chosen[0] is None and chosen[2] is None
    assert chosen[1] == chosen[3] == Pipeline.from_spec("token_coverage(tau=0.005)")
