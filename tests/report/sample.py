"""A made-up study, complete and of chosen size, that the tests of reports and pages write and open. No model is run."""

import math
import random
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from cutaway.artifacts import canonical, digest
from cutaway.claims import Ledger
from cutaway.report import StudyReport, behavior_check, claim_card, task_card
from cutaway.report.schema import BehaviorCheck, ClaimCard, TaskCard
from cutaway.tasks import Pair, Task

HASH = "0123456789abcdef" * 4
N = 64
"""Pairs behind each prediction."""
ROLES = ("first name", "subject", "verb", "previous token", "end")


def study(
    *, n_layers: int = 12, n_heads: int = 12, n_pairs: int = 64, claims: bool = True, **changes: Any
) -> StudyReport:
    """A study of a model of that size; `changes` replace fields of the report."""
    rng = random.Random(0)
    fields: dict[str, Any] = {
        "title": "How story-12l chooses between she and he",
        "sentence": "Two heads in layers 6 and 9 carry the gender of the subject to the end of the sentence; "
        "removing them removes the choice.",
        "model": model(n_layers, n_heads),
        "task": task(),
        "behavior": behavior(rng, n_pairs),
        "examples": [example(index) for index in range(5)],
        "position_map": position_map(rng, n_layers),
        "head_map": head_map(rng, n_layers, n_heads),
        "mlps": mlps(rng, n_layers),
        "attribution": attribution(rng, n_layers, n_heads),
        "attention": [head(rng, "pattern.6.h3"), head(rng, "pattern.9.h1")],
        "lens": lens(n_layers),
        "claims": cards() if claims else [],
        "plan": {
            "explain": "runs        2,880\nrows        46,080\npasses      180 naive, 31.8 planned (5.7 times fewer)\n"
            "reused      depth 0.52, position 0.31",
            "passes": 31.8,
            "naive_passes": 180.0,
            "seconds": 74.2,
        },
        "rerun": {
            "command": "cutaway study pronoun --model stories/story-12l --seed 0 --out report",
            "python": "import cutaway\n\nmodel = cutaway.load('stories/story-12l')\n"
            "task = cutaway.tasks.get('pronoun', model, n=192, seed=0)\n"
            "folder = cutaway.study(model, task, out='report', seed=0)",
            "note": "Another processor may change the last digits; verdicts do not hang on them.",
        },
        "limits": [
            "Effects are measured on templated sentences; nothing is said about free text.",
            "Patching a head also carries what it computes about anything else in the prompt.",
        ],
        "environment": environment(),
    }
    return StudyReport.model_validate(fields | changes)


def model(n_layers: int, n_heads: int) -> dict[str, Any]:
    checks = {
        "resid_pre": "input of each block, equal to the sum of embedding and writes",
        "z": "head outputs; pattern @ v gives the same",
        "pattern": "rows sum to one",
        "mlp_act": "an edit moves the logits",
    }
    audit: list[dict[str, Any]] = [
        {"site": site, "status": "verified", "detail": detail, "error": 2.4e-7} for site, detail in checks.items()
    ]
    audit.append({"site": "attn_in", "status": "structural", "detail": "found by name of the module"})
    audit.append({"site": "router", "status": "refused", "detail": "this architecture has no experts"})
    return {
        "name": "stories/story-12l",
        "digest": HASH,
        "architecture": "LlamaForCausalLM",
        "n_parameters": 15191712,
        "n_layers": n_layers,
        "n_heads": n_heads,
        "n_kv_heads": max(1, n_heads // 2),
        "d_model": 288,
        "d_head": 48,
        "d_mlp": 768,
        "d_vocab": 32000,
        "dtype": "float32",
        "device": "cpu",
        "audit": audit,
    }


@cache
def made_task() -> Task:
    """Pairs of three splits, eight clusters or more in each, with the roles of the maps."""
    splits = ["explore"] * 16 + ["calibrate"] * 8 + ["confirm"] * 24
    spans = {role: (5 * i, 5 * i + 4) for i, role in enumerate(ROLES[:-1])}
    pairs = [
        Pair(
            f"Once the girl number {i} met a friend.", f"Once the boys number {i} met a friend.", " She", " He", spans,
            id=f"pronoun-{i:03d}", cluster=f"template {i // 4}", split=split,  # pyright: ignore[reportArgumentType]
        )
        for i, split in enumerate(split for split in splits for _ in range(4))
    ]  # fmt: skip
    return Task(
        "pronoun",
        "A short story names a girl or a boy; the next sentence should go on with she or he.",
        tuple(pairs),
        roles=ROLES,
    )


def task() -> TaskCard:
    return task_card(made_task())


def behavior(rng: random.Random, n_pairs: int) -> BehaviorCheck:
    clean = [rng.gauss(2.6, 0.8) for _ in range(n_pairs)]
    return behavior_check(
        split="explore",
        clean=clean,
        corrupt=[rng.gauss(-2.2, 0.9) for _ in range(n_pairs)],
        clusters=[f"template {index % 16}" for index in range(n_pairs)],
        accuracy=sum(value > 0 for value in clean) / n_pairs,
        threshold=0.5,
    )


def example(index: int) -> dict[str, Any]:
    clean = ["<s>", "Once", " upon", " a", " time", " there", " was", " a", " little", " girl", " named", " Lily", "."]
    clean += [" One", " day", ",", "\n"]
    corrupt = [{" girl": " boy", " Lily": " Tim"}.get(token, token) for token in clean]
    return {
        "id": f"pronoun-{4 * index:03d}",
        "cluster": f"template {index}",
        "split": "explore",
        "clean": clean,
        "corrupt": corrupt,
        "differing": [9, 11],
        "positions": [
            {"role": "subject", "index": 9},
            {"role": "first name", "index": 11},
            {"role": "end", "index": 16},
        ],
        "answer": " she",
        "foil": " he",
        "clean_metric": 2.61 - 0.3 * index,
        "corrupt_metric": -2.4 + 0.1 * index,
    }


def position_map(rng: random.Random, n_layers: int) -> dict[str, Any]:
    rows = []
    for layer in range(n_layers):
        moved = 1 / (1 + math.exp(-(layer - 0.6 * n_layers) * 10 / n_layers))
        values = [0.3 * (1 - moved), 0.72 * (1 - moved), -0.12 * moved, 0.04, moved]
        rows.append([value + rng.gauss(0, 0.012) for value in values])
    return {
        "title": "Residual stream, layer by position",
        "sentence": "How much of the difference between the prompts comes back when the residual stream of the clean "
        "run is put into the corrupt one at one layer and one position. 0: nothing; 1: all of it.",
        "unit": "share of the clean-corrupt gap",
        "row_axis": "layer",
        "column_axis": "position",
        "rows": [str(layer) for layer in range(n_layers)],
        "columns": ROLES,
        "values": rows,
        "half_widths": [[0.03 + 0.01 * rng.random() for _ in row] for row in rows],
        "n_examples": 64,
    }


def head_map(rng: random.Random, n_layers: int, n_heads: int) -> dict[str, Any]:
    values = [[rng.gauss(0, 0.012) for _ in range(n_heads)] for _ in range(n_layers)]
    values[n_layers // 2][min(3, n_heads - 1)] = 0.41
    values[3 * n_layers // 4][min(1, n_heads - 1)] = 0.36
    values[n_layers - 1][0] = -0.17
    return {
        "title": "Heads, one by one",
        "sentence": "The same for the output of one head at the last token: a strong blue cell is a head that carries "
        "the answer, an orange one a head that works against it.",
        "unit": "share of the clean-corrupt gap",
        "row_axis": "layer",
        "column_axis": "head",
        "rows": [str(layer) for layer in range(n_layers)],
        "columns": [str(head) for head in range(n_heads)],
        "values": values,
        "half_widths": [[0.02 for _ in row] for row in values],
        "n_examples": 64,
    }


def mlps(rng: random.Random, n_layers: int) -> dict[str, Any]:
    return {
        "title": "MLPs, layer by layer",
        "sentence": "Effect of putting one MLP's output from the clean run into the corrupt one, at all positions.",
        "unit": "share of the clean-corrupt gap",
        "items": [
            {"label": f"mlp_out.{layer}", "value": rng.gauss(0.05, 0.08), "half_width": 0.03}
            for layer in range(n_layers)
        ],
    }


def attribution(rng: random.Random, n_layers: int, n_heads: int) -> dict[str, Any]:
    points = []
    for layer in range(n_layers):
        for index in range(n_heads):
            exact = rng.gauss(0, 0.015) if rng.random() < 0.97 else rng.uniform(-0.2, 0.4)
            points.append(
                {"label": f"z.{layer}.h{index}", "exact": exact, "estimate": 0.85 * exact + rng.gauss(0, 0.01)}
            )
    return {
        "title": "Attribution beside patching",
        "sentence": "Each dot is a head. Across: its exact effect. Up: what the gradient predicts from one backward "
        "pass. On the diagonal the two agree.",
        "unit": "share of the clean-corrupt gap",
        "correlation": 0.967,
        "points": points,
    }


def head(rng: random.Random, site: str) -> dict[str, Any]:
    tokens = example(0)["clean"]
    examples = []
    for index in range(2):
        rows = []
        for query in range(len(tokens)):
            raw = [0.15 + rng.random() * 0.2 if key <= query else 0.0 for key in range(len(tokens))]
            if query > 9:
                raw[9 + 2 * index] += 6.0
            rows.append([min(1.0, value / sum(raw)) for value in raw])
        examples.append({"id": f"pronoun-{index:03d}", "tokens": tokens, "weights": rows})
    return {"site": site, "sentence": "Looks from the end of the prompt back at the subject.", "examples": examples}


def lens(n_layers: int) -> dict[str, Any]:
    layers = []
    for layer in range(n_layers):
        known = 1 / (1 + math.exp(-(layer - 0.7 * n_layers) * 8 / n_layers))
        rest = 1 - 0.62 * known
        top = [
            (" she", 0.62 * known),
            (" the", rest * 0.3),
            (",", rest * 0.2),
            ("\n", rest * 0.1),
            (" Lily", rest * 0.05),
        ]
        layers.append(
            {
                "label": f"resid_post.{layer}",
                "metric": {"value": 2.6 * known, "low": 2.6 * known - 0.3, "high": 2.6 * known + 0.3},
                "answer_prob": 0.62 * known,
                "foil_prob": 0.07 * known,
                "top": [{"token": token, "prob": prob} for token, prob in sorted(top, key=lambda one: -one[1])],
            }
        )
    return {
        "sentence": "The residual stream at the last token, read by the model's own last norm and unembedding after "
        "each layer: where the answer's line rises, the model has made up its mind.",
        "n_examples": 64,
        "layers": layers,
        "example": "pronoun-000",
        "answer": " she",
    }


def record(sentence: str, subject: list[str], parts: list[dict[str, Any]]) -> dict[str, Any]:
    """The raw result of a claim, as a run of it would record it."""
    return {
        "claim": {"sentence": sentence, "subject": subject},
        "alpha": 0.05,
        "search": 204,
        "plan": digest(plan(sentence, subject)),
        "changed": [],
        "seen_before": [],
        "predictions": parts,
    }


def plan(sentence: str, subject: list[str]) -> dict[str, Any]:
    """The frozen plan of a claim, as far as a report looks at it."""
    return {
        "claim": {"sentence": sentence, "subject": subject},
        "model": {"name": "stories/story-12l", "digest": HASH},
        "task": {"digest": made_task().digest},
        "search": 204,
    }


def part(rng: random.Random, kind: str, effect: float, spread: float = 0.1, **changes: Any) -> dict[str, Any]:
    """Raw values of one prediction on N pairs, four a cluster; `effect` is a share of the gap of 4."""
    clusters = [f"template {index // 4}" for index in range(N)]
    drawn = [rng.gauss(0, spread) for _ in range(N // 4)]
    luck = [value - sum(drawn) / len(drawn) for value in drawn]
    values = [4 * (effect + luck[index // 4] + rng.gauss(0, 0.05)) for index in range(N)]
    fields: dict[str, Any] = {
        "kind": kind,
        "sentence": f"the effect on logit_diff ({kind}) is at least 0.3 of the clean-corrupt gap",
        "unit": "of the clean-corrupt gap",
        "metric_unit": "nat",
        "scale": "ratio",
        "side": "at_least",
        "minimum": 0.3,
        "ids": [f"pronoun-{index:03d}" for index in range(N)],
        "clusters": clusters,
        "values": values,
        "gap": [4.0 + rng.gauss(0, 0.2) for _ in range(N)],
        "controls_rule": "drawn",
        "controls": [
            {"sites": [f"z.{index % 12}.h{index // 12}"], "values": [rng.gauss(0.02, 0.1) for _ in range(N)]}
            for index in range(19)
        ],
        "placebo": {"sites": ["z.6.h3@end"], "differences": [0.0] * N},
        "positive": {
            "sites": ["resid_pre.0"],
            "metric": [-2.0] * N,
            "expected": [-2.0] * N,
            "tolerance": 1e-4,
            "values": [4.0 + rng.gauss(0, 0.2) for _ in range(N)],
        },
    }
    return fields | changes


@cache
def results() -> dict[str, dict[str, Any]]:
    """Raw results of three claims: one that holds, one that does not, one that stays open."""
    rng = random.Random(1)
    quiet = [abs(rng.gauss(0.02, 0.008)) for _ in range(N)]
    neutral = part(
        rng, "specific", 0.0, sentence="the mean KL on neutral prompts is at most 0.05 nat", unit="nat", scale="mean",
        side="at_most", minimum=0.05, values=quiet, gap=None, controls_rule="none", controls=[],
        positive={
            "sites": ["resid_pre.0"], "metric": [-2.0] * N, "expected": [-2.0] * N, "tolerance": 1e-4,
            "values": [1.4] * N,
        },
    )  # fmt: skip
    carries = "the subject's gender to the last token."
    return {
        "carriers": record(
            f"Heads 6.3 and 9.1 carry {carries}",
            ["z.6.h3@end", "z.9.h1@end"],
            [part(rng, "necessary", 0.68), part(rng, "sufficient", 0.74), neutral],
        ),
        "decoy": record(f"Head 2.5 carries {carries}", ["z.2.h5@end"], [part(rng, "necessary", 0.02)]),
        "early-mlps": record(
            "The first five MLPs look the name's gender up.",
            [f"mlp_out.{layer}@first name" for layer in range(5)],
            [part(rng, "necessary", 0.3, 0.2)],
        ),
    }


def artifacts() -> dict[str, bytes]:
    """The raw results as files, and a table."""
    files = {f"claims/{name}.json": canonical(found).encode() for name, found in results().items()}
    return files | {"effects/heads.csv": b"site,example,value\nz.6.h3,0,0.41\n"}


@cache
def ledger_lines() -> tuple[str, ...]:
    """Lines of a ledger in which the three claims were frozen, opened and measured."""
    with tempfile.TemporaryDirectory() as folder:
        ledger = Ledger(Path(folder) / "ledger.sqlite")
        for found in results().values():
            ledger.register(found["plan"], plan(**found["claim"]))
            ledger.open_split(found["plan"], {"split": "confirm"})
            ledger.append("result", found["plan"], found)
        ledger.export(Path(folder) / "ledger.jsonl")
        return tuple((Path(folder) / "ledger.jsonl").read_text(encoding="utf-8").splitlines())


@cache
def cards() -> list[ClaimCard]:
    """The claims as they are shown."""
    text = "Once upon a time there was a little girl named Lily. One day,"
    texts = {f"pronoun-{index:03d}": text for index in range(N)}
    return [claim_card(name, found, artifact=f"claims/{name}.json", texts=texts) for name, found in results().items()]


def environment() -> dict[str, Any]:
    return {
        "created": "2026-11-20T14:30:00+00:00",
        "cutaway": "0.1.0",
        "python": "3.11.7",
        "torch": "2.13.0",
        "transformers": "5.23.0",
        "platform": "Linux x86_64",
        "device": "cpu",
        "threads": 2,
        "seed": 0,
        "packages": {"numpy": "2.4.6"},
    }
