"""Whether the shipped models are what their cards say: the files by hash, the behavior by measuring it again."""

from dataclasses import dataclass

from cutaway.models import load
from cutaway.zoo import catalogue
from cutaway.zoo.card import Score
from cutaway.zoo.train import contents, missed


@dataclass(frozen=True)
class Check:
    """One model, measured again."""

    name: str
    """The model."""
    scores: tuple[Score, ...]
    """Its accuracy on held-out inputs, by its recipe's `evaluate`."""
    changed: tuple[str, ...]
    """Files that are not those of the card: changed, missing, or more than it names."""

    @property
    def missed(self) -> tuple[Score, ...]:
        """The scores below what the recipe promises."""
        return missed(self.scores)

    @property
    def holds(self) -> bool:
        """Every file is the card's and every target is met."""
        return not self.changed and not self.missed


def check(name: str) -> Check:
    """Load a model of the zoo as any user does, measure it again, and compare its files with its card.

    Deterministic; seconds a model, minutes for the largest. Raises UnknownName, with the nearest name.

    >>> check("induction-2l").holds
    True
    """
    said, found = catalogue.card(name).files, contents(catalogue.path(name))
    changed = tuple(file for file in sorted({*said, *found}) if said.get(file) != found.get(file))
    return Check(name, catalogue.recipe(name).evaluate(name, load(name, audit=False).module), changed)
