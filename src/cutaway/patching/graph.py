"""Nodes: components as they write to the residual stream, and as they read from it.

A component adds a vector to the stream at every position; what a later component reads is the sum of all that was added
before it. So a difference that is added where one reader alone looks is that reader's private input, and nothing has to
be split or computed again by hand: a run whose stream carries the difference just before the reader is read there and
stopped.

    sender                what it adds                                   reader             reads         gives
    embed  resid_pre.0    the stream before the first block              q.L.hH             resid_pre.L   its query
    z.L.hH                z_h W_O[h]                                     k.L.hK  v.L.hK     resid_pre.L   key, value
    attn_out.L            all heads of a layer, and the bias             z.L.hH             resid_pre.L   its z: q, k, v
    mlp_act.L.nN          act_n W_out[n]                                 attn_in.L          resid_pre.L   what it adds
    mlp_out.L             what the MLP adds                              mlp_in.L           resid_mid.L   what it adds
                                                                         mlp_act.L.nN       resid_mid.L   its value
                                                                         logits             resid_post    the logits

Keys and values are those of key/value heads; `z.L.hH` reads them for one query head alone. Where attention and MLP of
a block read the same stream (parallel blocks), both read resid_pre. Where a norm stands between a component and the
stream (Gemma 2), a part of it adds its share of what the norm gives, with the scale of the run that it comes from: then
the parts of a run sum to what was added in that run, and a difference of two runs is exact.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from cutaway.errors import Misaligned, SiteUnavailable, UsageError
from cutaway.models import Activations, Model, Site, Tokens
from cutaway.models.anatomy import LayerMap
from cutaway.models.chain import factor
from cutaway.models.trace import gap, rounding
from cutaway.patching.measure import Wanted, other, side
from cutaway.tasks import Batch

Stream = Float[Tensor, "row pos d_model"]

MODES = {"denoise": "corrupt", "noise": "clean", "zero": "clean", "mean": "clean"}
"""Mode to the side that is edited. What a sender says there instead: what it says on the other side (denoise, noise),
nothing (zero), its mean over the real tokens of both sides (mean)."""

_WRITES = {"z": "attn_write", "attn_out": "attn_write", "attn_write": "attn_write"}
_WRITES |= {"mlp_act": "mlp_write", "mlp_out": "mlp_write", "mlp_write": "mlp_write"}
_OUTPUTS = {"z": "attn_out", "mlp_act": "mlp_out"}
_VALUES = {"q": "q", "k": "k", "v": "v", "z": "z", "mlp_act": "mlp_act"}
_VALUES |= dict.fromkeys(("attn_in", "attn_out", "attn_write"), "attn_write")
_VALUES |= dict.fromkeys(("mlp_in", "mlp_out", "mlp_write"), "mlp_write")


@dataclass(frozen=True)
class Sender:
    """A component, or a part of one, as it writes."""

    site: Site
    """As it was named, its position included."""
    level: int
    """Sublayers that have run when it has written: 0 before the first block, 2 L + 1 attention, 2 L + 2 MLP."""
    write: Site
    """What is added to the stream, of which it is all or a part."""
    part: Site | None
    """The heads or neurons whose part is meant; None: all of the write."""


@dataclass(frozen=True)
class Reader:
    """A component, or a part of one, as it reads."""

    site: Site
    """As it was named, its position included."""
    level: int
    """Sublayers that have run when it reads."""
    entry: Site
    """The residual state that it reads."""
    value: Site | None
    """What it makes of it, where that is recorded and set; None for the logits."""

    def after(self, sender: Sender) -> bool:
        """It can read what the sender adds."""
        return sender.level <= self.level


def senders_of(model: Model, wanted: Wanted) -> list[Sender]:
    """Senders by their sites. Raises UsageError for a site that adds nothing to the stream."""
    return [_sender(model, site) for site in model.body.expand(wanted)]


def readers_of(model: Model, wanted: Wanted) -> list[Reader]:
    """Readers by their sites. Raises UsageError for a site that reads nothing from the stream."""
    return [_reader(model, site) for site in model.body.expand(wanted)]


def components(model: Model) -> list[Site]:
    """Every sender of a model: the embedding, each head, each MLP; heads that cannot be told apart as one."""
    body, found = model.body, [Site("embed") if "embed" in model.body.taps else Site("resid_pre", 0)]
    for layer in range(body.n_layers):
        taps = body.layers[layer].taps
        if "attn_write" in taps:
            whole = "z" not in taps or "attn_out" not in taps or body.status(Site("z", layer)).state == "refused"
            heads = [Site("z", layer, head) for head in range(body.n_heads or 0)]
            found += [_named("attn_out", "attn_write", layer, taps)] if whole else heads
        found += [_named("mlp_out", "mlp_write", layer, taps)] if "mlp_write" in taps else []
    return found


def ports(model: Model) -> list[Site]:
    """Every reader of a model: q of each head, k and v of each key/value head, each MLP, the logits."""
    body, found = model.body, []
    for layer in range(body.n_layers):
        for kind in ("q", "k", "v"):
            site = Site(kind, layer)
            if body.status(site).state != "refused":
                found += [site.head(head) for head in range(body.n_units(site))]
        taps = body.layers[layer].taps
        found += [_named("mlp_in", "mlp_write", layer, taps)] if "mlp_write" in taps else []
    return [*found, Site("logits")]


def _named(usual: str, write: str, layer: int, taps: Mapping[str, object]) -> Site:
    """A node under its usual name, where the model has that site; else under that of its write."""
    return Site(usual if usual in taps else write, layer)


def _sender(model: Model, site: Site) -> Sender:
    body = model.body
    if site.kind == "embed" or (site.kind == "resid_pre" and site.layer == 0):
        return Sender(_plain(site), 0, Site("resid_pre", 0), None)
    if site.kind not in _WRITES:
        raise UsageError(
            f"sender {str(site)!r}: it adds nothing to the residual stream by itself; senders are embed, z.L.hH, "
            "attn_out.L, mlp_out.L and mlp_act.L.nN",
            site=str(site),
        )
    assert site.layer is not None
    write, part = Site(_WRITES[site.kind], site.layer), None
    needed = [write]
    if site.kind in _OUTPUTS:
        part = Site(site.kind, site.layer, site.unit)
        needed += [part, Site(_OUTPUTS[site.kind], site.layer)]
    for one in needed:
        _available(model, one, site)
    _additive(model, site, range(site.layer, body.n_layers))
    return Sender(_plain(site), 2 * site.layer + (1 if write.kind == "attn_write" else 2), write, part)


def _reader(model: Model, site: Site) -> Reader:
    body = model.body
    if site.kind == "logits":
        return Reader(_plain(site), 2 * body.n_layers, Site("resid_post", body.n_layers - 1), None)
    if site.kind not in _VALUES:
        raise UsageError(
            f"receiver {str(site)!r}: it reads nothing from the residual stream by itself; receivers are q.L.hH, "
            "k.L.hK, v.L.hK, z.L.hH (the three of one head), attn_in.L, mlp_in.L, mlp_act.L.nN and logits",
            site=str(site),
        )
    assert site.layer is not None
    value = Site(_VALUES[site.kind], site.layer, site.unit)
    mlp, writes = value.kind in ("mlp_write", "mlp_act"), body.layers[site.layer].writes
    if mlp and writes not in ("sequential", "parallel", "single"):
        reason = f"which state the MLP of block {site.layer} reads was not found"
        raise SiteUnavailable(f"receiver {str(site)!r}: {reason}", site=str(site), reason=reason)
    between = mlp and writes == "sequential"
    entry = Site("resid_mid" if between else "resid_pre", site.layer)
    for one in (entry, value):
        _available(model, one, site)
    _additive(model, site, range(site.layer))
    return Reader(_plain(site), 2 * site.layer + between, entry, value)


def _plain(site: Site) -> Site:
    if site.batch_rows is not None:
        raise UsageError(
            f"node {str(site)!r}: it selects rows, and an effect is measured for every pair; leave #... out, or "
            "choose pairs of the task",
            site=str(site),
        )
    return site


def _available(model: Model, site: Site, named: Site) -> None:
    """Or SiteUnavailable, in the words of the node that needs it."""
    status = model.body.status(site)
    if status.state == "refused" or not status.editable:
        raise SiteUnavailable(
            f"node {str(named)!r}: it takes the site {str(site)!r} of this model, which cannot be "
            f"{'read' if status.state == 'refused' else 'edited'}: {status.reason}",
            site=str(named),
            reason=status.reason,
        )


def _additive(model: Model, site: Site, layers: range) -> None:
    """Or SiteUnavailable: what is added must still be there, as it was, where it is read."""
    body = model.body
    reasons = [f"block {layer} {why}" for layer in layers if (why := _lost(body.layers[layer]))]
    if body.n_streams is not None:
        reasons.insert(0, f"the model has {body.n_streams} residual streams")
    if reasons:
        raise SiteUnavailable(
            f"node {str(site)!r}: {reasons[0]}, so a later component does not read the sum of what earlier ones added; "
            "patch whole sites with sweep(...)",
            site=str(site),
            reason=reasons[0],
        )


def _lost(layer: LayerMap) -> str:
    """Why what was added before or in a block is not in the stream behind it as it was; '' when it is."""
    if layer.writes in ("sequential", "parallel", "single"):
        return ""
    if layer.writes == "unknown" or not layer.steps:
        return "adds something to the stream that was not found"
    if any(step.norm is not None for step in layer.steps):
        return "puts a norm on the stream after an addition"
    return "" if all(step.keep == 1.0 for step in layer.steps) else "scales the stream on its way"


class Writes:
    """What senders add to the stream in a run, from the values of that run."""

    def __init__(self, model: Model, senders: Sequence[Sender]) -> None:
        self.model, self.senders = model, tuple(dict.fromkeys(senders))
        self._maps: dict[Site, Tensor] = {}
        self._norms: dict[Site, tuple[Tensor, Tensor, bool]] = {}

    @cached_property
    def reads(self) -> tuple[Site, ...]:
        """The sites of a run that they are made from."""
        found: dict[Site, None] = {}
        for sender in self.senders:
            found[sender.write] = None
            if sender.part is not None:
                found |= {sender.part.base: None, _output(sender.part): None}
        return tuple(found)

    def of(self, acts: Activations, sender: Sender) -> Stream:
        """What one sender adds, at every position; its own position plays no part."""
        whole = wide(acts[sender.write])
        if sender.part is None:
            return whole
        scale = factor(self.model.body.tap(sender.write).scale, self.model.module)
        out = wide(acts[_output(sender.part)])
        inner = wide(acts[sender.part]).flatten(2) if sender.part.kind == "z" else wide(acts[sender.part])
        added = (inner.unsqueeze(-1) if inner.ndim == 2 else inner) @ self._map(sender.part)
        if gap(out * scale, whole) <= rounding(acts[sender.write]):
            return added * scale
        return self._behind(sender, added, out, whole / scale) * scale

    def _map(self, part: Site) -> Float[Tensor, "inner d_model"]:
        """The rows of the output projection that heads or neurons are multiplied with, from the module itself."""
        if part not in self._maps:
            body = self.model.body
            path = body.tap(_output(part)).path
            size = (body.d_head or 0) if part.kind == "z" else 1
            units = range(body.n_units(part)) if part.unit is None else _several(part.unit)
            rows = torch.tensor([unit * size + i for unit in units for i in range(size)])
            probe = torch.zeros(1, len(rows), body.n_units(part) * size, dtype=self.model.dtype)
            probe[0, torch.arange(len(rows)), rows] = 1.0
            probe = probe.to(self.model.device)
            module = self.model.submodule(path)
            with torch.no_grad():
                self._maps[part] = wide(module(probe)[0]) - wide(module(torch.zeros_like(probe[:, :1]))[0])
        return self._maps[part]

    def _behind(self, sender: Sender, added: Tensor, out: Tensor, whole: Tensor) -> Tensor:
        """A part's share of what the norm behind its component gives, at the scale of this run."""
        gain, shift, centred = self._norm(sender)
        shaped = gain * (out - out.mean(-1, keepdim=True) if centred else out)
        size = (shaped * shaped).sum(-1, keepdim=True)
        scale = ((whole - shift) * shaped).sum(-1, keepdim=True) / size.clamp(min=torch.finfo(size.dtype).tiny)
        if not gap(scale * shaped + shift, whole) <= 16 * rounding(whole.to(self.model.dtype), shift):
            reason = f"what stands between {_output(sender.part or sender.write)} and {sender.write} is no norm"
            raise SiteUnavailable(
                f"sender {str(sender.site)!r}: {reason}, so the part of one of them is not known; name the whole, "
                f"'{sender.write}'",
                site=str(sender.site),
                reason=reason,
            )
        return scale * gain * (added - added.mean(-1, keepdim=True) if centred else added)

    def _norm(self, sender: Sender) -> tuple[Tensor, Tensor, bool]:
        """(gain, shift, subtracts the mean) of the norm behind a component, from what it does to a few vectors.

        The gain is known up to a factor, which the scale of a run takes up.
        """
        if sender.write not in self._norms:
            model = self.model
            module = model.submodule(model.body.tap(sender.write).path)
            d_model = model.body.d_model
            vector = torch.linspace(1.0, 2.0, d_model) * (1.0 - 2.0 * (torch.arange(d_model) % 2))
            vector = (vector - vector.mean()).to(model.device, model.dtype).view(1, 1, -1)
            with torch.no_grad():
                up, down, moved = (wide(module(v))[0, 0] for v in (vector, -vector, vector + 3.0))
            gain, shift = (up - down) / 2 / wide(vector)[0, 0], (up + down) / 2
            self._norms[sender.write] = gain, shift, bool((moved - up).abs().max() < 1e-2 * up.abs().max())
        return self._norms[sender.write]


class Changes:
    """What each sender would say minus what it says, on the side that is edited."""

    def __init__(self, model: Model, batch: Batch, writes: Writes, mode: str, extra: Sequence[Site] = ()) -> None:
        self.model, self.writes, self.mode = model, writes, mode
        self.inputs = side(batch, MODES[mode])
        _require_one_layout(batch, mode)
        self.base = model.capture(self.inputs, list(dict.fromkeys([*writes.reads, *extra])))
        """Values of the side that is edited, `extra` sites included."""
        opposite = side(batch, other(MODES[mode]))
        self._donor = self.base if mode == "zero" else model.capture(opposite, list(writes.reads))
        self._real = batch.clean.mask

    def of(self, sender: Sender, live: Activations | None = None) -> Stream:
        """The difference that a sender makes, at its positions.

        Args:
            live: values of the run in which it is made; None: the unedited one.
        """
        said = self._said(sender) - self.writes.of(self.base if live is None else live, sender)
        return at(said, self.inputs, sender.site)

    def _said(self, sender: Sender) -> Float[Tensor, "..."]:
        """What it says instead: the other side's write, zeros, or a mean vector."""
        if self.mode == "zero":
            return torch.zeros(self.model.body.d_model, device=self.model.device)
        donor = self.writes.of(self._donor, sender)
        if self.mode != "mean":
            return donor
        real = self._real.to(donor.device)
        return torch.cat([donor[real], self.writes.of(self.base, sender)[real]]).mean(0)


def _require_one_layout(batch: Batch, mode: str) -> None:
    if mode != "zero" and (batch.clean.offsets, batch.clean.lengths) != (batch.corrupt.offsets, batch.corrupt.lengths):
        raise Misaligned(
            "the two sides of this batch are padded differently, so that their columns do not correspond; pad both on "
            "the same side, to the same length"
        )


def chosen(inputs: Tokens, site: Site) -> Bool[Tensor, "row pos"]:
    """Where a node is meant."""
    mask = torch.zeros_like(inputs.mask)
    for row, columns in enumerate(inputs.columns(site.pos)):
        mask[row, columns] = True
    return mask


def at(value: Stream, inputs: Tokens, site: Site) -> Stream:
    """A difference at a node's positions, and nothing elsewhere (padding included)."""
    return value.masked_fill(~chosen(inputs, site).to(value.device).unsqueeze(-1), 0.0)


def total(found: Mapping[Sender, Stream], reader: Reader) -> Stream | None:
    """The sum of the differences that a reader can read; None where it reads none, or only zeros."""
    parts = [value for sender, value in found.items() if reader.after(sender)]
    if not parts or not any(bool(part.any()) for part in parts):
        return None
    return torch.stack(parts).sum(0) if len(parts) > 1 else parts[0]


def _output(part: Site) -> Site:
    """What the output projection behind heads or neurons gives."""
    return Site(_OUTPUTS.get(part.kind, part.kind), part.layer)


def _several(unit: int | tuple[int, ...]) -> tuple[int, ...]:
    return (unit,) if isinstance(unit, int) else unit


def wide(value: Tensor) -> Tensor:
    """Half precision to float32: differences need the digits."""
    return value if value.dtype in (torch.float32, torch.float64) else value.float()
