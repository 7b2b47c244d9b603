"""Gradients of many requests: one backward pass where nothing but the sites differ, and the same numbers."""

import pytest
import torch

from cutaway import engine, sites
from cutaway.engine import Grad, slopes
from cutaway.errors import OutOfRange, UsageError
from tests.models.samples import loaded, rows


def first(logits):
    return logits[:, -1, 3].sum()


def second(logits):
    return logits[:, -1, 5].sum()


def test_requests_for_other_sites_share_a_backward_pass(monkeypatch):
    model = loaded("llama")
    one, two = model.encode(rows()), model.encode(rows(seed=2))
    edit = sites.z[0].head(1).scale(2.0)
    requests = [
        Grad(one, first, (sites.resid_pre[1],)),
        Grad(model.encode(rows()), first, (sites.z[2].head(1), sites.resid_pre[1])),
        Grad(one, second, (sites.resid_pre[1],)),
        Grad(two, first, (sites.resid_pre[1],)),
        Grad(one, first, (sites.mlp_out[2],), (edit,)),
        Grad(one, first, (sites.resid_post[0],), (edit,)),
    ]
    alone = [model.grad(r.inputs, r.metric, r.wanted, r.edits) for r in requests]
    whole, passes = slopes.grad, []
    monkeypatch.setattr(slopes, "grad", lambda *args: passes.append(args) or whole(*args))
    found = engine.gradients(model, requests)
    assert len(passes) == 4
    for a, b in zip(found, alone, strict=True):
        assert a.metric == b.metric
        assert list(a.gradients) == list(b.gradients) == list(a.activations)
        for site in b.gradients:
            assert torch.allclose(a.gradients[site], b.gradients[site], rtol=1e-5, atol=1e-7)
            assert torch.equal(a.activations[site], b.activations[site])
            assert b.gradients[site].abs().max() > 0
    found[0].gradients[sites.resid_pre[1]].zero_()
    assert found[1].gradients[sites.resid_pre[1]].abs().max() > 0


def test_what_cannot_be_asked_for_is_refused():
    model = loaded("llama")
    with pytest.raises(UsageError, match="no requests"):
        engine.gradients(model, [])
    with pytest.raises(OutOfRange, match="3 layers"):
        engine.gradients(model, [Grad(model.encode(rows()), first, (sites.z[9],))])
