"""What the zoo says about a model, as data: its card, and in the card the mechanism that was established.

A card is `card.json` beside the weights, written by the model's recipe from measurements, never by hand. Sites are
written as everywhere: `z.0.h2` is head 2 of layer 0, `mlp_out.1` the MLP of layer 1, `k.1.h3` the keys of head 3 of
layer 1; in a plain module they are module paths.
"""

from collections.abc import Mapping
from typing import Annotated, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

Evidence: TypeAlias = Literal["constructed", "intervention", "measured"]
"""How a thing is known. `constructed`: the weights were written so. `intervention`: every candidate was changed,
exactly and one at a time, and the effects say it. `measured`: read off weights or activations, which shows presence,
not use."""
Ablation: TypeAlias = Literal["resample", "mean", "mean_by_position", "zero"]
"""What an output is replaced by, at all positions: the output in another row at the same position, its mean over rows
and positions, its mean over rows at the same position, zeros."""
Share: TypeAlias = Annotated[float, Field(ge=0, le=1)]


class Record(BaseModel):
    """A frozen piece of a card; unknown and missing fields are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Effect(Record):
    """What one intervention does to the behavior, on fresh rows."""

    drop: float
    """Share of the mean metric (see `Truth.metric`) that is lost: 0 nothing, 1 all, above 1 reversed."""
    accuracy: float
    """Share of the answers that are still right."""


class Node(Record):
    """One component and its part in the behavior."""

    site: str
    """Its output."""
    role: str
    """Its part. `decoy`: active, but without influence on the behavior. `other`: no part that has a name."""
    evidence: Evidence = "intervention"
    """How the role is known."""
    measures: Mapping[str, float] = {}
    """Numbers about it, by name; the truth's `legend` says what each is."""
    effects: Mapping[Ablation, Effect] = {}
    """What ablating it does."""


class Edge(Record):
    """A direct connection: the output of one component, as another one reads it.

    Three truths, which need not agree: a connection may exist and carry nothing that differs between inputs, or carry
    it and not be needed. None: not established.
    """

    source: str
    """Output of the writer."""
    target: str
    """What the reader reads by it: queries, keys or values of a head, the input of an MLP, `logits`."""
    structural: bool | None = None
    """Whether the weights connect the two at all: the reader's input changes when the writer's output does."""
    resample: float | None = None
    """Drop when the reader alone sees the writer's output of another row (see `Effect.drop`)."""
    zero: float | None = None
    """Drop when the reader alone sees zeros instead of the writer's output."""
    evidence: Evidence = "intervention"
    """How it is known."""


class Direction(Record):
    """A direction at a site, and whether the model uses it."""

    name: str
    """What it carries."""
    site: str
    """Where it lives."""
    role: str
    """`used`: the behavior depends on it. `decoy`: it can be decoded and nothing reads it. `dormant`: it moves the
    output only when set to values that no input gives. Others as the truth says."""
    tensor: str
    """Its tensor in the model's `truth.safetensors`: `d`, or `k d` for a subspace (orthonormal rows)."""
    evidence: Evidence
    """How its role is known."""
    measures: Mapping[str, float] = {}
    """Numbers about it, by name; the truth's `legend` says what each is."""


class Truth(Record):
    """The known mechanism of a model: components, connections, directions, with their roles and the numbers behind."""

    behavior: str
    """What the mechanism does."""
    evidence: str
    """How the numbers were obtained, and how roles follow from them."""
    metric: str
    """What effects are shares of, with its unit."""
    baseline: float
    """The metric's mean on the intact model."""
    setup: Mapping[str, float] = {}
    """Numbers of the measurement: `rows`, `length`, `seed` and the like."""
    nodes: tuple[Node, ...] = ()
    """All components that could take part."""
    edges: tuple[Edge, ...] = ()
    """The connections of the mechanism, and beside them those that could have been and are not."""
    directions: tuple[Direction, ...] = ()
    """Directions with a known part, and decoys."""
    features: Mapping[str, str] = {}
    """Tensors of `truth.safetensors` that hold features or other arrays: name -> what they are, with axes."""
    positions: Mapping[str, str] = {}
    """Named positions: role -> what happens there."""
    measures: Mapping[str, float] = {}
    """Numbers about the whole model, by name."""
    legend: Mapping[str, str] = {}
    """What the measures' names mean, with unit; capitals stand for a value: `step_K`, `@RATE` behind a name."""

    def sites(self, role: str) -> tuple[str, ...]:
        """Sites of the components with this role, in the order of the model."""
        return tuple(node.site for node in self.nodes if node.role == role)

    def heads(self, role: str) -> tuple[str, ...]:
        """Sites of the attention heads with this role, in the order of the model."""
        return tuple(site for site in self.sites(role) if site.startswith("z."))


class Score(Record):
    """How good the model is at one behavior, on inputs that its training never held."""

    behavior: str
    """What is asked."""
    what: str
    """The inputs, and what of them is new: combinations, templates, rows."""
    share: Share
    """Share that is right."""
    n: int
    """Inputs, or tokens, that were scored."""
    low: Share
    """Lower end of the 95 % interval (Clopper and Pearson, over independent inputs)."""
    high: Share
    """Upper end."""
    target: Share | None = None
    """Least share that the recipe promises; None: reported, not promised."""


class Card(Record):
    """A model of the zoo: what it is, how it came to be, what is known of it and how that is known."""

    name: str
    """Its name in `cutaway.load`."""
    summary: str
    """What it is, in one line."""
    architecture: str
    """Class that runs it: one of transformers, or one of `cutaway.zoo.networks`."""
    sizes: Mapping[str, int]
    """n_parameters, and what the architecture has of n_layers n_heads n_kv_heads d_model d_head d_mlp d_vocab."""
    data: str
    """What it was trained on."""
    training: str
    """How: optimiser, steps, what was added to the loss and why; or how its weights were written."""
    seed: int
    """Seed of the training."""
    recipe: str
    """Module of `cutaway.zoo.recipes` that makes it again: `cutaway zoo train NAME`."""
    base: str | None = None
    """For a relative that is stored as a difference: the model that it is a difference from."""
    accuracy: tuple[Score, ...]
    """On inputs that were drawn after the training, from another seed."""
    known: str
    """What is known of its mechanism, in words."""
    limits: str
    """Where that knowledge ends."""
    licence: str
    """SPDX identifier of the weights' licence."""
    files: Mapping[str, str]
    """SHA-256 of each file beside the card."""
    truth: Truth
    """The mechanism as data."""
