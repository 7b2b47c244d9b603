"""The axes of every tensor in cutaway, and the sizes that go with them. One name, one meaning.

| axis | runs over | size |
|---|---|---|
| `batch` | rows of a run: prompts | |
| `pos` | tokens of a row, padding included; `query` and `key` when a tensor has two of them | |
| `d_model` | the residual stream | `d_model` |
| `head` | query heads; for `k` and `v` key/value heads | `n_heads`, `n_kv_heads` |
| `d_head` | one head's vector | `d_head` |
| `neuron` | hidden units of an MLP | `d_mlp` |
| `d_vocab` | the vocabulary | `d_vocab` |
| `site` | the cells of a sweep | |
| `example` | the pairs of a task | |
| `cluster` | independent units: templates, documents, entities | |

Site tensors are shaped

    residual stream, writes, inputs and outputs   [batch pos d_model]
    q z                                           [batch pos head d_head]
    k v                                           [batch pos kv_head d_head]
    scores pattern                                [batch head query key]
    mlp_pre mlp_act                               [batch pos neuron]
    router                                        [batch pos expert]
    logits                                        [batch pos d_vocab]
"""

from typing import TypeAlias

from jaxtyping import Bool, Float, Int
from torch import Tensor

Residual: TypeAlias = Float[Tensor, "batch pos d_model"]
Logits: TypeAlias = Float[Tensor, "batch pos d_vocab"]
TokenIds: TypeAlias = Int[Tensor, "batch pos"]
Mask: TypeAlias = Bool[Tensor, "batch pos"]
PerExample: TypeAlias = Float[Tensor, " example"]
