"""Shortcuts that are tried on the model before a plan uses them: short passes with the shortcut beside full ones.

    columns       single columns of the unembedding, where a metric reads a few token ids
    z             the first block starts from the attention kernel's stored result
    projections   the first block computes the input projections of the edited columns alone

Each is exact arithmetic on models that are built as most are; nothing is believed: a difference beyond rounding, or an
exception, refuses the shortcut with its reason. Proven once a model, when a plan is large enough to gain from it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from cutaway.models.audit import probe_ids
from cutaway.models.edits import Placed
from cutaway.models.forward import forward, narrows
from cutaway.models.known import Known, projections
from cutaway.models.model import Model
from cutaway.models.resolve import gap, rounding
from cutaway.models.sites import Site
from cutaway.models.taps import Resume
from cutaway.models.tokens import Tokens


@dataclass(frozen=True)
class Proofs:
    """For each shortcut '' when it may be used, else why not."""

    columns: str
    z: str
    projections: str


UNPROVEN = Proofs("not tried", "not tried", "not tried")

_found: "WeakKeyDictionary[Model, Proofs]" = WeakKeyDictionary()


def proofs(model: Model) -> Proofs:
    """What holds on this model. Cost when first asked: about ten passes of two rows of seven tokens."""
    if model not in _found:
        _found[model] = _prove(model)
    return _found[model]


def known(model: Model) -> Proofs:
    """What was proven so far; nothing is run."""
    return _found.get(model, UNPROVEN)


def _prove(model: Model) -> Proofs:
    if "logits" not in model.body.taps:
        return Proofs(*["it returns no logits"] * 3)
    tokens = model.encode(probe_ids(model.module, rows=2, length=7))
    if model.body.resume:
        inside = f"starting at a later layer: {model.body.resume}"
        return Proofs(_tried(lambda: _columns(model, tokens)), inside, inside)
    return Proofs(
        _tried(lambda: _columns(model, tokens)),
        _tried(lambda: _z(model, tokens)),
        _tried(lambda: _projections(model, tokens)),
    )


def _tried(work: Callable[[], str]) -> str:
    try:
        return work()
    except Exception as error:  # noqa: BLE001 - whatever a foreign architecture raises here, the shortcut is not used
        return f"it fails ({type(error).__name__}: {error})"


def _columns(model: Model, tokens: Tokens) -> str:
    if not narrows(model):
        return "the unembedding is not a plain linear map"
    n = tokens.width
    vocab = torch.stack([tokens.ids[0, [0, 1, 2]], tokens.ids[1, [2, 3, 0]]])
    for at in ([[n - 1], [n - 1]], [[1, n - 2], [3, 2]]):
        full, _ = forward(model, tokens, logits=at, vocab=vocab)
        few, _ = forward(model, tokens, logits=at, vocab=vocab, narrow=True)
        if reason := _apart(few, full):
            return f"single columns of the unembedding: {reason}"
    return ""


def _layers(model: Model) -> list[int]:
    n = model.body.n_layers
    return sorted({0, n // 2, n - 1})


def _z(model: Model, tokens: Tokens) -> str:
    for layer in _layers(model):
        if model.body.layers[layer].o_proj is None or not model.body.status(Site("z", layer)).editable:
            return f"block {layer} has no output projection that takes z alone"
        site, resume, _ = _stored(model, tokens, layer, [])
        edit = [Placed(site.head(0).scale(2.0), tokens)]
        full, before = forward(model, tokens, edits=edit)[0], forward(model, tokens, reads=[site])[1][site]
        quick, _ = forward(model, tokens, edits=edit, resume=resume, known=Known(layer, z=before))
        if reason := _apart(quick, full):
            return f"starting behind the attention kernel of block {layer}: {reason}"
    return ""


def _projections(model: Model, tokens: Tokens) -> str:
    for layer in _layers(model):
        paths = projections(model, layer)
        if not paths:
            return f"block {layer} has no plain input projections"
        _, resume, values = _stored(model, tokens, layer, paths)
        for column, fresh in ((0, 1), (2, 3), (2, 0)):  # the last leaves the edited column out, and must be wrong
            edit = [Placed(Site("resid_pre", layer).at(column).scale(-2.0), tokens)]
            taken = Known(layer, projections=values, fresh=fresh)
            full, quick = (forward(model, tokens, edits=edit, resume=resume, known=k)[0] for k in (None, taken))
            if fresh > column:
                reason = _apart(quick, full)
                if reason:
                    return f"known projections in block {layer}: {reason}"
            elif full is not None and quick is not None and torch.equal(full, quick):
                return f"the projections of block {layer} are not what its attention reads"
    return ""


def _stored(
    model: Model, tokens: Tokens, layer: int, paths: list[str]
) -> tuple[Site, Resume | None, dict[str, Tensor]]:
    """The block's z, where a pass begins that starts at the block, and outputs of modules inside it."""
    entry = Site("resid_post", layer - 1) if layer else None
    inner = {path: Site("module", path=path) for path in paths}
    reads = [*([entry] if entry else []), *inner.values()]
    values = forward(model, tokens, reads=reads, logits=[[]] * len(tokens))[1] if reads else {}
    resume = Resume(layer, values[entry]) if entry else None
    return Site("z", layer), resume, {path: values[site] for path, site in inner.items()}


def _apart(found: Tensor | None, expected: Tensor | None) -> str:
    """Why two outputs are not the same up to rounding; '' when they are."""
    assert found is not None
    assert expected is not None
    difference, limit = gap(found, expected), 8 * rounding(found, expected)
    return "" if difference <= limit else f"the output changes by {difference:.2g}"
