"""The estimate of memory: to the byte for what is stored, and a plan that does not fit is refused with what would."""

import pytest

from cutaway import engine, sites
from cutaway.engine import Run, execute, memory, planner
from cutaway.errors import OutOfMemory, UsageError
from tests.models.samples import loaded, rows


@pytest.fixture(autouse=True)
def _plans_share_all_they_can(monkeypatch):
    monkeypatch.setattr(planner, "pass_overhead", lambda model: 0)
    monkeypatch.setattr(planner, "PROVE_FROM", 0)


def sweep(model, n=8):
    tokens = model.encode(rows((9,) * n))
    edits = [sites.resid_pre[layer].at(p).scale(2.0) for layer in (0, 1, 2) for p in (3, 7)]
    heads = [sites.z[layer].head(1).scale(2.0) for layer in (0, 1, 2)]
    return [Run(tokens, logits="end"), *(Run(tokens, (edit,), logits="end") for edit in (*edits, *heads))]


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("max_tokens", [4096, 20])
def test_stored_bytes_are_what_base_runs_hold(family, max_tokens, monkeypatch):
    model, held = loaded(family), []
    whole = execute._base_pass

    def watched(*args):
        logits, values = whole(*args)
        held.append(sum(v.numel() * v.element_size() for v in [logits, *values.values()]))
        return logits, values

    monkeypatch.setattr(execute, "_base_pass", watched)
    plan = engine.plan(model, sweep(model), max_tokens=max_tokens)
    plan.execute()
    assert plan.explain().stored_bytes == max(held) > 0
    assert memory.shown(max(held)) in str(plan.explain())


@pytest.mark.parametrize("overhead", [0, 10**6])
def test_a_plan_beyond_the_bound_is_refused_with_one_that_fits(overhead, monkeypatch):
    monkeypatch.setattr(planner, "pass_overhead", lambda model: overhead)
    model = loaded("gpt2")
    free = engine.plan(model, sweep(model))
    needed = memory.needed(free)
    assert engine.plan(model, sweep(model), max_bytes=needed).max_tokens == free.max_tokens
    with pytest.raises(OutOfMemory, match=r"this plan needs about .* use max_tokens=\d+ \(now 4096\)") as caught:
        engine.plan(model, sweep(model), max_bytes=needed // 3)
    assert caught.value.needed == needed
    smaller = engine.plan(model, sweep(model), max_tokens=caught.value.fit, max_bytes=needed // 3)
    assert memory.needed(smaller) <= needed // 3
    with pytest.raises(OutOfMemory, match="use fewer rows at a time, or shorter prompts"):
        engine.plan(model, sweep(model), max_bytes=1000)


def test_the_bound_is_a_positive_number():
    model = loaded("gpt2")
    with pytest.raises(UsageError, match="max_bytes=0: at least 1"):
        engine.plan(model, sweep(model), max_bytes=0)
