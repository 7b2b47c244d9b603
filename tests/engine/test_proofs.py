"""Trials of shortcuts: passed where they are exact, refused where they are not, and not run for nothing."""

import pytest
import torch
from torch import nn

import cutaway
from cutaway import engine, sites
from cutaway.engine import Run, planner, proofs
from tests.families import FAMILIES, tiny
from tests.models.samples import loaded, rows


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "bert"])
def test_ordinary_models_pass(family):
    assert proofs.proofs(loaded(family)) == proofs.Proofs("", "", "")


@pytest.mark.usefixtures("seeded")
def test_an_unembedding_that_is_no_plain_linear_map_is_computed_whole(monkeypatch):
    class Doubled(nn.Linear):
        def forward(self, entering):
            return 2 * super().forward(entering)

    module = tiny("llama")
    weight = module.lm_head.weight
    module.lm_head = Doubled(weight.shape[1], weight.shape[0], bias=False)
    module.lm_head.weight = weight
    model = cutaway.load(module.eval())
    assert proofs.proofs(model).columns == "the unembedding is not a plain linear map"
    monkeypatch.setattr(planner, "PROVE_FROM", 0)
    run = Run(model.encode(rows()), (sites.z[1].head(0).zero(),), logits="end", vocab=((3,), (4,), (5,)))
    plan = engine.plan(model, [run])
    assert "not used: single columns of the unembedding: the unembedding is not a plain linear map" in str(
        plan.explain()
    )
    assert torch.allclose(plan.execute()[0].logits, engine.reference(model, [run])[0].logits, atol=1e-5)


@pytest.mark.usefixtures("seeded")
def test_attention_that_looks_beyond_its_projections_is_found_out(monkeypatch):
    """A projection that mixes positions: what one column gives depends on the others."""

    class Mixing(nn.Linear):
        def forward(self, entering):
            return super().forward(entering + entering.cumsum(1))

    monkeypatch.setattr("cutaway.models.known._linear", lambda module: isinstance(module, nn.Linear))
    module = tiny("llama")
    for layer in module.model.layers:
        old = layer.self_attn.v_proj
        layer.self_attn.v_proj = Mixing(old.in_features, old.out_features, bias=False)
        layer.self_attn.v_proj.weight = old.weight
    assert "the output changes by" in proofs.proofs(cutaway.load(module.eval())).projections


def test_small_plans_and_unaudited_models_try_nothing(monkeypatch):
    monkeypatch.setattr(proofs, "forward", None)
    model = cutaway.load(tiny("gpt2"))
    tokens = model.encode(rows())
    run = Run(tokens, (sites.z[1].head(0).zero(),), logits="end", vocab=((3,), (4,), (5,)))
    engine.plan(model, [run])
    assert proofs.known(model) is proofs.UNPROVEN
    monkeypatch.setattr(planner, "PROVE_FROM", 0)
    unaudited = cutaway.load(tiny("gpt2"), audit=False)
    engine.plan(unaudited, [run])
    assert proofs.known(unaudited) is proofs.UNPROVEN
