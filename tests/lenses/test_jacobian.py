"""The Jacobian lens against Jacobians taken by torch, coordinate by coordinate, position by position."""

from pathlib import Path
from typing import Any

import pytest
import torch

from cutaway.errors import DataError, OutOfRange, SiteUnavailable
from cutaway.lenses import JacobianLens, fit_jacobian_lens, lens_grid
from cutaway.models import load
from tests.families import tiny
from tests.patching.pairs import loaded

ROWS = [[11, 12, 13, 14, 15, 16], [20, 21, 22, 23, 24], [30, 31, 32, 33, 34, 35]]


def test_it_is_the_mean_of_plain_jacobians() -> None:
    model = loaded("gpt2")
    found = fit_jacobian_lens(model, ROWS, skip_first=1, tolerance=0.0, max_tokens=70)
    module: Any = model.module.transformer
    expected = torch.zeros(3, 32, 32)
    for ids in ROWS:
        for layer in range(3):
            state = model.capture([ids], [f"resid_pre.{layer}"])[f"resid_pre.{layer}"]

            def after(value: torch.Tensor, layer: int = layer) -> torch.Tensor:
                for block in module.h[layer:]:
                    out = block(value)
                    value = out[0] if isinstance(out, tuple) else out
                return value

            whole = torch.autograd.functional.jacobian(after, state)[0, :, :, 0]  # target, out, source, in
            span = range(1, len(ids) - 1)
            each = [sum(whole[t, :, s] for t in span if t >= s) for s in span]
            expected[layer] += sum(each) / len(span)
    torch.testing.assert_close(found.matrices, expected / len(ROWS), atol=1e-5, rtol=1e-3)
    assert (found.matrices - torch.eye(32)).abs().max() > 1e-2
    assert (found.n_prompts, found.converged) == (3, False)
    assert found.halves.min() > 0


def test_blocks_that_write_nothing_give_the_identity() -> None:
    module: Any = tiny("gpt2")
    with torch.no_grad():
        for block in module.transformer.h:
            for part in (block.attn.c_proj, block.mlp.c_proj):
                part.weight.zero_()
                part.bias.zero_()
    model = load(module)
    found = fit_jacobian_lens(model, ROWS, skip_first=1, least=2)
    torch.testing.assert_close(found.matrices, torch.eye(32).expand(3, -1, -1))
    assert found.converged
    assert found.n_prompts == 2
    assert lens_grid(model, [ROWS[0]], lens=found).divergence.abs().max() < 1e-5


def test_reading_and_saving(tmp_path: Path) -> None:
    model = loaded("gpt2")
    lens = fit_jacobian_lens(model, ROWS, skip_first=1)
    lens.save(tmp_path / "j.safetensors")
    back = JacobianLens.load(tmp_path / "j.safetensors", model)
    assert torch.equal(back.matrices, lens.matrices)
    read, plain = (lens_grid(model, [ROWS[0]], lens=one) for one in (back, None))
    assert read.lens == "jacobian"
    assert (read.divergence[0] - plain.divergence[0]).abs().max() > 1e-3
    assert torch.equal(read.top_ids[-1], plain.top_ids[-1])
    assert len(lens.table()) == 3
    assert len(lens.figures()) == 2


def test_wrong_requests_say_what_to_do() -> None:
    with pytest.raises(DataError, match="longer"):
        fit_jacobian_lens(loaded("gpt2"), ROWS)
    with pytest.raises(SiteUnavailable, match="causal"):
        fit_jacobian_lens(loaded("bert"), ROWS)
    with pytest.raises(OutOfRange, match="skip_first"):
        fit_jacobian_lens(loaded("gpt2"), ROWS, skip_first=-1)
