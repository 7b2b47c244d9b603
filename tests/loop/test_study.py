"""The main job on the embedded model: the known heads come back supported, a decoy refuted, and the evidence holds."""

import importlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

import cutaway
from cutaway.claims import Ledger
from cutaway.errors import Interrupted, ModelNotFound, NoBehavior, UsageError, WrongModel
from cutaway.loop.assemble import rerun_lines
from cutaway.loop.options import Options
from cutaway.loop.steps import Steps, steps_folder
from cutaway.models import Model
from cutaway.zoo import scrambled

N_PAIRS = 48


@pytest.fixture(scope="module")
def model() -> Model:
    return cutaway.load("induction-2l")


@pytest.fixture(scope="module")
def task(model):
    return cutaway.tasks.get("induction", model, n=N_PAIRS, seed=0)


@pytest.fixture(scope="module")
def finished(model, task, tmp_path_factory):
    """One finished study, and the steps that its progress named."""
    seen: list[str] = []
    out = tmp_path_factory.mktemp("study") / "report"
    result = cutaway.study(model, task, out=out, progress=lambda done, total, label: seen.append(label))
    return result, list(dict.fromkeys(seen))


def test_the_known_heads_are_supported_and_the_decoy_is_refuted(model, finished):
    result, _ = finished
    known = cutaway.zoo.truth("induction-2l")
    by_name = {claim.id: claim.verdict for claim in result.report.claims}
    for node in known.nodes:
        if node.role in ("previous_token", "induction"):
            assert by_name[node.site] == "supported"
    assert [verdict for name, verdict in by_name.items() if name.startswith("decoy ")] == ["refuted"]
    assert result.supported


def test_every_step_is_named_in_order(finished):
    _, seen = finished
    expected = [
        "behavior",
        "residual stream",
        "heads and MLPs",
        "ablation",
        "attribution",
        "logit lens",
        "attention scores",
    ]
    assert [label for label in seen if label in expected] == expected
    assert "claims frozen" in seen
    assert any(label.startswith("confirm: ") for label in seen)


def test_the_report_holds_and_repeats_exactly(finished):
    result, _ = finished
    assert cutaway.report.verify(result.folder).holds
    again = cutaway.repeat(result.folder)
    assert again.moved == {}
    assert again.n_compared > 500
    assert again.verdicts_same


def test_a_moved_number_is_found(finished, tmp_path, monkeypatch):
    """The comparison can fail: a study that comes out otherwise is reported value by value."""
    result, _ = finished
    changed = result.report.model_copy(update={"sentence": "Something else."})
    room = importlib.import_module("cutaway.loop.repeat")
    monkeypatch.setattr(room, "study", lambda *a, **k: type(result)(tmp_path, changed, {}, True))
    again = cutaway.repeat(result.folder)
    assert again.moved == {"sentence": (result.report.sentence, "Something else.")}
    assert again.largest == float("inf")


def test_a_second_run_takes_every_step_from_disk_and_opens_nothing(model, task, finished):
    result, _ = finished
    ledger = Ledger(result.folder.parent / ".report.steps" / "ledger.sqlite")
    before = len(ledger.entries())
    labels: list[str] = []
    again = cutaway.study(model, task, out=result.folder, progress=lambda done, total, label: labels.append(label))
    assert again.verdicts == result.verdicts
    assert sum("kept from before" in label for label in labels) >= 6
    assert len(ledger.entries()) == before


def test_an_interruption_keeps_what_is_finished_and_leaves_no_report(model, task, tmp_path):
    def stop(done: int, total: int, label: str) -> None:
        if label == "ablation":
            raise KeyboardInterrupt

    with pytest.raises(Interrupted) as caught:
        cutaway.study(model, task, out=tmp_path / "report", progress=stop)
    assert caught.value.kept == ["residual stream", "heads and MLPs"]
    assert "Run the same study again" in str(caught.value)
    assert not (tmp_path / "report").exists()
    files = list((tmp_path / ".report.steps").glob("*.safetensors"))
    assert sorted(p.name.rsplit("-", 1)[0] for p in files) == ["heads-and-MLPs", "residual-stream"]


def test_a_damaged_step_is_made_again(model, task, finished, tmp_path):
    result, _ = finished
    steps = tmp_path / ".report.steps"
    shutil.copytree(result.folder.parent / ".report.steps", steps)
    broken = next(steps.glob("ablation-[0-9a-f]*.safetensors"))
    broken.write_bytes(b"half a file")
    labels: list[str] = []
    cutaway.study(model, task, out=tmp_path / "report", progress=lambda done, total, label: labels.append(label))
    assert "ablation" in labels
    assert broken.stat().st_size > 1000


def test_the_scrambled_twin_is_stopped_by_the_behavior_check(model, task, tmp_path):
    twin = cutaway.load(scrambled(model.module, seed=0), model.tokenizer)
    with pytest.raises(NoBehavior) as caught:
        cutaway.study(twin, task, out=tmp_path / "report")
    assert "at least 0.5 is needed" in str(caught.value)
    assert not (tmp_path / "report").exists()


def test_another_model_is_refused_when_repeating(model, finished):
    result, _ = finished
    with pytest.raises(WrongModel):
        cutaway.repeat(result.folder, cutaway.load(scrambled(model.module, seed=1), model.tokenizer))


def test_artifacts_hold_the_raw_values(finished, model):
    result, _ = finished
    report = cutaway.report.load(result.folder)
    path = Path(result.folder) / next(e.path for e in report.manifest.artifacts if e.name == "ablated.safetensors")
    effects = cutaway.patching.Effects.load(path, model)
    assert effects.values.shape == (len(effects.labels), len(effects.ids))
    assert json.loads(report.artifact("study.json"))["seed"] == 0


def test_the_lines_that_run_it_again_are_true(finished, model, task):
    result, _ = finished
    lines = result.report.rerun
    assert lines.command == f"cutaway study induction --n {N_PAIRS} --model induction-2l"
    scope: dict = {}
    exec("\n".join(lines.python.splitlines()[:-1]), scope)
    assert scope["task"].digest == task.digest


@pytest.mark.parametrize("change", [{"metric": "logprob_diff"}, {"seed": 5}, {"name": "mine/..é task"}])
def test_a_task_that_is_not_the_built_in_one_is_named_by_its_file(model, task, change):
    other = cutaway.tasks.get("induction", model, n=N_PAIRS, seed=5) if "seed" in change else replace(task, **change)
    command, python = rerun_lines(model, other, Options())
    assert command.startswith("cutaway study artifacts/")
    assert "Task.load('artifacts/" in python


def test_options_are_in_the_command_quoted(model, task):
    odd = Model(model.module, model.tokenizer, model.anatomy, "my models/x")
    command, _ = rerun_lines(odd, task, Options(alpha=0.01, n_candidates=2))
    assert "--model 'my models/x' --n-candidates 2 --alpha 0.01" in command


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"out": ""}, "give the folder"),
        ({"seed": -1}, "seed=-1: 0 or more"),
        ({"minimum_gap": float("nan")}, "a number above 0"),
        ({"n_candidates": 0}, "at least 1"),
    ],
)
def test_what_cannot_be_studied_is_refused_first(model, task, tmp_path, arguments, message):
    given = {"task": task, "out": tmp_path / "report", **arguments}
    with pytest.raises(UsageError, match=message):
        cutaway.study(model, given.pop("task"), **given)
    assert not list(tmp_path.iterdir())


def test_a_name_is_not_a_task(model, tmp_path):
    with pytest.raises(UsageError, match="give a task, as in"):
        importlib.import_module("cutaway.loop.study")._require(model, "induction", tmp_path)


def test_a_place_that_cannot_take_a_report_is_refused_before_anything_runs(model, task, tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    for place in ("file", "full", "file/below"):
        with pytest.raises(UsageError):
            cutaway.study(model, task, out=tmp_path / place, progress=lambda *_: pytest.fail("something ran"))
    assert (tmp_path / "full" / "notes.txt").read_text() == "mine"


def test_two_processes_do_not_study_into_one_folder(model, task, tmp_path):
    steps = Steps(steps_folder(tmp_path / "report"), model, task)
    with steps.alone(), pytest.raises(UsageError, match="another process is studying"):
        cutaway.study(model, task, out=tmp_path / "report")


def test_a_model_that_cannot_be_loaded_by_name_has_to_be_given(model, finished, monkeypatch, tmp_path):
    room = importlib.import_module("cutaway.loop.repeat")
    for source in ({"kind": "memory", "name": "LlamaForCausalLM"}, {"kind": "folder", "name": str(tmp_path / "gone")}):
        with pytest.raises(ModelNotFound, match=r"repeat\(folder, model\)"):
            room._model({**source, "dtype": "float32"})


def test_what_an_earlier_study_found_is_shown_too(model, task, finished, tmp_path):
    """Other options, the same folder: the ledger has both, so the report shows both, and holds."""
    result, _ = finished
    shutil.copytree(result.folder.parent / ".report.steps", tmp_path / ".report.steps")
    again = cutaway.study(model, task, out=tmp_path / "report", n_candidates=1)
    names = [claim.id for claim in again.report.claims]
    assert [name for name in names if name.startswith("earlier ")]
    assert "z.1.h0" in names
    assert cutaway.report.verify(again.folder).holds
    repeated = cutaway.repeat(again.folder)
    assert repeated.verdicts_same
    assert repeated.moved == {}
