"""When is it? Wall-clock time that waits for the device."""

import time

import torch


def now_ms(device: torch.device) -> float:
    """Milliseconds from a fixed moment, read once all work queued on `device` is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() * 1e3
