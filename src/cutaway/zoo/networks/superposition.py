"""Toy models of superposition: more features than dimensions, and nothing else (Elhage et al. 2022)."""

import torch
from jaxtyping import Float
from torch import Tensor, nn


class Superposition(nn.Module):
    """y = ReLU(W^T W x + b) for features x that are seldom active: row i of `weight` is feature i's direction.

    Read and edit the outputs of `hidden` [batch hidden], in which the features lie on top of each other, and of
    `recovered` [batch feature], what is read back of them before the ReLU.
    """

    def __init__(self, n_features: int, d_hidden: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(n_features, d_hidden))
        self.bias = nn.Parameter(torch.zeros(n_features))
        self.hidden = nn.Identity()
        self.recovered = nn.Identity()

    def forward(self, x: Float[Tensor, "batch feature"]) -> Float[Tensor, "batch feature"]:
        """What the network says the features are, from what fits through the hidden dimensions."""
        hidden = self.hidden(x @ self.weight)
        return self.recovered(hidden @ self.weight.T + self.bias).relu()
