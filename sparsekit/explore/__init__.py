"""A page to look into a model: what each pipeline keeps, computes and loses in every layer and head of one prompt.

`explore` measures, `write_page` writes one HTML file that needs nothing else.
"""

from .collect import Exploration, explore
from .page import write_page
from .pieces import pieces

__all__ = ["Exploration", "explore", "pieces", "write_page"]
