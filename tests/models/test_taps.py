"""Taps: a session owns its own hooks and nothing else; others' hooks, threads, nesting and accelerate live beside
it."""

import threading

import pytest
import torch
from torch import nn

import cutaway
from cutaway import sites
from cutaway.models import Model
from cutaway.models.sites import Site
from cutaway.models.taps import Session, others_hook
from tests.families import FAMILIES, tiny
from tests.models.samples import hooked, loaded, part, plain, relative, rows, vector

ADD = sites.resid_post[1].add(vector() * 3)


def state(module: nn.Module):
    hooks = [
        (n, *(id(h) for h in [*m._forward_hooks.values(), *m._forward_pre_hooks.values()]))
        for n, m in module.named_modules()
    ]
    return hooks, module.config._attn_implementation, [n for n, m in module.named_modules() if "forward" in vars(m)]


def test_a_users_hook_works_during_a_run_and_survives_it():
    hf = tiny("gpt2")
    model = cutaway.load(hf)
    seen = []
    handle = hf.transformer.h[1].register_forward_hook(
        lambda m, i, o: seen.append(o[0].clone() if isinstance(o, tuple) else o.clone())
    )
    before = state(hf)
    tokens = model.encode(rows())
    found = model.run(tokens, [ADD, sites.z[0].head(0).zero()], ["resid_post.1", "pattern.2"]).activations
    assert torch.equal(seen[0], found["resid_post.1"])
    assert state(hf) == before
    assert others_hook(hf) == "transformer.h.1"
    plain(model, tokens)
    assert len(seen) == 2
    handle.remove()
    assert others_hook(hf) is None


def test_a_users_hook_that_changes_values_is_part_of_the_model():
    model = cutaway.load(tiny("llama"))
    tokens = model.encode(rows())
    with hooked(part(model, "model.layers.0"), lambda x: x * 2):
        wanted = plain(model, tokens, output_hidden_states=True)
        found = model.run(tokens, reads=["resid_post.0"])
        assert torch.equal(found.logits, wanted.logits)
        assert torch.equal(found.activations["resid_post.0"], wanted.hidden_states[1])


@pytest.mark.parametrize("first", ["recorder", "edit"])
@pytest.mark.parametrize("family", ["gpt2", "llama", "bert"])
def test_hidden_states_show_the_edit(family, first):
    model = cutaway.load(tiny(family), audit=False)
    tokens = model.encode(rows())
    if first == "recorder":
        plain(model, tokens, output_hidden_states=True)
    from cutaway.models.edits import Placed

    with torch.no_grad(), Session(model.module, model.anatomy, [Placed(ADD, tokens)], []) as session:
        found = model.module(**model.inputs(tokens), output_hidden_states=True)
    session.check_fired()
    clean = plain(model, tokens, output_hidden_states=True)
    assert relative(found.hidden_states[2], clean.hidden_states[2] + vector() * 3) < 1e-5
    assert torch.equal(found.hidden_states[1], clean.hidden_states[1])


def test_a_run_inside_an_edit_function_sees_its_own_edits_only():
    model = loaded("gpt2")
    other = model.encode(rows(seed=2))
    inner_edit = sites.z[1].head(0).zero()
    wanted = model.run(other, [inner_edit], ["pattern.1"])
    inside = []

    def function(value):
        inside.append(model.run(other, [inner_edit], ["pattern.1"]))
        return value * 2

    for site in (sites.resid_post[0], sites.z[0], sites.pattern[0]):
        found = model.run(rows(), [site.apply(function)]).logits
        assert torch.equal(inside[-1].logits, wanted.logits)
        assert torch.equal(inside[-1].activations["pattern.1"], wanted.activations["pattern.1"])
        assert torch.equal(found, model.run(rows(), [site.scale(2.0)]).logits)


def test_another_thread_sees_the_plain_model():
    model = loaded("llama")
    tokens = model.encode(rows())
    clean = plain(model, tokens).logits
    edits = [ADD, sites.pattern[1].head(1).zero()]
    edited = model.run(tokens, edits).logits
    inside, done, found = threading.Event(), threading.Event(), {}

    def wait(value):
        inside.set()
        assert done.wait(20)
        return value

    def runs():
        found["a"] = model.run(tokens, [*edits, sites.resid_pre[2].apply(wait), sites.z[2].scale(1.0)]).logits

    thread = threading.Thread(target=runs)
    thread.start()
    assert inside.wait(20)
    found["b"] = plain(model, tokens).logits
    found["c"] = model.run(tokens, [sites.z[0].head(0).zero()]).logits
    done.set()
    thread.join(20)
    assert torch.equal(found["b"], clean)
    assert torch.equal(found["a"], edited)
    assert torch.equal(found["c"], model.run(tokens, [sites.z[0].head(0).zero()]).logits)


def test_two_models_that_share_a_configuration():
    one = tiny("llama")
    two = tiny("llama", seed=1)
    two.config = two.model.config = one.config
    for layer in two.model.layers:
        layer.self_attn.config = one.config
    a, b = cutaway.load(one), cutaway.load(two)
    before = one.config._attn_implementation
    inside = []
    edit = sites.z[1].head(0).zero()
    wanted = b.run(rows(), [edit, sites.z[2].head(1).zero()]).logits

    def function(value):
        inside.append(b.run(rows(), [edit, sites.z[2].head(1).zero()]).logits)
        return value

    a.run(rows(), [sites.z[0].apply(function), sites.z[2].head(0).zero()])
    assert torch.equal(inside[0], wanted)
    assert one.config._attn_implementation == before


def test_stores_are_independent_copies():
    model = loaded("gpt2")
    tokens = model.encode(rows())
    acts = model.capture(tokens, sites.resid_post[:])
    again = model.capture(tokens, sites.resid_post[:])
    for site in acts:
        acts[site].add_(1.0)
    assert all(torch.equal(acts[s] - 1.0, acts[s] - 1.0) and not torch.equal(acts[s], again[s]) for s in acts)
    assert torch.equal(plain(model, tokens).logits, model.run(tokens).logits)
    donor = model.capture(model.encode(rows(seed=2)), ["resid_post.0"])
    kept = donor["resid_post.0"].clone()
    model.run(tokens, [sites.resid_post[0].patch(donor), sites.resid_post[0].apply(lambda v: v.mul_(0))])
    assert torch.equal(donor["resid_post.0"], kept)


def test_what_a_later_module_does_in_place_does_not_reach_the_store(seeded):
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True)).eval()
    x = torch.ones(2, 4)
    found = cutaway.wrap(net).capture(x, [sites.module("0")])[sites.module("0")]
    with torch.no_grad():
        assert torch.equal(found, net[0](x))
    assert found.min() < 0


def test_a_module_that_returns_a_view_of_its_weights_keeps_them():
    class Table(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.arange(12.0).reshape(3, 4))

        def forward(self, x):
            return self.weight[: x.shape[0]]

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = Table()

        def forward(self, x):
            return self.table(x) * 2

    net = Net().eval()
    before = net.table.weight.detach().clone()
    model = cutaway.wrap(net)
    for edit in (sites.module("table").zero(), sites.module("table").apply(lambda v: v.add_(5))):
        out = model.run(torch.ones(2, 4), [edit], [sites.module("table")])
        out.activations[sites.module("table")].mul_(7)
        assert torch.equal(net.table.weight.detach(), before)


def test_tied_frozen_weights_stay_tied_frozen_and_the_same():
    hf = tiny("gpt2").requires_grad_(False)
    model = cutaway.load(hf)
    before = {k: v.clone() for k, v in hf.state_dict().items()}
    names = [n for n, _ in hf.named_modules()]
    edits = [
        sites.embed.scale(2.0),
        sites.resid_post[0].add(vector()),
        sites.pattern[1].head(0).zero(),
        sites.logits.zero(),
    ]
    model.run(rows(), edits)
    model.generate(rows(), edits, max_new_tokens=2)
    model.grad(rows(), lambda logits: logits.sum(), ["embed"], edits[:3])
    assert hf.lm_head.weight is hf.transformer.wte.weight
    assert all(torch.equal(before[k], v) for k, v in hf.state_dict().items())
    assert not any(p.requires_grad for p in hf.parameters())
    assert [n for n, _ in hf.named_modules()] == names
    assert not hf.training


def test_the_model_saves_and_loads_as_ever(tmp_path):
    hf = tiny("gpt2")
    model = cutaway.load(hf)
    model.run(rows(), [ADD], ["pattern.0"])
    hf.save_pretrained(tmp_path)
    again = type(hf).from_pretrained(tmp_path)
    tokens = torch.tensor(rows())
    with torch.no_grad():
        assert torch.equal(again(tokens).logits, hf(tokens).logits)
    assert again.config._attn_implementation == hf.config._attn_implementation
    assert cutaway.load(tmp_path, audit=False).digest == model.digest


@pytest.mark.parametrize("how", ["dispatched", "offloaded"])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_accelerate_moves_the_weights_and_the_numbers_stay(family, how):
    import accelerate

    free = loaded(family)
    tokens = free.encode(rows())
    reads = ["resid_post.0", "z.1"]
    wanted = free.run(tokens, [ADD], reads)
    hf = tiny(family)
    if how == "dispatched":
        accelerate.dispatch_model(hf, {"": "cpu"}, force_hooks=True)
    else:
        accelerate.cpu_offload(hf, torch.device("cpu"))
    model = cutaway.load(hf)
    assert model.dispatched
    assert model.digest == free.digest
    ran = []
    with hooked(hf.get_submodule(model.body.layers[2].block), lambda x: ran.append(1) or x):
        captured = model.capture(tokens, ["resid_post.0"])
    assert ran, "the pass was cut short, and weights would stay where they are"
    assert torch.equal(captured["resid_post.0"], free.capture(tokens, ["resid_post.0"])["resid_post.0"])
    found = model.run(tokens, [ADD], reads)
    assert torch.equal(found.logits, wanted.logits)
    assert all(torch.equal(found.activations[s], v) for s, v in wanted.activations.items())
    assert model.generate(tokens, [ADD], max_new_tokens=2) == free.generate(tokens, [ADD], max_new_tokens=2)
    for text in (model.body.resume, model.body.suffix):
        assert "accelerate moves the weights" in text


def test_capture_stops_after_its_deepest_site():
    model = loaded("llama")
    ran = []
    with hooked(part(model, "model.layers.2"), lambda x: ran.append(1) or x):
        model.capture(rows(), ["resid_post.1"])
        assert not ran
        model.capture(rows(), ["resid_post.2"])
        assert ran


@pytest.mark.parametrize("family", FAMILIES)
def test_only_the_layer_that_shows_its_pattern_leaves_the_fused_kernel(family, monkeypatch):
    model = loaded(family)
    from cutaway.models import attention

    eager, original = [], attention._eager
    monkeypatch.setattr(attention, "_eager", lambda s, module, *a: eager.append(module) or original(s, module, *a))
    model.run(rows(), [sites.z[0].head(1).zero()], ["q.0", "pattern.1"])
    assert eager == [part(model, model.body.layers[1].attention)]


def test_gpt2_with_the_reordered_eager_kernel_of_its_own():
    hf = tiny("gpt2", attn_implementation="eager", reorder_and_upcast_attn=True)
    model = cutaway.load(hf)
    tokens = model.encode(rows())
    wanted = plain(model, tokens, output_attentions=True)
    assert torch.equal(model.run(tokens).logits, wanted.logits)
    found = model.run(tokens, reads=["pattern.1", "z.1"])
    assert relative(found.logits, wanted.logits) < 1e-5
    assert relative(found.activations["pattern.1"], wanted.attentions[1]) < 1e-5
    statuses = [model.body.status(Site(k, 1)) for k in ("q", "k", "v", "z", "pattern")]
    assert {s.state for s in statuses} == {"verified"}
    assert hf.config._attn_implementation == "eager"


def test_a_wrapped_model_is_a_model_without_anatomy():
    assert isinstance(cutaway.wrap(nn.Identity().eval()), Model)
