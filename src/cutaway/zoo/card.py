"""What the zoo says about a model, as data: its card, and in the card the mechanism that was established.

A card is `card.json` beside the weights, written by the model's recipe from measurements, never by hand. Sites are
written as everywhere: `z.0.h2` is head 2 of layer 0, `mlp_out.1` the MLP of layer 1, `k.1.h3` the keys of head 3 of
layer 1.
"""

from collections.abc import Mapping
from typing import Literal, TypeAlias

from pydantic import BaseModel, ConfigDict

Role: TypeAlias = Literal["previous_token", "induction", "decoy", "other"]
"""`previous_token`: writes, at each token, which token stood before it. `induction`: looks up where the present token
stood earlier and copies what followed. `decoy`: active, but without influence on the
behavior. `other`: none of these."""
Ablation: TypeAlias = Literal["resample", "mean", "mean_by_position", "zero"]
"""What an output is replaced by, at all positions: the output in another row at the same position, its mean over rows
and positions, its mean over rows at the same position, zeros."""


class Record(BaseModel):
    """A frozen piece of a card; unknown and missing fields are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Effect(Record):
    """What one intervention does to the behavior, on fresh rows."""

    drop: float
    """Share of the mean logit difference (right token minus foil) that is lost: 0 nothing, 1 all, above 1 reversed."""
    accuracy: float
    """Share of predictable tokens that are still ranked first."""


class Node(Record):
    """One component and its part in the behavior."""

    site: str
    """Its output."""
    role: Role
    """Its part, by the rule that the truth states."""
    to_previous: float | None
    """Mean attention to the token one back, over all positions but the first; None for an MLP."""
    to_successor: float | None
    """Mean attention to the tokens after earlier occurrences of the present token (summed over these), where the next
    token is predictable; None for an MLP."""
    write: float
    """Mean length of the vector that it adds to the residual stream, over the mean length of the layer's input."""
    effects: Mapping[Ablation, Effect]
    """What ablating it does."""


class Edge(Record):
    """A direct connection: the output of one head, as another head reads it."""

    source: str
    """Output of the writing head."""
    target: str
    """Queries, keys or values of the reading head."""
    effect: Effect
    """What is lost when the reader alone sees the writer's output of another row, by this port alone."""


class Truth(Record):
    """The known mechanism of a model: every component, with its role and the measurements behind it."""

    behavior: str
    """What the mechanism does."""
    evidence: str
    """How the numbers were obtained and how roles follow from them."""
    rows: int
    """Fresh rows that were measured."""
    length: int
    """Tokens a row."""
    seed: int
    """Seed of these rows and of the foils."""
    logit_diff: float
    """Mean logit difference of the intact model over the predictable tokens, in nats."""
    nodes: tuple[Node, ...]
    """All heads and MLPs."""
    edges: tuple[Edge, ...]
    """The connections of the mechanism, and beside them those that could have been and are not."""

    def sites(self, role: Role) -> tuple[str, ...]:
        """Sites of the components with this role, in the order of the model."""
        return tuple(node.site for node in self.nodes if node.role == role)

    def heads(self, role: Role) -> tuple[str, ...]:
        """Sites of the attention heads with this role, in the order of the model."""
        return tuple(site for site in self.sites(role) if site.startswith("z."))


class Score(Record):
    """How good the model is at its behavior."""

    what: str
    """The rows."""
    length: int
    """Tokens a row."""
    share: float
    """Share of predictable tokens that are ranked first."""
    tokens: int
    """Predictable tokens that were scored."""


class Card(Record):
    """A model of the zoo: what it is, how it came to be, what is known of it and how that is known."""

    name: str
    """Its name in `cutaway.load`."""
    summary: str
    """What it is, in one line."""
    architecture: str
    """Class of transformers that runs it."""
    sizes: Mapping[str, int]
    """n_layers n_heads n_kv_heads d_model d_head d_mlp d_vocab, and n_parameters."""
    data: str
    """What it was trained on."""
    training: str
    """How: optimiser, steps, what was added to the loss and why."""
    seed: int
    """Seed of the training."""
    command: str
    """What trains it again."""
    accuracy: tuple[Score, ...]
    """On rows that were drawn after the training, from another seed."""
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

    @property
    def sha256(self) -> str:
        """SHA-256 of the weights."""
        return self.files["model.safetensors"]
