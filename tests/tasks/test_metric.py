"""The table of metrics: names, units, signs."""

import pytest

from cutaway.errors import UnknownName
from cutaway.tasks import METRICS, metric_named


def test_each_metric_has_unit_sign_and_a_sentence() -> None:
    assert {name: (item.unit, item.sign) for name, item in METRICS.items()} == {
        "logit_diff": ("nat", 1),
        "logprob_diff": ("nat", 1),
        "prob": ("probability", 1),
        "accuracy": ("share", 1),
        "kl": ("nat", -1),
    }
    assert all(item.doc.endswith(".") and item.name == name for name, item in METRICS.items())


def test_only_logit_diff_needs_single_tokens() -> None:
    assert [name for name, item in METRICS.items() if item.single_token] == ["logit_diff"]


def test_an_unknown_metric_offers_the_nearest() -> None:
    with pytest.raises(UnknownName, match=r"'logit_dif'.*Did you mean 'logit_diff'"):
        metric_named("logit_dif")
