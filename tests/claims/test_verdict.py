"""The verdict: each of the four, by the rule that is written down; pure; and right as often as it says."""

import copy
import json

import numpy as np
import pytest

from cutaway.claims import verdict
from cutaway.errors import BrokenEvidence, TooFewClusters
from cutaway.stats import mean_interval
from tests.claims.records import SIZE, effects, prediction, result

N = 10
WEAK = [np.full(N * SIZE, 0.02) for _ in range(3)]


def wavy(mean: float, wave: float = 0.1, n_clusters: int = N) -> np.ndarray:
    """Cluster means alternate around `mean`."""
    return mean + wave * np.repeat(np.resize([1.0, -1.0], n_clusters), SIZE)


def only(record: dict) -> dict:
    return verdict(record)["predictions"][0]


# -- the rule


@pytest.mark.parametrize(
    ("values", "expected"),
    [(wavy(1.2), "supported"), (wavy(0.05), "refuted"), (wavy(0.6, 0.5), "inconclusive")],
)
def test_the_interval_decides(values: np.ndarray, expected: str) -> None:
    found = verdict(result(prediction(values, WEAK)))
    assert found["verdict"] == expected
    part = found["predictions"][0]
    estimate = part["estimate"]
    bounds = {"supported": estimate["low"] >= 0.3, "refuted": estimate["high"] < 0.3}
    assert bounds.get(expected, estimate["low"] < 0.3 <= estimate["high"])
    assert part["p"] <= 0.05 if expected == "supported" else part["p"] > 0.05


def test_the_unit_is_the_gap() -> None:
    part = only(result(prediction(wavy(1.0), WEAK, gap=np.full(N * SIZE, 4.0))))
    assert part["estimate"]["value"] == pytest.approx(0.25)
    assert part["cluster_means"] == pytest.approx(np.resize([0.275, 0.225], N))
    assert part["worst"][0]["value"] == pytest.approx(0.225)


def test_a_suppressor_lies_below_a_negative_minimum() -> None:
    weak = [-one for one in WEAK]
    assert verdict(result(prediction(wavy(-1.2), weak, minimum=-0.3, side="at_most")))["verdict"] == "supported"
    found = verdict(result(prediction(wavy(1.2), weak, minimum=-0.3, side="at_most")))
    assert found["verdict"] == "refuted"
    assert found["predictions"][0]["estimate"]["value"] == pytest.approx(0.6)
    stronger = [wavy(-2.0)]
    assert verdict(result(prediction(wavy(-1.2), stronger, minimum=-0.3, side="at_most")))["verdict"] == "inconclusive"


def test_a_bound_on_a_side_effect_needs_no_components() -> None:
    small, large = np.abs(wavy(0.02, 0.01, 50)), np.abs(wavy(0.5, 0.01, 50))
    shape = {"minimum": 0.1, "side": "at_most", "scale": "skewed", "rule": "none", "kind": "specific"}
    assert verdict(result(prediction(small, **shape)))["verdict"] == "supported"
    assert verdict(result(prediction(large, **shape)))["verdict"] == "refuted"
    dull = prediction(small, **shape)
    dull["positive"]["values"] = [0.0] * len(small)
    found = verdict(result(dull))
    assert found["verdict"] == "invalid", "an instrument that does not see another prompt sees nothing"
    assert "lower end above 0" in found["reason"]


def test_shares_use_the_interval_of_shares() -> None:
    every, none = np.ones(N * SIZE), np.zeros(N * SIZE)
    part = only(result(prediction(every, [none] * 3, scale="share", minimum=0.5)))
    assert part["verdict"] == "supported"
    assert part["estimate"]["low"] == pytest.approx(0.025 ** (1 / N))
    undecided = only(result(prediction(every, [none] * 3, scale="share", minimum=0.9)))
    assert undecided["verdict"] == "inconclusive"
    need = int(undecided["would_change"].split()[1])
    more = prediction(np.ones(need * SIZE), [np.zeros(need * SIZE)] * 3, scale="share", minimum=0.9)
    assert only(result(more))["verdict"] == "supported"


# -- controls


def test_by_rank_some_controls_may_be_stronger_one_by_one_none() -> None:
    weak = [np.full(N * SIZE, 0.02)] * 98
    strong = wavy(3.0)
    found = only(result(prediction(wavy(1.2), [*weak, strong], rule="sampled")))
    assert (found["verdict"], found["control_test"]["rule"]) == ("supported", "rank")
    assert found["control_p"] == pytest.approx(0.02)
    found = only(result(prediction(wavy(1.2), [*weak[:92], *[strong] * 7], rule="sampled")))
    assert (found["verdict"], found["control_p"]) == ("inconclusive", pytest.approx(0.08))
    found = only(result(prediction(wavy(1.2), [weak[0], strong, weak[0]])))
    assert (found["verdict"], found["control_test"]["rule"]) == ("inconclusive", "one by one")
    assert found["control_test"]["difference"]["against"] == "z.0.h1"
    assert "exclude" in found["would_change"]


def test_one_by_one_a_control_must_be_weaker_beyond_doubt() -> None:
    values = wavy(1.2)
    near = wavy(1.19, -0.1)
    assert only(result(prediction(values, [*WEAK, near])))["control_test"]["beaten"] is False
    assert only(result(prediction(values, [*WEAK, values - 0.01])))["control_test"]["beaten"] is True, "paired"


def test_one_by_one_needs_three_to_compare_with() -> None:
    for k, name in ((1, "inconclusive"), (2, "inconclusive"), (3, "supported")):
        found = only(result(prediction(wavy(1.2), WEAK[:k])))
        assert found["verdict"] == name
        assert (f"only {k} matched component" in found["reason"]) is (k < 3)
        assert ("exclude fewer" in found["would_change"]) is (k < 3)


def test_few_drawn_controls_prove_nothing() -> None:
    found = only(result(prediction(wavy(1.2), WEAK, rule="sampled")))
    assert found["verdict"] == "inconclusive"
    assert "at least 19" in found["reason"]


# -- instruments


def broken(name: str) -> dict:
    record = prediction(wavy(1.2), WEAK)
    if name == "placebo":
        record["placebo"]["differences"][7] = 1e-12
    elif name == "reproduced":
        record["positive"]["metric"][3] = 1.01
    elif name == "found":
        record["positive"]["values"] = [0.1] * len(record["values"])
    elif name == "behavior":
        record["gap"] = (np.resize([3.0, -3.0, 1.0], N * SIZE)).tolist()
    return record


@pytest.mark.parametrize("name", ["placebo", "reproduced", "found", "behavior"])
def test_a_failed_instrument_is_invalid_whatever_the_numbers_say(name: str) -> None:
    found = verdict(result(broken(name)))
    assert found["verdict"] == "invalid"
    failed = [check for check in found["checks"] if not check["passed"]]
    assert any(name in check["name"] for check in failed)
    json.dumps(found, allow_nan=False)


def test_a_changed_plan_is_invalid() -> None:
    found = verdict(result(prediction(wavy(1.2), WEAK), changed=["model"]))
    assert (found["verdict"], "model" in found["reason"]) == ("invalid", True)


def test_an_exploratory_claim_is_never_supported() -> None:
    seen = {"seen_before": ["f" * 64]}
    found = verdict(result(prediction(wavy(1.2), WEAK), **seen))
    assert (found["verdict"], "no plan has opened" in found["would_change"]) == ("inconclusive", True)
    assert verdict(result(prediction(wavy(0.0), WEAK), **seen))["verdict"] == "refuted"


# -- the whole claim


@pytest.mark.parametrize(
    ("means", "expected"),
    [((1.2, 1.2), "supported"), ((1.2, 0.0), "refuted"), ((1.2, 0.6), "inconclusive"), ((0.6, 0.0), "refuted")],
)
def test_all_predictions_must_hold(means: tuple[float, float], expected: str) -> None:
    parts = [prediction(wavy(mean, 0.5 if mean == 0.6 else 0.1), WEAK) for mean in means]
    assert verdict(result(*parts))["verdict"] == expected


def test_one_broken_instrument_makes_the_claim_invalid() -> None:
    assert verdict(result(prediction(wavy(0.0), WEAK), broken("placebo")))["verdict"] == "invalid"


def test_it_is_pure_and_its_outcome_is_json() -> None:
    record = result(prediction(wavy(1.2), WEAK), prediction(wavy(0.6, 0.5), WEAK))
    before = copy.deepcopy(record)
    first = verdict(record)
    assert record == before
    assert json.loads(json.dumps(first, allow_nan=False)) == first == verdict({**record, "outcome": first})


def test_a_record_without_a_part_is_named() -> None:
    record = result(prediction(wavy(1.2), WEAK))
    del record["predictions"][0]["placebo"]
    with pytest.raises(BrokenEvidence, match="placebo"):
        verdict(record)
    with pytest.raises(TooFewClusters):
        verdict(result(prediction(wavy(1.2, n_clusters=5), [w[: 5 * SIZE] for w in WEAK])))


# -- what would change it


def test_what_would_change_it_is_true() -> None:
    """The numbers that the sentence gives, put into the record, change the verdict; a little less does not."""
    supported = only(result(prediction(wavy(1.2), WEAK)))
    low = supported["estimate"]["low"]
    assert f"{low:.3g}" in supported["would_change"]
    assert only(result(prediction(wavy(1.2), WEAK, minimum=low * 1.001)))["verdict"] == "inconclusive"
    assert only(result(prediction(wavy(1.2), WEAK, minimum=low * 0.999)))["verdict"] == "supported"
    refuted = only(result(prediction(wavy(0.05), WEAK)))
    assert only(result(prediction(wavy(0.05), WEAK, minimum=refuted["estimate"]["high"])))["verdict"] == "inconclusive"
    assert f"{refuted['estimate']['high']:.3g}" in refuted["would_change"]


def test_the_number_of_clusters_that_would_decide_does() -> None:
    undecided = only(result(prediction(wavy(0.8, 0.4), WEAK)))
    assert undecided["verdict"] == "inconclusive"
    need = int(undecided["would_change"].split()[1])
    assert need > N
    need += need % 2
    values = wavy(0.8, 0.4, need)
    weak = [np.full(need * SIZE, 0.02)] * 3
    assert only(result(prediction(values, weak)))["verdict"] == "supported"


def test_worst_examples_fall_shortest() -> None:
    values = wavy(1.2)
    values[[5, 17]] = [-3.0, -2.0]
    worst = only(result(prediction(values, WEAK)))["worst"]
    assert [item["id"] for item in worst[:2]] == ["p5", "p17"]
    assert worst[0] == {"id": "p5", "cluster": "c1", "value": -1.5, "shortfall": pytest.approx(-1.8)}


# -- error rates


def rate(
    name: str, mean: float, *, n: int, n_clusters: int, minimum: float, k: int = 3, control_mean: float = 0.0
) -> float:
    rng = np.random.default_rng([n, n_clusters, int(100 * abs(mean))])
    size = n_clusters * SIZE
    hits = 0
    for _ in range(n):
        values = effects(rng, mean, n_clusters=n_clusters, sd=0.6)
        controls = [effects(rng, control_mean, n_clusters=n_clusters, sd=0.6) for _ in range(k)]
        record = prediction(values, controls, minimum=minimum, gap=np.ones(size))
        hits += verdict({"alpha": 0.05, "changed": [], "seen_before": [], "predictions": [record]})["verdict"] == name
    return hits / n


def test_a_false_claim_is_rarely_supported() -> None:
    """True effect = minimum: the interval errs on that side at most alpha / 2 of the time."""
    assert rate("supported", 0.2, n=250, n_clusters=12, minimum=0.2, control_mean=-1.0) < 0.05


def test_a_component_like_the_others_is_rarely_special() -> None:
    """The effect is far above the minimum, and that of every control as well."""
    assert rate("supported", 2.0, n=250, n_clusters=12, minimum=0.2, control_mean=2.0) < 0.05


def test_a_true_claim_is_mostly_supported_and_a_null_mostly_refuted() -> None:
    assert rate("supported", 1.0, n=100, n_clusters=12, minimum=0.2) > 0.9
    assert rate("refuted", -0.3, n=100, n_clusters=12, minimum=0.2) > 0.9
    assert rate("supported", -0.3, n=100, n_clusters=12, minimum=0.2) == 0


def test_intervals_over_prompts_would_support_false_claims() -> None:
    """The negative control: the same data and the same rule, prompts counted as clusters."""
    rng, hits, n = np.random.default_rng(3), 0, 300
    for _ in range(n):
        values = effects(rng, 0.2, n_clusters=12, sd=0.6, icc=0.5)
        hits += mean_interval(values, [str(i) for i in range(len(values))]).low >= 0.2
    assert hits / n > 0.06
