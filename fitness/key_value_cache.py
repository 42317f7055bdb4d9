"""Keys and values of past tokens, in memory that one batch after another reuses."""

import inspect
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, GenerationMixin
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

_INPUTS = {"input_ids", "attention_mask", "position_ids", "past_key_values", "use_cache"}


class ReusableCache(DynamicCache):  # type: ignore[misc]  # transformers ships no types
    """A `DynamicCache` whose full-attention layers never copy what they hold to append to it.

    Layers of other kinds (sliding windows) stay transformers' own.

    Args:
        config: Of the model.
    """

    def __init__(self, config: Any) -> None:
        super().__init__(config=config)
        for number, layer in enumerate(self.layers):
            if type(layer) is DynamicLayer:
                self.layers[number] = _Layer()

    def empty(self, n_tokens: int) -> None:
        """Forget everything, and have room for `n_tokens` of each row from now on."""
        for layer in self.layers:
            layer.reset()
            if isinstance(layer, _Layer):
                layer.n_tokens = n_tokens

    def keep(self, rows: Tensor) -> None:
        """Leave out all but some rows, `(n_kept,)`."""
        self.batch_select_indices(rows)


class _Layer(DynamicLayer):  # type: ignore[misc]  # as above
    """Keys and values of one layer; `keys` and `values` are views of what is filled so far."""

    def __init__(self) -> None:
        super().__init__()
        self.n_tokens = 0
        self._memory: list[Tensor | None] = [None, None]
        self._full: tuple[Tensor, Tensor]

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Make room for the rows of these states."""
        self.dtype, self.device = key_states.dtype, key_states.device
        self._full = (self._room(0, key_states), self._room(1, value_states))
        self.keys, self.values = (full[:, :, :0] for full in self._full)
        self.is_initialized = True

    def update(
        self,
        key_states: Tensor,
        value_states: Tensor,
        *_: Any,
        **__: Any,
    ) -> tuple[Tensor, Tensor]:
        """Append the states of new tokens, `(n_rows, n_heads, n_new, head_size)`."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start = self.keys.shape[-2]
        end = start + key_states.shape[-2]
        keys, values = self._full
        keys[:, :, start:end] = key_states
        values[:, :, start:end] = value_states
        self.keys, self.values = keys[:, :, :end], values[:, :, :end]
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        """Move the rows that stay to the front."""
        end, n_rows = self.keys.shape[-2], len(indices)
        for full, filled in zip(self._full, (self.keys, self.values), strict=True):
            full[:n_rows, :, :end] = filled[indices]
        keys, values = self._full
        self._full = (keys[:n_rows], values[:n_rows])
        self.keys, self.values = (full[:, :, :end] for full in self._full)

    def _room(self, number: int, states: Tensor) -> Tensor:
        n_rows, n_heads, n_new, head_size = states.shape
        shape = (n_rows, n_heads, max(self.n_tokens, n_new), head_size)
        n_elements = torch.Size(shape).numel()
        memory = self._memory[number]
        if memory is None or memory.numel() < n_elements or memory.dtype != states.dtype:
            memory = self._memory[number] = states.new_empty(n_elements)
        return memory[:n_elements].view(shape)


def is_understood(model: Any) -> bool:
    """Whether decoding `model` takes no more than its forward, masks, positions and this cache.

    Models that prepare their inputs in a way of their own, keep states of another kind, or have an
    encoder are left to their own `generate`.
    """
    if not isinstance(model, GenerationMixin) or model.config.is_encoder_decoder:
        return False
    own = ("generate", "prepare_inputs_for_generation", "_update_model_kwargs_for_generation")
    if any(getattr(type(model), name) is not getattr(GenerationMixin, name) for name in own):
        return False
    accepted = set(inspect.signature(model.forward).parameters)
    if not accepted >= _INPUTS or "cache_position" in accepted:
        return False
    layers = DynamicCache(config=model.config).layers
    return bool(layers) and all(
        type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers
    )
