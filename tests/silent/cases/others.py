"""Other people's hooks, exceptions, stacked runs, threads."""

import threading
from collections.abc import Iterator

import torch
from torch import Tensor

from cutaway import sites
from tests.silent.oracle import plus
from tests.silent.shapes import Shape, vector
from tests.silent.suite import Attempt, Refused, Right, must_work

SITE = sites.resid_post[1]


@must_work("6", "one's own hook on the edited block works during a run and survives it; hidden states after")
def own_hook(t: Shape) -> Iterator[Attempt]:
    v, w = vector(), vector(seed=6)
    t.hf(t.ids, output_hidden_states=True)  # transformers puts its recorders in at the first such call
    seen: list[Tensor] = []
    t.block.register_forward_hook(lambda m, a, out: _changed(out, w, seen))
    both = t.wanted(("resid_post.1", plus(v + w)))
    one = t.wanted(("resid_post.1", plus(w)))
    # an edit stands before the hooks of others, so that they see it
    yield Right("edit and hook", lambda: t.run(SITE.add(v)), both, one)
    saw = t.whole(("resid_post.1", plus(v))).seen["resid_post.1"].detach()
    yield Right("the hook saw the edit", lambda: (t.run(SITE.add(v)), seen[-1])[1], saw)
    yield Right("afterwards the hook alone", lambda: t.plain(), one, t.wanted())
    whole = t.whole(("resid_post.1", plus(w)))
    yield Right("hidden states afterwards", lambda: _hidden(t)[1], whole.seen["resid_post.0"].detach())
    yield Right("as many of them", lambda: torch.tensor(len(_hidden(t))), torch.tensor(4))


@must_work("6b", "one's own hook put on the block after wrapping")
def hook_after(t: Shape) -> Iterator[Attempt]:
    v, w = vector(), vector(seed=6)
    t.run(SITE.add(v))
    t.block.register_forward_hook(lambda m, a, out: _changed(out, w, []))
    yield Right("with an edit", lambda: t.run(SITE.add(v)), t.wanted(("resid_post.1", plus(v + w))))
    yield Right("without", lambda: t.run(), t.wanted(("resid_post.1", plus(w))), t.wanted())
    yield Right("while generating", lambda: t.model.generate(t.rows, max_new_tokens=2).ids[:, :5], _next(t, w))


@must_work("6c", "hidden states recorded by transformers in an edited run show the edit")
def recorded(t: Shape) -> Iterator[Attempt]:
    from cutaway import Raw

    v = vector()
    wanted, plain = t.whole(("resid_post.1", plus(v))), t.whole()
    for when in ("recorder first", "again"):
        if when == "recorder first":
            t.hf(t.ids, output_hidden_states=True)
        yield Right(
            f"{when}: a read",
            lambda: t.model.run(t.rows, [SITE.add(v)], SITE).activations[SITE],
            wanted.seen["resid_post.1"].detach(),
        )
        path = next(name for name, module in t.hf.named_modules() if module is t.block)
        states: list[Tensor] = []

        def run(path=path, states=states) -> Tensor:
            states.clear()
            t.block.register_forward_hook(lambda m, a, out: states.append(out.detach().clone())).remove()
            raw = Raw((t.ids,), {"output_hidden_states": True})
            end = t.hf.get_submodule(path.rpartition(".")[0].rpartition(".")[0] or "")
            handle = end.register_forward_hook(lambda m, a, out: states.extend(out.hidden_states))
            try:
                t.model.run(raw, [sites.module(path).add(v)])
            finally:
                handle.remove()
            return states[2]

        yield Right(
            f"{when}: hidden_states[2]", run, wanted.seen["resid_post.1"].detach(), plain.seen["resid_post.1"].detach()
        )


@must_work("7", "an exception inside the edit function: nothing stays behind")
def exception(t: Shape) -> Iterator[Attempt]:
    def broken(value: Tensor) -> Tensor:
        value += 3.0 * value.flip(-1)
        raise KeyError("mine")

    for use in (
        lambda: t.run(SITE.apply(broken)),
        lambda: t.run(sites.pattern[1].apply(broken)),
        lambda: t.model.generate(t.rows, [sites.z[1].apply(broken)], max_new_tokens=2),
        lambda: t.model.grad(t.rows, lambda x: x.sum(), "z.0", [SITE.apply(broken)]),
    ):
        yield Refused("the error is named", use, r"the function raised KeyError: 'mine'")
        edited = t.wanted(("resid_post.1", lambda x: x + 3.0 * x.flip(-1)))
        yield Right("one's own call afterwards", lambda: t.plain(), t.wanted(), edited)
        yield Right("a run afterwards", lambda: t.run(), t.wanted())


@must_work("8a", "stacked runs: outer edit, inner edit, inner gone, outer gone")
def stacked(t: Shape) -> Iterator[Attempt]:
    v, w = vector(), vector(seed=6)
    outer, inner = SITE.add(v), sites.mlp_out[2].add(w)
    first = t.wanted(("resid_post.1", plus(v)))
    yield Right("both", lambda: t.run(outer, inner), t.wanted(("resid_post.1", plus(v)), ("mlp_out.2", plus(w))), first)
    yield Right("the outer", lambda: t.run(outer), first, t.wanted())
    yield Right("none", lambda: t.run(), t.wanted())
    found: dict[str, Tensor] = {}

    def within(value: Tensor) -> Tensor:
        found["inner"] = t.run(inner)
        return value + v

    yield Right("a run inside an edit: the outer", lambda: t.run(SITE.apply(within)), first)
    yield Right("a run inside an edit: the inner", lambda: found["inner"], t.wanted(("mlp_out.2", plus(w))))


@must_work("8b", "two threads, one model: one edits while the other runs it plainly")
def threads(t: Shape) -> Iterator[Attempt]:
    v = vector()
    inside, done, found = threading.Event(), threading.Event(), {}

    def waits(value: Tensor) -> Tensor:
        inside.set()
        assert done.wait(20)
        return value + v

    def plainly() -> None:
        assert inside.wait(20)
        try:
            found["call"], found["run"] = t.plain(), t.run()
            found["pattern"] = t.run(sites.pattern[1].head(0).zero())
        finally:
            done.set()

    def both() -> Tensor:
        other = threading.Thread(target=plainly)
        other.start()
        try:
            return t.run(SITE.apply(waits), sites.z[2].head(1).zero())
        finally:
            other.join()

    wanted = t.wanted(
        ("resid_post.1", plus(v)), ("z.2", lambda x: torch.cat([x[:, :, :1], x[:, :, 1:2] * 0, x[:, :, 2:]], 2))
    )
    yield Right("the thread that edits", both, wanted, t.wanted())
    yield Right("the other's own call", lambda: found["call"], t.wanted())
    yield Right("the other's run", lambda: found["run"], t.wanted())
    zeroed = t.wanted(("pattern.1", lambda x: torch.cat([x[:, :1] * 0, x[:, 1:]], 1)))
    yield Right("the other's edit", lambda: found["pattern"], zeroed, t.wanted())


def _changed(out, w: Tensor, seen: list[Tensor]):
    value = out[0] if isinstance(out, tuple) else out
    seen.append(value.detach().clone())
    return (value + w, *out[1:]) if isinstance(out, tuple) else value + w


def _hidden(t: Shape) -> tuple[Tensor, ...]:
    with torch.no_grad():
        return t.hf(t.ids, output_hidden_states=True).hidden_states


def _next(t: Shape, w: Tensor) -> Tensor:
    new = t.wanted(("resid_post.1", plus(w)))[:, -1].argmax(-1)
    return torch.cat([t.ids, new[:, None]], 1)
