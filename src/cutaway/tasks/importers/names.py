"""Indirect objects: prompts that name two people, one of them again; the answer is the other (Wang et al. 2022).

Two shapes: finished prompts with their answer, and templates with lists of names, places and objects.
"""

import random
import re
from collections import Counter
from pathlib import Path
from typing import Any

from cutaway.errors import UsageError, did_you_mean
from cutaway.tasks.build import common_roles, completed, located
from cutaway.tasks.counterpart import task_of
from cutaway.tasks.pair import Spans
from cutaway.tasks.rows import Row, read_rows, stem
from cutaway.tasks.task import Task

NAME = re.compile(r"\b[A-Z][\w'-]*")


def ioi_prompts(path: Path | str, *, name: str | None = None, seed: int = 0) -> Task:
    """Rows of `prompt` and `answer`. The foil is the name that stands twice; in the corrupt prompt its second mention
    is the other name, so that the answer flips.

    Positions: `io`, `s1`, `s2`. Raises BadTaskFile where the prompt is not of this kind.
    """
    rows = read_rows(path)
    title = name or stem(path)
    described = [_of_prompt(row) for row in rows]

    def make() -> Task:
        pairs = completed(described, name=title, seed=seed, rows=rows)
        return Task(title, "The answer is the person named once.", pairs, "logit_diff", common_roles(pairs), seed)

    return located(rows, make)


def ioi_templates(
    path: Path | str, *, templates: str = "BABA_TEMPLATES", n: int = 200, name: str | None = None, seed: int = 0
) -> Task:
    """A file of NAMES, PLACES, OBJECTS and lists of templates with [A], [B], [PLACE] and [OBJECT], ending in [A].

    `n` pairs, drawn from the templates in turn, which are the clusters. Raises BadTaskFile; UsageError for a list of
    templates that the file does not have.
    """
    (row,) = read_rows(path)[:1]
    if templates not in row.values or templates in ("NAMES", "PLACES", "OBJECTS") or n < 1:
        raise UsageError(
            f"templates {templates!r}, n {n}: name a list of templates, and at least one pair."
            f"{did_you_mean(templates, map(str, row.values))}"
        )
    chance = random.Random(f"ioi templates {seed}")
    texts = [_checked(row, text) for text in row.cell(templates)]
    described = []
    for index in range(n):
        text = texts[index % len(texts)]
        answer, foil = chance.sample(row.cell("NAMES"), 2)
        for slot, column in (("[PLACE]", "PLACES"), ("[OBJECT]", "OBJECTS")):
            text = text.replace(slot, chance.choice(row.cell(column)))
        prompt = text.removesuffix(" [A]").replace("[A]", answer).replace("[B]", foil)
        described.append({**_flipped(prompt, answer, foil), "cluster": texts[index % len(texts)]})
    return task_of(described, "The answer is the person named once.", n, name=name or stem(path), seed=seed)


def _of_prompt(row: Row) -> dict[str, Any]:
    prompt, answer = row.text("prompt"), row.text("answer").strip()
    count = Counter(NAME.findall(prompt))
    twice = [word for word, times in count.items() if times == 2 and word != answer]
    if count[answer] != 1 or len(twice) != 1:
        raise row.wrong(
            f"prompt {prompt!r} with answer {answer!r}: the answer must stand in it once, and one other name twice "
            f"(found {answer}: {count[answer]}, twice: {', '.join(twice) or 'none'})"
        )
    return _flipped(prompt, answer, twice[0])


def _flipped(prompt: str, answer: str, foil: str) -> dict[str, Any]:
    """The prompt, and the same with the other name in the last place of `foil`."""
    mentions = [found.span() for found in re.finditer(rf"\b{re.escape(foil)}\b", prompt)]
    once = re.search(rf"\b{re.escape(answer)}\b", prompt)
    start, stop = mentions[-1]
    corrupt = prompt[:start] + answer + prompt[stop:]
    spans: Spans = {"s1": mentions[0], "s2": (start, stop)} | ({} if once is None else {"io": once.span()})
    return {
        "clean": prompt,
        "corrupt": corrupt,
        "answer": f" {answer}",
        "foil": f" {foil}",
        "positions": spans,
        "corrupt_positions": {**spans, "s2": (start, start + len(answer))},
    }


def _checked(row: Row, text: Any) -> str:
    if not isinstance(text, str) or not text.endswith(" [A]") or text.count("[B]") != 2:
        raise row.wrong(f"template {text!r}: [B] twice and [A] as its last word were expected")
    return text
