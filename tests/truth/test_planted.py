"""The directions of `planted`, established again with plain torch: used, decodable but unread, dormant, an illusion."""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

import cutaway
from cutaway import zoo
from cutaway.zoo.handmade.planted import PlantedRows
from cutaway.zoo.recipes.planted import plan, rows

DIRECTIONS = zoo.tensors("planted")
SAID = {direction.tensor: direction for direction in zoo.truth("planted").directions}
UNREAD = ("shadow", "animal")


@pytest.fixture(scope="module")
def model() -> Any:
    return AutoModelForCausalLM.from_pretrained(zoo.path("planted")).eval()


@pytest.fixture(scope="module")
def drawn() -> PlantedRows:
    return rows(200, 77)


def run(model: Any, drawn: PlantedRows, change: Any = None) -> Tensor:
    """Logits at the end, with the stream after layer 0 changed there."""

    def hook(module: Any, args: Any, out: Tensor) -> Tensor:
        out = out.clone()
        out[:, -1] = change(out[:, -1])
        return out

    handle = model.model.layers[0].register_forward_hook(hook) if change else None
    try:
        with torch.no_grad():
            return model(drawn.rows.ids, use_cache=False).logits[:, -1]
    finally:
        if handle:
            handle.remove()


def stream(model: Any, drawn: PlantedRows) -> Tensor:
    kept: list[Tensor] = []
    run(model, drawn, lambda x: kept.append(x.clone()) or x)
    return kept[0]


def right(logits: Tensor, drawn: PlantedRows) -> float:
    return (logits.argmax(-1) == drawn.rows.answers[:, -1]).float().mean().item()


def wrong(logits: Tensor, drawn: PlantedRows) -> float:
    return (logits.argmax(-1) == drawn.rows.foils[:, -1]).float().mean().item()


def sources(drawn: PlantedRows) -> Tensor:
    """For each row a random one of the other mood."""
    generator = torch.Generator().manual_seed(0)
    score = torch.rand(len(drawn.mood), len(drawn.mood), generator=generator)
    return score.masked_fill(drawn.mood[:, None] == drawn.mood[None], -1).argmax(-1)


def moved(x: Tensor, unit: Tensor, value: Tensor) -> Tensor:
    return x + (value - x @ unit)[..., None] * unit


def patched(model: Any, drawn: PlantedRows, unit: Tensor) -> float:
    """Share of the answers that become those of another row, of which the projection is taken."""
    value = (stream(model, drawn) @ unit)[sources(drawn)]
    return wrong(run(model, drawn, lambda x: moved(x, unit, value)), drawn)


def fitted(x: Tensor, y: Tensor, seen: Tensor, labels: Tensor) -> float:
    """Accuracy of a ridge probe, fitted on (x, y)."""
    mean = x.mean(0)
    x, seen = (x - mean).double(), (seen - mean).double()
    weight = torch.linalg.solve(x.T @ x + 1e-3 * torch.eye(x.shape[1]).double(), x.T @ (2.0 * y.double() - 1))
    return ((seen @ weight > 0) == labels).float().mean().item()


def test_rows_have_both_concepts_independent_of_each_other(drawn: PlantedRows) -> None:
    for concept in (drawn.mood, drawn.animal):
        assert 0.4 < concept.float().mean() < 0.6
    assert 0.4 < (drawn.mood == drawn.animal).float().mean() < 0.6
    assert drawn.rows.answered[:, -1].all()
    assert drawn.rows.answered.sum() == len(drawn.mood)


def test_the_model_answers(model: Any, drawn: PlantedRows) -> None:
    assert right(run(model, drawn), drawn) == 1.0


def test_directions_are_unit_vectors_that_stand_apart() -> None:
    assert set(DIRECTIONS) == {"mood", "shadow", "animal", "dormant", "illusion"} == set(SAID)
    plain = torch.stack([DIRECTIONS[name] for name in ("mood", "shadow", "animal", "dormant")])
    torch.testing.assert_close(plain @ plain.T, torch.eye(4), atol=1e-6, rtol=0)
    assert ((plain.abs() > 0.01).float().mean(1) > 0.7).all()  # no axis of the basis
    torch.testing.assert_close(DIRECTIONS["illusion"], (plain[1] + plain[3]) / 2**0.5, atol=1e-6, rtol=0)


def test_both_concepts_can_be_decoded_also_the_unread_one(model: Any, drawn: PlantedRows) -> None:
    """With a control: shuffled labels cannot."""
    train = rows(600, 5)
    x, seen = stream(model, train), stream(model, drawn)
    assert fitted(x, train.mood, seen, drawn.mood) == 1.0
    assert fitted(x, train.animal, seen, drawn.animal) == 1.0
    shuffled = train.animal[torch.randperm(600, generator=torch.Generator().manual_seed(0))]
    assert fitted(x, shuffled, seen, drawn.animal) < 0.7
    for name, concept in (("mood", drawn.mood), ("shadow", drawn.mood), ("animal", drawn.animal)):
        assert ((seen @ DIRECTIONS[name] > 0) == concept).all()
    measures = zoo.truth("planted").measures
    assert measures["probe_mood"] == measures["probe_animal"] == 1.0


def test_the_used_direction_decides(model: Any, drawn: PlantedRows) -> None:
    unit = DIRECTIONS["mood"]
    assert patched(model, drawn, unit) == SAID["mood"].measures["patch"] == 1.0
    erased = run(model, drawn, lambda x: moved(x, unit, torch.zeros(len(x))))
    margins = erased.gather(1, drawn.rows.answers[:, -1:]) - erased.gather(1, drawn.rows.foils[:, -1:])
    assert margins.abs().max() < 0.1
    assert SAID["mood"].measures["zero"] == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize("name", UNREAD)
@pytest.mark.parametrize("value", [0.0, 3.0, -3.0])
def test_an_unread_direction_changes_nothing(model: Any, drawn: PlantedRows, name: str, value: float) -> None:
    """But for the scale of the norms, a hundredth of the answer's ten nats where the value is largest."""
    intact = run(model, drawn)
    edited = run(model, drawn, lambda x: moved(x, DIRECTIONS[name], torch.full((len(x),), value)))
    torch.testing.assert_close(edited, intact, atol=0.2, rtol=0)
    assert patched(model, drawn, DIRECTIONS[name]) == SAID[name].measures["patch"] == 0.0
    assert abs(SAID[name].measures["ablate"]) < 0.02
    assert SAID[name].role == "decoy"


def test_the_dormant_direction_moves_the_answer_only_where_no_input_goes(model: Any, drawn: PlantedRows) -> None:
    unit = DIRECTIONS["dormant"]
    assert (stream(model, drawn) @ unit).abs().max() < 1e-3
    assert patched(model, drawn, unit) == SAID["dormant"].measures["patch"] == 0.0
    for value, expected in ((2.0, drawn.mood), (-2.0, ~drawn.mood)):
        edited = run(model, drawn, lambda x, value=value: moved(x, unit, torch.full((len(x),), value)))
        assert right(edited, drawn) == pytest.approx(expected.float().mean().item())
    assert SAID["dormant"].measures["beyond"] == 1.0
    assert SAID["dormant"].measures["spread"] < 1e-3


def test_the_illusion_flips_answers_though_neither_half_does(model: Any, drawn: PlantedRows) -> None:
    """It passes the interchange test as the used direction does; split into what is read and what is not, each part
    alone fails it."""
    unit = DIRECTIONS["illusion"]
    assert patched(model, drawn, unit) == SAID["illusion"].measures["patch"] == 1.0
    assert ((stream(model, drawn) @ unit > 0) == drawn.mood).all()
    assert patched(model, drawn, DIRECTIONS["shadow"]) == patched(model, drawn, DIRECTIONS["dormant"]) == 0.0
    assert SAID["illusion"].role == "illusion"


def test_the_neurons_that_decide_read_mood_and_dormant_alone(model: Any) -> None:
    """The dormant-pathway test on the weights: what they read of each direction."""
    deciding = model.model.layers[1].mlp.gate_proj.weight[:4]
    read = {name: (deciding @ unit).abs().max().item() for name, unit in DIRECTIONS.items()}
    assert read["dormant"] == pytest.approx(3 * read["mood"], rel=0.01)
    assert max(read["shadow"], read["animal"]) < 1e-3 * read["mood"]


def test_a_random_direction_is_neither(model: Any, drawn: PlantedRows) -> None:
    """The control of the patches: other directions of the stream flip nothing."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(5):
        unit = torch.nn.functional.normalize(torch.randn(len(DIRECTIONS["mood"]), generator=generator), dim=0)
        assert patched(model, drawn, unit) < 0.2


def test_the_scrambled_twin_has_nothing(model: Any, drawn: PlantedRows) -> None:
    for seed in range(3):
        twin = zoo.scrambled(model, seed)
        assert right(run(twin, drawn), drawn) < 0.75
        seen = stream(twin, drawn)
        told = ((seen @ DIRECTIONS["mood"] > (seen @ DIRECTIONS["mood"]).median()) == drawn.mood).float().mean()
        assert 0.3 < told < 0.7


def test_it_is_the_model_that_was_written(model: Any, drawn: PlantedRows) -> None:
    torch.testing.assert_close(run(model, drawn), run(plan().module, drawn), atol=1e-4, rtol=0)
    for name, unit in plan().directions.items():
        torch.testing.assert_close(DIRECTIONS[name], unit)


def test_its_sites_are_audited() -> None:
    loaded = cutaway.load("planted")
    refused = {site.kind for site in loaded.body.sites() if loaded.body.status(site).state == "refused"}
    assert refused <= {"router", "expert_out"}
