"""Resolve: find where every site lives, from one traced forward pass on a short random input. No adapters.

1. Blocks: the module list whose members run one after another, each reading what the one before wrote.
2. Attention: whoever calls our attention function inside a block; its output projection is the first linear map that
   reads `z`.
3. Writes: solve `resid_post = resid_pre + a (+ m)` over the outputs of the block's submodules; or, for post-norm
   blocks, `resid_post = norm(norm(resid_pre + a) + m)`. `a` is the one that comes from the output projection.
4. MLP: the linear map behind `m` reads the neurons; the activation function before it reads `mlp_pre`.

What is found is compared by value, so names do not matter. What is not found is refused with its reason. Oddities
that data alone can settle are rows of `quirks.toml`.
"""

import tomllib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib import resources
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from cutaway.errors import SelfCheckFailed
from cutaway.models.anatomy import Anatomy, LayerMap, Tap
from cutaway.models.sites import KINDS

NO_INTERFACE = "its attention does not go through transformers' attention interface"


@dataclass
class Call:
    """One call of one module in the trace: its first tensor in and out, and when."""

    path: str
    module: nn.Module
    start: int
    input: Tensor | None = None
    output: Tensor | None = None
    end: int = -1
    tuple_output: bool = False

    @property
    def value(self) -> Tensor:
        """The output, of a call that has one."""
        assert self.output is not None
        return self.output


@dataclass
class Trace:
    """One forward pass, observed. `calls` in order of their start."""

    calls: list[Call] = field(default_factory=list)
    attention: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    """Path of each module that called the attention function, with q k v z as [batch pos head d_head]."""

    def of(self, path: str) -> list[Call]:
        return [call for call in self.calls if call.path == path]

    def inside(self, path: str) -> list[Call]:
        """Calls strictly inside a module."""
        return [call for call in self.calls if call.path.startswith(path + ".")]


def gap(a: Tensor | None, b: Tensor | None) -> float:
    """Largest absolute difference; infinite between tensors that cannot be compared. Equal infinities do not differ."""
    if a is None or b is None or a.shape != b.shape or not (a.is_floating_point() and b.is_floating_point()):
        return float("inf")
    return float((a.double() - b.double()).abs().masked_fill(a == b, 0.0).max())


def rounding(*tensors: Tensor | None) -> float:
    """What a handful of roundings can make of the largest finite value here: eight units in its last place."""
    sizes = [(torch.finfo(t.dtype).eps, t.abs().nan_to_num(nan=0.0, posinf=0.0)) for t in tensors if t is not None]
    return max(8 * eps * float(size.max()) for eps, size in sizes) + 1e-30


def close(a: Tensor | None, b: Tensor | None) -> bool:
    """Equal up to rounding: the same quantity, computed in another order."""
    return gap(a, b) < float("inf") and gap(a, b) <= rounding(a, b)


def same(a: Tensor | None, b: Tensor | None) -> bool:
    """The same value, bit for bit: one tensor seen twice."""
    return gap(a, b) == 0.0


def resolve(
    trace: Trace, root: nn.Module, *, head: nn.Module | None, embedding: nn.Module | None, n_vocab: int | None
) -> Anatomy:
    """The anatomy that a trace shows. Raises SelfCheckFailed when not even the blocks are found."""
    blocks = find_blocks(trace, root)
    if not blocks:
        raise SelfCheckFailed(
            f"{type(root).__name__}: no list of blocks that pass a residual stream on was found; use "
            "cutaway.wrap(module) and address modules by path",
            model=type(root).__name__,
        )
    paths = {id(module): name for name, module in root.named_modules()}
    layers = tuple(_Block(trace, block).map() for block in blocks)
    attention = next((trace.attention[layer.attention] for layer in layers if layer.attention), None)
    act = next((_one(trace, layer.taps["mlp_act"]) for layer in layers if "mlp_act" in layer.taps), None)
    last = blocks[-1].output
    assert last is not None
    final = _final_norm(trace, blocks, head)
    taps = {"logits": Tap("", "output")}
    if embedding is not None and id(embedding) in paths:
        taps["embed"] = Tap(paths[id(embedding)], "output")
    if final is not None:
        taps["final_norm"] = Tap(final, "output")
    refused = {
        "final_norm": "no norm between the last block and the unembedding was found",
        "embed": "the model names no token embedding",
    }
    return Anatomy(
        layers=layers,
        d_model=last.shape[-1],
        d_vocab=n_vocab,
        n_heads=attention["q"].shape[2] if attention else None,
        n_kv_heads=attention["k"].shape[2] if attention else None,
        d_head=attention["z"].shape[3] if attention else None,
        d_mlp=act.shape[-1] if act is not None else None,
        taps=taps,
        refused={kind: why for kind, why in refused.items() if kind not in taps},
        causal=False,
        final_norm=final,
        unembed=paths.get(id(head)) if head is not None else None,
    )


def find_blocks(trace: Trace, root: nn.Module) -> list[Call]:
    """The calls of the longest chain of list members of which each reads what the one before it wrote."""
    best: list[Call] = []
    for name, module in root.named_modules():
        if not isinstance(module, nn.ModuleList | nn.Sequential) or len(module) == 0:
            continue
        calls = [
            call for child, _ in module.named_children() for call in trace.of(f"{name}.{child}" if name else child)
        ]
        chained = all(close(a.output, b.input) for a, b in pairwise(calls))
        residual = all(
            c.output is not None and c.input is not None and c.output.ndim == 3 and c.output.shape == c.input.shape
            for c in calls
        )
        if (
            len(calls) == len(module)
            and chained
            and residual
            and (len(calls), _size(module)) > (len(best), _size_of(best))
        ):
            best = calls
    return best


def _size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _size_of(calls: list[Call]) -> int:
    return sum(_size(call.module) for call in calls)


def _one(trace: Trace, tap: Tap) -> Tensor | None:
    calls = trace.of(tap.path)
    return None if not calls else calls[0].input if tap.port == "input" else calls[0].output


def _final_norm(trace: Trace, blocks: list[Call], head: nn.Module | None) -> str | None:
    """The module after the last block that reads its output; its own output is what the head reads (when there is
    one)."""
    last = blocks[-1].output
    wanted = next((c.input for c in trace.calls if head is not None and c.module is head), None)
    for call in trace.calls:
        if call.start > blocks[-1].start and not call.path.startswith(blocks[-1].path) and close(call.input, last):
            matrix = any(p.ndim > 1 for p in call.module.parameters())
            if not matrix and call.output is not None and (wanted is None or close(call.output, wanted)):
                return call.path
    return None


class _Block:
    """One block's map, found step by step; each step may add taps or reasons."""

    def __init__(self, trace: Trace, block: Call) -> None:
        self.block, self.trace = block, trace
        calls = [c for c in trace.inside(block.path) if c.output is not None]
        times = Counter(c.path for c in calls)
        self.calls = [c for c in calls if times[c.path] == 1]
        """Calls of modules that run once: a module that runs twice (a shared dropout) holds no one value."""
        self.taps: dict[str, Tap] = {"resid_pre": Tap(block.path, "input"), "resid_post": Tap(block.path, "output")}
        self.refused: dict[str, str] = {}
        self.attention: str | None = None
        self.o_proj: Call | None = None
        self.norms: tuple[str, ...] = ()

    def map(self) -> LayerMap:
        self._attention()
        writes, attn, mlp, mid = self._writes()
        if attn is not None:
            self.taps["attn_write"] = Tap(attn.path, "output")
        if mlp is not None:
            self.taps["mlp_write"] = Tap(mlp.path, "output")
            self._mlp(mlp)
        if mid is not None:
            self.taps["resid_mid"] = mid
        self._apply_quirks()
        self._explain(writes)
        return LayerMap(
            block=self.block.path,
            returns_tuple=self.block.tuple_output,
            taps=self.taps,
            refused={kind: why for kind, why in self.refused.items() if kind not in self.taps},
            writes=writes,  # type: ignore[arg-type]
            norms=self.norms,
            attention=self.attention,
            o_proj=self.o_proj.path if self.o_proj else None,
        )

    # -- attention

    def _attention(self) -> None:
        found = [path for path in self.trace.attention if path.startswith(self.block.path + ".")]
        if len(found) != 1:
            why = NO_INTERFACE if not found else "the block calls the attention kernel more than once"
            self.refused |= dict.fromkeys(("q", "k", "v", "z", "scores", "pattern", "attn_in"), why)
            return
        self.attention = found[0]
        self.taps |= {kind: Tap(found[0], "attention") for kind in ("q", "k", "v", "scores", "pattern", "z")}
        self.taps["attn_in"] = Tap(found[0], "input")
        z = self.trace.attention[found[0]]["z"].flatten(2)
        self.o_proj = next((c for c in self.calls if _linear(c.module) and close(c.input, z)), None)
        if self.o_proj is not None:
            self.taps["attn_out"] = Tap(self.o_proj.path, "output")
        else:
            self.refused["attn_out"] = "no linear map reads the heads' outputs directly"

    # -- writes

    def _writes(self) -> tuple[str, Call | None, Call | None, Tap | None]:
        before, after = self.block.input, self.block.output
        assert before is not None
        assert after is not None
        candidates = self._candidates(before)
        for solve in (self._additive, self._post_norm):
            if (found := solve(before, after, candidates)) is not None:
                return found
        self.refused |= dict.fromkeys(
            ("attn_write", "mlp_write", "resid_mid"), "no two submodule outputs add up to what the block adds"
        )
        return "unknown", None, None, None

    def _candidates(self, before: Tensor) -> list[Call]:
        """Submodule outputs shaped like the residual stream, one call a value: the last one to see it."""
        found: list[Call] = []
        for call in sorted(self.calls, key=lambda c: c.end):
            if call.output is None or call.output.shape != before.shape or close(call.output, before):
                continue
            found = [c for c in found if not same(c.output, call.output)]
            found.append(call)
        return found

    def _additive(self, before: Tensor, after: Tensor, candidates: list[Call]):
        sets = [(c,) for c in candidates] + [(a, b) for i, a in enumerate(candidates) for b in candidates[i + 1 :]]
        found = min(sets, key=lambda parts: _residual(before, parts, after), default=None)
        if found is None or _residual(before, found, after) > rounding(before, after, *(c.output for c in found)):
            return None
        if len(found) == 1:
            return (
                ("single", found[0], None, None) if self._from_attention(found[0]) else ("single", None, found[0], None)
            )
        attn, mlp = found if self._from_attention(found[0]) or not self._from_attention(found[1]) else found[::-1]
        mid = self._reader(before + attn.value)
        return ("sequential" if mid else "parallel", attn, mlp, mid)

    def _post_norm(self, before: Tensor, after: Tensor, candidates: list[Call]):
        for norm in self.calls:
            if norm.output is None or _linear(norm.module):
                continue
            attn = next(
                (c for c in candidates if self._from_attention(c) and close(norm.input, before + c.value)), None
            )
            if attn is None:
                continue
            mid = norm.output
            for last in self.calls:
                mlp = next(
                    (c for c in candidates if close(last.input, mid + c.value) and close(last.output, after)), None
                )
                if mlp is not None and last is not mlp:
                    self.norms = (norm.path, last.path)
                    return "post-norm", attn, mlp, Tap(norm.path, "output")
        return None

    def _from_attention(self, call: Call) -> bool:
        """The output projection's own output, or that output after a norm or dropout of its own."""
        return self.o_proj is not None and (
            same(call.output, self.o_proj.output) or same(call.input, self.o_proj.output)
        )

    def _reader(self, value: Tensor) -> Tap | None:
        """The first submodule that reads this value."""
        return next((Tap(c.path, "input") for c in self.calls if close(c.input, value)), None)

    # -- MLP

    def _mlp(self, write: Call) -> None:
        experts = self._experts()
        if experts is not None:
            return self._moe(write, experts)
        down = self._behind(write)
        if down is None:
            self.refused |= dict.fromkeys(
                ("mlp_in", "mlp_pre", "mlp_act", "mlp_out"), "no linear map was found behind the MLP's write"
            )
            return None
        self.taps |= {"mlp_out": Tap(down.path, "output"), "mlp_act": Tap(down.path, "input")}
        act = self._activation(down)
        if act is None:
            self.refused |= dict.fromkeys(
                ("mlp_in", "mlp_pre"), "no module of its own computes the activation function"
            )
            return None
        self.taps["mlp_pre"] = Tap(act.path, "input")
        self.taps["mlp_in"] = Tap(self._widest_above(act), "input")
        return None

    def _behind(self, write: Call) -> Call | None:
        """The linear map whose output is the write, itself or before its own norm."""
        linear = [c for c in self.calls if _linear(c.module)]
        itself = [c for c in linear if same(c.output, write.output)]
        return next(iter(itself or [c for c in linear if same(c.output, write.input)]), None)

    def _activation(self, down: Call) -> Call | None:
        """The parameter-free module as wide as the neurons that runs before the output projection."""
        assert down.input is not None
        for call in self.calls:
            bare = (
                not list(call.module.parameters())
                and not list(call.module.children())
                and not isinstance(call.module, nn.Dropout)
            )
            if (
                bare
                and call.start < down.start
                and call.input is not None
                and call.input.shape == down.input.shape
                and not close(call.input, call.output)
            ):
                return call
        return None

    def _widest_above(self, act: Call) -> str:
        """The largest submodule of the block around the activation function that does not hold the attention."""
        parts = act.path[len(self.block.path) + 1 :].split(".")
        for depth in range(1, len(parts) + 1):
            path = f"{self.block.path}.{'.'.join(parts[:depth])}"
            if self.trace.of(path) and not (self.attention or "").startswith(path + "."):
                return path
        return act.path

    def _experts(self) -> Call | None:
        """A module with stacked weights, one matrix an expert."""
        return next((c for c in self.calls if any(p.ndim == 3 for p in c.module.parameters(recurse=False))), None)

    def _moe(self, write: Call, experts: Call) -> None:
        n_experts = next(p.shape[0] for p in experts.module.parameters(recurse=False) if p.ndim == 3)
        mixture = next((c for c in self.calls if experts.path.startswith(c.path + ".")), write)
        self.taps |= {"mlp_in": Tap(mixture.path, "input"), "mlp_out": Tap(mixture.path, "output")}
        router = next(
            (
                c
                for c in self.calls
                if c.output is not None and c.output.shape[-1] == n_experts and c.path.startswith(mixture.path + ".")
            ),
            None,
        )
        if router is not None:
            self.taps["router"] = Tap(router.path, "output")
        why = "the experts' weights are stacked in one tensor, and their neurons exist only inside one fused call"
        self.refused |= {"mlp_pre": why, "mlp_act": why, "expert_out": why}

    # -- the rest

    def _apply_quirks(self) -> None:
        for quirk in quirks():
            if quirk["block"] == type(self.block.module).__name__:
                self.refused |= dict.fromkeys(quirk["refuse"], quirk["reason"])
                for kind in quirk["refuse"]:
                    self.taps.pop(kind, None)

    def _explain(self, writes: str) -> None:
        reasons = {
            "resid_mid": "attention and MLP read the same input here, so there is no residual state between them"
            if writes == "parallel"
            else "the block has one write, so there is no residual state inside it",
            "router": "this block has no mixture of experts",
            "expert_out": "this block has no mixture of experts",
        }
        for kind in KINDS:
            if kind not in self.taps and KINDS[kind].layered:
                self.refused.setdefault(kind, reasons.get(kind, "this block has no such part"))


def _linear(module: nn.Module) -> bool:
    """One matrix and nothing below it: Linear, Conv1D and their quantised kin."""
    weight = getattr(module, "weight", None)
    return isinstance(weight, Tensor) and weight.ndim == 2 and not list(module.children())


def _residual(before: Tensor, parts: tuple[Call, ...], after: Tensor) -> float:
    """What is left of the block's output when its input and these writes are taken away."""
    total = before.double()
    for part in parts:
        assert part.output is not None
        total = total + part.output.double()
    return gap(total, after.double())


def quirks() -> Iterator[Mapping[str, Any]]:
    """Rows of `quirks.toml`: block class, kinds to refuse, reason."""
    text = resources.files("cutaway.models").joinpath("quirks.toml").read_text(encoding="utf-8")
    yield from tomllib.loads(text).get("quirk", [])
