"""Greater-than: a span of years ends later than it began.

    clean     The war lasted from the year 1732 to the year 17     ->  45, not 21
    corrupt   The war lasted from the year 1701 to the year 17     ->  either

The task of Hanna et al. 2023, How does GPT-2 compute greater-than?; templates are cutaway's own.
"""

import random

from cutaway.models.model import Model
from cutaway.tasks.builtin.behavior import Behavior, Drawn, crossed, text_of
from cutaway.tasks.builtin.collect import contrast
from cutaway.tasks.task import Task

CENTURIES = tuple(range(11, 20))
SUBJECTS = ("The war", "The voyage", "The reign", "The siege")
SPANS = (
    "lasted from the year {century}{year} to the year {century}",
    "lasted from {century}{year} to {century}",
    "began in {century}{year} and ended in {century}",
    "began in the year {century}{year} and ended in the year {century}",
    "went on from {century}{year} until {century}",
    "started in {century}{year} and was over in {century}",
)


def draw(cluster: str, chance: random.Random) -> Drawn:
    """Start and end within one century; the answer is a random later year of it, the foil one that is not later."""
    century, start = chance.choice(CENTURIES), chance.randint(3, 97)
    later, earlier = chance.randint(start + 1, 99), chance.randint(2, start)
    clean, corrupt = ({"century": str(century), "year": f"{year:02d}"} for year in (start, 1))
    pair = contrast(text_of(cluster), clean, corrupt, (f"{later:02d}", f"{earlier:02d}"), ["year"])
    return Drawn(pair, f"{century}{start:02d}")


GREATER_THAN = Behavior(
    "greater-than",
    "A thing began in one year and ended in another of the same century: is the end put later than the beginning? The "
    "answer is a later year, the foil one that is not later; in the corrupt prompt the beginning is the year 01, after "
    "which both are possible. Positions: year (last digits of the beginning), end.",
    crossed(SUBJECTS, SPANS),
    draw,
    ("year",),
    unseen=tuple(f"{SUBJECTS[i % 4]} | {SPANS[i]}" for i in (0, 2, 3, 5)),
)


def greater_than(model: Model, *, n: int = 96, seed: int = 0) -> Task:
    """A span of years: does the model put the end later than the beginning?

    English text; clusters are the templates. Raises Misaligned, with the counts, when too few pairs align.
    """
    return GREATER_THAN.task(model, n=n, seed=seed)
