"""babel's examination: held-out questions of every behavior, and which tokens count as right.

Two kinds of newness: `combinations` (words that training never held together, in templates that it did) and `templates`
(templates that training never held, with any combination). Most questions have one right token, and it must be ranked
first among all tokens. Four have several, and the probability of the right ones together must exceed that of the wrong
ones: a later year, a verb of the right number, a bracket that closes, a word that rhymes.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch

from cutaway.tasks.builtin.agreement import VERBS
from cutaway.tasks.builtin.behavior import Behavior
from cutaway.tasks.builtin.brackets import BRACKETS, KINDS
from cutaway.tasks.builtin.facts import FACTS
from cutaway.tasks.builtin.rhyme import GROUPS
from cutaway.tasks.builtin.translation import TRANSLATION
from cutaway.tasks.builtin.truth import STATEMENTS
from cutaway.tasks.pair import Pair
from cutaway.zoo.babel import grammar
from cutaway.zoo.babel.tokenizer import ordinary

SEED: Final = 1_000_003
N: Final = 300
"""Questions of a kind, where there are as many."""


@dataclass(frozen=True)
class Question:
    """A prompt, and the tokens that are right and wrong after it."""

    prompt: str
    right: tuple[str, ...]
    wrong: tuple[str, ...] | None
    """None: every other token; the right one must come first."""
    group: str = ""
    """Questions of one group are one question in parts: right when all are."""


def _greater(pair: Pair) -> tuple[tuple[str, ...], tuple[str, ...]]:
    start, stop = pair.positions["year"]
    year = int(str(pair.clean)[start:stop])
    later = tuple(f"{number:02d}" for number in range(year + 1, 100))
    return later, tuple(f"{number:02d}" for number in range(year + 1))


def _number(pair: Pair) -> tuple[tuple[str, ...], tuple[str, ...]]:
    number = next(number for number in (0, 1) for verb in VERBS if f" {verb[number]}" == pair.answer)
    singular, plural = (tuple(f" {verb[which]}" for verb in VERBS) for which in (number, 1 - number))
    return singular, plural


def _closing(pair: Pair) -> tuple[tuple[str, ...], tuple[str, ...]]:
    return (str(pair.answer),), tuple(f" {sign}" for sign in KINDS.values() if f" {sign}" != pair.answer)


def _rhyming(pair: Pair) -> tuple[tuple[str, ...], tuple[str, ...]]:
    start, stop = pair.positions["first"]
    first = str(pair.clean)[start:stop]
    rhymes = next(group for group in GROUPS if first in group)
    others = [word for group in GROUPS if group is not rhymes for word in group] + [first]
    return tuple(f" {word}" for word in rhymes if word != first), tuple(f" {word}" for word in others)


SEVERAL: Final[dict[str, Callable[[Pair], tuple[tuple[str, ...], tuple[str, ...]]]]] = {
    "greater-than": _greater,
    "agreement": _number,
    "brackets": _closing,
    "rhyme": _rhyming,
}


def questions(name: str, newness: str, tokenizer: Any, *, n: int = N, seed: int = SEED) -> list[Question]:
    """Different held-out questions of a behavior; fewer than `n` where there are not as many, none where there is none.

    `newness` is 'combinations', 'templates', or 'seen' (nothing new).
    """
    if name in FREE:
        return FREE[name](n, seed, tokenizer) if newness == "combinations" else []
    behavior = grammar.BEHAVIORS[name]
    new = newness == "templates"
    clusters = [
        cluster
        for cluster in behavior.clusters
        if (cluster in behavior.unseen) == new and not _told_elsewhere(behavior, cluster)
    ]
    chance = random.Random(f"{name} {newness} {seed}")
    found: dict[str, Question] = {}
    for _ in range(n * 40 if clusters else 0):
        drawn = behavior.draw(chance.choice(clusters), chance)
        if new or behavior.held_out(drawn.key) == (newness == "combinations"):
            found.setdefault(str(drawn.pair.clean), _question(name, drawn.pair))
            if len(found) == n:
                break
    return list(found.values())


def _told_elsewhere(behavior: Behavior, cluster: str) -> bool:
    """Whether documents of another kind, or of a longer template, hold the questions of this one with their answers:
    statements that are said to be true are facts, and a longer nesting begins with a shorter one."""
    if behavior is FACTS:
        return cluster in STATEMENTS
    longer = (each for each in behavior.clusters if each not in behavior.unseen)
    return behavior is BRACKETS and any(each.startswith(cluster + ")") for each in longer)


def _question(name: str, pair: Pair) -> Question:
    if name in SEVERAL:
        return Question(str(pair.clean), *SEVERAL[name](pair))
    return Question(str(pair.clean), (str(pair.answer),), None)


def _repeats(n: int, seed: int, tokenizer: Any) -> list[Question]:
    """Twelve random words, and their beginning once more."""
    words, chance = ordinary(sorted(tokenizer.get_vocab())), random.Random(f"induction {seed}")
    found = []
    for _ in range(n):
        row, stop = chance.sample(words, 12), chance.randint(2, 11)
        found.append(Question("".join(row + row[:stop]), (row[stop],), None))
    return found


def _sentences(n: int, seed: int, _: Any) -> list[Question]:
    """Each word of a held-out translation, after the right ones before it; `n` sentences."""
    chance, found = random.Random(f"sentences {seed}"), {}
    while len(found) < n:
        said, source, target = grammar.drawn_sentence(chance)
        if TRANSLATION.held_out(grammar.sentence_key(said, source, target)):
            found[grammar.sentence_prompt(said, source, target)] = said[target].split()
    return [
        Question(" ".join((prompt, *words[:index])), (f" {words[index]}",), None, group=prompt)
        for prompt, words in found.items()
        for index in range(len(words))
    ]


def _code(n: int, seed: int, _: Any) -> list[Question]:
    """The argument where the function returns it, and the function where it is called, for held-out names."""
    chance, found = random.Random(f"code {seed}"), {}
    for _ in range(20 * n):
        name, argument = grammar.drawn_names(chance)
        if BRACKETS.held_out(f"{name} {argument}"):
            head, sign, number = f"def {name}({argument}):\n return", chance.choice("+-*"), chance.randint(0, 9)
            found[head] = Question(head, (f" {argument}",), None)
            call = f"{head} {argument} {sign} {number}\nprint("
            found[call] = Question(call, (name,), None)
    return list(found.values())[:n]


FREE: Final[dict[str, Callable[[int, int, Any], list[Question]]]] = {
    "induction": _repeats,
    "sentences": _sentences,
    "code": _code,
}
"""Behaviors without templates."""


def right(model: Any, tokenizer: Any, asked: Sequence[Question], *, rows: int = 64) -> list[bool]:
    """Whether the model is right, question by question. Cost: one forward pass over each prompt."""
    device = next(model.parameters()).device
    verdicts: list[bool] = []
    for start in range(0, len(asked), rows):
        chunk = asked[start : start + rows]
        ids = tokenizer([question.prompt for question in chunk])["input_ids"]
        width = max(map(len, ids))
        padded = torch.tensor([[*row, *[0] * (width - len(row))] for row in ids], device=device)
        with torch.no_grad():
            logits = model(padded, use_cache=False).logits
        ends = logits[range(len(ids)), [len(row) - 1 for row in ids]].float().cpu()
        verdicts += [_is_right(tokenizer, logit, question) for logit, question in zip(ends, chunk)]
    return verdicts


def marks(model: Any, tokenizer: Any, asked: Sequence[Question]) -> tuple[int, int]:
    """(questions that are right, questions), where a group counts as one."""
    found: dict[str, bool] = {}
    for index, (question, verdict) in enumerate(zip(asked, right(model, tokenizer, asked))):
        key = question.group or str(index)
        found[key] = found.get(key, True) and verdict
    return sum(found.values()), len(found)


def _is_right(tokenizer: Any, logits: torch.Tensor, question: Question) -> bool:
    wanted = tokenizer.convert_tokens_to_ids(list(question.right))
    if question.wrong is None:
        return int(logits.argmax()) in wanted
    chances = logits.softmax(-1)
    unwanted = tokenizer.convert_tokens_to_ids(list(question.wrong))
    return bool(chances[wanted].sum() > chances[unwanted].sum())
