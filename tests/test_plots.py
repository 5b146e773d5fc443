"""Pictures show the plan: colours are looked up where the pairs are."""

import matplotlib.image
import pytest
import torch
from matplotlib.colors import to_rgb
from strategies import randn

import sparsekit as sk
from sparsekit import Plan, Problem, SlidingWindow, Tokens
from sparsekit.plots import KINDS, draw_plan


def picture_of(plan, tmp_path, K=64, head=0):
    p = Problem.of(randn(0, 1, 4, K, 8), randn(1, 1, 2, K, 8), randn(2, 1, 2, K, 8))
    path = draw_plan(p, plan, tmp_path / "plan.png", head=head, title="a title")
    assert path == tmp_path / "plan.png" and [x.name for x in tmp_path.iterdir()] == ["plan.png"]
    return torch.tensor(matplotlib.image.imread(path)[..., :3])


def part(picture, kind):
    """The part of the picture that has the colour of a kind."""
    colour = torch.tensor(to_rgb(KINDS[kind]))
    return ((picture - colour).abs().amax(-1) < 0.02).float().mean().item()


def test_every_kind_of_pair_has_its_colour(tmp_path):
    dense = picture_of(Plan(), tmp_path)
    kept = torch.arange(64)[None, None] % 4 == 3
    t = Tokens.of(kept)
    sparse = picture_of(Plan(t, t, fill=SlidingWindow(8, sinks=0)), tmp_path)
    assert part(dense, "computed") > 0.1 > 0.02 > part(dense, "fill of a dropped query")
    assert part(sparse, "computed") < part(dense, "computed") / 2
    assert part(sparse, "fill of a dropped query") > 0.02
    assert part(sparse, "future") == pytest.approx(part(dense, "future"), abs=0.03), "but for what the legend hides"


def test_the_head_asked_for_is_drawn(tmp_path):
    kept = torch.ones(1, 4, 64, dtype=torch.bool)
    kept[:, 3, :60] = False
    t = Tokens.of(kept)
    first, last = (picture_of(Plan(t, t), tmp_path, head=h) for h in (0, 3))
    assert part(first, "computed") > 0.1 and part(last, "computed") < 0.02


@pytest.mark.parametrize("K", [1, 3, 769, 1601])
def test_any_length_is_drawn(tmp_path, K):
    plan = sk.Streaming(sinks=1, window=8, block_size=8)
    p = Problem.of(*(randn(i, 1, 1, K, 4) for i in range(3)))
    draw_plan(p, plan(p), tmp_path / "x.png")


def test_a_head_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ValueError, match="head: got 4; allowed is 0 to 3"):
        picture_of(Plan(), tmp_path, head=4)
