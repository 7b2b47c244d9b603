"""Tracing and ablation against the zoo's known mechanisms: the cards' exact effects, and where a written fact is read.

Rows are those of the zoo's generators; the effects on the cards were measured apart from the methods.
"""

import random
from dataclasses import replace

import pytest

import cutaway
from cutaway import Model, zoo
from cutaway.patching import ablate, trace
from cutaway.tasks import Batch, Pair, Task, metric_named, vocabulary_digest
from cutaway.zoo.card import Ablation
from cutaway.zoo.recipes import handmade
from cutaway.zoo.recipes.induction_2l import draw_rows

TOLERANCE = 0.06
"""Between effects on fresh rows with other donors and those of the card."""


def batch_of(model: Model, asked: list[tuple[list[int], int, int, str]]) -> Batch:
    """Rows that end where an answer is due: ids, answer, foil, row they come from."""
    rows = model.encode([ids for ids, *_ in asked], bos=None)
    return Batch(
        rows,
        rows,
        metric_named("logit_diff"),
        ids=tuple(str(i) for i in range(len(asked))),
        clusters=tuple(row for *_, row in asked),
        answers=tuple((answer,) for _, answer, _, _ in asked),
        foils=tuple((foil,) for _, _, foil, _ in asked),
    )


def drops(model: Model, batch: Batch, sites: list[str], value: Ablation) -> dict[str, float]:
    """Share of the mean metric that is lost, site by site."""
    effects = ablate(model, batch, sites, value=value)
    lost = -effects.raw.double().mean(1) / effects.clean.double().mean()
    return dict(zip(effects.labels, lost.tolist()))


@pytest.mark.parametrize("name", handmade.NAMES)
def test_zero_on_the_cards_own_rows_is_the_cards_number(name: str) -> None:
    truth, model = zoo.truth(name), cutaway.load(name)
    rows = handmade.rows(name, int(truth.setup["rows"]), int(truth.setup["seed"]))
    asked = [
        (rows.ids[i, : at + 1].tolist(), int(rows.answers[i, at]), int(rows.foils[i, at]), str(i))
        for i, at in rows.answered.nonzero().tolist()
    ]
    nodes = {node.site: node.effects["zero"].drop for node in truth.nodes if "zero" in node.effects}
    found = drops(model, batch_of(model, asked), list(nodes), "zero")
    assert found == pytest.approx(nodes, abs=2e-3)


@pytest.mark.parametrize("value", ["zero", "resample"])
def test_induction_heads_lose_what_the_card_says(value: Ablation) -> None:
    truth, model = zoo.truth("induction-2l"), cutaway.load("induction-2l")
    chance = random.Random(5)
    rows = draw_rows(40, length=int(truth.setup["length"]), chance=chance)
    asked = []
    for i, at in rows.predictable.nonzero().tolist():
        ids = rows.ids[i].tolist()
        foil = chance.choice([token for token in ids if token != ids[at]])
        asked.append((ids[:at], ids[at], foil, str(i)))
    several = {n for n in map(len, (ids for ids, *_ in asked)) if sum(len(ids) == n for ids, *_ in asked) > 4}
    asked = chance.sample([one for one in asked if len(one[0]) in several], 240)
    lengths = [len(ids) for ids, *_ in asked]
    asked = [one for one in asked if lengths.count(len(one[0])) > 1]
    nodes = {n.site: n.effects[value].drop for n in truth.nodes if value in n.effects}
    found = drops(model, batch_of(model, asked), list(nodes), value)
    assert found == pytest.approx(nodes, abs=TOLERANCE)


def test_a_written_fact_is_read_at_the_person_and_moved_to_the_end() -> None:
    """`handmade-lookup`: the head of layer 0 brings the person to the end, the MLPs there look the capital up."""
    name = "handmade-lookup"
    model, rows = cutaway.load(name), handmade.rows(name, 24, 9)
    (head,) = zoo.truth(name).heads("find_person")
    pairs = []
    for i, at in rows.answered.nonzero().tolist():
        ids = rows.ids[i, : at + 1].tolist()
        acts = model.capture(model.encode([ids]), "pattern.0")["pattern.0"][0, int(head[-1]), -1]
        where = int(acts.argmax())
        if where == at:
            continue
        answer, foil = int(rows.answers[i, at]), int(rows.foils[i, at])
        span = {"subject": (where, where + 1)}
        pairs.append(Pair(tuple(ids), tuple(ids), answer, foil, span, id=str(i), cluster=str(i)))
    assert len(pairs) > 8
    task = Task("lookup", "Capitals.", tuple(pairs), "logit_diff", ("subject",), None, vocabulary_digest(model))
    found = trace(model, task, samples=3, metric="logit_diff", window=1, noise=3.0)
    share = {
        (row, place): found.share(i, place).estimate for i, row in enumerate(found.labels) for place in found.by_place()
    }
    assert share["resid_pre.0", "subject last"] == pytest.approx(1.0, abs=1e-3)
    assert share["resid_pre.1", "subject last"] == pytest.approx(0.0, abs=0.1)  # it has been read by then
    assert share["attn_out.0", "end"] == pytest.approx(share["resid_pre.1", "end"], abs=1e-3)
    assert min(share["attn_out.0", "end"], share["mlp_out.0", "end"], share["mlp_out.1", "end"]) > 0.6
    assert share["attn_out.1", "end"] == pytest.approx(0.0, abs=0.1)
    elsewhere = [one for (row, place), one in share.items() if place in ("next", "between")]
    assert max(map(abs, elsewhere)) < 0.01
    twin = replace(found, restored=found.null) if found.null is not None else found
    assert abs(twin.share(0, "subject last").estimate) < 0.3
