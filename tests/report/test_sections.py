"""Sections against the data beside them: a report that was written again over kept data and ledger is found out."""

import json
import shutil
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from cutaway import report
from cutaway.artifacts import Provenance, canonical, digest
from cutaway.claims import Ledger
from cutaway.patching import Effects
from cutaway.report import figures, sections
from cutaway.report.schema import BehaviorCheck, ClaimCard, StudyReport
from tests.report import sample

N = 64
STATES = ("resid_pre.0", "resid_pre.1", "resid_post.1")
PARTS = ("z.0.h0", "z.0.h1", "mlp_out.0", "z.1.h0", "z.1.h1", "mlp_out.1")


def effects(labels: tuple[str, ...], method: str, on: str, shown: BehaviorCheck) -> Effects:
    """Effects of cells whose sizes go up, on the prompts of the behavior check."""
    chance = torch.Generator().manual_seed(len(labels))
    clean, corrupt = torch.tensor(shown.clean), torch.tensor(shown.corrupt)
    base, target = (clean, corrupt) if on == "clean" else (corrupt, clean)
    size = torch.linspace(-0.1, 0.9, len(labels)).unsqueeze(1) + 0.1 * torch.rand(len(labels), N, generator=chance)
    return Effects(
        labels, base + size * (target - base), clean, corrupt, on, method, "logit_diff", "nat", 1,
        shown.clusters, tuple(f"pronoun-{i:03d}" for i in range(N)), Provenance(sample.HASH, "data", "0"),
    )  # fmt: skip


@cache
def results() -> dict[str, dict[str, Any]]:
    """Two components, one that holds and one that does not, and a decoy."""
    import random

    rng = random.Random(2)
    made = {
        "z.1.h1": ("z.1.h1 carries it.", 0.7),
        "z.0.h1": ("z.0.h1 carries it.", 0.02),
        "decoy z.0.h0": ("z.0.h0 carries it. (A decoy: it did least on the explore split.)", 0.01),
    }
    return {
        name: sample.record(sentence, [name.split()[-1]], [sample.part(rng, "necessary", effect)])
        for name, (sentence, effect) in made.items()
    }


def ledger_lines(folder: Path, *more: dict[str, Any]) -> list[str]:
    """The ledger of the study, and of `more`: plans that ran before it."""
    ledger = Ledger(folder / "ledger.sqlite")
    for body in (*more, *(sample.plan(**found["claim"]) for found in results().values())):
        ledger.register(digest(body), body)
        known = next((one for one in results().values() if one["plan"] == digest(body)), None)
        earlier = sample.record(body["claim"]["sentence"], body["claim"]["subject"], []) | {"plan": digest(body)}
        ledger.append("result", digest(body), known or earlier)
    ledger.export(folder / "claims.jsonl")
    return (folder / "claims.jsonl").read_text(encoding="utf-8").splitlines()


def study() -> tuple[StudyReport, dict[str, bytes]]:
    """A report as a study writes it, every section from its raw values, and its artifacts."""
    plain = sample.study(n_layers=2, n_heads=2, claims=False)
    raw = {
        "residual": effects(
            tuple(f"{s}@{r}" for s in STATES for r in ("subject", "end")), "denoise", "corrupt", plain.behavior
        ),
        "denoised": effects(PARTS, "denoise", "corrupt", plain.behavior),
        "ablated": effects(PARTS[::-1], "resample", "clean", plain.behavior),
        "estimated": effects(PARTS, "attribution", "corrupt", plain.behavior),
    }
    cards = [report.claim_card(name, found, artifact=f"{name}.json") for name, found in results().items()]
    made = sample.study(
        n_layers=2, n_heads=2, title="pronoun in story-12l", sentence=report.headline(cards, "pronoun"),
        limits=report.LIMITS, claims=False, position_map=figures.position_map(raw["residual"]),
        head_map=figures.head_map(raw["ablated"]), mlps=figures.mlps(raw["ablated"]),
        attribution=figures.attribution(raw["denoised"], raw["estimated"]),
    )  # fmt: skip
    files = {f"{name}.json": canonical(found).encode() for name, found in results().items()}
    files["study.json"] = canonical({"model": {"name": "stories/story-12l"}, "seed": 0}).encode()
    with tempfile.TemporaryDirectory() as scratch:
        for name, part in raw.items():
            part.save(Path(scratch) / "x")
            files[f"{name}.safetensors"] = (Path(scratch) / "x").read_bytes()
        sample.made_task().save(Path(scratch) / "task")
        files["task.jsonl"] = (Path(scratch) / "task").read_bytes()
    return made.model_copy(update={"claims": tuple(cards)}), files


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("original")
    return report.write(place / "report", *study(), ledger_lines(place))


@pytest.fixture
def copy(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "report"))


def rewrite(copy: Path, change: Callable[[dict[str, Any]], object], without: tuple[str, ...] = ()) -> None:
    """Forge: write the report again over the same artifacts and ledger."""
    data = json.loads((copy / "report.json").read_text())
    change(data["study"])
    files = {e["name"]: (copy / e["path"]).read_bytes() for e in data["artifacts"] if e["name"] not in without}
    lines = (copy / "claims.jsonl").read_text().splitlines()
    report.write(copy, StudyReport.model_validate(data["study"]), files, lines)


def broken(folder: Path) -> list[str]:
    return [finding.name for finding in report.verify(folder).broken]


def test_an_honest_study_holds_and_every_section_was_compared(original: Path) -> None:
    found = report.verify(original)
    found.require()
    assert not [finding for finding in found.findings if "not checked" in finding.detail]
    assert report.load(original).study.sentence == (
        "z.1.h1 causes the pronoun behavior, on prompts that nothing was tuned on. Not supported: z.0.h1 (refuted)."
    )
    for section in ("position_map", "head_map", "mlps", "attribution"):
        assert getattr(report.load(original).study, section) is not None


def bump(place: str, *keys: Any) -> Callable[[dict[str, Any]], None]:
    """Add a tenth to a number."""

    def change(study: dict[str, Any]) -> None:
        at = study[place]
        for key in keys[:-1]:
            at = at[key]
        at[keys[-1]] = round(at[keys[-1]] - 0.1, 3)

    return change


def set_to(section: str, **values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda study: study[section].update(values)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda study: study["claims"].pop(1), ["claims", "headline"]),
        (lambda study: study["claims"].pop(2), ["claims"]),
        (lambda study: study.update(claims=[]), ["claims", "headline"]),
        (lambda study: study.update(sentence="z.1.h1 and z.0.h1 cause the pronoun behavior."), ["headline"]),
        (lambda study: study.update(title="gender in story-12l"), ["headline"]),
        (lambda study: study.update(limits=[]), ["limits"]),
        (set_to("model", name="stories/other"), ["model", "headline"]),
        (set_to("model", digest="f" * 64), ["model"]),
        (set_to("task", digest="f" * 64), ["task"]),
        (set_to("task", description="What everybody knows."), ["task"]),
        (lambda study: study["task"]["splits"][2].update(n_pairs=960), ["task"]),
        (lambda study: study["examples"][1].update(split="confirm"), ["task"]),
        (bump("position_map", "values", 1, 0), ["position_map"]),
        (bump("head_map", "values", 1, 1), ["head_map"]),
        (lambda study: study["head_map"]["half_widths"][0].__setitem__(0, 0.0), ["head_map"]),
        (set_to("head_map", sentence="All of these matter."), ["head_map"]),
        (lambda study: study.update(head_map=None), ["head_map"]),
        (bump("mlps", "items", 0, "value"), ["mlps"]),
        (lambda study: study["mlps"]["items"].pop(), ["mlps"]),
        (bump("attribution", "points", 2, "exact"), ["attribution"]),
        (set_to("attribution", correlation=0.5), ["attribution"]),
        (lambda study: study["claims"][1].update(id="decoy z.0.h1"), []),
    ],
)  # fmt: skip
def test_a_study_that_was_written_again_is_found_out(copy: Path, change: Any, named: list[str]) -> None:
    rewrite(copy, change)
    assert broken(copy) == named


def test_another_model_with_no_claims_is_seen_by_its_effects(copy: Path) -> None:
    def change(study: dict[str, Any]) -> None:
        study["model"].update(digest="f" * 64)
        study["claims"] = []

    rewrite(copy, change)
    assert "model" in broken(copy)


def test_behavior_values_that_fit_themselves_alone(copy: Path) -> None:
    def change(study: dict[str, Any]) -> None:
        old = study["behavior"]
        again = report.behavior_check(
            split="explore", clean=[value + 1 for value in old["clean"]], corrupt=old["corrupt"],
            clusters=old["clusters"], accuracy=old["accuracy"], threshold=old["threshold"],
        )  # fmt: skip
        study["behavior"] = again.model_dump(mode="json")

    rewrite(copy, change)
    assert broken(copy) == ["explore values"]


def test_what_is_not_there_is_said_not_to_be_checked(copy: Path) -> None:
    rewrite(copy, lambda study: None, without=("ablated.safetensors", "study.json", "task.jsonl"))
    found = {finding.name: finding.detail for finding in report.verify(copy).findings}
    assert report.verify(copy).holds
    for name in ("head_map", "mlps", "headline", "limits"):
        assert found[name].startswith("not checked")
    assert "not checked" in found["task"]
    assert "not checked" not in found["position_map"]


# -- the ledger's other results


def plan(sentence: str, **changed: Any) -> dict[str, Any]:
    return sample.plan(sentence, ["z.1.h1"]) | changed


@pytest.mark.parametrize(
    ("body", "named"),
    [
        (plan("z.1.h1 does all of it."), ["claims"]),
        (plan("z.1.h1 carries it.", search=1), []),
        (plan("z.1.h1 does all of it.", model={"name": "m", "digest": "e" * 64}), []),
        (plan("z.1.h1 does all of it.", task={"digest": "e" * 64}), []),
    ],
    ids=["another claim", "the same claim, registered before", "another model", "another task"],
)
def test_a_ledger_that_other_studies_wrote_too(tmp_path: Path, body: dict[str, Any], named: list[str]) -> None:
    folder = report.write(tmp_path / "report", *study(), ledger_lines(tmp_path, body))
    assert broken(folder) == named
    entries = Ledger(tmp_path / "ledger.sqlite").entries()
    plans = [found["plan"] for found in results().values()]
    missing = sections.unshown(entries, sample.HASH, sample.made_task().digest, plans)
    assert [entry.plan for entry in missing] == [digest(body)] * len(named)


def test_an_earlier_result_can_be_shown_and_then_holds(tmp_path: Path) -> None:
    import random

    body = plan("z.1.h1 does all of it.")
    made, files = study()
    found = sample.record("z.1.h1 does all of it.", ["z.1.h1"], [sample.part(random.Random(5), "necessary", 0.02)])
    assert found["plan"] == digest(body)
    ledger = Ledger(tmp_path / "ledger.sqlite")
    for one in (found, *results().values()):
        ledger.register(one["plan"], sample.plan(**one["claim"]))
        ledger.append("result", one["plan"], one)
    ledger.export(tmp_path / "claims.jsonl")
    lines = (tmp_path / "claims.jsonl").read_text(encoding="utf-8").splitlines()
    assert broken(report.write(tmp_path / "report", made, files, lines)) == ["claims"]
    card: ClaimCard = report.claim_card("earlier 1", found, artifact="earlier-1.json")
    shown = made.model_copy(update={"claims": (*made.claims, card)})
    files["earlier-1.json"] = canonical(found).encode()
    assert broken(report.write(tmp_path / "report", shown, files, lines)) == []
