"""docs/models.md: what a sweep over all types of models found, from the numbers that it saved."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import transformers

from cutaway.models.sites import KINDS

DATA = Path(__file__).with_name("models.json")

HEAD = """\
# Models: which types are read, edited and proved

Made by docs/generate.py from a saved sweep; do not edit. Every type of causal language model in transformers, and some
encoders, encoder-decoders, vision, audio and multimodal types, is built with a tiny random configuration, loaded and
audited. Nothing is written for one architecture: what a row says was found and proved by value on that model, and is
proved again on the real weights whenever a model is loaded.

    cutaway models audit --all-types            the sweep (some minutes)
    cutaway models audit --type llama --json    one type, with all its reasons
    cutaway models audit MODEL                  the proof on the weights of one model

*Exact*: every bit of the output is Hugging Face's own, with all sites read. *Writes add up*: layers whose residual
stream was proved to be the sum of what is written to it, through scales and norms where there are some. *Patterns*:
attention patterns that can be read and edited, of all that a pass computes. *Resume*: a run may start at any layer,
which is what makes plans cheap; where it may not, a plan is told the reason and computes whole passes.

Body: a causal model and an encoder of text run on rows of tokens and have all of the engine. Any other model (images,
sound, encoder-decoders) has one body whose sites are named (the decoder of an encoder-decoder, the text of a model that
also sees, or what `wrap(module, inputs=..., body=...)` says), takes its own inputs, and gives everything else by module
path: one vocabulary for one stack of blocks is clear, and two streams of which a name might mean either are not.
"""
GROUPS = ("causal", "encoder", "encoder-decoder", "vision", "audio", "multimodal")
TITLES = {
    "causal": "Causal language models, state-space models among them",
    "encoder": "Encoders",
    "encoder-decoder": "Encoder-decoders",
    "vision": "Vision",
    "audio": "Audio",
    "multimodal": "Multimodal",
}
LONGEST = 160


def page() -> str:
    """The page; its first lines say when the saved sweep is of another transformers than the one installed."""
    data = json.loads(DATA.read_text(encoding="utf-8"))
    rows = data["types"]
    lines = [HEAD, *_stale(data["versions"]), *_summary(data)]
    for group in GROUPS:
        lines += _group(TITLES[group], [row for row in rows if row["group"] == group])
    return "\n".join(lines) + "\n"


def _stale(versions: dict[str, str]) -> list[str]:
    swept, here = versions["transformers"], transformers.__version__
    if swept == here:
        return []
    return [
        f"**Stale**: swept with transformers {swept}, and {here} is installed. Run "
        "`cutaway models audit --all-types --json > docs/pages/models.json`.\n"
    ]


def _summary(data: dict[str, Any]) -> list[str]:
    counts, versions = data["summary"], data["versions"]
    built, attends = counts["built"], counts["with softmax attention"]
    of = {"loaded and bit-exact": built, "decomposed": built, "resume exactly": built}
    of |= {"with an editable pattern": attends, "with every pattern editable": attends}
    lines = [
        f"With transformers {versions['transformers']} and torch {versions['torch']}, of causal types:\n",
        "| | types | share |",
        "|---|---|---|",
    ]
    for name, count in counts.items():
        share = f"{count / of[name]:.1%} of {of[name]}" if of.get(name) else ""
        lines.append(f"| {name} | {count} | {share} |")
    return [*lines, ""]


def _group(title: str, rows: list[dict[str, Any]]) -> list[str]:
    if not rows:
        return []
    lines = [
        f"## {title}\n",
        "| type | status | largest difference | writes add up | patterns | resume | refused |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [_row(row) for row in rows if row["status"] != "not built"]
    refused = Counter((_short(why), kind) for row in rows for kind, why in row["sites"].items() if _refused(why))
    if refused:
        lines += ["", "Reasons:", ""]
        by_reason: dict[str, list[str]] = {}
        for (why, kind), count in refused.most_common():
            by_reason.setdefault(why, []).append(f"{kind} ({count})")
        lines += [f"- {', '.join(kinds)}: {why}" for why, kinds in by_reason.items() if not _expected(why)]
    bare = [f"{row['model_type']} ({_short(row['reason'])})" for row in rows if row["status"] == "not built"]
    if bare:
        lines += ["", f"Not built by transformers from a tiny configuration: {'; '.join(bare)}."]
    return [*lines, ""]


def _row(row: dict[str, Any]) -> str:
    kinds = [
        kind for kind in KINDS if _refused(row["sites"].get(kind, "verified")) and not _expected(row["sites"][kind])
    ]
    found = row["status"] in ("exact", "differs")
    cells = (
        f"{row['model_type']}",
        row["status"],
        "" if row["difference"] is None else f"{row['difference']:.2g}",
        f"{row['decomposed']} of {row['layers']}" if found else "",
        f"{row['patterns']} of {row['softmaxes']}" if found else "",
        ("exact" if not row["resume"] else _short(row["resume"])) if found else "",
        ", ".join(kinds) if found else _short(row["reason"]),
    )
    return f"| {' | '.join(cells)} |"


def _refused(state: str) -> bool:
    return state not in ("verified", "readable", "part")


def _expected(why: str) -> bool:
    """Such a part is no part of the architecture, so that nothing is missing."""
    return why.startswith(
        ("this block has no mixture", "this block has no such part", "attention and MLP read the same")
    )


def _short(text: str) -> str:
    """One cell of a table."""
    text = " ".join(text.split()).replace("|", "\\|")
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"
