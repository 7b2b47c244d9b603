"""Truth: is this statement true?

    clean     The Eiffel Tower is in Paris. That is       ->  true
    corrupt   The Eiffel Tower is in Berlin. That is      ->  false

The statements are those of `facts` (the shape of Marks and Tegmark 2023, The Geometry of Truth).
"""

import random

from cutaway.models.model import Model
from cutaway.tasks.builtin.behavior import Behavior, Drawn, crossed
from cutaway.tasks.builtin.collect import contrast
from cutaway.tasks.builtin.facts import TEMPLATES
from cutaway.tasks.task import Task

STATEMENTS = (
    "The {subject} is in",
    "You can find the {subject} in",
    "The capital of {subject} is",
    "In {subject}, the capital is",
    "{subject} is known for",
    "The field of {subject} is",
)
"""Templates of `facts`; the object follows."""
VERDICTS = {
    "That is": (" true", " false"),
    "This statement is": (" true", " false"),
    "True or false? It is": (" true", " false"),
    "Is it so?": (" Yes", " No"),
}


def draw(cluster: str, chance: random.Random) -> Drawn:
    """A statement and one with a wrong object; either may be the clean one."""
    statement, verdict = cluster.split(" | ")
    facts, order = TEMPLATES[statement], chance.choice((1, -1))
    fact = chance.choice(facts)
    wrong = chance.choice([found.object for found in facts if found.object != fact.object])
    said, other = (fact.object, wrong)[::order]
    answer, foil = VERDICTS[verdict][::order]
    clean, corrupt = ({"subject": fact.subject, "object": each} for each in (said, other))
    template = f"{statement} {{object}}. {verdict}"
    pair = contrast(template, clean, corrupt, (answer, foil), ["subject", "object"])
    return Drawn(pair, f"{statement} {fact.subject} {said}")


TRUTH = Behavior(
    "truth",
    "A statement of a fact, with the right object or with another: does the model say whether it is true? Clean and "
    "corrupt differ in the object, and the answer flips; half of the clean statements are true. Positions: subject, "
    "object, end.",
    crossed(STATEMENTS, tuple(VERDICTS)),
    draw,
    ("subject", "object"),
    unseen=tuple(f"{STATEMENTS[i]} | {verdict}" for i, verdict in zip((0, 3, 4), list(VERDICTS)[:3])),
)


def truth(model: Model, *, n: int = 96, seed: int = 0) -> Task:
    """A statement: does the model say whether it is true?

    English text; clusters are the templates. Raises Misaligned, with the counts, when too few pairs align.
    """
    return TRUTH.task(model, n=n, seed=seed)
