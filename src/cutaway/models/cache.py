"""A key/value cache that holds the fixed prefix of some rows and grows no further: each pass sees prefix + its own
columns. And the cache that generation fills."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor


class PrefixCache:
    """Builds transformers caches; transformers is imported when one is built."""

    @staticmethod
    def of(keys_values: Mapping[int, tuple[Tensor, Tensor]], n_layers: int, length: int) -> Any:
        """A cache of `length` columns. `keys_values`: by layer, keys and values [batch pos kv_head d_head]; others
        are never asked."""
        from transformers.cache_utils import Cache, CacheLayerMixin

        class Layer(CacheLayerMixin):
            is_sliding = False

            def __init__(self, prefix: tuple[Tensor, Tensor] | None) -> None:
                super().__init__()
                self.is_initialized = True
                if prefix is not None:
                    self.keys, self.values = (t[:, :length].transpose(1, 2) for t in prefix)

            def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
                """Nothing to do: the prefix is all there is."""

            def update(
                self,
                key_states: Tensor,
                value_states: Tensor,
                *_: Any,
                **__: Any,
            ) -> tuple[Tensor, Tensor]:
                import torch

                return torch.cat([self.keys, key_states], -2), torch.cat([self.values, value_states], -2)  # type: ignore[list-item]

            def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
                return length + query_length, 0

            def get_seq_length(self) -> int:
                return length

            def get_max_length(self) -> int:
                return -1

        return Cache(layers=[Layer(keys_values.get(layer)) for layer in range(n_layers)])


def growing(config: Any) -> Any:
    """An empty transformers cache that keeps what each step computes."""
    from transformers import DynamicCache

    return DynamicCache(config=config)
