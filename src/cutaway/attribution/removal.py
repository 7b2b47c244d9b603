"""Removing tokens: what a prompt's target would be if some of its tokens said nothing.

    zero, mean, pad, unk   the token's embedding is exchanged: for 0, the mean over the vocabulary, that of a token
    counterfactual         for the embedding of the token at that place in another prompt
    mask                   no other position attends to the token, at any layer; at its own place it stays

Whatever is removed, the row keeps its length and its positions. Every coalition of tokens is one run of a plan.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from cutaway import engine
from cutaway.attribution.target import Target
from cutaway.engine import Progress, Run
from cutaway.errors import Misaligned, TokenizerUnfit, UsageError
from cutaway.models import Edit, Model, Tokens, sites
from cutaway.models.tokens import from_rows

EXCHANGES = ("zero", "mean", "pad", "unk", "counterfactual")
REMOVALS = (*EXCHANGES, "mask")


def alone(tokens: Tokens, row: int) -> Tokens:
    """One row without its padding."""
    taken = tokens.take([row])
    start, length = tokens.offsets[row], tokens.lengths[row]
    span = slice(start, start + length)
    return Tokens(taken.ids[:, span], taken.mask[:, span], taken.roles, taken.texts)


def baselines(
    model: Model, tokens: Tokens, name: str, against: Tokens | None, max_tokens: int
) -> Float[Tensor, "batch pos d_model"]:
    """For each token of each row the embedding that it is exchanged for.

    Raises TokenizerUnfit where the tokenizer has no such token, Misaligned for a counterfactual of other lengths.
    """
    shape = (*tokens.ids.shape, model.body.d_model)
    if name == "counterfactual":
        if against is None:
            raise UsageError("baseline 'counterfactual': give the prompts to compare with, as against=")
        if against.lengths != tokens.lengths or against.offsets != tokens.offsets:
            raise Misaligned(
                f"against=: its rows have {against.lengths} tokens, the prompts {tokens.lengths}; each token needs a "
                "counterpart at its own place",
                lengths=against.lengths,
            )
        return model.capture(against, sites.embed)[sites.embed]
    if name == "zero":
        return torch.zeros(shape, dtype=model.dtype, device=model.device)
    if name == "mean":
        return mean_embedding(model, max_tokens).expand(shape)
    token = getattr(model.tokenizer, f"{name}_token_id", None)
    if token is None:
        raise TokenizerUnfit(
            f"baseline {name!r}: {model.name} has no {name} token; use 'mean', 'zero' or 'counterfactual'", what=name
        )
    # encoded by hand: padding ids in a prompt are refused, and here they are what is asked for
    row = from_rows([[int(token)]], pad="right", pad_id=0)
    return model.capture(row, sites.embed)[sites.embed][0, 0].expand(shape)


def mean_embedding(model: Model, max_tokens: int) -> Float[Tensor, " d_model"]:
    """Mean over the vocabulary of what the token embedding gives. Cost: that layer alone, once a token."""
    width = min(max_tokens, model.body.length or max_tokens, 512)
    ids = torch.arange(model.body.d_vocab or 0)
    total = torch.zeros(model.body.d_model, dtype=torch.float64)
    for chunk in ids.split(max(1, max_tokens // width) * width):
        rows = [piece.tolist() for piece in chunk.split(width)]
        acts = model.capture(from_rows(rows, pad="right", pad_id=0), sites.embed)
        assert acts.tokens is not None  # token rows
        total += acts[sites.embed][acts.tokens.mask.to(model.device)].double().sum(0).cpu()
    return (total / len(ids)).to(device=model.device, dtype=model.dtype)


def coalition_values(
    model: Model,
    row: Tokens,
    kept: Bool[Tensor, "coalition pos"],
    target: Target,
    removal: str,
    exchange: Float[Tensor, "pos d_model"] | None,
    *,
    index: int,
    max_tokens: int,
    progress: Progress | None = None,
) -> Float[Tensor, " coalition"]:
    """The target of one unpadded row for each set of tokens that is kept; the others are removed.

    Args:
        exchange: the embeddings that tokens are exchanged for; None for "mask".
        index: which of all rows this is.
    """
    unique, back = torch.unique(kept, dim=0, return_inverse=True)
    runs = [
        Run(row, edits=removing(model, row, keep, removal, exchange), reads=target.reads, logits=target.logits(row))
        for keep in unique
    ]
    plan = engine.plan(model, runs, max_tokens=max_tokens)
    found = plan.execute(progress=progress, reduce=lambda result, _: target.of(result, [index]).detach())
    return torch.cat(found).float().cpu()[back]


def removing(
    model: Model,
    row: Tokens,
    keep: Bool[Tensor, " pos"],
    removal: str,
    exchange: Float[Tensor, "pos d_model"] | None,
) -> tuple[Edit, ...]:
    """The edits that remove all tokens but those to keep."""
    gone = (~keep).nonzero()[:, 0].tolist()
    if not gone:
        return ()
    if removal != "mask":
        assert exchange is not None  # every other removal exchanges embeddings
        return (sites.embed.at(tuple(gone)).replace(exchange[gone][None]),)
    return _unattended(model, gone, row.lengths[0])


def _unattended(model: Model, gone: Sequence[int], length: int) -> tuple[Edit, ...]:
    """At every layer, no position attends to these keys, but each of them to itself."""
    first = min(gone) if model.body.causal else 0
    others = tuple(q for q in range(first, length) if q not in gone)
    edits = []
    for layer in range(model.body.n_layers):
        site = sites.scores[layer]
        if others:
            edits.append(site.at(others).apply(_without(gone)))
        for query in gone:
            rest = [key for key in gone if key != query and (key < query or not model.body.causal)]
            if rest:
                edits.append(site.at((query,)).apply(_without(rest)))
    return tuple(edits)


class _without:
    """Scores with some keys out of reach."""

    def __init__(self, keys: Sequence[int]) -> None:
        self.keys = list(keys)

    def __call__(self, scores: Tensor) -> Tensor:
        scores[..., self.keys] = torch.finfo(scores.dtype).min
        return scores
