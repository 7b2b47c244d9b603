"""Alphabetical order: is this list of words sorted?

clean     Words: apple, house, river. Sorted?     ->  Yes
corrupt   Words: house, apple, river. Sorted?     ->  No
"""

import random
from collections.abc import Sequence

from cutaway.models.model import Model
from cutaway.tasks.builtin.behavior import Behavior, Drawn
from cutaway.tasks.builtin.collect import contrast
from cutaway.tasks.task import Task

# fmt: off
WORDS = (
    "apple", "arrow", "baker", "basket", "candle", "castle", "desert", "dragon", "engine", "evening", "finger",
    "forest", "garlic", "ginger", "hammer", "honey", "island", "ivory", "jacket", "jungle", "kettle", "kitchen",
    "ladder", "lemon", "mirror", "mountain", "needle", "number", "orange", "oven", "paper", "pepper", "quarter",
    "quiet", "river", "rocket", "saddle", "silver", "ticket", "tunnel", "umbrella", "uncle", "valley", "velvet",
    "wagon", "winter", "yellow", "zebra",
)
# fmt: on
LEADS = ("Words:", "List:", "Look at this list:", "Here are the words:")
ASKS = ("Sorted?", "Is it sorted?", "In order?", "Is it in order?")
LENGTHS = {"two": 2, "three": 3, "four": 4}


def draw(cluster: str, chance: random.Random) -> Drawn:
    """A sorted list, and the same with two words exchanged; either may be the clean one."""
    lead, length, ask = cluster.split(" | ")
    words = sorted(chance.sample(WORDS, LENGTHS[length]))
    left, right = sorted(chance.sample(range(len(words)), 2)) if chance.random() < 0.5 else _neighbours(words, chance)
    mixed = list(words)
    mixed[left], mixed[right] = mixed[right], mixed[left]
    order = chance.choice((1, -1))
    answer, foil = (" Yes", " No")[::order]
    clean, corrupt = ({f"w{at}": word for at, word in enumerate(found)} for found in (words, mixed)[::order])
    template = f"{lead} " + ", ".join(f"{{{slot}}}" for slot in clean) + f". {ask}"
    pair = contrast(template, clean, corrupt, (answer, foil), {"moved": f"w{left}", "other": f"w{right}"})
    return Drawn(pair, " ".join(words))


def _neighbours(words: Sequence[str], chance: random.Random) -> tuple[int, int]:
    left = chance.randrange(len(words) - 1)
    return left, left + 1


ALPHABETICAL = Behavior(
    "alphabetical",
    "A list of two to four words: does the model say whether it is in alphabetical order? Clean and corrupt hold the "
    "same words, with two of them exchanged, so the answer flips. Positions: moved and other (the two places that are "
    "exchanged), end.",
    tuple(
        f"{lead} | {length} | {ask}" for lead, ask in zip(LEADS * 2, ASKS + ASKS[1:] + ASKS[:1]) for length in LENGTHS
    ),
    draw,
    ("moved", "other"),
    unseen=("Words: | three | Is it sorted?", "List: | four | Is it sorted?", "Look at this list: | two | In order?"),
)


def alphabetical(model: Model, *, n: int = 96, seed: int = 0) -> Task:
    """A list of words: does the model say whether it is in alphabetical order?

    English text; clusters are the templates. Raises Misaligned, with the counts, when too few pairs align.
    """
    return ALPHABETICAL.task(model, n=n, seed=seed)
