"""The installed command as another program sees it: exit codes, streams, colours, Ctrl-C."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

RUN = [sys.executable, "-c", "from cutaway.cli.main import run; run()"]


def cutaway(*words: str, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*RUN, *words], capture_output=True, text=True, check=False, cwd=cwd, env={**os.environ, **environment}
    )


def test_help_needs_no_model_and_no_transformers() -> None:
    code = "import sys, cutaway.cli.main; print([name for name in ('transformers', 'scipy') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_no_color_means_none() -> None:
    done = cutaway("tasks", "show", "inducton", NO_COLOR="1", FORCE_COLOR="1")
    assert done.returncode == 2
    assert "\x1b[3" not in done.stderr
    assert "UnknownName" in done.stderr
    assert "Traceback" not in done.stderr


def test_json_is_all_of_stdout() -> None:
    done = cutaway("tasks", "list", "--json")
    assert done.returncode == 0
    assert {row["name"] for row in json.loads(done.stdout)} >= {"induction", "ioi", "pronoun"}
    assert "tasks.names()" in done.stderr


def test_an_unknown_model_is_one_message() -> None:
    done = cutaway("models", "audit", "induction-3l", HF_HUB_OFFLINE="1")
    assert done.returncode == 1
    assert "ModelNotFound" in done.stderr
    assert "induction-2l" in done.stderr
    assert "Traceback" not in done.stderr


def test_ctrl_c_ends_with_130_and_no_traceback(tmp_path: Path) -> None:
    """Stopped as soon as the first step is done: 480 pairs leave seconds of work after it."""
    process = subprocess.Popen(
        [*RUN, "study", "induction", "--model", "induction-2l", "--n", "480", "--out", str(tmp_path / "report")],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"},
        # where the tests run in the background of a shell, SIGINT is ignored, and children inherit that
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    assert process.stderr is not None
    while not process.stderr.readline().startswith("behavior:"):
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert "Run the same study again" in err
    assert not (tmp_path / "report").exists()
