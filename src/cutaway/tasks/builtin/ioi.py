"""Indirect object identification: two names, one of them again; the other one is the answer.

    clean     When Mary and John went to the shop, John gave a book to     ->  Mary
    corrupt   When Mary and John went to the shop, Mary gave a book to     ->  John

The corrupt prompt repeats the other name, so the answer flips and only one token differs (the task of Wang et al. 2022,
Interpretability in the Wild; templates and names are cutaway's own). Positions: `io` (the name that is the answer),
`s1` (the first mention of the repeated name), `s2` (its second mention), `end`. About half of the pairs name the
answer first.
"""

import random
from collections.abc import Iterator

from cutaway.errors import DataError, TokenizerUnfit
from cutaway.models.model import Model
from cutaway.tasks.align import align_pair
from cutaway.tasks.builtin.collect import collect, fill
from cutaway.tasks.pair import Pair
from cutaway.tasks.task import Task

TRIES = 200
# fmt: off
NAMES = (
    "Mary", "John", "Alice", "Tom", "Sarah", "James", "Anna", "David", "Emma", "Peter", "Laura", "Mark", "Julia",
    "Paul", "Kate", "Simon", "Helen", "Robert", "Jane", "Daniel", "Lucy", "Martin", "Rose", "Frank", "Claire", "George",
    "Ruth", "Henry", "Diana", "Oliver", "Sophie", "Arthur", "Grace", "Adam", "Nina", "Victor", "Lily", "Tim",
)
# fmt: on
PLACES = ("shop", "school", "park", "library", "office", "market")
THINGS = ("book", "letter", "ball", "ring", "key", "camera")
TEMPLATES = (
    "When {a} and {b} went to the {place}, {s2} gave a {thing} to",
    "After {a} and {b} left the {place}, {s2} handed a {thing} to",
    "While {a} and {b} were at the {place}, {s2} showed a {thing} to",
    "Then {a} and {b} met at the {place}. {s2} brought a {thing} to",
    "Yesterday {a} and {b} walked to the {place}, and {s2} passed a {thing} to",
    "Because {a} and {b} liked the {place}, {s2} sent a {thing} to",
    "At the {place}, {a} and {b} sat down, and {s2} offered a {thing} to",
    "In the morning {a} and {b} drove to the {place}. {s2} lent a {thing} to",
    "As {a} and {b} waited near the {place}, {s2} threw a {thing} to",
    "Since {a} and {b} worked at the {place}, {s2} sold a {thing} to",
    "Once {a} and {b} had found a {thing} in the {place}, {s2} gave it to",
    "Last week {a} and {b} visited the {place}. There {s2} promised a {thing} to",
    "The friends {a} and {b} came from the {place}. {s2} carried a {thing} to",
    "Before {a} and {b} reached the {place}, {s2} returned a {thing} to",
    "On Monday {a} and {b} cleaned the {place}, and later {s2} wrote a note to",
    "Although {a} and {b} were late for the {place}, {s2} explained everything to",
    "Outside the {place} {a} and {b} talked for a while. Then {s2} said goodbye to",
    "Every summer {a} and {b} return to the {place}, where {s2} gives a {thing} to",
    "It rained when {a} and {b} got to the {place}, so {s2} gave a {thing} to",
    "During lunch {a} and {b} stayed in the {place}. Afterwards {s2} mailed a {thing} to",
    "Long ago {a} and {b} lived by the {place}, and {s2} left a {thing} to",
    "That evening {a} and {b} argued in the {place}, until {s2} apologized to",
    "Two people, {a} and {b}, stood in the {place}. {s2} pointed a {thing} out to",
    "Soon {a} and {b} were alone in the {place}, and {s2} told a secret to",
)


def ioi(model: Model, *, n: int = 96, seed: int = 0) -> Task:
    """Two names and one of them again: does the model name the other one as the receiver?

    English text; clusters are the templates. Names are those of one token in the model's tokenizer. Raises
    TokenizerUnfit when fewer than two are, and Misaligned, with the counts, when too few pairs align.
    """
    known = [name for name in NAMES if _is_one_token(model, name)]
    if len(known) < 2:
        raise TokenizerUnfit(
            f"task 'ioi': {len(known)} of {len(NAMES)} names are one token in the tokenizer of {model.name}, and two "
            "are needed; write a task with names that it knows, or with metric='logprob_diff'",
            known=known,
        )
    templates = list(TEMPLATES)
    random.Random(f"ioi {seed}").shuffle(templates)
    candidates = {
        template: _draws(template, known, index, random.Random(f"ioi {seed} {template}"))
        for index, template in enumerate(templates)
    }
    return Task(
        "ioi",
        "Two people are named, one of them again as the giver; the answer is the other, the foil the one named twice.",
        collect("ioi", candidates, model, n=n, seed=seed, metric_name="logit_diff"),
        metric="logit_diff",
        roles=("io", "s1", "s2", "end"),
        seed=seed,
    )


def _is_one_token(model: Model, name: str) -> bool:
    probe = Pair("They gave it to", "They gave it to", f" {name}", " the", id=name)
    try:
        return len(align_pair(probe, model).answer) == 1
    except (DataError, TokenizerUnfit):
        return False


def _draws(template: str, names: list[str], turn: int, chance: random.Random) -> Iterator[Pair]:
    """Random fillings; the answer stands first and second by turns."""
    for step in range(TRIES):
        giver, receiver = chance.sample(names, 2)
        receiver_first = (step + turn) % 2 == 0
        words = {"place": chance.choice(PLACES), "thing": chance.choice(THINGS)}
        words["a"], words["b"] = (receiver, giver) if receiver_first else (giver, receiver)
        clean, where = fill(template, {**words, "s2": giver})
        corrupt, corrupt_where = fill(template, {**words, "s2": receiver})
        slots = {"io": "a", "s1": "b", "s2": "s2"} if receiver_first else {"io": "b", "s1": "a", "s2": "s2"}
        yield Pair(
            clean,
            corrupt,
            f" {receiver}",
            f" {giver}",
            {role: where[slot] for role, slot in slots.items()},
            {role: corrupt_where[slot] for role, slot in slots.items()},
        )
