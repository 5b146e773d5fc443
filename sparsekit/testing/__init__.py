"""For who writes a stage: does it keep the laws? For who writes a task or a command: a model to run it on, offline.

What they need is imported when they are called: hypothesis, of sparsekit[testing], and transformers, of sparsekit[hf].
"""

from .check import check_stage
from .small_model import small_model

__all__ = ["check_stage", "small_model"]
