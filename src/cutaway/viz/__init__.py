"""Drawing: figures in a terminal, as custom elements, and on one offline page."""

from cutaway.viz.gallery import gallery, write
from cutaway.viz.terminal import terminal

__all__ = ["gallery", "terminal", "write"]
