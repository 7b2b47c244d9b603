"""Induction: the answer follows from the repetition and from nothing else."""

from collections import Counter

import pytest

import cutaway
from cutaway.errors import TokenizerUnfit, WrongModel
from cutaway.models.model import Model
from cutaway.tasks import Task, induction
from cutaway.tasks.builtin.induction import N_WORDS, ordinary_tokens
from tests.families import tiny
from tests.tasks.vocabularies import KINDS, SPECIAL, loaded, model_of, word_level


@pytest.fixture(scope="module")
def model() -> Model:
    return model_of(word_level([f"w{index}" for index in range(60)]))


@pytest.fixture(scope="module")
def task(model: Model) -> Task:
    return induction(model)


def test_the_row_repeats_and_the_answer_followed_before(task: Task, model: Model) -> None:
    batch = task.encode(model)
    for row in range(batch.n):
        ids, other = batch.clean.row(row), batch.corrupt.row(row)
        previous, successor, end = (batch.clean.roles[role][row] for role in ("previous", "successor", "end"))
        answer, foil = batch.answers[row][0], batch.foils[row][0]
        lag = end - previous
        assert successor == previous + 1 < end
        assert ids[end - 1 : end + 1] == ids[end - 1 - lag : end + 1 - lag]
        assert (ids[successor], other[successor]) == (answer, foil)
        assert [i for i in range(len(ids)) if ids[i] != other[i]] == [successor]
        assert ids.count(ids[end]) == 2
        assert ids.count(answer) == other.count(foil) == 1
        assert foil not in ids
        assert answer not in other


def test_neither_position_nor_distance_gives_the_answer(task: Task, model: Model) -> None:
    batch = task.encode(model)
    found = list(zip(*(batch.clean.roles[role] for role in ("previous", "end"))))
    for values in (Counter(previous for previous, _ in found), Counter(end - previous for previous, end in found)):
        assert len(values) >= 8
        assert max(values.values()) <= len(found) / 4


def test_the_first_copy_begins_at_varying_positions(task: Task, model: Model) -> None:
    batch = task.encode(model)
    starts = Counter()
    for row in range(batch.n):
        ids = batch.clean.row(row)
        lag = batch.clean.roles["end"][row] - batch.clean.roles["previous"][row]
        starts[next(index for index in range(len(ids)) if ids[index] == ids[index + lag])] += 1
    assert len(starts) >= 8
    assert max(starts.values()) <= batch.n / 4


def test_every_row_can_take_the_values_of_another(task: Task, model: Model) -> None:
    batch = task.encode(model)
    assert len(set(batch.clean.lengths)) == 1


def test_rows_begin_with_bos_where_there_is_one(task: Task) -> None:
    assert {pair.clean[0] for pair in task.pairs} == {1}
    assert all(1 not in pair.clean[1:] for pair in task.pairs)


def test_a_large_vocabulary_gives_clusters_without_a_common_token() -> None:
    large = model_of(word_level([f"w{index}" for index in range(24 * N_WORDS)]))
    words: dict[str, set[int]] = {}
    for pair in induction(large).pairs:
        words.setdefault(pair.cluster, set()).update(int(token) for token in (*pair.clean[1:], *pair.corrupt[1:]))
    assert len(words) == 24
    assert sum(len(tokens) for tokens in words.values()) == len(set.union(*words.values()))


@pytest.mark.parametrize("kind", list(KINDS))
def test_ordinary_tokens_are_visible_text(kind: str) -> None:
    model = loaded(kind)
    tokens = ordinary_tokens(model)
    vocabulary = {index: token for token, index in model.tokenizer.get_vocab().items()}
    assert len(tokens) > 20
    assert not {vocabulary[token] for token in tokens} & {*SPECIAL, "<|endoftext|>", "<0x0A>", "▁", "Ġ"}
    assert all(text.strip() and "\ufffd" not in text for text in model.strings(tokens))


def test_without_a_tokenizer_every_id_serves() -> None:
    bare = cutaway.load(tiny("llama"), audit=False)
    task = induction(bare, n=12)
    assert task.encode(bare).n == 12
    with pytest.raises(WrongModel):
        task.encode(loaded("word_level"))


def test_a_small_vocabulary_is_refused_with_the_counts() -> None:
    small = model_of(word_level(list("abcdefgh")))
    with pytest.raises(TokenizerUnfit, match=f"8 ordinary tokens, and a row needs {N_WORDS}"):
        induction(small)
