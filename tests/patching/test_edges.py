"""Edges against forwards written out by hand, on models whose edges are known, and where there are none."""

import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import cutaway
from cutaway import zoo
from cutaway.errors import Misaligned, OutOfRange, SiteUnavailable, UnknownName, UsageError, WrongModel
from cutaway.figures import Bars, Heatmap, Points
from cutaway.models import Model, Tokens, load, sites
from cutaway.patching import sweep
from cutaway.patching.edges import Direct, Edges, direct, edges
from cutaway.patching.effects import half_width
from cutaway.patching.measure import Cell
from cutaway.tasks import Batch
from cutaway.tasks.metric import metric_named
from cutaway.zoo.handmade import build
from cutaway.zoo.recipes.handmade import NAMES, plan
from tests.families import tiny
from tests.patching.pairs import loaded, token_batch, token_task
from tests.patching.written import ORACLES, sides

CLOSE = {"atol": 1e-5, "rtol": 1e-5}


@pytest.fixture(scope="module")
def gpt2() -> Model:
    return loaded("gpt2")


def drawn(effects: Edges) -> dict[tuple[str, ...], Tensor]:
    return dict(zip(effects.nodes, effects.raw.double()))


# -- the written forwards


@pytest.mark.parametrize("family", ORACLES)
def test_every_edge_equals_a_forward_with_an_input_an_edge(family: str) -> None:
    model = loaded(family)
    batch = token_batch(model, n=2, lengths=(7, 6))
    both = sides(family, model, batch)
    found = drawn(edges(model, batch))
    kinds = {sender.split(".")[0] + receiver.split(".")[0] for sender, receiver in found}
    assert kinds == {s + r for s in ("embed", "z", "mlp_out") for r in ("q", "k", "v", "mlp_in", "logits")}
    for (sender, receiver), raw in found.items():
        done = both.base.run(edges={(sender, receiver): both.donor.own[sender]})
        torch.testing.assert_close(raw, both.raw(done), **CLOSE, msg=lambda m, s=sender, r=receiver: f"{s} -> {r}: {m}")
    assert sum(float(raw.abs().max()) > 1e-4 for raw in found.values()) > len(found) / 2


@pytest.mark.parametrize("family", ORACLES)
@pytest.mark.parametrize("mode", ["noise", "mean"])
def test_modes_say_what_their_names_say(family: str, mode: str) -> None:
    model = loaded(family)
    batch = token_batch(model, n=4, lengths=(7, 6))
    both = sides(family, model, batch, "noise")
    senders = ["embed", "z.1.h3", "mlp_out.0"]
    found = drawn(edges(model, batch, senders, ["k.2.h0", "v.1.h1", "mlp_in.1", "logits"], mode=mode))
    assert len(found) == (11 if family != "gpt_neox" else 10)  # a parallel MLP does not read its own attention
    real = batch.clean.mask
    for (sender, receiver), raw in found.items():
        own, other = both.plain.own[sender], both.donor.own[sender]
        mean = torch.cat([own[real], other[real]]).mean(0).expand_as(own)
        said = {"noise": other, "zero": torch.zeros_like(own), "mean": mean}[mode]
        done = both.base.run(edges={(sender, receiver): said})
        torch.testing.assert_close(raw, both.raw(done), **CLOSE)
    assert sum(float(raw.abs().max()) > 1e-6 for raw in found.values()) > 6


@pytest.mark.parametrize("family", ORACLES)
def test_several_edges_together_follow_one_another(family: str) -> None:
    """Edges in a row, a shared reader, and a sender whose own input is patched."""
    model = loaded(family)
    batch = token_batch(model, n=4)
    both = sides(family, model, batch)
    senders, receivers = ["z.0.h1", "mlp_out.0", "z.1.h2"], ["q.1.h2", "v.1.h1", "mlp_in.1", "k.2.h0", "logits"]
    found = edges(model, batch, senders, receivers, together=True)
    single = edges(model, batch, senders, receivers)
    pairs = [(nodes[0], nodes[1]) for nodes in single.nodes]
    assert len(pairs) == (13 if family != "gpt_neox" else 12)
    done = both.base.run(edges={(s, r): both.donor.own[s] for s, r in pairs})
    torch.testing.assert_close(found.raw[0].double(), both.raw(done), **CLOSE)
    assert found.labels == ("z.0.h1 + mlp_out.0 + z.1.h2 -> q.1.h2 + v.1.h1 + mlp_in.1 + k.2.h0 + logits",)
    assert (found.raw[0] - single.raw.sum(0)).abs().max() > 1e-3


@pytest.mark.parametrize("family", ORACLES)
def test_positions_are_those_of_the_stream(family: str) -> None:
    model = loaded(family)
    batch = token_batch(model, n=4, lengths=(7, 6))
    both = sides(family, model, batch)
    receivers = ["q.2.h1", "k.1.h0", "mlp_in.2", "logits"]
    found = drawn(edges(model, batch, "z.0.h1", receivers, positions=["subject", "end"]))
    found |= drawn(edges(model, batch, "z.0.h1@subject", ["k.1.h1", "logits@end"]))
    assert ("z.0.h1@subject", "k.1.h1") in found
    for (sender, receiver), raw in found.items():
        name, _, at = sender.partition("@")
        reader, _, where = receiver.partition("@")
        said = both.plain.own[name].clone()
        for row, column in enumerate(batch.clean.roles[where or at]):
            said[row, column] = both.donor.own[name][row, column]
        done = both.base.run(edges={(name, reader): said})
        torch.testing.assert_close(raw, both.raw(done), **CLOSE)
    assert found["z.0.h1", "k.1.h0@subject"].abs().max() > 1e-6
    assert ("z.0.h1@subject", "logits@end") not in found  # they never meet


# -- other nodes


def test_a_head_as_a_reader_is_its_three_ports(gpt2: Model) -> None:
    batch = token_batch(gpt2)
    one = edges(gpt2, batch, "mlp_out.0", "z.1.h2")
    three = edges(gpt2, batch, "mlp_out.0", ["q.1.h2", "k.1.h2", "v.1.h2"], together=True)
    torch.testing.assert_close(one.values, three.values, **CLOSE)
    assert one.raw.abs().max() > 1e-3


def test_a_head_that_shares_its_keys_reads_them_alone() -> None:
    """Both heads of a group as readers are the group's ports and their queries; one of them is not."""
    model = loaded("llama")
    batch = token_batch(model)
    ports = edges(model, batch, "z.0.h1", ["q.1.h0", "q.1.h1", "k.1.h0", "v.1.h0"], together=True)
    heads = edges(model, batch, "z.0.h1", ["z.1.h0", "z.1.h1"], together=True)
    torch.testing.assert_close(ports.values, heads.values, **CLOSE)
    assert (edges(model, batch, "z.0.h1", "z.1.h0").values - heads.values).abs().max() > 1e-4


def test_a_whole_attention_and_a_set_of_heads(gpt2: Model) -> None:
    batch = token_batch(gpt2)
    whole = edges(gpt2, batch, "attn_out.0", ["attn_in.2", "logits"])
    heads = edges(gpt2, batch, sites.z[0].head([0, 1, 2, 3]), sites.z[2])
    torch.testing.assert_close(whole.values[0], heads.values[0], **CLOSE)
    some = edges(gpt2, batch, ["z.0.h0,2", "z.0.h1,3"], "logits", together=True)
    torch.testing.assert_close(some.values[0], whole.values[1], **CLOSE)
    assert whole.raw.abs().min() > 1e-6


def test_neurons_send_and_read(gpt2: Model) -> None:
    batch = token_batch(gpt2)
    width = gpt2.body.d_mlp or 0
    whole = edges(gpt2, batch, "mlp_out.0", ["v.2.h1", "mlp_in.2"])
    split = edges(gpt2, batch, "mlp_act.0", ["v.2.h1", "mlp_act.2"])
    torch.testing.assert_close(whole.values, split.values, **CLOSE)
    halves = [sites.mlp_act[0].neuron(range(0, width, 2)), sites.mlp_act[0].neuron(range(1, width, 2))]
    torch.testing.assert_close(edges(gpt2, batch, halves, "v.2.h1", together=True).values[0], whole.values[0], **CLOSE)
    read = edges(gpt2, batch, "mlp_out.0", "mlp_act.2.n5")
    assert 1e-6 < read.raw.abs().max() < whole.raw[1].abs().max()


# -- laws


def test_a_sender_that_says_the_same_on_both_sides_has_no_effect(gpt2: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = token_batch(gpt2)
    same = replace(batch, corrupt=batch.clean)
    assert torch.equal(edges(gpt2, same, receivers=["q.2.h1", "v.2.h0", "mlp_in.2", "logits"]).raw, torch.zeros(53, 6))
    assert torch.equal(edges(gpt2, same, "z.0.h0", together=True).raw, torch.zeros(1, 6))
    cells: list[Cell] = []
    measured = sys.modules[edges.__module__].measure

    def watched(model: Model, batch: Batch, some: list[Cell], **options: Any) -> Any:
        cells.extend(some)
        return measured(model, batch, some, **options)

    monkeypatch.setattr(sys.modules[edges.__module__], "measure", watched)
    before = edges(gpt2, token_batch(gpt2, lengths=(7, 6)), "embed", positions=[0, 3])
    costs = {cell.label.rpartition("@")[2]: len(cell.edits) for cell in cells}
    assert costs == {"0": 0, "3": 1}, "nothing differs yet at the first position, so nothing is run"
    assert torch.equal(before.select("*@0").raw, torch.zeros(40, 6))
    assert not torch.equal(before.clean, before.corrupt)


def test_bounds_and_batches_change_nothing(gpt2: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = token_batch(gpt2, lengths=(7, 5))
    senders, receivers = ["z.0.h1", "z.1.h0", "mlp_out.1"], ["q.2.h0", "v.2.h3", "mlp_in.2", "logits"]
    whole = edges(gpt2, batch, senders, receivers)
    torch.testing.assert_close(edges(gpt2, batch, senders, receivers, max_tokens=20).values, whole.values, **CLOSE)
    looped = [edges(gpt2, batch, s, r).values[0] for s in senders for r in receivers]
    torch.testing.assert_close(torch.stack(looped), whole.values, **CLOSE)
    monkeypatch.setattr(sys.modules[edges.__module__], "BUDGET", 1)
    parts = edges(gpt2, batch, senders, receivers)
    assert parts.labels == whole.labels
    torch.testing.assert_close(parts.values, whole.values, **CLOSE)


def test_answers_of_several_tokens(gpt2: Model) -> None:
    batch = token_batch(gpt2, n=4, metric="logprob_diff", d_answer=3)
    effects = edges(gpt2, batch, "z.0.h1", ["v.1.h2", "logits"])
    assert effects.values.shape == (2, 4)
    assert effects.raw.abs().min() > 1e-7
    everything = edges(gpt2, batch, "embed", together=True)
    torch.testing.assert_close(everything.values[0], everything.clean, **CLOSE)


# -- direct and total


@pytest.mark.parametrize("family", ORACLES)
def test_direct_and_total_effects(family: str) -> None:
    model = loaded(family)
    batch = token_batch(model, n=4)
    both = sides(family, model, batch)
    effects = direct(model, batch)
    raw = dict(zip(effects.labels, effects.raw.double()))
    assert len(effects.components) == 15
    for name in effects.components:
        said = both.donor.own[name]
        torch.testing.assert_close(raw[name], both.raw(both.base.run(said={name: said})), **CLOSE)
        done = both.base.run(edges={(name, "logits"): said})
        torch.testing.assert_close(raw[f"{name} -> logits"], both.raw(done), **CLOSE)
    torch.testing.assert_close(raw["mlp_out.2"], raw["mlp_out.2 -> logits"], **CLOSE)
    assert (raw["z.0.h1"] - raw["z.0.h1 -> logits"]).abs().max() > 1e-3


def test_total_is_the_sweep_where_no_norm_follows() -> None:
    for family, agree in (("llama", True), ("gemma2", False)):
        model = loaded(family)
        batch = token_batch(model)
        total = direct(model, batch, "z.1.h2").values[1]
        patched = sweep(model, batch, "z.1.h2").values[0]
        assert torch.allclose(total, patched, **CLOSE) == agree


def test_the_table_of_direct_effects(gpt2: Model) -> None:
    effects = direct(gpt2, token_task(gpt2, clusters=6), ["z.0.h1", "mlp_out.1"])
    rows = effects.table()
    assert [row["component"] for row in rows] == ["z.0.h1", "mlp_out.1"]
    for row in rows:
        assert row["later"] == pytest.approx(row["total_effect"] - row["direct_effect"])
    (figure,) = effects.figures()
    assert isinstance(figure, Points)
    assert figure.y == tuple(row["total_effect"] for row in rows)
    assert figure.labels == ("z.0.h1", "mlp_out.1")


# -- known truth


def handmade_batch(rows: zoo.handmade.Rows) -> Batch:
    """A pair for each answer of each row; its other side is the row before, as in the cards."""
    row, at = rows.answered.nonzero(as_tuple=True)
    ids, ends = rows.ids[row], {"end": tuple(at.tolist())}
    mask = torch.ones_like(ids, dtype=torch.bool)
    return Batch(
        Tokens(ids, mask, ends),
        Tokens(rows.ids.roll(1, 0)[row], mask, ends),
        metric_named("logit_diff"),
        tuple(map(str, range(len(row)))),
        tuple(map(str, row.tolist())),
        tuple((int(i),) for i in rows.answers[row, at]),
        tuple((int(i),) for i in rows.foils[row, at]),
    )


def drop(effects: Edges, baseline: float) -> dict[tuple[str, ...], float]:
    """Share of the mean margin that is lost."""
    lost = -effects.raw.double().mean(1) / baseline
    return dict(zip(effects.nodes, lost.tolist()))


@pytest.mark.parametrize("name", NAMES)
def test_edges_are_those_of_the_card(name: str) -> None:
    truth = zoo.truth(name)
    model = load(zoo.path(name))
    drawn_rows = plan(name).rows(int(truth.setup["rows"]), int(truth.setup["seed"]))
    batch = handmade_batch(drawn_rows)
    assert batch.n == truth.setup["answers"]
    wired = [e for e in truth.edges if e.source[0] in "zm" and e.structural]
    not_wired = [e for e in truth.edges if e.source in {w.source for w in wired} and not e.structural][::3]
    assert not_wired
    for mode, said, wanted in (("noise", "resample", [*wired, *not_wired]), ("zero", "zero", wired)):
        for source in dict.fromkeys(e.source for e in wanted):
            mine = [e for e in wanted if e.source == source]
            found = drop(edges(model, batch, source, [e.target for e in mine], mode=mode), truth.baseline)
            for edge in mine:
                assert found[source, edge.target] == pytest.approx(getattr(edge, said), abs=2e-5), edge


@pytest.mark.parametrize(
    "options",
    [
        {"architecture": "gemma2", "rotate": 3},
        {"architecture": "llama", "kv_groups": 2, "decoys": 1},
    ],
    ids=["post-norm", "shared keys"],
)
def test_all_edges_of_a_written_variant(options: dict[str, Any]) -> None:
    """Every edge of the truth, non-edges among them, under resampling."""
    made = build("induction", **options)
    rows = made.rows(12, 5)
    from cutaway.zoo.handmade.edges import establish

    truth = establish(made.module, made.blueprint, rows, "induction")
    found = drop(edges(load(made.module), handmade_batch(rows), mode="noise"), truth.baseline)
    said = {(e.source, e.target): e for e in truth.edges if e.source != "transformer.wpe"}
    assert set(found) == set(said)
    for nodes, edge in said.items():
        assert found[nodes] == pytest.approx(edge.resample, abs=2e-5), nodes
        if edge.structural is False and edge.source != "embed" and "gemma" not in str(options):
            assert abs(found[nodes]) < 0.02, nodes
    largest = sorted((n for n in said if n[0][0] == "z" and n[1] != "logits"), key=lambda n: -abs(found[n]))[0]
    assert largest == ("z.0.h0", "k.1.h0")


def induction_rows(model: Model) -> Batch:
    """Induction prompts, the other side of each being another prompt: then what was said before differs too."""
    batch = cutaway.tasks.get("induction", model, n=12).encode(model)
    return replace(batch, corrupt=batch.clean.take([*range(1, batch.n), 0]))


def test_the_induction_circuit_is_found_and_its_twin_has_none() -> None:
    model = cutaway.load("induction-2l")
    twin = load(zoo.scrambled(model.module, seed=0), tokenizer=model.tokenizer)
    truth = zoo.truth("induction-2l")
    (previous,), (induction,) = truth.heads("previous_token"), truth.heads("induction")
    wire = previous, induction.replace("z", "k", 1)
    said = next(edge for edge in truth.edges if (edge.source, edge.target) == wire)
    for mode, expected in (("noise", said.resample), ("zero", said.zero)):
        found = edges(model, induction_rows(model), "z.0.h*", "k.1.h*", mode=mode)
        shares = dict(zip(found.nodes, (-found.mean() / found.clean.mean()).tolist()))
        assert found.nodes[found.order()[0]] == wire
        assert shares[wire] == pytest.approx(expected, abs=0.1)
        assert max(abs(share) for nodes, share in shares.items() if nodes != wire) < 0.1
        none = edges(twin, induction_rows(twin), "z.0.h*", "k.1.h*", mode=mode)
        assert none.mean().abs().max() < 0.02 * found.mean().abs().max()


def test_an_edge_that_says_the_same_on_both_sides_carries_nothing_and_may_be_needed() -> None:
    """The task's own pairs differ in what follows the repeated token alone: the head that writes what came before it
    says the same on both sides, and yet nothing works without it."""
    model = cutaway.load("induction-2l")
    task = cutaway.tasks.get("induction", model, n=12)
    (previous,), (induction,) = (zoo.truth("induction-2l").heads(role) for role in ("previous_token", "induction"))
    wire = previous, induction.replace("z", "k", 1)
    assert edges(model, task, *wire, mode="noise").share().abs().item() < 0.01
    assert edges(model, task, *wire, mode="zero").share().item() > 0.4


# -- the record


def test_the_record_and_its_figures(gpt2: Model, tmp_path: Path) -> None:
    task = token_task(gpt2, clusters=6)
    effects = edges(gpt2, task, ["z.0.h1", "z.1.h0"], ["q.1.h0", "logits"])
    assert effects.labels == ("z.0.h1 -> q.1.h0", "z.0.h1 -> logits", "z.1.h0 -> logits")
    assert (effects.senders, effects.receivers) == (("z.0.h1", "z.1.h0"), ("q.1.h0", "logits"))
    matrix = effects.matrix()
    assert matrix.isnan().tolist() == [[False, False], [True, False]]
    assert torch.equal(matrix[~matrix.isnan()], effects.mean())
    assert effects.table()[1]["sender"] == "z.0.h1"
    assert effects.table()[1]["receiver"] == "logits"
    (figure,) = effects.figures()
    assert isinstance(figure, Heatmap)
    assert figure.values[0] == pytest.approx(effects.share()[:2].tolist())
    assert figure.half_widths is not None
    assert math.isnan(figure.values[1][0])
    halves = [half_width(interval) for interval in effects.intervals()]
    assert figure.half_widths[0] == pytest.approx(halves[:2], nan_ok=True)
    (one,) = effects.figures("z.0.h1 -> logits")
    assert isinstance(one, Bars)
    assert one.values == pytest.approx(effects.raw[1].tolist())
    (bars,) = edges(gpt2, task, ["z.0.h1", "z.1.h0"], "logits").figures()
    assert isinstance(bars, Bars)
    effects.save(tmp_path / "edges.safetensors")
    again = Edges.load(tmp_path / "edges.safetensors", gpt2)
    assert isinstance(again, Edges)
    assert again.labels == effects.labels
    assert torch.equal(again.values, effects.values)
    with pytest.raises(WrongModel):
        Direct.load(tmp_path / "edges.safetensors", loaded("llama"))
    assert isinstance(effects.select("* -> logits"), Edges)
    assert (effects.on, effects.method) == ("corrupt", "denoise, direct edges")


def test_progress_reaches_the_whole(gpt2: Model) -> None:
    calls: list[tuple[int, int]] = []
    edges(gpt2, token_batch(gpt2), "z.0.h1", "q.2.h0", progress=lambda done, of: calls.append((done, of)))
    assert calls[-1][0] == calls[-1][1]
    assert [done for done, _ in calls] == sorted(done for done, _ in calls)


# -- what cannot be


@pytest.mark.parametrize(
    ("senders", "receivers", "options", "error", "says"),
    [
        ("z.1.h0", "q.1.h0", {}, UsageError, "no edge leads"),
        ("mlp_out.1", "mlp_in.1", {}, UsageError, "no edge leads"),
        ("z.0.h0@subject", "logits@end", {}, UsageError, "no edge leads"),
        ("q.0.h0", "logits", {}, UsageError, "sender 'q.0.h0'"),
        ("z.0.h0", "pattern.1", {}, UsageError, "receiver 'pattern.1'"),
        ("z.0.h0#1", "logits", {}, UsageError, "selects rows"),
        ("z.0.h9", "logits", {}, OutOfRange, "4 heads"),
        ("z.0.h0", "q.5.h0", {}, OutOfRange, "3 layers"),
        ("z.0.h0", "logits", {"mode": "resample"}, UnknownName, "denoise"),
        ("z.0.h0", "logits", {"positions": ["sujet"]}, UsageError, "subject"),
    ],
)
def test_wrong_requests_say_what_to_do(
    gpt2: Model, senders: str, receivers: str, options: dict[str, Any], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        edges(gpt2, token_batch(gpt2), senders, receivers, **options)


def test_blocks_that_norm_the_stream_are_refused() -> None:
    bert = loaded("bert")
    with pytest.raises(SiteUnavailable, match="norm on the stream"):
        edges(bert, token_batch(bert), "z.0.h0", "q.2.h0")


def test_experts_have_no_neurons_to_send() -> None:
    mixtral = loaded("mixtral")
    with pytest.raises(SiteUnavailable, match="stacked"):
        edges(mixtral, token_batch(mixtral), "mlp_act.0.n1", "logits")


def test_sides_that_are_padded_differently_are_refused(gpt2: Model) -> None:
    batch = token_batch(gpt2, n=2, lengths=(7, 5))
    rows = [batch.corrupt.row(i) for i in range(2)]
    other = gpt2.encode(rows, pad="left", roles={"subject": batch.corrupt.roles["subject"]})
    with pytest.raises(Misaligned, match="padded differently"):
        edges(gpt2, replace(batch, corrupt=other), "z.0.h0", "logits")


def test_a_norm_that_is_none_is_refused() -> None:
    """Behind the heads stands something that is not linear in them at a fixed scale."""

    class Bent(torch.nn.Module):
        def __init__(self, size: int) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(size))

        def forward(self, x: Tensor) -> Tensor:
            return torch.tanh(x) * self.weight

    twin = tiny("gemma2")
    for layer in twin.model.layers:
        layer.post_attention_layernorm = Bent(32)
    model = load(twin.eval())
    batch = token_batch(model)
    with pytest.raises(SiteUnavailable, match=r"no norm.*'attn_write.0'"):
        edges(model, batch, "z.0.h1", "logits")
    assert edges(model, batch, "attn_write.0", "logits").raw.abs().max() > 1e-6


def test_a_block_that_only_looks_parallel_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its MLP answers to its attention, and the map says that both read the same."""
    model = load(tiny("gpt2"))
    layers = tuple(replace(layer, writes="parallel") for layer in model.body.layers)
    monkeypatch.setattr(model, "_anatomy", replace(model.body, layers=layers))
    batch = token_batch(model)
    with pytest.raises(SiteUnavailable, match="MLP of block 1 reads what the attention adds"):
        edges(model, batch, "embed", "mlp_in.1")
    assert edges(model, batch, "embed", "v.1.h0").raw.abs().max() > 1e-6
