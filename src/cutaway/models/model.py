"""A loaded model: the module, untouched, with its tokenizer and its anatomy. Thin: the work is done by functions
that take it."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cutaway.artifacts import digest
from cutaway.errors import (
    OutOfRange,
    SiteUnavailable,
    TokenizerUnfit,
    TokenNotSingle,
    UnknownSite,
    UsageError,
    did_you_mean,
)
from cutaway.models import generation, gradients
from cutaway.models.activations import Activations
from cutaway.models.anatomy import Anatomy
from cutaway.models.chat import Conversation, chat_ids, conversations
from cutaway.models.edits import Edit, Placed, edits_of
from cutaway.models.examples import Example
from cutaway.models.forward import LogitsAt, Raw, accepted, check, forward, logit_columns, run_raw
from cutaway.models.sites import Site, SiteSet
from cutaway.models.taps import every
from cutaway.models.tokens import Tokens, from_rows

Prompts: TypeAlias = (
    Tokens | str | Sequence[str] | Sequence[Sequence[int]] | Tensor | Conversation | Sequence[Conversation]
)
Inputs: TypeAlias = Prompts | Raw | dict[str, Any] | tuple[Any, ...]
"""Prompts, or what a wrapped module takes: its arguments, as a tensor, a tuple or a dict."""
Wanted: TypeAlias = Site | SiteSet | str | Iterable[Site | SiteSet | str]


@dataclass(frozen=True)
class RunResult:
    """What one run returned."""

    logits: Float[Tensor, "batch pos d_vocab"] | None
    """Logits at the positions asked for (all: padding included); None when none were asked for."""
    activations: Activations
    """The sites read, after the edits."""


def raw_of(inputs: Any) -> Raw:
    """A wrapped module's own arguments: a tensor, a tuple of them, or a dict of keyword arguments."""
    if isinstance(inputs, Raw):
        return inputs
    if isinstance(inputs, dict):
        return Raw((), inputs)
    return Raw(tuple(inputs) if isinstance(inputs, tuple) else (inputs,), {})


class Model:
    """A module with its tokenizer and anatomy. Made by `cutaway.load` or `cutaway.wrap`; the module stays usable as
    it is."""

    def __init__(self, module: nn.Module, tokenizer: Any, anatomy: Anatomy | None, name: str) -> None:
        self.module = module
        self.tokenizer = tokenizer
        self.name = name
        self._anatomy = anatomy
        self.example: Example | None = None
        """For a wrapped module with a body: the inputs on which it was found. Its runs take inputs like them."""
        self.accepts = accepted(module.forward)
        self._digest: tuple[list[tuple[int, int, int]], str] | None = None

    def __repr__(self) -> str:
        a = self._anatomy
        size = f"{a.n_layers} layers, d_model {a.d_model}, {a.n_heads} heads" if a else "no anatomy"
        return f"Model({self.name!r}: {type(self.module).__name__}, {size})"

    # -- what it is

    @property
    def anatomy(self) -> Anatomy | None:
        """Sizes and site map; None for a wrapped module."""
        return self._anatomy

    @property
    def body(self) -> Anatomy:
        """The anatomy, or SiteUnavailable for a wrapped module."""
        if self._anatomy is None:
            raise SiteUnavailable(
                f"{self.name}: a wrapped module has no anatomy; address sites by module path, as in "
                "sites.module('encoder.0')",
                reason="wrapped module",
            )
        return self._anatomy

    @property
    def device(self) -> torch.device:
        """Where the inputs go: the device of the first parameter, or where accelerate runs it."""
        first = next((p.device for p in self.module.parameters()), torch.device("cpu"))
        if first.type != "meta":
            return first
        hooks = [getattr(m, "_hf_hook", None) for m in self.module.modules()]
        places = [getattr(hook, "execution_device", None) for hook in hooks]
        return torch.device(next((place for place in places if place is not None), "cpu"))

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the first floating parameter."""
        return next((p.dtype for p in self.module.parameters() if p.is_floating_point()), torch.float32)

    @property
    def dispatched(self) -> bool:
        """accelerate moves weights around during a pass; such a pass must not be cut short."""
        return any(hasattr(m, "_hf_hook") for m in self.module.modules())

    @property
    def digest(self) -> str:
        """SHA-256 over the configuration and the names and bytes of all weights and buffers that are saved.

        Computed when first asked for, and again after weights were replaced or changed in place (what is changed in
        place through `.data` goes unnoticed: torch does not count it).
        """
        parts = every(self.module)
        held = [t for part in parts for t in (*part._parameters.values(), *part._buffers.values()) if t is not None]
        state = [(id(tensor), tensor._version, tensor.data_ptr()) for tensor in held]
        if self._digest is None or self._digest[0] != state:
            content = [[name, digest(tensor)] for name, tensor in sorted(weights(self.module))]
            self._digest = (state, digest([_configuration(self.module), content]))
        return self._digest[1]

    @cached_property
    def tokenizer_digest(self) -> str | None:
        """SHA-256 of the vocabulary and the special tokens; None without a tokenizer."""
        if self.tokenizer is None:
            return None
        return digest([sorted(self.tokenizer.get_vocab().items()), sorted(map(str, self.tokenizer.all_special_tokens))])

    # -- tokens

    def encode(
        self,
        prompts: Prompts,
        *,
        roles: Mapping[str, Sequence[int]] | None = None,
        pad: str = "right",
        bos: bool | None = None,
        mask: Tensor | None = None,
    ) -> Tokens:
        """Token rows of prompts: texts, lists of ids, a tensor of ids [batch pos] (with its mask, when it is padded),
        or conversations, which go through the tokenizer's chat template: [{"role": "user", "content": "Hello"}].

        Padding in ids without a mask: after a row it is left out where it cannot be text, for what comes later changes
        nothing before it; before a row it is refused, since it would be read as text.
        `bos`: True or False adds or leaves out the beginning-of-sequence token; None is the tokenizer's own habit.
        `roles` names positions: for each name one index a row, counted in the row without padding, BOS included.
        """
        if isinstance(prompts, Tokens):
            if roles is not None or bos is not None or mask is not None:
                raise UsageError("roles=, bos= and mask= belong to prompts; these are encoded already, with their own")
            return self.admit(prompts)
        if isinstance(prompts, Mapping):
            raise UsageError(
                f"prompts: a {type(prompts).__name__} of {', '.join(map(repr, prompts))}, whose names would be run as "
                "texts; give encode(found['input_ids'], mask=found['attention_mask'])"
            )
        if isinstance(prompts, Tensor):
            return self._texts(self.admit(_from_tensor(prompts, mask, roles, self)))
        if isinstance(prompts, str):
            prompts = [prompts]
        if (talks := conversations(prompts)) is not None:
            if bos is not None:
                raise UsageError("bos= belongs to texts; the chat template of messages says how they begin")
            prompts = chat_ids(self.tokenizer, talks, self.name)
        rows = [self.text_ids(p, bos=bos) if isinstance(p, str) else _whole_numbers(p) for p in prompts]
        given = [row for p, row in zip(prompts, rows) if not isinstance(p, str)]
        if mask is not None or (
            self.tokenizer is not None and len(set(map(len, given))) == 1 and len(given) == len(rows)
        ):
            mask = None if mask is None else torch.as_tensor(mask)
            return self._texts(self.admit(_from_tensor(torch.tensor(rows), mask, roles, self)))
        return self._texts(self.admit(from_rows(rows, pad=pad, pad_id=self.pad_id, roles=roles)))

    def admit(self, tokens: Tokens, new: int = 1) -> Tokens:
        """The same rows, when this model can take them, and go on from them until there are `new` more tokens.

        Raises UsageError for an id that is not in the vocabulary, OutOfRange for rows beyond the context that the
        configuration states, UsageError for padding that would change what a row gives.
        """
        if self._anatomy is None:
            return tokens
        self._known(tokens, self._anatomy.d_vocab)
        if self._anatomy.length is not None:
            _within(tokens, new, self._anatomy.length)
        sides = {"left": any(tokens.offsets)}
        sides["right"] = any(o + n < tokens.width for o, n in zip(tokens.offsets, tokens.lengths))
        for side, reason in self._anatomy.padding.items():
            if sides[side]:
                raise UsageError(
                    f"rows padded on the {side}: {type(self.module).__name__} then gives other numbers than for the "
                    f"row alone ({reason}); run rows of one length, or one row at a time",
                    side=side,
                )
        return tokens

    def _known(self, tokens: Tokens, n: int | None) -> Tokens:
        if n is None:
            return tokens
        bad = (tokens.mask & ((tokens.ids < 0) | (tokens.ids >= n))).nonzero().tolist()
        if bad:
            row, column = bad[0]
            raise UsageError(
                f"token id {int(tokens.ids[row, column])} in row {row}: this model has {n} tokens (0-{n - 1}); "
                "encode with the tokenizer that belongs to it"
            )
        return tokens

    @property
    def pad_id(self) -> int:
        """The id that fills padding; masked, so that any would do."""
        found = getattr(self.tokenizer, "pad_token_id", None)
        return 0 if found is None else int(found)

    @property
    def _own_pad_id(self) -> int:
        """The padding id by which the model itself tells padding from tokens."""
        config: Any = getattr(self.module, "config", None)
        found = getattr(config, "pad_token_id", None)
        return self.pad_id if found is None else int(found)

    def strings(self, ids: Sequence[int] | Tensor) -> list[str]:
        """One display string a token."""
        if self.tokenizer is None:
            return [str(int(i)) for i in ids]
        return [self.tokenizer.decode([int(i)], clean_up_tokenization_spaces=False) for i in ids]

    def token_id(self, text: str) -> int:
        """The id of a text that is exactly one token; else TokenNotSingle."""
        ids = self._need_tokenizer().encode(text, add_special_tokens=False)
        if len(ids) != 1:
            raise TokenNotSingle(
                f"{text!r} is {len(ids)} tokens here ({self.strings(ids)}); give a text that is one token",
                text=text,
                ids=ids,
            )
        return ids[0]

    def text_ids(self, text: str, *, bos: bool | None = None) -> list[int]:
        """Token ids of a text, however long; `bos` as in `encode`."""
        tokenizer = self._need_tokenizer()
        ids = list(tokenizer(text, add_special_tokens=bos is None, verbose=False)["input_ids"])
        if not ids and not bos:
            raise UsageError(
                f"text {text!r}: it has no tokens, so there is nothing to run; give a text with at least one"
            )
        if not bos:
            if bos is None and len(ids) > 1 and ids[0] == ids[1] and ids[0] in _first_ids(tokenizer):
                self._refuse_two(text, ids)
            return ids
        if tokenizer.bos_token_id is None:
            raise TokenizerUnfit(
                f"{self.name}: the tokenizer has no BOS token; use bos=False, or set tokenizer.bos_token", what="bos"
            )
        if ids and ids[0] == tokenizer.bos_token_id:
            self._refuse_two(text, [tokenizer.bos_token_id, *ids])
        return [tokenizer.bos_token_id, *ids]

    def _refuse_two(self, text: str, ids: list[int]) -> None:
        raise UsageError(
            f"text {text!r}: it begins with {self.strings(ids[:1])[0]!r}, and the tokenizer adds one more; pass "
            "bos=False, or leave it out of the text"
        )

    def _need_tokenizer(self) -> Any:
        if self.tokenizer is None:
            raise TokenizerUnfit(
                f"{self.name}: no tokenizer; give texts as lists of token ids, or load with tokenizer=",
                what="tokenizer",
            )
        return self.tokenizer

    def _texts(self, tokens: Tokens) -> Tokens:
        if self.tokenizer is None:
            return tokens
        texts = tuple(tuple(self.strings(tokens.row(r))) for r in range(len(tokens)))
        return Tokens(tokens.ids, tokens.mask, tokens.roles, texts)

    # -- runs

    def capture(self, inputs: Inputs, wanted: Wanted) -> Activations:
        """The values of sites in a plain run. Cost: one forward pass, cut short after the deepest site."""
        return self.run(inputs, reads=wanted, logits="none").activations

    def run(
        self, inputs: Inputs, edits: Sequence[Edit] = (), reads: Wanted = (), logits: LogitsAt = "all"
    ) -> RunResult:
        """One forward pass with edits, reads and logits where asked.

        Raises UnknownSite, OutOfRange, BadEdit before anything runs; EditNeverApplied, EditFailed after or in it. The
        module is left as it was in every case.
        """
        edits = edits_of(edits)
        if isinstance(inputs, Raw) or self._anatomy is None or self.example is not None:
            return self._run_raw(inputs, edits, reads)
        tokens = self.encode(inputs)  # type: ignore[arg-type]
        found = self.body.expand(reads) if reads or isinstance(reads, Site | SiteSet) else []
        if not found and logits == "none":
            raise UsageError("this run returns nothing: ask for reads, or for logits")
        placed = [Placed(edit, tokens) for edit in edits]
        check(self, placed, found)
        out, values = forward(self, tokens, edits=placed, reads=found, logits=logit_columns(tokens, logits))
        ordered = {site.base: values[site.base] for site in found}
        return RunResult(out, Activations(ordered, tokens, self.digest))

    def _run_raw(self, inputs: Any, edits: Sequence[Edit], reads: Wanted) -> RunResult:
        raw = raw_of(inputs)
        wanted = [reads] if isinstance(reads, Site | SiteSet | str) else reads
        if self.example is not None:
            found = self.body.expand(wanted) if wanted else []
        else:
            found = [Site.parse(s) if isinstance(s, str) else s for s in wanted]
        for site in [*found, *(e.site for e in edits)]:
            if not isinstance(site, Site) or (site.kind != "module" and self.example is None):
                raise SiteUnavailable(
                    f"site {site}: a wrapped module has no anatomy; address it by path, as in "
                    "sites.module('encoder.0'), or give wrap(module, inputs=...) an example to find its blocks",
                    reason="wrapped module",
                )
            if site.kind == "module":
                self.submodule(site.path or "")
        out, values = run_raw(self, raw, edits, found)  # type: ignore[arg-type]
        tensor = out if isinstance(out, Tensor) and out.ndim == 3 else getattr(out, "logits", None)
        return RunResult(
            tensor if isinstance(tensor, Tensor) and tensor.ndim == 3 else None, Activations(values, None, self.digest)
        )

    def submodule(self, path: str) -> nn.Module:
        """The module at a path. Raises UnknownSite with the nearest path."""
        paths = dict(self.module.named_modules())
        if path not in paths:
            raise UnknownSite(
                f"module {path!r}: not in {type(self.module).__name__}.{did_you_mean(path, paths)}", site=path
            )
        return paths[path]

    def generate(
        self, prompt: Prompts, edits: Sequence[Edit] = (), *, max_new_tokens: int = 20, **options: Any
    ) -> Tokens:
        """Continue prompts, with edits in force. See `cutaway.models.generation.generate`."""
        return generation.generate(
            self, self.encode(prompt, pad="left"), edits, max_new_tokens=max_new_tokens, **options
        )

    def grad(
        self, inputs: Prompts, metric: Callable[[Tensor], Tensor], wanted: Wanted, edits: Sequence[Edit] = ()
    ) -> "gradients.Gradients":
        """Gradient of a scalar of the logits with respect to sites. See `cutaway.models.gradients.grad`."""
        return gradients.grad(self, self.encode(inputs), metric, self.body.expand(wanted), edits)

    def inputs(self, tokens: Tokens, start: int = 0, cache: Any = None) -> dict[str, Any]:
        """The arguments of the module's forward for token rows, from a column on."""
        counted = self._anatomy is None or self._anatomy.positions
        ids = tokens.ids if counted else tokens.ids.masked_fill(~tokens.mask, self._own_pad_id)
        kwargs: dict[str, Any] = {"input_ids": ids[:, start:].to(self.device)}
        if "attention_mask" in self.accepts:
            kwargs["attention_mask"] = tokens.mask.long().to(self.device)
        if "position_ids" in self.accepts and counted:
            kwargs["position_ids"] = tokens.position_ids[:, start:].to(self.device)
        if "use_cache" in self.accepts:
            kwargs["use_cache"] = cache is not None
        if cache is not None:
            kwargs["past_key_values"] = cache
        return kwargs


def _within(tokens: Tokens, new: int, limit: int) -> None:
    """The longest row, and all but the last of `new` tokens after it, have a position."""
    n = max(tokens.lengths)
    if n > limit:
        raise OutOfRange(
            f"row {tokens.lengths.index(n)} has {n} tokens, and this model's configuration states a context of "
            f"{limit}; shorten the prompt, or load a model with a longer context",
            length=n,
            limit=limit,
        )
    if n + new - 1 > limit:
        raise OutOfRange(
            f"a prompt of {n} tokens and {new} new ones need {n + new - 1} positions, and this model's configuration "
            f"states a context of {limit}; use max_new_tokens={limit - n + 1}, or a shorter prompt",
            length=n + new - 1,
            limit=limit,
        )


def _whole_numbers(row: Any) -> list[int]:
    """Token ids as they are; nothing is rounded."""
    if not isinstance(row, Iterable):
        raise UsageError(f"prompts: {row!r} is neither a text nor a list of token ids; give rows, as in [[5, 6, 7]]")
    found = list(row)
    for item in found:
        if isinstance(item, bool) or not hasattr(item, "__index__"):
            raise UsageError(f"token id {item!r}: ids are whole numbers")
    try:
        return [int(item.__index__()) for item in found]
    except TypeError as error:  # a tensor of floats has the method and refuses
        raise UsageError(f"token ids {row!r}: ids are whole numbers") from error


def _first_ids(tokenizer: Any) -> set[int]:
    """What a tokenizer may put before a text."""
    return {i for i in (tokenizer.bos_token_id, getattr(tokenizer, "cls_token_id", None)) if i is not None}


def _from_tensor(ids: Tensor, mask: Tensor | None, roles: Mapping[str, Sequence[int]] | None, model: Model) -> Tokens:
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise UsageError(f"a tensor of token ids holds whole numbers, not {ids.dtype}")
    ids = ids[None] if ids.ndim == 1 else ids
    if mask is None:
        mask = _without_padding(ids, model)
    mask = mask[None] if mask.ndim == 1 else mask
    return Tokens(ids.long().cpu(), mask.bool().cpu(), {name: tuple(where) for name, where in (roles or {}).items()})


def _without_padding(ids: Tensor, model: Model) -> Tensor:
    """The mask of ids that were given without one: what follows a row and can only be padding is left out.

    Raises UsageError for rows that begin with padding, and for what may be padding or text.
    """
    tokenizer = model.tokenizer
    own = getattr(tokenizer, "pad_token_id", None)
    pad = getattr(getattr(model.module, "config", None), "pad_token_id", None) if own is None else own
    mask = torch.ones_like(ids, dtype=torch.bool)
    if not isinstance(pad, int) or ids.numel() == 0:
        return mask
    others = [getattr(tokenizer, f"{name}_token_id", None) for name in ("bos", "eos", "cls", "sep")]
    shared = own is None or pad in others
    depth = 2 if own is not None and shared else 1
    first, last = ((part == pad).all(1) for part in (ids[:, :depth], ids[:, -depth:]))
    if not shared:
        mask = (ids != pad).flip(1).int().cummax(1).values.flip(1).bool()
        last = ~mask.any(1)
    for edge, verb in ((first, "begins"), (last, "ends")):
        if bool(edge.any()) and not (shared and bool(edge.all())):
            row = int(edge.nonzero()[0])
            raise UsageError(
                f"row {row} {verb} with the padding id {pad}, and no mask was given: padding would be read as text; "
                "pass encode(ids, mask=mask), all True where it is text",
                row=row,
            )
    return mask


def weights(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Names and values of all weights and buffers that are saved, also of those that accelerate keeps elsewhere."""
    for name, tensor in module.state_dict().items():
        if not isinstance(tensor, Tensor):
            continue
        if tensor.device.type == "meta":
            path, _, leaf = name.rpartition(".")
            tensor = module.get_submodule(path)._hf_hook.weights_map[leaf]  # type: ignore[union-attr]
        yield name, tensor


def _configuration(module: nn.Module) -> Any:
    """The configuration as JSON, without what does not change results (where from, which version, which kernel)."""
    config = getattr(module, "config", None)
    if not hasattr(config, "to_json_string"):
        return None
    left_out = ("_name_or_path", "transformers_version", "dtype", "_attn_implementation", "architectures", "use_cache")
    found = json.loads(config.to_json_string(use_diff=False))  # type: ignore[union-attr]
    return {key: value for key, value in found.items() if key not in left_out and not key.startswith("output_")}
