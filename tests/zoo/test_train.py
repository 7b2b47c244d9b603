"""What recipes share: scores with intervals, folders in three forms, the card with its hashes, the command line."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from scipy.stats import binom
from torch import nn

import cutaway
from cutaway import zoo
from cutaway.artifacts import file_digest
from cutaway.errors import UsageError
from cutaway.zoo import train
from tests.families import tiny

FIELDS = zoo.card("induction-2l").model_dump(exclude={"files"})


@pytest.mark.parametrize(("right", "n"), [(0, 20), (13, 20), (20, 20), (999, 1000)])
def test_the_interval_is_clopper_and_pearsons(right: int, n: int) -> None:
    """At each end the other tail of the binomial holds 2.5 %, which is how the interval is defined."""
    found = train.score("b", "w", right, n)
    assert found.share == right / n
    assert (found.low == 0) == (right == 0)
    assert (found.high == 1) == (right == n)
    if right:
        assert binom.sf(right - 1, n, found.low) == pytest.approx(0.025)
    if right < n:
        assert binom.cdf(right, n, found.high) == pytest.approx(0.025)


@pytest.mark.parametrize(("right", "n"), [(-1, 4), (5, 4), (0, 0)])
def test_a_score_of_nothing_is_refused(right: int, n: int) -> None:
    with pytest.raises(UsageError, match=r"score of 'b': .* right of .*; count right answers"):
        train.score("b", "w", right, n)


def test_only_promises_are_missed() -> None:
    scores = [train.score("b", "w", right, 100, target) for right, target in ((94, 0.95), (95, 0.95), (1, None))]
    assert train.missed(scores) == (scores[0],)
    assert "target 95.0% MISSED" in train.line(scores[0])
    assert "MISSED" not in train.line(scores[1]) + train.line(scores[2])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_weights_are_stored_small_and_computed_in_full(tmp_path: Path, dtype: torch.dtype, capfd: Any) -> None:
    from transformers import AutoModelForCausalLM

    module = tiny("llama")
    saved = train.save_hf(tmp_path / "a", module, dtype=dtype)
    assert capfd.readouterr() == ("", "")
    stored = load_file(tmp_path / "a" / "model.safetensors")
    assert {value.dtype for value in stored.values()} == {dtype}
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "a")
    assert plain.config.dtype == torch.float32
    for key, value in module.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(plain.state_dict()[key], value.to(dtype).float()), key
        assert torch.equal(saved.state_dict()[key], value.to(dtype).float()), key
    assert next(cutaway.load(tmp_path / "a", audit=False).module.parameters()).dtype == torch.float32


@pytest.fixture
def family(tmp_path: Path) -> tuple[Path, Any, Any]:
    """A base in a folder, and a relative with a change of rank one, one of full rank, and one of a vector."""
    base = train.save_hf(tmp_path / "base", tiny("llama"))
    relative = copy.deepcopy(base)
    generator = torch.Generator().manual_seed(3)
    layer = relative.model.layers[1]
    with torch.no_grad():
        layer.mlp.up_proj.weight.add_(torch.randn(56, 1, generator=generator) @ torch.randn(1, 32, generator=generator))
        layer.self_attn.o_proj.weight.add_(torch.randn(layer.self_attn.o_proj.weight.shape, generator=generator))
        relative.model.norm.weight.mul_(1.5)
    return tmp_path, base, relative


CHANGED = {"model.layers.1.mlp.up_proj.weight", "model.layers.1.self_attn.o_proj.weight", "model.norm.weight"}


def test_a_difference_holds_what_changed_and_gives_the_relative_back(family: Any) -> None:
    place, base, relative = family
    saved = train.save_difference(place / "kin", relative, "base", dtype=torch.float32)
    assert sorted(file.name for file in (place / "kin").iterdir()) == ["config.json", "difference.safetensors"]
    assert set(load_file(place / "kin" / "difference.safetensors")) == {f"{name}.delta" for name in CHANGED}
    assert type(saved) is type(base)
    for name, value in relative.named_parameters():
        torch.testing.assert_close(saved.state_dict()[name], value, atol=1e-6, rtol=1e-6)
        assert torch.equal(base.state_dict()[name], value) == (name not in CHANGED)
        assert name in CHANGED or torch.equal(saved.state_dict()[name], value)
    said, wanted = saved.config.to_dict(), relative.config.to_dict()
    assert said.pop("_name_or_path") == str(place / "kin")
    assert wanted.pop("_name_or_path") == str(place / "base")
    assert said == wanted


def test_a_difference_of_low_rank_keeps_the_largest_directions(family: Any) -> None:
    place, base, relative = family
    saved = train.save_difference(place / "kin", relative, "base", rank=1, dtype=torch.float32)
    stored = load_file(place / "kin" / "difference.safetensors")
    assert {key: tuple(value.shape) for key, value in stored.items() if "up_proj" in key} == {
        "model.layers.1.mlp.up_proj.weight.left": (56, 1),
        "model.layers.1.mlp.up_proj.weight.right": (1, 32),
    }
    assert stored["model.norm.weight.delta"].shape == (32,)
    mlp, attention = "model.layers.1.mlp.up_proj.weight", "model.layers.1.self_attn.o_proj.weight"
    torch.testing.assert_close(saved.state_dict()[mlp], relative.state_dict()[mlp], atol=1e-4, rtol=1e-4)
    change = relative.state_dict()[attention] - base.state_dict()[attention]
    lost = relative.state_dict()[attention] - saved.state_dict()[attention]
    sizes = torch.linalg.svdvals(change)
    assert torch.linalg.svdvals(lost)[0].item() == pytest.approx(sizes[1].item(), rel=1e-4)  # Eckart and Young
    wide = train.save_difference(place / "wide", relative, "base", rank=30, dtype=torch.float32)
    assert f"{attention}.delta" in load_file(place / "wide" / "difference.safetensors")
    torch.testing.assert_close(wide.state_dict()[attention], relative.state_dict()[attention], atol=1e-6, rtol=1e-6)


def test_a_difference_in_half_precision_is_what_is_loaded(family: Any) -> None:
    place, base, relative = family
    saved = train.save_difference(place / "kin", relative, "base")
    stored = load_file(place / "kin" / "difference.safetensors")
    for name in CHANGED:
        assert stored[f"{name}.delta"].dtype == torch.bfloat16
        assert torch.equal(saved.state_dict()[name], base.state_dict()[name] + stored[f"{name}.delta"].float())
    assert torch.equal(cutaway.load(place / "kin").module.model.norm.weight, saved.model.norm.weight)


def test_a_difference_from_an_embedded_model(tmp_path: Path) -> None:
    """It has the base's tokenizer, and runs as any model does."""
    base = cutaway.load("induction-2l", audit=False)
    relative = copy.deepcopy(base.module)
    with torch.no_grad():
        relative.lm_head.weight.mul_(2)
    train.save_difference(tmp_path / "kin", relative, "induction-2l")
    model = cutaway.load(tmp_path / "kin")
    text = "fox lamp rose key fox"
    assert model.tokenizer_digest == base.tokenizer_digest
    torch.testing.assert_close(model.run(text).logits, 2 * base.run(text).logits, atol=0.2, rtol=0.01)
    assert model.digest != base.digest


def test_a_parameter_that_the_base_lacks_is_refused(family: Any) -> None:
    place, _, relative = family
    relative.model.layers[0].extra = nn.Linear(2, 2, device="meta")
    with pytest.raises(UsageError, match=r"'model.layers.0.extra.weight' \[2, 2\]: the base has no such one.*save the"):
        train.save_difference(place / "kin", relative, "base")
    assert not (place / "kin").exists()


def test_a_card_says_what_is_in_the_folder(tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    for name in ("config.json", "model.safetensors", "more/step-1.safetensors"):
        (tmp_path / name).write_text(name)
        (tmp_path / name).chmod(0o600)
    card = train.finish(tmp_path, **FIELDS)
    assert card.files == {name: file_digest(tmp_path / name) for name in card.files}
    assert set(card.files) == {"config.json", "model.safetensors", "more/step-1.safetensors"}
    assert {file.stat().st_mode & 0o777 for file in tmp_path.rglob("*") if file.is_file()} == {0o644}
    assert zoo.Card.model_validate(json.loads((tmp_path / "card.json").read_text())) == card
    assert train.finish(tmp_path, **FIELDS) == card


@pytest.mark.parametrize(("right", "code"), [(95, 0), (94, 1)])
def test_the_command_line_of_a_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, right: int, code: int
) -> None:
    asked: list[tuple[Any, ...]] = []

    def make(name: str, folder: Path, *, seed: int | None, progress: train.Progress, device: str) -> zoo.Card:
        asked.append((name, folder, seed, device))
        for step in range(100):
            progress(step + 1, 100, "training")
        folder.mkdir(parents=True)
        scores = (train.score("counting", "fresh rows", right, 100, 0.95),)
        return train.finish(folder, **{**FIELDS, "name": name, "accuracy": scores})

    threads = str(torch.get_num_threads())
    monkeypatch.setattr("sys.argv", ["recipe", "--out", str(tmp_path), "--seed", "7", "--threads", threads])
    with pytest.raises(SystemExit) as stopped:
        train.main(("one", "two"), make)
    assert stopped.value.code == code
    assert asked == [(name, tmp_path / name, 7, "cpu") for name in ("one", "two")]
    said = capsys.readouterr().out
    assert said.count("training: 100 of 100") == 2
    assert said.count("training:") == 42
    assert ("MISSED" in said) == bool(code)
    monkeypatch.setattr("sys.argv", ["recipe", "--name", "two", "--out", str(tmp_path / "b"), "--threads", threads])
    with pytest.raises(SystemExit):
        train.main(("one", "two"), make)
    assert asked[2:] == [("two", tmp_path / "b" / "two", None, "cpu")]
