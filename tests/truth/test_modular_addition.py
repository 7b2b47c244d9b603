"""The mechanism of `modular-addition`, measured again: plain Hugging Face, plain torch hooks and torch's own FFT."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from cutaway import load, zoo
from cutaway.errors import UsageError
from cutaway.zoo import fourier
from cutaway.zoo.recipes import modular_addition as recipe

NAME = "modular-addition"
TRUTH, TENSORS = zoo.truth(NAME), zoo.tensors(NAME)
P = int(TRUTH.setup["p"])
KEYS = TENSORS["key_frequencies"].tolist()
TRAINED = TENSORS["trained"]
A, B = torch.meshgrid(torch.arange(P), torch.arange(P), indexing="ij")
ROWS = torch.stack([A, B, torch.full_like(A, P)], -1).flatten(0, 1)
SUM = (A + B) % P
D_HEAD = zoo.card(NAME).sizes["d_head"]
TOLERANCE = 0.04


@pytest.fixture(scope="module")
def model() -> Any:
    return AutoModelForCausalLM.from_pretrained(zoo.path(NAME)).eval()


@pytest.fixture(scope="module")
def intact(model: Any) -> Tensor:
    return logits_of(model)


def logits_of(model: Any) -> Tensor:
    with torch.no_grad():
        return model(ROWS, use_cache=False).logits[:, -1, :P].unflatten(0, (P, P))


def accuracy(logits: Tensor, among: Tensor) -> float:
    return (logits.argmax(-1) == SUM)[among].float().mean().item()


def loss(logits: Tensor, among: Tensor) -> float:
    return torch.nn.functional.cross_entropy(logits[among].double(), SUM[among]).item()


def advantage(logits: Tensor) -> float:
    answer = logits.gather(-1, SUM[..., None])[..., 0]
    return (answer - (logits.sum(-1) - answer) / (P - 1)).mean().item()


@contextmanager
def hooked(*handles: Any) -> Iterator[None]:
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def drop(model: Any, intact: Tensor, *handles: Any) -> float:
    with hooked(*handles):
        return 1 - advantage(logits_of(model)) / advantage(intact)


def frequency_shares(table: Tensor) -> Tensor:
    power = torch.fft.rfft(table.detach().double(), dim=0).abs().square().sum(1)[1:]
    return power / power.sum()


def waves_of_sum(logits: Tensor, keys: list[int]) -> Tensor:
    """The part of the logits in exp(2 pi i k (a + b) / p): on the diagonal of the transform over a and b."""
    spectrum = torch.fft.fft2(logits.double(), dim=(0, 1))
    kept = torch.zeros(P, P, 1, dtype=torch.bool)
    for key in keys:
        kept[key, key] = kept[P - key, P - key] = True
    return torch.fft.ifft2(spectrum * kept, dim=(0, 1)).real


def losses(logits: Tensor) -> dict[str, float]:
    part = waves_of_sum(logits, KEYS)
    return {
        "trained_loss": loss(logits, TRAINED),
        "held_out_loss": loss(logits, ~TRAINED),
        "held_out_accuracy": accuracy(logits, ~TRAINED),
        "restricted_loss": loss(logits.double().mean((0, 1)) + part, ~TRAINED),
        "excluded_loss": loss(logits - part, TRAINED),
    }


# -- behavior


def test_held_out_sums_are_right_and_were_seen_in_neither_order(intact: Tensor) -> None:
    assert torch.equal(TRAINED, TRAINED.T)
    assert TRAINED.float().mean().item() == pytest.approx(recipe.SHARE, abs=0.002)
    assert accuracy(intact, ~TRAINED) >= 0.99
    assert accuracy(intact, TRAINED) == 1


def test_it_loads_like_any_model_and_answers_text() -> None:
    model = load(NAME)
    assert (model.anatomy.n_heads, len(model.anatomy.layers), model.anatomy.d_mlp) == (4, 1, 256)
    out = model.run(["17 40 =", "52 52 ="])
    assert out.logits[:, -1].argmax(-1).tolist() == [(17 + 40) % P, (52 + 52) % P]


def test_its_norms_only_subtract_the_mean(model: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(50, 64, generator=generator)
    for norm in (model.transformer.h[0].ln_1, model.transformer.h[0].ln_2, model.transformer.ln_f):
        torch.testing.assert_close(norm(x), x - x.mean(-1, keepdim=True), atol=2e-5, rtol=1e-5)


# -- Fourier


def test_the_embedding_lives_on_the_key_frequencies(model: Any) -> None:
    shares = frequency_shares(model.transformer.wte.weight[:P])
    assert 2 <= len(KEYS) <= 8
    assert set(KEYS) == {k + 1 for k in range(P // 2) if shares[k] >= 4 / (P - 1)}
    assert shares[[k - 1 for k in KEYS]].sum().item() == pytest.approx(TRUTH.measures["share_of_keys"], abs=1e-4)
    assert TRUTH.measures["share_of_keys"] > 0.7
    for item in TRUTH.directions:
        table = model.transformer.wte.weight if item.site == "embed" else model.lm_head.weight
        key = int(item.tensor.rpartition("_")[2])
        assert frequency_shares(table[:P])[key - 1].item() == pytest.approx(item.measures["share"], abs=1e-4)


def test_losses_restricted_to_and_without_the_key_waves(intact: Tensor) -> None:
    found = losses(intact)
    assert found == pytest.approx({name: TRUTH.measures[name] for name in found}, rel=0.02, abs=1e-6)
    assert found["restricted_loss"] < 0.1
    assert found["excluded_loss"] > 1
    others = [k for k in range(1, P // 2 + 1) if k not in KEYS][: len(KEYS)]
    assert loss(intact - waves_of_sum(intact, others), TRAINED) < 0.01
    assert loss(intact.double().mean((0, 1)) + waves_of_sum(intact, others), ~TRAINED) > 2


def test_logits_are_cosines_of_the_sum_minus_the_answer(intact: Tensor) -> None:
    centred = (intact - intact.mean(-1, keepdim=True)).double()
    offset = (SUM[..., None] - torch.arange(P)).double()
    waves = torch.stack([(2 * torch.pi * k * offset / P).cos().flatten() for k in KEYS], 1)
    fit = waves @ torch.linalg.lstsq(waves, centred.flatten()[:, None]).solution
    share = 1 - (centred.flatten() - fit[:, 0]).square().sum() / centred.square().sum()
    assert share.item() == pytest.approx(TRUTH.measures["explained"], abs=0.01)
    assert share > 0.8


@pytest.mark.parametrize("item", TRUTH.directions, ids=lambda item: item.tensor)
def test_the_model_uses_each_plane_and_not_a_random_one(model: Any, intact: Tensor, item: zoo.Direction) -> None:
    rows, key = TENSORS[item.tensor], int(item.tensor.rpartition("_")[2])
    torch.testing.assert_close(rows @ rows.T, torch.eye(2), atol=1e-5, rtol=0)
    table = (model.transformer.wte if item.site == "embed" else model.lm_head).weight.detach()[:P]
    angle = 2 * torch.pi * key * torch.arange(P) / P
    waves = torch.stack([angle.cos(), angle.sin()]) @ table
    torch.testing.assert_close(waves @ rows.T @ rows, waves, atol=1e-3, rtol=1e-3)

    def removed(plane: Tensor) -> float:
        def change(value: Tensor) -> Tensor:
            at = slice(0, 2) if item.site == "embed" else slice(2, 3)
            changed = value.clone()
            changed[:, at] -= (value[:, at] - value[:, at].mean(0)) @ plane.T @ plane
            return changed

        if item.site == "embed":
            return drop(model, intact, model.transformer.wte.register_forward_hook(lambda m, args, out: change(out)))
        return drop(model, intact, model.transformer.ln_f.register_forward_pre_hook(lambda m, args: (change(args[0]),)))

    found = removed(rows)
    assert found == pytest.approx(item.measures["drop"], abs=0.01)
    random = torch.linalg.qr(torch.randn(64, 2, generator=torch.Generator().manual_seed(key))).Q.T
    assert item.role == "used"
    assert found > 0.05
    assert removed(random) < found


def test_frequencies_that_are_not_key_carry_nothing(model: Any, intact: Tensor) -> None:
    weight = model.transformer.wte.weight
    whole = weight.detach().clone()
    spectrum = torch.fft.rfft(whole[:P].double(), dim=0)
    kept = torch.zeros(len(spectrum), 1)
    kept[[0, *KEYS]] = 1

    def right_with(mask: Tensor) -> float:
        with torch.no_grad():
            weight[:P] = torch.fft.irfft(spectrum * mask, n=P, dim=0)
            try:
                return accuracy(logits_of(model), torch.ones_like(TRAINED))
            finally:
                weight.copy_(whole)

    assert right_with(kept) == pytest.approx(TRUTH.measures["accuracy_with_keys_alone"], abs=0.01)
    assert right_with(kept) > 0.95
    without = 1 - kept
    without[0] = 1
    assert right_with(without) < 0.1
    assert torch.equal(logits_of(model), intact)


def test_neurons_multiply_waves_of_one_frequency(model: Any) -> None:
    kept: list[Tensor] = []
    with hooked(model.transformer.h[0].mlp.act.register_forward_hook(lambda m, args, out: kept.append(out[:, -1]))):
        logits_of(model)
    spectrum = torch.fft.fft2(kept[0].unflatten(0, (P, P)).double(), dim=(0, 1)).abs().square()
    spectrum[0, 0] = 0
    total = spectrum.sum((0, 1))
    alive = total > 0
    own = torch.stack([spectrum[[0, k, -k]][:, [0, k, -k]].sum((0, 1)) for k in range(1, P // 2 + 1)])
    shares = own.max(0).values / total.clamp_min(1e-12)
    torch.testing.assert_close(shares.float()[alive], TENSORS["neuron_share"][alive], atol=1e-3, rtol=0)
    sure = alive & (shares > 0.6)
    assert torch.equal(own.argmax(0)[sure] + 1, TENSORS["neuron_frequency"][sure])
    assert set(TENSORS["neuron_frequency"][sure].tolist()) <= set(KEYS)


# -- components


VALUES: dict[str, Callable[[Tensor], Tensor]] = {
    "resample": lambda z: z[torch.randperm(len(z), generator=torch.Generator().manual_seed(9))],
    "mean": lambda z: z.mean((0, 1)).expand_as(z),
    "mean_by_position": lambda z: z.mean(0).expand_as(z),
    "zero": torch.zeros_like,
}


@pytest.mark.parametrize("how", sorted(VALUES))
@pytest.mark.parametrize("node", TRUTH.nodes, ids=lambda node: node.site)
def test_ablation_does_what_the_card_says(model: Any, intact: Tensor, node: zoo.Node, how: Any) -> None:
    block, value = model.transformer.h[0], VALUES[how]
    if node.site == "mlp_out.0":
        handle = block.mlp.register_forward_hook(lambda m, args, out: value(out))
    else:
        start = int(node.site[-1]) * D_HEAD

        def changed(module: Any, args: tuple[Tensor]) -> tuple[Tensor]:
            z = args[0].clone()
            z[..., start : start + D_HEAD] = value(z[..., start : start + D_HEAD])
            return (z,)

        handle = block.attn.c_proj.register_forward_pre_hook(changed)
    found = drop(model, intact, handle)
    assert found == pytest.approx(node.effects[how].drop, abs=TOLERANCE)
    assert found > {"adds": 0.5, "moves": 0.05}.get(node.role, -1.0)


def test_the_heads_act_through_the_mlp_and_only_there(model: Any, intact: Tensor) -> None:
    block, kept = model.transformer.h[0], []
    with hooked(block.attn.c_proj.register_forward_pre_hook(lambda m, args: kept.append(args[0]))):
        logits_of(model)
    for head in range(4):
        own = torch.zeros_like(kept[0])
        own[..., head * D_HEAD : (head + 1) * D_HEAD] = kept[0][..., head * D_HEAD : (head + 1) * D_HEAD]
        with torch.no_grad():
            write = block.attn.c_proj(own)
        for target, norm in (("mlp_in.0", block.ln_2), ("logits", model.transformer.ln_f)):
            (edge,) = (e for e in TRUTH.edges if (e.source, e.target) == (f"z.0.h{head}", target))
            found = drop(model, intact, norm.register_forward_pre_hook(lambda m, args, w=write: (args[0] - w,)))
            assert edge.zero is not None
            assert found == pytest.approx(edge.zero, abs=0.01)
            assert found > 0.1 if target == "mlp_in.0" else abs(found) < 0.05


# -- along the training


def test_it_memorised_first_and_the_algorithm_grew_before_it_showed() -> None:
    found = {step: losses(logits_of(recipe.checkpoint(step))) for step in recipe.steps()}
    for step, numbers in found.items():
        said = {name: TRUTH.measures[f"{name}@{step}"] for name in numbers}
        assert numbers == pytest.approx(said, rel=0.02, abs=1e-6)
    silent = [step for step, n in found.items() if n["trained_loss"] < 0.1 and n["held_out_accuracy"] < 0.1]
    assert len(silent) >= 2
    assert found[silent[-1]]["restricted_loss"] < 0.5 * found[silent[0]]["restricted_loss"]
    assert found[max(found)]["held_out_accuracy"] >= 0.99
    assert found[0]["restricted_loss"] > 3


def test_the_first_checkpoint_is_what_the_recipe_starts_from() -> None:
    ours, kept = recipe.build(zoo.card(NAME).seed).state_dict(), recipe.checkpoint(0).state_dict()
    for name, value in ours.items():
        torch.testing.assert_close(kept[name], value.half().float())
    assert recipe.checkpoint(recipe.steps()[-1]).lm_head.weight.ne(ours["lm_head.weight"]).any()


def test_a_step_without_a_checkpoint_is_an_error() -> None:
    with pytest.raises(UsageError, match="step 7"):
        recipe.checkpoint(7)


def test_training_begins_to_memorise_in_the_same_way_each_time() -> None:
    short = recipe.Recipe(longest=6, ending=2, kept=(0,))
    (one, states), (two, _) = recipe.train(short), recipe.train(short)
    assert sorted(states) == [0, 6, 8]
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters()))
    start = recipe.build(0)
    assert loss(logits_of(one), TRAINED) < loss(logits_of(start), TRAINED) - 0.02


# -- controls


def test_scrambled_twins_know_nothing_and_have_no_waves(model: Any) -> None:
    everything = torch.ones_like(TRAINED)
    for seed in range(2):
        twin: Any = zoo.scrambled(model, seed)
        logits = logits_of(twin)
        assert accuracy(logits, everything) < 0.06
        assert losses(logits)["restricted_loss"] > 2
        assert frequency_shares(twin.transformer.wte.weight[:P])[[k - 1 for k in KEYS]].sum() < 0.4
        assert fourier.explained(logits, KEYS) < 0.05


def test_functions_of_fourier_agree_with_torchs_transform(model: Any, intact: Tensor) -> None:
    basis = fourier.fourier(P)
    torch.testing.assert_close(basis @ basis.T, torch.eye(P), atol=1e-5, rtol=0)
    assert list(fourier.key_frequencies(model, P)) == KEYS
    torch.testing.assert_close(fourier.logits(model, P), intact)
    torch.testing.assert_close(fourier.of_sum(intact, KEYS).double(), waves_of_sum(intact, KEYS), atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(
        fourier.power(fourier.numbers(model, P)).double(), frequency_shares(model.transformer.wte.weight[:P])
    )
