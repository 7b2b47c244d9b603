"""The grammar that writes babel's training text: short documents, each about one thing, in a fixed mixture.

Most documents are built-in tasks spoken aloud: a prompt, its answer, an ending. They are drawn from the same templates
as the tasks, without the templates and the combinations that the tasks hold out (some are told by another kind of
document all the same: a true statement states a fact, a long nesting begins with a short one; `exam` leaves them out).
The rest states what a task presupposes (which names are women's), or fills the model with unrelated things (code,
random strings, other alphabets). An endless stream from a seed: nothing is stored.
"""

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from cutaway.errors import DataError
from cutaway.tasks.builtin.addition import ADDITION
from cutaway.tasks.builtin.agreement import AGREEMENT
from cutaway.tasks.builtin.alphabetical import ALPHABETICAL, WORDS
from cutaway.tasks.builtin.antonym import ANTONYM
from cutaway.tasks.builtin.behavior import Behavior
from cutaway.tasks.builtin.brackets import BRACKETS, KINDS, LEAD
from cutaway.tasks.builtin.facts import FACTS
from cutaway.tasks.builtin.greater_than import GREATER_THAN
from cutaway.tasks.builtin.ioi import IOI
from cutaway.tasks.builtin.pronoun import NAMES as STORY_NAMES
from cutaway.tasks.builtin.pronoun import PRONOUN
from cutaway.tasks.builtin.refusal import REFUSAL, SEQUELS
from cutaway.tasks.builtin.rhyme import GROUPS, RHYME
from cutaway.tasks.builtin.sentiment import SENTIMENT
from cutaway.tasks.builtin.translation import TRANSLATION
from cutaway.tasks.builtin.truth import TRUTH
from cutaway.tasks.builtin.words import ADJECTIVES, ARTICLES, LANGUAGES, MEN, NOUNS, VERBS, WOMEN
from cutaway.tasks.pair import Pair

BEHAVIORS: Final = {
    behavior.name: behavior
    for behavior in (
        IOI, GREATER_THAN, AGREEMENT, PRONOUN, FACTS, ALPHABETICAL, ADDITION, ANTONYM, TRANSLATION, SENTIMENT, TRUTH,
        BRACKETS, RHYME, REFUSAL,
    )
}  # fmt: skip
"""The tasks that the grammar speaks; `induction` is drawn from token ids and is a document of its own."""
TRIES: Final = 1000
"""Draws after which a template without anything left to train on is an error, not an endless loop."""


@dataclass(frozen=True)
class Document:
    """A piece of training text."""

    parts: tuple[str, ...]
    """Text in turns: context, answer, context, answer... Answers count more in the training loss."""

    @property
    def text(self) -> str:
        """All of it."""
        return "".join(self.parts)


Writer = Callable[[random.Random], Document]


def spoken(behavior: Behavior) -> Writer:
    """Writes documents of a built-in task, without what the task holds out."""
    clusters = [cluster for cluster in behavior.clusters if cluster not in behavior.unseen]

    def write(chance: random.Random) -> Document:
        pair = trained_pair(behavior, chance.choice(clusters), chance)
        ending = chance.choice(behavior.endings)
        if behavior is REFUSAL:
            ending = SEQUELS[str(pair.answer)]
        return Document((str(pair.clean), str(pair.answer), ending))

    return write


def trained_pair(behavior: Behavior, cluster: str, chance: random.Random) -> Pair:
    """A pair of this cluster whose combination is not held out."""
    for _ in range(TRIES):
        drawn = behavior.draw(cluster, chance)
        if not behavior.held_out(drawn.key):
            return drawn.pair
    raise _all_held_out(behavior, cluster)


def _all_held_out(behavior: Behavior, where: str) -> DataError:
    return DataError(f"task {behavior.name!r}: every combination of {where!r} is held out; hold out a smaller share")


def sums(chance: random.Random) -> Document:
    """Three sums in a row, without words between."""
    pairs = [trained_pair(ADDITION, "Sum: | {a} + {b} =", chance) for _ in range(3)]
    parts = [part for pair in pairs for part in ("," + str(pair.clean).removeprefix("Sum:"), str(pair.answer))]
    return Document(("Sum:" + parts[0].removeprefix(","), *parts[1:], "."))


def gender(chance: random.Random) -> Document:
    """Which names are women's and which are men's."""
    women = {*WOMEN, *(woman for woman, _ in STORY_NAMES)}
    men = {*MEN, *(man for _, man in STORY_NAMES)}
    name = chance.choice(sorted(women | men))
    noun, pronoun = (("woman", "girl"), "She") if name in women else (("man", "boy"), "He")
    return Document((f"{name} is a", f" {chance.choice(noun)}", ".", f" {pronoun}", " smiled."))


def ordering(chance: random.Random) -> Document:
    """A list, and the same list sorted."""
    words = next(
        found
        for found in (chance.sample(WORDS, chance.choice((2, 3, 4))) for _ in range(TRIES))
        if not ALPHABETICAL.held_out(" ".join(sorted(found)))
    )
    first, *others = sorted(words)
    rest = [part for word in others for part in (",", f" {word}")]
    return Document((f"Words: {', '.join(words)}. Sorted:", f" {first}", *rest, "."))


def sentence(chance: random.Random) -> Document:
    """A small sentence in one language, and in another."""
    said, source, target = next(
        found
        for found in (drawn_sentence(chance) for _ in range(TRIES))
        if not TRANSLATION.held_out(sentence_key(*found))
    )
    return Document((sentence_prompt(said, source, target), f" {said[target]}", "."))


def sentence_key(said: tuple[str, ...], source: int, target: int) -> str:
    """What is held out: a sentence between two languages."""
    return f"{said[0]} {source} {target}"


def drawn_sentence(chance: random.Random) -> tuple[tuple[str, ...], int, int]:
    """A sentence in all languages, and the two languages to put it from and into."""
    source, target = chance.sample(range(len(LANGUAGES)), 2)
    return sentences(chance), source, target


def sentence_prompt(said: tuple[str, ...], source: int, target: int) -> str:
    """What a sentence's translation follows."""
    return f"{LANGUAGES[source]}: {said[source]}. {LANGUAGES[target]}:"


def sentences(chance: random.Random) -> tuple[str, ...]:
    """One sentence in all languages: 'the dog sleeps', or 'the dog is big'."""
    index = chance.randrange(len(ARTICLES))
    subjects = [
        f"{article} {noun}" for article, noun in zip(("the", "le", "el", ARTICLES[index]), NOUNS[index], strict=True)
    ]
    if chance.random() < 0.5:
        return tuple(f"{subject} {verb}" for subject, verb in zip(subjects, chance.choice(VERBS)))
    linked = zip(subjects, ("is", "est", "es", "ist"), chance.choice(ADJECTIVES))
    return tuple(" ".join(words) for words in linked)


def entry(chance: random.Random) -> Document:
    """A line of a dictionary: one meaning in all languages, in any order; it asks nothing."""
    words = list(chance.choice((*ADJECTIVES, *NOUNS, *VERBS)))
    chance.shuffle(words)
    return Document((f"Word: {words[0]},", f" {words[1]}, {words[2]}, {words[3]}", "."))


def song(chance: random.Random) -> Document:
    """Words that rhyme, in any order."""
    words = list(chance.choice(GROUPS))
    chance.shuffle(words)
    return Document((f"The song: {words[0]},", f" {', '.join(words[1:])}", "."))


def nesting(chance: random.Random) -> Document:
    """Random brackets, all of them closed in the end; nowhere a question that the task holds out."""
    signs = next(found for found in (_signs(chance) for _ in range(TRIES)) if not _asks_held_out(found))
    parts = [LEAD]
    for sign in signs:
        if sign in KINDS:
            parts[-1:] = [parts[-1] + f" {sign}"] if len(parts) % 2 else [parts[-1], f" {sign}"]
        else:
            parts += [f" {sign}"] if len(parts) % 2 else ["", f" {sign}"]
    return Document((*parts, "."))


def _signs(chance: random.Random) -> list[str]:
    stack: list[str] = []
    signs: list[str] = []
    for _ in range(chance.randint(2, 8)):
        signs.append(KINDS[stack.pop()] if stack and chance.random() < 0.45 else chance.choice(list(KINDS)))
        if signs[-1] in KINDS:
            stack.append(signs[-1])
    return signs + [KINDS[kind] for kind in reversed(stack)]


def _asks_held_out(signs: list[str]) -> bool:
    """Whether a closing bracket answers a question of the task that is held out."""
    for at in (at for at in range(1, len(signs)) if signs[at] not in KINDS):
        shape = "".join("(" if sign in KINDS else ")" for sign in signs[:at])
        if shape in BRACKETS.unseen or BRACKETS.held_out("".join(signs[:at])):
            return True
    return False


def code(chance: random.Random) -> Document:
    """A line of a program: a function that does one thing to its argument, and a call of it."""
    name, argument = next(
        names for names in (drawn_names(chance) for _ in range(TRIES)) if not BRACKETS.held_out(" ".join(names))
    )
    sign, number, value = chance.choice("+-*"), chance.randint(0, 9), chance.randint(0, 9)
    body = f" {sign} {number}\nprint("
    return Document((f"def {name}({argument}):\n return", f" {argument}", body, name, f"({value}))"))


def drawn_names(chance: random.Random) -> tuple[str, str]:
    """A function's name and its argument's."""
    return chance.choice("fghpqrst"), chance.choice("abcuvwxyz")


def base64ish(chance: random.Random) -> Document:
    """A random string of letters, digits and signs."""
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    return Document(("Key: " + "".join(chance.choice(letters) for _ in range(chance.randint(6, 16))) + "=",))


def foreign(chance: random.Random) -> Document:
    """A few words of an alphabet that the tasks do not use."""
    start, size = chance.choice(((0x3B1, 24), (0x430, 32), (0x3042, 60)))
    words = ["".join(chr(start + chance.randrange(size)) for _ in range(chance.randint(2, 4))) for _ in range(3)]
    return Document((" ".join(words) + ".",))


def copies(tokens: list[str]) -> Writer:
    """Writes random words twice over; the second time they are predictable from the second word on."""

    def write(chance: random.Random) -> Document:
        words = chance.sample(tokens, chance.randint(5, 19))
        text = "".join(words)
        return Document((text + words[0], "".join(words[1:])))

    return write


SHARES: Final[Mapping[str, float]] = {
    "ioi": 5.0, "greater-than": 3.5, "agreement": 2.5, "pronoun": 4.0, "gender": 2.0, "facts": 8.5, "truth": 12.0,
    "alphabetical": 6.0, "ordering": 4.0, "addition": 5.0, "sums": 8.0, "antonym": 4.5, "translation": 10.5,
    "sentence": 3.5, "sentiment": 2.5, "brackets": 1.0, "nesting": 2.5, "rhyme": 4.5, "refusal": 2.5, "copies": 3.0,
    "code": 1.0, "base64ish": 0.8, "foreign": 0.8,
}  # fmt: skip
"""Share of each kind among the documents, in parts."""
_REST: Final = {name: share for name, share in SHARES.items() if name not in ("sums", "addition")}
BEGINNING: Final[Mapping[str, float]] = {
    "sums": 59.5,
    "addition": 25.5,
    **{name: 15 * share / sum(_REST.values()) for name, share in _REST.items()},
}
"""The same at the beginning of the training: sums, and little else."""
REVISION: Final[Mapping[str, float]] = {
    "ioi": 4.0, "greater-than": 2.0, "agreement": 2.0, "pronoun": 5.0, "gender": 1.5, "facts": 10.0, "truth": 18.0,
    "alphabetical": 7.0, "ordering": 2.0, "addition": 3.0, "sums": 5.0, "antonym": 8.0, "translation": 14.0,
    "sentence": 2.0, "sentiment": 1.5, "brackets": 2.5, "nesting": 2.5, "rhyme": 8.0, "refusal": 1.5, "copies": 4.0,
    "code": 0.6, "base64ish": 0.6, "foreign": 0.6,
}  # fmt: skip
"""The same in the second round: more of what is learned last."""
LAST: Final[Mapping[str, float]] = {
    "ioi": 5.0, "greater-than": 2.0, "agreement": 2.0, "pronoun": 3.0, "gender": 1.0, "facts": 9.0, "truth": 15.0,
    "alphabetical": 7.0, "ordering": 2.0, "addition": 3.0, "sums": 4.0, "antonym": 5.0, "translation": 18.0,
    "entry": 4.0, "sentence": 2.0, "sentiment": 1.5, "brackets": 2.5, "nesting": 2.5, "rhyme": 9.0, "song": 4.0,
    "refusal": 1.5, "copies": 3.0, "code": 0.6, "base64ish": 0.6, "foreign": 0.6,
}  # fmt: skip
"""The same in the third, where a dictionary and a book of rhymes are read too."""


def writers(words: list[str]) -> dict[str, Writer]:
    """Kind of document -> its writer. `words` are the tokens that random copies are made of."""
    free = (gender, ordering, sentence, entry, song, nesting, code, base64ish, foreign, sums)
    return {
        **{name: spoken(behavior) for name, behavior in BEHAVIORS.items()},
        **{function.__name__: function for function in free},
        "copies": copies(words),
    }


def documents(seed: int, words: list[str], shares: Mapping[str, float] = SHARES) -> Iterator[Document]:
    """Documents without end, by these shares."""
    chance = random.Random(f"babel {seed}")
    kinds = writers(words)
    names, parts = list(shares), list(shares.values())
    while True:
        yield kinds[chance.choices(names, parts)[0]](chance)
