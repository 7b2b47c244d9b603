"""The same three jobs in each tool: keep the clean values, one patched pass, a capture of the residual stream.

Every tool patches `resid_pre` of a layer at one position, or one head's `z` at all positions, and gives the logits of
the last token. `Hand` is what a careful person writes with plain hooks on the Hugging Face model; the others are
written as their own documentation does it.
"""

import copy
import tempfile
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor


class Tool(Protocol):
    """One tool with one model."""

    def keep(self, ids: Tensor) -> None:
        """Store the clean values of all sites of the job."""
        ...

    def cell(self, ids: Tensor, layer: int, unit: int) -> Tensor:
        """Logits of the last token [rows d_vocab] of one patched run."""
        ...

    def capture(self, ids: Tensor) -> Any:
        """The residual stream before every block, and the logits."""
        ...


def parts(module: Any) -> tuple[list[Any], list[Any]]:
    """Blocks, and the output projections of their attention, of a GPT-2 or a Llama."""
    if hasattr(module, "transformer"):
        blocks = list(module.transformer.h)
        return blocks, [block.attn.c_proj for block in blocks]
    blocks = list(module.model.layers)
    return blocks, [block.self_attn.o_proj for block in blocks]


def head_size(module: Any) -> int:
    """Width of one head."""
    return module.config.hidden_size // module.config.num_attention_heads


class Hand:
    """Plain hooks."""

    def __init__(self, module: Any, job: str) -> None:
        self.module, self.job, self.d_head = module, job, head_size(module)
        blocks, outputs = parts(module)
        self.blocks, self.targets = blocks, blocks if job == "resid" else outputs
        self.kept: list[Tensor] = []

    @torch.no_grad()
    def logits(self, ids: Tensor) -> Tensor:
        return self.module(input_ids=ids, use_cache=False).logits

    def keep(self, ids: Tensor) -> None:
        self.kept = []
        handles = [t.register_forward_pre_hook(lambda _, args: self.kept.append(args[0])) for t in self.targets]
        self.logits(ids)
        for handle in handles:
            handle.remove()

    def cell(self, ids: Tensor, layer: int, unit: int) -> Tensor:
        def hook(_: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
            changed = args[0].clone()
            where = self.where(unit)
            changed[where] = self.kept[layer][where]
            return (changed, *args[1:])

        handle = self.targets[layer].register_forward_pre_hook(hook)
        logits = self.logits(ids)[:, -1]
        handle.remove()
        return logits

    def where(self, unit: int) -> tuple[Any, ...]:
        """What a cell covers: a position, or the columns of a head."""
        if self.job == "resid":
            return slice(None), unit
        return slice(None), slice(None), slice(unit * self.d_head, (unit + 1) * self.d_head)

    def capture(self, ids: Tensor) -> Any:
        kept: list[Tensor] = []
        handles = [t.register_forward_pre_hook(lambda _, args: kept.append(args[0].clone())) for t in self.blocks]
        logits = self.logits(ids)
        for handle in handles:
            handle.remove()
        return kept, logits


class TransformerLens:
    """The bridge of TransformerLens 4, with hooks by name."""

    def __init__(self, module: Any, job: str) -> None:
        from transformer_lens.model_bridge import TransformerBridge

        family = {"gpt2": "gpt2", "llama": "meta-llama/Llama-2-7b-hf"}[module.config.model_type]
        self.bridge: Any = TransformerBridge.boot_transformers(
            family, hf_model=copy.deepcopy(module), tokenizer=tokenizer(module.config.vocab_size)
        )
        self.job, self.end = job, "hook_resid_pre" if job == "resid" else "attn.hook_z"
        self.kept: Any = None

    @torch.no_grad()
    def keep(self, ids: Tensor) -> None:
        _, self.kept = self.bridge.run_with_cache(ids, names_filter=lambda name: name.endswith(self.end))

    @torch.no_grad()
    def cell(self, ids: Tensor, layer: int, unit: int) -> Tensor:
        name = f"blocks.{layer}.{self.end}"
        where = (slice(None), unit) if self.job == "resid" else (slice(None), slice(None), unit)

        def patch(value: Tensor, hook: Any) -> Tensor:  # noqa: ARG001 - hooks are called by keyword
            value[where] = self.kept[name][where]
            return value

        return self.bridge.run_with_hooks(ids, fwd_hooks=[(name, patch)])[:, -1]

    @torch.no_grad()
    def capture(self, ids: Tensor) -> Any:
        logits, kept = self.bridge.run_with_cache(ids, names_filter=lambda name: name.endswith("hook_resid_pre"))
        return kept, logits


class Nnsight:
    """A trace a cell."""

    def __init__(self, module: Any, job: str) -> None:
        from nnsight import NNsight

        self.hand = Hand(module, job)
        self.model: Any = NNsight(module)
        self.job = job
        self.blocks, outputs = parts(self.model)
        self.targets = self.blocks if job == "resid" else outputs
        self.kept: list[Tensor] = []

    @torch.no_grad()
    def keep(self, ids: Tensor) -> None:
        import nnsight

        with self.model.trace(ids, use_cache=False):
            kept = nnsight.save([target.input for target in self.targets])
        self.kept = [value.clone() for value in kept]

    @torch.no_grad()
    def cell(self, ids: Tensor, layer: int, unit: int) -> Tensor:
        target, donor, where = self.targets[layer], self.kept[layer], self.hand.where(unit)
        model = self.model
        with model.trace(ids, use_cache=False):
            target.input[where] = donor[where]
            found = model.output.logits[:, -1].save()
        return found  # noqa: RET504 - the trace ends first

    @torch.no_grad()
    def capture(self, ids: Tensor) -> Any:
        import nnsight

        blocks, model = self.blocks, self.model
        with model.trace(ids, use_cache=False):
            kept = nnsight.save([block.input for block in blocks])
            logits = model.output.logits.save()
        return kept, logits


class Pyvene:
    """An intervenable model a cell; the source runs again in each, as its interface has it."""

    def __init__(self, module: Any, job: str) -> None:
        self.module, self.job, self.hand = module, job, Hand(module, job)
        self.clean: Tensor | None = None

    def keep(self, ids: Tensor) -> None:
        self.clean = ids

    @torch.no_grad()
    def cell(self, ids: Tensor, layer: int, unit: int) -> Tensor:
        import pyvene

        component = "block_input" if self.job == "resid" else "head_attention_value_output"
        config = {"layer": layer, "component": component, "intervention_type": pyvene.VanillaIntervention}
        model = pyvene.IntervenableModel(config if self.job == "resid" else {**config, "unit": "h"}, model=self.module)
        locations: Any = {"sources->base": unit}
        _, out = model({"input_ids": ids}, [{"input_ids": self.clean}], locations)
        logits = out.logits[:, -1]
        model._cleanup_states()
        return logits

    @torch.no_grad()
    def capture(self, ids: Tensor) -> Any:
        import pyvene

        blocks = range(len(self.hand.blocks))
        config = [
            {"layer": i, "component": "block_input", "intervention_type": pyvene.CollectIntervention} for i in blocks
        ]
        model = pyvene.IntervenableModel(config, model=self.module)
        (_, kept), out = model({"input_ids": ids}, unit_locations=None)
        return kept, out.logits


def tokenizer(size: int) -> Any:
    """A tokenizer of so many words, as much as a model of random weights needs; from a folder, where it is looked for
    again."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    words = WordLevel({f"t{i}": i for i in range(size)}, unk_token="t0")
    made = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(words), bos_token="t0", eos_token="t0", pad_token="t0", unk_token="t0"
    )
    folder = Path(tempfile.gettempdir()) / f"cutaway-words-{size}"
    made.save_pretrained(folder)
    return PreTrainedTokenizerFast.from_pretrained(folder)


TOOLS: dict[str, Any] = {"transformer-lens": TransformerLens, "nnsight": Nnsight, "pyvene": Pyvene}
"""Name of a peer, as that of its pins, to its jobs."""
