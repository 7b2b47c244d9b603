"""Lenses: read-outs that change nothing. What a residual state says in the vocabulary, and where heads look.

lens = lenses.logit_lens(model, task)
scores = lenses.head_scores(model, task)
"""

from cutaway.lenses.attention import HeadScores, Patterns, attention_patterns, head_scores
from cutaway.lenses.logit import LogitLens, logit_lens

__all__ = ["HeadScores", "LogitLens", "Patterns", "attention_patterns", "head_scores", "logit_lens"]
