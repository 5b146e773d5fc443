"""For who writes a stage: does it keep the laws? Needs hypothesis, when it is called: sparsekit[testing]."""

from .check import check_stage

__all__ = ["check_stage"]
