"""Sites: the one vocabulary for activations, as typed values and as text.

    sites.z[9].head(6).at("end")        z.9.h6@end
    sites.resid_pre[2].at([0, -1])      resid_pre.2@0,-1
    sites.mlp_act[3].neuron(17)         mlp_act.3.n17
    sites.resid_post[:]                 resid_post.*          a set, expanded against a model
    sites.z[2:5].heads().at("end")      z.2:5.h*@end          each head of these layers
    sites.resid_post[2].at(new[:5])     resid_post.2@new[:5]  a span: the first five tokens after the prompt
    sites.module("encoder.0", "input")  encoder.0:input       any module of any network

A position is an index into the row without its padding: 0 is the first real token, -1 the last. A role is a name
that the inputs give to a position ('end' always exists: the last token of the prompt). A predicate selects tokens.
"""

import operator
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

from torch import Tensor

from cutaway.errors import OutOfRange, UnknownSite, UsageError, did_you_mean
from cutaway.models import spans
from cutaway.models.spans import RESERVED, Span

if TYPE_CHECKING:
    import cutaway.models.activations
    import cutaway.models.edits


@dataclass(frozen=True)
class Kind:
    """One row of the vocabulary."""

    name: str
    layered: bool
    """Exists once a layer."""
    axis: str | None
    """What can be selected besides positions: 'head', 'kv_head', 'neuron' or 'expert'."""
    meaning: str


KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind("embed", False, None, "output of the token embedding"),
        Kind("resid_pre", True, None, "residual stream as it enters the block"),
        Kind("resid_mid", True, None, "residual stream between attention and MLP"),
        Kind("resid_post", True, None, "residual stream as it leaves the block"),
        Kind("attn_in", True, None, "what the attention reads, after its norm"),
        Kind("q", True, "head", "queries as they enter the attention kernel (after norm and rotation)"),
        Kind("k", True, "kv_head", "keys as they enter the attention kernel, before they are shared between heads"),
        Kind("v", True, "kv_head", "values as they enter the attention kernel, before they are shared between heads"),
        Kind("scores", True, "head", "attention scores, masked, before the softmax"),
        Kind("pattern", True, "head", "attention weights, after the softmax"),
        Kind("z", True, "head", "each head's weighted sum of values, before the output projection"),
        Kind("attn_out", True, None, "output of the attention's output projection"),
        Kind("attn_write", True, None, "what the attention really adds to the residual stream"),
        Kind("mlp_in", True, None, "what the MLP reads, after its norm"),
        Kind("mlp_pre", True, "neuron", "input of the MLP's activation function"),
        Kind("mlp_act", True, "neuron", "neurons: input of the MLP's output projection"),
        Kind("mlp_out", True, None, "output of the MLP"),
        Kind("mlp_write", True, None, "what the MLP really adds to the residual stream"),
        Kind("router", True, None, "logits by which a mixture of experts routes"),
        Kind("expert_out", True, "expert", "what each expert adds: its output times its weight, zero where not chosen"),
        Kind("final_norm", False, None, "output of the norm before the unembedding"),
        Kind("logits", False, None, "the model's output scores over the vocabulary"),
    )
}
ATTENTION_KINDS = frozenset({"q", "k", "v", "scores", "pattern", "z"})
PATTERN_KINDS = frozenset({"scores", "pattern"})

LETTERS = {"head": "h", "kv_head": "h", "neuron": "n", "expert": "e"}
"""How a unit of an axis is written."""

TRANSFORMER_LENS: dict[str, str] = {
    "hook_embed": "embed",
    "ln_final.hook_normalized": "final_norm",
    "hook_resid_pre": "resid_pre",
    "hook_resid_mid": "resid_mid",
    "hook_resid_post": "resid_post",
    "hook_in": "resid_pre",
    "hook_out": "resid_post",
    "attn.hook_q": "q",
    "attn.hook_k": "k",
    "attn.hook_v": "v",
    "attn.hook_z": "z",
    "attn.hook_attn_scores": "scores",
    "attn.hook_pattern": "pattern",
    "hook_attn_out": "attn_write",
    "hook_mlp_in": "mlp_in",
    "mlp.hook_pre": "mlp_pre",
    "mlp.hook_post": "mlp_act",
    "hook_mlp_out": "mlp_write",
}
"""TransformerLens names (the part after `blocks.L.`) and what they mean here. Its `attn_out` and `mlp_out` are
residual writes."""


@dataclass(frozen=True)
class Where:
    """Positions whose token satisfies a predicate on its text; named, so that a site with it can be printed."""

    predicate: Callable[[str], bool]
    name: str = "predicate"

    def __str__(self) -> str:
        return f"where({self.name})"


def where(predicate: Callable[[str], bool], name: str | None = None) -> Where:
    """Selects every position whose token text satisfies `predicate`."""
    return Where(predicate, name or getattr(predicate, "__name__", "predicate").strip("<>"))


Position: TypeAlias = int | tuple[int, ...] | str | Where | Span | None


@dataclass(frozen=True)
class Site:
    """A named activation, with what is selected of it. Hashable; `str` and `Site.parse` are inverse (predicates
    excepted)."""

    kind: str
    """A name of KINDS, or 'module'."""
    layer: int | None = None
    """Block index from 0; None for kinds that exist once."""
    unit: int | tuple[int, ...] | None = None
    """Heads or neurons, None for all. One index drops the axis, several keep it."""
    pos: Position = None
    """Positions in the unpadded row, a role, a span, or a predicate; None for all."""
    batch_rows: tuple[int, ...] | None = None
    """Rows of the batch, None for all."""
    path: str | None = None
    """Module path, for kind 'module'; '' is the whole network."""
    port: str = "output"
    """'input' or 'output', for kind 'module'."""

    def __post_init__(self) -> None:
        for name in ("layer", "unit", "pos", "batch_rows"):
            value = getattr(self, name)
            if value is not None and type(value) is not int and not isinstance(value, str | Where | Span):
                object.__setattr__(self, name, _indices(name.removeprefix("batch_"), value))
        if isinstance(self.layer, str | tuple) or isinstance(self.unit, str) or isinstance(self.batch_rows, int | str):
            raise UsageError(
                f"site {self.kind!r}: layer {self.layer!r}, head or neuron {self.unit!r}, rows {self.batch_rows!r}: a "
                "layer is a whole number, a head or neuron one or a list, rows a list: sites.z[1].head(0).rows([2])"
            )
        if self.kind == "module":
            if self.path is None or self.port not in ("input", "output"):
                raise UsageError(
                    f"a module site needs a path and the port 'input' or 'output', not {self.path!r}, {self.port!r}"
                )
        elif self.kind not in KINDS:
            raise UnknownSite(f"site {self.kind!r}: no such kind.{did_you_mean(self.kind, KINDS)}", site=self.kind)
        elif KINDS[self.kind].layered != (self.layer is not None):
            rule = "needs a layer, as in" if KINDS[self.kind].layered else "exists once a model: write"
            raise UsageError(f"site {self.kind!r} {rule} '{self.kind}{'.0' if KINDS[self.kind].layered else ''}'")
        if self.unit is not None and (self.kind == "module" or KINDS[self.kind].axis is None):
            raise UsageError(f"site {self.base}: it has no heads or neurons to select", site=str(self.base))
        for name, value in (("unit", self.unit), ("position", self.pos), ("row", self.batch_rows)):
            if isinstance(value, tuple) and not value:
                raise UsageError(
                    f"site {self.kind!r}: an empty list of {name}s selects nothing; leave it out to select all"
                )
            if isinstance(value, tuple) and len(set(value)) < len(value):
                raise UsageError(f"site {self.kind!r}: {name}s {list(value)} name one twice; each may be selected once")

    @property
    def base(self) -> "Site":
        """The same activation with nothing selected."""
        if self.unit is None and self.pos is None and self.batch_rows is None:
            return self
        return replace(self, unit=None, pos=None, batch_rows=None)

    @property
    def axis(self) -> str | None:
        """'head', 'kv_head', 'neuron', 'expert' or None."""
        return None if self.kind == "module" else KINDS[self.kind].axis

    # -- selection

    def head(self, head: int | Sequence[int]) -> "Site":
        """One head (its axis is dropped) or several. `k` and `v` count key/value heads."""
        if self.axis not in ("head", "kv_head"):
            raise UsageError(
                f"site {self}: it has no heads; heads are at "
                f"{', '.join(k for k in KINDS if KINDS[k].axis in ('head', 'kv_head'))}"
            )
        return replace(self, unit=_indices("head", head))

    def neuron(self, neuron: int | Sequence[int]) -> "Site":
        """One neuron (its axis is dropped) or several."""
        if self.axis != "neuron":
            raise UsageError(f"site {self}: it has no neurons; neurons are at mlp_pre, mlp_act")
        return replace(self, unit=_indices("neuron", neuron))

    def expert(self, expert: int | Sequence[int]) -> "Site":
        """One expert (its axis is dropped) or several."""
        if self.axis != "expert":
            raise UsageError(f"site {self}: it has no experts; experts are at expert_out")
        return replace(self, unit=expert if isinstance(expert, int) else tuple(expert))

    def at(self, position: int | str | Sequence[int] | slice | Where | Span | None) -> "Site":
        """Positions in the unpadded row (negative from its end), a role name, a slice or span (`prompt`, `new[:5]`), or
        a token predicate."""
        if isinstance(position, slice):
            position = spans.of_slice(position)
        if isinstance(position, str) and position in RESERVED:
            position = spans.parse(position)
        if isinstance(position, str) and not re.fullmatch(r"[A-Za-z_][\w-]*", position):
            raise UsageError(f"position {position!r}: a role is a word such as 'end' or 'subject'")
        if position is None or isinstance(position, str | Where | Span):
            return replace(self, pos=position)
        return replace(self, pos=_indices("position", position))

    def rows(self, rows: Iterable[int]) -> "Site":
        """Rows of the batch."""
        chosen = _indices("row", rows)
        return replace(self, batch_rows=(chosen,) if isinstance(chosen, int) else chosen)

    # -- edits (data, applied when a run is executed)

    def _edit(self, op: str, **fields: Any) -> "cutaway.models.edits.Edit":
        from cutaway.models.edits import Edit

        return Edit(self, op, **fields)

    def patch(self, source: "cutaway.models.activations.Activations") -> "cutaway.models.edits.Edit":
        """Take the value from another run: same rows, same positions (a role is looked up in the source's own
        inputs)."""
        return self._edit("patch", source=source)

    def replace(self, value: Tensor | float) -> "cutaway.models.edits.Edit":
        """Set to `value`: a number, or a tensor of exactly the selected shape; where one position a row is selected,
        also one vector. For one vector at many positions say so: `fill`."""
        return self._edit("replace", value=value)

    def fill(self, value: Tensor | float) -> "cutaway.models.edits.Edit":
        """Set every selected slot to one vector, as in mean ablation."""
        return self._edit("fill", value=value)

    def zero(self) -> "cutaway.models.edits.Edit":
        """Set to zero."""
        return self._edit("replace", value=0.0)

    def add(self, value: Tensor, scale: float = 1.0) -> "cutaway.models.edits.Edit":
        """Add `scale * value`: one vector for every selected slot, or a tensor of exactly the selected shape."""
        return self._edit("add", value=value, scale=scale)

    def scale(self, factor: float) -> "cutaway.models.edits.Edit":
        """Multiply by a number."""
        return self._edit("scale", scale=factor)

    def clamp(
        self, low: float | None = None, high: float | None = None, *, along: Tensor | None = None
    ) -> "cutaway.models.edits.Edit":
        """Limit from below, above or both: every number, or with `along` the projection on that direction (normalised
        here) and nothing beside it."""
        return self._edit("clamp", low=low, high=high, value=along)

    def project_out(self, direction: Tensor) -> "cutaway.models.edits.Edit":
        """Remove the component along `direction` (normalised here)."""
        return self._edit("project", value=direction)

    def apply(self, function: Callable[[Tensor], Tensor]) -> "cutaway.models.edits.Edit":
        """Replace by `function(value)`; it gets a copy and must return the same shape."""
        return self._edit("apply", function=function)

    # -- text

    def __str__(self) -> str:
        head = f"{self.path}:{self.port}" if self.kind == "module" else self.kind
        if self.layer is not None:
            head += f".{self.layer}"
        if self.unit is not None:
            letter = LETTERS[self.axis or "head"]
            head += f".{letter}{_numbers(self.unit)}"
        if self.pos is not None:
            head += f"@{self.pos if isinstance(self.pos, str | Where | Span) else _numbers(self.pos)}"
        if self.batch_rows is not None:
            head += f"#{_numbers(self.batch_rows)}"
        return head

    def __repr__(self) -> str:
        return f"Site({str(self)!r})"

    @staticmethod
    def parse(text: str) -> "Site":
        """The site that a text names. TransformerLens names (`blocks.3.attn.hook_z`) and `kind[layer]` are accepted.

        Raises UnknownSite, with the nearest kind, and UsageError for the text of a set ('resid_post.*').

        >>> Site.parse("z.9.h6@end")
        Site('z.9.h6@end')
        >>> Site.parse("blocks.2.hook_resid_post")
        Site('resid_post.2')
        """
        found = parse(text)
        if isinstance(found, SiteSet):
            raise UsageError(
                f"site {text!r}: it names a set of sites, and one is needed here; name its layer and head, or expand "
                "it: model.body.expand(text)",
                site=text,
            )
        return found


def parse(text: str) -> "Site | SiteSet":
    """What a text names: one site, or a set ('resid_post.*', 'resid_pre.2:5', 'z.*.h*@end', 'z.1.h*').

    Raises UnknownSite, with the nearest kind.

    >>> parse("z.*.h*@end")
    SiteSet('z.*.h*@end')
    """
    body, _, rows = text.strip().partition("#")
    body, _, pos = body.partition("@")
    site = _parse_body(body, text)
    if pos:
        span = spans.parse(pos)
        site = site.at(span or (_selection(pos, text) if re.match(r"-?\d", pos) else pos))
    if rows:
        chosen = _selection(rows, text)
        site = site.rows((chosen,) if isinstance(chosen, int) else chosen)
    return site


def _indices(what: str, value: Any) -> int | tuple[int, ...]:
    """One index or several, as whole numbers. Masks and floats are refused: read as numbers they mean other places."""
    try:
        items = list(value)
    except TypeError:
        return _index(what, value)
    return tuple(_index(what, item) for item in items)


def _index(what: str, value: Any) -> int:
    try:
        if not str(getattr(value, "dtype", type(value).__name__)).endswith("bool"):
            return operator.index(value)
    except TypeError:
        pass
    raise UsageError(
        f"{what} {value!r}: a whole number or a list of them is needed, as in 2 or [2, 5]; a mask becomes its indices "
        "by [i for i, on in enumerate(mask) if on], a slice range(2, 5)"
    )


def _numbers(value: int | tuple[int, ...]) -> str:
    if isinstance(value, int):
        return str(value)
    return ",".join(map(str, value)) + ("," if len(value) == 1 else "")


def _selection(numbers: str, text: str) -> int | tuple[int, ...]:
    """'3' is one index, '3,5' several, '3,' a list of one."""
    if not re.fullmatch(r"-?\d+(,-?\d+)*,?", numbers):
        raise UnknownSite(f"site {text!r}: {numbers!r} is no list of numbers; write '3', '3,5' or '3,'", site=text)
    found = tuple(int(number) for number in numbers.split(",") if number)
    return found if "," in numbers else found[0]


_LAYERS = r"\d+|\*|-?\d*:-?\d*(?::-?[1-9]\d*)?"
_BODY = re.compile(
    rf"(?P<kind>[a-z_]+)(?:\.(?P<layer>{_LAYERS})|\[(?P<index>{_LAYERS})\])?(?:\.(?P<letter>[hne])(?P<unit>[\d,]+|\*))?"
)


def _parse_body(body: str, text: str) -> "Site | SiteSet":
    if match := re.fullmatch(rf"blocks\.({_LAYERS})\.(.+)", body):
        if match[2] in TRANSFORMER_LENS:
            return _layered(TRANSFORMER_LENS[match[2]], match[1])
        if ":" not in match[2]:
            raise UnknownSite(
                f"site {text!r}: no such TransformerLens name.{did_you_mean(match[2], TRANSFORMER_LENS)}", site=text
            )
    if body in TRANSFORMER_LENS:
        return Site(TRANSFORMER_LENS[body])
    match = _BODY.fullmatch(body)
    if ":" in body and not match:
        path, _, port = body.rpartition(":")
        return Site("module", path=path, port=port)
    if not match:
        hint = did_you_mean(body.split(".")[0], KINDS)
        raise UnknownSite(
            f"site {text!r}: not of the form kind.layer[.hHEAD|.nNEURON|.eEXPERT][@POSITION][#ROWS], with * or 2:5 "
            f"for many layers and h*, n* or e* for each of them.{hint}",
            site=text,
        )
    site = _layered(match["kind"], match["layer"] or match["index"])
    if not match["letter"]:
        return site
    if match["unit"] == "*":
        return _every_unit(site, match["letter"])
    select = {"n": site.neuron, "h": site.head, "e": site.expert}[match["letter"]]
    return select(_selection(match["unit"], text))


def _layered(kind: str, layers: str | None) -> "Site | SiteSet":
    if layers is None or layers.isdigit():
        return Site(kind, None if layers is None else int(layers))
    template = Site(kind, 0)
    if layers == "*":
        return SiteSet(kind, slice(None), template)
    return SiteSet(kind, slice(*(int(part) if part else None for part in layers.split(":"))), template)


def _every_unit(site: "Site | SiteSet", letter: str) -> "SiteSet":
    found = site if isinstance(site, SiteSet) else SiteSet(site.kind, slice(site.layer, (site.layer or 0) + 1), site)
    template = found.template
    _ = {"n": template.neuron, "h": template.head, "e": template.expert}[letter](0)  # refuses a kind that has none
    return replace(found, template=replace(template, layer=0), units=True)


@dataclass(frozen=True)
class SiteSet:
    """Sites of one kind over a range of layers, each with the same selection; expanded against a model."""

    kind: str
    layers: slice
    template: Site
    units: bool = False
    """One site a head or neuron, instead of one a layer."""

    def heads(self) -> "SiteSet":
        """One site for every head."""
        return replace(self, units=True)

    neurons = experts = heads

    def at(self, position: int | str | Sequence[int] | slice | Where | Span | None) -> "SiteSet":
        """The same positions at every site."""
        return replace(self, template=self.template.at(position))

    def head(self, head: int | Sequence[int]) -> "SiteSet":
        """The same head at every layer."""
        return replace(self, template=self.template.head(head))

    def neuron(self, neuron: int | Sequence[int]) -> "SiteSet":
        """The same neuron at every layer."""
        return replace(self, template=self.template.neuron(neuron))

    def expert(self, expert: int | Sequence[int]) -> "SiteSet":
        """The same expert at every layer."""
        return replace(self, template=self.template.expert(expert))

    def rows(self, rows: Iterable[int]) -> "SiteSet":
        """The same rows at every site."""
        return replace(self, template=self.template.rows(rows))

    def expand(self, n_layers: int, n_units: Callable[[Site], int]) -> list[Site]:
        """The sites, in layer order. `n_units` says how many heads or neurons a site has."""
        found = [replace(self.template, layer=layer) for layer in range(n_layers)[self.layers]]
        if not found:
            raise OutOfRange(f"{self}: no layer of this model (0-{n_layers - 1}) is in the range", site=str(self))
        if not self.units:
            return found
        return [replace(site, unit=unit) for site in found for unit in range(n_units(site))]

    def __str__(self) -> str:
        bare = replace(self.template, pos=None, batch_rows=None)
        head = f"{self.kind}.{self._span()}" + str(bare).removeprefix(f"{self.kind}.{bare.layer}")
        if self.units:
            head += f".{LETTERS[bare.axis or 'head']}*"
        return head + str(self.template).removeprefix(str(bare))

    def __repr__(self) -> str:
        return f"SiteSet({str(self)!r})"

    def _span(self) -> str:
        start, stop, step = self.layers.start, self.layers.stop, self.layers.step
        if (start, stop, step) == (None, None, None):
            return "*"
        if self.units and start is not None and start >= 0 and stop == start + 1 and step is None:
            return str(start)
        ends = [start, stop] + ([] if step is None else [step])
        return ":".join("" if end is None else str(end) for end in ends)


class _Layered:
    """`sites.z`: index it with a layer, or with a slice of layers."""

    def __init__(self, kind: str) -> None:
        self._kind = kind

    def __getitem__(self, layer: int | slice) -> Any:
        if isinstance(layer, slice):
            return SiteSet(self._kind, layer, Site(self._kind, 0))
        return Site(self._kind, layer)

    def __repr__(self) -> str:
        return f"sites.{self._kind}[layer]  # {KINDS[self._kind].meaning}"


class Sites:
    """The vocabulary as attributes: `sites.z[3]`, `sites.embed`, `sites.module(path)`, `sites("z.3.h1")`."""

    module = staticmethod(partial(lambda path, port="output": Site("module", path=path, port=port)))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if name not in KINDS:
            raise UnknownSite(f"sites.{name}: no such kind.{did_you_mean(name, KINDS)}", site=name)
        return _Layered(name) if KINDS[name].layered else Site(name)

    def __call__(self, text: str) -> Any:
        return parse(text)

    def __iter__(self) -> Iterator[str]:
        return iter(KINDS)

    def __dir__(self) -> list[str]:
        return [*KINDS, "module"]


sites = Sites()
