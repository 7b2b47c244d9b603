"""Cutaway: find the parts of a neural network that cause a behavior, change them, and verify the claim."""

__version__ = "0.1.0"

from cutaway.models import load, sites, where, wrap

__all__ = ["load", "sites", "where", "wrap"]
