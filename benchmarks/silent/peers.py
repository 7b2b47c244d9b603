"""The cases of the silent-failure suite that every toolkit can spell, run in one peer's own environment.

    python benchmarks/silent/peers.py [NAME ...]     makes the environments, runs each peer in its own, prints a table

Values edited at the output of block 1 by assignment (t[:] = v) or by return, padding, other people's hooks, exceptions,
threads, aliases. The oracle and the shapes are those of tests/silent. Ours are in docs/silent-failures.md, beside the
whole table of all cases as measured earlier (peers.json). Warnings are not counted here.
"""

import contextlib
import itertools
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "src"), str(ROOT / "benchmarks" / "peers")]

from tests.silent.oracle import instead, plus  # noqa: E402
from tests.silent.shapes import BLOCKS, Shape, padded, shape, vector  # noqa: E402

Change = Callable[[Tensor], Any]
"""Of the output of block 1: a new value, or None when the value was changed in place."""


class Hooks:
    """Plain PyTorch hooks, as people write them: register, run, remove."""

    def __init__(self, hf: Any) -> None:
        self.hf = hf
        self.blocks = list(hf.transformer.h if hasattr(hf, "transformer") else hf.model.layers)

    def plain(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.hf(ids, attention_mask=None if mask is None else mask.long()).logits

    def edited(self, ids: Tensor, change: Change, mask: Tensor | None = None) -> Tensor:
        handle = self.blocks[1].register_forward_hook(lambda _m, _a, out: change(out))
        logits = self.plain(ids, mask)
        handle.remove()
        return logits

    def kept(self, ids: Tensor, change: Change) -> Tensor:
        """Output of block 0, stored while the input of block 1 is changed in place."""
        seen: list[Tensor] = []
        one = self.blocks[0].register_forward_hook(lambda _m, _a, out: seen.append(out))
        two = self.blocks[1].register_forward_pre_hook(lambda _m, a: change(a[0]))
        self.plain(ids)
        one.remove()
        two.remove()
        return seen[0]


class TransformerLens(Hooks):
    """The bridge of TransformerLens."""

    def __init__(self, hf: Any) -> None:
        from tools import tokenizer
        from transformer_lens.model_bridge import TransformerBridge

        super().__init__(hf)
        family = {"gpt2": "gpt2", "llama": "meta-llama/Llama-2-7b-hf"}[hf.config.model_type]
        self.bridge: Any = TransformerBridge.boot_transformers(family, hf_model=hf, tokenizer=tokenizer(99))

    def plain(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.bridge(ids, **({} if mask is None else {"attention_mask": mask.long()}))

    def edited(self, ids: Tensor, change: Change, mask: Tensor | None = None) -> Tensor:
        given = {} if mask is None else {"attention_mask": mask.long()}
        hooks = [("blocks.1.hook_resid_post", lambda value, **_: change(value))]
        return self.bridge.run_with_hooks(ids, fwd_hooks=hooks, **given)

    def kept(self, ids: Tensor, change: Change) -> Tensor:
        with self.bridge.hooks(fwd_hooks=[("blocks.1.hook_resid_pre", lambda value, **_: change(value))]):
            _, found = self.bridge.run_with_cache(ids)
        return found["blocks.0.hook_resid_post"]


class Nnsight(Hooks):
    """A trace a run."""

    def __init__(self, hf: Any) -> None:
        from nnsight import LanguageModel
        from tools import tokenizer

        super().__init__(hf)
        self.model: Any = LanguageModel(hf, tokenizer=tokenizer(99))
        self.envoys = list(self.model.transformer.h if hasattr(hf, "transformer") else self.model.model.layers)

    def plain(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        model, given = self.model, {"input_ids": ids, "attention_mask": self._mask(ids, mask)}
        with model.trace(given):
            found = model.output.logits.save()
        return found  # noqa: RET504 - the trace ends first

    def edited(self, ids: Tensor, change: Change, mask: Tensor | None = None) -> Tensor:
        model, block = self.model, self.envoys[1]
        given = {"input_ids": ids, "attention_mask": self._mask(ids, mask)}
        with model.trace(given):
            new = change(block.output)
            if new is not None:
                block.output = new
            found = model.output.logits.save()
        return found  # noqa: RET504 - the trace ends first

    def kept(self, ids: Tensor, change: Change) -> Tensor:
        model, first, second = self.model, self.envoys[0], self.envoys[1]
        with model.trace(ids):
            found = first.output.save()
            change(second.input)
        return found

    def _mask(self, ids: Tensor, mask: Tensor | None) -> Tensor:
        return torch.ones_like(ids) if mask is None else mask.long()


class Pyvene(Hooks):
    """An intervenable model with a function."""

    def _model(self, change: Change) -> Any:
        import pyvene

        def function(base: Tensor, *_: Any, **__: Any) -> Tensor:
            new = change(base)
            return base if new is None else new

        return pyvene.IntervenableModel(
            {"layer": 1, "component": "block_output", "intervention": function}, model=self.hf
        )

    def edited(self, ids: Tensor, change: Change, mask: Tensor | None = None) -> Tensor:
        given = {"input_ids": ids, **({} if mask is None else {"attention_mask": mask.long()})}
        _, out = self._model(change)(given, unit_locations=None)
        return out.logits


PEERS: dict[str, Any] = {"hooks": Hooks, "transformer-lens": TransformerLens, "nnsight": Nnsight, "pyvene": Pyvene}
NAMES = ("gpt2", "llama")
LONG, SHORT = [8, 9, 10, 11, 12, 13], [5, 6, 7]


def attempts(t: Shape, peer: Hooks) -> Iterator[tuple[str, str, Callable[[], Tensor], Tensor, Tensor]]:
    """Case, kind, the program, what is right (of a mistake: what was meant), and what no edit at all gives."""
    ids, plain = t.ids, t.wanted()
    meant = t.wanted(("resid_post.1", instead(vector(4, 4, 32))))
    for name, value in {"1a": vector(), "1b": vector(1, 1, 32), "1c": vector(1, 4, 32)}.items():

        def assign(x: Tensor, value: Tensor = value) -> None:
            x[:] = value

        yield f"{name}-assign", "mistake", lambda f=assign: peer.edited(ids, f), meant, plain
        yield f"{name}-replace", "mistake", lambda v=value: peer.edited(ids, lambda _x: v), meant, plain
    rows = vector(4, 32)
    steered = t.wanted(("resid_post.1", plus(rows[:, None])))
    yield "1d", "mistake", lambda: peer.edited(ids, lambda x: x + rows), steered, plain
    v = vector()
    added, wanted = (lambda x: x + v), t.wanted(("resid_post.1", plus(v)))
    for side, given, forgotten in (("left", "4a", "4c"), ("right", "4b", "4d")):
        batch, mask = padded([SHORT, LONG], side)
        right = torch.cat([t.wanted(ids=torch.tensor([row]))[0] for row in (SHORT, LONG)])
        yield given, "must-work", lambda b=batch, m=mask: peer.plain(b, m)[m], right, right * 0
        kind = "mistake" if side == "left" else "must-work"
        yield forgotten, kind, lambda b=batch, m=mask: peer.plain(b)[m], right, right * 0

    def last(x: Tensor) -> Tensor:
        return torch.cat([x[:, :-1], x[:, -1:] + v], 1)

    batch, mask = padded([SHORT, LONG], "right")
    ended = torch.cat([t.wanted(("resid_post.1", last), ids=torch.tensor([row]))[0] for row in (SHORT, LONG)])
    bare = torch.cat([t.wanted(ids=torch.tensor([row]))[0] for row in (SHORT, LONG)])
    yield "4f", "mistake", lambda: peer.edited(batch, last, mask)[mask], ended, bare
    yield "7", "must-work", lambda: _after_exception(peer, ids), plain, wanted
    yield "8b", "must-work", lambda: _beside(peer, ids, v), plain, wanted
    yield "13a", "must-work", lambda: peer.edited(ids, lambda x: x), plain, wanted
    yield "13b", "must-work", lambda: peer.plain(ids), plain, wanted
    yield "1-control", "must-work", lambda: peer.edited(ids, added), wanted, plain
    if not isinstance(peer, Pyvene):
        stored = t.whole().seen["resid_post.0"].detach()

        def in_place(x: Tensor) -> None:
            x.add_(v)

        yield "14a", "must-work", lambda: peer.kept(ids, in_place), stored, stored + v
    before = _visible(t.twin)

    def state() -> Tensor:
        peer.edited(ids, added)
        return torch.tensor(float(_visible(t.hf) != before))

    yield "17c", "must-work", state, torch.tensor(0.0), torch.tensor(1.0)

    w = vector(seed=6)
    both, own = t.wanted(("resid_post.1", plus(v + w))), t.hf.get_submodule(BLOCKS[t.name].format(1))
    own.register_forward_hook(lambda _m, _a, out: out + w)
    yield "6b", "must-work", lambda: peer.edited(ids, added), both, wanted


def _visible(hf: Any) -> tuple[Any, ...]:
    """What a user sees of a model: flags, training mode, paths of modules, keys, the attention setting."""
    flags = {name: (p.requires_grad, p.grad is None) for name, p in hf.named_parameters()}
    modes = {name: module.training for name, module in hf.named_modules()}
    return flags, modes, sorted(hf.state_dict()), hf.config._attn_implementation


def _after_exception(peer: Hooks, ids: Tensor) -> Tensor:
    calls: list[int] = []

    def broken(x: Tensor) -> Tensor:
        calls.append(1)
        if len(calls) == 1:
            raise KeyError("mine")
        return x + 3.0 * x.flip(-1)

    with contextlib.suppress(Exception):
        peer.edited(ids, broken)
    return peer.plain(ids)


def _beside(peer: Hooks, ids: Tensor, v: Tensor) -> Tensor:
    """A plain run in this thread while another edits."""
    inside, done = threading.Event(), threading.Event()

    def waits(x: Tensor) -> Tensor:
        if threading.current_thread() is not threading.main_thread():
            inside.set()
            done.wait(10)
        return x + v

    def edits() -> None:
        with contextlib.suppress(BaseException), torch.no_grad():
            peer.edited(ids, waits)

    other = threading.Thread(target=edits)
    other.start()
    inside.wait(5)
    try:
        return peer.plain(ids)
    finally:
        done.set()
        other.join()


def outcome(run: Callable[[], Tensor], wanted: Tensor, plain: Tensor) -> str:
    """As in docs/silent-failures.md."""
    try:
        with torch.no_grad():
            found = run()
    except Exception as error:  # noqa: BLE001 - whatever a peer raises is what is judged
        text = f"{type(error).__name__}: {error}"
        return "raises" if any(word in text.lower() for word in ("interven", "hook point", "edit")) else "obscure"
    if found.shape != wanted.shape:
        return "WRONG (shape)"
    off, moved = float((found - wanted).abs().max()), float((wanted - plain).abs().max())
    return "right" if off < 1e-5 else f"WRONG {off:.2g}/{moved:.2g}"


def measure(name: str) -> None:
    """One peer, in this interpreter: JSON lines of case, kind, shape and outcome. Each case has a model of its own."""
    for family in NAMES:
        for i in itertools.count():
            t = shape(family)
            found = next(itertools.islice(attempts(t, PEERS[name](t.hf)), i, None), None)
            if found is None:
                break
            case, kind, run, wanted, plain = found
            line = {"case": case, "kind": kind, "shape": family, "outcome": outcome(run, wanted, plain)}
            print(json.dumps(line), flush=True)


def table(names: list[str]) -> None:
    """Every peer in its own environment; a row a case."""
    from make import make

    rows: dict[str, dict[str, str]] = {}
    for name in names:
        python = Path(sys.executable) if name == "hooks" else make(name)
        given = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"}
        command = [str(python), __file__, "--measure", name]
        done = subprocess.run(command, capture_output=True, text=True, env=given, cwd=ROOT, check=False)
        for line in done.stdout.splitlines():
            if line.startswith("{"):
                found = json.loads(line)
                rows.setdefault(f"{found['case']} {found['kind']} {found['shape']}", {})[name] = found["outcome"]
        if done.returncode:
            print(f"{name}: stopped early: {done.stderr.strip().splitlines()[-1:]}")
    print("| case | kind | shape | " + " | ".join(names) + " |\n|---|---|---|" + "---|" * len(names))
    for key in sorted(
        rows, key=lambda text: (int("".join(c for c in text.split()[0].split("-")[0] if c.isdigit())), text)
    ):
        print(f"| {' | '.join(key.split())} | {' | '.join(rows[key].get(name, '-') for name in names)} |")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        torch.set_num_threads(1)
        measure(sys.argv[2])
    else:
        table(sys.argv[1:] or list(PEERS))
