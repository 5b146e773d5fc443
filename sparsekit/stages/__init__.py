"""The stages. Each is one file and one import here."""

from .block_threshold import BlockThreshold
from .block_topk import BlockTopK
from .flex_prefill import FlexPrefill
from .streaming import Streaming
from .token_coverage import TokenCoverage
from .union import Union

__all__ = ["BlockThreshold", "BlockTopK", "FlexPrefill", "Streaming", "TokenCoverage", "Union"]
