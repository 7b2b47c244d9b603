"""Conditions: what fires is what torch says, what comes too late or reads something else is refused."""

import pytest
import torch

import cutaway
from cutaway import sites
from cutaway.engine import Run, plan
from cutaway.errors import BadEdit, EngineError, OutOfRange, SiteUnavailable
from cutaway.models import Condition
from tests.families import tiny
from tests.models.samples import loaded, relative, rows, vector

SITE, BIG = sites.resid_post[1], vector() * 6
LENGTHS = (9, 6, 7)


@pytest.mark.parametrize("pad", ["left", "right"])
@pytest.mark.parametrize("rule", ["token", "end", "prompt"])
def test_the_edit_acts_where_the_probe_says(rule, pad):
    model = loaded("llama")
    tokens = model.encode(rows(LENGTHS), pad=pad, roles={"end": [6, 3, 3]})
    read = model.capture(tokens, ["resid_post.0", SITE])
    scores = read["resid_post.0"] @ vector(seed=7) + 0.5
    prompt = torch.zeros_like(tokens.mask)
    for row, (offset, end) in enumerate(zip(tokens.offsets, tokens.roles["end"])):
        prompt[row, offset : offset + end + 1] = True
    ends = scores[range(3), [o + e for o, e in zip(tokens.offsets, tokens.roles["end"])]]
    most = scores.masked_fill(~prompt, -torch.inf).amax(1)
    # in the middle between two scores, so that some fire and some do not
    level = {"token": scores[tokens.mask], "end": ends, "prompt": most}[rule].sort().values
    threshold = float(level[len(level) // 2 - 1 : len(level) // 2 + 1].mean())
    when = Condition(sites.resid_post[0], vector(seed=7), threshold, 0.5, rule)
    fires = {"token": scores > threshold, "end": (ends > threshold)[:, None], "prompt": (most > threshold)[:, None]}[
        rule
    ]
    for place, selected in ((None, tokens.mask), ("new", tokens.mask & ~prompt)):
        found = model.run(tokens, [SITE.at(place).add(BIG).when(when)], [SITE]).activations[SITE]
        acts = fires.expand_as(tokens.mask) & selected
        wanted = read[SITE] + acts[..., None] * BIG
        assert relative(found[tokens.mask], wanted[tokens.mask]) < 1e-5
        assert bool(acts.any())
        assert bool((selected & ~acts).any())


def test_it_reads_what_edits_of_its_site_left_and_at_its_own_site_what_comes_to_it():
    model = loaded("gpt2")
    early = sites.resid_post[0]
    push = early.add(vector(seed=7), scale=1000.0)
    when = Condition(early, vector(seed=7), 10_000.0)
    edit = SITE.add(BIG).when(when)
    assert torch.equal(model.run(rows(), [edit]).logits, model.run(rows()).logits)
    assert torch.equal(model.run(rows(), [push, edit]).logits, model.run(rows(), [push, SITE.add(BIG)]).logits)
    own = early.add(BIG).when(when)
    assert torch.equal(model.run(rows(), [own, push]).logits, model.run(rows(), [push]).logits - 0.0)
    assert torch.equal(model.run(rows(), [push, own]).logits, model.run(rows(), [push, early.add(BIG)]).logits)


def test_one_head_may_be_the_probe_and_keys_may_be_edited():
    model = loaded("llama")
    head = model.capture(rows(), "z.0")["z.0"][:, :, 2]
    scores = head @ vector(12)
    when = Condition(sites.z[0].head(2), vector(12), float(scores.median()))
    keys = model.capture(rows(), "k.1")["k.1"]
    found = model.run(rows(), [sites.k[1].head(1).scale(-3.0).when(when)], ["k.1"]).activations["k.1"]
    fires = scores > when.threshold
    assert torch.equal(found[:, :, 0], keys[:, :, 0])
    assert relative(found[:, :, 1], torch.where(fires[..., None], -3 * keys[:, :, 1], keys[:, :, 1])) < 1e-6
    assert bool(fires.any())
    assert not bool(fires.all())


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox"])
def test_between_attention_and_mlp(family):
    model = cutaway.load(tiny(family), audit=False)
    mid = sites.resid_mid[1]
    try:
        value = model.capture(rows(), mid)[mid]
    except SiteUnavailable:
        return
    when = Condition(mid, vector(seed=7), float((value @ vector(seed=7)).median()))
    fires = (value @ vector(seed=7) > when.threshold)[..., None]
    found = model.run(rows(), [mid.add(BIG).when(when)], [mid]).activations[mid]
    assert relative(found, value + fires * BIG) < 1e-5


def test_a_plan_of_conditional_runs_is_their_runs():
    model = loaded("llama")
    tokens = model.encode(rows(LENGTHS))
    runs = []
    for rule in ("token", "end", "prompt"):
        when = Condition(sites.resid_post[0], vector(seed=7), 0.3, rule=rule)
        runs += [
            Run(tokens, edits=(sites.z[2].head(1).at(p).zero(), sites.resid_post[2].add(BIG).when(when)), logits="all")
            for p in (3, 5)
        ]
    for planned, run in zip(plan(model, runs).execute(), runs):
        assert relative(planned.logits[tokens.mask], model.run(tokens, run.edits).logits[tokens.mask]) < 1e-5


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Condition(SITE, vector(), rule="always"), "rule='always'; it is one of token, end, prompt"),
        (lambda: Condition(sites.z[1], vector()), "name a residual state, a write, or one head"),
        (lambda: Condition(sites.pattern[1].head(0), vector()), "a probe reads one vector a token"),
        (lambda: Condition(sites.k[1].head(0), vector()), "a probe reads one vector a token"),
        (lambda: Condition(SITE.at(3), vector()), r"rule= says which of them count; give resid_post.1"),
        (lambda: Condition(SITE, torch.ones(2, 32)), r"shape \[2, 32\]; give one vector"),
        (lambda: Condition(SITE, vector() * 0), "decides nothing"),
        (lambda: Condition(SITE, vector(), float("nan")), "decides nothing"),
        (lambda: Condition(SITE, vector(), bias=float("inf")), "decides nothing"),
        (
            lambda: SITE.zero().when(Condition(SITE, vector())).when(Condition(SITE, vector())),
            "has a condition already",
        ),
    ],
)
def test_probes_that_mean_nothing_are_refused(build, message):
    with pytest.raises(BadEdit, match=message):
        build()


@pytest.mark.parametrize(
    ("edit", "when", "error", "message"),
    [
        (SITE, Condition(sites.resid_post[2], vector()), BadEdit, "it comes after the edit of resid_post.1"),
        (sites.mlp_out[1], Condition(sites.resid_post[1], vector()), BadEdit, "it comes after the edit"),
        (sites.attn_in[0], Condition(sites.attn_out[0], vector()), BadEdit, "it comes after the edit"),
        (SITE, Condition(sites.resid_post[0], vector(31)), BadEdit, r"shape \[31\], the site \[32\]"),
        (SITE, Condition(sites.resid_post[9], vector()), OutOfRange, "3 layers"),
        (
            sites.module("transformer.h.0"),
            Condition(SITE, vector()),
            EngineError,
            "had no value when the edit was to act",
        ),
    ],
)
def test_a_probe_that_does_not_fit_is_refused(edit, when, error, message):
    model = loaded("gpt2")
    with pytest.raises(error, match=message):
        model.run(rows(), [edit.zero().when(when)])
    assert model.run(rows()).logits.isfinite().all()


def test_a_probe_is_a_copy():
    direction = vector()
    when = Condition(SITE, direction)
    direction.zero_()
    assert torch.equal(when.direction, vector())
