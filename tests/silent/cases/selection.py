"""Names, layers, heads, positions: what is selected exists, and means one thing."""

from collections.abc import Iterator

import torch
from torch import nn

import cutaway
from cutaway import sites, where
from tests.silent.oracle import at, head, plus, zero
from tests.silent.shapes import BLOCKS, GROUPED, Shape, vector
from tests.silent.suite import Attempt, Refused, Right, mistake, must_work

SITE = sites.resid_post[1]


@mistake("2a", "a mistyped site name")
def mistyped(t: Shape) -> Iterator[Attempt]:
    for name in ("resid_pots.1", "blocks.1.hook_resid_pots", "residpost.1"):
        yield Refused(repr(name), lambda name=name: t.model.capture(t.rows, name), r"no such|Did you mean 'resid_post'")
    yield Refused("sites.resid_pots", lambda: t.run(sites.resid_pots[1].zero()), "Did you mean 'resid_post'")
    path = BLOCKS[t.name].format(1)
    yield Refused("sites.module", lambda: t.run(sites.module(path + ".mpl").zero()), rf"Did you mean '{path}.mlp")


@mistake("2b", "layer 99 of 3")
def beyond(t: Shape) -> Iterator[Attempt]:
    words = r"this model has 3 layers \(0-2\)"
    yield Refused("read", lambda: t.model.capture(t.rows, "resid_post.99"), words)
    yield Refused("edit", lambda: t.run(sites.resid_post[99].zero()), words)
    yield Refused("layer 3", lambda: t.run(sites.z[3].head(0).zero()), words)
    yield Refused("gradient", lambda: t.model.grad(t.rows, lambda x: x.sum(), sites.z[99]), words)
    yield Refused("generate", lambda: t.model.generate(t.rows, [sites.z[99].zero()], max_new_tokens=2), words)


@mistake("2c", "an edit by a filter that matches nothing")
def matches_nothing(t: Shape) -> Iterator[Attempt]:
    site = SITE.at(where(lambda text: text == "no such word", "nobody"))
    yield Refused("a predicate on tokens", lambda: t.run(site.zero()), "selects no token of these 4 rows")
    yield Refused("a range of layers", lambda: t.model.body.expand("resid_post.7:9"), r"no layer of this model \(0-2\)")
    yield Refused("an empty list of positions", lambda: t.run(SITE.at([]).zero()), "selects nothing")
    yield Refused("an empty list of heads", lambda: t.run(sites.z[1].head([]).zero()), "selects nothing")
    yield Refused("an empty list of rows", lambda: t.run(SITE.rows([]).zero()), "selects nothing")
    yield Refused(
        "a set as an edit", lambda: t.model.run(t.rows, [sites.resid_post[:]]), "is no edit; say what is to be done"
    )


@must_work("3a", "zero head 0's pattern while the model is on its own fused attention")
def fused_pattern(t: Shape) -> Iterator[Attempt]:
    wanted = t.wanted(("pattern.1", lambda x: torch.cat([x[:, :1] * 0, x[:, 1:]], 1)))
    yield Right("pattern[1].head(0).zero()", lambda: t.run(sites.pattern[1].head(0).zero()), wanted, t.wanted())
    yield Right("as text", lambda: t.run(cutaway.Site.parse("blocks.1.attn.hook_pattern").head(0).zero()), wanted)


@mistake("3b", "an edit or a read of a module that never runs")
def never_runs(t: Shape) -> Iterator[Attempt]:
    t.block.add_module("spare", nn.Linear(4, 4).eval())
    site = sites.module(BLOCKS[t.name].format(1) + ".spare")
    yield Refused("edit", lambda: t.run(site.zero()), "it never fired in this run")
    yield Refused("read", lambda: t.model.capture(t.rows, site), "it never ran in this pass")
    yield Refused("generate", lambda: t.model.generate(t.rows, [site.zero()], max_new_tokens=2), "it never fired")
    yield Refused("gradient", lambda: t.model.grad(t.rows, lambda x: x.sum(), "z.0", [site.zero()]), "it never fired")


@mistake("11a", "zero key/value head 5 of 2", GROUPED)
def no_such_head(t: Shape) -> Iterator[Attempt]:
    for site in (sites.k[1].head(5), sites.v[1].head(2), sites.k[1].head([0, 5])):
        yield Refused(f"{site}", lambda site=site: t.run(site.zero()), r"this model has 2 key/value heads \(0-1\), not")
    yield Refused("z head 4 of 4", lambda: t.run(sites.z[1].head(4).zero()), r"has 4 heads \(0-3\), not 4")


@must_work("11b", "ablate query head 3 of 4 on grouped keys and values", GROUPED)
def query_head(t: Shape) -> Iterator[Attempt]:
    wanted = t.wanted(("z.1", head(3, zero)))
    yield Right("z[1].head(3).zero()", lambda: t.run(sites.z[1].head(3).zero()), wanted, t.wanted())
    yield Right("apply", lambda: t.run(sites.z[1].apply(lambda x: head(3, zero)(x))), wanted)


@must_work("11c", "zero key and value head 1 of 2", GROUPED)
def key_head(t: Shape) -> Iterator[Attempt]:
    for kind in ("k", "v"):
        site, wanted = cutaway.Site(kind, 1, 1), t.wanted((f"{kind}.1", head(1, zero)))
        yield Right(f"{site}", lambda site=site: t.run(site.zero()), wanted, t.wanted())


@must_work("12a", "read the pattern while the model is on its own fused attention")
def read_pattern(t: Shape) -> Iterator[Attempt]:
    whole = t.whole()
    for kind in ("pattern", "z"):
        site = cutaway.Site(kind, 1)
        yield Right(f"{site}", lambda site=site: t.model.capture(t.rows, site)[site], whole.seen[f"{kind}.1"].detach())


@must_work("12b", "logits beside and after reading patterns: unchanged, the mask not dropped")
def logits_beside_patterns(t: Shape) -> Iterator[Attempt]:
    wanted = t.wanted()
    yield Right("run(reads=patterns)", lambda: t.model.run(t.rows, reads="pattern.*").logits, wanted)
    yield Right("run afterwards", lambda: t.run(), wanted)
    yield Right("one's own call afterwards", lambda: t.plain(), wanted)
    t.hf.set_attn_implementation("eager")
    yield Right("on the eager kernel", lambda: t.model.run(t.rows, reads=["z.0", "pattern.2"]).logits, wanted)


@must_work("18a", "zero mlp_out at positions 2 and 3, given as a plain list")
def two_positions(t: Shape) -> Iterator[Attempt]:
    wanted, one = t.wanted(("mlp_out.1", at([2, 3], zero))), t.wanted(("mlp_out.1", at(3, zero)))
    yield Right("at([2, 3])", lambda: t.run(sites.mlp_out[1].at([2, 3]).zero()), wanted, one)
    yield Right("two edits", lambda: t.run(*(sites.mlp_out[1].at(p).zero() for p in (2, 3))), wanted)
    yield Right("as text", lambda: t.run(cutaway.Site.parse("mlp_out.1@2,3").zero()), wanted)
    if t.name != "mixtral":
        heads = t.wanted(("z.1", lambda x: head(3, zero)(head(1, zero)(x))))
        yield Right(
            "head([1, 3])", lambda: t.run(sites.z[1].head([1, 3]).zero()), heads, t.wanted(("z.1", head(3, zero)))
        )


@must_work("18b", "read resid_post at all positions")
def all_positions(t: Shape) -> Iterator[Attempt]:
    wanted = t.whole().seen["resid_post.1"].detach()
    yield Right("capture", lambda: t.model.capture(t.rows, SITE)[SITE], wanted)
    yield Right("run(reads=)", lambda: t.model.run(t.rows, reads="resid_post.*").activations["resid_post.1"], wanted)
    found = lambda: torch.stack([t.model.capture(t.rows, SITE)[SITE.at(p)] for p in range(4)], 1)  # noqa: E731
    yield Right("one by one", found, wanted)


@must_work("18c", "another position in each row, after an earlier call at one position")
def position_by_row(t: Shape) -> Iterator[Attempt]:
    t.run(sites.mlp_out[1].at(1).zero())

    def both(value):
        out = value.clone()
        out[0, 2], out[1, 3] = 0.0, 0.0
        return out

    wanted, common = t.wanted(("mlp_out.1", both)), t.wanted(("mlp_out.1", at(2, zero)))
    edits = [sites.mlp_out[1].rows([0]).at(2).zero(), sites.mlp_out[1].rows([1]).at(3).zero()]
    yield Right("rows([0]).at(2), rows([1]).at(3)", lambda: t.run(*edits), wanted, common)
    named = t.model.encode(t.rows, roles={"subject": [2, 3, 0, 0]})
    role = sites.mlp_out[1].at("subject").rows([0, 1])
    yield Right("a role", lambda: t.run(role.zero(), inputs=named), wanted)
    yield Right(
        "the earlier call again", lambda: t.run(sites.mlp_out[1].at(1).zero()), t.wanted(("mlp_out.1", at(1, zero)))
    )


@must_work("19-gpt_oss", "the same on gpt-oss, whose attention has sinks", ("gpt_oss",))
def odd_heads_with_sinks(t: Shape) -> Iterator[Attempt]:
    def without(value: torch.Tensor) -> torch.Tensor:
        return torch.cat([value[..., :36], zero(value[..., 36:])], -1)

    yield Right("unedited", lambda: t.run(), t.by_hand("lm_head", lambda x: x))
    wanted = t.by_hand("model.layers.2.self_attn.o_proj", without, "input")
    yield Right("head 3", lambda: t.run(sites.z[2].head(3).zero()), wanted, t.plain())


@must_work("19", "heads that are not d_model / n_heads wide: unedited logits; ablate head 3")
def odd_heads(t: Shape) -> Iterator[Attempt]:
    yield Right("unedited", lambda: t.run(), t.wanted())
    yield Right("head 3", lambda: t.run(sites.z[2].head(3).zero()), t.wanted(("z.2", head(3, zero))), t.wanted())
    v = vector(8 if t.name == "gpt2" else 12)
    moved = t.wanted(("z.2", head(3, plus(v))))
    yield Right("head 3, a vector", lambda: t.run(sites.z[2].head(3).add(v)), moved, t.wanted())
