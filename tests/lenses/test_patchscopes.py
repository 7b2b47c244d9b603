"""Patchscopes against plain hooks; a state that is already there changes nothing; the null shows what targets say."""

from pathlib import Path
from typing import Any

import pytest
import torch

from cutaway.errors import OutOfRange, UsageError
from cutaway.lenses import Patchscope, Readings, patchscope, patchscope_readings
from tests.patching.pairs import loaded

ROWS = [[11, 12, 13, 14], [20, 21, 22], [30, 31, 32, 33]]
TARGET = [[41, 42, 43, 44, 45]]
CLOSE = {"atol": 1e-5, "rtol": 1e-4}


def patched(model: Any, state: torch.Tensor, layer: int, columns: list[int]) -> torch.Tensor:
    """Log-probabilities after the target with a state put out by a block, by a plain hook."""

    def hook(_: Any, __: Any, output: Any) -> Any:
        value = (output[0] if isinstance(output, tuple) else output).clone()
        value[:, columns] = state
        return (value, *output[1:]) if isinstance(output, tuple) else value

    handle = model.module.transformer.h[layer].register_forward_hook(hook)
    try:
        with torch.no_grad():
            return model.module(input_ids=torch.tensor(TARGET)).logits[0, -1].log_softmax(-1)
    finally:
        handle.remove()


@pytest.mark.parametrize("into", [None, 1])
def test_it_is_what_plain_hooks_give(into: int | None) -> None:
    model = loaded("gpt2")
    others = [[50, 51, 52], [60, 61], [70, 71, 72, 73]]
    found = patchscope(
        model,
        ROWS,
        ["resid_post.0", "resid_post.1"],
        position=-1,
        target=TARGET,
        slots=(1, -1),
        into=into,
        nulls=others,
    )
    assert found.slots == (1, 4)
    with torch.no_grad():
        own = [int(model.module(input_ids=torch.tensor([ids])).logits[0, -1].argmax()) for ids in ROWS]
    assert found.expected.tolist() == own
    for i, site in enumerate(["resid_post.0", "resid_post.1"]):
        layer = i if into is None else into
        for e, ids in enumerate(ROWS):
            plain = patched(model, model.capture([ids], site)[site][0, -1], layer, [1, 4])
            torch.testing.assert_close(found.surprisal[i, e], -plain[own[e]], **CLOSE)
            assert int(found.top_ids[i, e, 0]) == int(plain.argmax())
            for j, other in enumerate(others):
                null = patched(model, model.capture([other], site)[site][0, -1], layer, [1, 4])
                torch.testing.assert_close(found.null_surprisal[i, j, e], -null[own[e]], **CLOSE)
    assert (found.null_surprisal - found.surprisal[:, None]).abs().min() > 1e-5


def test_a_state_that_is_already_there_changes_nothing() -> None:
    model = loaded("llama")
    found = patchscope(model, TARGET, target=TARGET, nulls=6)
    with torch.no_grad():
        own = model.module(input_ids=torch.tensor(TARGET)).logits[0, -1].log_softmax(-1)
    torch.testing.assert_close(found.surprisal[:, 0], (-own.max()).expand(4), **CLOSE)
    assert found.hit.min() == 1


def test_the_last_place_says_the_models_own_token_and_the_nulls_do_not() -> None:
    model = loaded("llama")
    found = patchscope(model, ROWS, target=TARGET, seed=1)
    assert found.null_surprisal.shape == (4, 8, 3)
    assert found.hit[-1].mean() == 1
    lift = found.lift(3)
    assert 0 < lift.low < lift.estimate < lift.high
    each = (found.null_surprisal[3] - found.surprisal[3]).mean(1)
    assert lift.estimate == pytest.approx(each.mean().item(), abs=1e-5)
    row = found.table()[3]
    assert (row["lift"], row["low"]) == (pytest.approx(lift.estimate, abs=1e-5), pytest.approx(lift.low))
    again, other = (patchscope(model, ROWS, target=TARGET, seed=seed) for seed in (1, 2))
    assert torch.equal(again.null_surprisal, found.null_surprisal)
    assert not torch.equal(other.null_surprisal, found.null_surprisal)


def test_where_the_target_answers_by_itself_nothing_differs() -> None:
    """A placeholder after which nothing is read from it: every state is followed by the same text."""
    model = loaded("gpt2")
    blind = patchscope_readings(model, ROWS, "resid_post.2", target=TARGET, slots=(0,), max_new_tokens=3, nulls=2)
    assert blind.differs.max() == 0
    seen = patchscope_readings(model, ROWS, "resid_post.2", target=TARGET, max_new_tokens=3, nulls=2)
    assert seen.differs.max() > 0
    first = patchscope(model, ROWS, "resid_post.2", target=TARGET)
    assert [text.split()[0] for text in seen.said[0]] == list(map(str, first.top_ids[0, :, 0].tolist()))


def test_results_are_saved_and_drawn(tmp_path: Path) -> None:
    model = loaded("gpt2")
    found = patchscope(model, ROWS, "resid_post.1", target=TARGET, expected=[5, 6, 7], into=(0, 2), nulls=2)
    found.save(tmp_path / "p.safetensors")
    back = Patchscope.load(tmp_path / "p.safetensors", model)
    assert torch.equal(back.surprisal, found.surprisal)
    assert (back.into, back.expected.tolist(), back.provenance) == ("0,2", [5, 6, 7], found.provenance)
    assert found.table()[0]["low"] is None  # two nulls carry no interval
    assert len(found.figures()) == 3
    readings = patchscope_readings(model, ROWS, "resid_post.1", target=TARGET, max_new_tokens=2)
    readings.save(tmp_path / "r.safetensors")
    assert Readings.load(tmp_path / "r.safetensors", model).said == readings.said
    assert readings.figures()[0].texts == readings.said


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"slots": "99"}, UsageError, "placeholder"),
        ({"slots": (9,)}, OutOfRange, "9"),
        ({"nulls": 0}, OutOfRange, "nulls=0"),
        ({"into": 3}, OutOfRange, "layers"),
        ({"target": ROWS}, UsageError, "give one"),
        ({"expected": [1]}, UsageError, "3 prompts"),
    ],
)
def test_wrong_requests_say_what_to_do(options: dict[str, Any], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        patchscope(loaded("gpt2"), ROWS, **{"target": TARGET, **options})
