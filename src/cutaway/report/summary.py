"""What a study's report says in words, as functions of its cards: the headline, the task and the fixed limits."""

from collections.abc import Sequence

from cutaway.report import schema
from cutaway.tasks import SPLITS, SplitName, Task, metric_named

LIMITS = (
    "Effects are total effects: a part whose work others take over when it is gone looks less needed than it is.",
    "Ablation stays within the values that the task's prompts give; other choices (zero, other text) differ.",
    "What was found holds for the prompts of this task and the templates that its clusters stand for, not beyond.",
    "Attention weights and the logit lens are descriptions; only the claims were tested.",
)
"""Stand in the report of every study."""
EARLIER = "earlier "
"""Begins the name of a card that an earlier study of the same model and task left in the ledger."""
DECOY = "(A decoy"
"""Stands in the sentence of a claim that is made to fail."""


def headline(cards: Sequence[schema.ClaimCard], task: str) -> str:
    """What was found, in one sentence: the claims about one component, by verdict."""
    main = [(card.subject[0], card.verdict) for card in cards if _about_a_component(card)]
    if not main:
        return f"No single head or MLP carries the {task} behavior by itself."
    supported = [name for name, verdict in main if verdict == "supported"]
    other = [f"{name} ({verdict})" for name, verdict in main if verdict != "supported"]
    verb = "causes" if len(supported) == 1 else "cause"
    found = f"No component was confirmed for the {task} behavior."
    if supported:
        found = f"{' and '.join(supported)} {verb} the {task} behavior, on prompts that nothing was tuned on."
    return found + (f" Not supported: {', '.join(other)}." if other else "")


def _about_a_component(card: schema.ClaimCard) -> bool:
    """No set of components, no decoy, no side effect, and of this study."""
    return (
        len(card.subject) == 1
        and DECOY not in card.sentence
        and any(part.name != "specific" for part in card.predictions)
        and not card.id.startswith(EARLIER)
    )


def task_card(task: Task) -> schema.TaskCard:
    """The behavior, as it is shown."""
    metric = metric_named(task.metric)
    parts: list[tuple[SplitName, Task]] = [(name, task.split(name)) for name in SPLITS if task.splits[name]]
    return schema.TaskCard(
        name=task.name,
        description=task.description,
        digest=task.digest,
        metric=schema.MetricCard(name=metric.name, unit=metric.unit, sign=1 if metric.sign > 0 else -1, doc=metric.doc),
        splits=tuple(
            schema.SplitCount(name=name, n_pairs=len(part), n_clusters=len(part.clusters)) for name, part in parts
        ),
        roles=task.roles,
    )
