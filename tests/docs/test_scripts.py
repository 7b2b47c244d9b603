"""The scripts in examples/ run as they are, and print what they promise."""

import runpy
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
PROMISED = {
    "own_task.py": ["resid_pre.0@thing      1.00 of the gap", "resid_post.1@end       1.00 of the gap"],
    "own_claim.py": ["supported    z.1.h0 carries induction.", "refuted      z.1.h2 looks at the right token"],
}


def test_every_script_is_tested():
    assert {path.name for path in EXAMPLES.glob("*.py")} == set(PROMISED)


@pytest.mark.parametrize("name", PROMISED)
def test_a_script_prints_what_it_promises(name, capsys):
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    printed = capsys.readouterr().out
    for line in PROMISED[name]:
        assert line in printed
