"""Audit: prove on the loaded weights that every site is what its name says.

Identities, on short random rows:
    residual    resid_pre + attn_write + mlp_write = resid_post (post-norm blocks: through their norms); resid_mid
    between
    attention   pattern rows sum to one; pattern @ v = z; the output projection of z is attn_out; softmax(scores) =
    pattern (where a sink takes weight: in proportion)
    experts     what the experts add, summed, is what their module gives
    identity    an edit that changes nothing leaves the logits bit-equal (scores and pattern: against the eager kernel)
    effect      a real edit at the site moves the output, so that the site is upstream of it
    rows        a row gives in a batch what it gives alone, laid out [batch pos ...], also beside padding on either side
    causal      a changed last token leaves all earlier logits as they were
    resume      starting at a later layer, or at a later column with cached keys, gives what the full pass gives
    cache       tokens one by one, with the model's own cache, give what the full pass gives
A site that passes is verified; one that fails is refused with the numbers. No name is believed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor, nn

from cutaway.errors import CutawayError
from cutaway.models.anatomy import Anatomy, Status
from cutaway.models.cache import PrefixCache, growing
from cutaway.models.chain import factor
from cutaway.models.edits import Placed
from cutaway.models.examples import Example
from cutaway.models.forward import forward
from cutaway.models.sites import PATTERN_KINDS, Site
from cutaway.models.taps import Resume, Session, first_output
from cutaway.models.tokens import Tokens
from cutaway.models.trace import gap, rounding

if TYPE_CHECKING:
    import cutaway.models.model

Rows: TypeAlias = Tokens | Example
"""What a pass of the audit runs on."""

_IDENTITIES = (
    "resid_mid",
    "resid_post",
    "attn_write",
    "mlp_write",
    "pattern",
    "scores",
    "z",
    "v",
    "attn_out",
    "expert_out",
)


def probe_ids(module: nn.Module, *, rows: int, length: int) -> Tensor:
    """Seeded random ids that are in the embedding and are not special."""
    embedding = module.get_input_embeddings()  # type: ignore[operator]
    head = getattr(getattr(module, "get_output_embeddings", lambda: None)(), "weight", None)
    n: int = min([int(embedding.num_embeddings), *([len(head)] if isinstance(head, Tensor) and head.ndim == 2 else [])])
    special = {getattr(module.config, name, None) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    allowed = torch.tensor([i for i in range(min(int(n), 5000)) if i not in special])
    generator = torch.Generator().manual_seed(0)
    return allowed[torch.randint(len(allowed), (rows, length), generator=generator)]


def audit(model: "cutaway.models.model.Model") -> Anatomy:
    """The model's anatomy with the status of every site, and with what passes may be cut short. Cost: some twenty
    short passes a site kind."""
    anatomy = model.body
    tokens = model.encode(probe_ids(model.module, rows=2, length=7))
    mixed = _mixed(model, tokens)
    found = _identities(model, tokens)
    statuses: dict[tuple[str, int | None], Status] = {}
    for site in anatomy.sites():
        if anatomy.status(site).state != "refused":
            why = mixed.get(site)
            bad = Status("refused", why or "", editable=False)
            statuses[(site.kind, site.layer)] = bad if why else _status(model, tokens, site, found)
    anatomy = replace(anatomy, statuses=statuses, causal=_causal(model, tokens), padding=_padding(model, tokens))
    model._anatomy = anatomy
    return replace(
        anatomy,
        resume=_resume(model, tokens),
        suffix=_suffix(model, tokens),
        cached=_cached(model, tokens),
        volatile=_volatile(model, tokens),
    )


def audit_example(model: "cutaway.models.model.Model", example: Example) -> Anatomy:
    """The anatomy of a wrapped module's body with the status of every site, on an example: identities, edits that
    change nothing, edits that do. What needs rows of tokens (padding, causality, resuming) is not asked."""
    anatomy, found = model.body, _identities(model, example)
    available = [site for site in anatomy.sites() if anatomy.status(site).state != "refused"]
    problems = _values(model, example, available)[1]
    statuses = {
        (site.kind, site.layer): Status("refused", problems[site], editable=False)
        if site in problems
        else _status(model, example, site, found)
        for site in available
    }
    why = "a wrapped module runs whole"
    return replace(anatomy, statuses=statuses, resume=why, suffix=why, cached=why)


def table(model: "cutaway.models.model.Model") -> list[dict[str, object]]:
    """One row a site: kind, layer, status, largest difference, editable, reason."""
    rows = []
    for site in model.body.sites():
        status = model.body.status(site)
        rows.append(
            {
                "site": str(site),
                "status": status.state,
                "error": status.error,
                "editable": status.editable and status.state != "refused",
                "reason": status.reason,
            }
        )
    return rows


def _output(
    model: "cutaway.models.model.Model", tokens: Rows, edits: list[Placed], reads: list[Site] | None = None
) -> tuple[Tensor, Mapping[Site, Tensor]]:
    """What the model gives: logits, or the last residual stream of a model without a head."""
    last = Site("resid_post", model.body.n_layers - 1)
    if not isinstance(tokens, Tokens):
        return _pass(model, tokens, edits, reads or [])
    if "logits" in model.body.taps:
        logits, values = forward(model, tokens, edits=edits, reads=reads or [])
        assert logits is not None
        return logits, values
    _, values = forward(model, tokens, edits=edits, reads=[*(reads or []), last], logits=[[]] * len(tokens))
    return values[last], values


def _pass(
    model: "cutaway.models.model.Model",
    example: Example,
    edits: Sequence[Placed],
    reads: Sequence[Site],
) -> tuple[Tensor, Mapping[Site, Tensor]]:
    """One pass of a wrapped module: what it returns, and the sites read."""
    session = Session(model.module, model.body, edits, reads, shape=example.shape)
    out: Any = None
    with torch.no_grad(), session:
        out = model.module(*example.inputs.args, **example.inputs.kwargs)
    session.check_fired()
    return first_output(out, "")[1], session.values


def _status(
    model: "cutaway.models.model.Model",
    tokens: Rows,
    site: Site,
    identities: Mapping[tuple[str, int | None], tuple[float, float]],
) -> Status:
    error, limit = identities.get((site.kind, site.layer), (0.0, 0.0))
    if not error <= limit:
        return Status(
            "refused",
            f"its identity is off by {error:.2g}, more than rounding explains ({limit:.2g})",
            error,
            editable=False,
        )
    place = tokens if isinstance(tokens, Tokens) else None
    try:
        plain, _ = _output(model, tokens, [], [site] if site.kind in PATTERN_KINDS else None)
        same, _ = _output(model, tokens, [Placed(site.apply(lambda value: value), place)])
        moved, _ = _output(model, tokens, [Placed(site.apply(_nudge), place)])
    except Exception as problem:  # noqa: BLE001 - whatever a foreign architecture raises here, the site is refused
        return Status("refused", _told(problem), None, editable=False)
    if not torch.equal(plain, same):
        return Status(
            "refused",
            f"an edit that changes nothing moved the output by {float((plain - same).abs().max()):.2g}",
            editable=False,
        )
    checked = "identity edit bit-equal" + ("; sums to its parts" if site.kind in _IDENTITIES and limit > 0 else "")
    if site.kind != "logits" and torch.equal(plain, moved):
        return Status(
            "verified", f"{checked}; readable only: a change made here does not reach the output", error, editable=False
        )
    return Status("verified", checked, error)


def _nudge(value: Tensor) -> Tensor:
    """A change that no layer norm hides: halve every other entry."""
    changed = value.clone()
    changed[..., ::2] = changed[..., ::2] * 0.5 + 0.25 * value.abs().clamp(max=1e4).mean()
    return changed


def _identities(model: "cutaway.models.model.Model", tokens: Rows) -> dict[tuple[str, int | None], tuple[float, float]]:
    """For each site that an identity speaks of: (largest difference, what rounding may explain)."""
    found: dict[tuple[str, int | None], tuple[float, float]] = {}
    for index in range(model.body.n_layers):
        for kinds, (difference, limit) in [
            *_residual_identity(model, tokens, index),
            *_attention_identity(model, tokens, index),
            *_expert_identity(model, tokens, index),
        ]:
            for kind in kinds:
                before = found.get((kind, index), (0.0, limit))
                found[(kind, index)] = (max(before[0], difference), max(before[1], limit))
    return found


def _read(model: "cutaway.models.model.Model", tokens: Rows, layer: int, *kinds: str) -> dict[str, Tensor]:
    have = [Site(kind, layer) for kind in kinds if kind in model.body.layers[layer].taps]
    return {site.kind: value for site, value in _values(model, tokens, have)[0].items()}


def _values(
    model: "cutaway.models.model.Model", tokens: Rows, sites: list[Site]
) -> tuple[Mapping[Site, Tensor], dict[Site, str]]:
    """What can be read, and why the rest cannot: in one pass where that works, else one by one."""
    if not sites:
        return {}, {}
    try:
        if not isinstance(tokens, Tokens):
            return _pass(model, tokens, [], sites)[1], {}
        return forward(model, tokens, reads=sites, logits=[[]] * len(tokens))[1], {}
    except Exception as problem:  # noqa: BLE001 - as in _status
        if len(sites) == 1:
            return {}, {sites[0]: _told(problem)}
    values: dict[Site, Tensor] = {}
    problems: dict[Site, str] = {}
    for site in sites:
        one, problem = _values(model, tokens, [site])
        values |= one
        problems |= problem
    return values, problems


def _told(problem: Exception) -> str:
    return str(problem) if isinstance(problem, CutawayError) else f"{type(problem).__name__}: {problem}"


def _compare(left: Tensor, right: Tensor) -> tuple[float, float]:
    """(Largest difference, what rounding may explain); NaN differs from everything."""
    return gap(left, right), 8 * rounding(left, right)


def _mixed(model: "cutaway.models.model.Model", tokens: Tokens) -> dict[Site, str]:
    """Sites that cannot be read, that are not laid out by row and position, or whose rows depend on each other."""
    available = [site for site in model.body.sites() if model.body.status(site).state != "refused"]
    single = tokens.take([1])
    why: dict[Site, str] = {}
    for layer in dict.fromkeys(site.layer for site in available):
        sites = [site for site in available if site.layer == layer]
        together, problems = _values(model, tokens, sites)
        alone, more = _values(model, single, sites)
        why |= problems | more
        for site in [site for site in sites if site in together and site in alone]:
            if reason := _misplaced(site, together[site], alone[site], tokens):
                why[site] = reason
    return why


def _misplaced(site: Site, together: Tensor, alone: Tensor, tokens: Tokens) -> str:
    """Why the values of row 1 are not those of the row alone; '' when they are."""
    shape, rows, n = list(together.shape), len(tokens), tokens.width
    pattern = site.kind in PATTERN_KINDS
    found, wanted = (shape[:1] + shape[2:], [rows, n, n]) if pattern else (shape[:2], [rows, n])
    if found != wanted:
        axes = "[batch head query key]" if pattern else "[batch pos ...]"
        return f"it is of shape {shape} for {rows} rows of {n} tokens, which is not {axes}"
    if site.kind == "scores":  # what is masked has a size that hides every difference
        together, alone = together.float().softmax(-1), alone.float().softmax(-1)
    difference, limit = _compare(together[1], alone[0])
    return "" if difference <= limit else f"a row gives in a batch what it does not alone (off by {difference:.2g})"


def _padding(model: "cutaway.models.model.Model", tokens: Tokens) -> dict[str, str]:
    """The sides where padding changes what a row gives, with the reason."""
    long, short = tokens.row(0), tokens.row(1)[:4]
    alone, _ = _output(model, model.encode([short]), [])
    why: dict[str, str] = {}
    for side in ("left", "right"):
        padded = model.encode([long, short], pad=side)
        first = padded.offsets[1]
        try:
            together, _ = _output(model, padded, [])
            found = _compare(together[1, first : first + len(short)], alone[0])
        except Exception as problem:  # noqa: BLE001 - as in _status
            why[side] = _told(problem)
            continue
        if not found[0] <= found[1]:
            why[side] = f"off by {found[0]:.2g} in the audit"
    return why


def _residual_identity(model: "cutaway.models.model.Model", tokens: Rows, index: int):
    """The chain of steps, each against the value where the pass has one: `resid_mid` in between, `resid_post` last."""
    layer = model.body.layers[index]
    kinds = ("resid_pre", "attn_write", "resid_mid", "mlp_write", "resid_post")
    v = _read(model, tokens, index, *kinds)
    if any(kind not in v for kind in kinds if kind in layer.taps) or not layer.steps:
        return  # the part that cannot be read is refused on its own account
    written = {layer.taps[kind]: v[kind] for kind in ("attn_write", "mlp_write") if kind in v}
    parts = {part for step in layer.steps for part in step.parts}
    for kind in ("attn_write", "mlp_write"):
        twins = layer.taps.get("attn_write") == layer.taps.get("mlp_write")
        if kind in v and (layer.taps[kind] not in parts or twins):
            yield (kind,), (float("inf"), 0.0)
    more = _modules(model, tokens, [tap.path for tap in layer.others])
    if more is None:
        return
    state, between = v["resid_pre"], ""
    with torch.no_grad():
        for step in layer.steps:
            state = state * factor(step.keep, model.module)
            for part in step.parts:
                add = written[part] if part in written else more[part.path] * factor(part.scale, model.module)
                state = state + add.to(state)
                if part == layer.taps.get("attn_write") and len(layer.steps) == 1 and "resid_mid" in v:
                    yield ("resid_mid",), _compare(v["resid_pre"] + add, v["resid_mid"])
            if step.norm is not None:
                state = model.module.get_submodule(step.norm)(state)
            if "resid_mid" in v and step.norm is not None and layer.taps["resid_mid"].path == step.norm:
                yield ("resid_mid", "attn_write"), _compare(state, v["resid_mid"])
                state, between = v["resid_mid"], "resid_mid"
    writes = ("mlp_write", "resid_post") if between else ("attn_write", "mlp_write", "resid_post")
    yield tuple(kind for kind in writes if kind in v), _compare(state, v["resid_post"])


def _modules(model: "cutaway.models.model.Model", tokens: Rows, paths: Sequence[str]) -> dict[str, Tensor] | None:
    """Outputs of modules [batch pos ...]; None where one of them cannot be read."""
    found, problems = _values(model, tokens, [Site("module", path=path) for path in paths])
    rows = (len(tokens), tokens.width)
    shaped = {site.path or "": v if v.shape[:2] == rows else v.unflatten(0, rows) for site, v in found.items()}
    return None if problems else shaped


def _attention_identity(model: "cutaway.models.model.Model", tokens: Rows, index: int):
    layer = model.body.layers[index]
    v = _read(model, tokens, index, "scores", "pattern", "v", "z", "attn_out")
    if any(kind not in v for kind in ("scores", "pattern")) or v["pattern"].shape[-1] != v["pattern"].shape[-2]:
        return
    sums = v["pattern"].sum(-1, keepdim=True)
    if float(sums.max()) > 1 - 1e-3:  # less is what a sink, a column without a key, has taken
        yield ("pattern",), _compare(sums.clamp(min=1.0), torch.ones_like(sums))
    yield ("scores",), _compare(v["scores"].float().softmax(-1), v["pattern"] / sums)
    if "v" not in v or "z" not in v or v["z"].shape[2] % v["v"].shape[2]:
        return
    shared = v["z"].shape[2] // v["v"].shape[2]
    mixed = torch.einsum("bhqk,bkhd->bqhd", v["pattern"].float(), v["v"].float().repeat_interleave(shared, dim=2))
    off = _compare(mixed, v["z"])
    if not off[0] <= off[1]:  # a sink may act after the sum: one factor for each query and head
        part = (mixed * v["z"]).sum(-1, keepdim=True) / mixed.square().sum(-1, keepdim=True)
        off = _compare(mixed * part, v["z"]) if bool(((part > 0) & (part < 1)).all()) else off
    yield ("z", "v", "pattern"), off
    if layer.o_proj is not None and "attn_out" in v:
        with torch.no_grad():
            yield (
                ("attn_out", "z"),
                _compare(model.module.get_submodule(layer.o_proj)(v["z"].flatten(2)), v["attn_out"]),
            )


def _expert_identity(model: "cutaway.models.model.Model", tokens: Rows, index: int):
    """What the experts add, summed, is what their module gives."""
    layer = model.body.layers[index]
    v = _read(model, tokens, index, "expert_out") if layer.experts else {}
    if "expert_out" not in v:
        return
    whole = _modules(model, tokens, [layer.experts or ""])
    if whole is not None:
        yield ("expert_out",), _compare(v["expert_out"].sum(2), whole[layer.experts or ""])


def _volatile(model: "cutaway.models.model.Model", tokens: Tokens) -> frozenset[str]:
    """Kinds whose tensor is written over after it was read, or is a weight: a read must copy them at once."""
    found: set[str] = set()
    kept = {t.untyped_storage().data_ptr() for t in [*model.module.parameters(), *model.module.buffers()]}
    sites = [site for site in model.body.sites() if site.layer is not None]
    sites = [site for site in sites if model.body.status(site).state != "refused"]
    session = Session(model.module, model.body, [], sites, shape=(len(tokens), tokens.width), borrow=True)
    with torch.no_grad(), session:
        model.module(**model.inputs(tokens))
    for site in sites:
        if site in session.overwritten or session.values[site].untyped_storage().data_ptr() in kept:
            found.add(site.kind)
    return frozenset(found)


# -- what may be cut short


def _causal(model: "cutaway.models.model.Model", tokens: Tokens) -> bool:
    other = tokens.ids.clone()
    other[:, -1] = tokens.ids[:, 0]
    other[:, -1] = torch.where(other[:, -1] == tokens.ids[:, -1], tokens.ids[:, 1], other[:, -1])
    a, _ = _output(model, tokens, [])
    b, _ = _output(model, replace(tokens, ids=other), [])
    difference, limit = _compare(a[:, :-1], b[:, :-1])
    return difference <= limit


def _resume(model: "cutaway.models.model.Model", tokens: Tokens) -> str:
    if model.dispatched:
        return "accelerate moves the weights between devices during a pass"
    n = model.body.n_layers
    full, values = _output(model, tokens, [], [Site("resid_post", layer) for layer in range(n)])
    for layer in sorted({1, n // 2, n} - {0}):
        try:
            cut = _resumed(model, tokens, layer, values[Site("resid_post", layer - 1)], 0, None)
        except Exception as error:  # noqa: BLE001 - whatever a foreign architecture raises here, the answer is: full passes
            return f"starting at layer {layer} fails ({type(error).__name__}: {error})"
        difference, limit = _compare(cut, full)
        if not difference <= limit:
            return f"starting at layer {layer} changes the output by {difference:.2g}"
    return ""


def _suffix(model: "cutaway.models.model.Model", tokens: Tokens) -> str:
    if not model.body.causal:
        return "a later token changes earlier positions here"
    if not model.body.positions:
        return "the model numbers tokens by itself, from the first one that it is given"
    if model.dispatched:
        return "accelerate moves the weights between devices during a pass"
    if "past_key_values" not in model.accepts:
        return "its forward takes no key/value cache"
    n = model.body.n_layers
    if any(not {"k", "v"} <= layer.taps.keys() for layer in model.body.layers):
        return "keys and values of some layer cannot be read"
    reads = [Site("resid_post", 0)] + [Site(kind, layer) for layer in range(n) for kind in ("k", "v")]
    full, values = _output(model, tokens, [], reads)
    for layer, start in ((0, 3), (min(1, n), 5)):
        try:
            keys = {i: (values[Site("k", i)], values[Site("v", i)]) for i in range(layer, n)}
            cache = PrefixCache.of(keys, n, start)
            state = values[Site("resid_post", 0)][:, start:] if layer else None
            cut = _resumed(model, tokens, layer, state, start, cache)
        except Exception as error:  # noqa: BLE001 - as above
            return f"starting at a later position fails ({type(error).__name__}: {error})"
        difference, limit = _compare(cut, full[:, start:])
        if not difference <= limit:
            return f"starting at a later position changes the output by {difference:.2g}"
    return ""


def _cached(model: "cutaway.models.model.Model", tokens: Tokens) -> str:
    """Prompt, then token after token, as generation does it: on rows padded on the left where they may be."""
    if "past_key_values" not in model.accepts:
        return "its forward takes no key/value cache"
    if not model.body.causal:
        return "a later token changes earlier positions here"
    if "logits" not in model.body.taps:
        return "it returns no logits"
    if "left" not in model.body.padding:
        tokens = model.encode([tokens.row(0), tokens.row(1)[:4]], pad="left")
    full, _ = _output(model, tokens, [])
    n = tokens.width
    try:
        state = growing(model.module.config)
        for start, stop in ((0, n - 2), (n - 2, n - 1), (n - 1, n)):
            part = Tokens(tokens.ids[:, :stop], tokens.mask[:, :stop])
            with torch.no_grad():
                out = model.module(**model.inputs(part, start, state))
            difference, limit = _compare(out.logits[:, -1], full[:, stop - 1])
            if not difference <= limit:
                return f"a step with its cache changes the logits by {difference:.2g}"
    except Exception as error:  # noqa: BLE001 - as above
        return f"a step with its cache fails ({type(error).__name__}: {error})"
    return ""


def _resumed(
    model: "cutaway.models.model.Model", tokens: Tokens, layer: int, state: Tensor | None, start: int, cache: object
) -> Tensor:
    resume = Resume(layer, state) if state is not None else None
    last = Site("resid_post", model.body.n_layers - 1)
    if "logits" in model.body.taps:
        logits, _ = forward(model, tokens, resume=resume, start=start, cache=cache)
        assert logits is not None
        return logits
    return forward(model, tokens, reads=[last], logits=[[]] * len(tokens), resume=resume, start=start, cache=cache)[1][
        last
    ]
