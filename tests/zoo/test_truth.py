"""The scrambled twin: the same numbers in another order, in a copy of its own. For the truth itself see tests/truth."""

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

from cutaway import zoo


@pytest.fixture
def tied(seeded: None) -> Any:
    """A GPT-2 whose unembedding is its embedding."""
    model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=16, n_head=2, vocab_size=40, n_positions=16))
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_()
    return model.eval()


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}


def test_every_tensor_is_permuted_within_itself(tied: Any) -> None:
    twin = zoo.scrambled(tied, 0)
    assert type(twin) is type(tied)
    found = weights(twin)
    for name, before in weights(tied).items():
        assert torch.equal(before.flatten().sort().values, found[name].flatten().sort().values), name
        assert not torch.equal(before, found[name]), name
    assert any("ln_1" in name for name in found)


def test_tied_weights_stay_tied(tied: Any) -> None:
    twin = zoo.scrambled(tied, 0)
    assert tied.lm_head.weight is tied.transformer.wte.weight
    assert twin.lm_head.weight is twin.transformer.wte.weight


def test_the_original_is_untouched_and_shares_nothing(tied: Any) -> None:
    before = weights(tied)
    twin = zoo.scrambled(tied, 0)
    with torch.no_grad():
        for weight in twin.parameters():
            weight.zero_()
    assert all(torch.equal(weight, before[name]) for name, weight in tied.named_parameters())


def test_a_seed_is_a_twin(tied: Any) -> None:
    first, again, other = (zoo.scrambled(tied, seed).transformer.wte.weight for seed in (4, 4, 5))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_dtype_shape_and_gradients_stay(seeded: None, dtype: torch.dtype) -> None:
    module = nn.Linear(3, 5).to(dtype).requires_grad_(False)
    twin = zoo.scrambled(module, 1)
    assert (twin.weight.dtype, twin.weight.shape, twin.weight.requires_grad) == (dtype, (5, 3), False)


def test_a_name_or_a_loaded_model_has_no_twin() -> None:
    """In a Python of its own: here every call is checked for its types already."""
    program = (
        "import cutaway\nfrom cutaway import errors, zoo\n"
        "for given in ('planted', cutaway.load('planted', audit=False)):\n"
        "    try:\n        zoo.scrambled(given, 0)\n    except errors.UsageError as error:\n        print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert [line.partition(";")[0] for line in done.stdout.splitlines()] == [
        "scrambled: got str",
        "scrambled: got Model",
    ]
