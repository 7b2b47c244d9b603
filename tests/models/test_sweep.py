"""Types of models that no table speaks of: what the sweep finds, and that it is so."""

import pytest
import torch

import cutaway
from cutaway import sites
from cutaway.models import Site, sweep, tinies
from tests.models.samples import hooked, part, plain, relative, rows

INLINE = ("gptj", "bloom", "gpt_neo", "mpt", "openai-gpt", "xglm")
"""Attention written out in the model's own module."""


@pytest.mark.parametrize(
    ("name", "decomposed", "patterns"),
    [
        ("granite", 2, 2),  # writes times a number of the configuration
        ("minimax", 2, 1),  # the stream scaled and normed on its way
        ("doge", 2, 2),  # a learned factor a channel
        ("longcat_flash", 2, 0),  # two attentions and three MLPs a block
        ("diffllama", 2, 2),  # the kernel called twice with one pattern
        ("gpt_oss", 2, 2),  # sinks
        ("mamba", 2, 0),
        ("gemma3n_text", 0, 2),  # four streams
    ],
)
def test_a_type_is_exact_and_what_holds_of_it_is_found(name, decomposed, patterns):
    row = sweep.row(name)
    assert (row.status, row.difference, row.resume) == ("exact", 0.0, "")
    assert (row.decomposed, row.patterns) == (decomposed, patterns)


def test_what_cannot_be_is_a_row_with_its_reason():
    reformer = sweep.row("reformer")
    assert reformer.status == "exact"
    assert "starting at layer 1 fails" in reformer.resume
    assert "39, 32], which is not [batch pos d_model]" in sweep.row("cpmant").reason
    assert sweep.row("musicgen").status == "not built"
    assert sweep.row("no-such-type").status == "not built"
    counts = sweep.summary([sweep.row("gptj"), reformer])
    assert (counts["built"], counts["loaded and bit-exact"], counts["resume exactly"]) == (2, 2, 1)


@pytest.mark.parametrize("name", INLINE)
def test_attention_written_out_in_a_module_is_read_and_edited(name):
    module = tinies.tiny(name)
    model = cutaway.load(module)
    assert model.body.layers[1].inline
    tokens = model.encode(rows())
    wanted = plain(model, tokens, output_attentions=True)
    acts = model.capture(tokens, ["q.1", "k.1", "v.1", "pattern.1", "z.1", "scores.1"])
    assert torch.equal(acts["pattern.1"], wanted.attentions[1])
    assert torch.equal(model.run(tokens, reads=["pattern.0", "z.1"]).logits, wanted.logits)
    mixed = torch.einsum("bhqk,bkhd->bqhd", acts["pattern.1"], acts["v.1"])
    assert relative(acts["z.1"], mixed) < 1e-5
    size = model.body.d_head

    def without_a_head(value: torch.Tensor) -> torch.Tensor:
        return torch.cat([value[..., :size], torch.zeros_like(value[..., size : 2 * size]), value[..., 2 * size :]], -1)

    with hooked(part(model, model.body.layers[1].o_proj), without_a_head, "input"):
        cut = plain(model, tokens).logits
    assert relative(wanted.logits, cut) > 1e-4
    for site in (sites.z[1], sites.v[1], sites.pattern[1]):
        assert relative(model.run(tokens, [site.head(1).zero()]).logits, cut) < 2e-5
    assert relative(model.run(tokens, [sites.q[1].zero()]).logits, wanted.logits) > 1e-4


def test_a_scaled_write_is_what_is_added():
    model = cutaway.load(tinies.tiny("minicpm3"))
    tokens, layer = model.encode(rows()), model.body.layers[1]
    acts = model.capture(tokens, ["resid_pre.1", "attn_write.1", "attn_out.1", "mlp_write.1", "resid_post.1"])
    assert layer.writes == "sequential"
    assert layer.taps["attn_write"].scale == part(model, layer.block).residual_scale != 1.0
    total = acts["resid_pre.1"] + acts["attn_write.1"] + acts["mlp_write.1"]
    assert relative(total, acts["resid_post.1"]) < 1e-5
    donor = model.capture(model.encode(rows(seed=2)), ["attn_write.1"])
    found = model.run(tokens, [sites.attn_write[1].patch(donor)], ["resid_mid.1", "attn_write.1"]).activations
    assert relative(found["attn_write.1"], donor["attn_write.1"]) < 1e-5
    assert relative(found["resid_mid.1"], acts["resid_pre.1"] + donor["attn_write.1"]) < 1e-5
    slope = model.grad(tokens, lambda logits: logits[:, -1, 5].sum(), ["attn_write.1", "resid_mid.1"]).gradients
    assert relative(slope["attn_write.1"], slope["resid_mid.1"]) < 1e-4


def test_two_kernel_calls_share_one_pattern():
    model = cutaway.load(tinies.tiny("diffllama"))
    tokens = model.encode(rows())
    assert model.body.status(Site("v", 0)).state == "refused"
    found = model.run(tokens, [sites.pattern[1].zero()], ["pattern.1", "attn_write.1"]).activations
    assert float(found["pattern.1"].abs().max()) == 0.0
    assert (
        float(found["attn_write.1"].abs().max())
        < 1e-5
        < float(model.capture(tokens, ["attn_write.1"])["attn_write.1"].abs().max())
    )


def test_parallel_streams_are_an_axis_after_the_position():
    model = cutaway.load(tinies.tiny("gemma3n_text"))
    tokens = model.encode(rows())
    acts = model.capture(tokens, ["resid_pre.1", "resid_post.0"])
    assert acts["resid_pre.1"].shape == (3, 9, model.body.n_streams, 32)
    assert torch.equal(acts["resid_pre.1"], acts["resid_post.0"])
    donor = model.capture(model.encode(rows(seed=2)), ["resid_post.0"])
    found = model.run(tokens, [sites.resid_post[0].at(-1).patch(donor)], ["resid_pre.1"]).activations
    assert torch.equal(found["resid_pre.1"][:, -1], donor["resid_post.0"][:, -1])
    assert torch.equal(found["resid_pre.1"][:, :-1], acts["resid_pre.1"][:, :-1])
