"""Assemble: findings and verdicts as a report: data for every figure, raw values as artifacts, how to run it again."""

import platform
import shlex
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from cutaway import engine
from cutaway.artifacts import canonical, digest
from cutaway.claims import Ledger
from cutaway.claims.registration import code
from cutaway.engine import Run
from cutaway.errors import CutawayError
from cutaway.loop import figures
from cutaway.loop.confirm import Tested
from cutaway.loop.identify import Behavior, Candidate, Findings, candidates
from cutaway.loop.options import Options
from cutaway.loop.propose import SIDE_EFFECT, breakable, untested
from cutaway.models import Model, Site, embedded_names
from cutaway.models.audit import table as audit_table
from cutaway.report import LIMITS, StudyReport, claim_card, headline, schema, task_card, unshown
from cutaway.report import figures as maps
from cutaway.report.summary import EARLIER
from cutaway.tasks import Task, get, names

N_EXAMPLES = 4
"""Prompt pairs that are shown token by token."""
RERUN_NOTE = "Other machines and versions round differently; cutaway verify --rerun says which numbers moved."


@dataclass(frozen=True)
class Evidence:
    """All that a study found."""

    model: Model
    task: Task
    shown: Behavior
    check: schema.BehaviorCheck
    findings: Findings
    chosen: tuple[Candidate, ...]
    tested: tuple[Tested, ...]
    options: Options
    ledger: Ledger

    @property
    def named(self) -> list[tuple[str, Mapping[str, Any]]]:
        """Every claim's name and record: those of this study, then what earlier ones left on this model and task."""
        own = [(t.proposal.name, t.result.record) for t in self.tested]
        plans = [record["plan"] for _, record in own]
        earlier = unshown(self.ledger.entries(), self.model.digest, self.task.digest, plans)
        return own + [(f"{EARLIER}{i}", entry.body) for i, entry in enumerate(earlier, start=1)]


def report_of(found: Evidence, seconds: float) -> StudyReport:
    """The report, section by section."""
    model, task, findings = found.model, found.task, found.findings
    texts = _texts(model, task)
    command, python = rerun_lines(model, task, found.options)
    named = enumerate(found.named)
    cards = tuple(claim_card(name, record, artifact=f"claim-{i}.json", texts=texts) for i, (name, record) in named)
    return StudyReport(
        title=f"{task.name} in {Path(model.name).name}",
        sentence=headline(cards, task.name),
        model=model_card(model),
        task=task_card(task),
        behavior=found.check,
        examples=examples(model, found.shown),
        position_map=maps.position_map(findings.residual),
        head_map=maps.head_map(findings.ablated),
        mlps=maps.mlps(findings.ablated),
        attribution=maps.attribution(findings.denoised, findings.estimated),
        attention=figures.attention(model, found.shown, found.chosen, findings),
        lens=figures.lens(findings, found.shown),
        claims=cards,
        plan=_cost(model, found.shown, findings, seconds),
        rerun=schema.Rerun(command=command, python=python, note=RERUN_NOTE),
        limits=(*LIMITS, *notes(found)),
        environment=environment(model, found.options.seed),
    )


def source_of(model: Model) -> dict[str, str]:
    """How to load the model again: its name, what kind of name that is, and its dtype."""
    kind = "hub"
    if model.name == type(model.module).__name__:
        kind = "memory"
    elif model.name in embedded_names():
        kind = "embedded"
    elif Path(model.name).expanduser().is_dir():
        kind = "folder"
    return {"name": model.name, "kind": kind, "dtype": str(model.dtype).removeprefix("torch.")}


def notes(found: Evidence) -> list[str]:
    """What could not be claimed, and why."""
    if not found.chosen:
        return ["No single head or MLP reached a tenth of the gap, so no claim was made."]
    said = []
    beside = untested(candidates(found.findings), list(found.chosen))
    if beside:
        names = ", ".join(f"{each.site} ({each.strength:.2f} of the gap)" for each in beside)
        said.append(
            f"No claim was made about {names}, though it did more on the explore split than a component that has one: "
            "too few components of its kind did clearly less, so there is nothing to compare it with."
        )
    if not breakable(found.findings):
        said.append(
            f"Side effects were not tested: exchanging a whole neutral prompt moves the model's prediction by only "
            f"{found.findings.neutral:.2g} nat, so a bound of {SIDE_EFFECT:g} nat could not have failed."
        )
    return said


def artifacts_of(found: Evidence) -> dict[str, bytes]:
    """Raw results by file name: every effect per example, every claim's record, the task and the options."""
    raw = vars(found.findings).items()
    made = {f"{name}.safetensors": _bytes(part.save) for name, part in raw if hasattr(part, "save")}
    made |= {f"claim-{i}.json": (canonical(record) + "\n").encode() for i, (_, record) in enumerate(found.named)}
    made["task.jsonl"] = _bytes(found.task.save)
    options = {"model": source_of(found.model), "task": found.task.name, **asdict(found.options)}
    made["study.json"] = (canonical(options) + "\n").encode()
    return made


def ledger_lines(ledger: Ledger) -> Iterator[str]:
    """The ledger's export, line by line."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "claims.jsonl"
        ledger.export(path)
        yield from path.read_text(encoding="utf-8").splitlines()


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


def audit_rows(model: Model) -> tuple[schema.AuditRow, ...]:
    """One row a kind: the worst status of its layers, and the largest error."""
    rank = ["verified", "structural", "refused"]
    kinds: dict[str, list[dict[str, Any]]] = {}
    for row in audit_table(model):
        kinds.setdefault(str(row["site"]).split(".")[0], []).append(row)
    found = []
    for kind, rows in kinds.items():
        worst = max(rows, key=lambda row: rank.index(row["status"]))
        errors = [float(row["error"]) for row in rows if row["error"] is not None]
        status, detail, error = worst["status"], worst["reason"], max(errors, default=None)
        found.append(schema.AuditRow(site=kind, status=status, detail=detail, error=error))
    return tuple(found)


def examples(model: Model, shown: Behavior) -> tuple[schema.Example, ...]:
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
                clean=tuple(model.strings(clean)),
                corrupt=tuple(model.strings(corrupt)),
                differing=tuple(p for p, (a, b) in enumerate(zip(clean, corrupt)) if a != b),
                positions=tuple(
                    schema.NamedPosition(role=role, index=where[i]) for role, where in batch.clean.roles.items()
                ),
                answer="".join(model.strings(batch.answers[i])),
                foil="".join(model.strings(batch.foils[i])),
                clean_metric=shown.clean[i] * batch.metric.sign,
                corrupt_metric=shown.corrupt[i] * batch.metric.sign,
            )
        )
    return tuple(found)


def environment(model: Model, seed: int) -> schema.Environment:
    return schema.Environment(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        cutaway=code()["version"],
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


# -- raw data and how to run again


def _bytes(save: Callable[[Path], Any]) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "artifact"
        save(path)
        return path.read_bytes()


def rerun_lines(model: Model, task: Task, options: Options) -> tuple[str, str]:
    """The command (to be run in the report's folder) and the Python that do the same study."""
    builtin = _is_builtin(model, task, options.seed)
    path = f"artifacts/{digest(_bytes(task.save))}.jsonl"
    named = ["cutaway", "study", *([task.name, "--n", str(len(task))] if builtin else [path])]
    made = f"cutaway.tasks.Task.load({path!r})"
    if builtin:
        made = f"cutaway.tasks.get({task.name!r}, model, n={len(task)}, seed={options.seed})"
    dtype = str(model.dtype).removeprefix("torch.")
    cast = [] if dtype == "float32" else [dtype]
    chosen = {key: value for key, value in asdict(options).items() if value != getattr(Options(), key)}
    flags = [word for key, value in chosen.items() for word in (f"--{key.replace('_', '-')}", str(value))]
    command = [*named, "--model", model.name, *(word for name in cast for word in ("--dtype", name)), *flags]
    lines = [
        "import cutaway",
        "",
        f"model = cutaway.load({', '.join([repr(model.name), *(f'dtype={name!r}' for name in cast)])})",
        f"task = {made}",
        f"cutaway.study(model, task, out='report'{''.join(f', {key}={value!r}' for key, value in chosen.items())})",
    ]
    return shlex.join(command), "\n".join(lines)


def _is_builtin(model: Model, task: Task, seed: int) -> bool:
    """The built-in task of this name, size and seed is exactly this one."""
    if task.name not in names():
        return False
    try:
        return get(task.name, model, n=len(task), seed=seed).digest == task.digest
    except CutawayError:
        return False


def _texts(model: Model, task: Task) -> dict[str, str]:
    return {
        pair.id: pair.clean if isinstance(pair.clean, str) else " ".join(model.strings(pair.clean))
        for pair in task.pairs
    }


def _cost(model: Model, shown: Behavior, findings: Findings, seconds: float) -> schema.PlanSummary:
    """What the largest sweep cost, as the planner counts."""
    runs = [
        Run(shown.batch.corrupt, (Site.parse(label).scale(0.5),), logits=shown.batch.logits)
        for label in findings.residual.labels
    ]
    explained = engine.plan(model, runs).explain()
    full = max(1, len(shown.batch.corrupt) * shown.batch.corrupt.width * model.body.n_layers)
    return schema.PlanSummary(
        explain=f"Residual sweep ({len(runs)} cells): {explained}",
        passes=explained.planned / full,
        naive_passes=explained.naive / full,
        seconds=round(seconds, 1),
    )
