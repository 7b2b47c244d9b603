"""Agreement: the verb has the number of its subject, whatever stands between them.

    clean     The key near the cabinets     ->  is
    corrupt   The keys near the cabinets    ->  are

The task of Linzen et al. 2016, Assessing the ability of LSTMs to learn syntax-sensitive dependencies; words and
templates are cutaway's own.
"""

import random

from cutaway.models.model import Model
from cutaway.tasks.builtin.behavior import Behavior, Drawn, crossed, text_of
from cutaway.tasks.builtin.collect import contrast
from cutaway.tasks.task import Task

# fmt: off
SINGULAR = (
    "key", "cabinet", "doctor", "teacher", "farmer", "singer", "driver", "pilot", "lawyer", "painter", "worker",
    "tiger", "horse", "rabbit", "monkey", "picture", "window", "bottle", "table", "flower", "letter", "camera", "ring",
    "guard",
)
# fmt: on
VERBS = (
    ("is", "are"),
    ("was", "were"),
    ("has", "have"),
    ("looks", "look"),
    ("seems", "seem"),
    ("needs", "need"),
    ("likes", "like"),
    ("knows", "know"),
)
SUBJECTS = ("The {subject}", "Today the {subject}", "Perhaps the {subject}")
BETWEEN = (
    "near the {other}",
    "behind the {other}",
    "with the {other}",
    "under the {other}",
    "near the {other} and the {third}",
    "behind the {other} under the {third}",
    "that the {other} saw",
    "that the {other} found",
)


def draw(cluster: str, chance: random.Random) -> Drawn:
    """Nouns, numbers and a verb; clean and corrupt differ in the number of the subject."""
    subject, other, third = chance.sample(SINGULAR, 3)
    words = {"other": other + chance.choice(("", "s")), "third": third + chance.choice(("", "s"))}
    number, verb = chance.randint(0, 1), chance.choice(VERBS)
    clean, corrupt = ({**words, "subject": subject + ("", "s")[which]} for which in (number, 1 - number))
    answers = (f" {verb[number]}", f" {verb[1 - number]}")
    pair = contrast(text_of(cluster), clean, corrupt, answers, ["subject", "other"])
    return Drawn(pair, f"{subject} {other}")


AGREEMENT = Behavior(
    "agreement",
    "A subject, and before its verb another noun that may have the other number: does the verb agree with the subject? "
    "The corrupt prompt has the subject in the other number; answer and foil are two forms of one verb. Positions: "
    "subject, other (the noun in between), end.",
    crossed(SUBJECTS, BETWEEN),
    draw,
    ("subject", "other"),
    unseen=tuple(f"{SUBJECTS[i % 3]} | {BETWEEN[i]}" for i in (0, 3, 4, 7)),
    endings=(" here.", " there.", " good.", " nothing."),
)


def agreement(model: Model, *, n: int = 96, seed: int = 0) -> Task:
    """A subject and a distracting noun: does the verb agree with the subject?

    English text; clusters are the templates. Raises Misaligned, with the counts, when too few pairs align.
    """
    return AGREEMENT.task(model, n=n, seed=seed)
