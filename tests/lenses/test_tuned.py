"""The tuned lens: its slopes are those of autograd, it comes nearer to the model than the logit lens, its files are
those of the tuned-lens package."""

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from cutaway.errors import DataError, OutOfRange, UnknownName, UsageError, WrongModel
from cutaway.lenses import (
    TunedLens,
    fit_tuned_lens,
    lens_grid,
    measured,
    read_prompts,
    read_published,
    unembedding_hash,
    write_published,
)
from cutaway.lenses.texts import open_rows
from cutaway.models import Model, Site, Tokens, load
from tests.families import tiny
from tests.patching.pairs import loaded

CLOSE = {"atol": 1e-5, "rtol": 1e-3}


def rows_for(model: Model, n: int = 30) -> Tokens:
    ids = torch.randint(10, 90, (n, 8), generator=torch.Generator().manual_seed(3))
    return model.encode([row.tolist()[: 8 - i % 3] for i, row in enumerate(ids)])


@pytest.mark.parametrize("family", ["gpt2", "gemma2"])
def test_a_step_is_that_of_autograd(family: str) -> None:
    """One step of SGD, from the module's own parts, with autograd through all of A and b."""
    model = loaded(family)
    rows = rows_for(model, 10)
    lens = fit_tuned_lens(model, rows, steps=1, tokens_a_step=1000, rate=0.1, max_tokens=20)
    module: Any = model.module
    used = rows.take(range(9))
    with torch.no_grad():
        out = module(input_ids=used.ids, attention_mask=used.mask.long(), output_hidden_states=True)
    final = out.logits.log_softmax(-1)
    for layer in range(3):
        state = out.hidden_states[layer].detach()
        weight, bias = torch.zeros(32, 32, requires_grad=True), torch.zeros(32, requires_grad=True)
        moved = state + state @ weight.T + bias
        if family == "gpt2":
            logits = module.lm_head(module.transformer.ln_f(moved))
        else:
            cap = module.config.final_logit_softcapping
            logits = cap * torch.tanh(module.lm_head(module.model.norm(moved)) / cap)
        each = (final.exp() * (final - logits.log_softmax(-1))).sum(-1)
        loss = each[used.mask].mean()
        torch.testing.assert_close(lens.losses[layer, 0], loss.detach(), **CLOSE)
        slopes = torch.autograd.grad(loss, [weight, bias])
        norm = torch.sqrt(slopes[0].square().sum() + slopes[1].square().sum())
        size = 0.1 * 1.9 * min(1.0, 1.0 / norm.item())  # Nesterov's first step is 1 + momentum slopes long
        torch.testing.assert_close(lens.weights[layer], -size * slopes[0], **CLOSE)
        torch.testing.assert_close(lens.biases[layer], -size * slopes[1], **CLOSE)
        assert lens.weights[layer].abs().max() > 1e-4


def test_it_comes_nearer_than_the_logit_lens_on_rows_held_out() -> None:
    model = loaded("llama")
    rows = rows_for(model, 60)
    lens = fit_tuned_lens(model, rows, steps=40, tokens_a_step=160, optimizer="adam", rate=0.01)
    assert lens.held_out.shape == (3, 6)
    assert (lens.held_out.mean(1) < 0.9 * lens.baseline.mean(1)).all()
    assert [row["divergence"] for row in lens.table()] == pytest.approx(lens.held_out.mean(1).tolist())
    held = rows.take(range(9, 60, 10))
    grid = lens_grid(model, held, [Site("resid_pre", layer) for layer in range(3)] + [Site("resid_post", 2)], lens=lens)
    torch.testing.assert_close(grid.divergence[:3].nanmean(2), lens.held_out, **CLOSE)
    assert grid.divergence[3].nan_to_num().abs().max() < 1e-6
    plain = lens_grid(model, held, "resid_post.0")
    torch.testing.assert_close(plain.divergence[0].nanmean(1), lens.baseline[1], **CLOSE)


def test_no_step_is_the_logit_lens(tmp_path: Path) -> None:
    model = loaded("gpt2")
    lens = fit_tuned_lens(model, rows_for(model), steps=0)
    assert torch.equal(lens.held_out, lens.baseline)
    lens.save(tmp_path / "t.safetensors")
    back = TunedLens.load(tmp_path / "t.safetensors", model)
    assert torch.equal(back.weights, lens.weights)
    assert back.settings == lens.settings
    with pytest.raises(WrongModel, match="tuned lens"):
        lens_grid(loaded("llama"), [[11, 12]], lens=lens)
    with pytest.raises(UsageError, match="between blocks"):
        lens_grid(model, [[11, 12]], "resid_mid.1", lens=lens)


def fitted(model: Model) -> TunedLens:
    return fit_tuned_lens(model, rows_for(model), steps=2)


def test_published_files_come_back(tmp_path: Path) -> None:
    model = loaded("gpt2")
    lens = fitted(model)
    write_published(lens, tmp_path / "lens", model)
    state = torch.load(tmp_path / "lens" / "params.pt", weights_only=True)
    assert sorted(state) == [f"{i}.{name}" for i in range(3) for name in ("bias", "weight")]
    back = read_published(tmp_path / "lens", model)
    assert torch.equal(back.weights, lens.weights)
    rows = rows_for(model, 4)
    assert torch.equal(measured(model, back, rows), measured(model, lens, rows))


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"colour": 1}, DataError, "colour"),
        ({"lens_type": "rotary"}, DataError, "lens_type"),
        ({"unembed_hash": "0" * 64}, WrongModel, "unembedding"),
        ({"num_hidden_layers": 4}, WrongModel, "num_hidden_layers"),
        ({"bias": False}, DataError, "bias"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, change: dict[str, Any], error: type[Exception], says: str) -> None:
    model = loaded("gpt2")
    write_published(fitted(model), tmp_path, model)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(error, match=says):
        read_published(tmp_path, model)


class Danger:
    """Runs something when it is unpickled."""

    def __reduce__(self) -> Any:
        return (Path("ran").touch, ())


def test_no_code_in_a_file_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = loaded("gpt2")
    write_published(fitted(model), tmp_path, model)
    torch.save({"0.weight": Danger()}, tmp_path / "params.pt")
    with pytest.raises(DataError, match="tensors alone"):
        read_published(tmp_path, model)
    (tmp_path / "params.pt").write_bytes(pickle.dumps({"0.weight": Danger()}))
    with pytest.raises(DataError, match="tensors alone"):
        read_published(tmp_path, model)
    assert not (tmp_path / "ran").exists()


def test_the_hash_tells_models_apart() -> None:
    assert unembedding_hash(loaded("gpt2")) == unembedding_hash(load(tiny("gpt2")))
    assert unembedding_hash(loaded("gpt2")) != unembedding_hash(load(tiny("gpt2", seed=1)))


def test_wrong_requests_say_what_to_do() -> None:
    model = loaded("gpt2")
    rows = rows_for(model)
    for options, error, says in (
        ({"source": rows.take(range(5))}, DataError, "at least 10"),
        ({"source": Path("nowhere.txt")}, DataError, "no such file"),
        ({"source": rows, "optimizer": "lion"}, UnknownName, "sgd, adam"),
        ({"source": rows, "rate": 0.0}, OutOfRange, "rate"),
    ):
        with pytest.raises(error, match=says):
            fit_tuned_lens(model, **options)


def test_texts_longer_than_the_context_are_cut_into_rows(tmp_path: Path) -> None:
    model = load("induction-2l")
    words = " ".join(text.strip() for text in model.strings(range(5, 45)) if text.strip())
    (tmp_path / "long.txt").write_text(f"{words}\n" * 40, encoding="utf-8")
    rows = open_rows(model, tmp_path / "long.txt", d_row=16, n_held_out=3)
    assert rows.held_out.ids.shape == (3, 16)
    taken = next(rows.batches(64, torch.Generator().manual_seed(0)))
    assert taken.ids.shape == (4, 16)
    with pytest.raises(UsageError, match="d_row=4000: this model's context is"):
        open_rows(model, tmp_path / "long.txt", d_row=4000, n_held_out=3)


def test_what_is_no_text_is_refused(tmp_path: Path) -> None:
    model = load("induction-2l")
    (tmp_path / "bin.txt").write_bytes(b"\xff\xfe\x00bad")
    (tmp_path / "empty.txt").write_text("\n \n", encoding="utf-8")
    for path, says in (("bin.txt", "not a text file in UTF-8"), ("empty.txt", "no line of text"), ("", "is a folder")):
        with pytest.raises(DataError, match=says):
            read_prompts(tmp_path / path)
    with pytest.raises(DataError, match=r"bin.txt: not a text file in UTF-8 .* at byte 0"):
        open_rows(model, tmp_path / "bin.txt", d_row=16, n_held_out=3)
    with pytest.raises(DataError, match="this is a folder"):
        open_rows(model, tmp_path, d_row=16, n_held_out=3)
