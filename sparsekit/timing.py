"""Wall-clock time that waits for the device."""

import time

import torch


def now_ms(device: torch.device) -> float:
    """Return the ms since a fixed moment, after a wait for all work on `device`."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() * 1e3
