"""Lenses: read-outs that change nothing. What a residual state says in the vocabulary, what each component adds to the
answer, and where heads look.

lens = lenses.logit_lens(model, task)
grid = lenses.lens_grid(model, "a prompt")
direct = lenses.direct_logit_attribution(model, task, by="head")
scores = lenses.head_scores(model, task)
"""

from cutaway.lenses.attention import HeadScores, Patterns, attention_patterns, head_scores
from cutaway.lenses.direct import DirectAttribution, direct_logit_attribution
from cutaway.lenses.grid import LensGrid, lens_grid
from cutaway.lenses.jacobian import JacobianLens, fit_jacobian_lens
from cutaway.lenses.logit import LogitLens, logit_lens
from cutaway.lenses.patchscopes import IDENTITY, Patchscope, Readings, patchscope, patchscope_readings
from cutaway.lenses.published import read_published, unembedding_hash, write_published
from cutaway.lenses.texts import read_prompts
from cutaway.lenses.tuned import TunedLens, fit_tuned_lens, measured

__all__ = [
    "IDENTITY",
    "DirectAttribution",
    "HeadScores",
    "JacobianLens",
    "LensGrid",
    "LogitLens",
    "Patchscope",
    "Patterns",
    "Readings",
    "TunedLens",
    "attention_patterns",
    "direct_logit_attribution",
    "fit_jacobian_lens",
    "fit_tuned_lens",
    "head_scores",
    "lens_grid",
    "logit_lens",
    "measured",
    "patchscope",
    "patchscope_readings",
    "read_prompts",
    "read_published",
    "unembedding_hash",
    "write_published",
]
