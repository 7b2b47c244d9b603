"""Laws of ablation: constants cost nothing, values are what their names say, donors are never the pair itself."""

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch

from cutaway.errors import Misaligned, SiteUnavailable, UnknownName, UsageError
from cutaway.models import Model, load, sites
from cutaway.patching import ablate
from cutaway.patching.ablate import donor_rows, mean, spread
from cutaway.patching.optimal import held_out
from tests.families import FAMILIES, tiny
from tests.patching.pairs import hooked, loaded, plain_scores, token_batch, token_task

CLOSE = {"atol": 2e-5, "rtol": 1e-4}


@pytest.fixture(scope="module")
def gpt2() -> Model:
    return loaded("gpt2")


def test_zero_equals_hand_hooks(gpt2: Model) -> None:
    batch = token_batch(gpt2, lengths=(7, 5))
    effects = ablate(gpt2, batch, sites.mlp_out[:], value="zero")
    expected = [
        plain_scores(batch, hooked(gpt2.module, batch.clean, {block.mlp: lambda m, args, out: torch.zeros_like(out)}))
        for block in gpt2.module.transformer.h
    ]
    torch.testing.assert_close(effects.values, torch.stack(expected), **CLOSE)
    assert effects.raw.abs().min() > 1e-4
    assert (effects.method, effects.on) == ("zero", "clean")
    assert torch.equal(effects.base, effects.clean)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("value", ["mean", "mean_by_position", "resample"])
def test_what_is_constant_costs_nothing(family: str, value: str) -> None:
    """Every pair is the same pair: means by position and other rows' values are the row's own."""
    model = loaded(family)
    batch = token_batch(model, n=1)
    batch = replace(batch, clean=batch.clean.take([0] * 4), corrupt=batch.clean.take([0] * 4))
    batch = replace(
        batch, ids=tuple("abcd"), clusters=("x", "x", "y", "y"), answers=batch.answers * 4, foils=batch.foils * 4
    )
    where = "end" if value == "mean" else None
    wanted = [sites.z[1].at(where), sites.mlp_out[1].at(where), sites.resid_post[0].at(where)]
    effects = ablate(model, batch, wanted, value=value, on="corrupt")
    if value == "mean":
        assert effects.raw.abs().max() > 1e-3  # a mean over unlike positions is not constant
    else:
        torch.testing.assert_close(effects.raw, torch.zeros(3, 4), atol=1e-5, rtol=0)


def test_the_mean_of_a_constant_write_costs_nothing() -> None:
    module = tiny("gpt2")
    for block in module.transformer.h:
        torch.nn.init.zeros_(block.mlp.c_proj.weight)  # what is left is the bias: the same at every token
    model = load(module, audit=False)
    effects = ablate(model, token_task(model, lengths=(7, 4)), [sites.mlp_out[1], sites.attn_out[1]], value="mean")
    torch.testing.assert_close(effects.raw[0], torch.zeros(6), atol=1e-5, rtol=0)
    assert effects.raw[1].abs().max() > 1e-3


def test_the_mean_is_over_real_tokens_of_both_sides(gpt2: Model) -> None:
    batch = token_batch(gpt2, lengths=(7, 3))
    rows = [gpt2.encode([tokens.row(i)]) for tokens in (batch.clean, batch.corrupt) for i in range(batch.n)]
    vectors = torch.cat([gpt2.capture(row, "z.1")["z.1"][0] for row in rows])
    captured = [gpt2.capture(tokens, "z.1") for tokens in (batch.clean, batch.corrupt)]
    torch.testing.assert_close(mean(captured, sites.z[1]), vectors.mean(0), **CLOSE)
    torch.testing.assert_close(mean(captured, sites.z[1].head(2)), vectors.mean(0)[2], **CLOSE)
    torch.testing.assert_close(mean(captured, sites.z[1].head([3, 0]).at("end")), vectors.mean(0)[[3, 0]], **CLOSE)
    effects = ablate(gpt2, batch, "z.1.h2")
    logits = gpt2.run(batch.clean, edits=[sites.z[1].head(2).fill(vectors.mean(0)[2])], logits="end").logits
    assert logits is not None
    torch.testing.assert_close(effects.values[0], batch.values(logits), **CLOSE)
    assert effects.raw.abs().max() > 1e-3


def test_a_mean_over_another_reference(gpt2: Model) -> None:
    batch, elsewhere = token_batch(gpt2), token_batch(gpt2, seed=9)
    own, other = ablate(gpt2, batch, "mlp_out.1"), ablate(gpt2, batch, "mlp_out.1", reference=elsewhere.clean)
    vector = gpt2.capture(elsewhere.clean, "mlp_out.1")["mlp_out.1"].mean((0, 1))
    logits = gpt2.run(batch.clean, edits=[sites.mlp_out[1].fill(vector)], logits="end").logits
    assert logits is not None
    torch.testing.assert_close(other.values[0], batch.values(logits), **CLOSE)
    assert not torch.allclose(own.values, other.values, atol=1e-4)


def test_means_by_position(gpt2: Model) -> None:
    batch = token_batch(gpt2)
    acts = torch.cat([gpt2.capture(tokens, "z.1")["z.1"] for tokens in (batch.clean, batch.corrupt)])
    average = acts.mean(0).expand(6, *acts.shape[1:])
    logits = gpt2.run(batch.clean, edits=[sites.z[1].replace(average.clone())], logits="end").logits
    assert logits is not None
    effects = ablate(gpt2, batch, ["z.1", "z.1@end", "z.1@2,5", "z.1.h3@end"], value="mean_by_position")
    torch.testing.assert_close(effects.values[0], batch.values(logits), **CLOSE)
    logits = gpt2.run(batch.clean, edits=[sites.z[1].head(3).at(6).replace(average[0, 6, 3])], logits="end").logits
    assert logits is not None
    torch.testing.assert_close(effects.values[3], batch.values(logits), **CLOSE)
    assert effects.raw.abs().amax(1).min() > 1e-4
    assert effects.labels == ("z.1", "z.1@end", "z.1@2,5", "z.1.h3@end")


def test_patterns_by_position_stay_causal(gpt2: Model) -> None:
    batch = token_batch(gpt2)
    effects = ablate(gpt2, batch, sites.pattern[1].head(0), value="mean_by_position")
    acts = torch.cat([gpt2.capture(tokens, "pattern.1")["pattern.1"] for tokens in (batch.clean, batch.corrupt)])
    average = acts.mean(0)[0].expand(6, 7, 7).clone()
    assert torch.equal(average, average.tril())
    logits = gpt2.run(batch.clean, edits=[sites.pattern[1].head(0).replace(average)], logits="end").logits
    assert logits is not None
    torch.testing.assert_close(effects.values[0], batch.values(logits), **CLOSE)
    with pytest.raises(UsageError, match="mean_by_position"):
        ablate(gpt2, batch, "pattern.1.h0", value="mean")


def test_resampling_takes_other_rows(gpt2: Model) -> None:
    batch = token_batch(gpt2, lengths=(7, 5), n=12)
    donors = donor_rows(batch, batch.clean, seed=4)
    effects = ablate(gpt2, batch, ["z.1.h2", "resid_post.0"], value="resample", seed=4)
    expected = []
    for site in (sites.z[1].head(2), sites.resid_post[0]):
        acts = gpt2.capture(batch.clean.take(donors), site.base)
        logits = gpt2.run(batch.clean, edits=[site.patch(acts)], logits="end").logits
        assert logits is not None
        expected.append(batch.values(logits))
    torch.testing.assert_close(effects.values, torch.stack(expected), **CLOSE)
    assert effects.raw.abs().max() > 1e-2
    assert effects.provenance.seed == 4


@pytest.mark.parametrize("seed", range(20))
def test_donors_are_a_derangement_across_clusters_and_within_lengths(gpt2: Model, seed: int) -> None:
    batch = token_batch(gpt2, n=12, lengths=(7, 5), clusters=3)
    donors = donor_rows(batch, batch.clean, seed)
    assert sorted(donors) == list(range(12))
    assert all(donor != row for row, donor in enumerate(donors))
    assert all(batch.clean.lengths[donor] == batch.clean.lengths[row] for row, donor in enumerate(donors))
    assert all(batch.clusters[donor] != batch.clusters[row] for row, donor in enumerate(donors))
    assert donors == donor_rows(batch, batch.clean, seed)


def test_seeds_choose_different_donors(gpt2: Model) -> None:
    batch = token_batch(gpt2, n=12)
    assert len({tuple(donor_rows(batch, batch.clean, seed)) for seed in range(10)}) > 5


@pytest.mark.parametrize(("names", "stay"), [("aaaaaabb", 4), ("aaaaaaaa", 8), ("aaaabbcc", 0), ("abcdefgh", 0)])
def test_as_few_donors_as_possible_share_the_cluster(gpt2: Model, names: str, stay: int) -> None:
    batch = replace(token_batch(gpt2, n=8), clusters=tuple(names))
    donors = donor_rows(batch, batch.clean, seed=1)
    assert all(donor != row for row, donor in enumerate(donors))
    assert Counter(names[donor] == names[row] for row, donor in enumerate(donors))[True] == stay


def test_both_rows_of_a_pair_share_their_donor(gpt2: Model) -> None:
    batch = token_batch(gpt2, n=6, metric="logprob_diff", d_answer=2)
    donors = donor_rows(batch, batch.clean, seed=0)
    assert donors[6:] == [donor + 6 for donor in donors[:6]]
    assert ablate(gpt2, batch, "z.1", value="resample").values.shape == (1, 6)


def test_a_pair_without_a_partner_is_named(gpt2: Model) -> None:
    batch = token_batch(gpt2, n=3, lengths=(7, 7, 5))
    with pytest.raises(Misaligned, match=r"pair '2'.*value='mean'"):
        ablate(gpt2, batch, "z.1", value="resample")
    assert ablate(gpt2, batch, "z.1@end", value="resample").values.shape == (1, 3)  # a named position needs no length


def test_together_is_one_run_with_all_edits(gpt2: Model) -> None:
    batch = token_batch(gpt2)
    wanted = ["z.0.h1", "z.1.h2", "mlp_act.2.n5"]
    apart = ablate(gpt2, batch, wanted, value="zero")
    both = ablate(gpt2, batch, wanted, value="zero", together=True)
    assert both.labels == ("z.0.h1 + z.1.h2 + mlp_act.2.n5",)
    edits = [sites.z[0].head(1).zero(), sites.z[1].head(2).zero(), sites.mlp_act[2].neuron(5).zero()]
    logits = gpt2.run(batch.clean, edits=edits, logits="end").logits
    assert logits is not None
    torch.testing.assert_close(both.values[0], batch.values(logits), **CLOSE)
    assert not torch.allclose(both.raw[0], apart.raw[0], atol=1e-4)


def test_the_corrupt_side_can_be_ablated(gpt2: Model) -> None:
    batch = token_batch(gpt2)
    effects = ablate(gpt2, batch, "mlp_out.0", value="zero", on="corrupt")
    logits = gpt2.run(batch.corrupt, edits=[sites.mlp_out[0].zero()], logits="end").logits
    assert logits is not None
    torch.testing.assert_close(effects.values[0], batch.values(logits), **CLOSE)
    assert torch.equal(effects.base, effects.corrupt)


def logits_with(model: Model, batch: Any, *edits: Any) -> torch.Tensor:
    """Metric of the clean run with edits, in one plain run."""
    logits = model.run(batch.clean, edits=list(edits), logits=batch.logits).logits
    assert logits is not None
    return batch.values(logits)


def test_means_of_a_cluster_are_over_its_own_rows(gpt2: Model) -> None:
    """Three clusters of two pairs, of 7, 5 and 6 tokens: means need equal lengths only inside a cluster."""
    batch = token_batch(gpt2, lengths=(7, 5, 6), clusters=3)
    assert batch.clusters == ("c0", "c1", "c2") * 2
    effects = ablate(gpt2, batch, ["z.1", "mlp_out.1@subject", "z.1.h2@1,3"], value="mean_by_cluster")
    captured = [gpt2.capture(tokens, ["z.1", "mlp_out.1"]) for tokens in (batch.clean, batch.corrupt)]
    for site, found in zip((sites.z[1], sites.mlp_out[1].at("subject"), sites.z[1].head(2).at([1, 3])), effects.values):
        whole = torch.stack([acts[site] for acts in captured])
        value = torch.stack([whole[:, [i, (i + 3) % 6]].mean((0, 1)) for i in range(6)])
        torch.testing.assert_close(found, logits_with(gpt2, batch, site.replace(value)), **CLOSE)
    assert effects.raw.abs().amax(1).min() > 1e-4
    one = replace(batch, clusters=("a",) * 6)
    same = ablate(gpt2, one, "mlp_out.1@subject", value="mean_by_cluster")
    torch.testing.assert_close(same.values, ablate(gpt2, one, "mlp_out.1@subject", value="mean_by_position").values)


def test_several_donors_are_averaged_and_each_is_kept(gpt2: Model) -> None:
    batch = token_batch(gpt2, n=12, lengths=(7, 5))
    effects = ablate(gpt2, batch, ["z.1.h2", "mlp_out.0"], value="resample", seed=4, draws=3)
    assert effects.draws is not None
    for draw in range(3):
        donors = donor_rows(batch, batch.clean, 4, draw=draw)
        acts = gpt2.capture(batch.clean.take(donors), ["z.1", "mlp_out.0"])
        for index, site in enumerate((sites.z[1].head(2), sites.mlp_out[0])):
            torch.testing.assert_close(effects.draws[draw, index], logits_with(gpt2, batch, site.patch(acts)), **CLOSE)
    torch.testing.assert_close(effects.values, effects.draws.mean(0))
    assert effects.table()[0]["draw_sd"] > 1e-4
    once = ablate(gpt2, batch, ["z.1.h2", "mlp_out.0"], value="resample", seed=4)
    assert once.draws is None
    torch.testing.assert_close(once.values, effects.draws[0], **CLOSE)


@pytest.mark.parametrize("family", FAMILIES)
def test_noise_of_scale_zero_changes_nothing(family: str) -> None:
    model = loaded(family)
    batch = token_batch(model)
    wanted = ["resid_pre.0", "z.1.h2", "mlp_out.1"]
    effects = ablate(model, batch, wanted, value="noise", scale=0.0, max_tokens=batch.clean.ids.numel())
    assert torch.equal(effects.raw, torch.zeros(3, 6))
    assert ablate(model, batch, wanted, value="noise", draws=1).raw.abs().amax(1).min() > 1e-3


def test_noise_is_in_units_of_the_sites_own_spread(gpt2: Model) -> None:
    """Seen in the run itself: what the edit adds has the standard deviation that was asked for."""
    batch = token_batch(gpt2, n=48, lengths=(7, 5))
    captured = [gpt2.capture(tokens, "z.1") for tokens in (batch.clean, batch.corrupt)]
    real = torch.cat([acts["z.1"][acts.tokens.mask] for acts in captured if acts.tokens is not None])[:, 2]
    assert spread(captured, sites.z[1].head(2)) == pytest.approx(float(real.var(0, correction=0).mean().sqrt()))
    from cutaway.patching.ablate import removals

    (edit,) = removals(gpt2, batch, [sites.z[1].head(2)], "noise", batch.clean, None, 5, scale=2.0)
    noised = gpt2.run(batch.clean, [edit], reads="z.1", logits="none").activations["z.1"]
    added = (noised - captured[0]["z.1"])[batch.clean.mask]
    assert float(added[:, 2].std()) == pytest.approx(2 * float(real.var(0, correction=0).mean().sqrt()), rel=0.05)
    assert added[:, [0, 1, 3]].abs().max() == 0
    found = ablate(gpt2, batch, "z.1.h2", value="noise", scale=2.0, seed=5, draws=1)
    torch.testing.assert_close(found.values[0], logits_with(gpt2, batch, edit), **CLOSE)
    again, other = (ablate(gpt2, batch, "z.1.h2", value="noise", scale=2.0, seed=seed, draws=1) for seed in (5, 6))
    assert torch.equal(again.values, found.values)
    assert not torch.allclose(other.values, found.values, atol=1e-3)
    assert found.method == "gaussian"


def divergence(model: Model, batch: Any, rows: list[int], *edits: Any) -> float:
    """Mean KL from the plain run of some rows, by hand."""
    some = batch.clean.take(rows)
    results = [model.run(some, edits=list(e), logits="end").logits for e in ((), edits)]
    plain, changed = (r[:, -1].log_softmax(-1) for r in results if r is not None)
    return float((plain.exp() * (plain - changed)).sum(-1).mean())


def test_an_optimal_constant_is_the_best_of_a_grid(gpt2: Model) -> None:
    """One neuron, and held-out rows that are the others again: the constant is a number, and all can be tried."""
    batch = token_batch(gpt2, n=4)
    twice = [0, 1, 2, 3] * 2
    batch = replace(batch, clean=batch.clean.take(twice), corrupt=batch.corrupt.take(twice), ids=tuple("abcdefgh"))
    batch = replace(batch, answers=batch.answers * 2, foils=batch.foils * 2, clusters=("x",) * 4 + ("y",) * 4)
    site = sites.mlp_act[0].neuron(6)
    (row,) = ablate(gpt2, batch, site, value="optimal").table()
    average = mean([gpt2.capture(tokens, "mlp_act.0") for tokens in (batch.clean, batch.corrupt)], site)
    own = [0, 1, 2, 3]
    assert row["own_loss_mean"] == pytest.approx(divergence(gpt2, batch, own, site.fill(average)), rel=1e-2)
    grid = [divergence(gpt2, batch, own, site.fill(x)) for x in torch.linspace(-2, 2, 81)]
    assert row["own_loss"] == pytest.approx(min(grid), rel=0.03)
    assert row["own_loss"] < 0.97 * row["own_loss_mean"]
    assert row["loss"] == pytest.approx(row["own_loss"], rel=1e-2)
    assert row["loss_gap"] == pytest.approx(row["loss_mean"] - row["loss"])


def test_whole_clusters_are_held_out() -> None:
    held = held_out(["a", "a", "b", "b", "c", "d"], 2)
    assert 0 < held.count(True) < 6
    assert held[0] == held[1]
    assert held[2] == held[3]
    assert held_out(["a"] * 4, 0).count(True) == 1
    assert len({tuple(held_out(list("abcdefgh"), seed)) for seed in range(8)}) > 3
    with pytest.raises(UsageError, match="two pairs"):
        held_out(["a"], 0)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_an_optimal_constant_is_never_worse_than_the_mean_on_its_rows(family: str) -> None:
    model = loaded(family)
    batch = token_batch(model, n=8, lengths=(7, 5), clusters=4)
    wanted = ["mlp_out.1", "z.0.h1@end", ["z.1.h0", "mlp_out.2"]]
    effects = ablate(model, batch, wanted, value="optimal", seed=1)
    for row in effects.table():
        assert row["own_loss"] <= row["own_loss_mean"]
        assert row["loss"] <= row["loss_mean"]
    assert (effects.details["own_loss_mean"] - effects.details["own_loss"]).max() > 0
    assert effects.labels == ("mlp_out.1", "z.0.h1@end", "z.1.h0 + mlp_out.2")
    assert effects.raw.abs().amax(1).min() > 1e-4


def test_optimal_constants_do_not_depend_on_their_company(gpt2: Model) -> None:
    """Cells that are learned in one pass are learned as they would be alone."""
    batch = token_batch(gpt2, n=6)
    wanted = ["mlp_out.1", "z.0.h1@end"]
    both = ablate(gpt2, batch, wanted, value="optimal")
    alone = [ablate(gpt2, batch, one, value="optimal", max_tokens=1) for one in wanted]
    for index, one in enumerate(alone):
        torch.testing.assert_close(both.values[index], one.values[0], atol=2e-2, rtol=2e-2)


def test_positions_and_windows_are_those_of_sweeps(gpt2: Model) -> None:
    batch = token_batch(gpt2, lengths=(7, 5))
    effects = ablate(gpt2, batch, "mlp_out.*", value="zero", positions=["subject", "end"], window=2)
    assert effects.labels == tuple(f"mlp_out.{w}@{p}" for w in ("0:2", "1:3") for p in ("subject", "end"))
    edits = [sites.mlp_out[layer].at("end").zero() for layer in (1, 2)]
    torch.testing.assert_close(effects.values[3], logits_with(gpt2, batch, *edits), **CLOSE)


@pytest.mark.parametrize(
    ("wanted", "options", "error", "says"),
    [
        ("z.0", {"value": "mean", "draws": 2}, UsageError, "not drawn"),
        ("z.0", {"value": "resample", "draws": 0}, UsageError, "at least one"),
        ("z.0", {"value": "mean", "scale": 2.0}, UsageError, "size of noise"),
        ("z.0", {"value": "noise", "scale": -1.0}, UsageError, "from 0 on"),
        ("z.0", {"value": "noise", "scale": float("nan")}, UsageError, "from 0 on"),
        ("pattern.0.h1", {"value": "noise"}, UsageError, "sum to one"),
        ("pattern.0.h1", {"value": "optimal"}, UsageError, "mean_by_position"),
        (["z.0", "z.0.h1"], {"value": "optimal", "together": True}, UsageError, "overlap"),
        ("z.0", {"value": "mean_by_cluster"}, Misaligned, "in cluster"),
        ("z.0", {"value": "meen"}, UnknownName, "mean"),
        ("z.0", {"on": "dirty"}, UnknownName, "clean"),
        ("z.0", {"value": "mean_by_position"}, Misaligned, "5 to 7"),
        ("router.0", {}, SiteUnavailable, "mixture"),
    ],
)
def test_wrong_requests_say_what_to_do(
    gpt2: Model, wanted: Any, options: dict[str, Any], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        ablate(gpt2, token_batch(gpt2, lengths=(7, 5)), wanted, **options)
