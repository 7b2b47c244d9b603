"""What a method must find in a model of the zoo, and the twin in which it must find nothing.

`truth` is the known mechanism as data. `scrambled` is the negative control: the same numbers in every tensor, in random
order, so that sizes, norms and weight statistics stay and everything that was learned is gone.
"""

import copy
from typing import TypeVar

import torch
from torch import nn

from cutaway.errors import UsageError
from cutaway.zoo import catalogue
from cutaway.zoo.card import Truth

AnyModule = TypeVar("AnyModule", bound=nn.Module)


def truth(name: str) -> Truth:
    """The mechanism of an embedded model: components, roles, connections, each with its measurements.

    Raises UnknownName, with the nearest name.

    >>> truth("induction-2l").heads("previous_token")
    ('z.0.h3',)
    """
    return catalogue.card(name).truth


def scrambled(module: AnyModule, seed: int) -> AnyModule:
    """An independent copy of `module` with the entries of every parameter randomly permuted within the tensor.

    Tied parameters stay tied; shapes, dtypes, devices, norms and value histograms stay; buffers stay as they are. The
    original is not touched. Cost: one copy of the weights. The same seed gives the same twin. Misleads where all
    entries of a tensor are equal (a fresh norm's gain): permuting them changes nothing. Raises UsageError for what is
    no module, a name or a loaded Model for instance.
    """
    if not isinstance(module, nn.Module):
        raise UsageError(
            f"scrambled: got {type(module).__name__}; give the module itself, as in "
            "scrambled(cutaway.load('babel').module, seed=0)"
        )
    twin = copy.deepcopy(module)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in twin.parameters():  # a tied parameter comes once
            order = torch.randperm(parameter.numel(), generator=generator).to(parameter.device)
            parameter.copy_(parameter.flatten()[order].view_as(parameter))
    return twin
