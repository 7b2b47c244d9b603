"""Values of the wrong shape: nothing is broadcast."""

from collections.abc import Iterator

from cutaway import sites
from tests.silent.oracle import plus
from tests.silent.shapes import BLOCKS, Shape, vector
from tests.silent.suite import Attempt, Refused, Right, mistake, must_work

SITE = sites.resid_post[1]
SHAPE = r"the value has shape \[{}\], the selection takes \[4, 4, 32\]; nothing is broadcast"


def block(t: Shape):
    """The same place by its module's path."""
    return sites.module(BLOCKS[t.name].format(1))


@mistake("1a-assign", "a [d] value set where [batch pos d] is meant")
def one_vector_set(t: Shape) -> Iterator[Attempt]:
    v = vector()
    yield Refused("replace(v)", lambda: t.run(SITE.replace(v)), SHAPE.format("32") + r".*use fill\(vector\)")
    yield Refused(
        "replace(acts[site][0, 2])", lambda: t.run(SITE.replace(t.model.capture(t.rows, SITE)[SITE][0, 2])), "fill"
    )
    yield Refused(
        "at([0, 1, 2, 3]).replace(v)", lambda: t.run(SITE.at([0, 1, 2, 3]).replace(v)), "nothing is broadcast"
    )
    yield Refused(
        "sites.module(block).replace(v)", lambda: t.run(block(t).replace(v)), r"shape \[32\], the site \[4, 4, 32\]"
    )


@mistake("1a-replace", "a [d] value returned or patched where [batch pos d] is meant")
def one_vector_returned(t: Shape) -> Iterator[Attempt]:
    v = vector()
    yield Refused(
        "apply(lambda x: v)", lambda: t.run(SITE.apply(lambda x: v)), r"got shape \(4, 4, 32\) and returned \(32,\)"
    )
    yield Refused(
        "patch(v)", lambda: t.run(SITE.patch(v)), r"patch takes what model.capture returns, not a Tensor.*replace"
    )
    yield Refused(
        "grad(edits=[replace(v)])", lambda: t.model.grad(t.rows, lambda x: x.sum(), "z.0", [SITE.replace(v)]), "fill"
    )
    yield Refused(
        "generate(edits=[replace(v)])",
        lambda: t.model.generate(t.rows, [SITE.replace(v)], max_new_tokens=2),
        "nothing is broad",
    )


@mistake("1b-assign", "a [1, 1, d] value set where [batch pos d] is meant")
def one_slot_set(t: Shape) -> Iterator[Attempt]:
    v = vector(1, 1, 32)
    yield Refused("replace(v)", lambda: t.run(SITE.replace(v)), SHAPE.format("1, 1, 32"))
    yield Refused(
        "add(v)", lambda: t.run(SITE.add(v)), r"shape \[1, 1, 32\], the selection takes \[32\] or \[4, 4, 32\]"
    )
    yield Refused("fill(v)", lambda: t.run(SITE.fill(v)), r"shape \[1, 1, 32\], the selection takes \[32\]")
    yield Refused("sites.module(block).add(v)", lambda: t.run(block(t).add(v)), r"shape \[1, 1, 32\], the site")


@mistake("1b-replace", "a [1, 1, d] value returned or patched where [batch pos d] is meant")
def one_slot_returned(t: Shape) -> Iterator[Attempt]:
    v = vector(1, 1, 32)
    yield Refused(
        "apply(lambda x: v)", lambda: t.run(SITE.apply(lambda x: v)), r"returned \(1, 1, 32\); return the same shape"
    )
    yield Refused("patch(v)", lambda: t.run(SITE.patch(v)), r"not a Tensor of shape \[1, 1, 32\]")
    one = t.model.capture([t.rows[0][:1]], SITE)
    yield Refused(
        "patch(run of one row, one token)", lambda: t.run(SITE.patch(one)), "the source has 1 rows, the run 4"
    )


@mistake("1c-assign", "values of one row set in four")
def one_row_set(t: Shape) -> Iterator[Attempt]:
    v = t.model.capture(t.rows[:1], SITE)[SITE]
    yield Refused("replace(v)", lambda: t.run(SITE.replace(v)), SHAPE.format("1, 4, 32"))
    yield Refused("replace(v[0])", lambda: t.run(SITE.replace(v[0])), SHAPE.format("4, 32"))
    yield Refused("sites.module(block).replace(v)", lambda: t.run(block(t).replace(v)), r"shape \[1, 4, 32\], the site")
    yield Refused(
        "sites.module(block).replace(v[0])", lambda: t.run(block(t).replace(v[0])), r"shape \[4, 32\], the site"
    )


@mistake("1c-replace", "values of one row returned or patched in four")
def one_row_returned(t: Shape) -> Iterator[Attempt]:
    acts = t.model.capture(t.rows[:1], SITE)
    yield Refused(
        "patch(acts)", lambda: t.run(SITE.patch(acts)), r"the source has 1 rows, the run 4; use source.take\(rows\)"
    )
    yield Refused(
        "patch(acts) at the end", lambda: t.run(SITE.at("end").patch(acts)), "the source has 1 rows, the run 4"
    )
    yield Refused("apply(lambda x: v)", lambda: t.run(SITE.apply(lambda x: acts[SITE])), r"returned \(1, 4, 32\)")


@mistake("1d", "a steering vector of [batch d] rows added to [batch pos d], with as many rows as positions")
def rows_on_positions(t: Shape) -> Iterator[Attempt]:
    v = vector(4, 32)
    words = r"shape \[4, 32\], the selection takes \[32\] or \[4, 4, 32\]; nothing is broadcast"
    yield Refused("add(v)", lambda: t.run(SITE.add(v)), words)
    yield Refused("at([0, 1, 2, 3]).add(v)", lambda: t.run(SITE.at([0, 1, 2, 3]).add(v)), words)
    yield Refused(
        "sites.module(block).add(v)", lambda: t.run(block(t).add(v)), r"shape \[4, 32\], the site \[4, 4, 32\]"
    )
    yield Refused("add(v) while generating", lambda: t.model.generate(t.rows, [SITE.add(v)], max_new_tokens=2), words)
    yield Refused(
        "add(v) as a numpy array", lambda: t.run(SITE.add(v.numpy())), r"a ndarray of shape \[4, 32\].*as_tensor"
    )
    yield Refused("add(v) as a list", lambda: t.run(SITE.add(v.tolist())), "the value is list; give a tensor")


@mistake("5a", "code for blocks that returned tuples, as a function of the value")
def tuples_expected(t: Shape) -> Iterator[Attempt]:
    v = vector()

    def in_place(out):
        out[0].add_(v)

    yield Refused("out[0] += v, nothing returned", lambda: t.run(SITE.apply(in_place)), "returned NoneType; return")
    yield Refused(
        "return (out[0] + v, *out[1:])", lambda: t.run(SITE.apply(lambda out: (out[0] + v, *out[1:]))), "returned tuple"
    )
    yield Refused("return out[0] + v", lambda: t.run(SITE.apply(lambda out: out[0] + v)), r"returned \(4, 32\)")


@must_work("5b", "an edit of a module that returns a tuple")
def a_tuple_returned(t: Shape) -> Iterator[Attempt]:
    v = vector()
    wanted = t.wanted(("attn_out.1", plus(v)))
    path = BLOCKS[t.name].format(1) + (".attn" if t.name == "gpt2" else ".self_attn")
    yield Right("sites.module(attention).add(v)", lambda: t.run(sites.module(path).add(v)), wanted, t.wanted())
    yield Right("attn_out[1].add(v)", lambda: t.run(sites.attn_out[1].add(v)), wanted)


@must_work("5b-bloom", "an edit of blocks that return tuples (Bloom)", ("bloom",))
def tuples_of_blocks(t: Shape) -> Iterator[Attempt]:
    v, path = vector(), BLOCKS[t.name].format(1)
    wanted = t.by_hand(path, lambda x: x + v)
    yield Right("resid_post[1].add(v)", lambda: t.run(SITE.add(v)), wanted, t.plain())
    yield Right("sites.module(block).add(v)", lambda: t.run(block(t).add(v)), wanted)
