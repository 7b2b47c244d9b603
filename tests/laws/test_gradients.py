"""Law: gradients at sites are those of plain autograd, they predict small edits, and parameters never notice.

Relevance rules change slopes and no value; slopes cut at a site are those of a run in which the site is a constant.
"""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import cutaway
from cutaway import sites
from cutaway.errors import ModelInTraining, SiteUnavailable, UnknownName, UsageError
from cutaway.models import Model, Raw, Site
from cutaway.models.gradients import backward, backward_raw
from cutaway.models.relevance import RULES, choose_rules
from cutaway.models.taps import Resume
from tests.families import FAMILIES, tiny
from tests.models.samples import built, hooked, loaded, part, relative, rows, vector

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


# -- relevance rules


def slopes_by_rules(model: Model, names: Any, wanted: Any = "resid_pre.0", **options: Any) -> Any:
    tokens = model.encode(rows())
    site = Site.parse(wanted)
    return backward(model, tokens, lambda out, _: metric(out), [site], rules=choose_rules(model, names), **options)


@pytest.mark.parametrize("family", FAMILIES)
def test_rules_change_slopes_and_no_logit(family):
    model = loaded(family)
    allowed = [name for name in RULES if not dict(choose_rules(model).refused).get(name)]
    plain = model.grad(rows(), metric, ["resid_pre.0"])
    seen: list[Tensor] = []
    for name in allowed:
        if name == "gates" and family in ("gpt2", "gpt_neox", "bert"):
            continue  # no gate to halve: the next test says so

        def target(out: Tensor | None, _: Any) -> Tensor:
            seen.append(out.detach())
            return metric(out)

        found = backward(model, model.encode(rows()), target, [sites.resid_pre[0]], rules=choose_rules(model, [name]))
        assert torch.equal(seen[-1], model.run(rows()).logits), name
        assert relative(found.gradients["resid_pre.0"], plain.gradients["resid_pre.0"]) > 1e-3, name
    assert len(seen) >= 2


def test_without_a_gate_there_is_nothing_to_halve():
    found = slopes_by_rules(loaded("gpt2"), ["gates"])
    plain = loaded("gpt2").grad(rows(), metric, ["resid_pre.0"])
    assert torch.equal(found.gradients["resid_pre.0"], plain.gradients["resid_pre.0"])


class HeldNorm(nn.Module):
    """A norm with its scale detached, written out by hand."""

    def __init__(self, norm: Any, gain: float, centred: bool) -> None:
        super().__init__()
        self.norm, self.gain, self.centred = norm, gain, centred

    def forward(self, x: Tensor) -> Tensor:
        middle = x - x.mean(-1, keepdim=True) if self.centred else x
        eps = getattr(self.norm, "eps", getattr(self.norm, "variance_epsilon", None))
        scale = (middle.pow(2).mean(-1, keepdim=True) + eps).sqrt().detach()
        return middle / scale * (self.gain + self.norm.weight) + (self.norm.bias if self.centred else 0.0)


class Quotient(nn.Module):
    """An activation function with its value over its input detached."""

    def __init__(self, function: nn.Module) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return x * (self.function(x) / x).detach()


def by_hand(module: Any, gain: float = 0.0) -> Any:
    """A copy of a module that obeys the usual rules, its parts replaced."""
    twin = copy.deepcopy(module)
    for path, norm in list(twin.named_modules()):
        parent, _, name = path.rpartition(".")
        if "norm" in type(norm).__name__.lower():
            setattr(twin.get_submodule(parent), name, HeldNorm(norm, gain, isinstance(norm, nn.LayerNorm)))
        if name in ("act", "act_fn"):
            setattr(twin.get_submodule(parent), name, Quotient(norm))
        if name == "down_proj":
            norm.register_forward_pre_hook(lambda _, args: (args[0] / 2 + args[0].detach() / 2,))
    return twin


@pytest.mark.parametrize(("family", "gain"), [("gpt2", 0.0), ("llama", 0.0), ("gemma2", 1.0), ("qwen3", 0.0)])
def test_the_usual_rules_are_those_of_a_network_written_for_them(family, gain):
    model = loaded(family)
    tokens, leaves = model.encode(rows()), []

    def leaf(value: Tensor) -> Tensor:
        leaves.append(value.detach().clone().requires_grad_(True))
        return leaves[-1]

    twin = by_hand(model.module, gain)
    with hooked(twin.get_submodule(model.body.layers[0].block), leaf, "input"):
        metric(twin(**model.inputs(tokens)).logits).backward()
    found = slopes_by_rules(model, None)
    assert relative(found.gradients["resid_pre.0"], leaves[0].grad) < TOLERANCE


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_held_pattern_is_a_pattern_that_is_set(family):
    model = loaded(family)
    own = model.capture(rows(), sites.pattern[:])
    fixed = model.grad(rows(), metric, ["resid_pre.0"], [site.patch(own) for site in own])
    found = slopes_by_rules(model, ["pattern"])
    assert relative(found.gradients["resid_pre.0"], fixed.gradients["resid_pre.0"]) < TOLERANCE


def test_rules_that_a_model_does_not_allow_are_refused_with_the_reason():
    model = loaded("mixtral")
    rules = choose_rules(model)
    assert rules.names == ("norms",)
    assert [name for name, _ in rules.refused] == ["activations", "gates"]
    assert all("mlp_pre.0" in reason for _, reason in rules.refused)
    with pytest.raises(SiteUnavailable, match=r"rule 'activations'.*does not allow it.*leave it out"):
        choose_rules(model, ["activations"])
    with pytest.raises(UnknownName, match=r"rule 'norm': it is one of.*Did you mean 'norms'"):
        choose_rules(model, ["norm"])
    with pytest.raises(UsageError, match="give a list of names"):
        choose_rules(model, "norms")


class LoudestNorm(nn.Module):
    """Divides by the largest entry: no norm that a rule knows."""

    def forward(self, x: Tensor) -> Tensor:
        return x / x.abs().amax(-1, keepdim=True)


def test_steps_that_are_not_what_a_rule_takes_them_for_are_refused():
    strange = tiny("gpt2")
    strange.transformer.ln_f = LoudestNorm().eval()
    model = cutaway.load(strange, audit=False)
    before = model.run(rows()).logits
    with pytest.raises(SiteUnavailable, match=r"transformer.ln_f \(LoudestNorm\) is neither a layer norm"):
        slopes_by_rules(model, ["norms"])
    assert torch.equal(model.run(rows()).logits, before)
    lifted = cutaway.load(tiny("gpt2", activation_function="sigmoid"), audit=False)
    with pytest.raises(SiteUnavailable, match=r"mlp.act is not 0 at 0"):
        slopes_by_rules(lifted, ["activations"])


# -- slopes that are cut, units as targets, passes that begin later


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "gpt_neox"])
def test_cut_slopes_are_those_of_constants(family):
    model = loaded(family)
    groups = [[sites.attn_write[layer], sites.mlp_write[layer]] for layer in range(3)]
    tokens, wanted = model.encode(rows()), [sites.resid_pre[0], sites.z[1]]
    found = backward(model, tokens, lambda out, _: metric(out), wanted, without=groups)
    plain = model.grad(tokens, metric, wanted)
    for site in wanted:
        assert relative(found.gradients[site], plain.gradients[site]) < TOLERANCE
    own = model.capture(tokens, [site for group in groups for site in group])
    for layer, (group, cut) in enumerate(zip(groups, found.cut)):
        constant = model.grad(tokens, metric, wanted, [site.patch(own) for site in group])
        for site in wanted:
            expected = constant.gradients[site]
            assert relative(cut[site], expected) < TOLERANCE or (site.layer == layer == 1 and not cut[site].any())
        assert relative(cut["resid_pre.0"], plain.gradients["resid_pre.0"]) > 1e-3


@pytest.mark.parametrize("family", ["gpt2", "llama", "bert"])
def test_a_unit_is_a_target(family):
    model = loaded(family)
    tokens = model.encode(rows())
    site = sites.mlp_act[1]
    found = backward(
        model, tokens, lambda _, seen: seen[site][:, 3, 7].sum(), [sites.embed], reads=[site], logits="none"
    )
    direction = torch.randn(found.gradients["embed"].shape, generator=torch.Generator().manual_seed(4))
    step = 2e-3
    ends = [
        model.run(tokens, [sites.embed.add(sign * step * direction)], [site]).activations[site][:, 3, 7].sum()
        for sign in (1, -1)
    ]
    predicted = float((found.gradients["embed"] * direction).sum())
    assert abs(predicted) > 1e-2
    assert float(ends[0] - ends[1]) / (2 * step) == pytest.approx(predicted, rel=1e-2, abs=2e-3)
    later = backward(
        model, tokens, lambda _, seen: seen[site][:, 3, 7].sum(), [sites.resid_post[2]], reads=[site], logits="none"
    )
    assert not later.gradients["resid_post.2"].any()


def test_a_pass_that_begins_later_has_the_same_slopes():
    model = loaded("llama")
    tokens = model.encode(rows())
    state = model.capture(tokens, "resid_post.0")["resid_post.0"]
    found = backward(model, tokens, lambda out, _: metric(out), [sites.z[1]], resume=Resume(1, state))
    whole = model.grad(tokens, metric, ["z.1"])
    assert relative(found.gradients["z.1"], whole.gradients["z.1"]) < TOLERANCE


def test_a_wrapped_module_has_gradients_at_its_modules():
    model = cutaway.load("digits-cnn")
    images = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    flags = [parameter.requires_grad for parameter in model.module.parameters()]
    site = sites.module("act1", "output")
    found = backward_raw(model, Raw((images,), {}), lambda out, _: out[:, 3].sum(), [site])
    leaf = model.module.act1(model.module.conv1(images)).detach().requires_grad_(True)
    rest = model.module.act2(model.module.conv2(model.module.pool(leaf)))
    model.module.fc2(model.module.act3(model.module.fc1(rest.flatten(1))))[:, 3].sum().backward()
    model.module.zero_grad(set_to_none=True)
    assert leaf.grad.abs().max() > 1e-3
    assert relative(found.gradients[site], leaf.grad) < TOLERANCE
    assert [parameter.requires_grad for parameter in model.module.parameters()] == flags
    with pytest.raises(UsageError, match="must return one number"):
        backward_raw(model, Raw((images,), {}), lambda out, _: out, [site])


@pytest.mark.parametrize("reentrant", [False, True])
def test_recomputed_activations_are_refused(reentrant):
    hf: Any = tiny("gpt2")
    model = cutaway.load(hf)
    block = hf.transformer.h[1]
    plain = block.forward

    def forward(x: Tensor, *args: Any, **kwargs: Any) -> Any:
        return checkpoint(lambda y: plain(y, *args, **kwargs), x, use_reentrant=reentrant)

    block.forward = forward
    try:
        for wanted in ("z.1", "resid_pre.0", "resid_post.1"):
            with pytest.raises(UsageError, match=r"gradient checkpointing.*switch it off"):
                model.grad(rows(), metric, [wanted], [sites.mlp_act[1].scale(0.5)])
    finally:
        del block.forward
    assert model.grad(rows(), metric, ["z.1"]).gradients["z.1"].abs().max() > 0


def test_an_exception_in_the_target_leaves_the_model_as_it_was():
    model = cutaway.load(built("GPT2LMHeadModel", n_embd=32, n_layer=2, n_head=4, vocab_size=99, n_positions=64))
    hooks = [len(one._forward_hooks) + len(one._forward_pre_hooks) for one in model.module.modules()]
    before = model.run(rows()).logits

    def broken(out: Tensor | None, _: Any) -> Tensor:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        backward(model, model.encode(rows()), broken, [sites.z[1]], rules=choose_rules(model))
    assert [len(one._forward_hooks) + len(one._forward_pre_hooks) for one in model.module.modules()] == hooks
    assert torch.equal(model.run(rows()).logits, before)
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.module.parameters())
