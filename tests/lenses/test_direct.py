"""Laws of direct logit attribution: contributions sum to the logits; heads equal slices of the output projection."""

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

import cutaway
from cutaway import zoo
from cutaway.errors import SelfCheckFailed, SiteUnavailable, UnknownName, WrongModel
from cutaway.lenses import DirectAttribution, direct_logit_attribution
from cutaway.models import Model, load, sites
from tests.families import CAUSAL, COMMON, GROUPED, SPECIAL, tiny
from tests.patching.pairs import loaded, token_batch

OTHERS: dict[str, dict[str, Any]] = {
    "openai-gpt": {**SPECIAL, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64},
    "opt": {**COMMON, "ffn_dim": 80, "do_layer_norm_before": False, "word_embed_proj_dim": 32},
    "cohere": {**GROUPED, "intermediate_size": 56, "logit_scale": 0.4},
    "granite": {**GROUPED, "intermediate_size": 56, "logits_scaling": 3.0, "residual_multiplier": 0.7},
}
"""Norms after the addition, parallel blocks, logits and streams that are scaled."""


@cache
def other(kind: str) -> Model:
    config = AutoConfig.for_model(kind, **OTHERS[kind])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = AutoModelForCausalLM.from_config(config)
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return load(module.eval())


@pytest.mark.parametrize("by", ["component", "head", "neuron", "source"])
@pytest.mark.parametrize("family", [*CAUSAL, *OTHERS])
def test_contributions_sum_to_the_models_own_difference(family: str, by: str) -> None:
    model = other(family) if family in OTHERS else loaded(family)
    if (family, by) == ("mixtral", "neuron"):
        with pytest.raises(SiteUnavailable, match="mlp_act"):
            direct_logit_attribution(model, token_batch(model), by=by)
        return
    batch = token_batch(model, lengths=(7, 5))
    found = direct_logit_attribution(model, batch, by=by)
    with torch.no_grad():
        logits = model.module(input_ids=batch.clean.ids, attention_mask=batch.clean.mask.long()).logits
    own = [
        logits[i, end, a[0]] - logits[i, end, f[0]]
        for i, (end, a, f) in enumerate(zip(batch.clean.roles["end"], batch.answers, batch.foils))
    ]
    torch.testing.assert_close(found.values.sum(0), torch.stack(own), atol=1e-5, rtol=1e-4)
    assert found.values.abs().max() > 1e-2
    if found.sources is not None:
        heads = [i for i, label in enumerate(found.labels) if label.startswith("z.")]
        torch.testing.assert_close(found.sources.nansum(2), found.values[heads], atol=1e-5, rtol=1e-4)
        assert found.sources[:, 1, 5:].isnan().all()  # the second row has five tokens


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_heads_are_slices_of_the_output_projection(family: str) -> None:
    """The final norm's scale held at its value and each head's part of the projection, written out."""
    model = loaded(family)
    batch = token_batch(model)
    found = direct_logit_attribution(model, batch, by="head")
    module: Any = model.module
    acts = model.capture(batch.clean, [sites.z[:], sites.resid_post[2], sites.mlp_write[:]])
    state = acts["resid_post.2@end"]
    gpt2 = family == "gpt2"
    norm = module.transformer.ln_f if gpt2 else module.model.norm
    centred = state - state.mean(1, keepdim=True) if gpt2 else state
    scale = (centred.square().mean(1, keepdim=True) + (norm.eps if gpt2 else norm.variance_epsilon)).sqrt()
    weight = module.lm_head.weight
    direction = torch.stack([weight[a[0]] - weight[f[0]] for a, f in zip(batch.answers, batch.foils)]) * norm.weight

    def through(write: torch.Tensor) -> torch.Tensor:
        write = write - write.mean(1, keepdim=True) if gpt2 else write
        return ((write / scale) * direction).sum(1).detach()

    for layer in range(3):
        torch.testing.assert_close(found.of(f"mlp_write.{layer}"), through(acts[f"mlp_write.{layer}@end"]))
        rest = found.of(f"attn_write.{layer} rest")
        if gpt2:
            torch.testing.assert_close(
                rest, through(module.transformer.h[layer].attn.c_proj.bias.expand(len(state), -1)), atol=1e-5, rtol=1e-4
            )
        else:
            assert rest.abs().max() < 1e-6
        for head in range(4):
            z = acts[f"z.{layer}.h{head}@end"]
            size = z.shape[1]
            part = slice(head * size, (head + 1) * size)
            project = (
                module.transformer.h[layer].attn.c_proj.weight[part]
                if gpt2
                else module.model.layers[layer].self_attn.o_proj.weight[:, part].T
            )
            torch.testing.assert_close(found.of(f"z.{layer}.h{head}"), through(z @ project), atol=1e-5, rtol=1e-4)


def test_against_the_mean_logit() -> None:
    model = loaded("gemma2")
    batch = token_batch(model)
    found = direct_logit_attribution(model, batch, against="mean", position=2, on="corrupt")
    with torch.no_grad():
        logits = model.module(input_ids=batch.corrupt.ids).logits[:, 2]
    own = torch.stack([row[a[0]] - row.mean() for row, a in zip(logits, batch.answers)])
    torch.testing.assert_close(found.values.sum(0), own, atol=1e-5, rtol=1e-4)


def test_pieces_change_nothing() -> None:
    model = loaded("llama")
    batch = token_batch(model, lengths=(7, 5))
    whole, small = (direct_logit_attribution(model, batch, by="source", max_tokens=n) for n in (4096, 7))
    torch.testing.assert_close(whole.values, small.values, atol=1e-6, rtol=1e-4)
    assert whole.sources is not None
    assert small.sources is not None
    torch.testing.assert_close(whole.sources, small.sources, atol=1e-6, rtol=1e-4, equal_nan=True)


def test_a_head_that_is_no_linear_map_is_refused() -> None:
    model = loaded("bert")
    with pytest.raises(SelfCheckFailed, match="norm and a linear map"):
        direct_logit_attribution(model, token_batch(model))


def test_the_induction_heads_write_the_answer() -> None:
    """And neither the heads that they depend on, nor any head of the scrambled twin."""
    model = cutaway.load("induction-2l")
    task = cutaway.tasks.get("induction", model, n=24)
    found = direct_logit_attribution(model, task, by="source")
    known = set(zoo.truth("induction-2l").heads("induction"))
    assert set(found.top(len(known), kind="z.")) == known
    total = found.difference.mean()
    share = sum(found.of(label).mean() for label in known) / total
    assert share > 0.5
    for label in zoo.truth("induction-2l").heads("previous_token"):
        assert found.of(label).mean() < 0.1 * total
    twin = load(zoo.scrambled(model.module, seed=0), tokenizer=model.tokenizer)
    batch = task.encode(model)
    nothing = direct_logit_attribution(twin, batch, by="head")
    assert sum(nothing.of(label).mean() for label in known).abs() < 0.1 * share * total


def test_results_are_saved_and_drawn(tmp_path: Path) -> None:
    model = loaded("llama")
    found = direct_logit_attribution(model, token_batch(model, clusters=6), by="source")
    found.save(tmp_path / "d.safetensors")
    back = DirectAttribution.load(tmp_path / "d.safetensors", model)
    assert torch.equal(back.values, found.values)
    assert (back.labels, back.clusters, back.provenance) == (found.labels, found.clusters, found.provenance)
    with pytest.raises(WrongModel, match=r"d\.safetensors"):
        DirectAttribution.load(tmp_path / "d.safetensors", load(tiny("llama", seed=1)))
    rows = found.table()
    assert rows[0]["component"] == found.labels[int(found.values.mean(1).abs().argmax())]
    assert rows[0]["low"] < rows[0]["contribution"] < rows[0]["high"]
    assert sum(row["contribution"] for row in rows) == pytest.approx(found.difference.mean().item(), abs=1e-5)
    assert [type(figure).__name__ for figure in found.figures()] == ["Bars", "Heatmap", "Heatmap"]


@pytest.mark.parametrize("option", [{"by": "layer"}, {"on": "dirty"}, {"against": "max"}])
def test_wrong_requests_say_what_to_do(option: dict[str, str]) -> None:
    model = loaded("gpt2")
    with pytest.raises(UnknownName, match="it is one of"):
        direct_logit_attribution(model, token_batch(model), **option)
