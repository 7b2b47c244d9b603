"""Laws of gradient scores: each repair against a brute-force oracle, completeness, and the error that is reported."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cutaway.errors import BrokenEvidence, OutOfRange, SiteUnavailable, UnknownName, UsageError, WrongModel
from cutaway.figures import Bars, Points
from cutaway.models import Model, Site, load, sites
from cutaway.models.gradients import backward
from cutaway.patching import attribution, sweep
from cutaway.patching.gradient_check import SMALL, compare, sample
from cutaway.patching.gradient_scores import METHODS, GradientScores, gradient_scores
from cutaway.patching.measure import encode
from cutaway.tasks import Batch
from tests.families import tiny
from tests.patching.pairs import loaded, token_batch

CLOSE = {"atol": 2e-5, "rtol": 1e-3}


@pytest.fixture(scope="module")
def gpt2() -> Model:
    return loaded("gpt2")


@pytest.mark.parametrize("mode", ["denoise", "noise"])
def test_plain_scores_are_attribution_patching(gpt2: Model, mode: str) -> None:
    batch = token_batch(gpt2, lengths=(7, 5))
    found = gradient_scores(gpt2, batch, mode=mode, check=0)
    assert found.agreement is None
    assert torch.equal(found.effects.values, attribution(gpt2, batch, mode=mode).values)
    assert found.effects.on == {"denoise": "corrupt", "noise": "clean"}[mode]


@pytest.mark.parametrize("method", METHODS)
def test_both_sides_alike_give_exactly_zero(method: str) -> None:
    model = loaded("llama")
    batch = token_batch(model)
    found = gradient_scores(model, replace(batch, corrupt=batch.clean), method=method, check=0)
    assert torch.equal(found.effects.raw, torch.zeros_like(found.effects.raw))


@pytest.mark.parametrize("method", METHODS)
def test_positions_before_the_first_difference_get_exactly_zero(gpt2: Model, method: str) -> None:
    """Every pair has its first token in common, and a causal model then agrees there."""
    kinds = ("q", "k", "z") if method == "atp_star" else ("z",)
    found = gradient_scores(gpt2, token_batch(gpt2), method=method, kinds=kinds, positions="each", check=0).effects
    first = found.select("*@0").raw
    assert torch.equal(first, torch.zeros_like(first))
    assert found.select("*.2.h*@6").raw.abs().amax(1).min() > 0


# -- AtP*


def slope_of(model: Model, batch: Batch, wanted: list[Site], constant: list[Site]) -> dict[Site, Tensor]:
    """Gradients on the corrupt side with some sites held at their own values, by plain patches."""
    own = model.capture(batch.corrupt, constant) if constant else None
    edits = [] if own is None else [site.patch(own) for site in constant]
    got = model.grad(batch.corrupt, lambda out: batch.values(batch.select(out)).sum(), wanted, edits)
    return {site: got.gradients[site] for site in wanted}


@pytest.mark.parametrize(("family", "group"), [("gpt2", 1), ("llama", 2), ("gemma2", 2)])
def test_queries_and_keys_go_through_the_pattern_that_they_would_give(family: str, group: int) -> None:
    """Brute force: the head's own kernel once a position, a new pattern each time; slopes cut by patches."""
    model = loaded(family)
    batch = encode(model, token_batch(model, n=3))
    site_of = {kind: Site(kind, 1) for kind in ("q", "k", "v", "pattern")}
    base = model.capture(batch.corrupt, list(site_of.values()))
    donor = model.capture(batch.clean, [site_of["q"], site_of["k"]])
    slopes = [
        slope_of(model, batch, [sites.z[1]], [sites.attn_write[cut], sites.mlp_write[cut]])[sites.z[1]]
        for cut in (0, 2)
    ]
    values = base[site_of["v"]].repeat_interleave(group, 2)
    whole = gradient_scores(model, batch, method="atp_star", kinds=("q", "k"), check=0).effects
    each = gradient_scores(model, batch, method="atp_star", kinds=("q", "k"), positions="each", check=0).effects
    largest = 0.0
    for kind in ("q", "k"):
        for where in (None, *range(batch.clean.width)):
            chosen = site_of[kind] if where is None else site_of[kind].at((where,))
            after = model.run(batch.corrupt, [chosen.patch(donor)], [site_of["pattern"]]).activations
            change = after[site_of["pattern"]] - base[site_of["pattern"]]
            lines = torch.stack([torch.einsum("bhqk,bkhd,bqhd->hb", change, values, slope) for slope in slopes])
            if kind == "k":
                lines = lines.unflatten(1, (-1, group)).sum(2)
            expected = lines.abs().mean(0) * lines.sum(0).sign()
            names = [f"{kind}.1.h{head}" + ("" if where is None else f"@{where}") for head in range(len(expected))]
            found = (whole if where is None else each).select(names).raw
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=2e-3)
            largest = max(largest, float(expected.abs().max()))
    assert largest > 1e-3


def test_a_saturated_head_is_seen_through_its_pattern_and_not_through_its_slope() -> None:
    """Keys made large: the softmax has no slope, and exchanging the query moves all of the weight."""
    module: Any = tiny("gpt2")
    with torch.no_grad():
        module.transformer.h[1].attn.c_attn.weight[:, :64] *= 14.0
    model = load(module, audit=False)
    batch = token_batch(model)
    cells = [f"q.1.h{head}" for head in range(4)]
    exact = sweep(model, batch, cells).raw
    plain = gradient_scores(model, batch, kinds=("q",), check=0).effects.select(cells).raw
    repaired = gradient_scores(model, batch, method="atp_star", kinds=("q",), check=0).effects.select(cells).raw
    assert (repaired - exact).abs().mean() < 0.6 * (plain - exact).abs().mean()


def test_cut_layers_keep_direct_and_indirect_effects_from_cancelling(gpt2: Model) -> None:
    """Brute force: for each other layer, its writes patched to their own values, so that nothing passes through."""
    batch = encode(gpt2, token_batch(gpt2))
    wanted = [sites.z[1], sites.mlp_act[0], sites.resid_post[0]]
    kinds = ("z", "mlp_act", "resid_post")
    found = gradient_scores(gpt2, batch, method="atp_star", kinds=kinds, check=0).effects
    clean, corrupt = gpt2.capture(batch.clean, wanted), gpt2.capture(batch.corrupt, wanted)
    for site in wanted:
        lines = []
        for cut in range(3):
            if cut == site.layer and site.kind != "resid_post":
                continue
            writes = [Site("attn_write", cut), Site("mlp_write", cut)]
            held = [one for one in writes if not (site.kind == "resid_post" and cut <= (site.layer or 0))]
            slope = slope_of(gpt2, batch, [site], held)[site]
            product = (clean[site] - corrupt[site]) * slope
            lines.append(product.sum((1, 3)).T if product.ndim == 4 else product.sum(1).T)
        if site.kind == "resid_post":
            lines = [line.sum(0, keepdim=True) for line in lines]
        each = torch.stack(lines)
        expected = each.abs().mean(0) * each.sum(0).sign()
        cells = found.select(lambda label, site=site: label.startswith(str(site)))
        assert expected.abs().max() > 1e-3
        torch.testing.assert_close(cells.raw, expected, **CLOSE)


def test_one_backward_pass_a_layer(gpt2: Model) -> None:
    calls: list[str] = []
    last = gpt2.module.transformer.h[2].mlp.c_proj
    handles = [
        gpt2.module.transformer.wte.register_forward_hook(lambda *_: calls.append("forward")),
        last.register_full_backward_hook(lambda *_: calls.append("backward")),
    ]
    try:
        gradient_scores(gpt2, token_batch(gpt2), method="atp_star", kinds=("z",), check=0)
    finally:
        for handle in handles:
            handle.remove()
    assert calls == ["forward", "forward", *["backward"] * 4]


# -- integrated gradients


@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt_neox"])
def test_integrated_gradients_of_a_site_add_up_to_its_effect(family: str) -> None:
    model = loaded(family)
    batch = token_batch(model, lengths=(7, 5))
    found = gradient_scores(model, batch, method="ig", tolerance=0.01, check=0)
    assert all(one.error <= 0.01 for one in found.completeness)
    assert {one.site for one in found.completeness} == {
        f"{k}.{i}" for k in ("z", "mlp_out", "mlp_act") for i in range(3)
    }
    for site in (sites.z[0], sites.mlp_out[1], sites.mlp_act[2]):
        exact = sweep(model, batch, [site]).raw[0]
        cells = found.effects.select(lambda label, site=site: label.startswith(str(site)))
        assert exact.abs().max() > 1e-3
        torch.testing.assert_close(cells.raw.sum(0), exact, atol=0.02 * float(exact.abs().max()), rtol=0)


def test_steps_double_until_it_holds_or_the_limit_is_told(gpt2: Model) -> None:
    batch = token_batch(gpt2)
    rough = gradient_scores(gpt2, batch, method="ig", steps=1, max_steps=1, kinds=("z",), check=0)
    assert [one.steps for one in rough.completeness] == [1, 1, 1]
    assert max(one.error for one in rough.completeness) > 0.001
    fine = gradient_scores(
        gpt2, batch, method="ig", steps=1, max_steps=64, tolerance=0.001, kinds=("z",), check=0, max_tokens=100
    )
    assert max(one.steps for one in fine.completeness) > 1
    assert all(one.error <= 0.001 for one in fine.completeness)
    assert all(one.steps & (one.steps - 1) == 0 for one in fine.completeness)


def test_integrated_gradients_by_hand(gpt2: Model) -> None:
    """Four midpoints, each with a patched site and plain autograd."""
    batch = encode(gpt2, token_batch(gpt2, n=3))
    site = sites.z[1]
    clean, corrupt = gpt2.capture(batch.clean, site)[site], gpt2.capture(batch.corrupt, site)[site]
    total = torch.zeros_like(clean)
    for share in (0.125, 0.375, 0.625, 0.875):
        edits = [site.replace(corrupt + share * (clean - corrupt))]
        total += gpt2.grad(batch.corrupt, lambda out: batch.values(batch.select(out)).sum(), [site], edits).gradients[
            site
        ]
    expected = ((clean - corrupt) * total / 4).sum((1, 3)).T
    found = gradient_scores(gpt2, batch, method="ig", kinds=("z",), steps=4, max_steps=4, check=0).effects
    torch.testing.assert_close(found.select("z.1.*").raw, expected, **CLOSE)


# -- relevance


def test_with_the_rules_a_model_of_linear_parts_is_exact() -> None:
    """Parallel blocks, no final norm: with nothing to hold, the rules give what attribution patching gives."""
    module: Any = tiny("gpt_neox")
    module.gpt_neox.final_layer_norm = nn.Identity().eval()
    model = load(module, audit=False)
    batch = token_batch(model)
    exact = sweep(model, batch, sites.z[2:].heads())
    found = gradient_scores(model, batch, method="relevance", kinds=("z",), check=0)
    assert found.rules == ("norms", "activations", "gates")
    torch.testing.assert_close(found.effects.select("z.2.*").raw, exact.raw, **CLOSE)


def test_relevance_is_the_slope_of_the_rules(gpt2: Model) -> None:
    from cutaway.models.relevance import choose_rules

    batch = encode(gpt2, token_batch(gpt2))
    site = sites.mlp_act[0]
    got = backward(
        gpt2,
        batch.corrupt,
        lambda out, _: batch.values(batch.select(out)).sum(),  # type: ignore[arg-type]
        [site],
        rules=choose_rules(gpt2, ["norms"]),
    )
    expected = ((gpt2.capture(batch.clean, site)[site] - got.activations[site]) * got.gradients[site]).sum(1).T
    found = gradient_scores(gpt2, batch, method="relevance", rules=["norms"], kinds=("mlp_act",), check=0)
    torch.testing.assert_close(found.effects.select("mlp_act.0.*").raw, expected, **CLOSE)


# -- the check


def test_the_sample_is_patched_for_real_and_its_error_told(gpt2: Model) -> None:
    batch = token_batch(gpt2)
    found = gradient_scores(gpt2, batch, check=30, seed=3)
    assert found.agreement is not None
    one = found.agreement
    exact = sweep(gpt2, batch, list(one.labels)).mean()
    torch.testing.assert_close(torch.tensor(one.exact), exact.float(), **CLOSE)
    estimate = found.effects.select(list(one.labels)).mean()
    assert one.estimated == pytest.approx(estimate.tolist())
    ranks = [torch.stack([(values < value).sum() for value in values]).double() for values in (estimate, exact)]
    assert one.spearman == pytest.approx(float(torch.corrcoef(torch.stack(ranks))[0, 1]))
    assert one.pearson == pytest.approx(float(torch.corrcoef(torch.stack([estimate, exact]))[0, 1]))
    assert one.largest_miss == pytest.approx(float((estimate - exact).abs().max()))
    clear = exact.abs() > SMALL * exact.abs().max()
    assert one.flips == int((clear & (estimate.sign() != exact.sign())).sum())
    assert {label.split(".")[0] for label in one.labels} == {"z", "mlp_out", "mlp_act"}
    assert f"{one.n} of 255 cells patched for real" in found.facts()["agreement"]
    other = gradient_scores(gpt2, batch, check=30, seed=4)
    assert other.agreement is not None
    assert other.agreement.labels != one.labels


def test_samples_take_from_every_kind_alike() -> None:
    labels = [*(f"z.0.h{i}" for i in range(4)), *(f"mlp_act.0.n{i}" for i in range(100)), "mlp_out.0"]
    drawn = [labels[i] for i in sample(labels, 11, 0)]
    assert [sum(label.startswith(kind) for label in drawn) for kind in ("z", "mlp_act", "mlp_out")] == [4, 6, 1]
    assert sample(labels, 1000, 0) == list(range(len(labels)))


def test_agreement_of_opposites_and_of_constants(gpt2: Model) -> None:
    exact = sweep(gpt2, token_batch(gpt2), sites.z[:].heads())
    turned = replace(exact, values=2 * exact.base - exact.values)
    found = compare(turned, exact)
    assert (found.spearman, found.pearson) == (pytest.approx(-1.0), pytest.approx(-1.0))
    assert found.flips > 6
    assert found.largest_miss == pytest.approx(2 * float(exact.mean().abs().max()), rel=1e-4)
    flat = compare(replace(exact, values=exact.base.expand_as(exact.values)), exact)
    assert (flat.spearman, flat.pearson, flat.flips) == (None, None, 0)


# -- as data


@pytest.mark.parametrize("method", METHODS)
def test_saved_and_loaded_again(gpt2: Model, method: str, tmp_path: Path) -> None:
    found = gradient_scores(gpt2, token_batch(gpt2), method=method, kinds=("z", "mlp_out"), check=8)
    found.save(tmp_path / "scores.safetensors")
    again = GradientScores.load(tmp_path / "scores.safetensors", gpt2)
    assert torch.equal(again.effects.values, found.effects.values)
    assert replace(again, effects=found.effects) == found
    assert again.facts() == found.facts()
    with pytest.raises(WrongModel):
        GradientScores.load(tmp_path / "scores.safetensors", loaded("llama"))
    found.effects.save(tmp_path / "effects.safetensors")
    with pytest.raises(BrokenEvidence, match="holds 'effects'"):
        GradientScores.load(tmp_path / "effects.safetensors")


def test_tables_and_figures_say_what_was_found(gpt2: Model) -> None:
    found = gradient_scores(gpt2, token_batch(gpt2), kinds=("z",), check=5)
    rows = found.table()
    sizes = [abs(row["effect"]) for row in rows]
    assert len(rows) == 12
    assert sizes == sorted(sizes, reverse=True)
    assert sum(row["exact"] is not None for row in rows) == 5
    bars, points = found.figures()
    assert isinstance(bars, Bars)
    assert bars.labels[0] == rows[0]["site"]
    assert isinstance(points, Points)
    assert len(points.x) == 5
    assert "Spearman" in points.sentence


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"method": "atp*"}, UnknownName, "atp_star"),
        ({"mode": "restore"}, UnknownName, "denoise, noise"),
        ({"rules": ["norms"]}, UsageError, "belong to method='relevance'"),
        ({"method": "relevance", "rules": ["norm"]}, UnknownName, "norms"),
        ({"method": "ig", "steps": 0}, OutOfRange, "1 <= steps"),
        ({"method": "ig", "steps": 8, "max_steps": 4}, OutOfRange, "1 <= steps"),
        ({"method": "ig", "tolerance": 0.0}, OutOfRange, "above 0"),
        ({"check": -1}, OutOfRange, "0 for none"),
        ({"method": "atp_star", "kinds": ("pattern",)}, UsageError, "sweep"),
    ],
)
def test_wrong_requests_say_what_to_do(gpt2: Model, options: dict[str, Any], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        gradient_scores(gpt2, token_batch(gpt2), **options)


def test_what_an_architecture_does_not_have_is_refused() -> None:
    model = loaded("mixtral")
    batch = token_batch(model)
    found = gradient_scores(model, batch, method="relevance", check=0)
    assert found.rules == ("norms",)
    assert [name for name, _ in found.refused] == ["activations", "gates"]
    assert "without gates" in found.facts()
    with pytest.raises(SiteUnavailable, match="rule 'gates'"):
        gradient_scores(model, batch, method="relevance", rules=["gates"], check=0)
    single = load(tiny("gpt2", n_layer=1), audit=False)
    with pytest.raises(UsageError, match="one layer"):
        gradient_scores(single, token_batch(single), method="atp_star")
