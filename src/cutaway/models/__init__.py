"""Floor 2: a model unmodified, its sites, and one forward pass with reads and edits."""

from cutaway.models.activations import Activations
from cutaway.models.anatomy import Anatomy, Status
from cutaway.models.conditions import Condition
from cutaway.models.edits import Edit
from cutaway.models.forward import Raw
from cutaway.models.generation import stream
from cutaway.models.gradients import Gradients
from cutaway.models.load import embedded_names, load, wrap
from cutaway.models.model import Model, RunResult
from cutaway.models.sites import Site, SiteSet, sites, where
from cutaway.models.spans import Span, new, prompt
from cutaway.models.tokens import Tokens

__all__ = [
    "Activations",
    "Anatomy",
    "Condition",
    "Edit",
    "Gradients",
    "Model",
    "Raw",
    "RunResult",
    "Site",
    "SiteSet",
    "Span",
    "Status",
    "Tokens",
    "embedded_names",
    "load",
    "new",
    "prompt",
    "sites",
    "stream",
    "where",
    "wrap",
]
