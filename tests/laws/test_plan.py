"""Law: a plan changes the cost of runs, never their answer. Every family, every kind of edit, every packing."""

from functools import cache

import pytest
import torch

import cutaway
from cutaway import engine, sites
from cutaway.engine import Run, execute, planner
from cutaway.models import Model, Site, Tokens
from tests.families import CAUSAL, FAMILIES, tiny

TOLERANCE = 2e-5
"""Largest difference allowed, relative to the largest logit: products of another shape round differently in float32."""


@pytest.fixture(autouse=True)
def _plans_share_all_they_can(monkeypatch):
    """On models this small a pass costs more than what it saves, and plans would share nothing: leave that out."""
    monkeypatch.setattr(planner, "pass_overhead", lambda model: 0)
    monkeypatch.setattr(planner, "PROVE_FROM", 0)


@cache
def model_of(family: str) -> Model:
    return cutaway.load(tiny(family))


def prompts(model: Model, lengths=(9, 9, 6), pad="right", seed=1) -> Tokens:
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.randint(3, 99, (n,), generator=generator).tolist() for n in lengths]
    return model.encode(rows, pad=pad, roles={"subject": [1, 2, 1]})


def have(model: Model, kinds: list[str]) -> list[str]:
    return [kind for kind in kinds if kind in model.body.layers[1].taps and model.body.status(Site(kind, 1)).editable]


def residual(model: Model, clean: Tokens, corrupt: Tokens) -> list[Run]:
    acts = model.capture(
        clean, [Site(k, layer) for k in have(model, ["resid_pre", "resid_mid", "resid_post"]) for layer in range(3)]
    )
    places = ("subject", 0, -1, [1, 3], None)
    return [
        Run(corrupt, (site.at(pos).patch(acts),), reads=(Site("resid_post", 2),), logits="all")
        for i, site in enumerate(acts)
        for pos in (places[i % 5], places[(i + 2) % 5])
    ]


def ends(model: Model, clean: Tokens, corrupt: Tokens) -> list[Run]:
    """Only late logits are asked for, so that the last block need not compute the columns before them."""
    acts = model.capture(clean, sites.resid_pre[:])
    wanted = ("end", ((8, -2), (7, -1), (5, 4)))
    found = [
        Run(corrupt, (Site("resid_pre", layer).at(pos).patch(acts), *also), logits=wanted[(layer + i) % 2])
        for layer in range(3)
        for i, pos in enumerate((-2, 5, [3, 5]))
        for also in ((), (sites.v[layer].head(1).at(2).scale(3.0),))[layer % 2 :]
    ]
    return [
        *found,
        *(Run(corrupt, (sites.z[2].head(h).scale(-1.5),), logits=wanted[h % 2]) for h in (0, 3)),
        Run(corrupt, (sites.z[2].head(1).at(-1).zero(),), logits="end"),
    ]


def few(model: Model, clean: Tokens, corrupt: Tokens) -> list[Run]:
    """Logits of some token ids alone."""
    acts = model.capture(clean, [sites.resid_pre[1], sites.z[1]])
    vocab = ((5, 98), (7, 7), (0, 40))
    wanted = ("end", "all", ((1, 3), (3, 0), (2, 4)))
    edits = (sites.resid_pre[1].at(2).patch(acts), sites.z[1].head(2).patch(acts), sites.resid_post[2].at(3).zero())
    found = [Run(corrupt, (edit,), logits=at, vocab=vocab) for edit, at in zip(edits, wanted)]
    return [*found, *(Run(corrupt, logits=at, vocab=vocab) for at in wanted)]


def unlike(model: Model, clean: Tokens, corrupt: Tokens) -> list[Run]:
    """Some runs ask for some ids, others for other ids, or for all."""
    found = few(model, clean, corrupt)
    odd = [Run(r.inputs, r.edits, logits=r.logits, vocab=((1,), (2,), (3,)) if r.edits else None) for r in found]
    return [*found[:4], *odd[1:]]


def shared(model: Model, clean: Tokens, corrupt: Tokens) -> list[Run]:
    """What a search for circuits does: one set of edits, and one more at a time."""
    acts = model.capture(clean, [sites.resid_post[0], sites.z[1], sites.resid_pre[2]])
    common = (
        sites.z[0].head(1).scale(2.0),
        sites.resid_post[0].at([2, 4]).add(torch.linspace(-1.0, 1.0, 32)),
        sites.z[1].head(0).at(3).patch(acts),
        sites.resid_post[1].at(5).scale(-1.0),
    )
    more = (
        sites.z[1].head(3).zero(),
        sites.resid_post[0].at(4).scale(0.5),
        sites.resid_pre[2].at(5).patch(acts),
        sites.z[0].head(1).at("subject").zero(),
        sites.q[2].head(2).at(4).scale(3.0),
        sites.resid_pre[1].at("end").scale(2.0),
    )
    keys = (sites.v[1].head(0).scale(1.5), sites.k[2].head(1).at(1).scale(2.0))
    return [
        Run(corrupt, common, logits="end"),
        *(Run(corrupt, (*common, edit), (sites.resid_post[1],), "all") for edit in more),
        *(Run(corrupt, (*keys, edit), logits="end") for edit in more[:3]),
    ]


def heads(model: Model, clean: Tokens, corrupt: Tokens) -> list[Run]:
    acts = model.capture(clean, [Site(k, layer) for k in ("q", "k", "v", "z") for layer in range(3)])
    runs = []
    for i, site in enumerate(acts):
        last = model.body.n_units(site) - 1
        runs.append(Run(corrupt, (site.head(last).patch(acts),), logits="all" if i % 2 else "end"))
        runs.append(Run(corrupt, (site.head(0).at(2).scale(0.5),), (Site("z", 2),), logits="all"))
    return runs


def neurons(model: Model, clean: Tokens, corrupt: Tokens) -> list[Run]:
    kinds = have(model, ["mlp_pre", "mlp_act"])
    found = [
        Run(corrupt, (Site(kind, layer).neuron([0, 5]).at("end").add(torch.tensor([3.0, -2.0])),), logits="all")
        for kind in kinds
        for layer in range(3)
    ]
    return [
        *found,
        *(
            Run(corrupt, (Site(kind, 1).at("end").scale(-1.5),), logits="all")
            for kind in have(model, ["mlp_in", "mlp_out", "attn_in", "attn_out"])
        ),
    ]


def patterns(model: Model, clean: Tokens, corrupt: Tokens) -> list[Run]:
    acts = model.capture(clean, [sites.pattern[1]])
    return [
        Run(corrupt, (sites.pattern[1].head(2).patch(acts),), reads=(sites.z[1], sites.pattern[2]), logits="end"),
        Run(corrupt, (sites.scores[0].head(1).at(3).scale(2.0),), reads=(sites.pattern[0],), logits="all"),
        Run(corrupt, (sites.pattern[2].head([0, 3]).zero(),), logits="all"),
    ]


def several(model: Model, clean: Tokens, corrupt: Tokens) -> list[Run]:
    acts = model.capture(clean, [sites.resid_post[0], sites.z[2]])
    return [
        Run(
            corrupt,
            (
                sites.resid_post[0].at("subject").patch(acts),
                sites.z[2].head(1).zero(),
                sites.resid_pre[2].at(4).scale(2.0),
            ),
            logits="all",
        ),
        Run(
            corrupt,
            (sites.z[1].head(0).scale(2.0), sites.z[1].head(0).zero(), sites.z[1].head(3).rows([1]).zero()),
            reads=(sites.embed, sites.v[1]),
            logits="end",
        ),
        Run(corrupt, (), reads=(sites.resid_post[1], sites.pattern[0]), logits="end"),
        Run(
            corrupt,
            (sites.resid_post[1].at(3).project_out(torch.arange(32.0)),),
            reads=(sites.resid_post[0],),
            logits=((1, 3), (3, 0), (2, 4)),
        ),
    ]


def largest_difference(left: list, right: list) -> float:
    worst = 0.0
    for a, b in zip(left, right, strict=True):
        assert (a.logits is None) == (b.logits is None)
        pairs = [(a.activations[site], b.activations[site]) for site in a.activations]
        assert list(a.activations) == list(b.activations)
        for x, y in [*pairs, *([(a.logits, b.logits)] if a.logits is not None else [])]:
            assert x.shape == y.shape
            finite = y.abs() < 1e30  # masked scores are the dtype's lowest number
            worst = max(worst, float(((x - y) * finite).abs().max() / (y * finite).abs().max().clamp(min=1e-6)))
    return worst


EDITS = [residual, ends, heads, neurons, patterns, several, few, unlike, shared]


@pytest.mark.parametrize("edits", EDITS)
@pytest.mark.parametrize("family", FAMILIES)
def test_plan_equals_reference(family, edits):
    """Padding is on either side in turn: each family and each kind of edit sees both."""
    model = model_of(family)
    pad = ("right", "left")[(list(FAMILIES).index(family) + EDITS.index(edits)) % 2]
    clean, corrupt = prompts(model, pad=pad), prompts(model, pad=pad, seed=2)
    runs = edits(model, clean, corrupt)
    real = [torch.arange(n) + o for n, o in zip(corrupt.lengths, corrupt.offsets)]
    oracle = masked(engine.reference(model, runs), real)
    wanted = {(run.logits, run.vocab): Run(corrupt, logits=run.logits, vocab=run.vocab) for run in runs}
    plain = dict(zip(wanted, masked(engine.reference(model, list(wanted.values())), real)))
    same = [r for a, r in zip(oracle, runs) if r.edits and torch.equal(a.logits, plain[r.logits, r.vocab].logits)]
    assert not same, "every edit must matter, or the law is empty"
    for max_tokens in (4096, 20):
        found = masked(engine.plan(model, runs, max_tokens=max_tokens).execute(), real)
        assert largest_difference(found, oracle) < TOLERANCE, max_tokens


@pytest.mark.parametrize("family", FAMILIES)
def test_runs_on_different_inputs_as_rows_of_one_pass(family, monkeypatch):
    monkeypatch.setattr(planner, "pass_overhead", lambda model: 10**6)
    model = model_of(family)
    rows = [prompts(model, pad=pad, seed=seed) for pad, seed in (("right", 1), ("left", 2), ("right", 3))]
    acts = model.capture(rows[0], [sites.resid_pre[1]])
    runs = [Run(tokens, logits="end") for tokens in rows]
    runs += [Run(rows[2], (sites.resid_pre[1].at(p).patch(acts),), (sites.z[1],), "end") for p in ("subject", 0)]
    runs += [Run(rows[1], (sites.z[2].head(1).zero(),), logits="end", vocab=((3,), (4,), (5,)))]
    plan = engine.plan(model, runs)
    assert (plan.explain().passes, plan.explain().base_passes) == (1, 0)
    for run, a, b in zip(runs, plan.execute(), engine.reference(model, runs), strict=True):
        real = [torch.arange(n) + o for n, o in zip(run.inputs.lengths, run.inputs.offsets)]
        assert largest_difference(masked([a], real), masked([b], real)) < TOLERANCE
        assert a.activations.tokens is run.inputs
    assert plan.cost() == plan.explain().planned


@pytest.mark.parametrize("family", CAUSAL)
def test_what_donor_and_base_have_in_common_is_not_run(family, monkeypatch):
    """Prompts that agree up to their fourth token: patches before it give the base run, to the bit."""
    model = model_of(family)
    corrupt = prompts(model)
    ids = corrupt.ids.clone()
    ids[:, 4] = (ids[:, 4] + 1) % 90 + 3
    clean = Tokens(ids, corrupt.mask, corrupt.roles)
    acts = model.capture(clean, [sites.resid_pre[2], sites.z[1]])
    idle = [Run(corrupt, (s.at(p).patch(acts),), (sites.z[2],), "end") for s in acts for p in (0, 3, [1, 2])]
    real = [Run(corrupt, (s.at(p).patch(acts),), (sites.z[2],), "end") for s in acts for p in (4, [1, 4])]
    plan = engine.plan(model, [Run(corrupt, (), (sites.z[2],), "end"), *idle, *real])
    assert f"{len(idle)} runs patch what may be there already" in str(plan.explain())
    whole, passes = execute.forward, []
    monkeypatch.setattr(execute, "forward", lambda *a, **k: passes.append(len(a[1])) or whole(*a, **k))
    base, *found = plan.execute()
    assert sum(passes) == len(corrupt) * (1 + len(real)) + len(corrupt) * sum(g.cut is not None for g in groups(plan))
    for a in found[: len(idle)]:
        assert torch.equal(a.logits, base.logits)
        assert torch.equal(a.activations[sites.z[2]], base.activations[sites.z[2]])
    oracle = engine.reference(model, [*idle, *real])
    assert largest_difference(found, oracle) < TOLERANCE
    # a donor from an edited run says something else at the same tokens: it is compared, not believed
    other = model.run(clean, [sites.resid_post[0].scale(1.5)], [sites.resid_pre[2]], "none").activations
    runs = [Run(corrupt, (sites.resid_pre[2].at(1).patch(other),), logits="all"), Run(corrupt, logits="all")]
    a, b = engine.plan(model, runs).execute()
    assert largest_difference([a], engine.reference(model, runs[:1])) < TOLERANCE
    assert not torch.equal(a.logits, b.logits)


def groups(plan: engine.Plan) -> list:
    return [group for share in plan.shares for group in share.groups if not group.same for _ in group.runs]


@pytest.mark.parametrize("family", CAUSAL)
def test_one_more_edit_costs_what_it_changes(family):
    """A set of edits and one more: from a base run that has the set, not from the beginning."""
    model = model_of(family)
    tokens = prompts(model, (16, 16, 16))
    common = tuple(sites.z[layer].head(0).zero() for layer in range(3))
    late = [Run(tokens, (*common, sites.z[2].head(h).at(p).zero()), logits="end") for h in (1, 2) for p in (9, 12)]
    explained = engine.plan(model, [Run(tokens, common, logits="end"), *late]).explain()
    assert "4 runs start from base runs that have all their edits but one" in explained.notes
    assert explained.planned < 48 * 3 + 48 * len(late) / 2
    alone = engine.plan(model, late[:1]).explain()
    assert explained.planned < 0.6 * (alone.planned * 5)


def masked(results: list, real: list[torch.Tensor]) -> list:
    """Padding holds numbers that nobody may read: zero them in whole-row logits and drop them from sites."""
    kept = []
    for result in results:
        mask = torch.zeros(3, 9, dtype=torch.bool)
        for row, columns in enumerate(real):
            mask[row, columns] = True
        logits = result.logits
        if logits is not None and logits.shape[1] == 9:
            logits = logits * mask[:, :, None]
        values = {}
        for site, value in result.activations.tensors.items():
            shape = (3, 1, 9) if site.kind in ("scores", "pattern") else (3, 9)
            values[site] = value * mask.view(*shape, *[1] * (value.ndim - len(shape)))
        kept.append(type(result)(logits, type(result.activations)(values, None, result.activations.model)))
    return kept


@pytest.mark.parametrize("family", CAUSAL)
def test_plan_saves_and_says_so(family):
    model = model_of(family)
    clean, corrupt = prompts(model, (16, 16, 16)), prompts(model, (16, 16, 16), seed=2)
    acts = model.capture(clean, sites.resid_pre[:])
    runs = [Run(corrupt, (site.at(p).patch(acts),), logits="end") for site in acts for p in range(16)]
    explained = engine.plan(model, runs).explain()
    assert explained.naive == 48 * 48 * 3
    assert explained.bound <= explained.planned < 0.45 * explained.naive
    assert f"{explained.ratio:.1f} times fewer" in str(explained)
    assert f"the plan is {explained.nearness:.2f} times that" in str(explained)
    assert not [note for note in explained.notes if note.startswith("not used")]


def test_reduce_keeps_row_order_in_any_chunks():
    model = model_of("llama")
    clean, corrupt = prompts(model), prompts(model, seed=2)
    acts = model.capture(clean, [sites.resid_post[1]])
    runs = [Run(corrupt, (sites.resid_post[1].at("subject").patch(acts),), logits="end"), Run(corrupt, logits="end")]
    whole = engine.plan(model, runs).execute(reduce=lambda result, rows: result.logits[:, 0])
    for max_tokens in (9, 18):
        seen = []
        parts = engine.plan(model, runs, max_tokens=max_tokens).execute(
            reduce=lambda r, rows, seen=seen: seen.append(rows.tolist()) or r.logits[:, 0]
        )
        assert sorted(r for rows in seen for r in rows) == [0, 0, 1, 1, 2, 2]
        for a, b in zip(whole, parts, strict=True):
            assert torch.allclose(a, b, atol=1e-5)


def test_rows_without_an_edit_are_as_if_there_was_none():
    model = model_of("gpt2")
    corrupt = prompts(model)
    run = Run(corrupt, (sites.z[1].head(0).rows([2]).zero(),), logits="all")
    for max_tokens in (4096, 9):
        edited = engine.plan(model, [run], max_tokens=max_tokens).execute()[0].logits
        plain = model.run(corrupt).logits
        assert torch.allclose(edited[:2], plain[:2], atol=1e-5)
        assert not torch.allclose(edited[2, :6], plain[2, :6], atol=1e-3)


def test_progress_reaches_the_whole():
    model = model_of("qwen3")
    corrupt = prompts(model)
    runs = [Run(corrupt, (sites.z[layer].head(h).zero(),), logits="end") for layer in range(3) for h in range(4)]
    seen: list[tuple[int, int]] = []
    engine.plan(model, runs, max_tokens=30).execute(progress=lambda done, total: seen.append((done, total)))
    assert seen[-1][0] == seen[-1][1]
    assert [d for d, _ in seen] == sorted({d for d, _ in seen})
