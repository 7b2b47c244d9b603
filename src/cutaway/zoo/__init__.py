"""Embedded models whose mechanism is known: they load offline in a moment, and every method is tested on them."""

from cutaway.zoo.card import Card, Edge, Effect, Node, Score, Truth
from cutaway.zoo.catalogue import card, names, path
from cutaway.zoo.truth import scrambled, truth

__all__ = ["Card", "Edge", "Effect", "Node", "Score", "Truth", "card", "names", "path", "scrambled", "truth"]
