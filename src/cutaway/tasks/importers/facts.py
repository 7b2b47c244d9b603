"""Facts: a subject in a template, the object that follows. The corrupt prompt names another subject of the relation.

    clean     The capital of France is   ->  Paris
    corrupt   The capital of Italy is    ->  Rome

Three shapes: relation files (Hernandez et al. 2024), the facts that a model knows (CounterFact, Meng et al. 2022), and
entities with attributes and prompts (RAVEL, Huang et al. 2024). Two subjects that are each other's counterparts are one
cluster, and position `subject` is the subject's last token.
"""

import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cutaway.errors import OutOfRange, UsageError, did_you_mean
from cutaway.models.model import Model
from cutaway.tasks.counterpart import Item, counterparts, measure, task_of
from cutaway.tasks.pair import SplitName
from cutaway.tasks.rows import Row, read_rows, stem
from cutaway.tasks.task import Task

RAVEL_SPLITS: dict[str, SplitName] = {"train": "explore", "val": "calibrate", "test": "confirm"}


class Fact(NamedTuple):
    """A subject, what follows its template, and the relation whose subjects may stand in for it."""

    subject: str
    object: str
    before: str
    """The template up to the subject."""
    after: str
    relation: str

    def item(self, length: Callable[[str], int]) -> Item:
        """What the search for its counterpart looks at."""
        size = length(self.before + self.subject + self.after)
        return Item(self.subject, self.object, self.subject, size, f"{self.before}{{}}{self.after}")


def relation(
    path: Path | str, *, template: int = 0, model: Model | None = None, name: str | None = None, seed: int = 0
) -> Task:
    """A relation file: `prompt_templates` and `samples` of subject and object.

    `template`: which of the templates. `model`: counterparts have prompts of equal length in its tokens; without it, in
    words. Raises BadTaskFile; OutOfRange for a template that is not there.
    """
    (row,) = read_rows(path)[:1]
    templates, samples = row.cell("prompt_templates"), row.cell("samples")
    if not isinstance(templates, list) or not isinstance(samples, list) or not samples or not templates:
        raise row.wrong("prompt_templates and samples are lists with at least one item; see docs/formats/importers.md")
    if not 0 <= template < len(templates):
        raise OutOfRange(f"template {template}: {path} has {len(templates)}, 0-{len(templates) - 1}", template=template)
    before, after = _parted(row, templates[template], "{}")
    rows = [row.below(sample, f"samples[{index}]") for index, sample in enumerate(samples)]
    facts = [Fact(one.text("subject"), one.text("object"), before, after, "") for one in rows]
    title = name or stem(path)
    return _task(title, f"{row.values.get('name', title)}: '{templates[template]}'.", facts, model, seed)


def known_facts(path: Path | str, *, model: Model | None = None, name: str | None = None, seed: int = 0) -> Task:
    """Facts that a model knows: rows with `subject`, `prompt`, `attribute` and `relation_id`.

    The corrupt prompt is the same prompt about another subject of the relation. Raises BadTaskFile.
    """
    facts = []
    for row in read_rows(path):
        subject, prompt = row.text("subject"), row.text("prompt")
        if subject not in prompt:
            raise row.wrong(f"the subject {subject!r} does not stand in the prompt {prompt!r}; correct one of them")
        before, _, after = prompt.partition(subject)
        facts.append(Fact(subject, row.text("attribute"), before, after, str(row.cell("relation_id"))))
    return _task(name or stem(path), "A fact about a subject: the answer is its attribute.", facts, model, seed)


def ravel(
    folder: Path | str,
    entity: str,
    attribute: str,
    *,
    model: Model | None = None,
    name: str | None = None,
    seed: int = 0,
) -> Task:
    """RAVEL entities: which `attribute` ('Country') has the `entity` ('city')? One prompt an entity, drawn by the seed.

    Reads `ravel_<entity>_entity_attributes.json`, `..._attribute_to_prompts.json`, `..._entity_to_split.json` and
    `..._prompt_to_split.json` in `folder`, each plain or gzipped. The data set's own splits are kept, for entities and
    prompts: train explores, val calibrates, test confirms. Raises BadTaskFile, and UsageError for an attribute that
    these entities do not have.
    """
    parts = ("entity_attributes", "attribute_to_prompts", "entity_to_split", "prompt_to_split")
    known, prompts, entities, texts = (_part(Path(folder), entity, part) for part in parts)
    if attribute not in prompts.values:
        raise UsageError(f"attribute {attribute!r}: {entity} has no such.{did_you_mean(attribute, prompts.values)}")
    templates: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for prompt in prompts.cell(attribute):
        templates[RAVEL_SPLITS[_split(texts, prompt)]].append(_parted(prompts, prompt, "%s"))
    chance = random.Random(f"ravel {seed}")
    facts, splits = [], []
    for subject in known.values:
        split = RAVEL_SPLITS[_split(entities, subject)]
        if not templates[split]:
            raise prompts.wrong(f"{attribute!r} has no prompt in the split of {subject!r}; add one")
        about = known.below(known.values[subject], repr(subject))
        facts.append(Fact(subject, about.text(attribute), *chance.choice(templates[split]), ""))
        splits.append(split)
    title = name or f"{entity}-{attribute}".replace(" ", "-").lower()
    return _task(title, f"The {attribute} of a {entity.replace('_', ' ')}.", facts, model, seed, splits)


def completion(prompt: str, word: str) -> tuple[str, str]:
    """A prompt and what follows it: the answer has the space, unless the prompt ends with an opening quote or bracket.

    >>> completion("He is ", "here"), completion('{"name": "', "Ann")
    (('He is', ' here'), ('{"name": "', 'Ann'))
    """
    prompt = prompt.rstrip()
    last = prompt[-1]
    opens = last in "([{/_" or (last == '"' and prompt.count('"') % 2 == 1)
    return prompt, word if opens else f" {word}"


def _task(
    name: str,
    description: str,
    facts: Sequence[Fact],
    model: Model | None,
    seed: int,
    splits: Sequence[SplitName] | None = None,
) -> Task:
    length = measure(model)
    groups: dict[tuple[str, str], list[int]] = defaultdict(list)
    for index, fact in enumerate(facts):
        groups[fact.relation, "" if splits is None else splits[index]].append(index)
    partners: list[int | None] = [None] * len(facts)
    clusters = [fact.subject for fact in facts]
    for rows in groups.values():
        found, homes = counterparts([facts[i].item(length) for i in rows], seed=seed)
        for i, other, home in zip(rows, found, homes):
            partners[i] = None if other is None else rows[other]
            clusters[i] = f"{facts[i].relation} {home}".strip()
    described = [
        {**_filled(facts[i], facts[j]), "cluster": clusters[i]} | ({} if splits is None else {"split": splits[i]})
        for i, j in enumerate(partners)
        if j is not None
    ]
    return task_of(described, description, len(facts), name=name, seed=seed)


def _filled(fact: Fact, other: Fact) -> dict[str, Any]:
    """The fact's template with its subject and with the other's."""
    start = len(fact.before)
    clean, answer = completion(fact.before + fact.subject + fact.after, fact.object)
    corrupt, foil = completion(fact.before + other.subject + fact.after, other.object)
    return {
        "clean": clean,
        "corrupt": corrupt,
        "answer": answer,
        "foil": foil,
        "positions": {"subject": (start, start + len(fact.subject))},
        "corrupt_positions": {"subject": (start, start + len(other.subject))},
    }


def _parted(row: Row, template: Any, slot: str) -> tuple[str, str]:
    """A template before and after the place of its subject."""
    if not isinstance(template, str) or template.count(slot) != 1:
        raise row.wrong(f"template {template!r}: a text with {slot} once was expected, where the subject stands")
    before, _, after = template.partition(slot)
    return before, after


def _part(folder: Path, entity: str, part: str) -> Row:
    names = [f"ravel_{entity}_{part}.json{ending}" for ending in ("", ".gz")]
    found = next((folder / name for name in names if (folder / name).exists()), folder / names[0])
    (row,) = read_rows(found)[:1]
    return row


def _split(row: Row, key: str) -> str:
    found = row.cell(key)
    if found not in RAVEL_SPLITS:
        raise row.wrong(f"{key!r} is in split {found!r}; {', '.join(RAVEL_SPLITS)} are known")
    return found
