"""Rhyme: the last word of a couplet is chosen for its sound, and the adjective before it already fits that word.

    clean     We met a wild cat,\\nand by the door a shiny     ->  hat
    corrupt   We met a wild duck,\\nand by the door a shiny    ->  truck

Adjectives belong to kinds of things (a furry animal, a tasty food), so a model that writes the couplet well has to know
the rhyme word one word before it is due (the planning of Lindsey et al. 2025, On the Biology of a Large Language Model,
in the small).
"""

import random

from cutaway.models.model import Model
from cutaway.tasks.builtin.behavior import TRIES, Behavior, Drawn, crossed
from cutaway.tasks.builtin.collect import contrast
from cutaway.tasks.task import Task

GROUPS = tuple(
    {word: kind for word, _, kind in (entry.partition(":") for entry in line.split())}
    for line in """
        cat:animal rat:animal hat:object mat:object
        bear:animal hare:animal pear:food chair:object
        goat:animal boat:object coat:object moat:place
        dog:animal frog:animal log:object bog:place
        snake:animal cake:food lake:place rake:object
        whale:animal snail:animal nail:object jail:place
        fox:animal ox:animal box:object rocks:object
        bee:animal tea:food sea:place knee:object
        pig:animal fig:food wig:object twig:object
        crow:animal doe:animal bow:object dough:food
        seal:animal eel:animal meal:food wheel:object
        duck:animal buck:animal truck:object puck:object
        hen:animal wren:animal pen:object den:place
        goose:animal moose:animal juice:food spruce:object
        ram:animal lamb:animal ham:food jam:food
        bug:animal slug:animal rug:object mug:object
    """.strip().splitlines()
)
"""Words that rhyme, each with its kind."""
KINDS = {
    "animal": ("furry", "wild", "hungry"),
    "object": ("wooden", "broken", "shiny"),
    "food": ("tasty", "fresh", "sweet"),
    "place": ("quiet", "distant", "lonely"),
}
"""Adjectives that go with a kind."""
FIRST = (
    "I saw a {adjective} {first},\n",
    "We met a {adjective} {first},\n",
    "There was a {adjective} {first},\n",
    "He drew a {adjective} {first},\n",
    "She had a {adjective} {first},\n",
    "They liked a {adjective} {first},\n",
)
SECOND = (
    "and by the door a {fitting}",
    "and near the wall a {fitting}",
    "and after that a {fitting}",
    "and then at last a {fitting}",
)


def draw(cluster: str, chance: random.Random) -> Drawn:
    """Two rhyme groups that share a kind; in each, a first word and another one of that kind to rhyme with it."""
    first, answer, start, foil, kinds = next(found for found in (_words(chance) for _ in range(TRIES)) if found)
    words = {"adjective": chance.choice(KINDS[kinds[first]]), "fitting": chance.choice(KINDS[kinds[answer]])}
    template = cluster.replace(" | ", "")
    clean, corrupt = ({**words, "first": word} for word in (first, start))
    pair = contrast(template, clean, corrupt, (f" {answer}", f" {foil}"), ["first", "fitting"])
    return Drawn(pair, f"{first} {kinds[answer]}")


def _words(chance: random.Random) -> tuple[str, str, str, str, dict[str, str]] | None:
    """First word and rhyme from one group, first word and rhyme of the same kinds from another; None: it has none."""
    ours, theirs = chance.sample(GROUPS, 2)
    first, answer = chance.sample(list(ours), 2)
    foils = [word for word in theirs if theirs[word] == ours[answer]]
    starts = [word for word in theirs if theirs[word] == ours[first] and word not in foils[:1]]
    return (first, answer, chance.choice(starts), foils[0], ours) if foils and starts else None


RHYME = Behavior(
    "rhyme",
    "Two lines; the last word of the second is due: does it rhyme with the first line? The corrupt prompt ends the "
    "first line on another sound; answer and foil are words of one kind, so that both fit the adjective before them. "
    "Positions: first (the word to rhyme with), fitting (the adjective, which is the end), end.",
    crossed(FIRST, SECOND),
    draw,
    ("first", "fitting"),
    unseen=tuple(f"{FIRST[i]} | {SECOND[i % 4]}" for i in (0, 2, 3)),
)


def rhyme(model: Model, *, n: int = 96, seed: int = 0) -> Task:
    """A couplet: does its last word rhyme with the line before?

    English text; clusters are the templates. Raises Misaligned, with the counts, when too few pairs align.
    """
    return RHYME.task(model, n=n, seed=seed)
