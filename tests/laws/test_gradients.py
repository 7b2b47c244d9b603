"""Law: gradients at sites are those of plain autograd, they predict small edits, and parameters never notice."""

import pytest
import torch

import cutaway
from cutaway import sites
from cutaway.errors import ModelInTraining, UsageError
from cutaway.models import Model, Site
from tests.families import FAMILIES, tiny
from tests.models.samples import hooked, loaded, part, relative, rows, vector

TOLERANCE = 2e-5


def metric(logits):
    return (logits[:, -1, 5] - logits[:, -1, 7]).sum() + logits[:, 2].square().mean()


def kinds(model) -> list[Site]:
    body = model.body
    return [
        s for s in body.sites() if body.status(s).state != "refused" and body.status(s).editable and s.kind != "logits"
    ]


@pytest.mark.parametrize("family", FAMILIES)
def test_equal_to_autograd_by_hand(family):
    model = loaded(family)
    tokens, leaves = model.encode(rows()), []

    def leaf(value):
        leaves.append(value.detach().clone().requires_grad_(True))
        return leaves[-1]

    with hooked(part(model, model.body.layers[1].block), leaf):
        metric(model.module(**model.inputs(tokens)).logits).backward()
    model.module.zero_grad(set_to_none=True)
    found = model.grad(tokens, metric, [sites.resid_post[1]])
    assert relative(found.gradients["resid_post.1"], leaves[0].grad) < TOLERANCE
    assert torch.equal(found.activations["resid_post.1"], leaves[0].detach())
    assert found.metric == pytest.approx(float(metric(model.run(tokens).logits)), rel=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_equal_to_finite_differences_at_every_site(family):
    changes = {"experts_implementation": "eager"} if family == "mixtral" else {}  # the fused experts take no float64
    model = Model(tiny(family, **changes).double(), None, loaded(family).anatomy, family)
    tokens = model.encode(rows((5, 5)))
    wanted = [s for s in kinds(model) if s.layer in (None, 1)]
    found = model.grad(tokens, metric, wanted)
    total = 0.0
    for site in wanted:
        slope, value = found.gradients[site], found.activations[site]
        direction = torch.randn(value.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
        if site.kind == "scores":
            direction = direction * (value > -1e30)
        if site.kind == "router":
            direction = direction * 1e-2  # stay on the same experts

        def at(step, site=site, direction=direction):
            return float(metric(model.run(tokens, [site.apply(lambda x: x + step * shaped(site, direction))]).logits))

        step = 1e-4 if family == "mixtral" else 1e-3  # short of another choice of experts
        measured = (at(step) - at(-step)) / (2 * step)
        predicted = float((slope * direction).sum())
        total += abs(predicted)
        assert measured == pytest.approx(predicted, rel=5e-3, abs=5e-3), site  # norms compute in float32
    assert total > 1.0


def shaped(site, direction):
    return direction.transpose(1, 2) if site.kind in ("scores", "pattern") else direction


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("family", ["gpt2", "mixtral"])
def test_parameters_keep_their_flags_and_have_no_gradients(family, frozen):
    model = cutaway.load(tiny(family).requires_grad_(not frozen))
    some = next(model.module.parameters())
    some.requires_grad_(frozen)
    flags = [p.requires_grad for p in model.module.parameters()]
    found = model.grad(rows(), metric, ["resid_pre.0", "z.1", "mlp_out.2"])
    assert all(value.abs().max() > 0 for value in found.gradients.values())
    assert [p.requires_grad for p in model.module.parameters()] == flags
    assert all(p.grad is None for p in model.module.parameters())
    for one in (found.activations, found.gradients):
        assert not any(value.requires_grad for value in one.values())
    other = loaded(family).grad(rows(), metric, ["resid_pre.0", "z.1", "mlp_out.2"])
    assert all(relative(found.gradients[s], other.gradients[s]) < TOLERANCE for s in other.gradients)


@pytest.mark.parametrize("family", FAMILIES)
def test_taken_at_the_edited_run(family):
    model = loaded(family)
    tokens = model.encode(rows((9, 6, 7)))
    edits = [sites.resid_post[0].at(1).add(vector()), sites.z[1].head(0).zero()]
    found = model.grad(tokens, metric, ["resid_post.1", "z.1"], edits)
    run = model.run(tokens, edits, ["resid_post.1", "z.1"])
    assert found.metric == pytest.approx(float(metric(run.logits)), rel=1e-5)
    for site, value in run.activations.items():
        assert relative(found.activations[site], value) < TOLERANCE
    plain = model.grad(tokens, metric, ["resid_post.1"])
    assert relative(plain.gradients["resid_post.1"], found.gradients["resid_post.1"]) > 1e-3


def test_a_site_that_does_not_matter_has_gradient_zero():
    model = loaded("gpt2")
    found = model.grad(rows(), lambda logits: logits[:, 2].sum(), ["resid_post.2"])
    value = found.gradients["resid_post.2"]
    assert float(value[:, 3:].abs().max()) == 0.0 < float(value[:, 2].abs().max())


def test_rows_do_not_mix():
    model = loaded("llama")
    together = model.grad(rows(), metric_of_end, ["resid_post.0"]).gradients["resid_post.0"]
    for row, ids in enumerate(rows()):
        alone = model.grad([ids], metric_of_end, ["resid_post.0"]).gradients["resid_post.0"]
        assert relative(together[row], alone[0]) < TOLERANCE


def metric_of_end(logits):
    return logits[:, -1, 5].sum()


def test_what_is_no_number_of_the_logits_is_refused():
    model = loaded("gpt2")
    for wrong in (lambda logits: logits[:, -1, 5], lambda logits: logits.detach().sum()):
        with pytest.raises(UsageError, match="must return one number that depends on the logits; got shape"):
            model.grad(rows(), wrong, ["resid_post.1"])


def test_a_model_in_training_mode_is_refused():
    hf = tiny("gpt2")
    model = cutaway.load(hf)
    hf.transformer.h[1].train()
    with pytest.raises(ModelInTraining, match=r"training mode.*eval\(\)"):
        model.grad(rows(), metric, ["resid_post.1"])
