"""Ground of all tests: run-time type checks on the package, no network, one thread, and a check that nothing leaks."""

# ruff: noqa: E402  (what stands before an import has to happen before it)

import os
from collections.abc import Iterator

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

from jaxtyping import install_import_hook

# before the first import of the package: every call inside it is then checked, shapes included
install_import_hook("cutaway", "beartype.beartype")

import pytest
import torch

from tests.leaks import Watch, leaked

torch.set_num_threads(1)
_WATCH = Watch()


@pytest.fixture(autouse=True)
def _nothing_leaks() -> Iterator[None]:
    before = _WATCH.state()
    yield
    lines = leaked(before, _WATCH.state())
    assert not lines, "this test leaked: " + "; ".join(lines)


@pytest.fixture
def seeded() -> Iterator[None]:
    """For a test whose code draws from torch's global generator: seeded, and put back after it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield
