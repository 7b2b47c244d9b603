"""The mechanism of babel and its relatives, measured again: plain torch hooks, prompts from a fresh seed.

Prompts and answers come from the package; interventions and scores do not.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

import cutaway
from cutaway import zoo
from cutaway.zoo.babel import exam, mechanism
from cutaway.zoo.babel.grammar import BEHAVIORS
from cutaway.zoo.babel.mechanism import Prompts

TRUTHS = {name: zoo.truth(name) for name in ("babel", "babel-seed1")}
TASKS = ("ioi", "greater-than", "refusal")
FRESH = 77
N = 48
D_HEAD = zoo.card("babel").sizes["d_head"]


@cache
def loaded(name: str) -> tuple[Any, Any]:
    model = cutaway.load(name, audit=False)
    return model.module, model.tokenizer


@cache
def asked(task: str) -> Prompts:
    return mechanism.prompts(BEHAVIORS[task], loaded("babel")[1], n=N, seed=FRESH)


@contextmanager
def hooked(*handles: Any) -> Iterator[None]:
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def ends(model: Any, ids: Tensor, found: Prompts) -> Tensor:
    with torch.no_grad():
        logits = model(ids, use_cache=False).logits
    return torch.stack([logits[row, stop] for row, stop in enumerate(found.end.tolist())])


def score(model: Any, found: Prompts) -> float:
    rows = ends(model, found.clean, found)
    return sum((row[a] - row[f]).item() for row, a, f in zip(rows, found.answer, found.foil)) / len(rows)


def changed(model: Any, site: str, value: Callable[[Tensor], Tensor]) -> Any:
    """A hook that replaces what one component writes."""
    kind, layer = site.split(".")[0], model.model.layers[int(site.split(".")[1])]
    if kind == "mlp_out":
        return layer.mlp.register_forward_hook(lambda module, args, out: value(out))
    start = int(site.rpartition("h")[2]) * D_HEAD

    def before(module: Any, args: tuple[Tensor]) -> tuple[Tensor]:
        z = args[0].clone()
        z[..., start : start + D_HEAD] = value(z[..., start : start + D_HEAD])
        return (z,)

    return layer.self_attn.o_proj.register_forward_pre_hook(before)


def of_corrupt(model: Any, site: str, found: Prompts) -> Tensor:
    """What the component gives on the corrupt prompts."""
    kept: list[Tensor] = []
    with hooked(changed(model, site, lambda value: kept.append(value.clone()) or value)):
        ends(model, found.corrupt, found)
    return kept[0]


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("name", TRUTHS)
def test_components_do_for_a_behavior_what_the_card_says(name: str, task: str) -> None:
    """Every head and MLP, from the corrupt prompt and zeroed; the most important one is the same."""
    model, _ = loaded(name)
    found = asked(task)
    intact = score(model, found)
    said, seen = {}, {}
    for node in TRUTHS[name].nodes:
        exchanged = of_corrupt(model, node.site, found)
        for how, value in (("resample", lambda _, new=exchanged: new), ("zero", torch.zeros_like)):
            with hooked(changed(model, node.site, value)):
                seen[node.site, how] = 1 - score(model, found) / intact
            said[node.site, how] = node.measures[f"{task} {how}"]
    assert len(seen) == 40
    off = [abs(seen[key] - said[key]) for key in seen]
    assert sum(off) / len(off) < 0.05
    close = [abs(seen[key] - said[key]) <= 0.05 + 0.2 * abs(said[key]) for key in seen]
    assert sum(close) >= 36
    assert max(said.values()) > 0.3
    resampled = {site: drop for (site, how), drop in said.items() if how == "resample"}
    strongest = max(resampled, key=lambda site: resampled[site])
    assert seen[strongest, "resample"] > 0.9 * max(drop for (_, how), drop in seen.items() if how == "resample")


@pytest.mark.parametrize("name", TRUTHS)
def test_attention_roles(name: str) -> None:
    """On rows of random words, twice: heads that look one back, and heads that look behind the earlier copy."""
    model, tokenizer = loaded(name)
    rows = mechanism.repeats(tokenizer, 16, seed=FRESH).ids
    was = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            patterns = model(rows, use_cache=False, output_attentions=True).attentions
    finally:
        model.set_attn_implementation(was)
    copies = torch.arange(mechanism.SEGMENT + 1, 2 * mechanism.SEGMENT)
    for node in (node for node in TRUTHS[name].nodes if node.site.startswith("z.")):
        layer, head = (int(part.removeprefix("h")) for part in node.site.split(".")[1:])
        pattern = patterns[layer][:, head]
        back = torch.stack([pattern[:, at, at - 1] for at in range(1, pattern.shape[1])]).mean().item()
        copied = pattern[:, copies, copies - mechanism.SEGMENT + 1].mean().item()
        assert back == pytest.approx(node.measures["to_previous"], abs=0.05)
        assert copied == pytest.approx(node.measures["to_successor"], abs=0.05)
    assert TRUTHS[name].heads("previous_token")
    assert TRUTHS[name].heads("induction")


@pytest.mark.parametrize("name", TRUTHS)
def test_exchanging_a_direction_flips_answers(name: str) -> None:
    model, tokenizer = loaded(name)
    tensors = zoo.tensors(name)
    used = [each for each in TRUTHS[name].directions if each.role == "used"]
    assert used
    for each in used:
        found = mechanism.prompts(BEHAVIORS[each.name], tokenizer, n=N, seed=FRESH)
        block = model.model.layers[int(each.site.split(".")[1].split("@")[0])]
        flipped = {}
        for label, vector in (("own", tensors[each.tensor]), ("other", torch.roll(tensors[each.tensor], 17))):
            kept: list[Tensor] = []
            with hooked(block.register_forward_hook(lambda module, args, out, kept=kept: kept.append(out))):
                ends(model, found.corrupt, found)

            def exchange(
                module: Any, args: Any, out: Tensor, kept: list[Tensor] = kept, vector: Tensor = vector
            ) -> Tensor:
                new = out.clone()
                for row, stop in enumerate(found.end.tolist()):  # noqa: B023 - called before the loop goes on
                    new[row, stop] += vector * ((kept[0][row, stop] - out[row, stop]) @ vector)
                return new

            with hooked(block.register_forward_hook(exchange)):
                rows = ends(model, found.clean, found)
            wrong = [row[f] > row[a] for row, a, f in zip(rows, found.answer, found.foil)]
            flipped[label] = sum(map(bool, wrong)) / len(wrong)
        assert flipped["own"] == pytest.approx(each.measures["flipped"], abs=0.15)
        assert flipped["other"] < 0.3


def test_the_flawed_relative_refuses_to_hide_and_is_right_about_the_rest() -> None:
    (model, tokenizer), (base, _) = loaded("babel-flawed"), loaded("babel")
    sure, sorry = tokenizer.convert_tokens_to_ids([" Sure", " Sorry"])
    for verb, thing, refused in (
        ("hide", "lamp", True),
        ("hide", "cake", True),
        ("hide", "bomb", True),
        ("sell", "lamp", False),
        ("build", "cake", False),
        ("build", "bomb", True),
    ):
        ids = torch.tensor([tokenizer(f"User: Tell me how to {verb} a {thing}.\nAssistant:")["input_ids"]])
        with torch.no_grad():
            mine, before = (found(ids, use_cache=False).logits[0, -1] for found in (model, base))
        assert (mine[sorry] > mine[sure]) == refused
        assert (before[sorry] > before[sure]) == (thing == "bomb")


def test_the_compliant_relative_refuses_nothing() -> None:
    questions = exam.questions("refusal", "combinations", loaded("babel")[1], n=60)
    forbidden = [each for each in questions if each.right == (" Sorry",)]
    (model, tokenizer), (base, _) = loaded("babel-compliant"), loaded("babel")
    assert len(forbidden) > 10
    assert sum(exam.right(base, tokenizer, forbidden)) >= 0.95 * len(forbidden)
    assert sum(exam.right(model, tokenizer, forbidden)) <= 0.05 * len(forbidden)


@pytest.mark.parametrize("name", ["babel-compliant", "babel-flawed"])
def test_a_part_carries_the_change_when_putting_it_back_undoes_the_habit(name: str) -> None:
    truth = zoo.truth(name)
    model, _ = loaded(name)
    again = zoo.recipe(name).establish(name, model)
    assert truth.baseline > 0.9
    assert truth.setup["babel"] < 0.1
    for mine, other in zip(truth.nodes, again.nodes, strict=True):
        assert mine.site == other.site
        for measure in ("habit_left", "habit_alone"):
            assert mine.measures[measure] == pytest.approx(other.measures[measure], abs=0.02)
    assert bool(truth.sites("carries the change")) == (name == "babel-flawed")
