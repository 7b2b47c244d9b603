"""What each importer makes of its shape, and what it says of a file that is not right."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cutaway import engine
from cutaway.engine import Run
from cutaway.errors import BadTaskFile, OutOfRange, UsageError
from cutaway.tasks import Task, fit, importers
from cutaway.tasks.importers.facts import completion
from tests.tasks.importers.files import (
    COUNTERFACTUALS,
    LISTED,
    SENTENCES,
    SPOKEN,
    WORDS,
    comma,
    lines,
    put,
    put_ravel,
)
from tests.tasks.vocabularies import KINDS, loaded


def values(task: Task, model: Any) -> list[float]:
    """The metric of the unedited clean runs."""
    batch = task.encode(model)
    plan = engine.plan(model, [Run(batch.clean, logits=batch.logits)])
    (scores,) = plan.execute(reduce=lambda r, rows: batch.row_scores(r.logits, rows))
    return batch.combine(scores).tolist()


# counterfactuals


def test_pairs_of_a_table(tmp_path: Path) -> None:
    task = importers.counterfactuals(put(tmp_path, "counterfactuals.csv"), corrupt="corrupted_hard")
    row = COUNTERFACTUALS[0]
    pair = task.pairs[0]
    assert (pair.clean, pair.corrupt) == (row["clean"], row["corrupted_hard"])
    assert (pair.answer, pair.foil) == (row["correct"], row["incorrect"])
    assert str(pair.clean)[slice(*pair.positions["changed"])] == "Bob"
    assert task.roles == ("changed", "end")
    by_answer = importers.counterfactuals(put(tmp_path, "counterfactuals.csv"), cluster="correct")
    assert len(by_answer.clusters) == 4


@pytest.mark.parametrize("kind", list(KINDS))
def test_token_ids_become_the_text_that_they_add(kind: str, tmp_path: Path) -> None:
    model = loaded(kind)
    prompts = [(f"{a} and Ann ran because", f"{a} and Bob ran because") for a in ("Mary", "John", "Bob", "Ann")]
    ids = [model.encode([f"{clean} she"]).row(0)[-1] for clean, _ in prompts]
    other = [model.encode([f"{clean} he"]).row(0)[-1] for clean, _ in prompts]
    rows = [
        {"": n, "clean": clean, "corrupted": corrupt, "correct_idx": ids[n], "incorrect_idx": other[n]}
        for n, (clean, corrupt) in enumerate(prompts)
    ]
    path = put(tmp_path, "ids.csv", comma(rows))
    task = importers.counterfactuals(path, tokenizer=model)
    assert {(pair.answer.strip(), pair.foil.strip()) for pair in task.pairs} == {("she", "he")}  # pyright: ignore
    assert importers.counterfactuals(path, tokenizer=model.tokenizer) == task
    batch = task.encode(model)
    assert batch.answers == tuple((one,) for one in ids)
    assert batch.foils == tuple((one,) for one in other)


def test_ids_without_their_tokenizer_mean_nothing(tmp_path: Path) -> None:
    rows = [{"clean": "Ann ran", "corrupted": "Bob ran", "correct_idx": 7, "incorrect_idx": 10**6}]
    path = put(tmp_path, "ids.csv", comma(rows))
    with pytest.raises(UsageError, match="name it: tokenizer="):
        importers.counterfactuals(path)
    with pytest.raises(UsageError, match="tokenizer="):
        importers.read(path)
    with pytest.raises(BadTaskFile, match="line 2: token id 1000000 is not in this tokenizer"):
        importers.counterfactuals(path, tokenizer=loaded("byte_bpe"))
    with pytest.raises(BadTaskFile, match="column 'correct_idx' is 'x'; a whole number"):
        importers.counterfactuals(
            put(tmp_path, "ids.csv", comma([{**rows[0], "correct_idx": "x"}])), tokenizer=loaded("byte_bpe")
        )


# minimal pairs


def test_the_score_is_that_of_whole_sentences(tmp_path: Path) -> None:
    model = loaded("byte_bpe")
    task = importers.blimp(put(tmp_path, "blimp.jsonl"))
    assert task.metric == "logprob_diff"
    opening = len(model.encode(["\n"]).row(0))
    wanted = []
    for row in SENTENCES:
        both = []
        for sentence in (row["sentence_good"], row["sentence_bad"]):
            tokens = model.encode(["\n" + sentence])
            logits = model.run(tokens, logits="all").logits
            assert logits is not None
            found = logits[0, :-1].log_softmax(-1)[range(len(tokens.row(0)) - 1), tokens.row(0)[1:]]
            both.append(float(found[opening - 1 :].sum()))
        wanted.append(both[0] - both[1])
    assert values(task, model) == pytest.approx(wanted, abs=1e-4)
    assert max(map(abs, wanted)) > 0.1


def test_clusters_are_paradigms_or_pairs(tmp_path: Path) -> None:
    path = put(tmp_path, "blimp.jsonl")
    assert set(importers.blimp(path).clusters) == {"saw", "fed", "order"}
    assert len(importers.blimp(path, paradigm="saw").clusters) == 8
    with pytest.raises(UsageError, match="Did you mean 'saw'"):
        importers.blimp(path, paradigm="sawn")
    with pytest.raises(BadTaskFile, match="line 1: column 'sentence_bad' is 5; text was expected"):
        importers.blimp(put(tmp_path, "a.jsonl", lines([{**SENTENCES[0], "sentence_bad": 5}])))


def test_sentences_that_are_the_same_are_left_out_and_counted(tmp_path: Path) -> None:
    twin = {**SENTENCES[0], "sentence_bad": SENTENCES[0]["sentence_good"]}
    task = importers.blimp(put(tmp_path, "a.jsonl", lines([*SENTENCES, twin])))
    assert len(task) == len(SENTENCES)
    assert "1 of 18 rows whose two sentences are the same" in task.description
    with pytest.raises(BadTaskFile, match="in every row"):
        importers.blimp(put(tmp_path, "a.jsonl", lines([twin])))


def test_one_prefix_takes_a_prompt_whose_words_have_changed_places(tmp_path: Path) -> None:
    task = importers.blimp_one_prefix(put(tmp_path, "blimp.jsonl"), paradigm="saw")
    assert {(pair.answer, pair.foil) for pair in task.pairs} == {(" he", " him"), (" him", " he")}
    assert "left out" not in task.description
    whole = importers.blimp_one_prefix(put(tmp_path, "blimp.jsonl"))
    assert "1 of 17 rows without a counterpart" in whole.description
    assert all(("saw" in str(pair.clean)) == ("saw" in str(pair.corrupt)) for pair in whole.pairs)


# behaviors


def test_options_change_places(tmp_path: Path) -> None:
    task = importers.behaviors(put(tmp_path, "behaviors_listed.jsonl"))
    first = task.pairs[0]
    assert str(first.clean) == LISTED[0]["question"] + "\n\nAnswer: ("
    assert "(A) Ask Ann\n (B) No, never mind\n (C) Yes, do" in str(first.corrupt)
    assert (first.answer, first.foil) == ("A", "C")
    second = task.pairs[1]
    assert "(A) No, never mind\n (B) Yes, do\n (C) Ask Ann" in str(second.corrupt)


def test_a_question_without_its_options_is_refused(tmp_path: Path) -> None:
    row = {**LISTED[0], "question": "May I? (A) Yes"}
    with pytest.raises(BadTaskFile, match=r"line 1: the answers are ' \(A\)' and ' \(C\)', .* options are A; "):
        importers.behaviors(put(tmp_path, "a.jsonl", lines([row])))
    with pytest.raises(UsageError, match=r"needs {question} once"):
        importers.behaviors(put(tmp_path, "behaviors_listed.jsonl"), template="Q:")


def test_spoken_answers_find_a_question_with_the_other_answer(tmp_path: Path) -> None:
    for pair in importers.behaviors(put(tmp_path, "behaviors_spoken.jsonl"), model=loaded("byte_bpe")).pairs:
        assert ("more" in str(pair.clean)) == (pair.answer == " Yes")
        assert ("more" in str(pair.corrupt)) == (pair.foil == " Yes")


def test_behavior_texts(tmp_path: Path) -> None:
    spoken = importers.behavior_texts(put(tmp_path, "behaviors_spoken.jsonl"))
    assert spoken.texts == tuple(row["statement"] for row in SPOKEN)
    assert spoken.labels == (1, 0) * 4
    listed = importers.behavior_texts(put(tmp_path, "behaviors_listed.jsonl"))
    assert listed.texts[:2] == (LISTED[0]["question"] + " (A)", LISTED[0]["question"] + " (C)")
    assert listed.labels[:2] == (1, 0)
    assert len(set(listed.clusters)) == 8


# facts


def test_a_relation_s_templates(tmp_path: Path) -> None:
    path = put(tmp_path, "relation.json")
    first, second = importers.relation(path), importers.relation(path, template=1)
    assert first.pairs[0].clean == "The sound of a cat is"
    assert (second.pairs[0].clean, second.pairs[0].answer) == ("cat says", " mew")
    assert first.roles == ("subject", "end")
    with pytest.raises(OutOfRange, match="has 2, 0-1"):
        importers.relation(path, template=2)
    for change, says in (
        ({"samples": [{"subject": "cat"}]}, r"line 1: samples\[0\]: no column 'object'"),
        ({"prompt_templates": ["no slot"]}, r"template 'no slot': a text with {} once"),
        ({"samples": []}, "lists with at least one item"),
    ):
        with pytest.raises(BadTaskFile, match=says):
            importers.relation(put(tmp_path, "a.json", lines([{**_relation(), **change}])))


def _relation() -> dict[str, Any]:
    return {"prompt_templates": ["A {} is"], "samples": [{"subject": "cat", "object": "pet"}]}


def test_facts_stay_in_their_relation(tmp_path: Path) -> None:
    task = importers.known_facts(put(tmp_path, "facts.jsonl"))
    for pair in task.pairs:
        assert str(pair.clean).split(" ", 2)[2] == str(pair.corrupt).split(" ", 2)[2]
    bad = {"subject": "cat", "attribute": "x", "prompt": "A dog is", "relation_id": "P"}
    with pytest.raises(BadTaskFile, match="line 1: the subject 'cat' does not stand in the prompt"):
        importers.known_facts(put(tmp_path, "a.jsonl", lines([bad])))


def test_ravel_keeps_its_splits_and_its_prompts(tmp_path: Path) -> None:
    task = importers.ravel(put_ravel(tmp_path), "animal", "Sound")
    assert task.splits == {"explore": 8, "calibrate": 8, "confirm": 8}
    by_split = {pair.split: pair for pair in task.pairs}
    assert by_split["explore"].clean == "The sound of a ant 0 is"
    assert (by_split["calibrate"].clean, by_split["calibrate"].answer) == ('{"pet": "ant 1", "sound": "', "none")
    assert (by_split["confirm"].clean, by_split["confirm"].answer) == ("a ant 2 says", " none")
    with pytest.raises(UsageError, match="Did you mean 'Sound'"):
        importers.ravel(tmp_path, "animal", "Sund")
    with pytest.raises(BadTaskFile, match=r"ravel_plant_entity_attributes.json: cannot be read"):
        importers.ravel(tmp_path, "plant", "Sound")
    (tmp_path / "ravel_animal_entity_to_split.json").write_text('{"cat 0": "dev"}')
    with pytest.raises(BadTaskFile, match="'cat 0' is in split 'dev'"):
        importers.ravel(tmp_path, "animal", "Sound")


def test_an_answer_after_an_opening_quote_has_no_space() -> None:
    assert completion('"a": "b", "c": "', "d") == ('"a": "b", "c": "', "d")
    assert completion('the word "up"', "d") == ('the word "up"', " d")
    assert completion("at (", "d") == ("at (", "d")


# words in context


def test_examples_are_of_the_query_s_split_and_not_of_its_cluster(tmp_path: Path) -> None:
    task = importers.word_pairs(put(tmp_path, "words.json"), n_shots=2, seed=1)
    outputs = {row["input"]: row["output"] for row in WORDS}
    split_of = {}
    for pair in task.pairs:
        *shots, query = str(pair.clean).split("\n\n")
        split_of[query] = pair.split
        assert pair.answer == " " + outputs[query.removeprefix("Q: ").removesuffix("\nA:")]
        assert str(pair.corrupt).split("\n\n")[:-1] == shots
        for shot in shots:
            given, wanted = shot.removeprefix("Q: ").split("\nA: ")
            assert outputs[given] == wanted
    for pair in task.pairs:
        *shots, query = str(pair.clean).split("\n\n")
        for shot in shots:
            asked = shot.split("\nA:")[0] + "\nA:"
            assert split_of[asked] == pair.split
            assert asked not in (query, str(pair.corrupt).split("\n\n")[-1])


def test_shuffled_labels_tell_nothing(tmp_path: Path) -> None:
    task = importers.word_pairs(put(tmp_path, "words.json"), n_shots=2, corrupt="labels", seed=1)
    for pair in task.pairs:
        *shots, query = str(pair.clean).split("\n\n")
        *moved, same = str(pair.corrupt).split("\n\n")
        assert query == same
        told, lied = ([shot.split("\nA: ") for shot in part] for part in (shots, moved))
        assert [shot[0] for shot in told] == [shot[0] for shot in lied]
        assert [shot[1] for shot in told] == [shot[1] for shot in lied][::-1]
        assert pair.foil in {f" {shot[1]}" for shot in told}


@pytest.mark.parametrize(
    ("options", "kind", "says"),
    [
        ({"n_shots": 40}, OutOfRange, r"n_shots=40: a split of .* has \d+ words"),
        ({"template": "Q:"}, UsageError, "{input} stands once"),
        ({"corrupt": "all"}, Exception, "corrupt"),
    ],
)
def test_word_pairs_refuse(options: dict[str, Any], kind: type[Exception], says: str, tmp_path: Path) -> None:
    with pytest.raises(kind, match=says):
        importers.word_pairs(put(tmp_path, "words.json"), **options)


# names and pronouns


def test_prompts_with_two_names(tmp_path: Path) -> None:
    task = importers.ioi_prompts(put(tmp_path, "prompts.jsonl"))
    first = task.pairs[0]
    assert (first.clean, first.corrupt) == (
        "Then Ann and Bob sat. Ann gave a ball to",
        "Then Ann and Bob sat. Bob gave a ball to",
    )
    assert (first.answer, first.foil) == (" Bob", " Ann")
    words = {role: str(first.clean)[slice(*span)] for role, span in first.positions.items()}
    assert words == {"s1": "Ann", "s2": "Ann", "io": "Bob"}
    assert task.roles == ("s1", "s2", "io", "end")
    bad = [{"prompt": "Ann and Bob met Cy. Cy gave it to", "answer": "Dan"}]
    with pytest.raises(BadTaskFile, match=r"line 1: .* the answer must stand in it once"):
        importers.ioi_prompts(put(tmp_path, "a.jsonl", lines(bad)))


def test_templates_with_names(tmp_path: Path) -> None:
    path = put(tmp_path, "templates.json")
    task = importers.ioi_templates(path, n=6)
    assert len(task) == 6
    assert len(task.clusters) == 2
    assert all("[" not in str(pair.clean) and str(pair.clean).endswith(" to") for pair in task.pairs)
    with pytest.raises(UsageError, match="Did you mean 'BABA_TEMPLATES'"):
        importers.ioi_templates(path, templates="BABA_TEMPLATE")
    text = '{"NAMES": ["A"], "PLACES": ["p"], "OBJECTS": ["o"], "BABA_TEMPLATES": ["[A] ran"]}'
    with pytest.raises(BadTaskFile, match=r"\[B\] twice and \[A\] as its last word"):
        importers.ioi_templates(put(tmp_path, "a.json", text))


def test_people_change_places(tmp_path: Path) -> None:
    task = importers.winobias(put(tmp_path, "coreference.txt"))
    first, second = task.pairs[:2]
    assert first.clean == 'The cook thanked the guard because she was kind. The word "she" refers to the'
    assert first.corrupt == 'The guard thanked the cook because she was kind. The word "she" refers to the'
    assert (first.answer, first.foil) == (" cook", " guard")
    assert (second.answer, second.foil) == (" guard", " cook")
    assert len(task.clusters) == 3
    assert fit(task, loaded("byte_bpe"), least=1).dropped == {}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("1 The cook ran.\n", "line 1: marks"),
        ("1 [The cook] met a man when [he] ran.\n", "line 1: marks 'cook', and its couple .* marks 'nobody'"),
        ("1 [The cook] ran as [he] sat.\n\n2 [The maid] ran as [she] sat.\n", "line 1: .* marks 'maid'"),
    ],
)
def test_coreference_lines_come_in_couples(text: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(BadTaskFile, match=says):
        importers.winobias(put(tmp_path, "a.txt", text))


def test_an_occupation_of_the_other_majority(tmp_path: Path) -> None:
    task = importers.winogenerated(put(tmp_path, "blanks.jsonl"))
    for pair in task.pairs:
        most = {"cook": " his", "pilot": " his", "maid": " her", "nurse": " her"}
        here, there = (str(p).split("thanked the ")[1].split(" ")[0] for p in (pair.clean, pair.corrupt))
        assert (pair.answer, pair.foil) == (most[here], most[there])
        assert str(pair.clean).endswith(" for")
    assert len(task.clusters) == 2


# questions and labelled texts


def test_questions_with_right_and_wrong_answers(tmp_path: Path) -> None:
    path = put(tmp_path, "questions.csv")
    task = importers.truthfulqa(path)
    assert task.metric == "logprob_diff"
    assert (task.pairs[0].clean, task.pairs[0].answer, task.pairs[0].foil) == (
        "Q: What does a cat say?\nA:",
        " mew",
        " woof",
    )
    answers = importers.truthfulqa_answers(path)
    assert answers.counts == {"false": 16, "true": 16}
    assert len(set(answers.clusters)) == 8
    torch.testing.assert_close(
        torch.tensor(values(task, loaded("byte_bpe"))), torch.tensor(values(task, loaded("byte_bpe")))
    )


def test_labels_in_words_and_numbers(tmp_path: Path) -> None:
    numbers = importers.statements(put(tmp_path, "statements.csv"))
    assert numbers.counts == {"false": 8, "true": 8}
    assert len(set(numbers.clusters)) == 8
    words = comma([{"statement": "A.", "label": "True"}, {"statement": "B.", "label": "false"}])
    assert importers.statements(put(tmp_path, "a.csv", words)).labels == (1, 0)
    assert importers.sentiment(put(tmp_path, "texts.jsonl")).counts == {"negative": 8, "positive": 8}
    named = importers.labelled(put(tmp_path, "texts.jsonl"), classes={"0": "bad", "1": "good"})
    assert named.classes == ("bad", "good")
    assert importers.labelled(put(tmp_path, "texts.jsonl")).classes == ("0", "1")
    with pytest.raises(BadTaskFile, match="line 2: column 'label' is 'maybe'; 0 or 1 or false or true was expected"):
        importers.statements(put(tmp_path, "a.csv", comma([{"statement": "A.", "label": "maybe"}])))


@pytest.mark.parametrize("one", [lambda folder: folder, lambda folder: sorted(folder.iterdir())])
def test_a_class_a_file(one: Callable[[Path], Any], tmp_path: Path) -> None:
    put(tmp_path, "glad.json", '["I sing.",\n "I hum."]')
    put(tmp_path, "sad.json", '["I weep."]')
    found = importers.scenarios(one(tmp_path))
    assert found.counts == {"glad": 2, "sad": 1}
    with pytest.raises(UsageError, match="a class is a file, give two"):
        importers.scenarios(tmp_path / "sad.json")
