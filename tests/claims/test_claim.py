"""A claim from freeze to verdict on a random model: registered, tested once, refused when anything changed."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cutaway import load
from cutaway.claims import (
    Claim,
    ClaimResult,
    FrozenClaim,
    Ledger,
    Mediates,
    Necessary,
    Specific,
    Sufficient,
    read_jsonl,
    registration,
    verdict,
)
from cutaway.errors import (
    BrokenEvidence,
    ClaimChanged,
    ClaimError,
    Misaligned,
    NoMinimumEffect,
    OutOfRange,
    SplitOpened,
    TooFewClusters,
    UnknownSite,
    UsageError,
)
from cutaway.tasks import Task
from tests.claims.toy import LOUD, MUTE, toy_model, toy_task

ALL = (Necessary(0.1), Sufficient(0.1), Mediates(0.1), Specific(0.05))


def claim(*subject: str, predictions: tuple = (Sufficient(0.1),), **options: Any) -> Claim:
    return Claim("This head carries the answer.", subject or (LOUD,), "toy", predictions, **options)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "ledger.sqlite")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[FrozenClaim, Ledger, ClaimResult]:
    """All four predictions, run once."""
    ledger = Ledger(tmp_path_factory.mktemp("claim") / "ledger.sqlite")
    frozen = claim(predictions=ALL).freeze(toy_model(), toy_task(), search=12, ledger=ledger)
    return frozen, ledger, frozen.run(toy_model(), toy_task(), ledger)


# -- the sentence


def test_a_claim_that_says_nothing_testable_does_not_construct() -> None:
    with pytest.raises(NoMinimumEffect, match="predicts nothing"):
        claim(predictions=())
    with pytest.raises(UsageError, match="needs a sentence"):
        Claim(" ", (LOUD,), "toy", ALL)
    with pytest.raises(UsageError, match="named twice"):
        claim(LOUD, LOUD)
    with pytest.raises(UsageError, match="at least one"):
        Claim("x", (), "toy", ALL)
    with pytest.raises(UnknownSite, match="zz"):
        claim("zz.1.h0")
    with pytest.raises(UsageError, match="leave out '#"):
        claim("z.1.h0#0,1")
    with pytest.raises(UsageError, match="at least 19"):
        claim(n_controls=10)
    with pytest.raises(UsageError, match=r"alpha 0\.5"):
        claim(alpha=0.5)
    with pytest.raises(OutOfRange, match="seed=-1: at least 0"):
        claim(seed=-1)


@pytest.mark.parametrize(
    "subject", [("z.1", "z.1.h0"), ("z.1.h0", "z.1.h0@end"), ("z.1.h0@1,2", "z.1.h0@2"), ("mlp_out.0", "mlp_out.0@end")]
)
def test_parts_of_a_subject_do_not_overlap(subject: tuple[str, ...]) -> None:
    with pytest.raises(UsageError, match="overlap"):
        claim(*subject)
    assert claim("z.1.h0@end", "z.1.h0@third", "z.1.h1", "z.0").subject


@pytest.mark.parametrize("exclude", ["z.2.h1", "z.2.h1@end", "z.2"])
def test_a_subject_is_not_excluded_from_its_own_controls(exclude: str) -> None:
    with pytest.raises(UsageError, match="part of the subject"):
        claim("z.2.h1", exclude=(exclude,))


def test_a_whole_layer_is_excluded_with_its_heads() -> None:
    frozen = claim("z.1.h0", exclude=("z.2",)).freeze(toy_model(), toy_task(), search=12)
    assert {site.split(".")[1] for one in frozen.plan["controls"]["sets"] for site in one["sites"]} == {"0", "1"}


def test_a_single_control_supports_nothing(ledger: Ledger) -> None:
    keep = ("z.0.h0", LOUD)
    exclude = tuple(name for layer in range(3) for head in range(4) if (name := f"z.{layer}.h{head}") not in keep)
    found = claim(exclude=exclude).freeze(toy_model(), toy_task(), search=12).run(toy_model(), toy_task(), ledger)
    assert found.verdict == "inconclusive"
    assert "only 1 matched component is left" in found.reason
    assert "3 or more matched components" in found.outcome["would_change"]


WRONG_KINDS = """
from cutaway import claims, errors
from cutaway.claims import Claim, Necessary, registration
for make in (
    lambda: Claim("x", ("z.1.h3",), "toy", Necessary(at_least=0.3)),
    lambda: Claim("x", ("z.1.h3",), "toy", ("necessary",)),
    lambda: Claim("x", ("z.1.h3",), "toy", (Necessary(at_least=0.3),), seed=1.5),
    lambda: Necessary("0.3"),
    lambda: Claim("x", ("z.1.h3",), "toy", [Necessary(at_least=0.3)]).freeze(None, Task, search="many"),
):
    try:
        make()
    except errors.UsageError as error:
        print(error)
"""


def test_values_of_the_wrong_kind_are_named() -> None:
    """In a Python of its own: here every call is checked for its types already."""
    program = "class Task:\n    name = 'toy'\n" + WRONG_KINDS
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    wanted = ["give a tuple of predictions", "'necessary' is none", "seed=1.5", "at_least is a number", "search='many'"]
    assert [text in line for text, line in zip(wanted, lines, strict=True)] == [True] * 5, lines


def test_several_heads_of_a_site_are_several_components() -> None:
    assert claim("z.1.h0,2@end").subject == ("z.1.h0@end", "z.1.h2@end")


def test_json_gives_back_the_same_claim() -> None:
    made = claim(LOUD, "z.1.h0@end", predictions=ALL, seed=3, exclude=("z.0.h0",))
    assert Claim.from_json(json.loads(json.dumps(made.to_json()))) == made


# -- freezing


def test_freezing_looks_at_no_confirm_pair() -> None:
    """The confirm pairs could be anything of the same clusters: the plan differs in their digest alone."""
    task = toy_task()
    other = {pair.id: replace(pair, clean=pair.clean[::-1], corrupt=pair.corrupt[::-1]) for pair in task.pairs}
    moved = replace(task, pairs=tuple(other[p.id] if p.split == "confirm" else p for p in task.pairs))
    plans = [claim(predictions=ALL).freeze(toy_model(), one, search=12).plan for one in (task, moved)]
    assert plans[0]["task"]["splits"]["confirm"] != plans[1]["task"]["splits"]["confirm"]
    for plan in plans:
        del plan["task"]["splits"]["confirm"], plan["task"]["digest"], plan["task"]["prompts"]
    assert plans[0] == plans[1]


def test_the_same_claim_has_the_same_name() -> None:
    first, second = (claim().freeze(toy_model(), toy_task(), search=12) for _ in range(2))
    assert first == second
    assert first.sha256 != claim().freeze(toy_model(), toy_task(), search=13).sha256
    assert first.sha256 != claim(seed=1).freeze(toy_model(), toy_task(), search=12).sha256
    assert first.claim == claim()


def test_the_plan_says_what_to_expect() -> None:
    power = claim(predictions=ALL).freeze(toy_model(), toy_task(), search=12).power
    for note in power:
        assert {"supported", "refuted", "inconclusive", "effect"} == set(note["outlook"][0])
        for chance in note["outlook"]:
            assert chance["supported"] + chance["refuted"] + chance["inconclusive"] == pytest.approx(1)
        at = next(chance for chance in note["outlook"] if chance["effect"] == note["minimum"])
        assert at["supported"] == pytest.approx(0.025, abs=0.01)
        assert note["text"].startswith("If the effect is as on")


def few(task: Task, n: int) -> Task:
    """The task with only n clusters in its confirm split."""
    keep = set(task.split("confirm").clusters[:n])
    return replace(task, pairs=tuple(pair for pair in task.pairs if pair.split != "confirm" or pair.cluster in keep))


def test_what_the_sample_cannot_carry_is_refused() -> None:
    model = toy_model()
    with pytest.raises(TooFewClusters, match=r"confirm split of task 'toy' has 5 clusters.*at least 6"):
        claim().freeze(model, few(toy_task(), 5), search=12)
    assert claim().freeze(model, few(toy_task(), 6), search=12)
    with pytest.raises(ClaimError, match="'prob'"):
        claim(predictions=(Mediates(0.5),)).freeze(model, replace(toy_task(), metric="prob"), search=12)
    with pytest.raises(OutOfRange, match="heads"):
        claim("z.1.h9").freeze(model, toy_task(), search=12)
    with pytest.raises(UsageError, match="position 'nobody'"):
        claim("z.1.h0@nobody").freeze(model, toy_task(), search=12)
    with pytest.raises(UsageError, match="the claim is about 'toy'"):
        claim().freeze(model, replace(toy_task(), name="other"), search=12)
    with pytest.raises(UsageError, match="search 0"):
        claim().freeze(model, toy_task(), search=0)


def test_a_pair_without_a_donor_is_refused_before_the_split_is_opened() -> None:
    task = toy_task()
    last = task.split("confirm").pairs[0]
    longer = replace(last, clean=(*last.clean, 5), corrupt=(*last.corrupt, 6))
    odd = replace(task, pairs=tuple(longer if pair.id == last.id else pair for pair in task.pairs))
    with pytest.raises(Misaligned, match=last.id):
        claim(predictions=(Necessary(0.1),)).freeze(toy_model(), odd, search=12)
    assert claim(LOUD + "@end", predictions=(Necessary(0.1),)).freeze(toy_model(), odd, search=12)
    assert claim(predictions=(Necessary(0.1, "mean"),)).freeze(toy_model(), odd, search=12)


# -- running


def test_every_prediction_is_measured_with_its_controls(finished: tuple) -> None:
    frozen, ledger, result = finished
    n, clusters = len(toy_task().split("confirm")), len(toy_task().split("confirm").clusters)
    for part, raw in zip(result.predictions, result.record["predictions"]):
        if part["name"] == "specific":
            assert (part["n_examples"], part["n_clusters"], part["controls"]) == (100, 100, [])
        else:
            assert (part["n_examples"], part["n_clusters"], len(part["controls"])) == (n, clusters, 11)
        assert all(check["passed"] for check in part["checks"]), part["checks"]
        assert set(raw["placebo"]["differences"]) == {0.0}
        assert len(part["worst"]) == 5
    assert result.verdict in ("supported", "refuted", "inconclusive")
    assert [entry.kind for entry in ledger.entries(plan=frozen.sha256)][:3] == ["freeze", "open_split", "result"]
    assert len(result.table()) == 4


def test_effects_are_those_of_plain_patching(finished: tuple) -> None:
    """The recorded values are what the methods of patching say, cell by cell."""
    from cutaway import patching

    _, _, result = finished
    task = toy_task().split("confirm")
    sweep = patching.sweep(toy_model(), task, [LOUD, "z.0.h0"], mode="denoise")
    record = result.record["predictions"][1]
    assert record["values"] == pytest.approx(sweep.raw[0].tolist(), abs=1e-5)
    controls = {one["sites"][0]: one["values"] for one in record["controls"]}
    assert controls["z.0.h0"] == pytest.approx(sweep.raw[1].tolist(), abs=1e-5)
    assert record["gap"] == pytest.approx(sweep.gap.tolist(), abs=1e-5)
    ablate = patching.ablate(toy_model(), task, [LOUD], value="resample", seed=0)
    assert result.record["predictions"][0]["values"] == pytest.approx((-ablate.raw[0]).tolist(), abs=1e-5)
    assert max(record["values"], key=abs) != 0


def test_the_loud_head_is_found_and_the_mute_one_refuted(finished: tuple, ledger: Ledger) -> None:
    _, _, result = finished
    found = {part["name"]: part["verdict"] for part in result.predictions}
    assert found["sufficient"] == "supported"
    frozen = claim(MUTE, predictions=ALL[:2]).freeze(toy_model(), toy_task(), search=12)
    mute = frozen.run(toy_model(), toy_task(), ledger)
    assert mute.verdict == "refuted"
    # passes of other shapes round otherwise
    assert max(abs(part["estimate"]["value"]) for part in mute.predictions) < 1e-6


def test_two_heads_are_one_subject(ledger: Ledger) -> None:
    frozen = claim(LOUD, "z.0.h0@end", n_controls=19).freeze(toy_model(), toy_task(), search=12)
    result = frozen.run(toy_model(), toy_task(), ledger)
    assert len(result.record["predictions"][0]["controls"]) == 19
    assert {len(one["sites"]) for one in result.record["predictions"][0]["controls"]} == {2}
    assert result.predictions[0]["control_test"]["rule"] == "rank"


def test_the_result_does_not_depend_on_the_memory_bound(finished: tuple, ledger: Ledger) -> None:
    frozen, _, result = finished
    again = frozen.run(toy_model(), toy_task(), ledger, max_tokens=64)
    for old, new in zip(result.record["predictions"], again.record["predictions"]):
        assert new["values"] == pytest.approx(old["values"], abs=1e-5)
    assert again.verdict == result.verdict


def test_every_ablation_runs(ledger: Ledger) -> None:
    wanted = tuple(Necessary(0.1, ablation) for ablation in ("zero", "mean", "mean_by_position", "resample"))
    frozen = claim(predictions=wanted).freeze(toy_model(), toy_task(), search=12)
    found = [part["estimate"]["value"] for part in frozen.run(toy_model(), toy_task(), ledger).predictions]
    assert len(set(found)) == 4


def test_a_suppressor_is_first_class(ledger: Ledger) -> None:
    """The same head, claimed to suppress: its effect has the other sign, so the claim is refuted."""
    frozen = claim(predictions=(Sufficient(-0.1),)).freeze(toy_model(), toy_task(), search=12)
    found = frozen.run(toy_model(), toy_task(), ledger)
    assert (found.verdict, found.predictions[0]["direction"]) == ("refuted", "at_most")


# -- once


def test_the_split_opens_once(finished: tuple) -> None:
    frozen, ledger, result = finished
    with pytest.raises(SplitOpened, match="has its result since"):
        frozen.run(toy_model(), toy_task(), ledger)
    assert ledger.result(frozen.sha256) == result.record


def test_a_rerun_checks_and_changes_nothing(finished: tuple) -> None:
    frozen, ledger, result = finished
    again = frozen.rerun(toy_model(), toy_task(), ledger, reason="is it still so?")
    assert again.same
    assert max(again.moved.values()) < 1e-5
    assert ledger.result(frozen.sha256) == result.record
    assert [entry.kind for entry in ledger.entries(plan=frozen.sha256)][-2:] == ["reopen_split", "rerun"]
    assert ledger.verify() == len(ledger.entries())


def test_only_what_has_a_result_is_rerun(ledger: Ledger) -> None:
    frozen = claim().freeze(toy_model(), toy_task(), search=12)
    with pytest.raises(ClaimError, match="has no result"):
        frozen.rerun(toy_model(), toy_task(), ledger, reason="x")


def test_an_interrupted_run_goes_on(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    frozen = claim().freeze(toy_model(), toy_task(), search=12, ledger=ledger)

    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("cutaway.claims.claim.gather", stop)
        with pytest.raises(KeyboardInterrupt):
            frozen.run(toy_model(), toy_task(), ledger)
    assert [entry.kind for entry in ledger.entries()] == ["freeze", "open_split"]
    frozen.run(toy_model(), toy_task(), ledger)
    assert [entry.kind for entry in ledger.entries()] == ["freeze", "open_split", "resume", "result"]
    assert ledger.verify() == 4


# -- after the data were seen


def test_a_claim_written_after_the_opening_is_exploratory(ledger: Ledger) -> None:
    model, task = toy_model(), toy_task()
    first = claim().freeze(model, task, search=12, ledger=ledger)
    early = claim(predictions=(Sufficient(0.12),)).freeze(model, task, search=12, ledger=ledger)
    assert first.run(model, task, ledger).verdict == "supported"
    assert early.run(model, task, ledger).verdict == "supported", "registered before anything was opened"
    late = claim(predictions=(Sufficient(0.15),)).freeze(model, task, search=12, ledger=ledger)
    found = late.run(model, task, ledger)
    assert (found.verdict, found.record["seen_before"]) == ("inconclusive", [first.sha256, early.sha256])
    assert "exploratory" in found.reason
    elsewhere = claim(MUTE, predictions=(Sufficient(0.15),)).freeze(model, task, search=12, ledger=ledger)
    assert elsewhere.run(model, task, ledger).record["seen_before"] == [], "other components were not looked at"


@pytest.mark.parametrize("edit", ["description", "ids", "splits", "sides"])
def test_no_edit_of_the_task_hides_what_was_seen(ledger: Ledger, edit: str) -> None:
    model, task = toy_model(), toy_task()
    seen = claim(predictions=(Sufficient(0.9),)).freeze(model, task, search=12, ledger=ledger)
    assert seen.run(model, task, ledger).verdict == "refuted"
    changed = {
        "description": lambda p: p,
        "ids": lambda p: replace(p, id=f"new {p.id}", cluster=f"new {p.cluster}"),
        "splits": lambda p: replace(p, split={"explore": "confirm", "confirm": "confirm"}.get(p.split, p.split)),
        "sides": lambda p: replace(p, clean=p.corrupt, corrupt=p.clean, answer=p.foil, foil=p.answer),
    }[edit]
    again = replace(task, description=task.description + " ", pairs=tuple(map(changed, task.pairs)))
    found = claim().freeze(model, again, search=12, ledger=ledger).run(model, again, ledger)
    assert (found.verdict, found.record["seen_before"]) == ("inconclusive", [seen.sha256])


def test_two_that_run_a_plan_at_once_leave_one_result(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other one finishes between the opening and the result of this one."""
    model, task = toy_model(), toy_task()
    frozen = claim().freeze(model, task, search=12, ledger=ledger)
    from cutaway.claims import claim as room

    def slow(*args: Any, **options: Any) -> dict[str, Any]:
        monkeypatch.undo()
        frozen.run(model, task, ledger)
        return room.gather(*args, **options)

    monkeypatch.setattr(room, "gather", slow)
    with pytest.raises(SplitOpened, match="has its result since"):
        frozen.run(model, task, ledger)
    assert len(ledger.entries("result")) == 1


# -- nothing may differ


def test_what_changed_is_named(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    model, task = toy_model(), toy_task()
    frozen = claim().freeze(model, task, search=12)
    other = load(_moved(model))
    with pytest.raises(ClaimChanged, match="model was") as caught:
        frozen.run(other, task, ledger)
    assert caught.value.changed == ["model"]
    changed = replace(task, pairs=task.pairs[1:])
    with pytest.raises(ClaimChanged, match="task was") as caught:
        frozen.run(model, changed, ledger)
    assert caught.value.changed == ["task"]
    monkeypatch.setattr(registration, "code", lambda: {"version": "0", "digest": "0" * 64})
    with pytest.raises(ClaimChanged, match="code was"):
        frozen.run(model, task, ledger)
    assert ledger.entries() == [], "nothing was opened"


def _moved(model: Any) -> torch.nn.Module:
    import copy

    module = copy.deepcopy(model.module)
    with torch.no_grad():
        module.model.norm.weight[0] += 1e-3
    return module


def test_files_that_were_edited_are_refused(finished: tuple, tmp_path: Path) -> None:
    frozen, _, result = finished
    plan, path = tmp_path / "plan.json", tmp_path / "result.json"
    frozen.save(plan)
    assert FrozenClaim.load(plan) == frozen
    plan.write_text(plan.read_text().replace('"at_least": 0.1', '"at_least": 0.01'), encoding="utf-8")
    with pytest.raises(ClaimChanged, match="no longer matches its hash"):
        FrozenClaim.load(plan)
    result.save(path)
    assert ClaimResult.load(path).record == result.record
    text = path.read_text()
    path.write_text(text.replace('"minimum": 0.1,', '"minimum": 0.2,'), encoding="utf-8")
    with pytest.raises(BrokenEvidence, match="does not follow"):
        ClaimResult.load(path)
    path.write_text("{", encoding="utf-8")
    with pytest.raises(BrokenEvidence, match="not a file of this kind"):
        ClaimResult.load(path)


def test_the_verdict_follows_from_the_export_alone(finished: tuple, tmp_path: Path) -> None:
    _, ledger, result = finished
    ledger.export(tmp_path / "claims.jsonl")
    entries = read_jsonl(tmp_path / "claims.jsonl")
    (recorded,) = [entry.body for entry in entries if entry.kind == "result"]
    assert verdict(recorded) == recorded["outcome"] == result.outcome


# -- instruments


def test_a_broken_identity_edit_is_invalid(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """An edit that is off by one bit: the placebo sees it."""
    from cutaway.claims import measure

    true = measure.engine.reference

    def off(model: Any, runs: Any, **options: Any) -> Any:
        results = true(model, runs, **options)
        results[1].logits[0] *= 1 + 2e-7
        return results

    frozen = claim().freeze(toy_model(), toy_task(), search=12)
    monkeypatch.setattr(measure.engine, "reference", off)
    found = frozen.run(toy_model(), toy_task(), ledger)
    assert found.verdict == "invalid"
    assert "placebo" in found.reason


def test_edits_that_miss_are_invalid(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """Patches that arrive weakened: the planted effect is not reproduced."""
    from cutaway.claims import measure

    true = measure._edits

    def weak(model: Any, batch: Any, sites: Any, on: str, change: str, seed: int) -> Any:
        return (
            true(model, batch, sites, on, "same", seed)
            if change == "other"
            else true(model, batch, sites, on, change, seed)
        )

    frozen = claim().freeze(toy_model(), toy_task(), search=12)
    monkeypatch.setattr(measure, "_edits", weak)
    found = frozen.run(toy_model(), toy_task(), ledger)
    assert (found.verdict, "reproduced" in found.reason) == ("invalid", True)
