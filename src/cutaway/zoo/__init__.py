"""Embedded models whose mechanism is known: they load offline in a moment, and every method is tested on them."""

from cutaway.zoo import handmade, synthetic
from cutaway.zoo.card import Card, Direction, Edge, Effect, Node, Score, Truth
from cutaway.zoo.catalogue import card, n_bytes, names, path, recipe, tensors
from cutaway.zoo.check import Check, check
from cutaway.zoo.truth import scrambled, truth

__all__ = [
    "Card",
    "Check",
    "Direction",
    "Edge",
    "Effect",
    "Node",
    "Score",
    "Truth",
    "card",
    "check",
    "handmade",
    "n_bytes",
    "names",
    "path",
    "recipe",
    "scrambled",
    "synthetic",
    "tensors",
    "truth",
]
