"""Models that cannot be traced on token ids are refused with the remedy, whatever their own code raises."""

import pytest
import torch
from torch import nn

import cutaway
from cutaway.errors import SelfCheckFailed


def test_a_vision_model_is_refused_with_the_remedy():
    from transformers import ResNetConfig, ResNetModel

    with torch.random.fork_rng(devices=[]):
        module = ResNetModel(ResNetConfig(embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1])).eval()
    with pytest.raises(SelfCheckFailed, match=r"ResNetModel: it has no token embedding.*cutaway\.wrap"):
        cutaway.load(module)


def test_a_model_whose_pass_fails_is_refused_and_left_alone():
    class Broken(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.config = nn.Embedding(20, 4), None

        def get_input_embeddings(self):
            return self.embed

        def forward(self, input_ids):
            raise ValueError("give pixel values")

    with torch.random.fork_rng(devices=[]):
        module = Broken().eval()
    with pytest.raises(SelfCheckFailed, match=r"Broken: a pass on token ids fails \(ValueError: give pixel values\)"):
        cutaway.load(module)
    assert not module._forward_hooks
