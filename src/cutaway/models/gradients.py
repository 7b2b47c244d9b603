"""Gradients of one scalar with respect to sites: one forward pass, and one backward pass whatever the number of sites.

The scalar is a number made of the logits (`grad`), or of the logits and of sites (`backward`): a neuron, a head's
output along a direction. Two things may be asked of the backward pass beyond the derivative: that some steps pass
slopes on by relevance rules (models/relevance.py), and that it is repeated with nothing passing through some sites.

A pass whose activations are recomputed later (gradient checkpointing) is refused: the recomputation would run without
the reads and edits of this one, and its gradients would be those of another run.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor

from cutaway.errors import UsageError
from cutaway.models.activations import Activations
from cutaway.models.edits import Edit, Placed, edits_of
from cutaway.models.forward import LogitsAt, Raw, check, forward, logit_columns, memory_named, refuse_passed
from cutaway.models.relevance import Pass, Rules, gated
from cutaway.models.sites import Site
from cutaway.models.taps import Resume, Session
from cutaway.models.tokens import Tokens

if TYPE_CHECKING:
    import cutaway.models.model

Target: TypeAlias = Callable[[Tensor | None, Mapping[Site, Tensor]], Tensor]
"""One number from the logits [batch pos d_vocab] (None when none were asked for) and the sites that were read."""

CHECKPOINTED = (
    "a part of this model recomputes its activations in the backward pass (gradient checkpointing), where reads and "
    "edits are no longer in force; switch it off, as by model.module.gradient_checkpointing_disable()"
)


@dataclass(frozen=True)
class Gradients:
    """A metric, the activations at the sites, and d metric / d activation of the same shapes."""

    metric: float
    activations: Activations
    gradients: Activations
    cut: tuple[Activations, ...] = ()
    """For each set of `without` the gradients when no slope passes through its sites."""


def grad(
    model: "cutaway.models.model.Model",
    tokens: Tokens,
    metric: Callable[[Tensor], Tensor],
    wanted: Sequence[Site],
    edits: Sequence[Edit] = (),
) -> Gradients:
    """d metric(logits) / d site, for every site, at the (edited) run. Parameters get no gradients and keep their flags.

    `metric` maps logits [batch pos d_vocab] to one number; sum over rows for per-example gradients, since rows do not
    mix. A site that the metric does not depend on gets zeros. Cost: one forward with stored graph and one backward.
    """

    def target(logits: Tensor | None, _: Mapping[Site, Tensor]) -> Tensor:
        assert logits is not None  # all were asked for
        return metric(logits)

    return backward(model, tokens, target, wanted, edits=edits)


def backward(
    model: "cutaway.models.model.Model",
    tokens: Tokens,
    target: Target,
    wanted: Sequence[Site],
    *,
    reads: Sequence[Site] = (),
    logits: LogitsAt = "all",
    edits: Sequence[Edit] = (),
    rules: Rules | None = None,
    without: Sequence[Sequence[Site]] = (),
    resume: Resume | None = None,
) -> Gradients:
    """d target / d site, for every site, at the (edited) run; parameters as in `grad`.

    Cost: one forward with stored graph, one backward, and one more for each set of `without`. Raises SiteUnavailable
    where a step is not what a rule takes it for, UsageError for a target that is no number of the run and for a model
    that recomputes activations.

    Args:
        reads: whole sites that the target is made of; `target` gets them by their site, shaped as in cutaway.axes.
        logits: those that the target is given; "none" ends the pass after the deepest site.
        rules: steps that pass slopes on otherwise than by their derivative; values do not change.
        without: for each set of sites, the gradients are taken once more with no slope passing through them.
        resume: begin at a later block, from a stored residual stream.
    """
    closed: set[Site] = set()
    in_pass = Pass(model, rules or Rules())
    gates = [
        site.apply(lambda value, site=site: gated(value, lambda: site not in closed))
        for site in dict.fromkeys(site.base for group in without for site in group)
    ]
    placed = [Placed(edit, tokens) for edit in [*edits_of(edits), *in_pass.edits, *gates]]
    check(model, placed, [*wanted, *reads])
    bases = list(dict.fromkeys(site.base for site in wanted))
    # what is read where a module takes it in may go on elsewhere too: the slope is taken where a change would be made
    carriers = {site: model.body.carrier(site) for site in bases}
    seen = list(dict.fromkeys([*bases, *carriers.values(), *(site.base for site in reads)]))
    with _kept_whole():
        columns = logit_columns(tokens, logits)
        found, values = forward(model, tokens, edits=placed, reads=seen, logits=columns, resume=resume, keep_graph=True)
    in_pass.check()
    with torch.enable_grad():
        scalar = target(found, {site.base: values[site.base] for site in reads})
    _check_scalar(scalar)

    def slopes(again: bool) -> Activations:
        nodes = [values[carriers[site]] for site in bases]
        given = torch.autograd.grad(scalar, nodes, allow_unused=True, retain_graph=again)
        taken = {site: torch.zeros_like(values[site]) if g is None else g.detach() for site, g in zip(bases, given)}
        return Activations(taken, tokens, model.digest)

    plain, cut = slopes(again=bool(without)), []
    for i, group in enumerate(without):
        closed.update(site.base for site in group)
        cut.append(slopes(again=i + 1 < len(without)))
        closed.clear()
    kept = {site: values[site].detach().clone() for site in bases}
    return Gradients(float(scalar.detach()), Activations(kept, tokens, model.digest), plain, tuple(cut))


def backward_raw(
    model: "cutaway.models.model.Model",
    inputs: Raw,
    target: Callable[[Any, Mapping[Site, Tensor]], Tensor],
    wanted: Sequence[Site],
    *,
    reads: Sequence[Site] = (),
    edits: Sequence[Edit] = (),
) -> Gradients:
    """The same for a wrapped module: sites are those of its modules, the target gets the module's own output."""
    refuse_passed(inputs, edits_of(edits))
    placed = [Placed(edit, None) for edit in edits_of(edits)]
    check(model, placed, [*wanted, *reads])
    session = Session(model.module, None, placed, [*wanted, *reads], keep_graph=True)
    rows = next((len(t) for t in [*inputs.args, *inputs.kwargs.values()] if isinstance(t, Tensor) and t.ndim), 1)
    out: Any = None
    with _kept_whole(), memory_named(rows), torch.enable_grad(), session:
        out = model.module(*inputs.args, **inputs.kwargs)
    session.check_fired()
    values = session.values
    with torch.enable_grad():
        scalar = target(out, {site.base: values[site.base] for site in reads})
    _check_scalar(scalar)
    bases = list(dict.fromkeys(site.base for site in wanted))
    given = torch.autograd.grad(scalar, [values[site] for site in bases], allow_unused=True)
    slopes = {site: torch.zeros_like(values[site]) if g is None else g.detach() for site, g in zip(bases, given)}
    kept = {site: values[site].detach().clone() for site in bases}
    return Gradients(
        float(scalar.detach()), Activations(kept, None, model.digest), Activations(slopes, None, model.digest)
    )


def _check_scalar(scalar: Any) -> None:
    if torch.is_inference_mode_enabled():
        raise UsageError(
            "gradients are asked for inside torch.inference_mode(), which records none; leave that block, or use "
            "torch.no_grad() there"
        )
    if not isinstance(scalar, Tensor) or scalar.ndim != 0 or not scalar.requires_grad:
        shape = tuple(scalar.shape) if isinstance(scalar, Tensor) else type(scalar).__name__
        raise UsageError(
            f"metric: it must return one number that depends on the logits; got shape {shape}, "
            f"requires_grad={getattr(scalar, 'requires_grad', False)}"
        )
    _refuse_recomputed(scalar)


class _kept_whole:
    """A forward pass whose graph keeps all that it needs; one that would recompute parts of it is refused."""

    def __enter__(self) -> None:
        self._off = torch.autograd.graph.disable_saved_tensors_hooks(CHECKPOINTED)
        self._off.__enter__()

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        self._off.__exit__(kind, error, trace)
        if isinstance(error, RuntimeError) and CHECKPOINTED in str(error):
            raise UsageError(CHECKPOINTED) from error


def _refuse_recomputed(scalar: Tensor) -> None:
    """The older kind of checkpointing leaves a node of its own in the graph, and no graph behind it."""
    stack, seen = [scalar.grad_fn], set()
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node.name().startswith("CheckpointFunction"):
            raise UsageError(CHECKPOINTED)
        stack.extend(before for before, _ in node.next_functions)
