"""From pairs to aligned token rows: lengths, named positions, and answers as continuations of their prompts.

1. A prompt is tokenised as the model does it, special tokens included.
2. An answer is what remains of prompt + answer after the prompt's tokens. Tokenizers differ in what they do with a
   leading space (GPT-2 keeps it in the token, SentencePiece adds one to every text), so an answer is never tokenised
   on its own. Where the prompt's own tokens change at the seam there is no such remainder, and that is an error.
3. A role is the last token that overlaps its span of characters, by the tokenizer's offsets; without offsets (slow
   tokenizers) the last token of the text up to the span's end.
4. Clean and corrupt must have equally many tokens, and each role at the same index. Patching copies position to
   position: misaligned pairs would give numbers without a meaning.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cutaway.artifacts import digest
from cutaway.errors import AnswersEqual, DataError, Misaligned, TokenizerUnfit, TokenNotSingle
from cutaway.models.model import Model
from cutaway.tasks.batch import Batch
from cutaway.tasks.metric import Metric
from cutaway.tasks.pair import Pair, Prompt, Spans


@dataclass(frozen=True)
class Aligned:
    """A pair in the tokens of one model."""

    clean: tuple[int, ...]
    corrupt: tuple[int, ...]
    answer: tuple[int, ...]
    foil: tuple[int, ...]
    roles: dict[str, int]
    """Index of each named position in both prompts; `end` is their last token."""


def align_pair(pair: Pair, model: Model) -> Aligned:
    """The pair's tokens and positions. Raises Misaligned, AnswersEqual, DataError; TokenizerUnfit for unknown words."""
    clean, corrupt = (_prompt_ids(pair, prompt, model) for prompt in (pair.clean, pair.corrupt))
    if len(clean) != len(corrupt):
        raise Misaligned(
            f"pair {pair.id!r}: clean has {len(clean)} tokens, corrupt {len(corrupt)}; make them equally long: "
            f"clean {_shown(model, clean)}, corrupt {_shown(model, corrupt)}",
            pair=pair.id,
            clean=len(clean),
            corrupt=len(corrupt),
        )
    answer, foil = (_answer_ids(pair, name, model, clean, corrupt) for name in ("answer", "foil"))
    if answer == foil:
        raise AnswersEqual(
            f"pair {pair.id!r}: answer {pair.answer!r} and foil {pair.foil!r} are the same tokens "
            f"{_shown(model, answer)}; they must differ",
            pair=pair.id,
            answer=pair.answer,
        )
    return Aligned(clean, corrupt, answer, foil, _roles(pair, model, clean, corrupt))


def encode_pairs(pairs: Sequence[Pair], metric: Metric, roles: Sequence[str], model: Model) -> Batch:
    """All pairs as one batch. Raises what `align_pair` raises; TokenNotSingle where the metric needs single tokens."""
    found = [align_pair(pair, model) for pair in pairs]
    if metric.single_token:
        for pair, item in zip(pairs, found):
            require_single(pair, item, metric.name, model)
    stacked = metric.reads == "logprob" and any(len(item.answer) > 1 or len(item.foil) > 1 for item in found)
    copies = 2 if stacked else 1
    where = {role: [item.roles[role] for item in found] * copies for role in roles}
    tails = [item.answer for item in found] + [item.foil for item in found] if stacked else [()] * len(found)
    clean, corrupt = (
        model.encode([list(prompt + tail) for prompt, tail in zip(prompts * copies, tails)], roles=where)
        for prompts in ([item.clean for item in found], [item.corrupt for item in found])
    )
    return Batch(
        clean,
        corrupt,
        metric,
        ids=tuple(pair.id for pair in pairs),
        clusters=tuple(pair.cluster for pair in pairs),
        answers=tuple(item.answer for item in found),
        foils=tuple(item.foil for item in found),
    )


def require_single(pair: Pair, found: Aligned, metric: str, model: Model) -> None:
    """Refuse (TokenNotSingle) an answer or foil of several tokens."""
    for name, text, ids in (("answer", pair.answer, found.answer), ("foil", pair.foil, found.foil)):
        if len(ids) > 1:
            raise TokenNotSingle(
                f"pair {pair.id!r}: {name} {text!r} is {len(ids)} tokens {_shown(model, ids)}, and {metric} compares "
                "single tokens; use metric='logprob_diff', which sums over the tokens, or another answer",
                pair=pair.id,
                text=text,
                tokens=list(ids),
            )


def vocabulary_digest(model: Model) -> str:
    """SHA-256 of what gives token ids their meaning: the tokenizer's vocabulary; without one, the number of tokens."""
    return model.tokenizer_digest or digest(["ids", model.body.d_vocab])


def _prompt_ids(pair: Pair, prompt: Prompt, model: Model) -> tuple[int, ...]:
    """Ids with the special tokens that the tokenizer adds by itself, which is what `model.encode` does."""
    if not isinstance(prompt, str):
        return prompt
    tokenizer: Any = model.tokenizer
    if tokenizer is None:
        raise TokenizerUnfit(
            f"pair {pair.id!r}: text needs a tokenizer, and {model.name} has none; load it with tokenizer="
        )
    ids = tuple(tokenizer(prompt)["input_ids"])
    if not ids:
        raise TokenizerUnfit(
            f"pair {pair.id!r}: the tokenizer of {model.name} makes no token of {prompt!r}; "
            "write a prompt that has one",
            pair=pair.id,
        )
    unknown = tokenizer.unk_token_id
    if unknown in ids and unknown not in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        raise TokenizerUnfit(
            f"pair {pair.id!r}: the tokenizer of {model.name} has no token for a part of {prompt!r}: "
            f"{_shown(model, ids)}; use words that it knows, or another model",
            pair=pair.id,
        )
    return ids


def _answer_ids(
    pair: Pair, name: str, model: Model, clean: tuple[int, ...], corrupt: tuple[int, ...]
) -> tuple[int, ...]:
    """The tokens that follow the prompt; the same after clean and after corrupt."""
    value = pair.as_prompt(getattr(pair, name))
    if not isinstance(value, str):
        return value
    after_clean = _continuation(pair, name, model, str(pair.clean), clean, value)
    after_corrupt = _continuation(pair, name, model, str(pair.corrupt), corrupt, value)
    if after_clean != after_corrupt:
        raise Misaligned(
            f"pair {pair.id!r}: {name} {value!r} is {_shown(model, after_clean)} after clean and "
            f"{_shown(model, after_corrupt)} after corrupt; end both prompts alike",
            pair=pair.id,
        )
    return after_clean


def _continuation(
    pair: Pair, name: str, model: Model, prompt: str, ids: tuple[int, ...], answer: str
) -> tuple[int, ...]:
    whole = _prompt_ids(pair, prompt + answer, model)
    if len(whole) > len(ids) and whole[: len(ids)] == ids:
        return whole[len(ids) :]
    raise Misaligned(
        f"pair {pair.id!r}: {name} {answer!r} does not continue the prompt: its tokens change at the seam, "
        f"from {_shown(model, ids)} to {_shown(model, whole)}; end the prompt at a word's end, without a space, and "
        "begin the answer with the space",
        pair=pair.id,
        prompt=prompt,
        answer=answer,
    )


def _roles(pair: Pair, model: Model, clean: tuple[int, ...], corrupt: tuple[int, ...]) -> dict[str, int]:
    found = _positions(pair, model, pair.clean, clean, pair.positions)
    if pair.corrupt_positions is not None:
        other = _positions(pair, model, pair.corrupt, corrupt, pair.corrupt_positions)
        for role, index in found.items():
            if other[role] != index:
                raise Misaligned(
                    f"pair {pair.id!r}: role {role!r} is token {index} of {len(clean)} in clean and token "
                    f"{other[role]} of {len(corrupt)} in corrupt; it must be the same: clean {_shown(model, clean)}, "
                    f"corrupt {_shown(model, corrupt)}",
                    pair=pair.id,
                    role=role,
                    clean=index,
                    corrupt=other[role],
                )
    return {**found, "end": len(clean) - 1}


def role_tokens(pairs: Sequence[Pair], role: str, model: Model) -> list[tuple[int, ...]]:
    """For each pair the tokens of its clean prompt that a role's span covers, of which the position is the last.

    Raises DataError for a role that a pair does not name, and where a slow tokenizer does not show where it begins.
    """
    found = []
    for pair in pairs:
        if role not in pair.positions:
            raise DataError(
                f"pair {pair.id!r} names {sorted(pair.positions)}, and no {role!r}; give every pair its span",
                pair=pair.id,
                role=role,
            )
        ids = _prompt_ids(pair, pair.clean, model)
        found.append(_covered(pair, model, pair.clean, ids, role, pair.positions[role]))
    return found


def _positions(pair: Pair, model: Model, prompt: Prompt, ids: tuple[int, ...], spans: Spans) -> dict[str, int]:
    if isinstance(prompt, str) and _offsets(model, prompt, ids) is None:
        return {role: len(_continued_prefix(pair, model, prompt, ids, stop)) - 1 for role, (_, stop) in spans.items()}
    return {role: _covered(pair, model, prompt, ids, role, span)[-1] for role, span in spans.items()}


def _covered(
    pair: Pair, model: Model, prompt: Prompt, ids: tuple[int, ...], role: str, span: tuple[int, int]
) -> tuple[int, ...]:
    """All tokens of a span."""
    start, stop = span
    if not isinstance(prompt, str):
        return tuple(range(start, stop))
    offsets = _offsets(model, prompt, ids)
    if offsets is None:
        before = prompt[:start].rstrip()
        special = set(model.tokenizer.all_special_ids)
        first = next((i for i, token in enumerate(ids) if token not in special), 0)
        if before:
            first = len(_continued_prefix(pair, model, prompt, ids, len(before)))
        return tuple(range(first, len(_continued_prefix(pair, model, prompt, ids, stop))))
    inside = tuple(index for index, (left, right) in enumerate(offsets) if left < stop and right > start)
    if not inside:
        raise DataError(
            f"pair {pair.id!r}: no token covers role {role!r}, {prompt[start:stop]!r} of {prompt!r}; move its span",
            pair=pair.id,
        )
    return inside


def _offsets(model: Model, prompt: str, ids: tuple[int, ...]) -> list[tuple[int, int]] | None:
    """Character span of each token, (0, 0) for special ones; None when the tokenizer has no offsets."""
    if not getattr(model.tokenizer, "is_fast", False):
        return None
    tokenizer: Any = model.tokenizer
    coded = tokenizer(prompt, add_special_tokens=False, return_offsets_mapping=True)
    before = len(ids) - len(coded["input_ids"])
    if before < 0 or ids[before:] != tuple(coded["input_ids"]):
        return None
    return [(0, 0)] * before + [tuple(span) for span in coded["offset_mapping"]]


def _continued_prefix(pair: Pair, model: Model, prompt: str, ids: tuple[int, ...], stop: int) -> tuple[int, ...]:
    """Tokens of the prompt up to character `stop`, which must be whole tokens of the prompt too."""
    part = _prompt_ids(pair, prompt[:stop], model)
    if ids[: len(part)] != part:
        raise DataError(
            f"pair {pair.id!r}: character {stop} of {prompt!r} lies inside a token of this slow tokenizer; "
            "end the role's span at a word's end",
            pair=pair.id,
        )
    return part


def _shown(model: Model, ids: Sequence[int]) -> str:
    return "[" + " ".join(repr(text) for text in model.strings(list(ids))) + "]"
