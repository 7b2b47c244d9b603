"""The store of base runs: what it saves, what it may never change, and how it keeps to its bound."""

import pytest
import torch

import cutaway
from cutaway import engine, sites
from cutaway.engine import Run, Store, execute, planner
from cutaway.errors import UsageError
from tests.families import tiny
from tests.models.samples import loaded, rows


@pytest.fixture(autouse=True)
def _plans_share_all_they_can(monkeypatch):
    monkeypatch.setattr(planner, "pass_overhead", lambda model: 0)


@pytest.fixture
def passes(monkeypatch):
    """Rows of every forward pass of a plan."""
    whole, seen = execute.forward, []
    monkeypatch.setattr(execute, "forward", lambda *a, **k: seen.append(len(a[1])) or whole(*a, **k))
    return seen


def sweep(model, tokens, scale=2.0):
    edits = [sites.resid_pre[layer].at(p).scale(scale) for layer in (1, 2) for p in (0, 4)]
    return [Run(tokens, logits="end"), *(Run(tokens, (edit,), (sites.resid_post[0],), "end") for edit in edits)]


def test_the_base_run_of_a_study_is_made_once(passes):
    model, store = loaded("gpt2"), Store(10**7)
    tokens = model.encode(rows())
    bare = engine.plan(model, sweep(model, tokens)).execute()
    alone = len(passes)
    first = engine.plan(model, sweep(model, tokens), store=store).execute()
    assert len(passes) == 2 * alone
    again = engine.plan(model, sweep(model, tokens), store=store).execute()
    assert len(passes) == 3 * alone - 1
    assert store.hits == store.misses == len(store)
    for a, b, c in zip(bare, first, again, strict=True):
        assert torch.equal(a.logits, b.logits)
        assert torch.equal(b.logits, c.logits)
        assert list(a.activations) == list(c.activations)
        for site in a.activations:
            assert torch.equal(a.activations[site], c.activations[site])


def test_what_is_missing_is_added(passes):
    model, store = loaded("llama"), Store(10**7)
    tokens = model.encode(rows())
    (donor,) = engine.plan(model, [Run(tokens, reads=(sites.z[1],))], store=store).execute()
    runs = [Run(tokens, reads=(sites.z[1], sites.resid_post[2]), logits="end")]
    (found,) = engine.plan(model, runs, store=store).execute()
    assert (store.hits, store.misses) == (1, 3)
    assert torch.equal(found.activations[sites.z[1]], donor.activations[sites.z[1]])
    assert torch.equal(found.logits, model.run(tokens, logits="end").logits)
    assert len(passes) == 2


def test_results_do_not_share_memory_with_the_store():
    model, store = loaded("gpt2"), Store(10**7)
    runs = [Run(model.encode(rows()), reads=(sites.z[1],), logits="all")]
    (one,) = engine.plan(model, runs, store=store).execute()
    kept = one.activations[sites.z[1]].clone(), one.logits.clone()
    one.activations[sites.z[1]].zero_()
    one.logits.zero_()
    (two,) = engine.plan(model, runs, store=store).execute()
    assert torch.equal(two.activations[sites.z[1]], kept[0])
    assert torch.equal(two.logits, kept[1])


def test_other_inputs_and_other_weights_are_other_runs(passes):
    model, store = cutaway.load(tiny("gpt2")), Store(10**7)
    one, two = model.encode(rows()), model.encode(rows(seed=2))
    first = [engine.plan(model, [Run(t, logits="end")], store=store).execute()[0].logits for t in (one, two)]
    assert not torch.equal(*first)
    with torch.no_grad():
        model.module.transformer.h[0].mlp.c_fc.weight.mul_(1.5)
    (changed,) = engine.plan(model, [Run(one, logits="end")], store=store).execute()
    assert not torch.equal(changed.logits, first[0])
    assert store.hits == 0
    assert len(passes) == 3


@pytest.mark.parametrize("max_bytes", [0, 4000])
def test_spilled_states_are_the_same_to_the_bit(max_bytes, tmp_path):
    model = loaded("gpt2")
    runs = sweep(model, model.encode(rows()))
    bare = engine.plan(model, runs).execute()
    with Store(max_bytes, spill=tmp_path) as store:
        for _ in range(2):
            found = engine.plan(model, runs, store=store).execute()
            assert store.held_bytes <= max_bytes
            assert store.spilled_bytes > 4000
            assert sum(file.stat().st_size for file in tmp_path.rglob("*.bin")) == store.spilled_bytes
            for a, b in zip(bare, found, strict=True):
                assert torch.equal(a.logits, b.logits)
                assert list(a.activations) == list(b.activations)
                assert all(torch.equal(a.activations[site], b.activations[site]) for site in a.activations)
        assert store.hits == store.misses
    assert not list(tmp_path.iterdir())


def test_without_a_folder_the_oldest_goes_first():
    model = loaded("gpt2")
    batches = [model.encode(rows(seed=seed)) for seed in (1, 2, 3)]
    size = batches[0].ids.numel() * 32 * 4
    store = Store(2 * size)
    for tokens in (*batches, batches[2]):
        engine.plan(model, [Run(tokens, reads=(sites.resid_post[0],))], store=store).execute()
        assert store.held_bytes <= 2 * size
    assert (len(store), store.hits, store.misses) == (2, 1, 3)
    engine.plan(model, [Run(batches[0], reads=(sites.resid_post[0],))], store=store).execute()
    assert store.misses == 4


def test_a_store_says_what_it_cannot_be(tmp_path):
    with pytest.raises(UsageError, match="max_bytes=-1: at least 0"):
        Store(-1)
    with pytest.raises(UsageError, match=r"nowhere'?: no such folder; make it"):
        Store(10, spill=tmp_path / "nowhere")
