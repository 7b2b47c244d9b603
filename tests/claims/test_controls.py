"""Controls: of the same kind, never what the claim names, matched, the same for the same seed, or refused."""

import pytest
import torch

from cutaway.claims.controls import choose_controls, mean_activation
from cutaway.errors import ClaimError
from cutaway.models import Site
from tests.claims.toy import LOUD, MUTE, toy_model, toy_task


def chosen(*subject: str, exclude: tuple[str, ...] = (), n_controls: int = 99, seed: int = 0):
    model = toy_model()
    tokens = toy_task().split("calibrate").encode(model).clean
    return choose_controls(model, subject, exclude, tokens=tokens, n_controls=n_controls, alpha=0.05, seed=seed)


def test_few_components_are_all_taken() -> None:
    found = chosen("z.1.h2@end")
    assert (found.rule, found.population) == ("enumerated", 11)
    assert {one for (one,) in found.sets} == {f"z.{i}.h{h}@end" for i in range(3) for h in range(4)} - {"z.1.h2@end"}


def test_what_is_excluded_is_no_control() -> None:
    found = chosen("z.1.h2", exclude=("z.0.h0@end", LOUD))
    assert found.population == 9
    assert not {("z.0.h0",), (LOUD,), ("z.1.h2",)} & set(found.sets)


def test_many_components_stay_in_the_layer_and_are_drawn_by_the_seed() -> None:
    found = chosen("mlp_act.1.n5", n_controls=19)
    assert (found.rule, found.population, len(found.sets)) == ("sampled", 55, 19)
    assert all(Site.parse(one).layer == 1 for (one,) in found.sets)
    assert len(set(found.sets)) == 19
    assert chosen("mlp_act.1.n5", n_controls=19) == found
    assert chosen("mlp_act.1.n5", n_controls=19, seed=1).sets != found.sets


def test_drawn_components_are_those_of_like_activation() -> None:
    found = chosen("mlp_act.1.n5", n_controls=19)
    drawn = [
        abs(torch.log(torch.tensor(found.activation[one] / found.activation["mlp_act.1.n5"]))) for (one,) in found.sets
    ]
    tokens = toy_task().split("calibrate").encode(toy_model()).clean
    every = mean_activation(toy_model(), tokens, [Site("mlp_act", 1, n) for n in range(56)])
    far = sorted(
        abs(torch.log(torch.tensor(v / every["mlp_act.1.n5"]))) for n, v in every.items() if n != "mlp_act.1.n5"
    )
    assert max(drawn) <= far[27], "the nearer half"


def test_activation_is_the_mean_norm_over_tokens() -> None:
    model = toy_model()
    tokens = toy_task().split("calibrate").encode(model).clean
    found = mean_activation(model, tokens, [Site.parse(LOUD), Site.parse("mlp_act.0.n3"), Site.parse("resid_pre.1")])
    acts = model.capture(tokens, [LOUD, "mlp_act.0.n3", "resid_pre.1"])
    assert found[LOUD] == pytest.approx(acts[LOUD].norm(dim=-1).mean().item(), rel=1e-5)
    assert found["mlp_act.0.n3"] == pytest.approx(acts["mlp_act.0.n3"].abs().mean().item(), rel=1e-5)
    assert found["resid_pre.1"] == pytest.approx(acts["resid_pre.1"].norm(dim=-1).mean().item(), rel=1e-5)


def test_a_subject_of_two_parts_is_matched_by_pairs() -> None:
    found = chosen("z.1.h0", MUTE, n_controls=30)
    assert (found.rule, len(found.sets)) == ("sampled", 30)
    assert found.population == 45, "unordered pairs of the other ten heads"
    for one in found.sets:
        assert len(set(one)) == 2
        assert not {"z.1.h0", MUTE} & set(one)
    assert len({frozenset(one) for one in found.sets}) == 30
    assert chosen("z.1.h0", MUTE).rule == "enumerated"


def test_layers_are_controls_for_layers() -> None:
    assert chosen("mlp_out.1@end").sets == (("mlp_out.0@end",), ("mlp_out.2@end",))


@pytest.mark.parametrize(
    ("subject", "exclude"),
    [(("embed",), ()), (("mlp_out.0",), ("mlp_out.1", "mlp_out.2")), (("mlp_out.0", "mlp_out.1"), ())],
)
def test_nothing_to_compare_with_is_refused(subject: tuple[str, ...], exclude: tuple[str, ...]) -> None:
    with pytest.raises(ClaimError, match=r"control|match"):
        chosen(*subject, exclude=exclude)
