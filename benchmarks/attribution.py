"""How near gradient scores come to real patches: rank correlations, by model, task and kind of part.

    python benchmarks/attribution.py [MODEL] [--tasks ioi,facts] [--pairs 16] [--neurons 128] [--out FILE.json]

MODEL is an embedded model or a folder. For every task all heads, MLPs, queries, keys and values, and a random sample of
neurons, are patched for real (corrupt run, values of the clean run); then each method estimates the same cells. The
table has, for each method and kind, the Spearman correlation of the sizes of the mean effects (of the signed effects in
brackets), and the share of signs that are wrong among effects of at least 1 % of the largest.
"""

import argparse
import json
import random
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import cutaway
from cutaway.models import Model, Site
from cutaway.patching import sweep
from cutaway.patching.effects import Effects
from cutaway.patching.gradient_check import correlation
from cutaway.patching.gradient_scores import METHODS, gradient_scores
from cutaway.tasks import Batch

KINDS = {"heads": "z", "MLPs": "mlp_out", "neurons": "mlp_act", "queries": "q", "keys": "k", "values": "v"}
TASKS = "agreement,facts,induction,ioi,pronoun,translation"


def ranks(values: Tensor) -> Tensor:
    """Places in ascending order; ties are so rare here that any order will do."""
    return values.argsort().argsort().double()


def cells_of(model: Model, kind: str, neurons: int) -> list[Site]:
    """All units of a kind; of neurons a random sample."""
    bases = [Site(kind, layer) for layer in range(model.body.n_layers)]
    if kind == "mlp_out":
        return bases
    found = [
        site.neuron(i) if kind == "mlp_act" else site.head(i) for site in bases for i in range(model.body.n_units(site))
    ]
    return random.Random(0).sample(found, neurons) if kind == "mlp_act" and len(found) > neurons else found


def compared(estimate: Effects, exact: Effects) -> dict[str, float]:
    """Rank correlations of mean effects, share of wrong signs, and the largest miss."""
    found, wanted = estimate.select(list(exact.labels)).mean(), exact.mean()
    clear = wanted.abs() >= 0.01 * wanted.abs().max()
    return {
        "size": correlation(ranks(found.abs()), ranks(wanted.abs())) or 0.0,
        "signed": correlation(ranks(found), ranks(wanted)) or 0.0,
        "flips": float(((found * wanted < 0) & clear).sum() / clear.sum()),
        "miss": float((found - wanted).abs().max()),
        "worst": exact.labels[int((found - wanted).abs().argmax())],  # type: ignore[dict-item]
        "largest": float(wanted.abs().max()),
    }


def measure(model: Model, batch: Batch, neurons: int) -> list[dict[str, Any]]:
    """One record a method and kind."""
    exact = {name: sweep(model, batch, cells_of(model, kind, neurons)) for name, kind in KINDS.items()}
    records = []
    for method in METHODS:
        began = time.process_time()
        found = gradient_scores(model, batch, method=method, kinds=tuple(KINDS.values()), check=0)
        spent = time.process_time() - began
        worst = max((one.error for one in found.completeness), default=None)
        for name, effects in exact.items():
            row = compared(found.effects, effects)
            records.append({"method": method, "kind": name, **row, "cpu_s": spent, "incomplete": worst})
    return records


def show(records: list[dict[str, Any]]) -> None:
    """Medians over tasks, and the range of the correlation of sizes."""
    print("| method | " + " | ".join(KINDS) + " | CPU s |\n|---|" + "---|" * (len(KINDS) + 1))
    for method in METHODS:
        cells = []
        for kind in KINDS:
            rows = [r for r in records if r["method"] == method and r["kind"] == kind]
            middle = {name: statistics.median(r[name] for r in rows) for name in ("size", "signed", "flips")}
            low = min(r["size"] for r in rows)
            cells.append(f"{middle['size']:.2f} ({middle['signed']:.2f}), {low:.2f}, {middle['flips']:.0%}")
        spent = statistics.median(r["cpu_s"] for r in records if r["method"] == method)
        print(f"| {method} | " + " | ".join(cells) + f" | {spent:.1f} |")


def main(name: str, tasks: str, pairs: int, neurons: int, out: Path | None) -> int:
    """Print the table; write all records as JSON."""
    torch.set_num_threads(1)
    model = cutaway.load(name)
    records = []
    for task in tasks.split(","):
        batch = cutaway.tasks.get(task, model, n=pairs, seed=0).encode(model)
        records += [{"task": task, **row} for row in measure(model, batch, neurons)]
        print(f"{task}: done", file=sys.stderr)
    print(f"{Path(name).name}, {pairs} pairs of {tasks}: median over tasks of the Spearman correlation of sizes")
    print("(of signed effects), its lowest task, median share of wrong signs\n")
    show(records)
    if out is not None:
        out.write_text(json.dumps({"model": name, "pairs": pairs, "records": records}, indent=1), encoding="utf-8")
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default="babel")
    parser.add_argument("--tasks", default=TASKS)
    parser.add_argument("--pairs", type=int, default=16)
    parser.add_argument("--neurons", type=int, default=128)
    parser.add_argument("--out", type=Path, default=None)
    chosen = parser.parse_args()
    sys.exit(main(chosen.model, chosen.tasks, chosen.pairs, chosen.neurons, chosen.out))
