"""Tiny random models, one row an architecture: the families that the laws run over.

The sizes are awkward on purpose: a head size that is not d_model / n_heads, fewer key/value heads than heads, a window
shorter than the prompts, a vocabulary that is no power of two. Every parameter is random, biases and norms included, so
that nothing that is left out can go unnoticed.

>>> tiny("llama").config.num_key_value_heads
2
"""

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

N_LAYERS, N_HEADS, D_MODEL, D_VOCAB, MAX_POS = 3, 4, 32, 99, 64
SPECIAL = {"vocab_size": D_VOCAB, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
COMMON = {
    **SPECIAL,
    "hidden_size": D_MODEL,
    "num_hidden_layers": N_LAYERS,
    "num_attention_heads": N_HEADS,
    "max_position_embeddings": MAX_POS,
}
GROUPED = {**COMMON, "num_key_value_heads": 2, "head_dim": 12}

FAMILIES: dict[str, dict[str, Any]] = {
    "gpt2": {
        **SPECIAL,
        "n_embd": D_MODEL,
        "n_layer": N_LAYERS,
        "n_head": N_HEADS,
        "n_positions": MAX_POS,
        "n_inner": 80,
    },
    "llama": {**GROUPED, "intermediate_size": 56},
    "gpt_neox": {**COMMON, "intermediate_size": 80, "use_parallel_residual": True},
    "gemma2": {**GROUPED, "intermediate_size": 56, "sliding_window": 4, "query_pre_attn_scalar": 12},
    "qwen3": {**GROUPED, "intermediate_size": 56},
    "mixtral": {**GROUPED, "intermediate_size": 40, "num_local_experts": 4, "num_experts_per_tok": 2},
    "bert": {**COMMON, "intermediate_size": 80},
}
"""Model type -> arguments of its Hugging Face config."""

CAUSAL = tuple(name for name in FAMILIES if name != "bert")
"""The families that predict the next token."""


def tiny(family: str, seed: int = 0, **changes: Any) -> "PreTrainedModel":
    """A random model of `family` in evaluation mode (float32, CPU); `changes` override its config.

    The same seed gives the same weights, and torch's global random state stays as it was.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM

    config = AutoConfig.for_model(family, **{**FAMILIES[family], **changes})
    kind = AutoModelForCausalLM if family in CAUSAL else AutoModelForMaskedLM
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = kind.from_config(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()
