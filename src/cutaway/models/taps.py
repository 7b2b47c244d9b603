"""Taps: the only file that registers hooks. A `Session` holds the reads and edits of one forward pass.

A session owns exactly its own hook handles, the attention setting that it changed and the `forward` entries of the
blocks that it skips, and puts all of them back, also after an exception. Hooks act only in the context that opened the
session: another thread that runs the same model at the same time sees the plain model. Other people's hooks stay.
"""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from cutaway.errors import EditNeverApplied, EngineError, SiteUnavailable
from cutaway.models import attention
from cutaway.models.anatomy import Anatomy, Tap, needs_attention
from cutaway.models.edits import Placed
from cutaway.models.resolve import Call, Trace
from cutaway.models.sites import PATTERN_KINDS, Site

_KEYS_AND_VALUES = ("k", "v")


class Stop(BaseException):
    """Raised inside a forward pass whose last read and edit are done. Never leaves a session."""


@dataclass(frozen=True)
class Resume:
    """Start at a later block: blocks before `layer` pass their input on, the last of them returns `state`."""

    layer: int
    state: Tensor
    """`resid_post` of block `layer - 1`, [batch pos d_model], from the first computed column on."""


class Session:
    """Reads and edits of one forward pass (or of one generation) of one model. A context manager."""

    def __init__(
        self,
        root: nn.Module,
        anatomy: Anatomy | None,
        edits: Sequence[Placed],
        reads: Sequence[Site],
        *,
        shape: tuple[int, int] | None = None,
        start: int = 0,
        resume: Resume | None = None,
        stop_early: bool = False,
        keep_graph: bool = False,
    ) -> None:
        self.root, self.anatomy, self.start, self.resume = root, anatomy, start, resume
        self.shape, self.stop_early, self.keep_graph = shape, stop_early, keep_graph
        self.edits = list(edits)
        self.reads = [site.base for site in dict.fromkeys(reads)]
        self.values: dict[Site, Tensor] = {}
        self.fired = [0] * len(self.edits)
        self.stored = dict.fromkeys(self.reads, 0)
        self._layer_of: dict[int, int] = {}
        self._block_input: dict[int, Tensor] = {}
        self._stack = ExitStack()

    # -- opening and closing

    def __enter__(self) -> "Session":
        try:
            self._install()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> bool:
        self._stack.close()
        return kind is not None and issubclass(kind, Stop)

    def check_fired(self, *, exactly_once: bool = True) -> None:
        """Refuse a pass in which an edit never fired (EditNeverApplied), a site to be read was never reached
        (SiteUnavailable), or either happened more often than once (EngineError)."""
        for site, count in self.stored.items():
            if count == 0:
                raise SiteUnavailable(
                    f"site {site}: it never ran in this pass, so there is nothing to read; read a module that runs",
                    site=str(site),
                    reason="never ran",
                )
            if count > 1:
                raise EngineError(
                    f"site {site}: it ran {count} times in one pass, so that one value would hide the others; "
                    "read a module around it that runs once",
                    site=str(site),
                )
        for placed, count in zip(self.edits, self.fired):
            if count == 0:
                raise EditNeverApplied(
                    f"edit {placed.edit}: it never fired in this run, so the result would be that of no edit; "
                    "choose a site and a position that the run reaches",
                    site=str(placed.site),
                )
            if exactly_once and count > 1:
                raise EngineError(
                    f"edit {placed.edit}: its module ran {count} times in one forward pass; "
                    "edit a module around it that runs once",
                    site=str(placed.site),
                )

    def _install(self) -> None:
        token = attention.active.set(self)
        self._stack.callback(attention.active.reset, token)
        points: dict[tuple[str, str], None] = {}
        for site in [placed.site for placed in self.edits] + self.reads:
            tap = self._tap(site)
            if tap.port != "attention":
                points[(tap.path, tap.port)] = None
            for extra in self._mid_points(site):
                points[extra] = None
        for path, port in points:
            self._hook(path, port)
        if self.anatomy is not None and needs_attention([p.site for p in self.edits] + self.reads):
            self._stack.enter_context(switched(self.root))
            modules = dict(self.root.named_modules())
            self._layer_of = {
                id(modules[layer.attention]): i for i, layer in enumerate(self.anatomy.layers) if layer.attention
            }
        if self.resume is not None:
            self._skip(self.resume)

    def _tap(self, site: Site) -> Tap:
        if self.anatomy is not None:
            return self.anatomy.tap(site)
        if site.kind != "module":
            raise SiteUnavailable(
                f"site {site}: a wrapped module has no anatomy; address it by path, as in sites.module('encoder.0')",
                reason="wrapped module",
            )
        return Tap(site.path or "", "input" if site.port == "input" else "output")

    def _mid_points(self, site: Site) -> list[tuple[str, str]]:
        """An edit between attention and MLP goes through what the attention writes, and needs the block's input."""
        if self.anatomy is None or self.anatomy.carrier(site) == site:
            return []
        layer = self.anatomy.layers[site.layer or 0]
        return [(layer.block, "input"), (layer.taps["attn_write"].path, "output")]

    def _hook(self, path: str, port: str) -> None:
        module = self.root.get_submodule(path)
        at = [i for i, p in enumerate(self.edits) if self._edits_here(p.site, path, port)]
        reads = [site for site in self.reads if self._tap(site) == Tap(path, port)]  # type: ignore[arg-type]
        mids = self._mid_layer(path, port)

        def pre(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if attention.active.get() is not self:
                return None
            put, value = _first_input(args, kwargs, path)
            new = self._visit(value, at, reads, mids)
            return None if new is value else put(new)

        def post(_: nn.Module, __: tuple[Any, ...], output: Any) -> Any:
            if attention.active.get() is not self:
                return None
            put, value = first_output(output, path)
            new = self._visit(value, at, reads, mids)
            return None if new is value else put(new)

        # an edit comes before the hooks of others, which then see it (a recorder of hidden states is one)
        if port == "input":
            handle = module.register_forward_pre_hook(pre, with_kwargs=True, prepend=bool(at))
        else:
            handle = module.register_forward_hook(post, prepend=bool(at))
        self._stack.callback(handle.remove)

    def _edits_here(self, site: Site, path: str, port: str) -> bool:
        extra = self._mid_points(site)
        return (path, port) == extra[1] if extra else self._tap(site) == Tap(path, port)  # type: ignore[arg-type]

    def _mid_layer(self, path: str, port: str) -> int | None:
        """The layer whose block input must be kept at this point."""
        for placed in self.edits:
            extra = self._mid_points(placed.site)
            if extra and (path, port) == extra[0]:
                return placed.site.layer
        return None

    # -- at a site

    def _visit(self, value: Tensor, edits: list[int], reads: list[Site], keep: int | None) -> Tensor:
        rows = self._rows(value)
        new = self._edited(rows, edits, self.start)
        for site in reads:
            new = self._node(new)
            self._store(site, new)
        if keep is not None:
            self._block_input[keep] = new
        self._maybe_stop()
        return value if new is rows else new.reshape(value.shape)

    def _rows(self, value: Tensor) -> Tensor:
        """Flattened tokens back to [batch pos ...]."""
        if (
            self.shape is not None
            and value.ndim == 2
            and value.shape[0] == self.shape[0] * self.shape[1]
            and self.anatomy is not None
        ):
            return value.unflatten(0, self.shape)
        return value

    def _edited(self, value: Tensor, edits: list[int], start: int) -> Tensor:
        out = value
        for i in edits:
            placed = self.edits[i] if self.edits[i].start == start else replace(self.edits[i], start=start)
            fresh = out.clone() if out is value else out
            done = self._edit_mid(placed, fresh) if self._mid_points(placed.site) else placed.apply(fresh)
            if done:
                self.fired[i] += 1
                out = fresh
        return out

    def _edit_mid(self, placed: Placed, write: Tensor) -> bool:
        """resid_mid = resid_pre + write: change the write by as much as the sum is to change."""
        before = self._block_input[placed.site.layer or 0]
        mid = before + write
        changed = mid.clone()
        if not placed.apply(changed):
            return False
        write += changed - mid
        return True

    def at(self, module: nn.Module, kind: str, value: Tensor, q_len: int) -> Tensor:
        """Called by the attention function; `value` is [batch pos head ...], for scores and pattern [batch query
        head key]."""
        layer = self._layer_of[id(module)]
        start = self.start + q_len - value.shape[1] if kind in _KEYS_AND_VALUES else self.start
        edits = [i for i, p in enumerate(self.edits) if p.site.kind == kind and p.site.layer == layer]
        new = self._edited(value, edits, start)
        if kind == "scores" and new is not value:
            # a masked score that an edit took to minus infinity would make NaN of a row that is padding all through
            new = new.clamp(min=torch.finfo(new.dtype).min)
        site = Site(kind, layer)
        if site in self.reads:
            new = self._node(new.transpose(1, 2) if kind in PATTERN_KINDS else new)
            self._store(site, new)
            new = new.transpose(1, 2) if kind in PATTERN_KINDS else new
        self._maybe_stop()
        return new

    def wants(self, module: nn.Module, *kinds: str) -> bool:
        """Some of these sites of this module is read or edited."""
        layer = self._layer_of.get(id(module))
        wanted = [placed.site for placed in self.edits] + self.reads
        return layer is not None and any(site.kind in kinds and site.layer == layer for site in wanted)

    def _node(self, value: Tensor) -> Tensor:
        """With gradients: a node of its own, since others may read the same tensor beside this site."""
        if not self.keep_graph:
            return value
        return value.view_as(value) if value.requires_grad else value.detach().requires_grad_(True)

    def _store(self, site: Site, value: Tensor) -> None:
        self.stored[site] += 1
        self.values[site] = value if self.keep_graph else value.detach().clone(memory_format=torch.contiguous_format)

    def _maybe_stop(self) -> None:
        if self.stop_early and len(self.values) == len(self.reads) and all(self.fired):
            raise Stop

    # -- skipping blocks

    def _skip(self, resume: Resume) -> None:
        assert self.anatomy is not None
        for index, layer in enumerate(self.anatomy.layers[: resume.layer]):
            block = self.root.get_submodule(layer.block)
            state = resume.state if index == resume.layer - 1 else None
            self._stack.enter_context(
                _forward_replaced(block, self._passing(block.forward, state, layer.returns_tuple))
            )

    def _passing(self, original: Callable[..., Any], state: Tensor | None, as_tuple: bool) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            if attention.active.get() is not self:
                return original(*args, **kwargs)
            value = state if state is not None else _first_input(args, kwargs, "block")[1]
            return (value,) if as_tuple else value

        return forward


@contextmanager
def _forward_replaced(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Put a `forward` entry on the instance and put back what was there (accelerate keeps its own one there)."""
    missing = object()
    before = module.__dict__.get("forward", missing)
    module.__dict__["forward"] = forward
    try:
        yield
    finally:
        if before is missing:
            del module.__dict__["forward"]
        else:
            module.__dict__["forward"] = before


# -- the attention setting, shared by all sessions of a model

_lock = threading.Lock()
_settings: dict[int, "_Setting"] = {}
"""For each config (by its id) whose attention is switched: who uses it, and what to put back after the last of them."""


@dataclass
class _Setting:
    config: Any
    before: str | None
    users: int = 0


@contextmanager
def switched(root: nn.Module) -> Iterator[None]:
    """The model's attention runs through our function while this is open; what was set before is put back.

    Counted by config, because the setting lives there: models may share one, and sessions may overlap.
    """
    found: list[Any] = [getattr(module, "config", None) for module in root.modules()]
    configs: dict[int, Any] = {
        id(config): config for config in found if hasattr(config, "_attn_implementation_internal")
    }
    with _lock:
        for key, config in configs.items():
            setting = _settings.setdefault(key, _Setting(config, config._attn_implementation_internal))
            setting.users += 1
            config._attn_implementation_internal = attention.register(setting.before or "eager")
    try:
        yield
    finally:
        with _lock:
            for key, config in configs.items():
                _settings[key].users -= 1
                if _settings[key].users == 0:
                    config._attn_implementation_internal = _settings.pop(key).before


# -- hooks of others


def others_hook(root: nn.Module) -> str | None:
    """The path of a module with a forward hook that is neither ours nor transformers' nor accelerate's; None
    without."""
    known = ("cutaway", "transformers", "accelerate")
    for path, module in root.named_modules():
        for hook in [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]:
            owner = getattr(hook, "__module__", None) or type(hook).__module__
            if owner.partition(".")[0] not in known:
                return path or type(root).__name__
    return None


# -- the first tensor of a call


def _first_input(args: tuple[Any, ...], kwargs: dict[str, Any], path: str) -> tuple[Callable[[Tensor], Any], Tensor]:
    i = next((i for i, item in enumerate(args) if isinstance(item, Tensor)), None)
    if i is not None:
        return (lambda new: ((*args[:i], new, *args[i + 1 :]), kwargs)), args[i]
    name = next((name for name in ["hidden_states", *kwargs] if isinstance(kwargs.get(name), Tensor)), None)
    if name is not None:
        return (lambda new: (args, {**kwargs, name: new})), kwargs[name]
    raise SiteUnavailable(f"module {path!r}: it was called without a tensor", reason="no tensor input")


def first_output(output: Any, path: str) -> tuple[Callable[[Tensor], Any], Tensor]:
    if isinstance(output, Tensor):
        return (lambda new: new), output
    if isinstance(getattr(output, "logits", None), Tensor):
        return (lambda new: _with_logits(output, new)), output.logits
    if isinstance(output, tuple | list):
        i = next((i for i, item in enumerate(output) if isinstance(item, Tensor)), None)
        if i is not None:
            return (lambda new: type(output)([*output[:i], new, *output[i + 1 :]])), output[i]
    if isinstance(output, Mapping):
        name = next((name for name, item in output.items() if isinstance(item, Tensor)), None)
        if name is not None:
            return (lambda new: type(output)(**{**output, name: new})), output[name]
    raise SiteUnavailable(
        f"module {path!r}: its output {type(output).__name__} holds no tensor", reason="no tensor output"
    )


def _with_logits(output: Any, logits: Tensor) -> Any:
    changed = type(output)(**output)
    changed["logits"] = logits
    return changed


# -- watching one pass


class _Watch:
    """The attention session of a trace: records q, k, v, z by module path and changes nothing."""

    def __init__(self, root: nn.Module, trace: Trace) -> None:
        self.paths = {id(module): name for name, module in root.named_modules()}
        self.trace = trace

    def at(self, module: nn.Module, kind: str, value: Tensor, q_len: int) -> Tensor:  # noqa: ARG002 - the interface
        self.trace.attention.setdefault(self.paths[id(module)], {})[kind] = value.detach().clone()
        return value

    def wants(self, module: nn.Module, *kinds: str) -> bool:  # noqa: ARG002 - the interface
        return bool({"q", "k", "v", "z"} & set(kinds))


def watch(root: nn.Module, run: Callable[[], Any], *, with_attention: bool) -> Trace:
    """Run once and record every module call and every attention call. Leaves nothing behind."""
    trace = Trace()
    clock = iter(range(10**9))
    with ExitStack() as stack:
        for path, module in root.named_modules():
            _watch_module(path, module, trace, clock, stack)
        if with_attention:
            stack.enter_context(switched(root))
            token = attention.active.set(_Watch(root, trace))
            stack.callback(attention.active.reset, token)
        with torch.no_grad():
            run()
    return trace


def _watch_module(path: str, module: nn.Module, trace: Trace, clock: Iterator[int], stack: ExitStack) -> None:
    open_calls: list[Call] = []

    def pre(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        call = Call(path, module, next(clock))
        try:
            call.input = _first_input(args, kwargs, path)[1].detach().clone()
        except SiteUnavailable:
            call.input = None
        open_calls.append(call)
        trace.calls.append(call)

    def post(_: nn.Module, __: tuple[Any, ...], output: Any) -> None:
        call = open_calls.pop()
        call.end = next(clock)
        call.tuple_output = isinstance(output, tuple | list)
        try:
            call.output = first_output(output, path)[1].detach().clone()
        except SiteUnavailable:
            call.output = None

    stack.callback(module.register_forward_pre_hook(pre, with_kwargs=True).remove)
    stack.callback(module.register_forward_hook(post).remove)
