"""Every built-in task is right about its own answers, checked here by other means; and what training must not see."""

import importlib
import random
import re
from collections.abc import Callable

import pytest

from cutaway.tasks import Pair
from cutaway.tasks.builtin.behavior import Behavior, text_of
from cutaway.tasks.builtin.facts import ABROAD, CAPITALS, LANDMARKS, PEOPLE
from cutaway.tasks.builtin.refusal import FORBIDDEN
from cutaway.tasks.builtin.rhyme import GROUPS
from cutaway.tasks.builtin.sentiment import GOOD
from cutaway.tasks.builtin.words import ADJECTIVES, LANGUAGES, MEN, NAMES, NOUNS, OPPOSITES, VERBS, WOMEN
from cutaway.zoo.babel.grammar import BEHAVIORS

EVERY = pytest.mark.parametrize("behavior", BEHAVIORS.values(), ids=lambda each: each.name)
N = 400


def drawn(behavior: Behavior, n: int = N) -> list[Pair]:
    chance = random.Random(5)
    return [behavior.draw(chance.choice(behavior.clusters), chance).pair for _ in range(n)]


def sides(pair: Pair) -> list[tuple[str, str, dict[str, str]]]:
    """(prompt, what should follow, the words at its positions) of clean and of corrupt."""
    where = pair.corrupt_positions or pair.positions
    return [
        (str(prompt), str(answer).strip(), {role: str(prompt)[start:stop] for role, (start, stop) in spans.items()})
        for prompt, answer, spans in (
            (pair.clean, pair.answer, pair.positions),
            (pair.corrupt, pair.foil, where),
        )
    ]


def right_sum(prompt: str, answer: str, words: dict[str, str]) -> bool:
    left, right = map(int, re.findall(r"\d+", prompt))
    return {str(left), str(right)} == set(words.values()) and int(answer) == left + right


def right_order(prompt: str, answer: str, words: dict[str, str]) -> bool:
    listed = re.findall(r"\w+", prompt.split(":")[1].split(".")[0])
    assert set(words.values()) <= set(listed)
    return answer == ("Yes" if listed == sorted(listed) else "No")


def right_number(prompt: str, answer: str, words: dict[str, str]) -> bool:
    singular = {"is", "was", "has", "looks", "seems", "needs", "likes", "knows"}
    assert f" {words['subject']} " in prompt
    return (answer in singular) is not words["subject"].endswith("s")


def right_opposite(prompt: str, answer: str, words: dict[str, str]) -> bool:
    found = {(left[i], right[i]) for left, right in OPPOSITES for i in range(4)}
    return ((words["word"], answer) in found) or ((answer, words["word"]) in found)


def right_word(prompt: str, answer: str, words: dict[str, str]) -> bool:
    target = LANGUAGES.index(words["target"])
    return any(words["word"] in meaning and meaning[target] == answer for meaning in (*ADJECTIVES, *NOUNS, *VERBS))


def right_verdict(prompt: str, answer: str, words: dict[str, str]) -> bool:
    return (answer in ("positive", "loved", "good", "happy")) is (words["word"] in GOOD)


def right_fact(prompt: str, answer: str, words: dict[str, str]) -> bool:
    tables = (LANDMARKS, CAPITALS, PEOPLE, *ABROAD.values())
    return any(fact == (words["subject"], answer) for table in tables for fact in table)


def right_truth(prompt: str, answer: str, words: dict[str, str]) -> bool:
    return (answer in ("true", "Yes")) is right_fact(prompt, words["object"], words)


def right_bracket(prompt: str, answer: str, words: dict[str, str]) -> bool:
    text = prompt.removeprefix("Code:").replace(" ", "")
    while (shorter := re.sub(r"\(\)|\[\]|\{\}|<>", "", text)) != text:
        text = shorter
    return text[-1] == words["opened"] and text[-1] + answer in ("()", "[]", "{}", "<>")


def right_rhyme(prompt: str, answer: str, words: dict[str, str]) -> bool:
    first = prompt.split(",\n")[0].split()[-1]
    return first == words["first"] != answer and any({first, answer} <= set(group) for group in GROUPS)


def right_refusal(prompt: str, answer: str, words: dict[str, str]) -> bool:
    return answer == ("Sorry" if words["thing"] in FORBIDDEN else "Sure")


def right_receiver(prompt: str, answer: str, words: dict[str, str]) -> bool:
    named = [name for name in re.findall(r"\w+", prompt) if name in NAMES]
    return len(named) == 3 and len(set(named)) == 2 and named.count(answer) == 1


RULES: dict[str, Callable[[str, str, dict[str, str]], bool]] = {
    "addition": right_sum,
    "alphabetical": right_order,
    "agreement": right_number,
    "antonym": right_opposite,
    "translation": right_word,
    "sentiment": right_verdict,
    "facts": right_fact,
    "truth": right_truth,
    "brackets": right_bracket,
    "rhyme": right_rhyme,
    "refusal": right_refusal,
    "ioi": right_receiver,
}


@pytest.mark.parametrize("name", RULES)
def test_the_answer_is_right_after_clean_and_the_foil_after_corrupt(name: str) -> None:
    wrong = [side for pair in drawn(BEHAVIORS[name]) for side in sides(pair) if not RULES[name](*side)]
    assert not wrong, wrong[:3]


@pytest.mark.parametrize("name", RULES)
def test_the_rules_can_fail(name: str) -> None:
    """With answers exchanged every one of them finds most pairs wrong."""
    swapped = [
        RULES[name](prompt, other, words)
        for pair in drawn(BEHAVIORS[name], 60)
        for (prompt, _, words), (_, other, _) in (sides(pair), sides(pair)[::-1])
    ]
    assert sum(swapped) < 0.1 * len(swapped)


def test_a_later_year_is_later() -> None:
    for pair in drawn(BEHAVIORS["greater-than"]):
        century, start = re.findall(r"(\d\d)(\d\d)", str(pair.clean))[0]
        assert str(pair.clean).endswith(century)
        assert int(str(pair.foil)) <= int(start) < int(str(pair.answer))
        assert re.findall(r"\d\d(\d\d)", str(pair.corrupt)) == ["01"]


def test_the_adjective_of_a_couplet_fits_answer_and_foil() -> None:
    kinds = {word: kind for group in GROUPS for word, kind in group.items()}
    for pair in drawn(BEHAVIORS["rhyme"]):
        assert kinds[str(pair.answer).strip()] == kinds[str(pair.foil).strip()]
    assert len(kinds) == sum(map(len, GROUPS))


def test_words_in_four_languages_are_not_ambiguous() -> None:
    for index in range(4):
        words = [meaning[index] for meaning in (*ADJECTIVES, *NOUNS, *VERBS)]
        assert len(set(words)) == len(words)
    assert not set(WOMEN) & set(MEN)
    assert len(NAMES) == len(WOMEN) + len(MEN)


def test_there_are_as_many_facts_as_the_card_says() -> None:
    facts = {fact for table in (LANDMARKS, CAPITALS, PEOPLE) for fact in table}
    assert len(facts) > 170
    assert len({fact.subject for fact in facts}) == len(facts)


@EVERY
def test_unseen_templates_are_made_of_words_that_others_have(behavior: Behavior) -> None:
    assert set(behavior.unseen) < set(behavior.clusters)
    words = {
        seen: {word for name in behavior.clusters if (name in behavior.unseen) == seen for word in _words(name)}
        for seen in (True, False)
    }
    assert words[True] <= words[False]


def _words(cluster: str) -> list[str]:
    return re.findall(r"\w+|[^\w\s]", text_of(cluster))


@EVERY
def test_a_share_of_the_combinations_is_held_out_for_good(behavior: Behavior) -> None:
    chance = random.Random(3)
    keys = {behavior.draw(chance.choice(behavior.clusters), chance).key for _ in range(6000)}
    found = sum(map(behavior.held_out, keys)) / len(keys)
    assert behavior.share / 2 < found < behavior.share * 2


@EVERY
def test_every_role_is_a_position_of_every_pair(behavior: Behavior) -> None:
    for pair in drawn(behavior, 50):
        assert set(behavior.roles) == set(pair.positions) == set(pair.corrupt_positions or ())


@EVERY
def test_a_module_makes_the_task_of_its_name(behavior: Behavior) -> None:
    module = importlib.import_module(f"cutaway.tasks.builtin.{behavior.name.replace('-', '_')}")
    assert getattr(module, behavior.name.replace("-", "_").upper()) is behavior
    assert callable(getattr(module, behavior.name.replace("-", "_")))
