"""The planner: what it refuses, what it gives up, what it promises; and the results of a plan as a user gets them."""

import pytest
import torch

import cutaway
from cutaway import engine, sites
from cutaway.engine import Run, planner
from cutaway.errors import (
    BadEdit,
    EditFailed,
    EditNeverApplied,
    ModelInTraining,
    OutOfMemory,
    OutOfRange,
    UsageError,
    WrongModel,
)
from cutaway.models.sites import where
from tests.families import tiny
from tests.models.samples import hooked, loaded, part, relative, rows, spoken, vector

SITE = sites.resid_post[1]


@pytest.fixture
def free(monkeypatch):
    """Passes cost nothing, so that plans share all that they can."""
    monkeypatch.setattr(planner, "pass_overhead", lambda model: 0)


def sweep(model, lengths=(9, 9, 9)):
    clean, corrupt = model.encode(rows(lengths)), model.encode(rows(lengths, seed=2))
    acts = model.capture(clean, sites.resid_pre[:])
    return [Run(corrupt, (site.at(p).patch(acts),), logits="end") for site in acts for p in (0, 3, -1)]


@pytest.mark.parametrize(
    ("run", "error", "message"),
    [
        (lambda t: Run(t, (SITE.zero(),)), UsageError, "run 1 returns nothing: ask for reads, or for logits"),
        (lambda t: Run(t, (sites.z[7].zero(),), logits="end"), OutOfRange, r"'z.7': this model has 3 layers"),
        (lambda t: Run(t, (SITE.add(torch.ones(3)),), logits="end"), BadEdit, r"shape \[3\]"),
        (
            lambda t: Run(t, (SITE.at(where(lambda x: False)).zero(),), logits="end"),
            EditNeverApplied,
            "selects no token",
        ),
        (lambda t: Run(t, reads=(sites.z[9],)), OutOfRange, "3 layers"),
        (lambda t: Run(t, logits="nowhere"), UsageError, "'nowhere'.*'end'"),
        (lambda t: Run(t, logits="end", vocab=((1, 2), (3, 4))), UsageError, "vocab holds 2 rows.*for 3 rows"),
        (lambda t: Run(t, logits="end", vocab=((1,), (3, 4), (5,))), UsageError, "each row equally many ids"),
        (lambda t: Run(t, logits="end", vocab=((1,), (99,), (5,))), OutOfRange, r"token 99.*99 \(0-98\)"),
        (
            lambda t: Run(t, (SITE.patch(loaded("llama").capture(t, [SITE])),), logits="end"),
            WrongModel,
            "source of a patch was made for model",
        ),
    ],
)
def test_all_is_checked_before_anything_runs(run, error, message, monkeypatch):
    model = spoken("gpt2")
    tokens = model.encode(rows())
    bad = run(tokens)
    ran = []
    with hooked(part(model, "transformer.h.0"), lambda x: ran.append(1) or x), pytest.raises(error, match=message):
        engine.plan(model, [Run(tokens, logits="end"), bad])
    assert not ran


def test_nothing_to_plan_and_no_room_are_refused():
    model = loaded("gpt2")
    with pytest.raises(UsageError, match="no runs: nothing to plan"):
        engine.plan(model, [])
    with pytest.raises(UsageError, match="max_tokens=0: at least 1"):
        engine.plan(model, [Run(model.encode(rows()), logits="end")], max_tokens=0)


def test_training_mode_is_refused():
    model = cutaway.load(tiny("gpt2"), audit=False)
    model.module.train()
    with pytest.raises(ModelInTraining, match=r"call model.module.eval\(\)"):
        engine.plan(model, [Run(model.encode(rows()), logits="end")])


def test_out_of_memory_says_which_bound_would_fit(free):
    model = cutaway.load(tiny("gpt2"))
    plan = engine.plan(model, sweep(model), max_tokens=64)

    def full(value):
        raise torch.OutOfMemoryError("out of memory")

    with (
        hooked(part(model, "transformer.h.2"), full),
        pytest.raises(OutOfMemory, match=r"execute it with max_tokens=32 \(now 64\)") as caught,
    ):
        engine.Plan(plan.model, plan.runs, plan.shares, 64).execute()
    assert caught.value.fit == 32
    assert caught.value.rows >= 1


def test_an_exception_in_an_edit_leaves_the_model_as_it_was(free):
    model = loaded("llama")
    tokens = model.encode(rows())
    before = model.run(tokens).logits

    def broken(value):
        raise KeyError("mine")

    runs = [*sweep(model), Run(tokens, (sites.z[2].at(4).apply(broken),), logits="end")]
    with pytest.raises(EditFailed, match="KeyError"):
        engine.plan(model, runs).execute()
    assert not [
        n for n, m in model.module.named_modules() if "forward" in vars(m) or m._forward_hooks or m._forward_pre_hooks
    ]
    assert torch.equal(model.run(tokens).logits, before)


def test_blocks_and_columns_before_an_edit_are_not_computed_again(free):
    model = loaded("llama")
    plan = engine.plan(model, sweep(model))
    widths: dict[int, list[int]] = {0: [], 2: []}
    with (
        hooked(part(model, "model.layers.0.mlp"), lambda x: widths[0].append(x.shape[1]) or x),
        hooked(part(model, "model.layers.2.mlp"), lambda x: widths[2].append(x.shape[1]) or x),
    ):
        found = plan.execute()
    assert sorted(widths[0]) == [1, 6, 9, 9]  # the base run, and what begins in the first block
    assert sorted(widths[2]) == [1] * 9  # the last block gives one column; the base run ends at its keys and values
    assert len(found) == 9


def test_one_full_pass_a_run_where_a_foreign_hook_may_look_at_rows_and_columns(free):
    model = cutaway.load(tiny("llama"))

    def steer(value):
        out = value.clone()
        out[0, 3] += vector()
        return out

    with hooked(part(model, "model.layers.0"), steer):
        plan = engine.plan(model, sweep(model))
        assert "one full pass a run: module 'model.layers.0' has a hook" in str(plan.explain())
        for a, b in zip(plan.execute(), engine.reference(model, sweep(model)), strict=True):
            assert torch.equal(a.logits, b.logits)
    assert "full pass" not in str(engine.plan(model, sweep(model)).explain())


def test_what_the_audit_did_not_prove_is_not_used(free):
    model = cutaway.load(tiny("gpt2"), audit=False)
    runs = sweep(model)
    explained = engine.plan(model, runs).explain()
    assert explained.planned >= explained.naive
    assert "not used: starting at a later layer: not audited" in explained.notes
    for a, b in zip(engine.plan(model, runs).execute(), engine.reference(model, runs), strict=True):
        assert relative(a.logits, b.logits) < 2e-5


def test_a_small_model_shares_no_passes_and_a_large_one_does():
    model = loaded("gpt2")
    assert planner.pass_overhead(model) > 100
    explained = engine.plan(model, sweep(model)).explain()
    assert (explained.passes, explained.base_passes) == (1, 0)


def test_results_of_runs_are_independent(free):
    model = loaded("gpt2")
    tokens = model.encode(rows())
    runs = [Run(tokens, (sites.resid_post[2].at(p).zero(),), (sites.resid_post[0],), "end") for p in (3, 4)]
    runs += [Run(tokens, (), (sites.resid_post[0],), "end")] * 2
    found = engine.plan(model, runs).execute()
    kept = found[1].activations["resid_post.0"].clone()
    found[0].activations["resid_post.0"].zero_()
    found[2].activations["resid_post.0"].zero_()
    for other in (found[1], found[3]):
        assert torch.equal(other.activations["resid_post.0"], kept)


def test_rows_in_chunks_where_only_some_rows_are_edited(free):
    model = spoken("gpt2")
    batch = [[i if i != 7 else 8 for i in row] for row in rows((5, 5, 5))]
    batch[0][2] = batch[2][3] = 7
    tokens = model.encode(batch)
    edit = SITE.at(where(lambda t: t == "t7")).rows([1, 2]).zero()
    run = Run(tokens, (edit,), logits="all")
    for max_tokens in (5, 10, 4096):
        found = engine.plan(model, [run], max_tokens=max_tokens).execute()[0].logits
        assert relative(found, engine.reference(model, [run])[0].logits) < 2e-5


def test_the_bound_on_tokens_is_kept(free):
    model = loaded("gpt2")
    for max_tokens in (9, 20, 60):
        plan = engine.plan(model, sweep(model), max_tokens=max_tokens)
        seen = []
        with hooked(part(model, "transformer.wte"), lambda x, seen=seen: seen.append(x.shape[0] * x.shape[1]) or x):
            plan.execute()
        assert max(seen) == plan.explain().widest <= max_tokens
        assert len(seen) == plan.explain().passes
