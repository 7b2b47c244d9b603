"""Assemble: findings and verdicts as a report: data for every figure, raw values as artifacts, how to run it again."""

import json
import platform
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import cutaway.report.schema as schema
from cutaway import engine, lenses
from cutaway.artifacts import canonical, plain
from cutaway.claims import ClaimResult, Ledger
from cutaway.engine import Run
from cutaway.models import Model, Site
from cutaway.models.audit import table as audit_table
from cutaway.patching import Effects
from cutaway.report import StudyReport, claim_card
from cutaway.stats import mean_interval
from cutaway.loop.identify import Behavior, Candidate, Findings, role_of
from cutaway.loop.propose import Proposal
from cutaway.tasks import Task, metric_named, names

N_EXAMPLES, N_PATTERNS = 4, 2
GAP_SHARE = "share of the clean-corrupt gap"
_ABLATED = {"resample": "its output on another prompt", "mean": "its mean over the prompts"}
LIMITS = (
    "Effects are total effects: a part whose work others take over when it is gone looks less needed than it is.",
    "Ablation stays within the values that the task's prompts give; other choices (zero, other text) can give other numbers.",
    "What was found holds for the prompts of this task and the templates that its clusters stand for, not beyond.",
    "Attention weights and the logit lens are descriptions; only the claims were tested.",
)


@dataclass(frozen=True)
class Assembled:
    """A report's data and the raw files beside it."""

    report: StudyReport
    artifacts: Mapping[str, bytes]


def assemble(
    model: Model,
    task: Task,
    shown: Behavior,
    check: schema.BehaviorCheck,
    findings: Findings,
    chosen: Sequence[Candidate],
    proposals: Sequence[Proposal],
    results: Sequence[ClaimResult],
    options: Mapping[str, Any],
    seconds: float,
) -> Assembled:
    """The report of a study, section by section, and its artifacts by name."""
    artifacts = {f"claim-{i}.json": (canonical(r.record) + "\n").encode() for i, r in enumerate(results)}
    artifacts |= _raw(findings, task, model, options)
    texts = _texts(model, task)
    cards = [claim_card(p.name, r.record, artifact=f"claim-{i}.json", texts=texts) for i, (p, r) in enumerate(zip(proposals, results))]
    command, python = rerun_lines(model, task, options)
    report = StudyReport(
        title=f"{task.name} in {model.name}",
        sentence=sentence(proposals, results, task.name),
        model=model_card(model),
        task=task_card(task),
        behavior=check,
        examples=examples(model, shown, task),
        position_map=position_map(findings.residual),
        head_map=head_map(findings),
        mlps=mlps(findings),
        attribution=attribution(findings),
        attention=attention(model, shown, chosen, findings),
        lens=lens(findings, shown),
        claims=cards,
        plan=_cost(model, shown, findings, seconds),
        rerun=schema.Rerun(command=command, python=python, note="Other machines and library versions round differently; `cutaway verify --rerun` says which numbers moved, and by how much."),
        limits=LIMITS if chosen else (*LIMITS, "No single head or MLP reached a tenth of the gap, so no claim was made."),
        environment=environment(model, int(options["seed"])),
    )
    return Assembled(report, artifacts)


def ledger_lines(ledger: Ledger) -> Iterator[str]:
    """The ledger's export, line by line."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "claims.jsonl"
        ledger.export(path)
        yield from path.read_text(encoding="utf-8").splitlines()


def sentence(proposals: Sequence[Proposal], results: Sequence[ClaimResult], task: str) -> str:
    """What was found, in one sentence."""
    main = [(p, r.verdict) for p, r in zip(proposals, results) if p.role == "component"]
    supported = [p.name for p, v in main if v == "supported"]
    other = [f"{p.name} ({v})" for p, v in main if v != "supported"]
    if not main:
        return f"No single head or MLP carries the {task} behavior by itself."
    found = f"{' and '.join(supported)} cause{'s' if len(supported) == 1 else ''} the {task} behavior, on prompts that nothing was tuned on." if supported else f"No component was confirmed for the {task} behavior."
    return found + (f" Not supported: {', '.join(other)}." if other else "")


# -- cards


def model_card(model: Model) -> schema.ModelCard:
    body = model.body
    return schema.ModelCard(
        name=model.name,
        digest=model.digest,
        architecture=type(model.module).__name__,
        n_parameters=sum(p.numel() for p in model.module.parameters()),
        n_layers=body.n_layers,
        n_heads=body.n_heads or 0,
        n_kv_heads=body.n_kv_heads or 0,
        d_model=body.d_model,
        d_head=body.d_head or 0,
        d_mlp=body.d_mlp,
        d_vocab=body.d_vocab or 0,
        dtype=str(model.dtype).removeprefix("torch."),
        device=str(model.device),
        audit=audit_rows(model),
    )


def audit_rows(model: Model) -> list[schema.AuditRow]:
    """One row a kind: the worst of its layers."""
    rank = {"verified": 0, "structural": 1, "refused": 2}
    worst: dict[str, dict[str, Any]] = {}
    for row in audit_table(model):
        kind = str(row["site"]).split(".")[0]
        if kind not in worst or rank[str(row["status"])] > rank[worst[kind]["status"]]:
            error = worst.get(kind, row)["error"]
            worst[kind] = {**row, "error": error}
        worst[kind]["error"] = max((e for e in (worst[kind]["error"], row["error"]) if e is not None), default=None)
    return [schema.AuditRow(site=kind, status=row["status"], detail=row["reason"], error=row["error"]) for kind, row in worst.items()]


def task_card(task: Task) -> schema.TaskCard:
    metric = metric_named(task.metric)
    splits = []
    for name in ("explore", "calibrate", "confirm"):
        if task.splits.get(name):
            part = task.split(name)
            splits.append(schema.SplitCount(name=name, n_pairs=len(part), n_clusters=len(part.clusters)))
    card = schema.MetricCard(name=metric.name, unit=metric.unit, sign=1 if metric.sign > 0 else -1, doc=metric.doc)
    return schema.TaskCard(name=task.name, description=task.description, digest=task.digest, metric=card, splits=splits, roles=task.roles)


def examples(model: Model, shown: Behavior, task: Task) -> list[schema.Example]:
    """A few pairs, from as many clusters as there are."""
    batch = shown.batch
    first = {cluster: i for i, cluster in reversed(list(enumerate(batch.clusters)))}
    rows = sorted(first.values())[:N_EXAMPLES]
    found = []
    for i in rows:
        clean, corrupt = batch.clean.row(i), batch.corrupt.row(i)
        end = batch.clean.roles["end"][i] + 1
        clean, corrupt = clean[:end], corrupt[:end]
        found.append(
            schema.Example(
                id=batch.ids[i],
                cluster=batch.clusters[i],
                split="explore",
                clean=model.strings(clean),
                corrupt=model.strings(corrupt),
                differing=[p for p, (a, b) in enumerate(zip(clean, corrupt)) if a != b],
                positions=[schema.NamedPosition(role=role, index=where[i]) for role, where in batch.clean.roles.items()],
                answer="".join(model.strings(batch.answers[i])),
                foil="".join(model.strings(batch.foils[i])),
                clean_metric=shown.clean[i] * batch.metric.sign,
                corrupt_metric=shown.corrupt[i] * batch.metric.sign,
            )
        )
    return found


def environment(model: Model, seed: int) -> schema.Environment:
    return schema.Environment(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        cutaway=_version("cutaway"),
        python=platform.python_version(),
        torch=torch.__version__,
        transformers=_version("transformers"),
        platform=f"{platform.system()} {platform.machine()}",
        device=str(model.device),
        threads=torch.get_num_threads(),
        seed=seed,
        packages={name: _version(name) for name in ("numpy", "scipy", "safetensors", "tokenizers")},
    )


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed as a package"


# -- figures


def position_map(residual: Effects) -> schema.EffectMap:
    """Residual states by named position, denoised."""
    places = [label.split("@") for label in residual.labels]
    rows, columns = list(dict.fromkeys(p[0] for p in places)), list(dict.fromkeys(p[1] for p in places))
    share, half = residual.share(), _half_widths(residual)
    at = {(row, column): i for i, (row, column) in enumerate(map(tuple, places))}
    return schema.EffectMap(
        title="Where the answer is carried",
        sentence="Each cell puts the clean run's residual stream, at one layer and one named position, into the corrupt run. "
        "1: this state alone brings the answer back; 0: it changes nothing; below 0: it makes things worse.",
        unit=GAP_SHARE,
        row_axis="residual state",
        column_axis="position",
        rows=rows,
        columns=columns,
        values=[[float(share[at[(r, c)]]) for c in columns] for r in rows],
        half_widths=[[half[at[(r, c)]] for c in columns] for r in rows],
        n_examples=len(residual.ids),
    )


def head_map(findings: Findings) -> schema.EffectMap | None:
    """Heads by layer, resample-ablated on the clean run."""
    heads = [(i, Site.parse(label)) for i, label in enumerate(findings.ablated.labels) if label.startswith("z.")]
    if not heads:
        return None
    share, half = findings.ablated.share(), _half_widths(findings.ablated)
    layers, units = sorted({s.layer for _, s in heads}), sorted({s.unit for _, s in heads})  # type: ignore[type-var]
    at = {(s.layer, s.unit): i for i, s in heads}
    return schema.EffectMap(
        title="Which heads are needed",
        sentence=f"Each cell replaces one head's output in the clean run by {_ABLATED[findings.ablation]}. "
        "1: the behavior is lost as if the prompt were corrupt; 0: the head does not matter; below 0: it works against the behavior.",
        unit=GAP_SHARE,
        row_axis="layer",
        column_axis="head",
        rows=[str(layer) for layer in layers],
        columns=[str(unit) for unit in units],
        values=[[float(share[at[(layer, unit)]]) for unit in units] for layer in layers],
        half_widths=[[half[at[(layer, unit)]] for unit in units] for layer in layers],
        n_examples=len(findings.ablated.ids),
    )


def mlps(findings: Findings) -> schema.EffectSeries | None:
    share, half = findings.ablated.share(), _half_widths(findings.ablated)
    items = [
        schema.LabelledEffect(label=label, value=float(share[i]), half_width=half[i])
        for i, label in enumerate(findings.ablated.labels)
        if label.startswith("mlp_out")
    ]
    if not items:
        return None
    text = f"Each bar replaces one MLP's output in the clean run by {_ABLATED[findings.ablation]}; signs as for the heads."
    return schema.EffectSeries(title="Which MLPs are needed", sentence=text, unit=GAP_SHARE, items=items)


def attribution(findings: Findings) -> schema.Attribution | None:
    """Gradient estimates beside exact patching, for every head and MLP."""
    if findings.estimated is None:
        return None
    exact = dict(zip(findings.denoised.labels, findings.denoised.share().tolist()))
    points = [
        schema.AttributionPoint(label=label, estimate=value, exact=exact[label])
        for label, value in zip(findings.estimated.labels, findings.estimated.share().tolist())
        if label in exact
    ]
    x, y = (torch.tensor([getattr(p, name) for p in points]) for name in ("estimate", "exact"))
    defined = len(points) > 2 and float(x.std()) > 0 and float(y.std()) > 0
    return schema.Attribution(
        title="How far a gradient would have got",
        sentence="Each point is a head or an MLP: its effect by attribution patching (two forward passes and one backward for all of them) "
        "against its exact effect by patching. On the diagonal the estimate is right.",
        unit=GAP_SHARE,
        correlation=max(-1.0, min(1.0, float(torch.corrcoef(torch.stack([x, y]))[0, 1]))) if defined else None,
        points=points,
    )


def attention(model: Model, shown: Behavior, chosen: Sequence[Candidate], findings: Findings) -> list[schema.AttentionHead]:
    """Patterns of the candidate heads on a few clean prompts."""
    heads = [c.site for c in chosen if c.site.kind == "z"]
    if not heads or findings.scores is None:
        return []
    rows = list(range(min(N_PATTERNS, shown.batch.n)))
    patterns = lenses.attention_patterns(model, shown.batch.clean, heads, rows=rows)
    found = []
    for i, site in enumerate(heads):
        cards = [schema.AttentionExample(id=shown.batch.ids[r], tokens=patterns.tokens[k], weights=_weights(patterns.values[i, k], len(patterns.tokens[k]))) for k, r in enumerate(rows)]
        role = role_of(site, findings.scores)
        found.append(schema.AttentionHead(site=patterns.labels[i], sentence=f"{site} {role or 'has no pattern with a name'}.", examples=cards))
    return found


def _weights(pattern: Tensor, n: int) -> list[list[float]]:
    return [[min(1.0, max(0.0, round(w, 6))) for w in row] for row in pattern[:n, :n].tolist()]


def lens(findings: Findings, shown: Behavior) -> schema.LensReadout | None:
    """Logit lens at the answer position, averaged over the pairs, with top tokens of the first."""
    found = findings.lens
    if found is None:
        return None
    layers = []
    for i, label in enumerate(found.labels):
        interval = mean_interval(found.difference[i].double().numpy(), list(found.clusters))
        top = [schema.TopToken(token=found.texts.get(int(t), str(int(t))), prob=_share(float(p))) for t, p in zip(found.top_ids[i, 0], found.top_probabilities[i, 0])]
        answer = float(found.probability[i].mean())
        ratio = (found.probability[i].double() * torch.exp(-found.difference[i].double())).mean()
        layers.append(
            schema.LensLayer(
                label=label,
                metric=schema.Estimate(value=interval.estimate, low=_bound(interval.low), high=_bound(interval.high)),
                answer_prob=_share(answer),
                foil_prob=_share(float(ratio)),
                top=top,
            )
        )
    return schema.LensReadout(
        sentence="What the model would say if its last block put out this layer's residual state. Logit of the answer minus logit of the foil (nat), mean over clean prompts.",
        n_examples=len(found.ids),
        layers=layers,
        example=found.ids[0],
        answer=found.texts.get(shown.batch.answers[0][0]),
    )


def _share(value: float) -> float:
    return min(1.0, max(0.0, value))


def _bound(value: float) -> float | None:
    return value if abs(value) < float("inf") else None


def _half_widths(effects: Effects) -> list[float]:
    """Half width of the cluster interval of each cell, as a share of the mean gap."""
    gap = abs(float(effects.gap.mean()))
    found = []
    for row in effects.raw.double():
        interval = mean_interval(row.numpy(), list(effects.clusters))
        width = (interval.high - interval.low) / 2 / gap
        found.append(width if width < float("inf") else 0.0)
    return found


# -- raw data and how to run again


def _raw(findings: Findings, task: Task, model: Model, options: Mapping[str, Any]) -> dict[str, bytes]:
    parts: dict[str, Any] = {"residual": findings.residual, "denoised": findings.denoised, "ablated": findings.ablated}
    parts |= {name: part for name, part in (("estimated", findings.estimated), ("lens", findings.lens), ("scores", findings.scores)) if part is not None}
    found = {f"{name}.safetensors": _bytes(part.save) for name, part in parts.items()}
    found["task.jsonl"] = _bytes(task.save)
    found["study.json"] = (json.dumps(plain({"model": model.name, "task": task.name, **options}), sort_keys=True) + "\n").encode()
    return found


def _bytes(save: Callable[[Path], Any]) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "artifact"
        save(path)
        return path.read_bytes()


def rerun_lines(model: Model, task: Task, options: Mapping[str, Any]) -> tuple[str, str]:
    """The command and the Python that do the same study."""
    seed = options["seed"]
    if task.name in names() and task.seed is not None:
        command = f"cutaway study {task.name} --model {model.name} --n {len(task)} --seed {seed}"
        made = f"cutaway.tasks.get({task.name!r}, model, n={len(task)}, seed={seed})"
    else:
        command = f"cutaway study {task.name}.jsonl --model {model.name} --seed {seed}"
        made = f"cutaway.tasks.Task.load('{task.name}.jsonl')"
    extra = "".join(f", {key}={value!r}" for key, value in options.items() if key != "seed" and value != {"n_candidates": 3, "alpha": 0.05, "minimum_gap": None}[key])
    python = f"import cutaway\n\nmodel = cutaway.load({model.name!r})\ntask = {made}\ncutaway.study(model, task, out='report', seed={seed}{extra})"
    return command, python


def _texts(model: Model, task: Task) -> dict[str, str]:
    return {pair.id: pair.clean if isinstance(pair.clean, str) else " ".join(model.strings(pair.clean)) for pair in task.pairs}


def _cost(model: Model, shown: Behavior, findings: Findings, seconds: float) -> schema.PlanSummary:
    """What the largest sweep cost, as the planner counts."""
    runs = [Run(shown.batch.corrupt, (Site.parse(label).scale(0.5),), logits=shown.batch.logits) for label in findings.residual.labels]
    explained = engine.plan(model, runs).explain()
    full = max(1, len(shown.batch.corrupt) * shown.batch.corrupt.width * model.body.n_layers)
    return schema.PlanSummary(
        explain=f"Residual sweep ({len(runs)} cells): {explained}",
        passes=explained.planned / full,
        naive_passes=explained.naive / full,
        seconds=round(seconds, 1),
    )
