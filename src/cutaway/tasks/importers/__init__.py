"""Importers: data sets in the shapes in which the field keeps them, as tasks or labelled texts. One function a shape.

`cutaway.tasks.read(path)` finds the function by the file's columns; docs/formats/importers.md has a line for each.
"""

from cutaway.tasks.importers.behaviors import behavior_texts, behaviors
from cutaway.tasks.importers.blimp import blimp, blimp_one_prefix
from cutaway.tasks.importers.counterfactuals import counterfactuals
from cutaway.tasks.importers.facts import known_facts, ravel, relation
from cutaway.tasks.importers.names import ioi_prompts, ioi_templates
from cutaway.tasks.importers.pronouns import winobias, winogenerated
from cutaway.tasks.importers.questions import truthfulqa, truthfulqa_answers
from cutaway.tasks.importers.recognise import read, read_task
from cutaway.tasks.importers.statements import labelled, scenarios, sentiment, statements
from cutaway.tasks.importers.word_pairs import word_pairs

__all__ = [
    "behavior_texts",
    "behaviors",
    "blimp",
    "blimp_one_prefix",
    "counterfactuals",
    "ioi_prompts",
    "ioi_templates",
    "known_facts",
    "labelled",
    "ravel",
    "read",
    "read_task",
    "relation",
    "scenarios",
    "sentiment",
    "statements",
    "truthfulqa",
    "truthfulqa_answers",
    "winobias",
    "winogenerated",
    "word_pairs",
]
