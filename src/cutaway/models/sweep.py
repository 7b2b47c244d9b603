"""Sweep: load a tiny random model of every type that transformers has a causal head for, and of encoders,
encoder-decoders, vision, audio and multimodal models, audit it, and say what was found.

A type that transformers itself cannot build or run is 'not built', one that `load` refuses is 'refused', each with its
reason; whatever a type raises, and whatever time it takes, is a row and never the end of the sweep.
"""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from cutaway.errors import CutawayError
from cutaway.models import tinies
from cutaway.models.attention import FUSED, SOFTMAX
from cutaway.models.audit import probe_ids
from cutaway.models.forward import Raw, accepted
from cutaway.models.load import load, runs_on_tokens
from cutaway.models.model import Model
from cutaway.models.sites import KINDS, PATTERN_KINDS, Site
from cutaway.models.taps import first_output

SECONDS: Final = 120.0
"""The longest that one type may take."""


@dataclass(frozen=True)
class TypeRow:
    """What was found of one type."""

    model_type: str
    group: str
    """'causal', 'encoder', 'encoder-decoder', 'vision', 'audio' or 'multimodal'."""
    status: str
    """'exact': loaded, and every bit of its output is Hugging Face's own with all its sites read; 'differs';
    'refused': load says why not; 'not built': transformers cannot make or run it from a tiny configuration."""
    reason: str = ""
    module: str = ""
    """Its class."""
    difference: float | None = None
    """Largest difference of its output to Hugging Face's own."""
    layers: int = 0
    decomposed: int = 0
    """Layers whose writes were proved to add up."""
    softmaxes: int = 0
    """Attentions that Hugging Face's own pass computes."""
    patterns: int = 0
    """Layers with a verified pattern that can be edited."""
    resume: str = ""
    """'' when starting at a later layer is exact; else why not, as a plan is told."""
    sites: dict[str, str] = field(default_factory=dict)
    """Kind of site to 'verified', 'readable' (no edit reaches the output), 'part' (in some layers), or the reason why
    it is refused."""

    @property
    def whole(self) -> bool:
        """Every layer's writes add up."""
        return self.layers > 0 and self.decomposed == self.layers


def types() -> list[str]:
    """All types of the sweep: those with a causal head, then the others that `types.toml` names."""
    causal = tinies.causal_types()
    return [*causal, *(name for name in tinies.table()["types"] if name not in causal)]


def sweep(names: Sequence[str] | None = None, progress: Callable[[int, int], None] | None = None) -> list[TypeRow]:
    """One row a type. Cost: building and auditing a model of two layers, half a second to five a type."""
    found = []
    names = types() if names is None else names
    for done, name in enumerate(names):
        if progress is not None:
            progress(done, len(names))
        found.append(row(name))
    if progress is not None:
        progress(len(names), len(names))
    return found


def row(model_type: str) -> TypeRow:
    """What is found of one type."""
    group = tinies.table()["types"].get(model_type, {}).get("group", "causal")
    try:
        with _quiet(), _limited(SECONDS):
            return _row(model_type, group)
    except _TooLong:
        return TypeRow(model_type, group, "refused", f"took longer than {SECONDS:.0f} s")
    except Exception as error:  # noqa: BLE001 - whatever a foreign architecture raises is its row
        return TypeRow(model_type, group, "refused", _said(error))


def _row(model_type: str, group: str) -> TypeRow:
    try:
        module = tinies.tiny(model_type)
        given = _inputs(module)
        plain, softmaxes = _plain(module, given)
    except tinies.NotBuilt as error:
        return TypeRow(model_type, group, "not built", str(error))
    name = type(module).__name__
    try:
        model = load(module)
    except CutawayError as error:
        return TypeRow(model_type, group, "refused", str(error), name, softmaxes=softmaxes)
    body = model.body
    verified = [site for site in body.sites() if body.status(site).state == "verified"]
    difference = float((_ours(model, given, verified) - plain).abs().max())
    return TypeRow(
        model_type,
        group,
        "exact" if difference == 0.0 else "differs",
        "",
        name,
        difference,
        layers=body.n_layers,
        decomposed=sum(_decomposed(model, layer) for layer in range(body.n_layers)),
        softmaxes=softmaxes,
        patterns=sum(site.kind == "pattern" and body.status(site).editable for site in verified),
        resume=body.resume,
        sites=_sites(model),
    )


def _inputs(module: nn.Module) -> Raw:
    from cutaway.models.examples import example

    if not runs_on_tokens(module):
        given = example(module)
        if given is None:
            raise tinies.NotBuilt("its configuration does not say what it takes")
        return given
    return Raw((), {"input_ids": probe_ids(module, rows=2, length=7)})


def _plain(module: nn.Module, given: Raw) -> tuple[Tensor, int]:
    """What Hugging Face's own call returns, and how many attentions it computed on the way."""
    kwargs = dict(given.kwargs)
    if runs_on_tokens(module) and "use_cache" in accepted(module.forward):
        kwargs["use_cache"] = False
    try:
        if runs_on_tokens(module):  # as anyone would call it, and with another number of rows
            with torch.no_grad():
                module(input_ids=kwargs["input_ids"][:1])
        with torch.no_grad(), _Attentions() as seen:
            out = first_output(module(*given.args, **kwargs), "")[1]
    except Exception as error:
        raise tinies.NotBuilt(f"its own pass fails: {_said(error)}") from error
    if not bool(out.isfinite().all()):
        raise tinies.NotBuilt("its own output is not finite")
    return out, seen.count


class _Attentions(TorchFunctionMode):
    """Counts softmaxes over [query key], and fused attention kernels."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        heads = isinstance(out, Tensor) and out.ndim >= 3 and out.shape[-1] >= out.shape[-2] > 1
        self.count += func is FUSED or (func in SOFTMAX and heads)
        return out


def _ours(model: Model, given: Raw, verified: list[Site]) -> Tensor:
    """The output of a run that reads every verified site (patterns aside, which need the eager kernel)."""
    reads = [site for site in verified if site.kind not in PATTERN_KINDS]
    if model.example is not None:
        from cutaway.models.forward import run_raw

        return first_output(run_raw(model, given, [], reads)[0], "")[1]
    tokens = model.encode(given.kwargs["input_ids"])
    if "logits" in model.body.taps:
        logits = model.run(tokens, reads=reads).logits
        assert logits is not None
        return logits
    with torch.no_grad():
        return first_output(model.module(**model.inputs(tokens)), "")[1]


def _decomposed(model: Model, index: int) -> bool:
    layer = model.body.layers[index]
    kinds = [kind for kind in ("resid_pre", "attn_write", "mlp_write", "resid_post") if kind in layer.taps]
    return bool(layer.steps) and all(model.body.status(Site(kind, index)).state == "verified" for kind in kinds)


def _sites(model: Model) -> dict[str, str]:
    body, found = model.body, {}
    for kind in KINDS:
        sites = [Site(kind, layer) for layer in range(body.n_layers)] if KINDS[kind].layered else [Site(kind)]
        states = [body.status(site) for site in sites]
        good = [status for status in states if status.state == "verified"]
        if not good:
            found[kind] = states[0].reason
        elif len(good) < len(states):
            found[kind] = "part"
        else:
            found[kind] = "verified" if all(status.editable for status in good) else "readable"
    return found


def summary(rows: Sequence[TypeRow]) -> dict[str, int]:
    """Counts over the causal types that transformers can build: how many load exactly, decompose, have an editable
    pattern for each attention, resume exactly."""
    built = [row for row in rows if row.group == "causal" and row.status != "not built"]
    attends = [row for row in built if row.softmaxes]
    return {
        "causal types": sum(row.group == "causal" for row in rows),
        "built": len(built),
        "loaded and bit-exact": sum(row.status == "exact" for row in built),
        "decomposed": sum(row.whole for row in built),
        "with softmax attention": len(attends),
        "with an editable pattern": sum(row.patterns > 0 for row in attends),
        "with every pattern editable": sum(row.patterns >= row.softmaxes for row in attends),
        "resume exactly": sum(row.status == "exact" and not row.resume for row in built),
    }


def as_data(rows: Sequence[TypeRow]) -> dict[str, Any]:
    """Versions, summary and rows as one document."""
    import transformers

    versions = {"transformers": transformers.__version__, "torch": torch.__version__.partition("+")[0]}
    return {"versions": versions, "summary": summary(rows), "types": [asdict(row) for row in rows]}


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


class _TooLong(BaseException):
    """Not caught by what a model's code catches."""


@contextlib.contextmanager
def _limited(seconds: float) -> Iterator[None]:
    """Ends what runs longer, where a signal can (the main thread of Unix)."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return

    def stop(*_: Any) -> None:
        raise _TooLong

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Remarks of transformers on odd configurations are not about this sweep."""
    import warnings

    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(before)
