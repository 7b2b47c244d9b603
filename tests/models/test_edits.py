"""Edits: what does not fit is refused before anything runs, what never fires is an error, nothing is broadcast."""

import subprocess
import sys

import pytest
import torch

import cutaway
from cutaway import sites
from cutaway.engine import Run, plan
from cutaway.errors import (
    BadEdit,
    CutawayError,
    EditFailed,
    EditNeverApplied,
    EngineError,
    OutOfRange,
    UsageError,
    WrongModel,
)
from cutaway.models import Edit
from cutaway.models.sites import where
from tests.families import tiny
from tests.models.samples import hooked, loaded, plain, relative, rows, spoken, vector

SITE = sites.resid_post[1]


def refused(error, message, build, family="gpt2", prompts=None):
    """The edit is refused, by construction or before the run; the model is as it was."""
    model = loaded(family)
    tokens = model.encode(rows((4, 4, 4, 4)) if prompts is None else prompts)
    before = plain(model, tokens).logits
    with pytest.raises(error, match=message):
        model.run(tokens, [build(model)])
    assert torch.equal(plain(model, tokens).logits, before)


ones = torch.ones


@pytest.mark.parametrize(
    ("value", "allowed"),
    [
        (ones(31), r"\[31\], the selection takes (\[32\] or )?\[4, 4, 32\]"),
        (ones(1, 32), r"\[1, 32\]"),
        (ones(1, 1, 32), r"\[1, 1, 32\]"),
        (ones(1, 4, 32), r"\[1, 4, 32\]"),
        (ones(4, 32), r"\[4, 32\]"),
        (ones(4, 1, 32), r"\[4, 1, 32\]"),
        (torch.tensor(1.0), r"\[\], the selection"),
    ],
)
@pytest.mark.parametrize("op", ["replace", "add"])
def test_nothing_is_broadcast(op, value, allowed):
    refused(
        BadEdit,
        rf"resid_post.1: the value has shape {allowed}.*nothing is broadcast",
        lambda m: getattr(SITE, op)(value),
    )


@pytest.mark.parametrize(
    ("site", "good", "bad"),
    [
        (SITE.at(2), [(32,), (4, 32), (4, 1, 32)], [(1, 32), (3, 32)]),
        (SITE.at([0, 3]), [(4, 2, 32)], [(32,), (2, 32), (4, 32)]),
        (SITE.at("end").rows([0, 2]), [(32,), (2, 32)], [(4, 32)]),
        (sites.z[1], [(4, 4, 4, 8)], [(4, 8), (8,), (32,)]),
        (sites.z[1].head(2).at(0), [(8,), (4, 8)], [(32,)]),
        (sites.z[1].head([2, 0]), [(4, 4, 2, 8)], [(2, 8), (8,)]),
        (sites.mlp_act[1].neuron(7).at(1), [(), (4,)], [(1,), (80,)]),
        (sites.pattern[1].head(2).at(3), [(4,), (4, 4)], [(5,)]),
        (sites.pattern[1], [(4, 4, 4, 4)], [(4,), (4, 4, 4)]),
        (sites.logits.at(-1), [(99,), (4, 99)], [(32,)]),
    ],
    ids=lambda x: str(x) if hasattr(x, "kind") else "",
)
def test_shapes_that_fit_and_shapes_that_do_not(site, good, bad):
    model = loaded("gpt2")
    tokens = model.encode(rows((4, 4, 4, 4)))
    for shape in good:
        value = torch.rand(shape, generator=torch.Generator().manual_seed(0))
        found = model.run(tokens, [site.replace(value)], [site]).activations[site]
        assert torch.equal(found, value.expand_as(found) if value.ndim < found.ndim else value.reshape(found.shape))
    for shape in bad:
        with pytest.raises(BadEdit, match="nothing is broadcast"):
            model.run(tokens, [site.replace(torch.rand(shape, generator=torch.Generator().manual_seed(0)))])


@pytest.mark.parametrize(
    ("site", "shape"),
    [(SITE, (32,)), (SITE.at([0, 3]), (32,)), (sites.z[1], (4, 8)), (sites.z[1].head([2, 0]), (2, 8))],
    ids=str,
)
def test_one_vector_in_many_slots_is_asked_for(site, shape):
    model, value = loaded("gpt2"), torch.rand(shape, generator=torch.Generator().manual_seed(0))
    with pytest.raises(BadEdit, match=r"in every slot use fill\(vector\)"):
        model.run(rows((4, 4, 4, 4)), [site.replace(value)])
    found = model.run(rows((4, 4, 4, 4)), [site.fill(value)], [site]).activations[site]
    assert torch.equal(found, value.expand_as(found))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: SITE.add(torch.full((32,), float("nan"))), "NaN or infinity.*give finite numbers"),
        (lambda: SITE.replace(float("nan")), "NaN or infinity"),
        (lambda: SITE.scale(float("inf")), "NaN or infinity"),
        (lambda: SITE.add(ones(32) > 0), r"torch.bool cannot be written.*give floats"),
        (lambda: SITE.replace(ones(32) * 1j), r"complex64 cannot be written"),
        (lambda: SITE.clamp(), "clamp needs low=, high= or both"),
        (lambda: SITE.project_out(torch.zeros(32)), "a direction, a tensor that is not zero"),
        (lambda: SITE.patch(loaded("gpt2").capture(rows(), ["z.1"])), r"did not capture resid_post.1; it has z.1"),
    ],
)
def test_values_that_cannot_be_written_are_refused_at_once(build, message):
    with pytest.raises(BadEdit, match=f"resid_post.1.*{message}"):
        build()


def test_a_patch_needs_the_same_rows_and_as_many_tokens():
    def source(lengths, **options):
        return lambda model: model.capture(model.encode(rows(lengths), **options), ["resid_post.1", "pattern.1"])

    refused(BadEdit, "source has 3 rows, the run 4; use source.take", lambda m: SITE.patch(source((4, 4, 4))(m)))
    refused(
        BadEdit,
        "row 2 selects 4 tokens here and 5 in the source; select a named position",
        lambda m: SITE.patch(source((4, 4, 5, 4))(m)),
    )
    refused(
        BadEdit,
        "row 2 has 4 keys here and 5 in the source",
        lambda m: sites.pattern[1].at(1).patch(source((4, 4, 5, 4))(m)),
    )
    refused(UsageError, r"position 'subject': these inputs name \['end'\]", lambda m: SITE.at("subject").zero())
    refused(OutOfRange, r"position 7: row 0 has 4 tokens \(0-3, or -1 to -4\)", lambda m: SITE.at(7).zero())
    refused(OutOfRange, r"row 4 of 4 \(0-3\)", lambda m: SITE.rows([4]).zero())
    refused(OutOfRange, r"row 1 has 2 tokens", lambda m: SITE.at(-3).zero(), prompts=rows((4, 2)))


def test_a_patch_from_another_model_is_refused():
    other = cutaway.load(tiny("gpt2", seed=1), audit=False).capture(rows((4, 4, 4, 4)), ["resid_post.1"])
    refused(
        WrongModel,
        "source of a patch was made for model .* this is model .*; make it again",
        lambda m: SITE.patch(other),
    )
    model = loaded("gpt2")
    found = model.run(rows((4, 4, 4, 4)), [SITE.replace(other["resid_post.1"])], [SITE]).activations[SITE]
    assert torch.equal(found, other["resid_post.1"])


def test_a_patch_from_rows_of_other_lengths_lands_on_the_named_position():
    model = loaded("llama")
    here = model.encode(rows((6, 4)), roles={"name": [4, 1]})
    there = model.encode(rows((5, 7), seed=2), roles={"name": [2, 6]}, pad="left")
    acts = model.capture(there, [SITE])
    found = model.run(here, [SITE.at("name").patch(acts)], [SITE]).activations
    assert torch.equal(found[SITE.at("name")], acts[SITE.at("name")])
    assert torch.equal(found[SITE.at("name")][1], acts["resid_post.1"][1, 6])


def test_an_edit_that_selects_no_token_is_an_error():
    model = spoken("gpt2")
    with pytest.raises(EditNeverApplied, match=r"selects no token of these 3 rows.*choose positions"):
        model.run(rows(), [SITE.at(where(lambda token: token == "t0")).zero()])
    with pytest.raises(UsageError, match=r"needs a tokenizer, and these inputs were given as ids"):
        loaded("gpt2").run(rows(), [SITE.at(where(lambda token: True)).zero()])


def test_an_exception_in_an_edit_function_is_named_and_leaves_nothing_behind():
    hf = tiny("gpt2")
    model = cutaway.load(hf)
    tokens = model.encode(rows())
    before = plain(model, tokens).logits
    state = hooks_and_settings(hf)

    def broken(value):
        raise ZeroDivisionError("mine")

    for site in (SITE, sites.z[1], sites.pattern[1], sites.resid_mid[0], sites.module("transformer.h.0.mlp")):
        with pytest.raises(EditFailed, match=r"edit of .*the function raised ZeroDivisionError: mine") as caught:
            model.run(tokens, [site.apply(broken)])
        assert isinstance(caught.value.__cause__, ZeroDivisionError)
        assert hooks_and_settings(hf) == state
        assert torch.equal(plain(model, tokens).logits, before)
    with pytest.raises(EditFailed):
        model.generate(tokens, [SITE.apply(broken)])
    with pytest.raises(EditFailed):
        model.grad(tokens, lambda logits: logits.sum(), [SITE], [SITE.apply(broken)])
    assert hooks_and_settings(hf) == state


def hooks_and_settings(module):
    hooks = [
        (n, list(m._forward_hooks), list(m._forward_pre_hooks), "forward" in vars(m)) for n, m in module.named_modules()
    ]
    return hooks, module.config._attn_implementation, torch.is_grad_enabled()


def test_a_function_must_return_the_shape_that_it_got_and_gets_a_copy():
    refused(
        BadEdit,
        r"got shape \(4, 4, 32\) and returned \(4, 32\); return the same shape",
        lambda m: SITE.apply(lambda v: v[0]),
    )
    refused(BadEdit, r"returned NoneType", lambda m: SITE.apply(lambda v: None))
    model = loaded("gpt2")
    acts = model.capture(rows(), ["resid_post.0"])
    kept = acts["resid_post.0"].clone()
    found = model.run(
        rows(), [sites.resid_pre[1].apply(lambda v: v.mul_(0))], ["resid_post.0", "resid_pre.1"]
    ).activations
    assert torch.equal(found["resid_post.0"], kept)
    assert float(found["resid_pre.1"].abs().max()) == 0.0


def test_a_module_that_runs_twice_is_not_edited_or_read_by_guess():
    class Twice(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.unused = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)

        def forward(self, x):
            return self.inner(self.inner(x))

    with torch.random.fork_rng(devices=[]):
        model = cutaway.wrap(Twice().eval())
    x = torch.ones(2, 4)
    with pytest.raises(EngineError, match=r"inner:output.*ran 2 times in one forward pass"):
        model.run(x, [sites.module("inner").zero()])
    with pytest.raises(EngineError, match=r"inner:output.*ran 2 times"):
        model.capture(x, sites.module("inner"))
    with pytest.raises(EditNeverApplied, match=r"unused:output.*never fired"):
        model.run(x, [sites.module("unused").zero()])
    with pytest.raises(CutawayError, match=r"unused:output.*never ran in this pass"):
        model.capture(x, sites.module("unused"))


def test_take_keeps_what_belongs_to_the_rows():
    model = loaded("gpt2")
    tokens = model.encode(rows((5, 5, 5)))
    values = torch.rand(2, 32, generator=torch.Generator().manual_seed(0))
    edit = SITE.at(2).rows([2, 0]).replace(values)
    whole = model.run(tokens, [edit], [SITE]).activations[SITE]
    assert torch.equal(whole[[2, 0], 2], values)
    part = edit.take([1, 2])
    found = model.run(tokens.take([1, 2]), [part], [SITE]).activations[SITE]
    assert torch.equal(found[1, 2], values[0])
    assert edit.take([1]) is None
    assert isinstance(part, Edit)


def test_an_update_of_the_weights_is_seen_and_gives_another_digest():
    hf = tiny("gpt2")
    model = cutaway.load(hf)
    before, acts = model.digest, model.capture(rows(), ["resid_post.1"])
    with torch.no_grad():
        hf.transformer.h[0].attn.c_attn.weight.mul_(1.5)
    assert model.digest != before
    assert torch.equal(model.run(rows()).logits, plain(model, model.encode(rows())).logits)
    with pytest.raises(WrongModel):
        model.run(rows(), [SITE.patch(acts)])


def test_one_vector_is_cast_to_the_activation():
    model = loaded("gpt2")
    found = model.run(rows(), [SITE.add(vector().double())]).logits
    assert found.dtype == torch.float32
    assert relative(found, model.run(rows(), [SITE.add(vector())]).logits) < 1e-6


@pytest.mark.parametrize(("low", "high"), [(1.0, -1.0), (float("nan"), None), (0.0, float("nan"))])
def test_a_clamp_that_leaves_nothing_is_refused(low, high):
    with pytest.raises(BadEdit, match=r"clamp\(low=.*leaves no number between; low= must not be above high="):
        SITE.clamp(low, high)
    SITE.clamp(1.0, 1.0)


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_a_function_that_returns_no_numbers_is_refused(number):
    refused(
        BadEdit,
        r"resid_post.1@2: the function returned 128 numbers that are NaN, infinite or beyond torch.float32",
        lambda m: SITE.at(2).apply(lambda x: x * number),
    )
    refused(BadEdit, "scores.1: the function returned", lambda m: sites.scores[1].apply(lambda x: x * float("nan")))


def test_scores_may_be_minus_infinity():
    def first_only(scores):
        return scores.index_fill(-1, torch.arange(1, 4), float("-inf"))

    model = loaded("gpt2")
    found = model.run(rows((4,)), [sites.scores[1].apply(first_only)], ["pattern.1"]).activations["pattern.1"]
    assert torch.equal(found[..., 0], torch.ones(1, 4, 4))


def test_finite_edits_that_overflow_are_named():
    model = loaded("gpt2")
    good, bad = SITE.at(0).add(vector()), sites.mlp_out[1].at(2).scale(1e38)
    message = r"with the edits .*mlp_out.1@2.scale.* the logits are NaN or infinite, and without them they are not.*fl"
    with pytest.raises(EngineError, match=message):
        model.run(rows((4,)), [good, bad])
    with pytest.raises(EngineError, match=message):
        model.grad(rows((4,)), lambda logits: logits.sum(), ["z.1"], [good, bad])
    with pytest.raises(EngineError, match=message):
        model.generate(rows((4,)), [good, bad], max_new_tokens=1)
    runs = [Run(model.encode(rows((4,))), (edit,), logits="all") for edit in (good, bad)]
    with pytest.raises(EngineError, match=r"with the edits mlp_out.1@2.scale the logits"):
        plan(model, runs).execute()
    model.run(rows((4,)), [bad], ["z.2"], logits="none")


def test_logits_that_are_infinite_without_edits_are_nobodys_fault():
    hf = tiny("gpt2")
    hf.lm_head.weight = torch.nn.Parameter(hf.lm_head.weight.detach().clone())
    with hooked(hf.lm_head, lambda logits: logits.index_fill(-1, torch.tensor([7]), float("-inf"))):
        model = cutaway.load(hf)
        assert not model.run(rows((4,)), [SITE.add(vector())]).logits.isfinite().all()
        assert model.generate(rows((4,)), [SITE.add(vector())], max_new_tokens=2).width == 6


def test_what_is_no_edit_or_no_site_is_named():
    """In a process of its own: here, calls are checked for their types before the package sees them."""
    assert subprocess.run([sys.executable, "-c", WRONG_TYPES], capture_output=True, text=True, check=True).stdout == ""


WRONG_TYPES = """
import sys
import cutaway
from cutaway import engine, sites
from cutaway.errors import UsageError

model = cutaway.load("induction-2l", audit=False)
ids, edit = [[5, 6, 7]], sites.z[1].zero()
cases = [
    (lambda: model.run(ids, ["z.1"]), "'z.1' is no edit; say what is to be done at the site: sites.z[1].zero()"),
    (lambda: model.run(ids, [sites.z[1]]), "Site('z.1') is no edit"),
    (lambda: model.run(ids, edit), "one edit was given (z.1.replace); give a list of edits"),
    (lambda: model.run(ids, "z.1"), "'z.1' is no list of edits"),
    (lambda: model.run(ids, 3), "3 is no list of edits"),
    (lambda: model.generate(ids, edit), "one edit was given"),
    (lambda: model.grad(ids, lambda x: x.sum(), ["z.1"], edit), "one edit was given"),
    (lambda: engine.plan(model, [engine.Run(model.encode(ids), edit, logits="end")]), "one edit was given"),
    (lambda: engine.plan(model, [engine.Run(model.encode(ids), reads=("z.1",))]), "reads hold 'z.1', which is no site"),
    (lambda: model.capture(ids, 3), "3 is no site; write a text such as 'resid_post.0'"),
    (lambda: model.capture(ids, [3]), "3 is no site"),
    (lambda: model.encode([3]), "3 is neither a text nor a list of token ids"),
    (lambda: model.encode([[3.0]]), "token id 3.0: ids are whole numbers"),
    (lambda: model.encode([["a"]]), "token id 'a': ids are whole numbers"),
    (lambda: model.encode([[__import__("torch").tensor(3.5)]]), "ids are whole numbers"),
    (lambda: model.encode([[True]]), "token id True: ids are whole numbers"),
]
for use, wanted in cases:
    try:
        use()
    except UsageError as error:
        if wanted not in str(error):
            print(wanted, "|", error)
    except Exception as error:
        print(wanted, "|", repr(error))
    else:
        print(wanted, "| nothing raised")
"""


@pytest.mark.parametrize("factor", [2.0, 0.5])
def test_masked_scores_stay_masked_beside_padding(factor):
    model = loaded("llama")
    edit = sites.scores[0].head(1).scale(factor)
    alone = model.run(rows((9, 6))[1:], [edit]).logits[0]
    together = model.run(model.encode(rows((9, 6)), pad="left"), [edit]).logits[1, 3:]
    assert relative(together, alone) < 2e-5


def test_a_clamp_along_a_direction_moves_nothing_beside_it():
    model, v = loaded("gpt2"), vector() * 3
    unit = v / v.norm()
    before = model.capture(rows(), SITE)[SITE]
    for limits in ((0.5, 0.5), (0.5, None), (None, -0.5), (-0.1, 0.1)):
        after = model.run(rows(), [SITE.clamp(*limits, along=v)], [SITE]).activations[SITE]
        wanted = (before @ unit).clamp(*limits)
        assert relative(after @ unit, wanted) < 1e-4
        assert relative(after - (after @ unit)[..., None] * unit, before - (before @ unit)[..., None] * unit) < 1e-4
        assert torch.equal(after[before @ unit == wanted], before[before @ unit == wanted])
    refused(BadEdit, r"clamp\(along=\) needs a direction", lambda m: SITE.clamp(1.0, along=v * 0))
    refused(BadEdit, r"the value has shape \[4, 32\]", lambda m: SITE.clamp(1.0, along=ones(4, 32)))
    refused(BadEdit, "clamp takes one direction", lambda m: sites.z[1].clamp(1.0, along=ones(4, 8)))


def test_an_edit_that_keeps_the_norm_turns_and_does_not_grow():
    model, big = loaded("gpt2"), vector() * 20
    before = model.capture(rows(), [SITE, "z.1"])
    after = model.run(rows(), [SITE.at(2).add(big).keeping_norm()], [SITE]).activations[SITE]
    assert relative(after.norm(dim=-1), before[SITE].norm(dim=-1)) < 1e-5
    old, grown = before[SITE][:, 2], before[SITE][:, 2] + big
    wanted = grown / grown.norm(dim=-1, keepdim=True) * old.norm(dim=-1, keepdim=True)
    assert relative(after[:, 2], wanted) < 1e-5
    assert torch.equal(after[:, [0, 1, 3]], before[SITE][:, [0, 1, 3]])
    head = model.run(rows(), [sites.z[1].head(2).add(vector(8) * 9).keeping_norm()], ["z.1"]).activations["z.1"]
    assert relative(head.norm(dim=-1), before["z.1"].norm(dim=-1)) < 1e-5
    assert not torch.equal(head[:, :, 2], before["z.1"][:, :, 2])
    zero = model.run(rows(), [SITE.zero().keeping_norm()], [SITE]).activations[SITE]
    assert float(zero.abs().max()) == 0.0
    with pytest.raises(BadEdit, match="it is no vector, so it has no length to keep"):
        sites.mlp_act[1].neuron(3).scale(2.0).keeping_norm()
