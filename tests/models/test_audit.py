"""Audit: it must be able to fail. A map that is wrong, or a model that does not do what its sites say, is refused."""

from dataclasses import replace

import pytest
import torch
from torch import nn

import cutaway
from cutaway import sites
from cutaway.errors import SelfCheckFailed, SiteUnavailable
from cutaway.models import Model, Site
from cutaway.models.anatomy import Tap
from cutaway.models.audit import audit, table
from cutaway.models.resolve import quirks
from tests.families import tiny
from tests.models.samples import loaded, rows


def moved(family: str, kind: str, tap: Tap) -> Model:
    """A model whose map sends one site elsewhere, audited again."""
    model = cutaway.load(tiny(family), audit=False)
    layers = list(model.body.layers)
    layers[1] = replace(layers[1], taps={**layers[1].taps, kind: tap})
    model._anatomy = replace(model.body, layers=tuple(layers))
    model._anatomy = audit(model)
    return model


@pytest.mark.parametrize(
    ("kind", "path", "port"),
    [
        ("attn_write", "model.layers.1.mlp", "output"),
        ("mlp_write", "model.layers.1.mlp.up_proj", "input"),
        ("resid_post", "model.layers.0", "output"),
        ("resid_mid", "model.layers.1.input_layernorm", "input"),
        ("attn_out", "model.layers.1.mlp", "output"),
    ],
)
def test_a_site_that_is_not_what_its_name_says_is_refused(kind, path, port):
    model = moved("llama", kind, Tap(path, port))
    status = model.body.status(Site(kind, 1))
    assert status.state == "refused"
    assert "off by" in status.reason
    assert model.body.status(Site(kind, 2)).state == "verified"
    with pytest.raises(SiteUnavailable, match=rf"{kind}.1.*off by"):
        model.run(rows(), [Site(kind, 1).zero()])


def test_a_site_that_does_not_reach_the_output_is_read_only():
    hf = tiny("gpt2")
    hf.transformer.h[2].mlp.c_proj.weight.data.zero_()
    model = cutaway.load(hf)
    status = model.body.status(sites.mlp_act[2])
    assert (status.state, status.editable) == ("verified", False)
    assert model.capture(rows(), ["mlp_act.2"])["mlp_act.2"].std() > 0
    with pytest.raises(SiteUnavailable, match=r"mlp_act.2': it can be read, not edited: .*does not reach the output"):
        model.run(rows(), [sites.mlp_act[2].zero()])


def test_without_an_audit_nothing_is_called_verified():
    model = cutaway.load(tiny("llama"), audit=False)
    states = {model.body.status(s).state for s in model.body.sites()}
    assert states == {"structural", "refused"}
    assert model.body.resume == model.body.suffix == "not audited"


def test_the_table_has_a_row_for_every_site():
    found = table(loaded("mixtral"))
    assert [row["site"] for row in found] == [str(s) for s in loaded("mixtral").body.sites()]
    assert all(row["reason"] for row in found)
    assert {row["status"] for row in found} == {"verified", "refused"}


def test_a_network_without_blocks_is_pointed_to_wrap(seeded):
    class Config:
        pad_token_id = bos_token_id = eos_token_id = None

    class Flat(nn.Module):
        config = Config()

        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(20, 4)

        def get_input_embeddings(self):
            return self.table

        def forward(self, input_ids):
            return self.table(input_ids)

    with pytest.raises(SelfCheckFailed, match=r"Flat: no list of blocks.*use cutaway.wrap\(module\)"):
        cutaway.load(Flat())


def test_oddities_are_data_with_a_reason():
    for quirk in quirks():
        assert set(quirk) == {"block", "refuse", "reason"}
        assert len(quirk["reason"]) > 20


def test_a_row_of_quirks_refuses_its_sites():
    from transformers import BloomConfig, BloomForCausalLM

    config = BloomConfig(vocab_size=99, hidden_size=32, n_layer=2, n_head=4)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = cutaway.load(BloomForCausalLM(config).eval())
    for kind in ("attn_out", "mlp_out"):
        with pytest.raises(SiteUnavailable, match=r"adds the residual stream to its own output"):
            model.capture(rows(), [Site(kind, 1)])
    tokens = model.encode(rows())
    with torch.no_grad():
        assert torch.equal(
            model.run(tokens, reads=["resid_post.0"]).logits, model.module(**model.inputs(tokens)).logits
        )
