"""The page docs/silent-failures.md: what comes out of every case, beside what other toolkits did with the same.

    python -m tests.silent.table            write it

The outcomes are those that each case declares; tests/silent/test_cases.py holds every cell to them.
"""

import json
import sys
from collections import Counter
from pathlib import Path

from tests.silent.shapes import SHAPES
from tests.silent.suite import CASES, Case, cases

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "silent-failures.md"
PEERS = ROOT / "benchmarks" / "silent" / "peers.json"

HEAD = """# Silent failures

<!-- made by tests/silent/table.py (python -m tests.silent.table) from the cases and benchmarks/silent/peers.json -->

A wrong number that looks plausible is worse than an error. These are programs that users write, some correct and some
mistaken. A correct program must give the number of an oracle: forward passes written by hand in plain torch, with the
edits as arguments, on an untouched twin of the model. A mistake must be refused by an error whose message names the
cause. After every attempt the model is compared with what it was: bytes of parameters, flags, training mode, modules,
keys of the state dict, hooks of others, attention setting, and the logits of a plain call.

The shapes are tiny random GPT-2 (learned positions, tied), Llama (grouped heads), Gemma-2 (norms after each part, soft
caps, a sliding window), Qwen3 (norms of queries and keys) and Mixtral (experts), with logits of standard deviation near
1; equal means within 1e-5. *right*: the oracle's number. *raises*: an error of cutaway that names the cause. Each cell
stands for every spelling of the case that a user would try, and holds for all of them; the tests run them
(`tests/silent`). `-`: the case makes no sense for the shape.

"""

LIMITS = """
## What a case means here

- **1a**: `replace` takes the exact shape; one vector is taken where one position a row is selected. For one vector in
  many slots there is `fill`. `add(vector)` steers every selected token.
- **4d, 4f**: what can only be padding after a row is left out, so -1 is the last real token. Padding before a row is
  refused.
- **5a**: a function gets the value itself, [batch pos d_model]; what is no tensor of that shape is refused. `x[0] += v`
  in a function that returns `x` edits row 0, as it says.
- **9a, 9b**: a checkpointed block recomputes what it needs on the way back, without the edits. In evaluation mode
  transformers' own checkpointing is not in force and gradients are right; training mode and a `checkpoint()` of one's
  own are refused.
- **10c, 10d**: a pass on a filled cache computes new tokens alone; positions in it are refused. `generate` counts them.
- **17g**: the graph is alive inside the metric, where `torch.autograd.grad` of any parameter may be taken.
- **20**: cases that were found by looking for them. Most were wrong here before they were tests.

## Limits

What a caller's own function does with a tensor is torch's arithmetic: `x[:] = v` inside `apply` broadcasts. A tensor
taken out of a capture carries no name of its model: `replace(acts[site])` writes it anywhere that its shape fits. What
is changed in place through `parameter.data` is not counted by torch and not seen. An empty list of edits is no edit.
Tiny models on the CPU; one column of the table below is one spelling by people who know the toolkit, not the best.
"""

OTHERS = """
## The same cases elsewhere

Measured earlier with {versions}, on the CPU, on tiny random GPT-2 and Llama (case 19: each shape), one natural spelling
a case. *hooks* are plain PyTorch hooks: register, run, remove. *obscure*: an error that does not name the cause.
*warns*: a wrong number, and a warning that names it. **WRONG e/E** is silent: the largest error, and the largest change
that the edit was to make. `-`: no such feature. The figures are of the versions named; newer ones may do better.
`python benchmarks/silent/peers.py` measures twenty of them again, each peer in an environment of its own.

"""
NAMES = ("hooks", "transformer-lens", "nnsight", "pyvene", "interp-engine")


def page() -> str:
    """The whole page."""
    known = list(cases().values())
    lines = [HEAD, *_ours(known), LIMITS, *_theirs(known)]
    return "\n".join(line.rstrip("\n") for line in lines) + "\n"


def _ours(known: list[Case]) -> list[str]:
    rows = ["## Outcomes", "", f"| case | | kind | {' | '.join(SHAPES)} |", f"|---|---|---|{'---|' * len(SHAPES)}"]
    for case in known:
        others = [name for name in case.shapes if name not in SHAPES]
        shown = [case.outcome if name in case.shapes else "-" for name in SHAPES]
        note = f" ({', '.join(others)}: {case.outcome})" if others else ""
        rows.append(f"| {case.name} | {case.what}{note} | {case.kind} | {' | '.join(shown)} |")
    counts = Counter((case.kind, case.outcome) for case in known for _ in case.shapes)
    rows += ["", "| kind | right | raises | obscure | silently wrong |", "|---|---|---|---|---|"]
    rows += [
        f"| {kind} | {counts[kind, 'right']} | {counts[kind, 'raises']} | 0 | 0 |" for kind in ("mistake", "must-work")
    ]
    return rows


def _theirs(known: list[Case]) -> list[str]:
    measured = json.loads(PEERS.read_text(encoding="utf-8"))
    versions = ", ".join(f"{name} {number}" for name, number in measured["versions"].items())
    rows = [OTHERS.format(versions=versions), f"| case | kind | cutaway | {' | '.join(NAMES)} |"]
    rows.append(f"|---|---|---|{'---|' * len(NAMES)}")
    counts: Counter[tuple[str, str, str]] = Counter()
    for name, row in measured["cases"].items():
        own = CASES[name] if name in CASES else CASES[name.rpartition("-")[0]]
        assert own in known
        cells = {"cutaway": own.outcome, **{peer: row[peer] for peer in NAMES}}
        counts.update((peer, row["kind"], cell.partition(" ")[0]) for peer, cell in cells.items())
        shown = [f"**{cell}**" if cell.startswith("WRONG") else cell for cell in cells.values()]
        rows.append(f"| {name} | {row['kind']} | {' | '.join(shown)} |")
    kinds = ("right", "raises", "obscure", "warns", "WRONG", "-")
    rows += ["", f"| kind | | {' | '.join(kinds)} |", f"|---|---|{'---|' * len(kinds)}"]
    for kind in ("mistake", "must-work"):
        for peer in ("cutaway", *NAMES):
            rows.append(f"| {kind} | {peer} | {' | '.join(str(counts[peer, kind, found]) for found in kinds)} |")
    return rows


def main() -> int:
    """Write the page."""
    PAGE.write_text(page(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
