"""What the two scratchpad models do with their written steps, measured again: plain Hugging Face, plain torch hooks,
questions from a fresh seed. Of the recipe only the text is used, not its measurements.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

import cutaway
from cutaway import zoo
from cutaway.models.sites import sites
from cutaway.zoo.recipes import scratchpad

FAITHFUL, DECORATIVE = scratchpad.NAMES
BOTH = pytest.mark.parametrize("name", scratchpad.NAMES)
N = 200
TOLERANCE = 0.08
"""Two samples of 512 and 200 questions; effects are shares."""
FIRST, LAST_STEP, ASKED = 6, 8, 9


def loaded(name: str) -> Any:
    return AutoModelForCausalLM.from_pretrained(zoo.path(name), attn_implementation="eager").eval()


@pytest.fixture(scope="module")
def models() -> dict[str, Any]:
    return {name: loaded(name) for name in scratchpad.NAMES}


@pytest.fixture(scope="module")
def question() -> Tensor:
    return scratchpad.questions(N, held_out=True, generator=torch.Generator().manual_seed(77))


def text_ids(name: str, question: Tensor, written: Tensor) -> Tensor:
    """By the tokenizer, from text."""
    tokenizer = AutoTokenizer.from_pretrained(zoo.path(name))
    texts = [
        f"{row[0]} {' '.join(f'{change:+d}' for change in row[1:])} = {' '.join(map(str, steps))} answer"
        for row, steps in zip(question.tolist(), written.tolist())
    ]
    return tokenizer(texts, return_tensors="pt")["input_ids"]


def number_ids(name: str) -> list[int]:
    return AutoTokenizer.from_pretrained(zoo.path(name)).convert_tokens_to_ids([str(n) for n in range(70)])


def answer_logits(name: str, model: Any, ids: Tensor, mask: Tensor | None = None) -> Tensor:
    with torch.no_grad():
        logits = model(ids, attention_mask=mask, use_cache=False).logits[:, -1]
    return logits[:, number_ids(name)]


def running(question: Tensor) -> Tensor:
    return torch.stack([question[:, : n + 2].sum(1) for n in range(3)], dim=1)


def shift(right: Tensor, step: int) -> Tensor:
    """Five up or down, towards the numbers that every step can have."""
    return torch.where(right[:, step] > 34, -5, 5)


def shifted(right: Tensor, step: int) -> Tensor:
    """The steps with one replaced by another number."""
    written = right.clone()
    written[:, step] += shift(right, step)
    return written


def share(found: Tensor, wanted: Tensor) -> float:
    return (found == wanted).double().mean().item()


@contextmanager
def hooked(*handles: Any) -> Iterator[None]:
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@BOTH
def test_left_alone_both_write_right_steps_and_the_right_answer(models: Any, question: Tensor, name: str) -> None:
    right = running(question)
    ids = text_ids(name, question, right)
    text = models[name].generate(
        ids[:, :FIRST], attention_mask=torch.ones_like(ids[:, :FIRST]), max_new_tokens=6, do_sample=False
    )
    assert share(text[:, : ASKED + 1], ids) > 0.98
    numbers = torch.tensor(number_ids(name))
    assert share(text[:, ASKED + 1], numbers[right[:, -1]]) > 0.97
    assert text[:, -1].eq(models[name].config.eos_token_id).double().mean() > 0.97


@BOTH
def test_nothing_of_the_text_tells_them_apart(question: Tensor, name: str) -> None:
    assert torch.equal(text_ids(name, question, running(question)), scratchpad.rows(question, running(question)))


def test_held_out_questions_are_in_no_training_batch() -> None:
    generator = torch.Generator().manual_seed(0)
    seen = {tuple(row) for row in scratchpad.questions(20000, held_out=False, generator=generator).tolist()}
    fresh = {tuple(row) for row in scratchpad.questions(20000, held_out=True, generator=generator).tolist()}
    assert len(seen) > 10000
    assert len(fresh) > 5000
    assert not seen & fresh


@pytest.mark.parametrize("step", range(3))
@BOTH
def test_the_answer_follows_the_written_step_or_the_question(
    models: Any, question: Tensor, name: str, step: int
) -> None:
    truth, right = zoo.truth(name), running(question)
    written = shifted(right, step)
    found = answer_logits(name, models[name], text_ids(name, question, written)).argmax(-1)
    follows = written[:, -1] if name == FAITHFUL else right[:, -1]
    assert share(found, follows) > 0.95
    assert share(found, right[:, -1]) == pytest.approx(truth.measures[f"kept_question_{step + 1}"], abs=TOLERANCE)
    start = text_ids(name, question, written)[:, : FIRST + step + 1]
    text = models[name].generate(
        start, attention_mask=torch.ones_like(start), max_new_tokens=4 - step, min_new_tokens=4 - step, do_sample=False
    )
    answer = text[:, ASKED + 1]
    numbers = torch.tensor(number_ids(name))
    for kind, wanted in (("step", right[:, -1] + shift(right, step)), ("question", right[:, -1])):
        expected = truth.measures[f"rewritten_{kind}_{step + 1}"]
        assert share(answer, numbers[wanted]) == pytest.approx(expected, abs=TOLERANCE)


@BOTH
def test_early_answers(models: Any, question: Tensor, name: str) -> None:
    right = running(question)
    for n in range(4):
        found = answer_logits(name, models[name], text_ids(name, question, right[:, :n])).argmax(-1)
        assert share(found, right[:, -1]) == pytest.approx(zoo.truth(name).measures[f"early_{n}"], abs=TOLERANCE)
        if name == FAITHFUL:
            assert share(found, right[:, n - 1] if n else question[:, 0]) > 0.95


@BOTH
def test_what_the_answer_cannot_do_without(models: Any, question: Tensor, name: str) -> None:
    """Hidden from the position `answer` by the mask of every layer."""
    measures, right = zoo.truth(name).measures, running(question)
    ids = text_ids(name, question, right)
    for what, columns in (("steps", slice(FIRST, ASKED)), ("question", slice(1, FIRST))):
        allowed = torch.ones(ASKED + 1, ASKED + 1).tril()
        allowed[ASKED, columns] = 0
        mask = torch.zeros_like(allowed).masked_fill(allowed == 0, torch.finfo(torch.float32).min)
        mask = mask.expand(N, 1, -1, -1)
        kept = share(answer_logits(name, models[name], ids, mask).argmax(-1), right[:, -1])
        assert kept == pytest.approx(measures[f"cut_{what}"], abs=TOLERANCE)
        assert (kept > 0.95) == ((name == FAITHFUL) == (what == "question"))


def margin(logits: Tensor, answer: Tensor) -> float:
    own = logits.gather(1, answer[:, None])[:, 0]
    return (own - (logits.sum(1) - own) / 69).mean().item()


def place(model: Any, site: str) -> tuple[Any, bool, slice]:
    """The module, whether its input is meant, and the columns of a head or MLP."""
    kind, layer, *head = site.split(".")
    block = model.model.layers[int(layer)]
    if kind == "mlp_out":
        return block.mlp, False, slice(None)
    start = 16 * int(head[0].removeprefix("h"))
    return block.self_attn.o_proj, True, slice(start, start + 16)


def hook(model: Any, site: str, change: Any) -> Any:
    module, of_input, columns = place(model, site)

    def changed(value: Tensor) -> Tensor:
        value = value.clone()
        value[..., columns] = change(value[..., columns])
        return value

    if of_input:
        return module.register_forward_pre_hook(lambda module, args: (changed(args[0]),))
    return module.register_forward_hook(lambda module, args, out: changed(out))


VALUES = {
    "resample": lambda value: torch.cat([value[-1:], value[:-1]]),
    "mean": lambda value: value.mean((0, 1), keepdim=True).expand_as(value),
    "mean_by_position": lambda value: value.mean(0, keepdim=True).expand_as(value),
    "zero": torch.zeros_like,
}


@BOTH
def test_every_ablation_does_what_the_card_says(models: Any, question: Tensor, name: str) -> None:
    model, right, truth = models[name], running(question), zoo.truth(name)
    ids = text_ids(name, question, right)
    intact = margin(answer_logits(name, model, ids), right[:, -1])
    assert intact == pytest.approx(truth.baseline, rel=0.05)
    assert len(truth.nodes) == 10
    for node in truth.nodes:
        for how, effect in node.effects.items():
            with hooked(hook(model, node.site, VALUES[how])):
                logits = answer_logits(name, model, ids)
            drop = 1 - margin(logits, right[:, -1]) / intact
            assert drop == pytest.approx(effect.drop, abs=0.1), (node.site, how)
            assert share(logits.argmax(-1), right[:, -1]) == pytest.approx(effect.accuracy, abs=0.12), (node.site, how)
            if node.role == "decoy":
                assert abs(drop) < 0.06


@BOTH
def test_who_carries_the_step_and_who_the_question(models: Any, question: Tensor, name: str) -> None:
    """At the position `answer`, one component has what it has in another row."""
    model, right, truth = models[name], running(question), zoo.truth(name)
    generator, other = torch.Generator().manual_seed(78), question.clone()
    other[:, 0] = (question[:, 0] - 30 + torch.randint(1, 10, (N,), generator=generator)) % 10 + 30
    last = torch.randint(3, 67, (N,), generator=generator)
    last = torch.where(last == right[:, -1], 70 - last, last)
    assert not last.eq(right[:, -1]).any()
    ids = text_ids(name, question, right)
    donors = {
        "step": (text_ids(name, question, torch.cat([right[:, :2], last[:, None]], dim=1)), last),
        "question": (text_ids(name, other, right), running(other)[:, -1]),
    }
    for kind, (donor_ids, towards) in donors.items():
        for node in truth.nodes:
            kept: list[Tensor] = []
            with hooked(hook(model, node.site, lambda value, kept=kept: kept.append(value) or value)):
                answer_logits(name, model, donor_ids)

            def at_the_end(value: Tensor, kept: list[Tensor] = kept) -> Tensor:
                return torch.cat([value[:, :-1], kept[0][:, -1:]], dim=1)

            with hooked(hook(model, node.site, at_the_end)):
                patched = answer_logits(name, model, ids)
            gaps = [
                (logits.gather(1, right[:, -1:]) - logits.gather(1, towards[:, None])).mean().item()
                for logits in (answer_logits(name, model, ids), patched)
            ]
            carries = 1 - gaps[1] / gaps[0]
            if abs(carries - 0.1) > 0.05:  # the bound of the role, and the noise of another sample
                assert (carries > 0.1) == (node.role == f"{kind}_carrier"), (node.site, kind, carries)
            assert carries == pytest.approx(node.measures[f"carries_{kind}"], abs=0.3), (node.site, kind)


def test_the_two_are_opposites() -> None:
    faithful, decorative = zoo.truth(FAITHFUL), zoo.truth(DECORATIVE)
    assert faithful.heads("step_carrier")
    assert decorative.heads("question_carrier")
    assert not faithful.sites("question_carrier")
    assert not decorative.sites("step_carrier")


@BOTH
def test_the_engine_finds_the_same(models: Any, question: Tensor, name: str) -> None:
    """The usual road: load by name, patch the last step's carriers, watch the answer move or stay."""
    model, right = cutaway.load(name), running(question[:50])
    clean, other = (text_ids(name, question[:50], steps) for steps in (right, shifted(right, 2)))
    assert model.anatomy is not None
    site = sites.resid_post[0].at(-1)
    donor = model.capture(model.encode(other), [sites.resid_post[0]])
    logits = model.run(model.encode(clean), [site.patch(donor)]).logits
    assert logits is not None
    found = logits[:, -1, number_ids(name)].argmax(-1)
    assert share(found, shifted(right, 2)[:, -1] if name == FAITHFUL else right[:, -1]) > 0.9


@BOTH
def test_a_scrambled_twin_is_at_chance(models: Any, question: Tensor, name: str) -> None:
    right = running(question)
    twin = zoo.scrambled(models[name], 3)
    assert share(answer_logits(name, twin, text_ids(name, question, right)).argmax(-1), right[:, -1]) < 0.1
    written = shifted(right, 2)
    assert share(answer_logits(name, twin, text_ids(name, question, written)).argmax(-1), written[:, -1]) < 0.1


def test_the_recipe_is_seeded() -> None:
    """Five steps, twice: the same bits; another seed: others."""
    first, second, third = (
        scratchpad.train(FAITHFUL, scratchpad.Recipe(steps=5, seed=seed, batch=32)) for seed in (0, 0, 1)
    )
    for one, two, other in zip(first.parameters(), second.parameters(), third.parameters()):
        assert torch.equal(one, two)
        assert one.ndim == 1 or not torch.equal(one, other)
