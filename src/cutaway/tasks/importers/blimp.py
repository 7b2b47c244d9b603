"""Minimal pairs of sentences (BLiMP, Warstadt et al. 2020): which of two does the model find more likely?

    good    Who should Ann hug after meeting Bob?          prompt   \\nWho should Ann hug
    bad     Who should Ann hug Bob after meeting?          answer    after meeting Bob?     foil    Bob after meeting?

The prompt is what the two share, answer and foil are what is left of each; scored as sequences. As both follow the same
prompt, log p(answer) - log p(foil) is exactly log p(good) - log p(bad), BLiMP's own criterion. Every prompt begins with
an opening, so that sentences that differ from their first word on have a prompt too.

One prompt has no corrupt: clean and corrupt are the same, there is nothing to patch, and the task serves accuracy, and
interventions measured by their side effects. `blimp_one_prefix` makes counterfactual pairs of the same data.
"""

from collections import defaultdict
from pathlib import Path
from typing import Any

from cutaway.errors import UsageError, did_you_mean
from cutaway.models.model import Model
from cutaway.tasks.build import completed, located
from cutaway.tasks.counterpart import Item, counterparts, measure, task_of
from cutaway.tasks.rows import Row, read_rows, stem
from cutaway.tasks.task import Task

GOOD, BAD, PARADIGM = "sentence_good", "sentence_bad", "UID"


def blimp(
    path: Path | str, *, paradigm: str | None = None, opening: str = "\n", name: str | None = None, seed: int = 0
) -> Task:
    """Whole-sentence scores: log p(good) - log p(bad), in nat.

    Clusters are the paradigms; within one paradigm each pair is its own, and intervals then speak of this paradigm's
    sentences. Raises BadTaskFile; UsageError for a paradigm that the file does not have.
    """
    rows, title, total = _rows(path, paradigm)
    described = []
    for row in rows:
        shared, good, bad = _parted(row)
        prompt = opening + " ".join(shared)
        space = " " if shared else ""
        described.append(
            {
                "clean": prompt,
                "corrupt": prompt,
                "answer": space + " ".join(good),
                "foil": space + " ".join(bad),
                "cluster": _cluster(row, paradigm, len(described)),
            }
        )
    label = name or title
    text = "Minimal pairs of sentences: the answer completes the acceptable one. Both follow the same prompt."
    if len(rows) < total:
        text = f"{text} {total - len(rows)} of {total} rows whose two sentences are the same are left out."
    return located(
        rows,
        lambda: Task(label, text, completed(described, name=label, seed=seed, rows=rows), "logprob_diff", seed=seed),
    )


def blimp_one_prefix(
    path: Path | str,
    *,
    paradigm: str | None = None,
    opening: str = "\n",
    model: Model | None = None,
    name: str | None = None,
    seed: int = 0,
) -> Task:
    """Counterfactual pairs by the one-prefix method: after the shared words, the good next word against the bad one.

    The corrupt prompt is that of another pair of the paradigm in which the two words have changed places ("herself"
    good and "himself" bad, and the reverse), so that corrupt leads to the foil. Rows without such a pair are left out
    and counted in the description. Raises as `blimp`, and DataError when no row has one.
    """
    rows, title, total = _rows(path, paradigm)
    length = measure(model)
    groups: dict[tuple[Any, ...], list[tuple[str, str, str]]] = defaultdict(list)
    for row in rows:
        shared, good, bad = _parted(row)
        words = [(" " if shared else "") + part[0].rstrip(".,;:?!") for part in (good, bad)]
        key = (row.values.get(PARADIGM), bool(shared), *sorted(words))
        groups[key].append((opening + " ".join(shared), words[0], words[1]))
    described = []
    for number, (key, group) in enumerate(sorted(groups.items(), key=lambda item: str(item[0]))):
        items = [Item(prompt, good, f"{number}-{i}", length(prompt)) for i, (prompt, good, _) in enumerate(group)]
        partners, clusters = counterparts(items, seed=seed)
        described += [
            {"clean": prompt, "corrupt": group[other][0], "answer": good, "foil": bad, "cluster": clusters[i]}
            for i, ((prompt, good, bad), other) in enumerate(zip(group, partners))
            if other is not None and key[-1] != key[-2]
        ]
    text = "After the words that two sentences share: the next word of the acceptable one against that of the other."
    return task_of(described, text, total, name=name or title, seed=seed)


def _rows(path: Path | str, paradigm: str | None) -> tuple[list[Row], str, int]:
    """Rows of the paradigm (None: all) whose sentences differ, what to call them, and how many there were."""
    rows = read_rows(path)
    chosen = [row for row in rows if paradigm in (None, row.values.get(PARADIGM))]
    if not chosen:
        known = {str(row.values.get(PARADIGM)) for row in rows}
        raise UsageError(f"paradigm {paradigm!r}: {path} has none of it.{did_you_mean(str(paradigm), known)}")
    differing = [row for row in chosen if row.text(GOOD).split() != row.text(BAD).split()]
    if not differing:
        raise chosen[0].wrong(f"{GOOD} and {BAD} are the same sentence here and in every row; a pair differs")
    return differing, paradigm or stem(path), len(chosen)


def _parted(row: Row) -> tuple[list[str], list[str], list[str]]:
    """The first words that both sentences have, and the rest of each, at least a word."""
    good, bad = (row.text(column).split() for column in (GOOD, BAD))
    shared = 0
    while shared < min(len(good), len(bad)) - 1 and good[shared] == bad[shared]:
        shared += 1
    return good[:shared], good[shared:], bad[shared:]


def _cluster(row: Row, paradigm: str | None, index: int) -> str:
    named = str(row.values.get(PARADIGM, "")) if paradigm is None else ""
    return named or f"{row.values.get('pairID', index)}"
