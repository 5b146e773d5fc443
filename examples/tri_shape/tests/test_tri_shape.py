"""Tests of TriShape: it keeps the laws, shows the keys that it promises, and has a name in specs."""

import pytest
import torch
from tri_shape import TriShape

import sparsekit as sk
from sparsekit.testing import check_stage

SMALL = [TriShape(1, 1, 1, 2), TriShape(sinks=3, window=5, last=4, block_size=4)]


@pytest.mark.parametrize("stage", SMALL, ids=repr)
def test_it_keeps_the_laws(stage):
    check_stage(stage, looks_ahead=False)


def test_it_shows_the_first_the_nearest_and_all_to_the_last():
    q = k = v = torch.zeros(1, 1, 20, 4)
    problem = sk.Problem.of(q, k, v)
    row, column = torch.arange(20)[:, None], torch.arange(20)
    expected = (column <= row) & ((column < 3) | (row - column < 5) | (row >= 16))
    assert torch.equal(TriShape(sinks=3, window=5, last=4, block_size=1)(problem).pairs(problem)[0, 0], expected)


def test_a_spec_knows_its_name():
    pipeline = sk.Pipeline.from_spec("tri_shape(window=64, block_size=32)")
    assert pipeline == sk.Pipeline([TriShape(window=64, block_size=32)])
    assert pipeline.to_spec() == "tri_shape(window=64, block_size=32)"
