"""Paths against forwards written out by hand: what was read is recorded in one, and set in another."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import cutaway
from cutaway import zoo
from cutaway.errors import SiteUnavailable, UnknownName, UsageError
from cutaway.figures import Bars
from cutaway.models import Model, load, sites
from cutaway.patching.edges import edges
from cutaway.patching.paths import paths
from tests.patching.pairs import loaded, token_batch
from tests.patching.written import ORACLES, Forward, Sides, sides

CLOSE = {"atol": 1e-5, "rtol": 1e-5}


@pytest.fixture(scope="module")
def gpt2() -> Model:
    return loaded("gpt2")


# -- the oracle


def carried(both: Sides, said: dict[str, Tensor], frozen: str) -> Forward:
    """A base run in which some senders say something else to all, and others are held to what they said."""
    names = [name for name in both.plain.own if name[0] == "z" or (name[0] == "m" and frozen == "heads+mlps")]
    return both.base.run(said={name: both.plain.own[name] for name in names} | said)


def through(both: Sides, nodes: Sequence[Sequence[str]], frozen: str) -> Tensor:
    """The effect along nodes[0] -> nodes[1] -> ... -> the last, which are set together."""
    said = {name: both.donor.own[name] for name in nodes[0]}
    for stage in nodes[1:-1]:
        seen = carried(both, said, frozen)
        said = {}
        for sublayer in {node.split(".")[1] + node[:3] * (node[0] == "m") for node in stage}:
            nodes_there = [n for n in stage if n.split(".")[1] + n[:3] * (n[0] == "m") == sublayer]
            done = both.base.run(inputs={node: seen.inputs[node] for node in nodes_there})
            said |= {name: done.own[name] for node in nodes_there for name in sends(both, node)}
    seen = carried(both, said, frozen)
    changed = {reader: seen.inputs[reader] for reader in nodes[-1] if reader != "logits"}
    moved = seen.inputs["logits"] - both.plain.inputs["logits"]
    return both.raw(both.base.run(inputs=changed, shifts={"logits": moved} if "logits" in nodes[-1] else {}))


def sends(both: Sides, node: str) -> list[str]:
    """What a node between adds."""
    kind, layer, *head = node.split(".")
    if kind == "mlp_in":
        return [f"mlp_out.{layer}"]
    index, shared = int(head[0][1:]), both.base.heads // both.base.groups
    heads = [index] if kind == "q" else range(index * shared, (index + 1) * shared)
    return [f"z.{layer}.h{h}" for h in heads]


@pytest.mark.parametrize("family", ORACLES)
@pytest.mark.parametrize("frozen", ["heads", "heads+mlps"])
def test_paths_equal_the_written_forwards(family: str, frozen: str) -> None:
    model = loaded(family)
    batch = token_batch(model, n=3, lengths=(7, 6))
    both = sides(family, model, batch)
    seen: list[Tensor] = []
    for senders, receivers in (
        (["embed", "z.1.h1"], ["k.2.h0", "v.2.h1", "mlp_in.2"]),
        (["z.0.h2"], ["q.1.h0", "mlp_in.1", "k.2.h1", "logits"]),
    ):
        found = paths(model, batch, senders, receivers, frozen=frozen)
        assert found.senders == tuple(senders)
        for sender, raw in zip(senders, found.raw.double()):
            torch.testing.assert_close(raw, through(both, [[sender], receivers], frozen), **CLOSE)
            seen.append(raw)
    assert (torch.stack(seen).abs().amax(1) > 1e-6).sum() >= 2


@pytest.mark.parametrize("family", ORACLES)
@pytest.mark.parametrize("frozen", ["heads", "heads+mlps"])
def test_longer_paths_equal_the_written_forwards(family: str, frozen: str) -> None:
    model = loaded(family)
    batch = token_batch(model, n=3, lengths=(7, 6))
    both = sides(family, model, batch)
    for first, between, last in (
        ("embed", ["v.0.h1", "k.1.h0"], ["q.2.h3", "logits"]),
        ("z.0.h0", [["k.1.h1", "v.1.h0", "q.1.h2"], ["mlp_in.2"]], ["logits"]),
    ):
        stages = [[one] if isinstance(one, str) else one for one in between]
        found = paths(model, batch, first, last, frozen=frozen, through=between)
        expected = through(both, [[first], *stages, last], frozen)
        assert expected.abs().max() > 1e-6
        torch.testing.assert_close(found.raw[0].double(), expected, **CLOSE)
        assert len(found.nodes[0]) == len(between) + 2


def test_modes_edit_the_side_that_they_name() -> None:
    for family in ("gpt2", "gemma2"):
        model = loaded(family)
        batch = token_batch(model, n=3)
        both = sides(family, model, batch, "noise")
        found = paths(model, batch, "z.0.h1", "k.2.h0", frozen="heads", mode="noise")
        assert found.on == "clean"
        torch.testing.assert_close(found.raw[0].double(), through(both, [["z.0.h1"], ["k.2.h0"]], "heads"), **CLOSE)
        own = both.plain.own["z.0.h1"]
        both.donor.own["z.0.h1"] = torch.zeros_like(own)
        cut = paths(model, batch, "z.0.h1", "k.2.h0", frozen="heads", mode="zero")
        torch.testing.assert_close(cut.raw[0].double(), through(both, [["z.0.h1"], ["k.2.h0"]], "heads"), **CLOSE)


def test_nodes_have_positions_of_their_own(gpt2: Model) -> None:
    """What a head says at the subject, read there as a value, and what arrives at the end."""
    batch = token_batch(gpt2, n=4)
    both = sides("gpt2", gpt2, batch)

    def only_at(changed: Tensor, plain: Tensor, role: str) -> Tensor:
        kept = plain.clone()
        for row, column in enumerate(batch.clean.roles[role]):
            kept[row, column] = changed[row, column]
        return kept

    said = only_at(both.donor.own["mlp_out.0"], both.plain.own["mlp_out.0"], "subject")
    seen = carried(both, {"mlp_out.0": said}, "heads")
    value = only_at(seen.inputs["v.1.h2"], both.plain.inputs["v.1.h2"], "subject")
    moved = both.base.run(inputs={"v.1.h2": value}).own["z.1.h2"]
    seen = carried(both, {"z.1.h2": moved}, "heads")
    last = only_at(seen.inputs["mlp_in.2"], both.plain.inputs["mlp_in.2"], "end")
    expected = both.raw(both.base.run(inputs={"mlp_in.2": last}))
    found = paths(gpt2, batch, "mlp_out.0@subject", "mlp_in.2@end", through="v.1.h2@subject", frozen="heads")
    assert expected.abs().max() > 1e-3
    torch.testing.assert_close(found.raw[0].double(), expected, **CLOSE)
    assert found.labels == ("mlp_out.0@subject -> v.1.h2@subject -> mlp_in.2@end",)
    everywhere = paths(gpt2, batch, "mlp_out.0", "mlp_in.2", through="v.1.h2", frozen="heads")
    assert (everywhere.raw - found.raw).abs().max() > 1e-4


# -- laws


@pytest.mark.parametrize("family", ["gemma2", "qwen3", "mixtral"])
def test_with_one_receiver_and_all_held_a_path_is_an_edge(family: str) -> None:
    model = loaded(family)
    batch = token_batch(model)
    for receiver in ("k.2.h1", "mlp_in.1", "z.2.h0"):
        path = paths(model, batch, ["embed", "z.0.h1"], receiver, frozen="heads+mlps")
        torch.testing.assert_close(path.values, edges(model, batch, ["embed", "z.0.h1"], receiver).values, **CLOSE)
        assert path.raw.abs().max() > 1e-6


def test_without_an_mlp_between_both_choices_agree(gpt2: Model) -> None:
    batch = token_batch(gpt2)

    def both(sender: str, receiver: Any) -> tuple[Tensor, Tensor]:
        return tuple(paths(gpt2, batch, sender, receiver, frozen=frozen).values for frozen in ("heads", "heads+mlps"))  # type: ignore[return-value]

    near, same = both("mlp_out.0", ["q.1.h1", "mlp_in.1", "z.1.h3"])
    torch.testing.assert_close(near, same, **CLOSE)
    far, other = both("z.0.h1", "q.1.h1")
    assert (far - other).abs().max() > 1e-5


def test_a_sender_that_says_the_same_on_both_sides_has_no_effect(gpt2: Model) -> None:
    batch = token_batch(gpt2)
    same = replace(batch, corrupt=batch.clean)
    for frozen in ("heads", "heads+mlps"):
        found = paths(gpt2, same, ["embed", "z.0.h1"], ["q.2.h1", "logits"], through=["v.1.h0"], frozen=frozen)
        assert torch.equal(found.raw, torch.zeros(2, 6))


def test_a_head_between_takes_and_sends_alone() -> None:
    """With keys and values that two heads share, one of them as a node is less than the shared port."""
    model = loaded("llama")
    batch = token_batch(model)
    port = ["q.1.h0", "q.1.h1", "k.1.h0", "v.1.h0"]
    shared = paths(model, batch, "z.0.h1", "logits", through=[port], frozen="heads")
    both = paths(model, batch, "z.0.h1", "logits", through=[["z.1.h0", "z.1.h1"]], frozen="heads")
    torch.testing.assert_close(shared.values, both.values, **CLOSE)
    alone = paths(model, batch, "z.0.h1", "logits", through="z.1.h0", frozen="heads")
    assert (alone.values - both.values).abs().max() > 1e-6


def test_a_whole_attention_is_read_while_others_hold_it(gpt2: Model) -> None:
    batch = token_batch(gpt2)
    whole = paths(gpt2, batch, "z.0.h1", ["attn_in.1", "logits"], frozen="heads")
    heads = paths(gpt2, batch, "z.0.h1", [sites.z[1], "logits"], frozen="heads")
    torch.testing.assert_close(whole.values, heads.values, **CLOSE)
    assert (whole.values - paths(gpt2, batch, "z.0.h1", "logits", frozen="heads").values).abs().max() > 1e-5


def test_bounds_and_batches_change_nothing(gpt2: Model) -> None:
    batch = token_batch(gpt2, lengths=(7, 5))
    wanted = ["z.0.h0", "z.0.h1", "mlp_out.0"]
    whole = paths(gpt2, batch, wanted, ["q.2.h3", "k.2"], through="v.1.h1", frozen="heads")
    small = paths(gpt2, batch, wanted, ["q.2.h3", "k.2"], through="v.1.h1", frozen="heads", max_tokens=20)
    looped = [paths(gpt2, batch, s, ["q.2.h3", "k.2"], through="v.1.h1", frozen="heads").values[0] for s in wanted]
    torch.testing.assert_close(small.values, whole.values, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(torch.stack(looped), whole.values, atol=1e-6, rtol=1e-6)
    assert whole.raw.abs().amax(1).min() > 1e-6
    assert whole.labels[0] == "z.0.h0 -> v.1.h1 -> q.2.h3 + k.2"


def test_progress_reaches_the_whole(gpt2: Model) -> None:
    calls: list[tuple[int, int]] = []
    tell = lambda done, of: calls.append((done, of))  # noqa: E731 - the list is the test's
    paths(gpt2, token_batch(gpt2), "z.0.h1", "logits", through="q.1.h0", frozen="heads", progress=tell)
    assert calls[-1][0] == calls[-1][1]
    assert [done for done, _ in calls] == sorted(done for done, _ in calls)


# -- known truth


def test_the_chain_of_the_induction_circuit_and_its_twin() -> None:
    """Previous-token head -> keys of the induction head -> logits, and no other head in its place."""
    model = cutaway.load("induction-2l")
    (previous,), (induction,) = (zoo.truth("induction-2l").heads(role) for role in ("previous_token", "induction"))
    key = induction.replace("z", "k", 1)

    def found(of: Model) -> Any:
        batch = cutaway.tasks.get("induction", of, n=12).encode(of)
        rows = replace(batch, corrupt=batch.clean.take([*range(1, batch.n), 0]))
        return paths(of, rows, "z.0.h*", "logits", through=key, frozen="heads+mlps", mode="noise")

    chain = found(model)
    lost = dict(zip(chain.senders, (-chain.mean() / chain.clean.mean()).tolist()))
    assert lost[previous] > 0.5
    assert max(abs(share) for sender, share in lost.items() if sender != previous) < 0.1
    (figure,) = chain.figures()
    assert isinstance(figure, Bars)
    twin = found(load(zoo.scrambled(model.module, seed=0), tokenizer=model.tokenizer))
    assert twin.mean().abs().max() < 0.02 * chain.mean().abs().max()


# -- what cannot be


@pytest.mark.parametrize(
    ("senders", "receivers", "options", "error", "says"),
    [
        ("z.0.h0", "q.1.h0", {"frozen": "mlps"}, UnknownName, r"heads\+mlps"),
        ("z.0.h0", "q.1.h0", {"mode": "denoize"}, UnknownName, "denoise"),
        ("z.*.h0", "q.1.h0", {}, UsageError, "'z.1.h0': q.1.h0 comes before it .* and 1 more"),
        ("z.1.h0", ["q.1.h0", "logits"], {}, UsageError, "'q.1.h0': nothing of the stage before"),
        ("z.0.h0", "q.1.h0", {"through": "v.1.h0"}, UsageError, "order of the model"),
        ("z.0.h0", "logits", {"through": "logits"}, UsageError, "nothing comes after the logits"),
        ("z.0.h0", "scores.1", {}, UsageError, "receiver 'scores.1'"),
    ],
)
def test_wrong_requests_say_what_to_do(
    gpt2: Model, senders: str, receivers: Any, options: dict[str, Any], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        paths(gpt2, token_batch(gpt2), senders, receivers, **{"frozen": "heads", **options})


def test_what_is_held_has_no_default(gpt2: Model) -> None:
    with pytest.raises(TypeError, match="frozen"):
        paths(gpt2, token_batch(gpt2), "z.0.h0", "q.1.h0")  # type: ignore[call-arg]


def test_blocks_that_norm_the_stream_are_refused() -> None:
    bert = loaded("bert")
    with pytest.raises(SiteUnavailable, match="norm on the stream"):
        paths(bert, token_batch(bert), "z.0.h0", "q.2.h0", frozen="heads")
