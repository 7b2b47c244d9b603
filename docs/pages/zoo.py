"""docs/zoo.md: the embedded models and the built-in tasks, from their cards."""

from cutaway import tasks, zoo
from cutaway.tasks.builtin import card as task_card
from cutaway.zoo.card import Card

HEAD = """\
# The zoo, and the tasks

Models that come with cutaway, load offline, and have a mechanism that is known: because their weights were written, or
because every component was intervened on, one at a time. A method that is worth trusting finds what is there, and finds
nothing in the *scrambled twin*, the same numbers in another order (`cutaway.zoo.scrambled`).

    cutaway models list                all of them
    cutaway zoo check                  every accuracy below, measured again on the shipped weights
    cutaway zoo train NAME --out DIR   the recipe, from its seed

In Python `cutaway.load(name)` gives the model, `cutaway.zoo.card(name)` what is written here, `cutaway.zoo.truth(name)`
the mechanism as data (components, connections, directions, positions, each with its evidence and its numbers) and
`cutaway.zoo.tensors(name)` the arrays that belong to it. The twin of a model is
`cutaway.zoo.scrambled(cutaway.load(name).module, seed=0)`. `cutaway zoo check` compares files with the hashes of their
card; loading does not.
"""


def page() -> str:
    """The page."""
    cards = [zoo.card(name) for name in zoo.names()]
    return "\n".join([HEAD, *_table(cards), "", *(_model(card) for card in cards), *_tasks()])


def _table(cards: list[Card]) -> list[str]:
    rows = ["| model | what it is | parameters | class |", "|---|---|---|---|"]
    rows += [
        f"| [`{card.name}`](#{card.name}) | {card.summary} | {card.sizes['n_parameters']:,} | {card.architecture} |"
        for card in cards
    ]
    return rows


def _model(card: Card) -> str:
    scores = ["| behavior | on | right | 95 % interval | n | promised |", "|---|---|---|---|---|---|"]
    scores += [
        f"| {each.behavior} | {each.what} | {each.share:.1%} | {each.low:.1%} to {each.high:.1%} | {each.n} "
        f"| {'' if each.target is None else f'{each.target:.0%}'} |"
        for each in card.accuracy
    ]
    truth = card.truth
    counts = {
        "components": len(truth.nodes),
        "connections": len(truth.edges),
        "directions": len(truth.directions),
        "arrays": len(truth.features),
    }
    held = ", ".join(f"{count} {name}" for name, count in counts.items() if count) or "numbers about the whole"
    return "\n".join(
        (
            f"## {card.name}\n",
            f"{card.summary[0].upper()}{card.summary[1:]}.\n",
            *(scores if card.accuracy else []),
            f"\n**Known.** {card.known}\n",
            f"**How it is known.** {truth.evidence} The truth holds {held}.\n",
            f"**Limits.** {card.limits}\n",
            f"**Data and training.** {card.data} {card.training} Seed {card.seed}.\n",
        )
    )


def _tasks() -> list[str]:
    lines = ["## Tasks\n", "Built in: `cutaway tasks show NAME --model M`. Each is made for the model's tokenizer.\n"]
    return lines + [f"**{name}.** {task_card(name)}\n" for name in tasks.names()]
