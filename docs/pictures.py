"""Draws docs/plans.png, the pictures of concepts.md: which pairs six plans of one small problem compute.

python docs/pictures.py
"""

from dataclasses import replace
from pathlib import Path

import torch
from matplotlib.colors import ListedColormap, to_rgb
from matplotlib.patches import Patch

from sparsekit import Pipeline, Plan, Problem, Zeros
from sparsekit.plots import new_figure, save_whole

TOKENS = 64
KEPT = "token_coverage(tau=0.3, voters=8, pool=1, min_tokens=16, sinks=4)"
SPECS = {
    "dense attention": "dense",
    "blocks": "streaming(sinks=8, window=12, block_size=8)",
    "tokens, dropped queries get zeros": KEPT,
    "the same tokens, filled with a window and sinks": f"{KEPT} | decompress(fill=sliding_window(8, sinks=4))",
    "tokens, then blocks among these": f"{KEPT} | streaming(sinks=4, window=8, block_size=4)",
    "blocks, the last 8 queries dense": "streaming(sinks=8, window=12, block_size=8) | decompress(dense_last=8)",
}
COLOURS = {
    "future: no query sees it": "#e7e7e7",
    "skipped": "#ffffff",
    "computed: what the stages chose": "#1f5fbf",
    "computed: the fill of a dropped query": "#f08c2e",
    "computed: one of the last queries": "#2e8b57",
}


def kinds(problem: Problem, plan: Plan) -> torch.Tensor:
    """Return which of COLOURS each pair [Q, K] of the first head has."""
    chosen = replace(plan, fill=Zeros(), dense_last=0).pairs(problem)[0, 0]
    filled = replace(plan, dense_last=0).pairs(problem)[0, 0]
    found = problem.visible()[0, 0].long()
    for kind, pairs in ((4, plan.pairs(problem)[0, 0]), (3, filled), (2, chosen)):
        found[pairs] = kind
    return found


def main() -> None:
    """Draw one panel per plan, with a legend below."""
    q, k, v = (torch.randn(1, 1, TOKENS, 8, generator=torch.Generator().manual_seed(seed)) for seed in (3, 4, 5))
    problem, figure = Problem.of(q * 2, k, v), new_figure(12, 8.6)
    colours = ListedColormap([to_rgb(colour) for colour in COLOURS.values()])
    for axes, (title, spec) in zip(figure.subplots(2, 3).flat, SPECS.items(), strict=True):
        plan = Pipeline([Pipeline.from_spec(spec)], break_even=0)(problem)
        axes.imshow(kinds(problem, plan), colours, vmin=0, vmax=len(COLOURS) - 1, extent=(0, TOKENS, TOKENS, 0))
        axes.set_title(f"{title}\n{plan.density(problem):.0%} of the pairs", fontsize=11)
        axes.set(xlabel="key", ylabel="query", xticks=[0, 32, 64], yticks=[0, 32, 64])
    figure.legend(
        handles=[Patch(facecolor=colour, edgecolor="#888888", label=name) for name, colour in COLOURS.items()],
        loc="outside lower center", ncols=3,
    )  # fmt: skip
    save_whole(figure, Path(__file__).with_name("plans.png"))


if __name__ == "__main__":
    main()
