"""Relevance rules: other slopes through some steps of a network, at call time, with every value as it was.

    norms        y = w (x - mean) / s + b     the scale s is held: the norm passes slopes on as a linear map
    activations  y = f(x)                     x f(x)/x with the quotient held, instead of f'(x)
    gates        y = f(g) u                   each of the two factors gets half of the slope
    pattern      z = sum of p v               the attention weights p are held: nothing passes through queries and keys

With the first three, activation x slope spreads the output over a layer's parts as layer-wise relevance propagation
does (the rules LN, identity and half of RelP). A rule is a set of edits of the run that it is wanted for. Each puts a
node into the graph that has the value of the step and the slope of the rule; no module, weight or hook is changed.

Sources: Jafari et al. 2025 (RelP, arXiv 2508.21258); Achtibat et al. 2024 (AttnLRP, arXiv 2402.05602); Ali et al. 2022
(arXiv 2202.07304).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from cutaway.errors import SiteUnavailable, UnknownName, UsageError, did_you_mean
from cutaway.models.edits import Edit
from cutaway.models.sites import Site

if TYPE_CHECKING:
    import cutaway.models.model

RULES = ("norms", "activations", "gates", "pattern")
USUAL = ("norms", "activations", "gates")
"""The rules that are taken when none is named, as far as the model allows them."""

STEEP = 10.0
"""Largest f(x)/x near x = 0 that an activation may have: one with f(0) other than 0 has no identity rule."""


@dataclass(frozen=True)
class Rules:
    """Rules that a model allows, chosen before anything runs."""

    names: tuple[str, ...] = ()
    refused: tuple[tuple[str, str], ...] = ()
    """Rules that were not named and that the model does not allow, each with the reason."""
    norms: tuple[str, ...] = ()
    """Paths of the norms."""


def choose_rules(model: "cutaway.models.model.Model", names: Sequence[str] | None = None) -> Rules:
    """The rules of these names; None: those of USUAL that the model allows, with the reasons for the others.

    Nothing is run. Raises UnknownName, SiteUnavailable for a named rule that the architecture does not allow.
    """
    if isinstance(names, str):
        raise UsageError(f"rules={names!r}: give a list of names, as in rules=[{names!r}]", rules=names)
    for name in names or ():
        if name not in RULES:
            raise UnknownName(f"rule {name!r}: it is one of {', '.join(RULES)}.{did_you_mean(name, RULES)}", name=name)
    wanted = USUAL if names is None else tuple(dict.fromkeys(names))
    norms = tuple(path for path, part in model.module.named_modules() if _is_norm(part))
    reasons = {name: reason for name in wanted if (reason := _refusal(model, name, norms))}
    if names is not None and reasons:
        name, reason = next(iter(reasons.items()))
        raise SiteUnavailable(
            f"rule {name!r}: {model.name} does not allow it: {reason}; leave it out", rule=name, reason=reason
        )
    return Rules(tuple(name for name in wanted if name not in reasons), tuple(reasons.items()), norms)


def _is_norm(part: nn.Module) -> bool:
    return "norm" in type(part).__name__.lower() and not any(True for _ in part.children())


def _refusal(model: "cutaway.models.model.Model", name: str, norms: tuple[str, ...]) -> str:
    """Why the model does not allow a rule; '' when it does."""
    if name == "norms":
        return "" if norms else "no layer norm was found in it"
    kinds = {"activations": ("mlp_pre",), "gates": ("mlp_pre", "mlp_act"), "pattern": ("q", "k")}[name]
    for layer in range(model.body.n_layers):
        for kind in kinds:
            status = model.body.status(Site(kind, layer))
            if status.state == "refused" or not status.editable:
                return f"site '{kind}.{layer}': {status.reason or 'it is not there'}"
            tap = model.body.layers[layer].taps[kind]
            if kind == "mlp_pre" and (tap.port != "input" or not tap.path):
                return f"site 'mlp_pre.{layer}': no module of its own computes the activation function"
    return ""


@dataclass
class Pass:
    """The rules in one pass: its edits, and what turned out in it."""

    model: "cutaway.models.model.Model"
    rules: Rules
    edits: list[Edit] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    _seen: dict[str, Tensor] = field(default_factory=dict)
    """By path, what a module took in; by 'act.L' what an activation function gave."""

    def __post_init__(self) -> None:
        body, names = self.model.body, self.rules.names
        if "norms" in names:
            for path in self.rules.norms:
                self._around(path, self._norm)
        for layer in range(body.n_layers):
            if "activations" in names or "gates" in names:
                path = body.layers[layer].taps["mlp_pre"].path
                self._around(path, self._activation if "activations" in names else self._plain)
            if "gates" in names:
                path = body.layers[layer].taps["mlp_pre"].path
                self.edits.append(Site("mlp_act", layer).apply(lambda value, path=path: self._gate(path, value)))
            if "pattern" in names:
                self.edits += [Site(kind, layer).apply(Tensor.detach) for kind in ("q", "k")]

    def check(self) -> None:
        """Refuse (SiteUnavailable) when a step was not what its rule takes it for."""
        if self.problems:
            raise SiteUnavailable(f"{self.problems[0]}; leave the rule out", reason=self.problems[0])

    def _around(self, path: str, rule: Callable[[str, Tensor, Tensor], Tensor]) -> None:
        """See what a module takes in, and let `rule` say how its output depends on it."""

        def keep(value: Tensor) -> Tensor:
            self._seen[path] = value
            return value

        self.edits.append(Site("module", path=path, port="input").apply(keep))
        self.edits.append(
            Site("module", path=path, port="output").apply(lambda value: rule(path, self._seen.pop(path), value))
        )

    def _norm(self, path: str, x: Tensor, y: Tensor) -> Tensor:
        through = _held_norm(self.model.module.get_submodule(path), x, y)
        if through is None:
            self.problems.append(
                f"rule 'norms': {path} ({type(self.model.module.get_submodule(path)).__name__}) is neither a layer "
                "norm nor an RMS norm of its last axis"
            )
            return y
        return with_slope_of(y, through)

    def _activation(self, path: str, x: Tensor, y: Tensor) -> Tensor:
        quotient = torch.where(x == 0, 0.0, y / torch.where(x == 0, 1.0, x)).detach()
        near = quotient[x.abs() < 1e-2]
        if len(near) and float(near.abs().max()) > STEEP:
            self.problems.append(f"rule 'activations': {path} is not 0 at 0, so its value over its input has no limit")
        return self._plain(path, x, with_slope_of(y, x * quotient))

    def _plain(self, path: str, x: Tensor, y: Tensor) -> Tensor:  # noqa: ARG002 - as the others
        self._seen[f"{path} gave"] = y
        return y

    def _gate(self, path: str, product: Tensor) -> Tensor:
        """Half of the slope to each factor, where the neurons are the activation's output times something else."""
        factor = self._seen.pop(f"{path} gave")
        if torch.equal(factor, product):
            return product
        with torch.enable_grad():
            (other,) = torch.autograd.grad(product.sum(), factor, retain_graph=True, allow_unused=True)
        if other is None or not torch.allclose(other * factor, product, rtol=1e-2, atol=1e-6):
            self.problems.append(f"rule 'gates': the neurons behind {path} are no product with what it gives")
        return with_slope_of(product, 0.5 * product)


def _held_norm(module: Any, x: Tensor, y: Tensor) -> Tensor | None:
    """The norm of `x` with its scale held; None when no form of a norm gives `y`."""
    eps = next((float(v) for n in ("eps", "variance_epsilon", "epsilon") if (v := getattr(module, n, None))), 0.0)
    weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
    wide = x if x.dtype == torch.float64 else x.float()
    gains = [1.0] if weight is None else [weight, 1.0 + weight]
    room = {torch.bfloat16: 2e-2, torch.float16: 2e-3}.get(y.dtype, 1e-4) * float(y.detach().abs().max())
    for centred in (True, False) if isinstance(module, nn.LayerNorm) else (False, True):
        middle = wide - wide.mean(-1, keepdim=True) if centred else wide
        scale = (middle.detach().square().mean(-1, keepdim=True) + eps).sqrt()
        for gain in gains:
            held = gain.detach() if isinstance(gain, Tensor) else gain
            found = middle / scale * held
            found = (found if bias is None else found + bias.detach()).to(y.dtype)
            if found.shape == y.shape and float((found - y).detach().abs().max()) <= room:
                return found
    return None


class _SlopeOf(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, through: Tensor) -> Tensor:  # noqa: ARG004 - autograd's interface
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[None, Tensor]:  # noqa: ARG004 - autograd's interface
        return None, slopes[0]


def with_slope_of(value: Tensor, through: Tensor) -> Tensor:
    """The value of one tensor, bit for bit, with the slope of another of its shape."""
    return _SlopeOf.apply(value.detach(), through)  # type: ignore[return-value]


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, is_open: Callable[[], bool]) -> Tensor:
        ctx.is_open = is_open
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor, None]:
        return (slopes[0] if ctx.is_open() else torch.zeros_like(slopes[0])), None


def gated(value: Tensor, is_open: Callable[[], bool]) -> Tensor:
    """The same value; slopes pass only while `is_open()`."""
    return _Gated.apply(value, is_open)  # type: ignore[return-value]
