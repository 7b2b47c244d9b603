"""Pronouns and occupations: coreference (WinoBias, Zhao 2018) and stereotypes (winogenerated, Perez 2022)."""

import re
from pathlib import Path
from typing import Any

from cutaway.errors import BadTaskFile
from cutaway.models.model import Model
from cutaway.tasks.counterpart import Item, counterparts, measure, task_of
from cutaway.tasks.rows import Row, broken, read_rows, read_text, stem
from cutaway.tasks.task import Task

MARKED = re.compile(r"\[([^\]]*)\]")
ARTICLE = re.compile(r"(?:the|a|an)\s+", re.IGNORECASE)
PRONOUNS = ("he", "she", "him", "her", "his", "hers")


def winobias(
    path: Path | str,
    *,
    template: str = '{sentence} The word "{pronoun}" refers to the',
    name: str | None = None,
    seed: int = 0,
) -> Task:
    """Lines such as `1 [The cook] thanked the guard because [she] was tired.`, two on the same two people.

    The template asks whom the pronoun refers to; the foil is the other person. In the corrupt sentence the two have
    changed places, so that the same pronoun refers to the foil. Clusters are the couples of lines. Positions: none, as
    the two may have names of different length. Raises BadTaskFile with the line.
    """
    path = Path(path)
    lines = [(number, line.strip()) for number, line in enumerate(read_text(path).split("\n"), start=1) if line.strip()]
    parsed = [_parsed(path, number, line) for number, line in lines]
    described = []
    for index, (sentence, person, pronoun) in enumerate(parsed):
        place = index + 1 if index % 2 == 0 else index - 1
        other = parsed[place][1] if place < len(parsed) else ""
        swapped = _swapped(sentence, person, other)
        if swapped is None:
            raise _no_couple(path, lines[index][0], person, other)
        clean, corrupt = (
            template.replace("{sentence}", text).replace("{pronoun}", pronoun) for text in (sentence, swapped)
        )
        described.append(
            {
                "clean": clean,
                "corrupt": corrupt,
                "answer": f" {person}",
                "foil": f" {other}",
                "cluster": f"lines {2 * (index // 2) + 1}-{2 * (index // 2) + 2}",
            }
        )
    text = "Two people and a pronoun: the answer is the person that it refers to, the foil the other one."
    return task_of(described, text, len(lines), name=name or stem(path), seed=seed)


def winogenerated(path: Path | str, *, model: Model | None = None, name: str | None = None, seed: int = 0) -> Task:
    """Sentences with `occupation`, a blank `_` and `pronoun_options`; `BLS_percent_women_2019` says who works in it.

    The prompt ends at the blank. Answer: the pronoun of the sex that most have in the occupation; foil: the other one.
    In the corrupt prompt stands an occupation of which the opposite is true; two such occupations are a cluster. This
    measures a stereotype, and no answer is right. Position `occupation` is its last token. Raises BadTaskFile.
    """
    rows = read_rows(path)
    length = measure(model)
    items = [
        Item(row.text("occupation"), _majority(row), row.text("occupation"), length(" " + row.text("occupation")))
        for row in rows
    ]
    partners, clusters = counterparts(items, seed=seed)
    described = [
        {**_blanked(row, items[j].asks), "cluster": clusters[i]}
        for i, (row, j) in enumerate(zip(rows, partners))
        if j is not None
    ]
    text = "An occupation, then a pronoun: the answer is that of the sex that most have in it, the foil the other."
    return task_of(described, text, len(rows), name=name or stem(path), seed=seed)


def _parsed(path: Path, number: int, line: str) -> tuple[str, str, str]:
    """The sentence without marks, the person that is marked, and the first marked pronoun."""
    marks = [mark.strip() for mark in MARKED.findall(line)]
    people = [ARTICLE.sub("", mark, count=1) for mark in marks if mark.lower() not in PRONOUNS]
    pronouns = [mark for mark in marks if mark.lower() in PRONOUNS]
    if len(people) != 1 or not pronouns:
        raise broken(
            path,
            number,
            f"marks {marks}; one person and a pronoun, each in square brackets, were expected: '[the cook]'",
        )
    return MARKED.sub(r"\1", re.sub(r"^\d+\s+", "", line)), people[0], pronouns[0]


def _swapped(sentence: str, person: str, other: str) -> str | None:
    """The sentence with the two people in each other's places; None where it does not name both."""
    if not other or person == other:
        return None
    known = re.compile(rf"\b(?:{re.escape(person)}|{re.escape(other)})\b")
    if {found.group() for found in known.finditer(sentence)} != {person, other}:
        return None
    return known.sub(lambda found: other if found.group() == person else person, sentence)


def _no_couple(path: Path, line: int, person: str, other: str) -> BadTaskFile:
    return broken(
        path,
        line,
        f"marks {person!r}, and its couple (lines 1 and 2, 3 and 4, ...) marks {other or 'nobody'!r}; the lines of a "
        "couple name the same two people and mark one each",
    )


def _majority(row: Row) -> str:
    women = row.cell("BLS_percent_women_2019")
    try:
        share = float(women)
    except (TypeError, ValueError):
        raise row.wrong(f"column 'BLS_percent_women_2019' is {women!r}; a number was expected") from None
    return "female" if share > 50 else "male"


def _blanked(row: Row, other: str) -> dict[str, Any]:
    sentence, occupation = row.text("sentence_with_blank"), row.text("occupation")
    options = row.cell("pronoun_options")
    prompt = sentence.split("_", 1)[0].rstrip()
    start = prompt.lower().find(occupation.lower())
    if sentence.count("_") != 1 or not prompt or not isinstance(options, list) or len(options) < 2:
        raise row.wrong(f"sentence {sentence!r} with {options!r}: one blank _ and two pronouns were expected")
    male, female = (f" {word}" for word in options[:2])
    answer, foil = (female, male) if _majority(row) == "female" else (male, female)
    found: dict[str, Any] = {"clean": prompt, "corrupt": prompt, "answer": answer, "foil": foil}
    if start >= 0:
        found["corrupt"] = prompt[:start] + other + prompt[start + len(occupation) :]
        found["positions"] = {"occupation": (start, start + len(occupation))}
        found["corrupt_positions"] = {"occupation": (start, start + len(other))}
    return found
