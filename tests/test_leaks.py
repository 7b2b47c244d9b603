"""The check for leaks finds what it is there to find, and nothing else."""

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import nn

from tests.families import tiny
from tests.leaks import Watch, leaked


@pytest.fixture
def watch() -> Iterator[Watch]:
    watch = Watch()
    yield watch
    watch.close()


def _grad() -> Callable[[], object]:
    torch.set_grad_enabled(False)
    return lambda: torch.set_grad_enabled(True)


def _dtype() -> Callable[[], object]:
    torch.set_default_dtype(torch.float64)
    return lambda: torch.set_default_dtype(torch.float32)


def _torch_rng() -> Callable[[], object]:
    state = torch.get_rng_state()
    torch.rand(1)
    return lambda: torch.set_rng_state(state)


def _numpy_rng() -> Callable[[], object]:
    state = np.random.get_state()
    np.random.random()
    return lambda: np.random.set_state(state)


def _mode() -> Callable[[], object]:
    mode = torch.overrides.BaseTorchFunctionMode()
    mode.__enter__()
    return lambda: mode.__exit__(None, None, None)


def _global_hook() -> Callable[[], object]:
    return nn.modules.module.register_module_forward_hook(lambda *_: None).remove


@pytest.mark.parametrize("change", [_grad, _dtype, _torch_rng, _numpy_rng, _mode, _global_hook])
def test_a_changed_global_is_found(watch: Watch, change: Callable[[], Callable[[], object]]) -> None:
    before = watch.state()
    undo = change()
    found = leaked(before, watch.state())
    undo()
    assert len(found) == 1
    assert leaked(before, watch.state()) == []


def test_a_hook_left_on_a_model_is_found_even_when_the_model_is_new(watch: Watch) -> None:
    before = watch.state()
    model = nn.Sequential(nn.ReLU())
    assert leaked(before, watch.state()) == []
    handle = model[0].register_forward_hook(lambda *_: None)
    assert "_even_when_the_model_is_new" in leaked(before, watch.state())[0]
    handle.remove()
    assert leaked(before, watch.state()) == []


def test_somebody_elses_hook_that_was_taken_away_is_found(watch: Watch) -> None:
    model = nn.Sequential(nn.ReLU())
    handle = model.register_forward_pre_hook(lambda *_: None)
    before = watch.state()
    handle.remove()
    assert leaked(before, watch.state()) != []


def test_a_changed_attention_setting_is_found(watch: Watch) -> None:
    model = tiny("gpt2")
    before = watch.state()
    setting = model.config._attn_implementation
    model.config._attn_implementation = "eager"
    found = leaked(before, watch.state())
    model.config._attn_implementation = setting
    assert "attention" in found[0]
    assert leaked(before, watch.state()) == []
