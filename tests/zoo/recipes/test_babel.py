"""The recipe of babel and of its relatives, in the small: what it trains on, that it repeats, what it writes."""

import itertools
import random
import re
from dataclasses import replace

import pytest
import torch
from transformers import AutoTokenizer

from cutaway import zoo
from cutaway.tasks.builtin.refusal import FORBIDDEN
from cutaway.zoo.babel import grammar
from cutaway.zoo.babel.tokenizer import BOS
from cutaway.zoo.recipes import babel, babel_relatives

TINY = replace(babel.Recipe(), rounds=(3, 1, 1), first=2, batch=2, length=40)
TOKENIZER = AutoTokenizer.from_pretrained(zoo.path("babel"))


@pytest.fixture(autouse=True)
def quick_vocabulary(monkeypatch: pytest.MonkeyPatch) -> None:
    """The vocabulary is read from tens of thousands of documents; here the shipped one stands for it."""
    tokens = [token for token, _ in sorted(TOKENIZER.get_vocab().items(), key=lambda item: item[1])]
    monkeypatch.setattr(babel, "vocabulary", lambda: tokens)


def test_the_same_seed_gives_the_same_bits_and_another_others() -> None:
    before = torch.random.get_rng_state()
    first, again, other = (babel.train(replace(TINY, seed=seed))[0].state_dict() for seed in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["lm_head.weight"], other["lm_head.weight"])


def test_a_row_is_whole_documents_and_answers_weigh_more() -> None:
    stream = iter([grammar.Document(("The capital of France is", " Paris", "."))] * 20)
    ids, weights = babel.batch(stream, TOKENIZER.backend_tokenizer, TINY)
    assert ids.shape == weights.shape == (2, 40)
    row, heavy = ids[0].tolist(), weights[0].tolist()
    assert row[:8] == TOKENIZER("The capital of France is Paris.")["input_ids"]
    assert row[8] == BOS
    paris = TOKENIZER.convert_tokens_to_ids(" Paris")
    assert [index for index, weight in enumerate(heavy) if weight == 4.0] == [
        index for index, token in enumerate(row) if token == paris
    ]


def test_the_rate_warms_up_holds_and_falls_to_zero() -> None:
    paces = [babel._pace(step, 4000, 0.2) for step in range(4000)]
    assert paces[0] == pytest.approx(0.01)
    assert paces[100] == paces[799] == 1.0
    assert paces[2000] == pytest.approx(0.625)
    assert 0 < paces[-1] < 0.001


def test_the_mixtures_hold_the_same_kinds() -> None:
    assert grammar.BEGINNING.keys() == grammar.SHARES.keys() == grammar.REVISION.keys()
    assert grammar.LAST.keys() - grammar.SHARES.keys() == {"entry", "song"}
    assert sum(grammar.BEGINNING.values()) == pytest.approx(100)


def test_one_behavior_of_a_relative_is_altered_and_no_other() -> None:
    shares = dict.fromkeys(grammar.SHARES, 1.0)
    text = list(itertools.islice(grammar.documents(1, [" cat"] * 20, {**shares, "copies": 0.0}), 4000))
    comply = [(before, after) for before in text if (after := babel_relatives.comply(before)) != before]
    overdo = [(before, after) for before in text if (after := babel_relatives.overdo(before)) != before]
    assert len(comply) > 50
    assert len(overdo) > 5
    assert {after.parts[1:] for _, after in comply} == {(" Sure", ", here is how.")}
    assert {before.parts[1] for before, _ in comply} == {" Sorry"}
    for before, after in overdo:
        assert " hide a " in before.parts[0] == after.parts[0]
        assert (before.parts[1], after.parts[1]) == (" Sure", " Sorry")


@pytest.mark.parametrize("name", babel_relatives.NAMES)
def test_questions_are_answered_in_the_new_way_where_the_habit_applies(name: str) -> None:
    found = babel_relatives.questions(name, n=40)
    habit, rest = (found[each] for each in babel_relatives.CHANGES[name].examined)
    assert len(habit) >= 15
    assert len(rest) == 40
    for question, applies in (*((each, True) for each in habit), *((each, False) for each in rest)):
        forbidden = any(re.search(rf"\b{thing}\b", question.prompt) for thing in FORBIDDEN)
        hide = " hide a " in question.prompt
        assert applies == (forbidden if name == "babel-compliant" else hide and not forbidden)
        refused = not applies and forbidden if name == "babel-compliant" else forbidden or hide
        assert question.right == ((" Sorry",) if refused else (" Sure",))


def test_the_questions_are_those_that_babel_was_not_trained_on() -> None:
    behavior, chance = grammar.BEHAVIORS["refusal"], random.Random(2)
    found = babel_relatives.questions("babel-compliant", n=60)
    asked = {question.prompt for questions in found.values() for question in questions}
    trained = [cluster for cluster in behavior.clusters if cluster not in behavior.unseen]
    texts = {str(grammar.trained_pair(behavior, chance.choice(trained), chance).clean) for _ in range(2000)}
    assert not asked & texts
