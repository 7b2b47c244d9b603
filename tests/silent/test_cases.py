"""Every case on every shape: a correct program gives the oracle's number, a mistake is refused with its cause."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.silent.suite import cases, cells

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def found(request: pytest.FixtureRequest) -> dict[tuple[str, str], dict[str, str]]:
    """Outcomes of the cells that this session tests, of one process without the run-time type checks of the tests: what
    a user meets. They come as they are judged; a case that breaks ends them."""
    chosen = [item.callspec.params for item in request.session.items if item.path == Path(__file__)]  # type: ignore[attr-defined]
    wanted = [f"{cell['case']}:{cell['shape']}" for cell in chosen]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.silent.suite", *wanted],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)]), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0, done.stderr[-3000:]
    return {(line["case"], line["shape"]): line for line in lines}


@pytest.mark.parametrize(("case", "shape"), cells())
def test_a_case(case: str, shape: str, found: dict[tuple[str, str], dict[str, str]]) -> None:
    outcome = found[case, shape]
    assert outcome["outcome"] == cases()[case].outcome, outcome["detail"]
