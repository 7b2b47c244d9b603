"""Fourier analysis of a network that adds modulo p: the progress measures of Nanda et al. 2023 (Progress measures for
grokking via mechanistic interpretability, sections 4 and 5), each defined here exactly.

Such a network turns a and b into cos(w_k a), sin(w_k a), cos(w_k b), sin(w_k b) for a few key frequencies k, with
w_k = 2 pi k / p; multiplies them into cos(w_k (a + b)) and sin(w_k (a + b)); and reads from these, for each c, a logit
near the sum over k of cos(w_k (a + b - c)), which is largest at c = a + b mod p. p is an odd prime; frequencies run
from 1 to (p - 1) / 2.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def fourier(p: int) -> Float[Tensor, "wave p"]:
    """The orthonormal basis of functions on 0..p-1: the constant, then cos and sin of frequency 1, of 2, and so on.

    >>> fourier(5).shape
    torch.Size([5, 5])
    """
    angle = 2 * math.pi * torch.arange(1, (p + 1) // 2)[:, None] * torch.arange(p) / p
    waves = torch.stack([angle.cos(), angle.sin()], 1).flatten(0, 1) * math.sqrt(2 / p)
    return torch.cat([torch.full((1, p), 1 / math.sqrt(p)), waves])


def plane(frequency: int, p: int) -> Float[Tensor, "2 p"]:
    """The two rows of the basis that have this frequency."""
    return fourier(p)[2 * frequency - 1 : 2 * frequency + 1]


def power(table: Float[Tensor, "p d"]) -> Float[Tensor, " frequency"]:
    """Share of each frequency, 1 first, in the squared norm of a table with one row a number, the constant left out."""
    waves = (fourier(len(table)) @ table.float()).pow(2).sum(1)[1:]
    return waves.unflatten(0, (-1, 2)).sum(1) / waves.sum()


def numbers(module: Any, p: int) -> Float[Tensor, "p d_model"]:
    """What a Hugging Face model embeds the tokens 0..p-1 as, positions left out."""
    return module.get_input_embeddings().weight.detach()[:p]


def key_frequencies(module: Any, p: int) -> tuple[int, ...]:
    """Frequencies with at least twice the even share of the embedding's power, the largest first.

    Measured on the weights: that the model uses them is another question, which removing them answers.
    """
    shares = power(numbers(module, p))
    return tuple(int(k) + 1 for k in shares.argsort(descending=True) if shares[k] >= 2 / len(shares))


def pairs(p: int) -> Int[Tensor, "pair 3"]:
    """The rows `a b =` of all pairs, b fastest; the token of a number is the number, that of `=` is p."""
    a, b = torch.meshgrid(torch.arange(p), torch.arange(p), indexing="ij")
    return torch.stack([a, b, torch.full_like(a, p)], -1).flatten(0, 1)


def logits(module: Any, p: int) -> Float[Tensor, "a b c"]:
    """The logits of all numbers c at `=`, for all pairs. Cost: p * p rows of three tokens."""
    device = module.get_input_embeddings().weight.device
    with torch.no_grad():
        found = module(pairs(p).to(device), use_cache=False).logits[:, -1, :p]
    return found.float().cpu().unflatten(0, (p, p))


def right(p: int) -> Int[Tensor, "a b"]:
    """(a + b) mod p."""
    return (torch.arange(p)[:, None] + torch.arange(p)) % p


def accuracy(table: Float[Tensor, "a b c"], among: Bool[Tensor, "a b"]) -> float:
    """Share of these pairs whose right sum has the largest logit of all numbers."""
    return (table.argmax(-1) == right(len(table)))[among].float().mean().item()


def loss(table: Float[Tensor, "a b c"], among: Bool[Tensor, "a b"]) -> float:
    """Mean cross-entropy in nats over these pairs, in float64; numbers only: other tokens take no part."""
    return torch.nn.functional.cross_entropy(table[among].double(), right(len(table))[among]).item()


def of_sum(table: Float[Tensor, "a b c"], frequencies: Sequence[int]) -> Float[Tensor, "a b c"]:
    """The part of the logits, for each c, that is a combination of cos(w_k (a + b)) and sin(w_k (a + b)), k in
    `frequencies`, as a function of a and b: an orthogonal projection."""
    p = len(table)
    part = torch.zeros_like(table)
    for frequency in frequencies:
        waves = plane(frequency, p)[:, right(p)] / math.sqrt(p)  # [2 a b], orthonormal over the pairs
        part += torch.einsum("wab,wc->abc", waves, torch.einsum("wab,abc->wc", waves, table))
    return part


def restricted_loss(table: Float[Tensor, "a b c"], frequencies: Sequence[int], among: Bool[Tensor, "a b"]) -> float:
    """Loss over these pairs when of the logits only the mean over all pairs and the waves of a + b with these
    frequencies are kept (`of_sum`): how good the Fourier algorithm is by itself.

    With the key frequencies of the finished model it falls along the training before the held-out loss does.
    """
    return loss(table.mean((0, 1)) + of_sum(table, frequencies), among)


def excluded_loss(table: Float[Tensor, "a b c"], frequencies: Sequence[int], among: Bool[Tensor, "a b"]) -> float:
    """Loss over these pairs when the waves of a + b with these frequencies are taken out of the logits: how good the
    model is by anything but the Fourier algorithm. Over trained pairs it rises as memorising gives way."""
    return loss(table - of_sum(table, frequencies), among)


def explained(table: Float[Tensor, "a b c"], frequencies: Sequence[int]) -> float:
    """Share of the logits' variance that the sum over k of alpha_k cos(w_k (a + b - c)) explains, alpha_k fitted.

    Variance: of the logits of each pair about their mean over c.
    """
    p = len(table)
    table = table - table.mean(-1, keepdim=True)
    offset = (right(p)[:, :, None] - torch.arange(p)) % p
    waves = torch.stack([plane(frequency, p)[0][offset] for frequency in frequencies]) / p  # orthonormal
    return (torch.einsum("kabc,abc->k", waves, table).pow(2).sum() / table.pow(2).sum()).item()


def neuron_frequencies(
    activations: Float[Tensor, "a b neuron"],
) -> tuple[Int[Tensor, " neuron"], Float[Tensor, " neuron"]]:
    """Each neuron's best frequency k, and the share of its variance over the pairs that the functions made of
    1, cos(w_k a), sin(w_k a) times 1, cos(w_k b), sin(w_k b) explain. A neuron that never varies has share 0."""
    p = len(activations)
    basis = fourier(p)
    squares = torch.einsum("ua,abn,vb->uvn", basis, activations.float(), basis).pow(2)
    squares[0, 0] = 0
    own = []
    for frequency in range(1, (p + 1) // 2):
        rows = torch.tensor([0, 2 * frequency - 1, 2 * frequency])
        own.append(squares[rows[:, None], rows].sum((0, 1)))
    best = torch.stack(own).max(0)
    return best.indices + 1, best.values / squares.sum((0, 1)).clamp_min(1e-12)
