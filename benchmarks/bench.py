"""All benchmarks against other tools: an environment for each, its jobs in one process, a JSON file and a page.

    python benchmarks/bench.py [--peer NAME ...] [--shape NAME ...] [--share N]     (make bench)
    python benchmarks/bench.py --page        write docs/benchmarks.md anew from the JSON file

Results go to benchmarks/results.json; a peer that is not run keeps what is there.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from peers.make import PEERS, ROOT, make
from peers.shapes import SHAPES

RESULTS = ROOT / "benchmarks" / "results.json"
PAGE = ROOT / "docs" / "benchmarks.md"
HEAD = """# Benchmarks against other tools

<!-- written by benchmarks/bench.py from benchmarks/results.json; `make bench` measures anew -->

Random weights, {machine}, CPU seconds at one thread, on a machine with
other work. Each tool is measured in a process of its own, beside plain hooks
written by hand and cutaway, in turn: times of different rows of a table were not taken at the same moment, the ratios
within a row were. Values are compared before times: the largest difference from the values by hand is given.
A loop costs the same in each of its cells, so that every N-th cell is timed and the median counted for all; cutaway's
sweep is timed whole.
"""
SWEEP = """
## {title}

{what}

| shape | cells | beside | by hand, s | the tool, s | cutaway, s | times faster than by hand | than the tool | \
difference of the tool | of cutaway |
|---|---|---|---|---|---|---|---|---|---|
"""
CAPTURE = """
## Capture of the residual stream

The input of every block and all logits, over the plain forward pass of the same module (1 is free).

| shape | beside | plain pass, s | by hand | the tool | cutaway | difference of the tool |
|---|---|---|---|---|---|---|
"""
SWEEPS = {
    "resid": ("Residual patching, every layer and position", "`resid_pre` from the clean run at one position."),
    "heads": ("Head patching, every layer and head", "One head's `z` from the clean run at all positions."),
}


def measure(name: str, shapes: list[str], share: int) -> dict[str, Any]:
    """What one peer's process prints."""
    command = [str(make(name)), str(ROOT / "benchmarks" / "peers" / "run.py"), name, "--share", str(share)]
    command += [part for shape in shapes for part in ("--shape", shape)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=environment, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def page(results: dict[str, Any]) -> str:
    """The page, from the results."""
    rows = [(peer, *key.split(": "), job) for peer in results["peers"].values() for key, job in peer["jobs"].items()]
    text = HEAD.format(machine=results["machine"])
    for job, (title, what) in SWEEPS.items():
        text += SWEEP.format(title=title, what=what)
        text += "".join(_sweep(peer, shape, found) for peer, shape, kind, found in _ordered(rows) if kind == job)
    text += CAPTURE
    text += "".join(_capture(peer, shape, found) for peer, shape, kind, found in _ordered(rows) if kind == "capture")
    return text


def _ordered(rows: list[Any]) -> list[Any]:
    return sorted(rows, key=lambda row: (list(SHAPES).index(row[1]), row[0]["peer"]))


def _sweep(peer: dict[str, Any], shape: str, job: dict[str, Any]) -> str:
    name = f"{peer['peer']} {peer['version']}"
    if "error" in job:
        return f"| {shape} | | {name} | | {job['error']} | | | | | |\n"
    return (
        f"| {shape} | {job['cells']} of {job['rows']} x {job['tokens']} | {name} | {job['hand_s']:.2f} | "
        f"{job['peer_s']:.2f} | {job['cutaway_s']:.2f} | **{job['times_hand']:.1f}** | **{job['times_peer']:.1f}** | "
        f"{job['apart_peer']:.0e} | {job['apart_cutaway']:.0e} |\n"
    )


def _capture(peer: dict[str, Any], shape: str, job: dict[str, Any]) -> str:
    name = f"{peer['peer']} {peer['version']}"
    if "error" in job:
        return f"| {shape} | {name} | | | {job['error']} | | |\n"
    return (
        f"| {shape}, {job['rows']} x {job['tokens']} | {name} | {job['plain_s']:.3f} | {job['hand']:.2f} | "
        f"{job['peer']:.2f} | **{job['cutaway']:.2f}** | {job['apart_peer']:.0e} |\n"
    )


def main(names: list[str], shapes: list[str], share: int, only_page: bool) -> None:
    """Measure, and write both files."""
    results: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"peers": {}}
    for name in [] if only_page else names:
        results["peers"][name] = measure(name, shapes, share)
        results["machine"] = f"{os.cpu_count()} {platform.machine()} cores, torch {results['peers'][name]['torch']}"
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    PAGE.write_text(page(results))
    print(f"{PAGE.relative_to(ROOT)} written from {RESULTS.relative_to(ROOT)}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer", action="append", choices=PEERS)
    parser.add_argument("--shape", action="append", choices=SHAPES)
    parser.add_argument("--share", type=int, default=8, help="time every N-th cell of the loops")
    parser.add_argument("--page", action="store_true", help="measure nothing")
    chosen = parser.parse_args()
    main(chosen.peer or PEERS, chosen.shape or list(SHAPES), chosen.share, chosen.page)
