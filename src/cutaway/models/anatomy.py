"""Anatomy: sizes of a model, and where each site lives in it. Data only; `resolve` finds it, `audit` proves it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from cutaway.errors import OutOfRange, SiteUnavailable, UsageError
from cutaway.models.sites import ATTENTION_KINDS, KINDS, Site, SiteSet, parse

Port: TypeAlias = Literal["input", "output"]


@dataclass(frozen=True)
class Tap:
    """Where a site is read and written: the input or output of a module, or inside an attention or experts call."""

    path: str
    """Module path."""
    port: Literal["input", "output", "attention", "experts"]
    scale: float | str = 1.0
    """The site is the tensor there times this: a number, or the path of a parameter or buffer (one number, or one a
    channel). Blocks that scale what they add do it between two modules."""
    axes: Literal["bp", "flat", "pb", "sbp", "bsp"] = "bp"
    """How the tensor there is laid out: [batch pos ...], rows and positions in one axis, [pos batch ...],
    [stream batch pos ...], or streams one after another along the positions; sites are always [batch pos ...]."""


@dataclass(frozen=True)
class Step:
    """One step from `resid_pre` to `resid_post`: `state = norm(keep * state + parts)`, each part times its scale."""

    parts: tuple[Tap, ...] = ()
    keep: float | str = 1.0
    """What the state is multiplied by: a number, or the path of a parameter or buffer."""
    norm: str | None = None
    """Path of the norm that the sum goes through."""


@dataclass(frozen=True)
class Status:
    """What is known of a site on this model."""

    state: Literal["verified", "structural", "refused"]
    """'structural': located, its identities not (yet) checked on the weights."""
    reason: str = ""
    """Why it is refused, or what was checked."""
    error: float | None = None
    """Largest absolute difference that the check found."""
    editable: bool = True


@dataclass(frozen=True)
class LayerMap:
    """One block: module paths of its parts and how it adds to the residual stream."""

    block: str
    """Path of the block."""
    returns_tuple: bool
    """The block returns a tuple whose first entry is the residual stream."""
    taps: Mapping[str, Tap]
    """Kind of site to where it is."""
    refused: Mapping[str, str]
    """Kind of site to the reason why this block does not have it."""
    writes: Literal["sequential", "parallel", "post-norm", "single", "chain", "unknown"]
    """How `resid_post` comes from `resid_pre` and the writes; 'chain': by `steps` that are none of the others (the
    stream is scaled or normed on its way, or there are writes besides those of one attention and one MLP)."""
    norms: tuple[str, ...] = ()
    """For post-norm blocks, the paths of the norms after the first and the second addition."""
    steps: tuple[Step, ...] = ()
    """The decomposition in full; empty when none was found."""
    attention: str | None = None
    """Path of the module in which attention is computed."""
    inline: bool = False
    """That module computes attention in its own forward, not through transformers' attention interface."""
    kernel_calls: int = 1
    """How often it computes it: differential attention does so twice, with the same pattern."""
    o_proj: str | None = None
    """Path of the attention's output projection."""
    returned: int = 1
    """Length of the tuple that the block returns."""
    experts: str | None = None
    """Path of the module that holds the experts of a mixture."""

    @property
    def others(self) -> tuple[Tap, ...]:
        """Writes beside `attn_write` and `mlp_write`, to be addressed as module sites."""
        known = (self.taps.get("attn_write"), self.taps.get("mlp_write"))
        return tuple(part for step in self.steps for part in step.parts if part not in known)


@dataclass(frozen=True)
class Anatomy:
    """Sizes (read off tensors, never off the configuration) and the map from sites to modules."""

    layers: tuple[LayerMap, ...]
    d_model: int
    d_vocab: int | None
    n_heads: int | None
    n_kv_heads: int | None
    d_head: int | None
    d_mlp: int | None
    taps: Mapping[str, Tap]
    """Sites that exist once a model."""
    refused: Mapping[str, str]
    """Kinds that exist once a model and that this model does not have, with the reason."""
    causal: bool
    """A later token never changes an earlier position."""
    final_norm: str | None
    """Path of the norm before the unembedding."""
    unembed: str | None
    """Path of the unembedding."""
    statuses: Mapping[tuple[str, int | None], Status] = field(default_factory=dict)
    """Filled by the audit, by kind and layer."""
    resume: str = "not audited"
    """'' when a run may start at a later layer from stored residual streams; else why not."""
    suffix: str = "not audited"
    """'' when a run may compute only the positions from its first edit on; else why not."""
    cached: str = "not audited"
    """'' when generation may keep keys and values from step to step; else why not."""
    padding: Mapping[str, str] = field(default_factory=dict)
    """Side ('left', 'right') to the reason why padding there would change what a row gives; both sides work without an
    entry."""
    positions: bool = True
    """Runs state the position of every token. False where the model numbers tokens in a way of its own (RoBERTa counts
    from its padding id on): then it does so from the ids, and padding is filled with its padding id."""
    n_streams: int | None = None
    """Parallel residual streams of a model with more than one (hyper-connections): residual sites are then
    [batch pos stream d_model]."""
    n_experts: int | None = None
    """Experts of a mixture."""
    volatile: frozenset[str] | None = None
    """Kinds whose tensors the model writes over later in a pass, so that a read must copy them; None: not audited, all
    are copied."""
    length: int | None = None
    """Tokens that a row may have, as the configuration states it; None when it states no limit."""

    @property
    def n_layers(self) -> int:
        return len(self.layers)

    def tap(self, site: Site) -> Tap:
        """Where a site is. Raises OutOfRange for a layer or unit that does not exist, SiteUnavailable with the
        reason."""
        if site.kind == "module":
            assert site.path is not None
            return Tap(site.path, "input" if site.port == "input" else "output")
        taps, refused = self.taps, self.refused
        if site.layer is not None:
            if not 0 <= site.layer < self.n_layers:
                near = site.layer % self.n_layers if self.n_layers else 0
                raise OutOfRange(
                    f"site '{site}': this model has {self.n_layers} layers (0-{self.n_layers - 1}). Did you "
                    f"mean '{site.kind}.{near}'?",
                    site=str(site),
                    layer=site.layer,
                )
            taps, refused = self.layers[site.layer].taps, self.layers[site.layer].refused
        if site.kind not in taps:
            reason = refused.get(site.kind, "it was not found in this architecture")
            have = ", ".join(kind for kind in KINDS if kind in taps)
            raise SiteUnavailable(
                f"site '{site}': this model does not have it: {reason}. Available here: {have}",
                site=str(site),
                reason=reason,
            )
        self._check_units(site)
        return taps[site.kind]

    def carrier(self, site: Site) -> Site:
        """The site through which a change of this one reaches the rest: for a residual state between two writes that no
        module returns, what the attention writes; else the site itself."""
        if site.kind == "resid_mid" and self.tap(site).port == "input":
            return Site("attn_write", site.layer)
        return site

    def _check_units(self, site: Site) -> None:
        if site.unit is None:
            return
        size = self.n_units(site)
        for unit in (site.unit,) if isinstance(site.unit, int) else site.unit:
            if not 0 <= unit < size:
                what = {"kv_head": "key/value heads", "head": "heads", "neuron": "neurons", "expert": "experts"}[
                    site.axis or "neuron"
                ]
                raise OutOfRange(
                    f"site '{site}': this model has {size} {what} (0-{size - 1}), not {unit}", site=str(site), unit=unit
                )

    def n_units(self, site: Site) -> int:
        """Heads, key/value heads, neurons or experts of a site."""
        sizes = {"head": self.n_heads, "kv_head": self.n_kv_heads, "neuron": self.d_mlp, "expert": self.n_experts}
        size = sizes.get(site.axis or "")
        if size is None:
            raise UsageError(f"site '{site}': it has no heads, neurons or experts to count", site=str(site))
        return size

    def slot(self, site: Site) -> tuple[int, ...]:
        """Shape of one position of a whole site: () of what follows [batch pos]; -1 where the rows decide."""
        heads = {"q": self.n_heads, "z": self.n_heads, "k": self.n_kv_heads, "v": self.n_kv_heads}
        if site.kind in heads:
            return (heads[site.kind] or -1, self.d_head or -1)
        if site.kind in ("scores", "pattern"):
            return (self.n_heads or -1, -1)
        if site.axis == "neuron":
            return (self.d_mlp or -1,)
        if site.kind == "expert_out":
            return (self.n_experts or -1, self.d_model)
        if self.n_streams is not None and site.kind.startswith("resid_"):
            return (self.n_streams, self.d_model)
        return ({"logits": self.d_vocab or -1, "router": -1}.get(site.kind, self.d_model),)

    def expand(self, wanted: "Site | SiteSet | str | Iterable[Site | SiteSet | str]") -> list[Site]:
        """Sites of a request: texts are parsed, sets expanded, each checked against this model; duplicates dropped."""
        if isinstance(wanted, Site | SiteSet | str) or not isinstance(wanted, Iterable):
            wanted = [wanted]
        found: dict[Site, None] = {}
        for item in wanted:
            site = parse(item) if isinstance(item, str) else item
            if not isinstance(site, Site | SiteSet):
                raise UsageError(f"sites: {item!r} is no site; write a text such as 'resid_post.0', or sites.z[0]")
            for one in site.expand(self.n_layers, self.n_units) if isinstance(site, SiteSet) else [site]:
                self.tap(one)
                found[one] = None
        if not found:
            raise UsageError("no site was given; name at least one, as in 'resid_post.0' or sites.resid_post[:]")
        return list(found)

    def status(self, site: Site) -> Status:
        """What is known of a site, nothing raised."""
        try:
            self.tap(site)
        except SiteUnavailable as error:
            return Status("refused", error.reason)
        return self.statuses.get((site.kind, site.layer), Status("structural"))

    def sites(self) -> list[Site]:
        """Every site of the vocabulary, by layer, refused ones included."""
        layered = [kind for kind in KINDS if KINDS[kind].layered]
        once = [kind for kind in KINDS if not KINDS[kind].layered]
        return [
            Site("embed"),
            *(Site(k, layer) for layer in range(self.n_layers) for k in layered),
            *(Site(k) for k in once if k != "embed"),
        ]

    def order(self, site: Site) -> tuple[int, int]:
        """Execution order: (block, rank inside the block). `resid_post.L` ranks as the input of block L + 1."""
        rank = list(KINDS).index(site.kind) if site.kind in KINDS else 0
        if site.kind == "embed":
            return (0, -1)
        if site.kind in ("final_norm", "logits"):
            return (self.n_layers, rank)
        if site.kind == "module":
            return (self._module_layer(site), -1)
        assert site.layer is not None
        return (site.layer + 1, -1) if site.kind == "resid_post" else (site.layer, rank)

    def _module_layer(self, site: Site) -> int:
        for index, layer in enumerate(self.layers):
            if site.path == layer.block or (site.path or "").startswith(layer.block + "."):
                return index
        return -1


def needs_attention(sites: Iterable[Site]) -> bool:
    """Some site lives inside an attention call."""
    return any(site.kind in ATTENTION_KINDS for site in sites)
