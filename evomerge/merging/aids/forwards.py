"""Running a live model over token ids, whatever its class."""

import inspect
from typing import Any

from torch import Tensor, nn

from evomerge.errors import TaskError


def forward(model: nn.Module, ids: Tensor) -> Any:
    """The model's output for `(1, n_tokens)` ids; it keeps nothing for later tokens."""
    keeps = "use_cache" in inspect.signature(model.forward).parameters
    options: dict[str, Any] = {"use_cache": False} if keeps else {}
    return model(ids.to(next(model.parameters()).device), **options)


def longest(model: nn.Module, max_length: int) -> int:
    """The length to cut texts to: no more than the model has positions for."""
    positions = getattr(getattr(model, "config", None), "max_position_embeddings", None)
    return min(max_length, positions) if isinstance(positions, int) else max_length


def refuse_unreadable(model: nn.Module) -> None:
    """Refuse a model that token ids alone are not enough for.

    Raises:
        TaskError: It is an encoder with a decoder.
    """
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        raise TaskError(
            "statistics are collected on plain text, but "
            f"{type(model).__name__} reads a text and writes another: choose an operator that "
            "needs none"
        )


def refuse_other_than_causal(model: nn.Module) -> None:
    """Refuse a model that does not give probabilities of next tokens.

    Raises:
        TaskError: It does not.
    """
    can_generate = getattr(model, "can_generate", None)
    if can_generate is None or not can_generate():
        raise TaskError(
            "Fisher information is collected from the likelihood of texts, but "
            f"{type(model).__name__} is no causal language model: choose an operator that needs "
            "none, such as regmean"
        )
