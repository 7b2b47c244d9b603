"""Bits, copies, dtypes: what is not edited does not move, what was stored stays, float32 goes into bfloat16."""

from collections.abc import Iterator

import torch
from torch import Tensor

import cutaway
from cutaway import sites
from cutaway.models import Model
from tests.models.samples import hooked
from tests.silent.oracle import instead, plus
from tests.silent.shapes import Shape, vector
from tests.silent.suite import Attempt, Right, must_work

SITE = sites.resid_post[1]


@must_work("13a", "an identity edit leaves every bit")
def identity(t: Shape) -> Iterator[Attempt]:
    plain = t.run()
    acts = t.model.capture(t.rows, ["resid_post.*", "z.*"])
    for edit in (
        SITE.scale(1.0),
        SITE.add(torch.zeros(32)),
        SITE.patch(acts),
        sites.z[1].patch(acts),
        sites.mlp_out[1].apply(lambda x: x),
    ):
        yield Right(f"{edit}", lambda edit=edit: t.run(edit), plain, bits=True)
    acts = t.model.capture(t.rows, "pattern.1")
    yield Right("patching a pattern", lambda: t.run(sites.pattern[1].patch(acts)), plain)


@must_work("13b", "unedited logits are those of one's own call, bit for bit")
def unedited(t: Shape) -> Iterator[Attempt]:
    t.hf.config.use_cache = False
    plain = t.plain()
    yield Right("run", lambda: t.run(), plain, bits=True)
    yield Right("run with reads", lambda: t.model.run(t.rows, reads=["resid_post.*", "z.1"]).logits, plain, bits=True)


@must_work("14a", "resid_post[0] is read while its successor is edited in place")
def aliases(t: Shape) -> Iterator[Attempt]:
    whole = t.whole()
    v = vector()
    read = sites.resid_post[0]
    wanted, edited = (
        whole.seen["resid_post.0"].detach(),
        t.whole(("resid_post.0", plus(v))).seen["resid_post.0"].detach(),
    )
    for site in (sites.resid_pre[1], sites.attn_in[1]):
        edit = site.apply(lambda x: x.add_(v))
        yield Right(f"{edit}", lambda e=edit: t.model.run(t.rows, [e], read).activations[read], wanted, edited)
    yield Right(
        "logits",
        lambda: t.run(sites.resid_pre[1].apply(lambda x: x.add_(v))),
        t.wanted(("resid_pre.1", plus(v))),
        t.wanted(),
    )


@must_work("14b", "a patch source is used again after a run with an edit in place downstream")
def source_reused(t: Shape) -> Iterator[Attempt]:
    acts = t.model.capture(t.other, "resid_post.*")
    theirs = t.whole(ids=t.other).seen["resid_post.0"].detach()
    wanted = t.wanted(("resid_post.0", instead(theirs)))
    patch = sites.resid_post[0].patch(acts)
    spoiled = sites.resid_pre[1].apply(lambda x: x.zero_())
    yield Right("first", lambda: t.run(patch), wanted, t.wanted())
    yield Right(
        "beside",
        lambda: t.run(patch, spoiled),
        t.wanted(("resid_post.0", instead(theirs)), ("resid_pre.1", torch.zeros_like)),
    )
    yield Right("again", lambda: t.run(patch), wanted)
    yield Right("a new patch", lambda: t.run(sites.resid_post[0].patch(acts)), wanted)


def _half(t: Shape) -> tuple[Model, object]:
    """The model and its twin in bfloat16; loaded anew, since its weights are others."""
    return cutaway.load(t.hf.to(torch.bfloat16), audit=False), t.twin.to(torch.bfloat16)


def _hooked(t: Shape, change) -> Tensor:
    """The twin with one hook by hand: in bfloat16 the oracle's sums would round elsewhere."""
    block = t.twin.get_submodule(next(n for n, m in t.hf.named_modules() if m is t.block))
    with torch.no_grad(), hooked(block, change):
        return t.twin(t.ids).logits


@must_work("15a", "a float32 steering vector into a bfloat16 model")
def half_vector(t: Shape) -> Iterator[Attempt]:
    model, _ = _half(t)
    v = vector()
    wanted = _hooked(t, lambda x: x + v.bfloat16())
    yield Right("add(v)", lambda: model.run(t.rows, [SITE.add(v)]).logits, wanted, _hooked(t, lambda x: x), bits=True)
    double = SITE.add(v.double())
    yield Right("add(v.double())", lambda: model.run(t.rows, [double]).logits, wanted, bits=True)


@must_work("15b", "a float32 patch into a bfloat16 model")
def half_patch(t: Shape) -> Iterator[Attempt]:
    model, _ = _half(t)
    v = vector(4, 4, 32)
    wanted = _hooked(t, lambda x: v.bfloat16())
    yield Right(
        "replace(v)", lambda: model.run(t.rows, [SITE.replace(v)]).logits, wanted, _hooked(t, lambda x: x), bits=True
    )
    yield Right("apply(lambda x: v)", lambda: model.run(t.rows, [SITE.apply(lambda x: v)]).logits, wanted, bits=True)
