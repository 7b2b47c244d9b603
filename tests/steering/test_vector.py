"""Steering vectors: each operation beside plain torch, strengths in each unit, saved and refused elsewhere."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import cutaway
from cutaway import sites
from cutaway.artifacts import save_tensors
from cutaway.engine import Run, plan
from cutaway.errors import BadEdit, BrokenEvidence, EditNeverApplied, UsageError, WrongModel
from cutaway.models import Condition
from cutaway.models.sites import where
from cutaway.steering import Scale, Steering, difference, measure, steering
from tests.families import tiny
from tests.models.samples import loaded, relative, rows, spoken, vector

SITE = sites.resid_post[1]
REFERENCE = [[5, 6, 7, 8, 9, 10], [11, 12, 13, 14]]


def made(family: str = "gpt2", **options: Any) -> Steering:
    return steering(loaded(family), SITE, vector() * 3, reference=REFERENCE, **options)


def changed(one: Steering) -> tuple[Tensor, Tensor]:
    """The site before and after the vector."""
    model = loaded("gpt2")
    read = str(one.site.base)
    return (
        model.run(rows((6, 6)), reads=[read]).activations[read],
        model.run(rows((6, 6)), one.edits(), reads=[read]).activations[read],
    )


def unit() -> Tensor:
    return vector() / vector().norm()


OPERATIONS: dict[str, tuple[dict[str, Any], Callable[[Tensor, Scale], Tensor]]] = {
    "absolute": ({"strength": 2.5}, lambda h, s: h + 2.5 * unit()),
    "vector": ({"strength": -1.5, "unit": "vector"}, lambda h, s: h - 1.5 * 3 * vector()),
    "norm": ({"strength": 0.5, "unit": "norm"}, lambda h, s: h + 0.5 * s.norm * unit()),
    "sd": ({"strength": 2.0, "unit": "sd"}, lambda h, s: h + 2 * s.sd * unit()),
    "clamp": (
        {"strength": 4.0, "operation": "clamp"},
        lambda h, s: h + (4.0 - h @ unit())[..., None] * unit(),
    ),
    "clamp in sd": (
        {"strength": 2.0, "unit": "sd", "operation": "clamp"},
        lambda h, s: h + (s.mean + 2 * s.sd - h @ unit())[..., None] * unit(),
    ),
    "ablate": ({"operation": "ablate"}, lambda h, s: h - (h @ unit())[..., None] * unit()),
    "below": (
        {"strength": 3.0, "below": 0.25},
        lambda h, s: torch.where((h @ unit() < 0.25)[..., None], h + 3 * unit(), h),
    ),
    "below in sd": (
        {"strength": 3.0, "unit": "sd", "below": 0.0},
        lambda h, s: torch.where((h @ unit() < s.mean)[..., None], h + 3 * s.sd * unit(), h),
    ),
    "norm kept": (
        {"strength": 5.0, "keep_norm": True},
        lambda h, s: (h + 5 * unit()) * (h.norm(dim=-1) / (h + 5 * unit()).norm(dim=-1))[..., None],
    ),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_each_operation_is_its_formula(name: str) -> None:
    options, formula = OPERATIONS[name]
    one = made(**options)
    before, after = changed(one)
    assert one.scale is not None
    assert relative(after, formula(before, one.scale)) < 1e-5
    assert relative(after, before) > 1e-2
    if "below" in name:
        same = (after == before).all(-1)
        assert same.any()
        assert not same.all()


def test_a_scale_is_what_torch_says_of_the_text() -> None:
    model = loaded("gpt2")
    parts = [model.capture([row], SITE)[SITE][0, 1:] for row in REFERENCE]
    kept = torch.cat(parts)
    found = measure(model, REFERENCE, SITE, vector())
    along = kept @ unit()
    wanted = (kept.norm(dim=-1).median(), along.mean(), along.std())
    assert (found.norm, found.mean, found.sd) == pytest.approx([float(x) for x in wanted], rel=1e-4)
    assert found.n_tokens == 8
    assert measure(model, REFERENCE, SITE, vector(), skip=0).n_tokens == 10
    assert measure(model, model.encode(REFERENCE, pad="left"), SITE, vector()).norm == pytest.approx(
        found.norm, rel=1e-4
    )


@pytest.mark.parametrize("options", [{}, {"unit": "norm"}, {"unit": "vector"}, {"keep_norm": True}, {"below": 0.0}])
def test_strength_0_is_no_edit_bit_for_bit(options: dict[str, Any]) -> None:
    model, one = loaded("gpt2"), made(strength=0.0, **options)
    plain = model.run(rows())
    assert torch.equal(model.run(rows(), one.edits()).logits, plain.logits)
    assert model.generate(rows(), one.edits(), max_new_tokens=4) == model.generate(rows(), max_new_tokens=4)
    stronger = replace(one, strength=5.0)
    assert not torch.equal(model.run(rows(), stronger.edits()).logits, plain.logits)


def test_several_vectors_each_with_its_own_site_strength_and_rule() -> None:
    model = loaded("llama")
    one = steering(model, "resid_post.0@prompt", vector(), strength=3.0)
    two = steering(model, "resid_post.2@new", vector(seed=6), strength=5.0)
    three = steering(model, "z.1.h2", vector(12, seed=7), strength=4.0)
    edits = [*one.edits(), *two.edits(), *three.edits()]
    text = model.generate(rows((5, 7)), edits, max_new_tokens=5)
    by_hand = [
        sites.resid_post[0].at("prompt").add(vector() / vector().norm(), scale=3.0),
        sites.resid_post[2].at("new").add(vector(seed=6) / vector(seed=6).norm(), scale=5.0),
        sites.z[1].head(2).add(vector(12, seed=7) / vector(12, seed=7).norm(), scale=4.0),
    ]
    assert text == model.generate(rows((5, 7)), by_hand, max_new_tokens=5)
    assert all(text != model.generate(rows((5, 7)), edits[:2], max_new_tokens=5) for _ in [0])
    runs = [Run(text, edits=tuple(edits), logits="all"), Run(text, logits="all")]
    planned, plain = plan(model, runs).execute()
    assert relative(planned.logits, model.run(text, edits).logits) < 1e-5
    assert relative(planned.logits, plain.logits) > 1e-2


def test_the_difference_of_two_prompts() -> None:
    model = spoken("gpt2")
    found = difference(model, "t5 t9 t4", ["t8 t7", "t3 t2 t6"], "resid_post.1@new", strength=2.0, unit="vector")
    last = {text: model.capture(text, SITE)[SITE][0, -1] for text in ("t5 t9 t4", "t8 t7", "t3 t2 t6")}
    assert relative(found.direction, last["t5 t9 t4"] - (last["t8 t7"] + last["t3 t2 t6"]) / 2) < 1e-5
    assert "mean over ['t5 t9 t4'] minus mean over ['t8 t7', 't3 t2 t6']" in found.how
    assert found.amount == pytest.approx(2 * float(found.direction.norm()))
    first = difference(model, "t5 t9", "t8 t7", SITE, read=1)
    assert (
        relative(first.direction, model.capture("t5 t9", SITE)[SITE][0, 1] - model.capture("t8 t7", SITE)[SITE][0, 1])
        < 1e-5
    )
    with pytest.raises(UsageError, match="no direction between them"):
        difference(model, "t5", "t5", SITE)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"unit": "norm", "keep_norm": True},
        {"unit": "sd", "operation": "clamp"},
        {"below": 1.5},
        {"condition": Condition(sites.resid_post[0], vector(seed=8), float("-inf"), 0.5, "end")},
    ],
)
def test_what_is_saved_comes_back(options: dict[str, Any], tmp_path: Path) -> None:
    one = made(strength=1.0, how="by hand", **options)
    one.save(tmp_path / "v.st")
    back = Steering.load(tmp_path / "v.st", loaded("gpt2"))
    assert (str(back), back.table(), back.provenance, back.figures()) == (
        str(one), one.table(), one.provenance, one.figures()
    )  # fmt: skip
    model = loaded("gpt2")
    assert torch.equal(model.run(rows(), back.edits()).logits, model.run(rows(), one.edits()).logits)


def test_another_model_is_refused_wherever_it_is_used(tmp_path: Path) -> None:
    one, other = made(strength=1.0), loaded("llama")
    one.save(tmp_path / "v.st")
    edits, tokens = one.edits(), other.encode(rows())
    uses: list[Callable[[], Any]] = [
        lambda: Steering.load(tmp_path / "v.st", other),
        lambda: other.run(tokens, edits),
        lambda: other.generate(tokens, edits),
        lambda: other.grad(tokens, lambda logits: logits.sum(), [SITE], edits),
        lambda: plan(other, [Run(tokens, edits=edits, logits="end")]),
    ]
    for use in uses:
        with pytest.raises(WrongModel, match=r"was made for model .* this is model"):
            use()
    twin = cutaway.load(tiny("gpt2", seed=1), audit=False)
    with pytest.raises(WrongModel):
        twin.run(rows(), edits)
    acts = other.capture(rows(), [SITE])
    acts.save(tmp_path / "a.st")
    with pytest.raises(BrokenEvidence, match=r"holds 'activations', not 'steering'"):
        Steering.load(tmp_path / "a.st")


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: made(unit="feet"), UsageError, "unit='feet'; it is one of absolute, vector, norm, sd"),
        (lambda: made(operation="push"), UsageError, "operation='push'; it is one of add, clamp, ablate"),
        (lambda: made(strength=float("nan")), UsageError, "finite numbers are needed"),
        (lambda: made(operation="clamp", below=1.0), UsageError, "below= belongs to 'add'"),
        (lambda: made(operation="ablate", strength=0.5), UsageError, "takes the whole projection away"),
        (lambda: made(below=1.0, condition=Condition(SITE, vector())), UsageError, "below= is a condition of its own"),
        (lambda: steering(loaded("gpt2"), SITE, vector(), unit="sd"), UsageError, "needs a scale; measure it"),
        (lambda: steering(loaded("gpt2"), SITE, vector(31)), BadEdit, r"shape \[31\], the site \[32\]"),
        (lambda: steering(loaded("gpt2"), SITE, vector() * 0), BadEdit, "zero or not finite"),
        (lambda: steering(loaded("gpt2"), sites.z[1], vector()), BadEdit, r"shape \[32\], the site \[4, 8\]"),
        (lambda: measure(loaded("gpt2"), [[5]], SITE, vector()), UsageError, "0 tokens are left after the first 1"),
        (lambda: measure(loaded("gpt2"), REFERENCE, SITE, vector(), skip=-1), UsageError, "skip=-1"),
    ],
)
def test_what_means_nothing_is_refused(build: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        build()


def test_a_predicate_has_no_file(tmp_path: Path) -> None:
    one = made(strength=1.0)
    with pytest.raises(UsageError, match="has no form in a file"):
        replace(one, site=SITE.at(where(lambda text: True))).save(tmp_path / "v.st")
    with pytest.raises(EditNeverApplied):
        loaded("gpt2").run(rows(), one.at("new").edits())


def test_a_vector_that_lacks_a_part_is_broken(tmp_path: Path) -> None:
    manifest = {"kind": "steering", "format": 1, "provenance": {"model": "m", "data": "d", "code": "c", "seed": None}}
    save_tensors(tmp_path / "bare.safetensors", {"direction": torch.ones(2)}, manifest)
    with pytest.raises(BrokenEvidence, match="a part of the saved steering is missing"):
        Steering.load(tmp_path / "bare.safetensors")
