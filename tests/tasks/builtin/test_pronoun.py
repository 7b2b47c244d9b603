"""Pronoun: the answer agrees with the subject, both ways round."""

import pytest

from cutaway.errors import Misaligned
from cutaway.models.model import Model
from cutaway.tasks import pronoun
from cutaway.tasks.builtin.pronoun import NAME_TEMPLATES, NAMES, NOUN_TEMPLATES, NOUNS
from tests.tasks.builtin.test_builtin import model as model
from tests.tasks.vocabularies import loaded

SHE = {pair[0] for pair in (*NOUNS, *NAMES)}
HE = {pair[1] for pair in (*NOUNS, *NAMES)}


def test_answer_and_foil_agree_with_the_subjects(model: Model) -> None:
    for pair in pronoun(model).pairs:
        assert pair.corrupt_positions is not None
        (start, stop), (other_start, other_stop) = pair.positions["subject"], pair.corrupt_positions["subject"]
        for subject, answer in (
            (pair.clean[start:stop], pair.answer),
            (pair.corrupt[other_start:other_stop], pair.foil),
        ):
            assert subject in (SHE if str(answer).lower() == " she" else HE)
        assert str(answer)[1].isupper() == str(pair.clean).endswith(".")


def test_girl_and_boy_are_the_clean_one_in_half_of_the_pairs(model: Model) -> None:
    answers = [str(pair.answer).lower() for pair in pronoun(model).pairs]
    assert 34 <= answers.count(" she") <= 62


def test_every_template_is_a_cluster(model: Model) -> None:
    assert set(pronoun(model).clusters) == {*NOUN_TEMPLATES, *NAME_TEMPLATES}
    assert not SHE & HE


def test_a_tokenizer_without_the_words_is_told_so() -> None:
    with pytest.raises(Misaligned, match=r"0 of 96 pairs fit .*no token for a part"):
        pronoun(loaded("word_level"))
