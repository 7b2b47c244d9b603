"""Laws of causal tracing: noise goes where the subject is, one state is put back, and a hand-written loop agrees."""

import random
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cutaway.errors import BrokenEvidence, DataError, NoBehavior, UnknownName, UsageError, WrongModel
from cutaway.figures import Bars, Heatmap
from cutaway.models import Model
from cutaway.patching import Trace, sweep, trace
from cutaway.patching.measure import encode
from cutaway.patching.trace import Noised
from cutaway.tasks import Pair, Task, vocabulary_digest
from cutaway.tasks.align import role_tokens
from tests.families import FAMILIES
from tests.patching.pairs import LOW, loaded, token_task

CLOSE = {"atol": 2e-6, "rtol": 1e-3}
SPANS = ((2, 4), (1, 2), (3, 6), (2, 4))
LENGTHS = (7, 5, 8, 7)


def subjects(
    model: Model, spans: tuple[tuple[int, int], ...] = SPANS, lengths: tuple[int, ...] = LENGTHS, d_answer: int = 1
) -> Task:
    """Pairs of random tokens whose subjects have several tokens; pair i is of cluster i."""
    chance = random.Random(3)
    high = model.body.d_vocab or 0
    pairs = []
    for i, (span, length) in enumerate(zip(spans, lengths, strict=True)):
        clean, corrupt = ([chance.randrange(LOW, high) for _ in range(length)] for _ in range(2))
        words = chance.sample(range(LOW, high), 2 * d_answer)
        answer, foil = tuple(words[:d_answer]), tuple(words[d_answer:])
        pairs.append(Pair(tuple(clean), tuple(corrupt), answer, foil, {"subject": span}, id=f"p{i}", cluster=f"c{i}"))
    return Task("subjects", "Random tokens.", tuple(pairs), "logit_diff", ("subject",), 3, vocabulary_digest(model))


class ByHand:
    """Plain Hugging Face with plain hooks: every state by its name, put back at one place of each row."""

    def __init__(self, model: Model, task: Task) -> None:
        self.module: Any = model.module
        self.gpt2 = self.module.config.model_type == "gpt2"
        body = self.module.transformer if self.gpt2 else self.module.model
        self.embedding: nn.Module = body.wte if self.gpt2 else body.embed_tokens
        self.blocks: Any = body.h if self.gpt2 else body.layers
        self.batch = encode(model, replace(task, metric="prob"))

    def part(self, name: str) -> tuple[nn.Module, bool]:
        """The module of a state, and whether it is what goes in."""
        kind, layer = name.split(".")
        block = self.blocks[int(layer)]
        attention = block.attn if self.gpt2 else block.self_attn
        return {"resid_pre": block, "resid_post": block, "mlp_out": block.mlp, "attn_out": attention}[kind], (
            kind == "resid_pre"
        )

    def run(self, noise: Tensor, changes: dict[str, Callable[[Tensor], Tensor]]) -> tuple[Tensor, dict[str, Tensor]]:
        """Probability of each answer, and the values of all states after the changes."""
        seen: dict[str, Tensor] = {}
        names = [f"{kind}.{i}" for kind in ("resid_pre", "mlp_out", "attn_out") for i in range(len(self.blocks))]
        names.append(f"resid_post.{len(self.blocks) - 1}")

        def change(name: str, value: Tensor) -> Tensor:
            seen[name] = changes[name](value.clone()) if name in changes else value
            return seen[name]

        with ExitStack() as stack, torch.no_grad():
            stack.callback(self.embedding.register_forward_hook(lambda m, args, out: out + noise).remove)
            for name in names:
                target, before = self.part(name)
                if before:
                    handle = target.register_forward_pre_hook(
                        lambda m, args, name=name: (change(name, args[0]), *args[1:])
                    )
                else:
                    handle = target.register_forward_hook(
                        lambda m, args, out, name=name: (
                            (change(name, out[0]), *out[1:]) if isinstance(out, tuple) else change(name, out)
                        )
                    )
                stack.callback(handle.remove)
            rows = self.batch.clean
            logits = self.module(input_ids=rows.ids, attention_mask=rows.mask.long(), use_cache=False).logits
        ends = rows.roles["end"]
        found = [logits[i, end].softmax(-1)[answer[0]] for i, (end, answer) in enumerate(zip(ends, self.batch.answers))]
        return torch.stack(found), seen


def at(places: list[int], donor: Tensor) -> Callable[[Tensor], Tensor]:
    """Set one place of each row to the donor's."""

    def put(value: Tensor) -> Tensor:
        for row, place in enumerate(places):
            value[row, place] = donor[row, place]
        return value

    return put


@pytest.mark.parametrize(("family", "severed"), [("gpt2", None), ("llama", None), ("gpt2", "mlp"), ("llama", "attn")])
def test_every_cell_equals_hand_hooks(family: str, severed: str | None) -> None:
    model = loaded(family)
    task, samples = subjects(model), 2
    window = {"window": 2} if severed is None else {}
    found = trace(model, task, samples=samples, seed=5, severed=severed, **window)
    hand = ByHand(model, task)
    noised = Noised.of(model, hand.batch, role_tokens(task.pairs, "subject", model), 3.0, 5)
    noises = [edit.scale * edit.value for k in range(samples + 1) for edit in noised.edits(k)]  # type: ignore[operator]
    clean, states = hand.run(torch.zeros(()), {})
    torch.testing.assert_close(found.clean, clean.double(), **CLOSE)
    before = [hand.run(noise, {}) for noise in noises]
    torch.testing.assert_close(found.noised, torch.stack([one[0] for one in before[:samples]]).double(), **CLOSE)
    columns = found.restored.shape[1]
    assert columns == max(n - start for n, (start, _) in zip(LENGTHS, SPANS))
    for row, label in enumerate(found.labels):
        kind, _, layers = label.partition(".")
        first, _, stop = layers.partition(":")
        members = [f"{kind}.{layer}" for layer in range(int(first), int(stop or int(first) + 1))]
        cut = []
        if severed is not None and kind == "resid_pre":
            cut = [f"{severed}_out.{layer}" for layer in range(int(first), 3)]
        for column in range(columns):
            places = [min(start + column, n - 1) for n, (start, _) in zip(LENGTHS, SPANS)]
            inside = [start + column < n for n, (start, _) in zip(LENGTHS, SPANS)]
            for values, donors in ((found.restored, [states] * samples), (found.null, [b[1] for b in before[1:]])):
                assert values is not None
                scores = []
                for k in range(samples):
                    changes = {name: at(places, donors[k][name]) for name in members}
                    changes |= {name: at(places, before[k][1][name]) for name in cut}
                    scores.append(hand.run(noises[k], changes)[0])
                expected = torch.stack(scores).double().mean(0).where(torch.tensor(inside), torch.nan)
                torch.testing.assert_close(values[row, column], expected, equal_nan=True, **CLOSE)
    assert found.indirect_effect.nan_to_num().abs().max() > 1e-4
    if severed is None:
        assert found.labels[-3:] == ("attn_out.0:1", "attn_out.0:2", "attn_out.1:3")
        assert found.kinds == ("resid",) * 4 + ("mlp",) * 3 + ("attn",) * 3


def test_noise_lies_on_the_subjects_tokens_and_nowhere_else() -> None:
    model = loaded("gpt2")
    task = subjects(model)
    batch = encode(model, task)
    noised = Noised.of(model, batch, role_tokens(task.pairs, "subject", model), 3.0, 0)
    plain = model.capture(batch.clean, "embed")["embed"]
    added = model.run(noised.tokens, noised.edits(0), reads="embed", logits="none").activations["embed"] - plain
    inside = torch.zeros(added.shape[:2], dtype=torch.bool)
    for row, (start, stop) in enumerate(SPANS):
        inside[row, start:stop] = True
    assert torch.equal(added.abs().amax(-1) > 0, inside)
    assert noised.sigma == pytest.approx(3 * float(plain[inside].std(correction=0)), rel=1e-5)
    assert float(added[inside].std()) == pytest.approx(noised.sigma, rel=0.15)
    again, other = (Noised.of(model, batch, list(noised.spans), 3.0, seed) for seed in (0, 1))
    assert torch.equal(again.edits(0)[0].value, noised.edits(0)[0].value)  # type: ignore[arg-type]
    assert not torch.equal(other.edits(0)[0].value, noised.edits(0)[0].value)  # type: ignore[arg-type]
    assert not torch.equal(noised.edits(1)[0].value, noised.edits(0)[0].value)  # type: ignore[arg-type]


@pytest.mark.parametrize("family", FAMILIES)
def test_no_noise_no_effect(family: str) -> None:
    model = loaded(family)
    found = trace(model, subjects(model), noise=0.0, samples=3, kinds=["resid", "mlp"], window=2)
    assert torch.equal(found.total_effect, torch.zeros(4, dtype=torch.float64))
    known = found.restored.isfinite()
    assert torch.equal(found.indirect_effect[known], torch.zeros(int(known.sum()), dtype=torch.float64))
    with pytest.raises(NoBehavior, match="noise="):
        found.share(0, "end")
    assert {row["share"] for row in found.table()} == {None}
    assert found.figures()[0].unit == "probability"  # type: ignore[union-attr]


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "bert"])
def test_where_the_subject_ends_the_prompt_each_of_its_states_restores_all(family: str) -> None:
    """Nothing else was noised, and nothing behind it could tell."""
    model = loaded(family)
    found = trace(model, subjects(model, ((6, 7), (4, 5)), (7, 5)), samples=2, kinds=["resid"])
    assert found.total_effect.abs().min() > 1e-5
    for row in found.indirect_effect:
        torch.testing.assert_close(row[0], found.total_effect, atol=1e-6, rtol=1e-3)
    assert found.places == (("subject last",), ("subject last",))


def test_severed_behind_the_last_layer_is_not_severed() -> None:
    model = loaded("llama")
    plain, *cut = (trace(model, subjects(model), samples=2, kinds=["resid"], severed=s) for s in (None, "mlp", "attn"))
    for one in cut:
        torch.testing.assert_close(one.restored[-1], plain.restored[-1], atol=1e-7, rtol=1e-5, equal_nan=True)
        known = plain.restored[0].isfinite()
        assert (one.restored[0] - plain.restored[0])[known].abs().max() > 1e-5
        assert one.labels == plain.labels


def test_the_metric_is_the_one_asked_for() -> None:
    model = loaded("gpt2")
    task = token_task(model, n=3, lengths=(6,))
    found = trace(model, task, samples=1, kinds=["mlp"], metric="logit_diff", window=1)
    effects = sweep(model, task, "resid_pre.0")
    torch.testing.assert_close(found.clean.float(), effects.clean, atol=2e-5, rtol=1e-4)
    assert (found.metric, found.unit, found.sign) == ("logit_diff", "nat", 1)


def test_answers_of_several_tokens_are_noised_alike_in_both_rows() -> None:
    model = loaded("gpt2")
    task = subjects(model, ((1, 3), (2, 3)), (6, 5), d_answer=2)
    found = trace(model, task, samples=2, kinds=["resid"], metric="logprob_diff")
    assert found.restored.shape == (4, 5, 2)
    end = [len(names) - 1 for names in found.tokens]
    assert end == [4, 2]
    zero = trace(model, task, samples=2, kinds=["resid"], metric="logprob_diff", noise=0.0)
    torch.testing.assert_close(zero.clean, found.clean)
    assert torch.equal(zero.total_effect, torch.zeros(2, dtype=torch.float64))


def test_places_are_those_of_the_prompt() -> None:
    model = loaded("gpt2")
    found = trace(model, subjects(model), samples=1, kinds=["resid"], null=False)
    assert found.places == (
        ("subject first", "subject last", "next", "between", "end"),
        ("subject last", "next", "between", "end"),
        ("subject first", "subject middle", "subject last", "next", "end"),
        ("subject first", "subject last", "next", "between", "end"),
    )
    assert [len(names) for names in found.tokens] == [5, 4, 5, 5]
    by_place = found.by_place()
    assert list(by_place) == ["subject first", "subject middle", "subject last", "next", "between", "end"]
    effect = found.indirect_effect
    assert torch.equal(by_place["end"][1], torch.stack([effect[1, c, i] for i, c in enumerate((4, 3, 4, 4))]))
    assert by_place["subject first"][0].isfinite().tolist() == [True, False, True, True]
    rows = {(row["site"], row["place"]): row for row in found.table()}
    cell = rows["resid_pre.1", "subject middle"]
    assert (cell["examples"], cell["clusters"]) == (1, 1)
    assert cell["effect"] == pytest.approx(float(effect[1, 1, 2]))
    assert cell["share"] == pytest.approx(float(effect[1, 1, 2] / found.total_effect[2]))
    assert cell["low"] is None
    assert cell["chance"] is None


def test_figures_of_the_whole_and_of_one_example() -> None:
    model = loaded("gpt2")
    found = trace(model, subjects(model), samples=2, window=1)
    states, chance, mlps, attention, runs = found.figures()
    assert isinstance(states, Heatmap)
    assert isinstance(chance, Heatmap)
    assert isinstance(mlps, Heatmap)
    assert isinstance(attention, Heatmap)
    assert isinstance(runs, Bars)
    assert states.rows == ("resid_pre.0", "resid_pre.1", "resid_pre.2", "resid_post.2")
    assert states.columns == tuple(found.by_place())
    assert states.values[0][0] == pytest.approx(found.share(0, "subject first").estimate)
    assert runs.values[:2] == pytest.approx((float(found.clean.mean()), float(found.noised.mean())))
    (first, *_) = found.figures("p1")
    assert isinstance(first, Heatmap)
    assert len(first.columns) == 4
    assert first.values[0][0] == pytest.approx(float(found.indirect_effect[0, 0, 1]))
    with pytest.raises(UnknownName, match="p9"):
        found.figures("p9")
    with pytest.raises(UnknownName, match="subject"):
        found.share(0, "subjct last")
    assert found.summary()["samples"] == 2


def test_a_trace_is_saved_and_comes_back(tmp_path: Path) -> None:
    model = loaded("gpt2")
    found = trace(model, subjects(model), samples=1, kinds=["resid", "mlp"], seed=7)
    path = tmp_path / "trace.safetensors"
    found.save(path)
    back = Trace.load(path, model)
    assert back.table() == found.table()
    assert back.null is not None
    assert back.provenance == found.provenance
    assert back.provenance.seed == 7
    with pytest.raises(WrongModel):
        Trace.load(path, loaded("llama"))
    sweep(model, subjects(model), "mlp_out.0").save(tmp_path / "effects.safetensors")
    with pytest.raises(BrokenEvidence, match="not a trace"):
        Trace.load(tmp_path / "effects.safetensors")


def test_progress_is_told() -> None:
    calls: list[tuple[int, int]] = []
    model = loaded("gpt2")
    trace(model, subjects(model), samples=2, kinds=["resid"], progress=lambda done, total: calls.append((done, total)))
    assert calls[-1][0] == calls[-1][1]
    assert [done for done, _ in calls] == sorted(done for done, _ in calls)


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"noise": -1.0}, UsageError, "from 0 on"),
        ({"noise": float("inf")}, UsageError, "from 0 on"),
        ({"samples": 0}, UsageError, "at least one noise"),
        ({"kinds": []}, UsageError, "resid"),
        ({"kinds": ["residual"]}, UnknownName, "resid"),
        ({"severed": "mlps"}, UnknownName, "mlp"),
        ({"severed": "mlp", "kinds": ["mlp"]}, UsageError, "leave out kinds"),
        ({"window": 4}, UsageError, "3 layers"),
        ({"window": 0}, UsageError, "1 to 3"),
        ({"role": "object"}, DataError, "no 'object'"),
        ({"metric": "probability"}, UnknownName, "prob"),
    ],
)
def test_wrong_requests_say_what_to_do(options: dict[str, Any], error: type[Exception], says: str) -> None:
    model = loaded("gpt2")
    with pytest.raises(error, match=says):
        trace(model, subjects(model), **options)


def test_a_batch_has_no_spans() -> None:
    model = loaded("gpt2")
    batch: Any = subjects(model).encode(model)
    with pytest.raises(UsageError, match="spans of a Task"):
        trace(model, batch)
