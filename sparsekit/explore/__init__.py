"""An interactive page that shows what each pipeline keeps, computes and loses in every layer and head on one prompt.

`explore` measures, `write_page` writes one HTML file that needs no other file.
"""

from .collect import Exploration, explore
from .page import write_page
from .pieces import pieces

__all__ = ["Exploration", "explore", "pieces", "write_page"]
