"""Written models: transformers whose weights were set and not trained, so that their mechanism is known."""

from cutaway.zoo.handmade.build import Handmade, build, tokenizer
from cutaway.zoo.handmade.programs import PROGRAMS
from cutaway.zoo.handmade.rows import Row, Rows

__all__ = ["PROGRAMS", "Handmade", "Row", "Rows", "build", "tokenizer"]
