"""What steering does to a continuation: the plain text and the steered one, side by side.

For every new token of the steered text, its gain is log p(token | steered) - log p(token | plain) in nat, both models
reading the same text: where the gain is large, the token is there because of the edits.
"""

import importlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cutaway import engine
from cutaway.artifacts import Provenance, digest, save_tensors, saved
from cutaway.engine import Run
from cutaway.errors import TokenizerUnfit, UsageError
from cutaway.figures import Figure, Strip
from cutaway.models.edits import Edit
from cutaway.models.generation import generate
from cutaway.models.model import Model, Prompts, RunResult
from cutaway.models.spans import Span
from cutaway.models.streams import Piece
from cutaway.models.tokens import Tokens
from cutaway.steering.vector import Steering


@dataclass(frozen=True)
class Comparison:
    """Continuations without and with edits; one entry a row, samples of one prompt beside one another."""

    prompts: tuple[str, ...]
    plain: tuple[str, ...]
    """Text that the model writes on its own."""
    steered: tuple[str, ...]
    """Text that it writes with the edits; the same as `plain` when there are none."""
    tokens: tuple[tuple[str, ...], ...]
    """New tokens of the steered text."""
    gain: tuple[tuple[float, ...], ...]
    """log p(steered) - log p(plain) of each of them, nat. Positive: the edits made it likelier."""
    edits: tuple[str, ...]
    settings: dict[str, Any]
    """Options of the generation."""
    provenance: Provenance

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.prompts)

    def table(self) -> list[dict[str, Any]]:
        """One row a continuation: both texts, and the mean gain of the steered tokens."""
        return [
            {"prompt": p, "plain": a, "steered": b, "changed": a != b, "mean_gain": sum(g) / max(1, len(g))}
            for p, a, b, g in zip(self.prompts, self.plain, self.steered, self.gain)
        ]

    def figures(self) -> tuple[Figure, ...]:
        """The steered texts, each token shaded by its gain."""
        if not self.edits:
            return ()
        return (
            Strip(
                "Steered continuations",
                "Shade: how much likelier the edits made each new token, log p(steered) - log p(plain).",
                "nat",
                tuple(tuple(zip(words, gains)) for words, gains in zip(self.tokens, self.gain)),
            ),
        )

    def save(self, path: str | Path) -> str:
        """Write one safetensors file with its manifest; returns the file's SHA-256."""
        manifest = {
            "kind": "comparison",
            "format": 1,
            **{name: getattr(self, name) for name in (*_TEXTS, "provenance")},
        }
        flat = torch.tensor([value for row in self.gain for value in row], dtype=torch.float64)
        return save_tensors(Path(path), {"gain": flat}, manifest)

    @classmethod
    def load(cls, path: str | Path, model: Model | None = None) -> "Comparison":
        """Read a saved file. Raises WrongModel when another model made it, BrokenEvidence when it is something else."""
        with saved(path, "comparison", None if model is None else model.digest) as (tensors, manifest):
            provenance = Provenance(**manifest["provenance"])
            texts = {name: tuple(manifest[name]) for name in ("prompts", "plain", "steered", "edits")}
            words = tuple(tuple(row) for row in manifest["tokens"])
            parts = tensors["gain"].split([len(row) for row in words])
            gain = tuple(tuple(part.tolist()) for part in parts)
            return cls(**texts, tokens=words, gain=gain, settings=manifest["settings"], provenance=provenance)


_TEXTS = ("prompts", "plain", "steered", "tokens", "edits", "settings")


def compare(
    model: Model,
    prompts: Prompts,
    steer: Iterable[Steering | Edit],
    *,
    max_new_tokens: int = 20,
    on_text: Callable[[str, Piece], None] | None = None,
    **options: Any,
) -> Comparison:
    """Continue prompts with and without steering, by the same settings and the same draws.

    Cost: both generations, and one pass of each model over the steered text. Raises as `generate` does.

    Args:
        steer: vectors and edits, used together; none gives the plain continuation alone.
        on_text: called with 'plain' or 'steered' and each piece of text as it is written.
        options: temperature, top_k, top_p, seed, n_samples, stop, cache, as in `Model.generate`.
    """
    if model.tokenizer is None:
        raise TokenizerUnfit(
            f"{model.name}: no tokenizer, so there are no texts to compare; use generate", what="tokenizer"
        )
    given = list(steer)
    edits = [edit for item in given for edit in (item.edits() if isinstance(item, Steering) else [item])]
    _refuse_from_the_end(edits)
    tokens = model.encode(prompts, pad="left")
    texts: dict[str, dict[int, str]] = {}
    found: dict[str, Tokens] = {}
    for name, used in (("plain", []), ("steered", edits)):
        if name == "steered" and not edits:
            texts[name], found[name] = texts["plain"], found["plain"]
            continue
        written = texts.setdefault(name, {})

        def piece(part: Piece, name: str = name, written: dict[int, str] = written) -> None:
            written[part.row] = written.get(part.row, "") + part.text
            if on_text is not None:
                on_text(name, part)

        found[name] = generate(model, tokens, used, max_new_tokens=max_new_tokens, on_text=piece, **options)
    n_samples, rows = options.get("n_samples", 1), range(len(found["steered"]))
    gains = _gains(model, found["steered"], edits, n_samples, tokens.lengths)
    settings = {"max_new_tokens": max_new_tokens, **options}
    starts = [tokens.lengths[row // n_samples] for row in rows]
    return Comparison(
        prompts=tuple(_text(model, found["steered"].row(row)[:start]) for row, start in zip(rows, starts)),
        plain=tuple(texts["plain"].get(row, "") for row in rows),
        steered=tuple(texts["steered"].get(row, "") for row in rows),
        tokens=tuple(tuple(model.strings(found["steered"].row(row)[start:])) for row, start in zip(rows, starts)),
        gain=gains,
        edits=tuple(str(item) for item in given),
        settings=json.loads(json.dumps(settings)),
        provenance=Provenance(
            model.digest,
            digest([tokens.digest, [str(edit) for edit in edits]]),
            importlib.import_module("cutaway").__version__,
            options.get("seed"),
        ),
    )


def _gains(
    model: Model, tokens: Tokens, edits: Sequence[Edit], n_samples: int, lengths: Sequence[int]
) -> tuple[tuple[float, ...], ...]:
    """For each row the gain of each of its new tokens."""
    rows = [row for row in range(len(lengths)) for _ in range(n_samples)]
    news = [tokens.lengths[row] - lengths[source] for row, source in enumerate(rows)]
    if not edits:
        return tuple((0.0,) * n for n in news)
    taken = tuple(found for edit in edits if (found := edit.take(rows)) is not None)
    targets = tokens.ids.roll(-1, 1)

    def likelihood(result: RunResult, index: Tensor) -> Tensor:
        assert result.logits is not None
        wanted = targets[index].to(result.logits.device)[..., None]
        return result.logits.float().log_softmax(-1).gather(2, wanted)[..., 0].cpu()

    runs = [Run(tokens, edits=taken, logits="all"), Run(tokens, logits="all")]
    with_, without = engine.plan(model, runs).execute(reduce=likelihood)
    ends = [offset + n - 1 for offset, n in zip(tokens.offsets, tokens.lengths)]
    return tuple(
        tuple((with_[row, end - n : end] - without[row, end - n : end]).tolist())
        for row, (end, n) in enumerate(zip(ends, news))
    )


def _refuse_from_the_end(edits: Sequence[Edit]) -> None:
    """A number from the end means the prompt's end while generating and the row's end afterwards."""
    for edit in edits:
        pos = edit.site.pos
        named = (pos,) if isinstance(pos, int) else pos if isinstance(pos, tuple) else ()
        bounds = (
            [b for b in (pos.start, pos.stop) if b is not None] if isinstance(pos, Span) and pos.part == "row" else []
        )
        if any(p < 0 for p in [*named, *bounds]):
            raise UsageError(
                f"edit {edit}: a position from the end would move as the text grows; write it in the prompt, as in "
                "prompt[-2:], or as 'end'"
            )


def _text(model: Model, ids: Sequence[int]) -> str:
    return model.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
