"""Inference for interventions on templated prompts: the unit of analysis is the cluster, never the prompt.

Prompts of one template share their words, so they share their luck. On data with an intraclass correlation of 0.3 and
20 prompts a template, an interval over prompts rejects a true null in about half of all studies; the intervals here
reject it in about one of twenty. `tests/stats` measures both.
"""

from cutaway.stats.cluster import (
    ClusterTable,
    Interval,
    by_cluster,
    clusters_needed,
    mean_interval,
    ratio_interval,
    require_clusters,
    share_interval,
    skewed_interval,
)
from cutaway.stats.multiple import holm
from cutaway.stats.permutation import control_p, sign_flip
from cutaway.stats.power import Outlook, clusters_for_power, clusters_to_decide, outlook

__all__ = [
    "ClusterTable",
    "Interval",
    "Outlook",
    "by_cluster",
    "clusters_for_power",
    "clusters_needed",
    "clusters_to_decide",
    "control_p",
    "holm",
    "mean_interval",
    "outlook",
    "ratio_interval",
    "require_clusters",
    "share_interval",
    "sign_flip",
    "skewed_interval",
]
