"""Resolve: find where every site lives, from one traced forward pass on a short random input. No adapters.

1. Blocks: the module list whose members run one after another, each reading what the one before wrote.
2. Attention: whoever calls our attention function inside a block, or computes a softmax over products of its own; its
   output projection is the first linear map that reads `z`.
3. Writes: solve `resid_post = resid_pre + a (+ m)` over the outputs of the block's submodules, or a longer chain of
   scaled additions and norms (`chain`). `a` is the one that comes from the attention.
4. MLP: the linear map behind `m` reads the neurons; the activation function before it reads `mlp_pre`.

What is found is compared by value, so names do not matter. What is not found is refused with its reason. Oddities
that data alone can settle are rows of `quirks.toml`.
"""

import tomllib
from collections import Counter
from collections.abc import Iterator, Mapping
from importlib import resources
from itertools import pairwise
from typing import Any

from torch import Tensor, nn

from cutaway.errors import SelfCheckFailed
from cutaway.models import experts
from cutaway.models.anatomy import Anatomy, LayerMap, Step, Tap
from cutaway.models.chain import Chain, Link, Part, factor
from cutaway.models.sites import KINDS
from cutaway.models.trace import Call, Kernel, Trace, close, gap, is_linear, rounding, same

__all__ = ["Call", "Kernel", "Trace", "close", "gap", "quirks", "resolve", "rounding", "same"]

NO_ATTENTION = "no softmax over scores of queries and keys was seen in this block"


def resolve(
    trace: Trace,
    root: nn.Module,
    *,
    head: nn.Module | None,
    embedding: nn.Module | None,
    n_vocab: int | None,
    blocks: list[Call] | None = None,
) -> Anatomy:
    """The anatomy that a trace shows. Raises SelfCheckFailed when not even the blocks are found."""
    blocks = find_blocks(trace, root) if blocks is None else blocks
    if not blocks:
        shared = _shared(trace, root)
        why = f"its blocks are one module ({shared}) that runs again and again, so " if shared else ""
        raise SelfCheckFailed(
            f"{type(root).__name__}: {why}no list of blocks that pass a residual stream on was found; use "
            "cutaway.wrap(module) and address modules by path",
            model=type(root).__name__,
        )
    paths = {id(module): name for name, module in root.named_modules()}
    layers = tuple(_Block(trace, block, root).map() for block in blocks)
    kernels = [trace.attention[layer.attention] for layer in layers if layer.attention]
    act = next((_one(trace, layer.taps["mlp_act"]) for layer in layers if "mlp_act" in layer.taps), None)
    counts = [experts.n_experts(root.get_submodule(layer.experts)) for layer in layers if layer.experts]
    last = blocks[-1].value
    final = _final_norm(trace, blocks, head)
    taps = {"logits": Tap("", "output")}
    if embedding is not None and id(embedding) in paths:
        call = next(iter(trace.of(paths[id(embedding)])), None)
        taps["embed"] = call.tap() if call is not None else Tap(paths[id(embedding)], "output")
    if final is not None:
        taps["final_norm"] = final.tap()
    refused = {
        "final_norm": "no norm between the last block and the unembedding was found",
        "embed": "the model names no token embedding",
    }
    return Anatomy(
        layers=layers,
        d_model=last.shape[-1],
        d_vocab=n_vocab,
        n_heads=_size_in(kernels, "q", 2) or _size_in(kernels, "pattern", 2),
        n_kv_heads=_size_in(kernels, "k", 2),
        d_head=_size_in(kernels, "z", 3) or _size_in(kernels, "q", 3),
        d_mlp=act.shape[-1] if act is not None else None,
        taps=taps,
        refused={kind: why for kind, why in refused.items() if kind not in taps},
        causal=False,
        final_norm=final.path if final is not None else None,
        unembed=paths.get(id(head)) if head is not None else None,
        n_streams=last.shape[2] if last.ndim == 4 else None,
        n_experts=counts[0] if counts else None,
    )


def _size_in(kernels: list[Kernel], kind: str, axis: int) -> int | None:
    return next((int(value.shape[axis]) for kernel in kernels if (value := kernel.first(kind)) is not None), None)


def find_blocks(trace: Trace, root: nn.Module) -> list[Call]:
    """The calls of the longest chain of list members of which each reads what the one before it wrote; one on
    [batch pos ...] before any other."""
    chains = _chains(trace, root, "")
    return max(chains, key=lambda c: (c[0].value.shape[:2] == trace.shape, len(c), _size(c)), default=[])


def find_body(trace: Trace, root: nn.Module, below: str | None) -> list[Call]:
    """For a module of any kind: the last chain with attention that runs (below a path); else the longest."""
    chains = _chains(trace, root, below or "")
    kernels = [path for path, kernel in trace.attention.items() if {"pattern", "z"} & {*kernel.values}]

    def rank(chain: list[Call]) -> tuple[bool, int, int]:
        attends = any(path.startswith(chain[0].path + ".") for path in kernels)
        return attends, chain[0].start if attends else len(chain), _size(chain)

    return max(chains, key=rank, default=[])


def _chains(trace: Trace, root: nn.Module, below: str) -> list[list[Call]]:
    """All lists of modules that run one after another on a residual stream."""
    found = []
    for name, module in root.named_modules():
        if not isinstance(module, nn.ModuleList | nn.Sequential) or len(module) == 0 or not name.startswith(below):
            continue
        calls = [
            call for child, _ in module.named_children() for call in trace.of(f"{name}.{child}" if name else child)
        ]
        residual = all(
            c.output is not None
            and c.input is not None
            and c.output.ndim in (3, 4)
            and c.output.shape == c.input.shape
            and c.input_axes == c.output_axes
            for c in calls
        )
        if len(calls) == len(module) and residual and all(close(a.output, b.input) for a, b in pairwise(calls)):
            found.append(calls)
    tops = {call.path for chain in found for call in chain}
    return [chain for chain in found if not any(_within(chain[0].path, top) for top in tops)]


def _within(path: str, top: str) -> bool:
    """A list inside a block is no list of blocks."""
    return path.startswith(top + ".")


def _shared(trace: Trace, root: nn.Module) -> str:
    """A member of a list that ran more than once, each time on what it gave before; '' without one."""
    for name, module in root.named_modules():
        for child, _ in module.named_children() if isinstance(module, nn.ModuleList) else ():
            calls = trace.of(f"{name}.{child}")
            if len(calls) > 1 and all(close(a.output, b.input) for a, b in pairwise(calls)):
                return f"{name}.{child}"
    return ""


def _size(calls: list[Call]) -> int:
    return sum(p.numel() for call in calls for p in call.module.parameters())


def _one(trace: Trace, tap: Tap) -> Tensor | None:
    calls = trace.of(tap.path)
    return None if not calls else calls[0].input if tap.port == "input" else calls[0].output


def _final_norm(trace: Trace, blocks: list[Call], head: nn.Module | None) -> Call | None:
    """The module after the last block that reads its output; its own output is what the head reads (when there is
    one)."""
    last = blocks[-1].output
    wanted = next((c.input for c in trace.calls if head is not None and c.module is head), None)
    for call in trace.calls:
        if call.start > blocks[-1].start and not call.path.startswith(blocks[-1].path) and close(call.input, last):
            matrix = any(p.ndim > 1 for p in call.module.parameters())
            if not matrix and call.output is not None and (wanted is None or close(call.output, wanted)):
                return call
    return None


class _Block:
    """One block's map, found step by step; each step may add taps or reasons."""

    def __init__(self, trace: Trace, block: Call, root: nn.Module) -> None:
        self.block, self.trace, self.root = block, trace, root
        calls = [c for c in trace.inside(block.path) if c.output is not None]
        times = Counter(c.path for c in calls)
        self.calls = [c for c in calls if times[c.path] == 1]
        """Calls of modules that run once: a module that runs twice (a shared dropout) holds no one value."""
        self.taps: dict[str, Tap] = {"resid_pre": block.tap("input"), "resid_post": block.tap()}
        self.refused: dict[str, str] = {}
        self.attention: str | None = None
        self.kernel: Kernel | None = None
        self.o_proj: Call | None = None
        self.experts: str | None = None
        self.steps: tuple[Step, ...] = ()

    def map(self) -> LayerMap:
        self._attention()
        writes, mlp = self._writes()
        if mlp is not None:
            self._mlp(mlp)
        self._apply_quirks()
        self._explain(writes)
        return LayerMap(
            block=self.block.path,
            returns_tuple=self.block.tuple_output,
            taps=self.taps,
            refused={kind: why for kind, why in self.refused.items() if kind not in self.taps},
            writes=writes,
            norms=tuple(step.norm for step in self.steps if step.norm is not None) if writes == "post-norm" else (),
            steps=self.steps,
            attention=self.attention,
            inline=self.kernel is not None and self.kernel.inline,
            kernel_calls=self.kernel.times if self.kernel is not None else 1,
            o_proj=self.o_proj.path if self.o_proj else None,
            returned=self.block.returned,
            experts=self.experts,
        )

    # -- attention

    def _attention(self) -> None:
        """The kernel of this block; of several, the one that attends to the block's own positions."""
        kernels = self.trace.attention.items()
        inside = [
            path for path, k in kernels if path.startswith(self.block.path + ".") and {"pattern", "z"} & {*k.values}
        ]
        found = [path for path in inside if self.trace.attention[path].settled]
        if len(found) > 1:
            own = [path for path in found if self._reads_itself(self.trace.attention[path])]
            found = own if len(own) == 1 else found
        if len(found) != 1:
            why = NO_ATTENTION if not inside else "the block computes attention in more than one way"
            self.refused |= dict.fromkeys(("q", "k", "v", "z", "scores", "pattern", "attn_in"), why)
            return
        self.attention, self.kernel = found[0], self.trace.attention[found[0]]
        self.taps |= {kind: Tap(found[0], "attention") for kind in self.kernel.kinds}
        why = "its attention is computed in a form that shows no such tensor"
        self.refused |= dict.fromkeys(("q", "k", "v", "z", "scores", "pattern"), why)
        whole = next(iter(self.trace.of(found[0])), None)
        self.taps["attn_in"] = whole.tap("input") if whole is not None else Tap(found[0], "input")
        z = self.kernel.first("z") if "z" in self.kernel.kinds else None
        if z is not None:
            z = z.flatten(2)
            self.o_proj = next((c for c in self.calls if is_linear(c.module) and close(c.input, z)), None)
        if self.o_proj is not None:
            self.taps["attn_out"] = self.o_proj.tap()
        else:
            self.refused["attn_out"] = "no linear map reads the heads' outputs directly"

    def _reads_itself(self, kernel: Kernel) -> bool:
        key, query = kernel.first("k"), kernel.first("q")
        cross = (".crossattention.", ".encoder_attn.", ".EncDecAttention.", ".cross_attn.")
        path = next(path for path, found in self.trace.attention.items() if found is kernel) + "."
        return (
            key is not None
            and query is not None
            and key.shape[1] == query.shape[1]
            and not any(c in path for c in cross)
        )

    # -- writes

    def _writes(self) -> tuple[Any, Call | None]:
        """How the block writes, and the MLP's write. Fills the taps of writes, of the state between, and `steps`."""
        before, after = self.block.input, self.block.output
        assert before is not None
        assert after is not None
        candidates = self._candidates(before)
        chain = Chain(candidates, self.calls, self.block.module, self.root).solve(before, after)
        if chain is None:
            self.refused |= dict.fromkeys(
                ("attn_write", "mlp_write", "resid_mid"), "no submodule outputs add up to what the block adds"
            )
            return "unknown", None
        self.steps = tuple(link.step for link in chain)
        parts = [(call, scale) for link in chain for call, scale in link.parts]
        attn, mlp = self._shares(parts)
        for kind, part in (("attn_write", attn), ("mlp_write", mlp)):
            if part is not None:
                self.taps[kind] = part[0].tap("output", part[1])
        for kind in {"attn_write", "mlp_write"} - self.taps.keys():
            paths = [call.path.removeprefix(self.block.path + ".") for call, _ in parts]
            if len(paths) > 1:
                self.refused[kind] = f"no one module writes it; the block's writes are {', '.join(paths)}"
        writes = self._name(chain, attn, mlp, len(parts))
        if writes in ("sequential", "post-norm", "chain", "parallel"):
            mid = self._mid(chain, before, attn, writes)
            if mid is not None:
                self.taps["resid_mid"] = mid
            elif writes == "sequential":
                writes = "parallel"
        return writes, mlp[0] if mlp is not None else None

    def _candidates(self, before: Tensor) -> list[Call]:
        """Submodule outputs shaped like the residual stream, one call a value: the last one to see it."""
        found: list[Call] = []
        for call in sorted(self.calls, key=lambda c: c.end):
            if call.output is None or call.output.shape != before.shape or close(call.output, before):
                continue
            found = [c for c in found if not same(c.output, call.output)]
            found.append(call)
        return found

    def _shares(self, parts: list[Part]) -> tuple[Part | None, Part | None]:
        """The one write of attention (or of the mixer in its place), and the one of the MLP; None where several are."""
        mine = [part for part in parts if self._from_attention(part[0])]
        if self.kernel is None:
            if len(parts) == 2:
                first, second = sorted(parts, key=lambda part: part[0].end)
                return first, second
            return (None, parts[0]) if len(parts) == 1 else (None, None)
        if len(parts) == 2 and not mine:
            first, second = sorted(parts, key=lambda part: part[0].end)
            return first, second
        rest = [part for part in parts if part not in mine and not self._attends(part[0])]
        if len(parts) > 2:
            rest = [part for part in rest if part[0].end > self._attention_call().end]
        return mine[0] if len(mine) == 1 else None, rest[0] if len(rest) == 1 else None

    def _attention_call(self) -> Call:
        return self.trace.of(self.attention or "")[0]

    def _from_attention(self, call: Call) -> bool:
        """What the attention gives: of its output projection, of its module or of one around it, or that after a norm
        or dropout of its own."""
        if self.attention is None:
            return False
        sources = [self.o_proj] if self.o_proj is not None else []
        sources += [c for c in self.trace.of(self.attention) if c.output is not None]
        if any(same(call.output, c.output) or same(call.input, c.output) for c in sources):
            return True
        return call.path == self.attention or call.path.startswith(self.attention + ".") or self._holds(call)

    def _attends(self, call: Call) -> bool:
        """Written by another attention of the block (to an encoder), or by a module around it."""
        return any(
            path == call.path or path.startswith(call.path + ".") or call.path.startswith(path + ".")
            for path in self.trace.attention
            if path != self.attention
        )

    def _holds(self, call: Call) -> bool:
        """A part of the module right around the attention, which holds no MLP: BERT's `attention.output.dense`."""
        around = (self.attention or "").rpartition(".")[0]
        return around != self.block.path and around.startswith(self.block.path) and call.path.startswith(around + ".")

    def _name(self, chain: list[Link], attn: Part | None, mlp: Part | None, n_parts: int) -> Any:
        plain = all(link.step.keep == 1.0 for link in chain)
        norms = [link.step.norm for link in chain]
        if not plain or n_parts != (attn is not None) + (mlp is not None):
            return "chain"
        if norms == [None]:
            return "single" if n_parts == 1 else "sequential"
        whole = all(norm is not None and len(link.parts) == 1 for norm, link in zip(norms, chain))
        return "post-norm" if len(chain) == 2 and whole else "chain"

    def _mid(self, chain: list[Link], before: Tensor, attn: Part | None, writes: str) -> Tap | None:
        """Where the state between attention and MLP is: a norm's output, or what a submodule reads."""
        if len(chain) > 1:
            link = next((link for link in chain[:-1] if attn in link.parts), None)
            return link.norm.tap() if link is not None and link.norm is not None else None
        if attn is None or writes == "chain":
            return None
        value = before + attn[0].value * factor(attn[1], self.root)
        return next((c.tap("input") for c in self.calls if close(c.input, value)), None)

    # -- MLP

    def _mlp(self, write: Call) -> None:
        found = self._experts()
        if found is not None:
            return self._moe(write, found)
        down = self._behind(write)
        if down is None:
            self.refused |= dict.fromkeys(
                ("mlp_in", "mlp_pre", "mlp_act", "mlp_out"), "no linear map was found behind the MLP's write"
            )
            return None
        self.taps |= {"mlp_out": down.tap(), "mlp_act": down.tap("input")}
        act = self._activation(down)
        if act is None:
            self.refused |= dict.fromkeys(
                ("mlp_in", "mlp_pre"), "no module of its own computes the activation function"
            )
            return None
        self.taps["mlp_pre"] = act.tap("input")
        self.taps["mlp_in"] = self._widest_above(act).tap("input")
        return None

    def _behind(self, write: Call) -> Call | None:
        """The linear map whose output is the write, itself or before its own norm."""
        linear = [c for c in self.calls if is_linear(c.module)]
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

    def _widest_above(self, act: Call) -> Call:
        """The largest submodule of the block around the activation function that does not hold the attention."""
        parts = act.path[len(self.block.path) + 1 :].split(".")
        for depth in range(1, len(parts) + 1):
            path = f"{self.block.path}.{'.'.join(parts[:depth])}"
            if self.trace.of(path) and not (self.attention or "").startswith(path + "."):
                return self.trace.of(path)[0]
        return act

    def _experts(self) -> Call | None:
        """A module with stacked weights, one matrix an expert."""
        return next((c for c in self.calls if any(p.ndim == 3 for p in c.module.parameters(recurse=False))), None)

    def _moe(self, write: Call, found: Call) -> None:
        number = experts.n_experts(found.module)
        mixture = next((c for c in self.calls if found.path.startswith(c.path + ".")), write)
        self.taps |= {"mlp_in": mixture.tap("input"), "mlp_out": mixture.tap()}
        router = next(
            (
                c
                for c in self.calls
                if c.output is not None and c.output.shape[-1] == number and c.path.startswith(mixture.path + ".")
            ),
            None,
        )
        if router is not None:
            self.taps["router"] = router.tap()
        if found.routing is not None:
            self.experts = found.path
            self.taps["expert_out"] = Tap(found.path, "experts")
        else:
            self.refused["expert_out"] = "its experts are not called with the experts chosen for each token"
        why = "the experts' weights are stacked in one tensor, and their neurons exist only inside one fused call"
        self.refused |= {"mlp_pre": why, "mlp_act": why}

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


def quirks() -> Iterator[Mapping[str, Any]]:
    """Rows of `quirks.toml`: block class, kinds to refuse, reason."""
    text = resources.files("cutaway.models").joinpath("quirks.toml").read_text(encoding="utf-8")
    yield from tomllib.loads(text).get("quirk", [])
