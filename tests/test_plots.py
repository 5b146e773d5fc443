"""Tests that pictures show the plan: they read colours at the places of pairs."""

import io

import matplotlib.image
import PIL.Image
import pytest
import torch
from matplotlib.colors import to_rgb
from strategies import randn

import sparsekit as sk
from sparsekit import Plan, Problem, SlidingWindow, Tokens
from sparsekit.plots import FILLED, KINDS, SHOWN, _far_from_kept, draw_fills, draw_plan, new_figure, save_whole


def picture_of(plan, tmp_path, K=64, head=0):
    p = Problem.of(randn(0, 1, 4, K, 8), randn(1, 1, 2, K, 8), randn(2, 1, 2, K, 8))
    path = draw_plan(p, plan, tmp_path / "plan.png", head=head, title="a title")
    assert path == tmp_path / "plan.png" and [x.name for x in tmp_path.iterdir()] == ["plan.png"]
    return torch.tensor(matplotlib.image.imread(path)[..., :3])


def test_a_png_has_a_palette_and_text_of_black_and_white(tmp_path):
    """It has about a third of the bytes, and the pixels of letters hardly change."""
    path, figure = tmp_path / "a.png", new_figure(6, 3)
    axes = figure.subplots()
    axes.text(0.5, 0.5, "What a reader reads")
    axes.plot([0, 1], [0, 1])
    save_whole(figure, path)
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=110, format="png")
    with PIL.Image.open(path) as picture:
        assert picture.mode == "P" and path.stat().st_size < 0.6 * len(drawn.getvalue())
    few, all_ = (torch.tensor(matplotlib.image.imread(x)[..., :3]) for x in (path, io.BytesIO(drawn.getvalue())))
    assert few.shape == all_.shape and (few - all_).abs().mean() < 0.005
    for grey in (0.0, 1.0):
        assert torch.equal(few[(all_ == grey).all(-1)].unique(), torch.tensor([grey]))
    assert save_whole(figure, tmp_path / "a.svg").read_text().startswith("<?xml")


def part(picture, kind):
    """Return the part of the picture that has the colour of a kind."""
    colour = torch.tensor(to_rgb((KINDS | FILLED)[kind]))
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


@pytest.mark.parametrize("K", [1, 40, 64, SHOWN + 89])
def test_fills_side_by_side_show_what_a_dropped_query_sees(tmp_path, K):
    p = Problem.of(randn(0, 1, 4, K, 8), randn(1, 1, 2, K, 8), randn(2, 1, 2, K, 8))
    t = Tokens.of(torch.arange(K)[None, None] % 16 == 15) if K > 15 else None
    near = K // 8 + 1
    fills = {"zeros": None, "window": SlidingWindow(near, 0), "window and sinks": SlidingWindow(near, 3)}
    plans = {name: Plan(t, t, fill=fill) for name, fill in fills.items()}
    path = draw_fills(p, plans, tmp_path / "fills.png", ["none right", "1 right", "2 right"], head=3, title="layer 1")
    assert [x.name for x in tmp_path.iterdir()] == ["fills.png"]
    whole = torch.tensor(matplotlib.image.imread(path)[..., :3])
    above = whole[: int(0.9 * whole.shape[0])]  # without the legend, which has every colour
    zeros, window, sinks = above.tensor_split(3, dim=1)
    near, first = "a dropped query sees its window", "a dropped query sees the first keys (sinks)"
    many = 0.01 if K > 15 else -1
    assert part(zeros, near) == part(zeros, first) == part(window, first) == 0
    assert part(window, near) >= part(sinks, near) > many and part(sinks, first) > many / 10
    assert part(zeros, "computed") > 0


@pytest.mark.parametrize("n,kept,expected", [(8, [0], 4), (8, [7], 4), (9, [4, 8], 6), (4, [2, 3], None), (4, [], 2)])
def test_the_row_pointed_at_is_a_dropped_one_far_from_kept_ones(n, kept, expected):
    dropped = torch.ones(n, dtype=torch.bool)
    dropped[kept] = False
    assert _far_from_kept(dropped) == expected
