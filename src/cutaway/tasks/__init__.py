"""Tasks: behaviors as data. Aligned clean/corrupt pairs, answer and foil, named positions, metric, clusters, splits.

>>> from cutaway import tasks
>>> len(tasks.names())
15
"""

from cutaway.tasks import importers
from cutaway.tasks.align import Aligned, align_pair, vocabulary_digest
from cutaway.tasks.batch import Batch
from cutaway.tasks.builtin import describe, get, names
from cutaway.tasks.builtin.addition import addition
from cutaway.tasks.builtin.agreement import agreement
from cutaway.tasks.builtin.alphabetical import alphabetical
from cutaway.tasks.builtin.antonym import antonym
from cutaway.tasks.builtin.brackets import brackets
from cutaway.tasks.builtin.facts import facts
from cutaway.tasks.builtin.greater_than import greater_than
from cutaway.tasks.builtin.induction import induction
from cutaway.tasks.builtin.ioi import ioi
from cutaway.tasks.builtin.pronoun import pronoun
from cutaway.tasks.builtin.refusal import refusal
from cutaway.tasks.builtin.rhyme import rhyme
from cutaway.tasks.builtin.sentiment import sentiment
from cutaway.tasks.builtin.translation import translation
from cutaway.tasks.builtin.truth import truth
from cutaway.tasks.fit import Fit, fit, fitted
from cutaway.tasks.importers import read, read_task
from cutaway.tasks.labelled import Labelled
from cutaway.tasks.metric import METRICS, Metric, metric_named
from cutaway.tasks.pair import SHARES, SPLITS, Pair, SplitName, assign_splits
from cutaway.tasks.task import Task

__all__ = [
    "METRICS",
    "SHARES",
    "SPLITS",
    "Aligned",
    "Batch",
    "Fit",
    "Labelled",
    "Metric",
    "Pair",
    "SplitName",
    "Task",
    "addition",
    "agreement",
    "align_pair",
    "alphabetical",
    "antonym",
    "assign_splits",
    "brackets",
    "describe",
    "facts",
    "fit",
    "fitted",
    "get",
    "greater_than",
    "importers",
    "induction",
    "ioi",
    "metric_named",
    "names",
    "pronoun",
    "read",
    "read_task",
    "refusal",
    "rhyme",
    "sentiment",
    "translation",
    "truth",
    "vocabulary_digest",
]
