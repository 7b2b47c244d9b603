"""Cases that no list had: what users do, and what would give a plausible wrong number."""

import copy
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

import cutaway
from cutaway import Raw, sites
from tests.families import N_LAYERS
from tests.silent.oracle import at, instead, plus, zero
from tests.silent.shapes import BLOCKS, Shape, padded, vector
from tests.silent.suite import Attempt, Refused, Right, mistake, must_work

SITE = sites.resid_post[1]


@mistake("20a", "a mask, or floats, given as positions, heads, rows or layer")
def masks(t: Shape) -> Iterator[Attempt]:
    words = r"a whole number or a list of them is needed.*a mask becomes its indices"
    for mask in ([False, True, False, True], torch.tensor([False, True]), np.array([False, True]), True, [1.9], 2.0):
        yield Refused(f"at({mask})", lambda m=mask: t.run(SITE.at(m).zero()), words)
    yield Refused("rows(mask)", lambda: t.run(SITE.rows([True, False, False, False]).zero()), words)
    yield Refused("head(mask)", lambda: t.run(sites.z[1].head([False, True]).zero()), words)
    yield Refused("neuron(1.0)", lambda: t.run(sites.mlp_act[1].neuron(1.0).zero()), words)
    yield Refused("layer True", lambda: t.run(sites.z[True].zero()), words)
    yield Refused("layer '1'", lambda: t.run(sites.z["1"].zero()), "a layer is a whole number")
    yield Refused("layer -1", lambda: t.run(sites.z[-1].zero()), r"has 3 layers \(0-2\). Did you mean 'z.2'")
    yield Refused("head -1", lambda: t.run(sites.z[1].head(-1).zero()), r"has 4 heads \(0-3\), not -1")


@must_work("20b", "indices as they come out of numpy and torch")
def other_integers(t: Shape) -> Iterator[Attempt]:
    wanted = t.wanted(("resid_post.1", at(2, zero)))
    for two in (np.int64(2), torch.tensor(2), np.array([2]), torch.tensor([2]), range(2, 3)):
        yield Right(f"at({two!r})", lambda p=two: t.run(SITE.at(p).zero()), wanted, t.wanted())
    yield Right("layer", lambda: t.run(sites.resid_post[np.int64(1)].at(2).zero()), wanted)
    some = t.wanted(("resid_post.1", at([1, 2], zero)))
    yield Right("at(slice(1, 3))", lambda: t.run(SITE.at(slice(1, 3)).zero()), some, wanted)
    heads = t.run(sites.z[1].head([1, 2]).zero())
    for some in (np.array([1, 2]), torch.tensor([1, 2])):
        yield Right(f"head({some!r})", lambda h=some: t.run(sites.z[1].head(h).zero()), heads, t.wanted())
    one = t.run(SITE.rows([1]).zero())
    yield Right("rows(1)", lambda: t.run(SITE.rows(1).zero()), one, t.wanted())


@mistake("20c", "edits as a generator, which the first run uses up")
def used_up(t: Shape) -> Iterator[Attempt]:
    def edits():
        return (sites.mlp_out[layer].zero() for layer in range(N_LAYERS))

    words = "a generator is empty after its first use.*give a list"
    yield Refused("run", lambda: t.model.run(t.rows, edits()), words)
    yield Refused("generate", lambda: t.model.generate(t.rows, edits(), max_new_tokens=2), words)
    yield Refused("grad", lambda: t.model.grad(t.rows, lambda x: x.sum(), "z.0", edits()), words)
    yield Refused("a map", lambda: t.model.run(t.rows, map(sites.mlp_out.__getitem__, [1, 2])), "a map is empty after")
    yield Refused(
        "a Run", lambda: cutaway.plan(t.model, [cutaway.Run(t.model.encode(t.rows), edits())]).execute(), words
    )


@mistake("20d", "one buffer is filled anew for each edit: all edits would write the last numbers")
def buffer(t: Shape) -> Iterator[Attempt]:
    def swept() -> Tensor:
        values, edits = torch.zeros(32), []
        for layer in range(N_LAYERS):
            values.copy_(vector(seed=layer))
            edits.append(sites.resid_post[layer].at(layer).add(values))
        return t.run(*edits)

    words = "was changed in place after the edit was made.*give a copy"
    yield Refused("a loop", swept, words)
    acts = t.model.capture(t.other, SITE)
    edit = SITE.patch(acts)
    acts[SITE].mul_(2.0)
    yield Refused("a patch whose source was changed", lambda: t.run(edit), words)
    yield Refused(
        "in a plan",
        lambda: cutaway.plan(t.model, [cutaway.Run(t.model.encode(t.rows), (edit,), logits="all")]).execute(),
        words,
    )


@must_work("20e", "a patch from a run that was padded on the other side")
def other_side(t: Shape) -> Iterator[Attempt]:
    rows = [[5, 6, 7], [8, 9, 10, 11]]
    donors = [[15, 16, 17], [18, 19, 20, 21]]
    here = t.model.encode(rows, pad="left")
    acts = t.model.capture(t.model.encode(donors, pad="right"), SITE)

    def wanted(change) -> Tensor:
        found = []
        for row, donor in zip(rows, donors):
            theirs = t.whole(ids=torch.tensor([donor])).seen["resid_post.1"].detach()
            found.append(t.wanted(("resid_post.1", change(theirs)), ids=torch.tensor([row]))[0])
        return torch.cat(found)

    plain = torch.cat([t.wanted(ids=torch.tensor([row]))[0] for row in rows])
    for pos in (-1, 0, [0, 2]):
        kept = [pos] if isinstance(pos, int) else pos
        change = lambda theirs, kept=kept: lambda x: at(kept, lambda y: theirs)(x)  # noqa: E731
        edit = SITE.at(pos).patch(acts)
        yield Right(f"at({pos})", lambda e=edit: t.run(e, inputs=here)[here.mask], wanted(change), plain)
    yield Right(
        "everywhere",
        lambda: t.run(SITE.patch(acts), inputs=here)[here.mask],
        wanted(lambda theirs: instead(theirs)),
        plain,
    )


@mistake("20f", "the model was cast, trained, or had its weights exchanged after the capture")
def cast(t: Shape) -> Iterator[Attempt]:
    acts = t.model.capture(t.rows, SITE)
    edit, words = SITE.patch(acts), r"was made for model [0-9a-f]{12}, this is model"
    weight = next(p for n, p in t.hf.named_parameters() if ".1." in n)
    weight.data = weight.data + 1.0
    yield Refused("parameter.data = ...", lambda: t.run(edit), words)
    with torch.no_grad():
        weight.sub_(1.0).mul_(1.5)
    yield Refused("an optimizer's step", lambda: t.run(edit), words)
    t.hf.load_state_dict({name: value * 1.1 for name, value in t.hf.state_dict().items()})
    yield Refused("load_state_dict", lambda: t.run(edit), words)
    t.hf.to(torch.bfloat16)
    yield Refused("to(bfloat16)", lambda: t.run(edit), words)
    t.hf.train()
    yield Refused("train()", lambda: t.run(SITE.zero()), "in training mode.*eval")


@must_work("20g", "a deep copy of the model, and two loads of one module")
def copies(t: Shape) -> Iterator[Attempt]:
    v = vector()
    acts, twice = t.model.capture(t.other, SITE), copy.deepcopy(t.model)
    wanted = t.wanted(("resid_post.1", instead(t.whole(ids=t.other).seen["resid_post.1"].detach())))
    yield Right("the copy takes its values", lambda: twice.run(t.rows, [SITE.patch(acts)]).logits, wanted, t.wanted())
    with torch.no_grad():
        next(twice.module.parameters()).mul_(2.0)
    yield Right(
        "the copy changed, not the model", lambda: t.run(SITE.add(v)), t.wanted(("resid_post.1", plus(v))), t.wanted()
    )
    yield Refused("and it is another model now", lambda: twice.run(t.rows, [SITE.patch(acts)]), "was made for model")
    again = cutaway.load(t.hf, audit=False)
    yield Right("a second load", lambda: again.run(t.rows, [SITE.patch(acts)]).logits, wanted)
    yield Right("the first after it", lambda: t.run(SITE.patch(acts)), wanted)


@must_work("20h", "several edits of one slot: they follow each other in the order of the list")
def same_slot(t: Shape) -> Iterator[Attempt]:
    v, w = vector(), vector(seed=6)
    twice = t.wanted(("resid_post.1", plus(v + v)))
    edit = SITE.add(v)
    yield Right("the same edit twice", lambda: t.run(edit, edit), twice, t.wanted(("resid_post.1", plus(v))))
    ordered = t.wanted(("resid_post.1", lambda x: (x + v) * 2.0))
    yield Right(
        "add, scale",
        lambda: t.run(SITE.add(v), SITE.scale(2.0)),
        ordered,
        t.wanted(("resid_post.1", lambda x: x * 2.0 + v)),
    )
    at_end = t.wanted(("resid_post.1", at(-1, lambda x: zero(x) + w)))
    yield Right(
        "add, then zero and add at the end",
        lambda: t.run(SITE.at("end").zero(), SITE.at(-1).add(w)),
        at_end,
        t.wanted(),
    )
    both = t.wanted(("resid_post.1", plus(v)), ("resid_pre.2", plus(w)))
    yield Right(
        "resid_post[1], resid_pre[2]",
        lambda: t.run(SITE.add(v), sites.resid_pre[2].add(w)),
        both,
        t.wanted(("resid_post.1", plus(v))),
    )
    turned = t.run(sites.resid_pre[2].add(w), SITE.add(v))
    yield Right("in the other order", lambda: turned, both)


@mistake("20i", "values that are no plain numbers: numpy, lists, meta, sparse, booleans, tensors as factors")
def no_numbers(t: Shape) -> Iterator[Attempt]:
    ones = torch.ones(32)
    yield Refused("numpy", lambda: t.run(SITE.add(np.ones(32))), r"a ndarray of shape \[32\]; give a tensor")
    yield Refused("a list", lambda: t.run(SITE.add([1.0] * 32)), "the value is list; give a tensor")
    yield Refused("meta", lambda: t.run(SITE.add(ones.to("meta"))), "holds no plain numbers.*on meta")
    yield Refused("sparse", lambda: t.run(SITE.add(ones.to_sparse())), "holds no plain numbers.*sparse")
    yield Refused("booleans", lambda: t.run(SITE.replace(torch.ones(4, 4, 32) > 0)), "torch.bool cannot be written")
    factor = torch.rand(4, 1)
    yield Refused("scale(tensor)", lambda: t.run(SITE.scale(factor)), r"factor is a Tensor of shape \[4, 1\].*apply")
    yield Refused("add(v, scale=tensor)", lambda: t.run(SITE.add(ones, scale=factor)), "one number is needed")
    yield Refused("clamp(low=tensor)", lambda: t.run(SITE.clamp(low=factor)), "low= is a Tensor.*one number is needed")
    yield Refused(
        "all heads at once", lambda: t.run(sites.z[1].project_out(vector(*_heads(t)))), "one direction.*select one head"
    )
    yield Refused("a name", lambda: t.run(SITE.add("v")), "the value is str; give a tensor")


@mistake("20j", "numbers beyond a half-precision model's range")
def overflow(t: Shape) -> Iterator[Attempt]:
    from cutaway.models import Model

    half = Model(t.hf.to(torch.float16), None, t.model.anatomy, t.name)
    huge = torch.full((32,), 6e4)
    huge[::2] = -6e4
    words = "with the edits resid_post.1.add the logits are NaN or infinite.*too large for torch.float16"
    yield Refused("add(6e4), twice", lambda: half.run(t.rows, [SITE.add(huge), SITE.add(huge)]), words)
    beyond = r"are NaN, infinite or beyond torch.float16|too large for torch.float16"
    yield Refused("apply", lambda: half.run(t.rows, [SITE.apply(lambda x: x.float() * 1e6)]), beyond)
    yield Refused("generate", lambda: half.generate(t.rows, [SITE.add(huge), SITE.add(huge)], max_new_tokens=2), words)


@mistake("20k", "a function edits a copy, or nothing, and returns nothing")
def no_return(t: Shape) -> Iterator[Attempt]:
    def in_place(value: Tensor) -> None:
        value.zero_()

    yield Refused(
        "in place, no return", lambda: t.run(SITE.apply(in_place)), "returned NoneType; return the same shape"
    )
    yield Refused("a number", lambda: t.run(SITE.apply(lambda x: 0.0)), "returned float; return the same shape")
    yield Refused("its mean", lambda: t.run(SITE.apply(lambda x: x.mean(1, keepdim=True))), r"returned \(4, 1, 32\)")
    yield Refused(
        "no function", lambda: t.run(SITE.apply(vector())), "apply takes a function of the value, not a Tensor"
    )


@mistake("20l", "a patch between prompts of other lengths, other rows, or roles that the source lacks")
def misaligned(t: Shape) -> Iterator[Attempt]:
    longer = t.model.capture([[*row, 5] for row in t.rows], SITE)
    yield Refused("longer rows", lambda: t.run(SITE.patch(longer)), "selects 4 tokens here and 5 in the source")
    fewer = t.model.capture(t.rows[:3], SITE)
    yield Refused("fewer rows", lambda: t.run(SITE.at(1).patch(fewer)), "the source has 3 rows, the run 4")
    named = t.model.encode(t.rows, roles={"subject": [1, 2, 0, 1]})
    bare = t.model.capture(t.rows, SITE)
    yield Refused(
        "a role of one side", lambda: t.run(SITE.at("subject").patch(bare), inputs=named), r"'subject'.*name \['end'\]"
    )
    yield Refused(
        "another site",
        lambda: t.run(sites.resid_post[2].patch(bare)),
        "did not capture resid_post.2; it has resid_post.1",
    )
    pattern = t.model.capture([[*row, 5] for row in t.rows], "pattern.1")
    yield Refused(
        "other keys", lambda: t.run(sites.pattern[1].at(1).patch(pattern)), "has 4 keys here and 5 in the source"
    )
    gone = lambda: t.model.run(t.rows, reads=SITE).activations[sites.resid_post[2]]  # noqa: E731
    yield Refused("a site that was not read", gone, "resid_post.2: not captured here. Did you mean 'resid_post.1'")


@must_work("20m", "rows in another order than the source's, lined up by take()")
def reordered(t: Shape) -> Iterator[Attempt]:
    acts = t.model.capture(t.rows, SITE)
    turned, order = t.other.tolist(), [2, 0, 3, 1]
    theirs = t.whole().seen["resid_post.1"].detach()
    wanted = t.wanted(("resid_post.1", instead(theirs[order])), ids=t.other)
    straight = t.wanted(("resid_post.1", instead(theirs)), ids=t.other)
    yield Right("take(order)", lambda: t.run(SITE.patch(acts.take(order)), inputs=turned), wanted, straight)
    yield Right("as they are", lambda: t.run(SITE.patch(acts), inputs=turned), straight, wanted)

    def planned() -> Tensor:
        run = cutaway.Run(t.model.encode(turned), (SITE.patch(acts.take(order)),), logits="all")
        return cutaway.plan(t.model, [run]).execute()[0].logits

    yield Right("in a plan", planned, wanted, straight)


@mistake("20n", "gradients where torch records none, or of what is no number of the run")
def no_gradient(t: Shape) -> Iterator[Attempt]:
    def inferred():
        with torch.inference_mode():
            return t.model.grad(t.rows, lambda x: x.sum(), "z.0")

    yield Refused("inference_mode", inferred, r"inside torch.inference_mode\(\), which records none")
    for name, metric in {
        "detached": lambda x: x.detach().sum(),
        "a choice": lambda x: x.argmax(-1).float().sum(),
        "many numbers": lambda x: x[:, -1, 5],
        "a float": lambda x: float(x.detach().sum()),
    }.items():
        yield Refused(
            name, lambda m=metric: t.model.grad(t.rows, m, "z.0"), "must return one number that depends on the logits"
        )


@must_work("20o", "gradients and runs inside somebody's no_grad or inference_mode")
def inside_no_grad(t: Shape) -> Iterator[Attempt]:
    from tests.silent.cases.gradients import metric, slope

    v = vector()

    def quietly(mode, use) -> Tensor:
        with mode():
            return use()

    wanted = slope(t, "resid_pre.1", ("attn_out.1", plus(v)))
    grad = lambda: t.model.grad(t.rows, metric, "resid_pre.1", [sites.attn_out[1].add(v)]).gradients["resid_pre.1"]  # noqa: E731
    yield Right("grad in no_grad", lambda: quietly(torch.no_grad, grad), wanted)
    moved = t.wanted(("resid_post.1", plus(v)))
    yield Right(
        "run in inference_mode",
        lambda: quietly(torch.inference_mode, lambda: t.run(SITE.add(v)).clone()),
        moved,
        t.wanted(),
    )
    acts = quietly(torch.inference_mode, lambda: t.model.capture(t.rows, SITE))

    def patched() -> Tensor:
        return t.model.grad(t.rows, metric, "resid_pre.0", [SITE.patch(acts)]).gradients["resid_pre.0"]

    yield Right("grad beside what was captured there", patched, torch.zeros(4, 4, 32), slope(t, "resid_pre.0"))


def _heads(t: Shape) -> tuple[int, int]:
    return (4, 8) if t.name == "gpt2" else (4, 12)


@mistake("20p", "logits or predicates where there are none: positions of a raw call, ids without texts")
def raw(t: Shape) -> Iterator[Attempt]:
    site = sites.module(BLOCKS[t.name].format(1))
    words = "a wrapped module's inputs have no roles or token texts"
    yield Refused("at('end') in a raw call", lambda: t.model.run(Raw((t.ids,), {}), [site.at("end").zero()]), words)
    yield Refused("at(9) in a raw call", lambda: t.model.run(Raw((t.ids,), {}), [site.at(9).zero()]), "position 9 of 4")
    ids, mask = padded([[5, 6, 7], [8, 9, 10, 11]], "left")
    tokens = t.model.encode(ids, mask=mask)
    yield Refused("at(3) of a row of three", lambda: t.run(SITE.at(3).zero(), inputs=tokens), "row 0 has 3 tokens")
    yield Refused("logits of a role", lambda: t.model.run(t.rows, logits="last"), r"'last'.*name \['end'\]")
    yield Refused(
        "a Run of bare lists", lambda: cutaway.Run(t.rows), r"encoded rows, not list; write Run\(model.encode"
    )
