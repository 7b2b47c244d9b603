"""Where values came from, and what becomes of one's own model."""

import copy
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import nn

import cutaway
from cutaway import Activations, sites
from tests.silent.oracle import instead, plus, zero
from tests.silent.shapes import Shape, changed, made, shape, snapshot, vector
from tests.silent.suite import Attempt, Refused, Right, mistake, must_work

SITE = sites.resid_post[1]
OTHER = {"gpt2": "llama", "llama": "gpt2", "gemma2": "llama", "qwen3": "gemma2", "mixtral": "qwen3"}


@mistake("16", "values measured on another model of the same width")
def another_model(t: Shape) -> Iterator[Attempt]:
    acts = shape(OTHER[t.name]).model.capture(t.rows, SITE)
    words = r"was made for model [0-9a-f]{12}, this is model [0-9a-f]{12}; make it again with this model"
    yield Refused("patch", lambda: t.run(SITE.patch(acts)), words)
    yield Refused(
        "patch while generating", lambda: t.model.generate(t.rows, [SITE.patch(acts)], max_new_tokens=2), words
    )
    yield Refused(
        "patch under a gradient", lambda: t.model.grad(t.rows, lambda x: x.sum(), "z.0", [SITE.patch(acts)]), words
    )

    def saved(check: bool):
        with tempfile.TemporaryDirectory() as folder:
            acts.save(Path(folder) / "acts.safetensors")
            found = Activations.load(Path(folder) / "acts.safetensors", t.model.digest if check else None)
            return t.run(SITE.patch(found))

    yield Refused("saved, loaded for this model", lambda: saved(True), words)
    yield Refused("saved, loaded, patched", lambda: saved(False), words)


@must_work("17a", "a frozen model: edits at the embedding and at blocks, generation; parameters, flags and ties stay")
def frozen(t: Shape) -> Iterator[Attempt]:
    for one in (t.hf, t.twin):
        one.requires_grad_(False)
    v = vector()
    if t.name in ("gpt2", "gemma2"):  # tied: what is edited is the embedding's output, never the shared weights
        assert t.hf.get_input_embeddings().weight is t.hf.get_output_embeddings().weight
    yield Right("embed.add(v)", lambda: t.run(sites.embed.add(v)), t.wanted(("embed", plus(v))), t.wanted())
    yield Right("embed.zero()", lambda: t.run(sites.embed.zero()), t.wanted(("embed", zero)), t.wanted())
    yield Right("a block", lambda: t.run(SITE.add(v)), t.wanted(("resid_post.1", plus(v))), t.wanted())
    new = torch.cat([t.ids, t.wanted(("embed", plus(v)))[:, -1].argmax(-1)[:, None]], 1)
    yield Right("generate", lambda: t.model.generate(t.rows, [sites.embed.add(v)], max_new_tokens=1).ids, new)
    grad = lambda: torch.tensor(t.model.grad(t.rows, lambda x: x.sum(), "embed", [SITE.add(v)]).metric)  # noqa: E731
    total = t.wanted(("resid_post.1", plus(v))).sum()
    yield Right("grad", lambda: grad() / total, torch.tensor(1.0))


class Table(nn.Module):
    """A learned table of positions, as some models have it: its output is a view of its own parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(vector(8, 32))
        self.eval()

    def forward(self, value: torch.Tensor) -> torch.Tensor:
        return self.table[: value.shape[1]]


@must_work("17b", "an edit in place of a module that returns a view of its own parameter")
def view(t: Shape) -> Iterator[Attempt]:
    table = Table()
    t.block.add_module("table", table)
    plain = t.block.forward

    def forward(value, *args, **kwargs):
        return plain(value + table(value), *args, **kwargs)

    t.block.forward = forward
    path = next(n for n, m in t.hf.named_modules() if m is table)
    own = table.table.detach().clone()
    wanted = t.wanted(("resid_pre.1", plus(own[:4] * 3.0)))
    # one's own forward comes after the point where the block is entered
    edit = sites.module(path).apply(lambda x: x.mul_(3.0))
    with_table = SimpleNamespace(edited=wanted, plain=t.wanted(("resid_pre.1", plus(own[:4]))))
    assert float((t.plain() - with_table.plain).abs().max()) < 1e-5
    yield Right("apply(mul_)", lambda: t.run(edit), with_table.edited, with_table.plain)
    yield Right("scale(3)", lambda: t.run(sites.module(path).scale(3.0)), with_table.edited, with_table.plain)
    yield Right("afterwards", lambda: t.run(), with_table.plain)


@must_work("17c", "one's own model object after loading, an edited run and a plain run")
def untouched(t: Shape) -> Iterator[Attempt]:
    fresh = copy.deepcopy(t.twin)
    fresh.train()
    before = snapshot(fresh)
    loaded = cutaway.load(fresh, audit=False)

    def marks() -> torch.Tensor:
        return torch.tensor(len(changed(before, snapshot(fresh))))

    yield Right("load", marks, torch.tensor(0))
    fresh.eval()
    before = snapshot(fresh)

    def used() -> torch.Tensor:
        loaded.run(t.rows, [SITE.zero(), sites.pattern[0].head(1).zero()], ["z.*", "pattern.2"])
        loaded.generate(t.rows, [SITE.zero()], max_new_tokens=2)
        loaded.grad(t.rows, lambda x: x.sum(), ["z.1", "pattern.1"], [SITE.scale(2.0)])
        loaded.run(t.rows)
        return marks()

    yield Right("every verb", used, torch.tensor(0))
    yield Right("its logits", lambda: fresh(t.ids).logits.detach(), t.wanted())


@must_work("17d", "parameters and logits of one's own model after loading with an audit: nothing is folded in")
def nothing_folded(t: Shape) -> Iterator[Attempt]:
    unloaded = made(t.name)
    with torch.no_grad():
        yield Right("logits", lambda: t.plain(), unloaded(t.ids).logits, bits=True)
    own = torch.cat([p.detach().flatten() for p in unloaded.parameters()])
    yield Right("parameters", lambda: torch.cat([p.detach().flatten() for p in t.hf.parameters()]), own, bits=True)


@must_work("17e", "save_pretrained of one's own model after use, loaded again")
def saved(t: Shape) -> Iterator[Attempt]:
    v = vector()

    def again() -> torch.Tensor:
        t.run(SITE.add(v), sites.pattern[1].head(0).zero())
        with tempfile.TemporaryDirectory() as folder:
            t.hf.save_pretrained(folder)
            found = type(t.hf).from_pretrained(folder).eval()
            names = set(found.state_dict()) == set(t.hf.state_dict())
            with torch.no_grad():
                return found(t.ids).logits if names else torch.zeros(())

    yield Right("logits of the copy", again, t.wanted())


@must_work("17f", "a parameter that is updated in place after loading is seen")
def updated(t: Shape) -> Iterator[Attempt]:
    before, v = t.wanted(), vector()
    acts = t.model.capture(t.rows, SITE)
    for one in (t.hf, t.twin):
        with torch.no_grad():
            for name, parameter in one.named_parameters():
                if ".1." in name and parameter.ndim > 1:
                    parameter.mul_(1.5)
    yield Right("run", lambda: t.run(), t.wanted(), before)
    yield Right("edit", lambda: t.run(SITE.add(v)), t.wanted(("resid_post.1", plus(v))), t.wanted())
    yield Refused("a patch from before the update", lambda: t.run(SITE.patch(acts)), "was made for model")
    value = acts[SITE].clone()
    yield Right(
        "its tensor, asked for",
        lambda: t.run(SITE.replace(value)),
        t.wanted(("resid_post.1", instead(value))),
        t.wanted(),
    )
