"""Laws of a lens over a whole prompt: the last place is the model; other places are its own norm and unembedding."""

from pathlib import Path

import pytest
import torch

import cutaway
from cutaway import zoo
from cutaway.errors import OutOfRange, UsageError
from cutaway.lenses import LensGrid, lens_grid
from cutaway.models import Model, load
from cutaway.models.tokens import from_rows
from cutaway.zoo.recipes import handmade
from tests.lenses.test_logit import by_hand
from tests.patching.pairs import loaded

ROWS = [[11, 12, 13, 11, 12, 14], [20, 20, 21, 20]]
CLOSE = {"atol": 2e-5, "rtol": 1e-4}


@pytest.mark.parametrize("family", ["gpt2", "gemma2"])
@pytest.mark.parametrize("pad", ["left", "right"])
def test_every_state_is_read_by_the_models_own_parts(family: str, pad: str) -> None:
    model = loaded(family)
    rows = from_rows(ROWS, pad=pad, pad_id=0)
    grid = lens_grid(model, rows, ["resid_post.0", "resid_mid.1", "resid_post.2"], k=3, answer=14, max_tokens=6)
    assert grid.divergence[2, 0].abs().max() < 1e-6
    assert grid.divergence[:2, 0].min() > 1e-4
    for r, ids in enumerate(ROWS):
        acts = model.capture([ids], ["resid_post.0", "resid_mid.1"])
        with torch.no_grad():
            final = model.module(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        for i, site in enumerate(acts):
            own = by_hand(model, acts[site])[0].log_softmax(-1)
            n = len(ids)
            torch.testing.assert_close(grid.top_probabilities[i, r, :n], own.exp().topk(3).values, **CLOSE)
            assert torch.equal(grid.top_ids[i, r, :n, 0], own.argmax(-1))
            torch.testing.assert_close(grid.entropy[i, r, :n], -(own.exp() * own).sum(-1), **CLOSE)
            torch.testing.assert_close(grid.divergence[i, r, :n], (final.exp() * (final - own)).sum(-1), **CLOSE)
            rank = (own.argsort(-1, descending=True) == 14).int().argmax(-1) + 1
            assert grid.rank[i, r, :n].tolist() == rank.tolist()
            assert grid.rank[i, r, n:].isnan().all()
            assert (grid.top_ids[i, r, n:] == -1).all()


def test_without_an_answer_the_models_own_token_is_followed() -> None:
    model = loaded("gpt2")
    grid = lens_grid(model, model.encode(ROWS))
    assert torch.equal(grid.answers[0], grid.top_ids[-1, 0, :, 0])
    assert (grid.rank[-1, 0] == 1).all()
    assert len(grid.table()) == 4 * 10
    assert grid.figures()[0].texts[0] == tuple(map(str, grid.top_ids[-1, 0, :, 0].tolist()))


def test_a_saved_grid_comes_back(tmp_path: Path) -> None:
    model = cutaway.load("induction-2l")
    grid = lens_grid(model, model.encode([[5, 6, 7, 5, 6]]))
    grid.save(tmp_path / "g.safetensors")
    back = LensGrid.load(tmp_path / "g.safetensors", model)
    assert torch.equal(back.rank, grid.rank)
    assert (back.texts, back.tokens, back.provenance) == (grid.texts, grid.tokens, grid.provenance)


def test_the_answer_of_a_handmade_program_appears_where_it_is_written() -> None:
    """`lookup` writes the capital in its second MLP; in the scrambled twin the answer is nowhere."""
    model = cutaway.load("handmade-lookup")
    drawn = handmade.rows("handmade-lookup", 12, 5)
    row, column = drawn.answered.nonzero()[0].tolist()
    answer = int(drawn.answers[row, column])
    tokens = drawn.ids[row][: column + 1].tolist()
    sites = ["resid_pre.0", "resid_mid.0", "resid_post.0", "resid_mid.1", "resid_post.1"]
    grid = lens_grid(model, [tokens], sites, answer=answer)
    assert grid.first() == "resid_post.1"
    assert grid.rank[-1, 0, -1] == 1
    twin = load(zoo.scrambled(model.module, seed=0))
    assert lens_grid(twin, [tokens], sites, answer=answer).first() is None


def test_wrong_requests_say_what_to_do() -> None:
    model: Model = loaded("gpt2")
    for options, error, says in (
        ({"k": 0}, OutOfRange, "k=0"),
        ({"answer": 99}, OutOfRange, "answer=99"),
        ({"sites": "z.0"}, UsageError, "residual states"),
    ):
        with pytest.raises(error, match=says):
            lens_grid(model, ROWS, **options)
