"""Runs one rank of a tensor-parallel model: torchrun --nproc-per-node N tests/integrations/tensor_parallel.py FOLDER

Rank 0 writes its `answers` to FOLDER/found.pt.
"""

import os
import sys
import warnings
from pathlib import Path

import torch
import torch.distributed as dist
from transformers import AutoModelForCausalLM

from sparsekit import Pipeline, TokenCoverage
from sparsekit.integrations.transformers import sparsify

PIPELINES = {
    "per head": Pipeline([TokenCoverage(tau=0.3, voters=8, pool=3, min_tokens=8, sinks=2)]),
    "per layer": Pipeline([TokenCoverage(tau=0.3, voters=8, pool=3, min_tokens=8, sinks=2, per="layer")]),
    "blocks": Pipeline.from_spec("flex_prefill(gamma=0.5, block_size=8)"),
    "stacked": Pipeline.from_spec(
        "token_coverage(tau=0.3, voters=8, pool=3, min_tokens=8, sinks=2) | flex_prefill(gamma=0.5, block_size=8)"
    ),
}


def answers(model, ids):
    """Return, by pipeline, the logits, each layer's kept tokens [B, h, S], and its number of heads on this rank."""
    found = {}
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # a layer that runs dense warns, which fails here
        for name, pipeline in PIPELINES.items():
            calls = []
            with sparsify(model, pipeline, watch=calls.append):
                logits = model(ids).logits
            tokens = [call.plan.queries.idx if call.plan.queries else None for call in calls]
            heads = [call.problem.q.shape[1] for call in calls]
            found[name] = logits, tokens, heads
    return found


def main(folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder, tp_plan="auto").eval()
    found = answers(model, torch.load(folder / "ids.pt"))
    if int(os.environ["RANK"]) == 0:
        torch.save(found, folder / "found.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
