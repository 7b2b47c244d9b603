"""Gradients through edited runs, also where activations are recomputed on the way back."""

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from cutaway import sites
from tests.silent.oracle import forward, head, plus
from tests.silent.shapes import ATTENTION, Shape, vector
from tests.silent.suite import Attempt, Refused, Right, must_work


def metric(logits: Tensor) -> Tensor:
    """One number of the logits, not linear in them."""
    return logits[:, -1, 5].tanh().sum() + logits[:, 1, 7].square().sum()


def slope(t: Shape, site: str, *edits) -> Tensor:
    """d metric / d site of the oracle, by autograd through its plain operations."""
    at = {}

    def leaf(value: Tensor) -> Tensor:
        at["value"] = value.detach().requires_grad_(True)
        return at["value"]

    before = [(name, change) for name, change in edits]
    logits = forward(t.twin, t.ids, edits=[*before, (site, leaf)]).logits
    return torch.autograd.grad(metric(logits), at["value"])[0]


@must_work("9a", "gradients of an edited run, with transformers' checkpointing switched on")
def checkpointing(t: Shape) -> Iterator[Attempt]:
    t.hf.activation_checkpointing_enable() if hasattr(
        t.hf, "activation_checkpointing_enable"
    ) else t.hf.gradient_checkpointing_enable()
    yield from _gradients(t)
    yield Right("a run", lambda: t.run(*_edits(t)[0]), t.wanted(*_edits(t)[1]), t.wanted())


@must_work(
    "9b",
    "recomputation that cannot know the edits: in training mode, or by a checkpoint() of one's own",
    outcome="raises",
)
def recomputed(t: Shape) -> Iterator[Attempt]:
    edits = _edits(t)[0]
    t.hf.train()
    words = "in training mode.*eval"
    yield Refused("training mode", lambda: t.model.grad(t.rows, metric, "resid_pre.0", edits), words)
    yield Refused("training mode, a run", lambda: t.run(*edits), words)
    t.hf.eval()
    for reentrant in (False, True):
        plain = t.block.forward
        t.block.forward = lambda *a, f=plain, r=reentrant, **k: checkpoint(partial(f, **k), *a, use_reentrant=r)
        yield Refused(
            f"checkpoint(use_reentrant={reentrant})",
            lambda: t.model.grad(t.rows, metric, "embed", edits),
            "recomputes its activations in the backward pass",
        )
        del t.block.forward


@must_work("9c", "the same without checkpointing")
def plainly(t: Shape) -> Iterator[Attempt]:
    yield from _gradients(t)


def _edits(t: Shape):
    """The library's edits and the oracle's: inside block 1, and non-linear."""
    d = 8 if t.name == "gpt2" else 12
    v, w = vector(d), vector()
    ours = [sites.z[1].head(1).add(v), sites.attn_out[1].apply(lambda x: x * x.tanh() + w)]
    return ours, [("z.1", head(1, plus(v))), ("attn_out.1", lambda x: x * x.tanh() + w)]


def _gradients(t: Shape) -> Iterator[Attempt]:
    ours, theirs = _edits(t)
    for site in ("resid_pre.1", "z.1", "v.0"):
        wanted = slope(t, site, *theirs)
        unedited = slope(t, site)

        def run(site=site) -> Tensor:
            return t.model.grad(t.rows, metric, site, ours).gradients[site]

        yield Right(f"grad at {site}", run, wanted, None if site == "z.1" else unedited)


@must_work("17g", "gradients reach one's own parameters through an edited run")
def parameters(t: Shape) -> Iterator[Attempt]:
    ours, theirs = _edits(t)
    names = [ATTENTION[t.name].format(1), ATTENTION[t.name].format(0)]
    which = [n for n, p in t.hf.named_parameters() if n.startswith(tuple(names)) and p.ndim > 1]

    def run() -> Tensor:
        mine = dict(t.hf.named_parameters())
        found: list[Tensor] = []

        def loss(logits: Tensor) -> Tensor:
            value = metric(logits)
            found.extend(torch.autograd.grad(value, [mine[n] for n in which], retain_graph=True))
            return value

        t.model.grad(t.rows, loss, "resid_pre.0", ours)
        return torch.cat([g.flatten() for g in found])

    def wanted(*edits) -> Tensor:
        mine = dict(t.twin.named_parameters())
        value = metric(forward(t.twin, t.ids, edits=edits).logits)
        return torch.cat([g.flatten() for g in torch.autograd.grad(value, [mine[n] for n in which])])

    yield Right("torch.autograd.grad inside the metric", run, wanted(*theirs), wanted())
