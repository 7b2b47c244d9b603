"""Tasks: behaviors as data. Aligned clean/corrupt pairs, answer and foil, named positions, metric, clusters, splits.

>>> from cutaway import tasks
>>> tasks.names()
('induction', 'ioi', 'pronoun')
"""

from cutaway.tasks.align import Aligned, align_pair, vocabulary_digest
from cutaway.tasks.batch import Batch
from cutaway.tasks.builtin import describe, get, names
from cutaway.tasks.builtin.induction import induction
from cutaway.tasks.builtin.ioi import ioi
from cutaway.tasks.builtin.pronoun import pronoun
from cutaway.tasks.metric import METRICS, Metric, metric_named
from cutaway.tasks.pair import SHARES, SPLITS, Pair, SplitName, assign_splits
from cutaway.tasks.task import Task

__all__ = [
    "METRICS",
    "SHARES",
    "SPLITS",
    "Aligned",
    "Batch",
    "Metric",
    "Pair",
    "SplitName",
    "Task",
    "align_pair",
    "assign_splits",
    "describe",
    "get",
    "induction",
    "ioi",
    "metric_named",
    "names",
    "pronoun",
    "vocabulary_digest",
]
