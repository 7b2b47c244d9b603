"""The page of outcomes is fresh, complete, and has no silent cell; the frame can tell right from wrong."""

import pytest
import torch

from cutaway.errors import UsageError
from tests.silent.shapes import SHAPES, changed, shape, snapshot
from tests.silent.suite import RAISES, RIGHT, Case, Refused, Right, cases, judge
from tests.silent.table import PAGE, page


def test_the_page_is_fresh() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run `python -m tests.silent.table`"


def test_every_case_ends_right_or_refused() -> None:
    known = cases()
    assert {case.outcome for case in known.values()} == {RIGHT, RAISES}
    assert len([name for name in known if name.startswith("20")]) >= 10
    for case in known.values():
        assert set(case.shapes) <= {*SHAPES, "bloom", "gpt_oss"}
        assert case.outcome == RAISES or case.kind == "must-work" or case.name == "4f"
        assert case.kind == "mistake" or case.outcome == RIGHT or case.name == "9b"


def test_every_measured_case_is_here() -> None:
    text = page()
    assert text.count("| must-work | ") + text.count("| mistake | ") == 2 + len(cases()) + 65 + 12


def _case(attempt) -> Case:
    return Case("0", "must-work", "", lambda t: [attempt(t)], ("gpt2",))


def fails(t):
    raise UsageError("something else")


@pytest.mark.parametrize(
    ("attempt", "outcome"),
    [
        (lambda t: Right("", lambda: t.wanted() + 1e-4, t.wanted()), "WRONG"),
        (lambda t: Right("", lambda: t.wanted()[:, :1], t.wanted()), "WRONG"),
        (lambda t: Right("", lambda: t.wanted() * float("nan"), t.wanted()), "WRONG"),
        (lambda t: Right("", lambda: fails(t), t.wanted()), "raised"),
        (lambda t: Right("", lambda: t.nothing, t.wanted()), "obscure"),
        (lambda t: Refused("", lambda: t.wanted(), "cause"), "WRONG"),
        (lambda t: Refused("", lambda: fails(t), "cause"), "obscure"),
        (lambda t: Refused("", lambda: t.nothing, "nothing"), "obscure"),
        (lambda t: Right("", lambda: (t.hf.requires_grad_(False), t.wanted())[1], t.wanted()), "side effect"),
    ],
)
def test_a_failure_is_seen(attempt, outcome) -> None:
    assert judge(_case(attempt), "gpt2").outcome == outcome


def test_a_case_that_proves_nothing_is_an_error() -> None:
    with pytest.raises(AssertionError, match="proves nothing"):
        judge(_case(lambda t: Right("idle", lambda: t.wanted(), t.wanted(), t.wanted())), "gpt2")


def test_what_must_not_change_is_watched() -> None:
    here = shape("gpt2")
    before = snapshot(here.hf)
    assert changed(before, snapshot(here.hf)) == []
    for change, name in (
        (lambda: next(here.hf.parameters()).data.view(-1)[:1].add_(1e-3), "parameters"),
        (lambda: setattr(next(here.hf.parameters()), "grad", torch.zeros(99, 32)), "flags"),
        (lambda: here.block.train(), "modes"),
        (lambda: here.block.register_forward_hook(lambda *_: None), "hooks"),
        (lambda: setattr(here.block, "forward", here.block.forward), "entries"),
        (lambda: here.hf.set_attn_implementation("eager"), "attention"),
        (lambda: here.block.register_buffer("more", torch.zeros(1)), "keys"),
    ):
        before = snapshot(here.hf)
        change()
        assert name in changed(before, snapshot(here.hf))
