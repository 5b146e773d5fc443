"""Sparse attention for long-context prefill: stages that stack, with a defined meaning."""

from .dispatch import NoBackendError, why_not
from .fills import SlidingWindow, Zeros
from .oracle import oracle
from .pipeline import Attend, Compress, Decompress, Pipeline, Stage, attend
from .plan import Blocks, Plan, Tokens
from .problem import Output, Problem
from .stages import *  # noqa: F403
from .stages import __all__ as _stages

__all__ = [
    "Attend", "Blocks", "Compress", "Decompress", "NoBackendError", "Output", "Pipeline", "Plan", "Problem",
    "SlidingWindow", "Stage", "Tokens", "Zeros", "attend", "oracle", "why_not", *_stages,
]  # fmt: skip
