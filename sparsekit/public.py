"""The public names of the package."""

from . import operators as operators  # the import registers them: compiled models use some
from .dispatch import NoBackendError, why_not
from .execute import attend
from .fills import SlidingWindow, Zeros
from .oracle import oracle
from .pipeline import Pipeline
from .plan import Blocks, Plan, Tokens
from .policies import Attend, Compress, Decompress, Stage
from .problem import Output, Problem
from .registry import register
from .stages import *  # noqa: F403
from .stages import __all__ as _stages

__all__ = [
    "Attend", "Blocks", "Compress", "Decompress", "NoBackendError", "Output", "Pipeline", "Plan", "Problem",
    "SlidingWindow", "Stage", "Tokens", "Zeros", "attend", "oracle", "register", "why_not", *_stages,
]  # fmt: skip
