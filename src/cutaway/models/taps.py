"""Taps: the only file that registers hooks. A `Session` holds the reads and edits of one forward pass.

A session owns exactly its own hook handles, the attention setting that it changed and the `forward` entries of the
blocks that it skips, and puts all of them back, also after an exception. Hooks act only in the context that opened the
session: another thread that runs the same model at the same time sees the plain model. Other people's hooks stay.
"""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from cutaway.errors import EditNeverApplied, EngineError, SiteUnavailable
from cutaway.models import attention, experts
from cutaway.models.anatomy import Anatomy, LayerMap, Tap
from cutaway.models.conditions import Condition, Signal
from cutaway.models.edits import Placed
from cutaway.models.sites import PATTERN_KINDS, Site
from cutaway.models.trace import Call, Kernel, Trace

_KEYS_AND_VALUES = ("k", "v")


class Stop(BaseException):
    """Raised inside a forward pass whose last read and edit are done. Never leaves a session."""


@dataclass
class _Point:
    """One place of a pass where something is read or edited."""

    tap: Tap
    layer: int | None = None
    edits: list[int] = field(default_factory=list)
    reads: list[Site] = field(default_factory=list)
    probes: list[Condition] = field(default_factory=list)
    """Conditions of edits, to be read here."""
    keep: int | None = None
    """The layer whose block input is to be kept here."""
    calls: int = 0


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
        borrow: bool = False,
    ) -> None:
        """`borrow`: keep values without a copy where that can be done, and say in `overwritten` which of them the
        pass wrote over (the audit asks this)."""
        self.asked, self.overwritten = borrow, set[Site]()
        self.root, self.anatomy, self.start, self.resume = root, anatomy, start, resume
        self.shape, self.stop_early, self.keep_graph = shape, stop_early, keep_graph
        self.edits = list(edits)
        self.reads = [site.base for site in dict.fromkeys(reads)]
        self.values: dict[Site, Tensor] = {}
        self.fired = [0] * len(self.edits)
        self.stored = dict.fromkeys(self.reads, 0)
        self._inside: dict[int, dict[str, _Point]] = {}
        """By the id of an attention or experts module: what is read and edited inside its call, by kind."""
        self._block_input: dict[int, Tensor] = {}
        self._mids: set[int] = set()
        """Edits between attention and MLP."""
        self._borrowed: dict[Site, int] = {}
        """Sites stored without a copy, with the version of the tensor when it was read."""
        self._borrows = False
        self._signals: dict[Condition, Signal] = {}
        """What the conditions of edits have read in this pass, and in the passes that it goes on from."""
        self._stack = ExitStack()

    # -- opening and closing

    def __enter__(self) -> "Session":
        try:
            self._stack.enter_context(self.acting())
            self._install()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> bool:
        self._stack.close()
        if kind is None or issubclass(kind, Stop):
            self._settle()
        return kind is not None and issubclass(kind, Stop)

    @contextmanager
    def acting(self) -> Iterator[None]:
        """The hooks of this session act, in this context."""
        token = attention.active.set(self)
        try:
            yield
        finally:
            attention.active.reset(token)

    @contextmanager
    def over_steps(self) -> Iterator["Session"]:
        """In place for several passes, each of them declared with `step` and run under `acting`; between them the model
        is the plain one to everybody."""
        try:
            self._install()
            yield self
        finally:
            self._stack.close()

    def step(self, edits: Sequence[Placed], start: int, shape: tuple[int, int]) -> None:
        """The next pass: the same edits in the same order, on its rows and columns."""
        self.edits, self.start, self.shape = list(edits), start, shape
        if start == 0:
            self._signals.clear()

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
        points = self._points()
        self._borrows = self._may_borrow()
        for point in points.values():
            self._hook(point)
        if self._inside:
            self._enter_kernels()
        if self.resume is not None:
            self._skip(self.resume)

    def _points(self) -> "dict[Tap, _Point]":
        """What is read and edited, by where it is; what lies inside an attention or experts call goes to `_inside`."""
        points: dict[Tap, _Point] = {}

        def point(site: Site) -> _Point:
            tap = self._tap(site)
            if tap.port not in ("attention", "experts"):
                return points.setdefault(tap, _Point(tap))
            inside = self._inside.setdefault(id(_module_at(self.root, tap.path)), {})
            return inside.setdefault(site.kind, _Point(tap, site.layer))

        for i, placed in enumerate(self.edits):
            site = placed.site
            if self.anatomy is None or self.anatomy.carrier(site) == site:
                point(site).edits.append(i)
                continue
            # an edit between attention and MLP goes through what the attention writes, and needs the block's input
            layer = self.anatomy.layers[site.layer or 0]
            self._mids.add(i)
            points.setdefault(layer.taps["attn_write"], _Point(layer.taps["attn_write"])).edits.append(i)
            points.setdefault(layer.taps["resid_pre"], _Point(layer.taps["resid_pre"])).keep = site.layer
        for site in self.reads:
            point(site).reads.append(site)
        probed = [(p.edit.condition, p.site) for p in self.edits if p.edit.condition is not None]
        own = {condition for condition, site in probed if condition.site.base == site.base}
        for condition in dict.fromkeys(condition for condition, _ in probed if condition not in own):
            point(condition.site).probes.append(condition)
        return points

    def _tap(self, site: Site) -> Tap:
        if self.anatomy is not None:
            return self.anatomy.tap(site)
        if site.kind != "module":
            raise SiteUnavailable(
                f"site {site}: a wrapped module has no anatomy; address it by path, as in sites.module('encoder.0')",
                reason="wrapped module",
            )
        return Tap(site.path or "", "input" if site.port == "input" else "output")

    def _may_borrow(self) -> bool:
        """Values may be kept without a copy: the audit saw that nothing writes over them, and no hook of others
        might."""
        if self.asked:
            return True
        if self.anatomy is None or self.anatomy.volatile is None or self.resume is not None or self.keep_graph:
            return False
        return not any(module._forward_hooks or module._forward_pre_hooks for module in every(self.root))

    def _hook(self, point: "_Point") -> None:
        path, edits = point.tap.path, bool(point.edits)
        module = _module_at(self.root, path)

        def pre(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if attention.active.get() is not self:
                return None
            put, value = _first_input(args, kwargs, path)
            new = self._visit(value, point)
            return None if new is value else put(new)

        def post(_: nn.Module, __: tuple[Any, ...], output: Any) -> Any:
            if attention.active.get() is not self:
                return None
            if isinstance(output, Tensor):
                new = self._visit(output, point)
                return None if new is output else new
            put, value = first_output(output, path)
            new = self._visit(value, point)
            return None if new is value else put(new)

        # an edit comes before the hooks of others, which then see it (a recorder of hidden states is one)
        if point.tap.port == "input":
            handle = module.register_forward_pre_hook(pre, with_kwargs=True, prepend=edits)
        else:
            handle = module.register_forward_hook(post, prepend=edits)
        self._stack.callback(handle.remove)

    def _enter_kernels(self) -> None:
        """Switch the model's attention to our function, and watch the modules that write theirs out, and experts."""
        switch = False
        for point in [next(iter(inside.values())) for inside in self._inside.values()]:
            module = self.root.get_submodule(point.tap.path)
            if point.tap.port == "experts":
                watched = experts.watched(self, module, module.forward, self.rows)
            elif self.anatomy is not None and self.anatomy.layers[point.layer or 0].inline:
                watched = self._watched(module, module.forward)
            else:
                switch = True
                continue
            self._stack.enter_context(forward_replaced(module, watched))
        if switch:
            self._stack.enter_context(switched(self.root))

    def _watched(self, module: nn.Module, original: Callable[..., Any]) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            if attention.active.get() is not self:
                return original(*args, **kwargs)
            shape = self.shape or tuple(_first_input(args, kwargs, "attention")[1].shape[:2])
            with attention.Inline(self, module, *shape):
                return original(*args, **kwargs)

        return forward

    # -- at a site

    def _visit(self, value: Tensor, point: "_Point") -> Tensor:
        rows = self._rows(value, point.tap.axes)
        scale = self._scale(point.tap)
        whole = rows if scale is None else rows * scale
        new = self._edited(whole, point.edits, self.start) if point.edits else whole
        for site in point.reads:
            new = self._node(new)
            self._store(site, new)
        for condition in point.probes:
            self._signal(condition, new)
        if point.keep is not None:
            self._block_input[point.keep] = new
        if self.stop_early:
            self._maybe_stop()
        if new is whole:
            return value
        if scale is not None:
            new = new / scale if self.keep_graph else torch.where(new == whole, rows, new / scale)
        return value if new is rows else _laid_out(new, point.tap.axes, value)

    def _rows(self, value: Tensor, axes: str) -> Tensor:
        """Any layout as [batch pos ...]; flattened tokens are told by their number."""
        if axes == "pb":
            return value.transpose(0, 1)
        if axes == "sbp":
            return value.movedim(0, 2)
        if axes == "bsp" and self.shape is not None:
            return value.unflatten(1, (-1, self.shape[1])).transpose(1, 2)
        if (
            self.shape is not None
            and self.anatomy is not None
            and (value.ndim == 2 or axes == "flat")
            and value.shape[0] == self.shape[0] * self.shape[1]
        ):
            return value.unflatten(0, self.shape)
        return value

    def _scale(self, tap: Tap) -> Tensor | float | None:
        """What the tensor is multiplied by to be the site; None for nothing."""
        if isinstance(tap.scale, str):
            return stored_tensor(self.root, tap.scale).detach()
        return None if tap.scale == 1.0 else tap.scale

    def _edited(self, value: Tensor, edits: list[int], start: int) -> Tensor:
        out = value
        for i in edits:
            placed = self.edits[i] if self.edits[i].start == start else replace(self.edits[i], start=start)
            fresh = out.clone() if out is value else out
            if placed.edit.condition is not None and i not in self._mids:
                self._signal_here(placed, out)
            done = self._edit_mid(placed, fresh) if i in self._mids else placed.apply(fresh, self._signal_of(placed))
            if done:
                self.fired[i] += 1
                out = fresh
        return out

    def _edit_mid(self, placed: Placed, write: Tensor) -> bool:
        """resid_mid = resid_pre + write: change the write by as much as the sum is to change."""
        before = self._block_input[placed.site.layer or 0]
        mid = before + write
        changed = mid.clone()
        self._signal_here(placed, mid)
        if not placed.apply(changed, self._signal_of(placed)):
            return False
        write += changed - mid
        return True

    def _signal(self, condition: Condition, value: Tensor) -> None:
        """Read a probe, from the first column of this pass on."""
        found, before = Signal(self.start, condition.scores(value)), self._signals.get(condition)
        self._signals[condition] = found if before is None else before.then(found)

    def _signal_here(self, placed: Placed, value: Tensor) -> None:
        """A condition at the edit's own site reads what comes to the edit."""
        condition = placed.edit.condition
        if condition is None or condition.site.base != placed.site.base:
            return
        known = self._signals.get(condition)
        if known is None or known.stop < self.start + value.shape[1]:
            self._signal(condition, value)

    def _signal_of(self, placed: Placed) -> Signal | None:
        return None if placed.edit.condition is None else self._signals.get(placed.edit.condition)

    def at(self, module: nn.Module, kind: str, value: Tensor, q_len: int) -> Tensor:
        """Called by the attention function; `value` is [batch pos head ...], for scores and pattern [batch query
        head key]."""
        point = self._inside[id(module)][kind]
        start = self.start + q_len - value.shape[1] if kind in _KEYS_AND_VALUES else self.start
        again = self._again(point)
        fired = list(self.fired)
        new = self._edited(value, point.edits, start)
        if again:
            self.fired = fired
        if kind == "scores" and new is not value:
            # a masked score that an edit took to minus infinity would make NaN of a row that is padding all through
            new = new.clamp(min=torch.finfo(new.dtype).min)
        for condition in point.probes:
            self._signal(condition, new)
        if point.reads and not again:
            new = self._node(new.transpose(1, 2) if kind in PATTERN_KINDS else new)
            self._store(point.reads[0], new)
            new = new.transpose(1, 2) if kind in PATTERN_KINDS else new
        if self.stop_early:
            self._maybe_stop()
        return new

    def _again(self, point: "_Point") -> bool:
        """This is a second or later call of a kernel that its module calls more than once with the same pattern."""
        layer = self.anatomy.layers[point.layer] if self.anatomy is not None and point.layer is not None else None
        point.calls += 1
        return layer is not None and (point.calls - 1) % layer.kernel_calls > 0

    def wants(self, module: nn.Module, *kinds: str) -> bool:
        """Some of these sites of this module is read or edited."""
        inside = self._inside.get(id(module))
        return inside is not None and not inside.keys().isdisjoint(kinds)

    def rows(self) -> tuple[int, int] | None:
        """Rows and columns of this pass, where they are known."""
        return self.shape

    def _node(self, value: Tensor) -> Tensor:
        """With gradients: a node of its own, since others may read the same tensor beside this site."""
        if not self.keep_graph:
            return value
        return value.view_as(value) if value.requires_grad else value.detach().requires_grad_(True)

    def _store(self, site: Site, value: Tensor) -> None:
        self.stored[site] += 1
        if self.keep_graph:
            self.values[site] = value
        elif (
            self._borrows
            and site.layer is not None
            and site.kind not in self._volatile()
            and _owns(value)
            and not value.is_inference()  # such tensors count no writes
        ):
            self.values[site] = value.detach()  # which shares the counter of writes
            self._borrowed[site] = value._version
        else:
            self.values[site] = value.detach().clone(memory_format=torch.contiguous_format)

    def _volatile(self) -> frozenset[str]:
        assert self.anatomy is not None
        return self.anatomy.volatile or frozenset()

    def _settle(self) -> None:
        """Borrowed values become the caller's own: none was written over, and no two share their numbers."""
        seen: set[int] = set()
        for site, version in self._borrowed.items():
            value = self.values[site]
            if value._version != version:
                self.overwritten.add(site)
                if self.asked:
                    continue
                raise EngineError(
                    f"site {site}: its value was written over later in the pass, which the audit of this model did not "
                    "see; load it again",
                    site=str(site),
                )
            if value.data_ptr() in seen and not self.asked:
                self.values[site] = value.clone()
            seen.add(value.data_ptr())
        self._borrowed.clear()

    def _maybe_stop(self) -> None:
        if len(self.values) == len(self.reads) and all(self.fired):
            raise Stop

    # -- skipping blocks

    def _skip(self, resume: Resume) -> None:
        assert self.anatomy is not None
        for index, layer in enumerate(self.anatomy.layers[: resume.layer]):
            block = self.root.get_submodule(layer.block)
            state = resume.state if index == resume.layer - 1 else None
            self._stack.enter_context(forward_replaced(block, self._passing(block.forward, state, layer)))

    def _passing(self, original: Callable[..., Any], state: Tensor | None, layer: LayerMap) -> Callable[..., Any]:
        axes = layer.taps["resid_post"].axes

        def forward(*args: Any, **kwargs: Any) -> Any:
            if attention.active.get() is not self:
                return original(*args, **kwargs)
            given = _first_input(args, kwargs, "block")[1]
            value = given if state is None else _laid_out(state, axes, given)
            return (value, *[None] * (layer.returned - 1)) if layer.returns_tuple else value

        return forward


def _laid_out(value: Tensor, axes: str, like: Tensor) -> Tensor:
    """[batch pos ...] as the module has it."""
    if axes == "pb":
        return value.transpose(0, 1)
    if axes == "bsp":
        return value.transpose(1, 2).flatten(1, 2)
    return value.movedim(2, 0) if axes == "sbp" else value.reshape(like.shape) if like.ndim != value.ndim else value


def _owns(value: Tensor) -> bool:
    """The tensor is all of its memory, so that keeping it keeps no more than what was asked for."""
    return (
        value.is_contiguous()
        and not isinstance(value, nn.Parameter)
        and value.untyped_storage().nbytes() == value.numel() * value.element_size()
    )


def every(root: nn.Module) -> list[nn.Module]:
    """All modules, quickly; a shared one as often as it is held."""
    found = [root]
    for module in found:
        found.extend(child for child in module._modules.values() if child is not None)
    return found


def _module_at(root: nn.Module, path: str) -> nn.Module:
    """`get_submodule`, quickly: sessions ask for each of their points."""
    found: nn.Module | None = root
    for name in path.split(".") if path else ():
        found = found._modules.get(name) if found is not None else None
    return found if found is not None else root.get_submodule(path)


def stored_tensor(root: nn.Module, path: str) -> Tensor:
    """The parameter or buffer at a path."""
    parent, _, name = path.rpartition(".")
    return getattr(root.get_submodule(parent), name)


@contextmanager
def forward_replaced(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
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
    """The attention session of a trace: records q, k, v, z, scores and pattern by module path and changes nothing."""

    def __init__(self, root: nn.Module, trace: Trace, *, inline: bool) -> None:
        self.paths = {id(module): name for name, module in root.named_modules()}
        self.trace, self.inline = trace, inline

    def at(self, module: nn.Module, kind: str, value: Tensor, q_len: int) -> Tensor:  # noqa: ARG002 - the interface
        found = self.trace.attention.setdefault(self.paths[id(module)], Kernel(self.inline, len(self.trace.calls)))
        found.values.setdefault(kind, []).append(value.detach().clone())
        return value

    def wants(self, module: nn.Module, *kinds: str) -> bool:
        own = self.trace.attention.get(self.paths[id(module)])
        fused = {"q", "k", "v", "z"}
        if self.inline:  # what goes through the interface is seen by the other one; a fused kernel stays fused
            return (own is None or own.inline) and kinds != ("scores", "pattern")
        return bool(fused & set(kinds))


class _WatchInline(TorchFunctionMode):
    """Follows attentions that modules write out themselves, each in a mode of its own, told apart by the module that
    is running."""

    def __init__(self, watch: _Watch, running: list[Call], shape: tuple[int, int]) -> None:
        super().__init__()
        self.watch, self.running, self.shape = watch, running, shape
        self.modes: dict[int, attention.Inline] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        known = func is attention.FUSED or func in attention.SOFTMAX or func in attention.PRODUCTS
        if not known or not self.running or attention.in_kernel.get():
            return func(*args, **(kwargs or {}))
        call = self.running[-1]
        mode = self.modes.get(id(call))
        if mode is None:
            mode = self.modes[id(call)] = attention.Inline(self.watch, call.module, *self.shape)
        return mode.__torch_function__(func, types, args, kwargs)


def watch(root: nn.Module, run: Callable[[], Any], shape: tuple[int, int], *, with_attention: bool) -> Trace:
    """Run once and record every module call and every attention call. Leaves nothing behind."""
    trace = Trace(shape)
    clock = iter(range(10**9))
    running: list[Call] = []
    with ExitStack() as stack:
        for path, module in root.named_modules():
            _watch_module(path, module, trace, clock, stack, running)
        if with_attention:
            stack.enter_context(switched(root))
            token = attention.active.set(_Watch(root, trace, inline=False))
            stack.callback(attention.active.reset, token)
        stack.enter_context(_WatchInline(_Watch(root, trace, inline=True), running, shape))
        with torch.no_grad():
            run()
    return trace


def _watch_module(
    path: str, module: nn.Module, trace: Trace, clock: Iterator[int], stack: ExitStack, running: list[Call]
) -> None:
    def pre(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        call = Call(path, module, next(clock))
        try:
            value = _first_input(args, kwargs, path)[1]
            call.input, call.input_axes = _seen(value, trace.shape)
        except SiteUnavailable:
            call.input = None
        if experts.n_experts(module) is not None:
            call.routing = experts.routing(module.forward, args, kwargs)
        running.append(call)
        trace.calls.append(call)

    def post(_: nn.Module, __: tuple[Any, ...], output: Any) -> None:
        call = running.pop()
        call.end = next(clock)
        call.tuple_output = isinstance(output, tuple | list)
        call.returned = len(output) if call.tuple_output else 1
        try:
            call.output, call.output_axes = _seen(first_output(output, path)[1], trace.shape)
        except SiteUnavailable:
            call.output = None

    stack.callback(module.register_forward_pre_hook(pre, with_kwargs=True).remove)
    stack.callback(module.register_forward_hook(post).remove)


def _seen(value: Tensor, shape: tuple[int, int]) -> tuple[Tensor, str]:
    """A copy laid out [batch pos ...] where that can be told, and how it lay."""
    value, (rows, width) = value.detach().clone(), shape
    if value.ndim >= 2 and value.shape[:2] == (rows, width):
        return value, "bp"
    if value.ndim >= 2 and value.shape[0] == rows * width:
        return value.unflatten(0, shape), "flat"
    if value.ndim == 3 and value.shape[:2] == (width, rows):
        return value.transpose(0, 1), "pb"
    if value.ndim == 4 and value.shape[1:3] == (rows, width):
        return value.movedim(0, 2), "sbp"
    if value.ndim == 3 and value.shape[0] == rows and width and value.shape[1] % width == 0:
        return value.unflatten(1, (-1, width)).transpose(1, 2), "bsp"
    return value, "bp"
