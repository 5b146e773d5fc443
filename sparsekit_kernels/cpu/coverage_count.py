"""The number of entries within a mass. numpy sorts values alone, faster than torch, which also sorts their indices."""

import numpy as np
import torch

from sparsekit.ops.coverage_count import Counts, Mass, Scores


def why_not(scores: Scores, mass: Mass, largest: bool) -> str | None:
    return None if scores.is_cpu else f"it needs a CPU, and the tensors are on {scores.device.type}"


def coverage_count(scores: Scores, mass: Mass, largest: bool) -> Counts:
    values = torch.from_numpy(np.sort(scores.detach().masked_fill(scores.isnan(), torch.inf).numpy(), axis=-1))
    total, limit = (values.flip(-1) if largest else values).cumsum(-1), mass[..., None]
    return (total <= limit if largest else total < limit).sum(-1)
