"""Tools for your own tests: `check_stage` tries the laws on a stage, `small_model` makes a model without a download.

Each imports its extra package when it is called: hypothesis (sparsekit[testing]) or transformers (sparsekit[hf]).
"""

from .check import check_stage
from .small_model import small_model

__all__ = ["check_stage", "small_model"]
