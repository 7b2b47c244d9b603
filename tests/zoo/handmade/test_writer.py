"""The writer: its bases, its norms, its way to look back."""

import math
from typing import Any

import pytest
import torch

from cutaway.zoo.handmade import build
from cutaway.zoo.handmade.blueprint import ONE
from cutaway.zoo.handmade.edges import NAMES
from cutaway.zoo.handmade.writer import ARCHITECTURES, basis, rotation


@pytest.mark.parametrize("keep_ones", [False, True])
def test_a_rotation_is_orthogonal_and_dense(keep_ones: bool) -> None:
    turn = rotation(12, 3, keep_ones=keep_ones)
    torch.testing.assert_close(turn @ turn.T, torch.eye(12, dtype=torch.float64))
    assert (turn.abs() > 1e-3).float().mean() > 0.9
    ones = torch.ones(12, dtype=torch.float64)
    assert torch.allclose(turn @ ones, ones) == keep_ones
    assert torch.equal(turn, rotation(12, 3, keep_ones=keep_ones))
    assert not torch.equal(turn, rotation(12, 4, keep_ones=keep_ones))


@pytest.mark.parametrize("paired", [False, True])
@pytest.mark.parametrize("rotate", [None, 1])
def test_what_is_written_is_read(paired: bool, rotate: int | None) -> None:
    space = basis(5, 12, paired=paired, rotate=rotate, still=[0])
    torch.testing.assert_close(space.read @ space.write, torch.eye(5, dtype=torch.float64))
    torch.testing.assert_close(space.write.norm(dim=0), torch.full((5,), space.stretch, dtype=torch.float64))
    assert space.write[:, 0].count_nonzero() == (2 if paired else 1)
    assert (space.write[:, 1:].abs() > 1e-9).float().mean() > (0.5 if rotate else 0.05)
    if paired:
        assert space.write.sum(0).abs().max() < 1e-12


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_norms_are_the_identity_up_to_a_part_in_a_hundred(architecture: Any) -> None:
    """Of the stream, at every norm that reads it."""
    made = build("induction", architecture=architecture, rotate=1)
    names, seen = NAMES[architecture], []
    norms = [made.module.get_submodule(names.final_norm)]
    for block in made.module.get_submodule(names.layers):
        norms += [getattr(block, names.attention_norm), getattr(block, names.mlp_norm)]
    handles = [norm.register_forward_hook(lambda module, args, out: seen.append((args[0], out))) for norm in norms]
    try:
        made.module(made.rows(8, 0).ids)
    finally:
        for handle in handles:
            handle.remove()
    assert len(seen) == len(norms)
    for before, after in seen:
        assert before.norm(dim=-1).min() > ONE / 2
        assert ((after - before).norm(dim=-1) / before.norm(dim=-1)).max() < 0.01


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_previous_token_head_looks_one_back_at_every_distance(architecture: Any) -> None:
    made = build("induction", architecture=architecture, rotate=1)
    made.module.set_attn_implementation("eager")
    rows = made.rows(4, 0)
    pattern = made.module(rows.ids, output_attentions=True).attentions[0][:, 0]
    assert pattern.diagonal(offset=-1, dim1=1, dim2=2).min() > 1 - math.exp(-10)
