"""Tests of CUDA graphs: the operators that wait for the device and so prevent one, and the number of graphs kept."""

from collections import OrderedDict
from types import SimpleNamespace

import pytest
import torch

from sparsekit import graphs
from sparsekit.graphs import _Watch

x, at = torch.arange(12.0).view(3, 4), torch.tensor([2, 0])

WAITS = {
    "a number": lambda: x.sum().item(),
    "a branch": lambda: bool((x > 3).any()),
    "how many": lambda: (x > 3).nonzero(),
    "a choice by mask": lambda: x[x > 3],
    "an assignment by mask, as another tensor": lambda: x.clone().masked_scatter(x > 3, x.masked_select(x > 3)),
    "distinct ones": lambda: x.unique(),
    "equality": lambda: torch.equal(x, x),
    "repeats by a tensor": lambda: x.repeat_interleave(torch.tensor([1, 2, 0]), 0),
    "another device": lambda: x.to("meta"),
    "a number on another device": lambda: x.sum().to("meta"),
}
DOES_NOT = {
    "arithmetic": lambda: (x * 2 + 1).softmax(-1),
    "a choice by indices": lambda: x[at],
    "gather": lambda: x.gather(0, at.expand(4, 2).t()),
    "an assignment": lambda: x.clone().index_fill_(0, at, 1.0),
    "a cast": lambda: x.to(torch.float64).half(),
    "a sort": lambda: x.sort(dim=-1, stable=True),
    "where": lambda: torch.where(x > 3, x, 0.0),
}


@pytest.mark.parametrize("name", WAITS)
def test_what_waits_is_seen(name):
    with _Watch(host="none") as watch:
        WAITS[name]()
    assert watch.waits


@pytest.mark.parametrize("name", DOES_NOT)
def test_what_does_not_wait_is_not(name):
    with _Watch(host="none") as watch:
        DOES_NOT[name]()
    assert not watch.waits


@pytest.mark.parametrize(
    "sizes,kept", [([1] * 10, 8), ([graphs.ROOM // 2] * 3, 2), ([2 * graphs.ROOM], 1), ([1, graphs.ROOM], 1)]
)
def test_few_graphs_of_little_memory_are_held(sizes, kept):
    held = OrderedDict((i, SimpleNamespace(nbytes=size)) for i, size in enumerate(sizes))
    graphs._fit(held)
    assert list(held) == list(range(len(sizes)))[-kept:]
