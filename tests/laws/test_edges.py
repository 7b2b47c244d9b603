"""Laws of what components send: over every family, contributions sum to the stream, edges to their sender."""

from functools import cache
from typing import Any

import pytest
import torch

from cutaway.models import Model, Site, load
from cutaway.patching.edges import direct, edges
from cutaway.patching.graph import Writes, components, senders_of
from tests.families import CAUSAL
from tests.patching.pairs import loaded, token_batch

CLOSE = {"atol": 1e-5, "rtol": 1e-5}
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 99, "pad_token_id": 0}
GROUPED = {**SIZES, "num_key_value_heads": 2, "intermediate_size": 56}
MORE: dict[str, dict[str, Any]] = {
    "granite": {**GROUPED, "residual_multiplier": 0.3, "attention_multiplier": 0.2},
    "olmo2": GROUPED,
    "gptj": {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 99, "rotary_dim": 4, "n_inner": 80},
}
"""Blocks that scale what they add, put a norm behind it, or do both parts at once."""


@cache
def model_of(family: str) -> Model:
    if family in CAUSAL:
        return loaded(family)
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **MORE[family]))
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return load(module.eval())


@pytest.mark.parametrize("family", [*CAUSAL, *MORE])
def test_contributions_sum_to_the_stream(family: str) -> None:
    """The embedding, all heads, MLPs and the constants of output projections are the last residual state."""
    model = model_of(family)
    batch = token_batch(model, n=2)
    senders = senders_of(model, components(model))
    writes, last = Writes(model, senders), Site("resid_post", model.body.n_layers - 1)
    runs = [model.capture(tokens, [*writes.reads, last]) for tokens in (batch.clean, batch.corrupt)]
    heads = [sender for sender in senders if sender.part is not None]
    assert len(heads) == model.body.n_layers * 4
    sums = [torch.stack([writes.of(acts, sender) for sender in senders]).sum(0) for acts in runs]
    size = runs[0][last].abs().max()
    # constants are the same in both runs; where a norm follows, there are none
    changed = runs[0][last] - runs[1][last]
    assert changed.abs().max() > 0.05 * size
    assert (sums[0] - sums[1] - changed).abs().max() < 1e-5 * size
    for layer in range(model.body.n_layers):
        parts = torch.stack([writes.of(runs[0], head) for head in heads if head.write.layer == layer]).sum(0)
        rest = runs[0][Site("attn_write", layer)] - parts
        assert rest.std((0, 1)).max() < 1e-5 * size, "what heads do not add is a constant"


@pytest.mark.parametrize("family", ["gemma2", "qwen3", "mixtral", "granite", "olmo2"])
def test_all_edges_of_a_sender_together_are_the_sender(family: str) -> None:
    model = model_of(family)
    batch = token_batch(model, n=3, lengths=(7, 6))
    for sender in ("z.0.h2", "mlp_out.0"):
        together = edges(model, batch, sender, together=True)
        total = direct(model, batch, sender).select([sender])
        torch.testing.assert_close(together.values, total.values, **CLOSE)
        assert total.raw.abs().max() > 1e-4
