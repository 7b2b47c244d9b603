"""Ground of the tests of the command line."""

import random
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def _rich_draws() -> Iterator[None]:
    """rich takes the ids of its links from Python's global random state."""
    state = random.getstate()
    yield
    random.setstate(state)
