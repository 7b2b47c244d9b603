"""Sentiment: a review is summed up as it was meant.

clean     The movie was wonderful. The review is     ->  positive
corrupt   The movie was terrible. The review is      ->  negative
"""

import random

from cutaway.models.model import Model
from cutaway.tasks.builtin.behavior import Behavior, Drawn, crossed, text_of
from cutaway.tasks.builtin.collect import contrast
from cutaway.tasks.task import Task

TOPICS = ("movie", "concert", "hotel", "meal", "game", "show", "song", "trip", "story", "play", "party", "speech")
# fmt: off
GOOD = (
    "wonderful", "great", "lovely", "brilliant", "superb", "delightful", "charming", "perfect", "fantastic",
    "beautiful",
)
BAD = (
    "terrible", "horrible", "dreadful", "boring", "dull", "nasty", "stupid", "silly", "miserable", "disgusting",
)
# fmt: on
SHAPES = (
    "The {topic} was {word}.",
    "I thought the {topic} was {word}.",
    "What a {word} {topic}!",
    "It was a {word} {topic}.",
    "We found the {topic} {word}.",
    "The {topic} was not {contrary}, it was {word}.",
)
VERDICTS = {
    "The review is": (" positive", " negative"),
    "So I": (" loved", " hated"),
    "In short, it was": (" good", " bad"),
    "Everyone was": (" happy", " angry"),
}


def draw(cluster: str, chance: random.Random) -> Drawn:
    """A topic and an adjective; the corrupt prompt has one of the other sign."""
    topic, order = chance.choice(TOPICS), chance.choice((1, -1))
    word, other = (chance.choice(GOOD), chance.choice(BAD))[::order]
    answer, foil = VERDICTS[cluster.partition(" | ")[2]][::order]
    clean = {"topic": topic, "word": word, "contrary": other}
    corrupt = {"topic": topic, "word": other, "contrary": word}
    return Drawn(contrast(text_of(cluster), clean, corrupt, (answer, foil), ["word"]), f"{topic} {word}")


SENTIMENT = Behavior(
    "sentiment",
    "A short review with one telling adjective: is it summed up as it was meant? The corrupt prompt has an adjective "
    "of the other sign, and the answer flips; in one shape the contrary adjective stands there too, denied. Positions: "
    "word (the adjective), end.",
    crossed(SHAPES, tuple(VERDICTS)),
    draw,
    ("word",),
    unseen=tuple(f"{SHAPES[i]} | {verdict}" for i, verdict in zip((0, 2, 3, 5), VERDICTS)),
)


def sentiment(model: Model, *, n: int = 96, seed: int = 0) -> Task:
    """A short review: does the model sum it up as it was meant?

    English text; clusters are the templates. Raises Misaligned, with the counts, when too few pairs align.
    """
    return SENTIMENT.task(model, n=n, seed=seed)
