"""Tiny real adapters, saved by PEFT, and factors in memory."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from evomerge.merging.low_rank.stack import Stack


def save_adapter(folder: Path, base: Path, *, seed: int = 1, size: float = 0.1, **settings: Any):
    """Save an adapter of random factors over a base; returns the PEFT model."""
    from peft import LoraConfig, get_peft_model

    config = transformers.AutoConfig.from_pretrained(base)
    model_class = getattr(transformers, config.architectures[0])
    model = get_peft_model(model_class.from_pretrained(base, dtype="auto"), LoraConfig(**settings))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, parameter in sorted(model.named_parameters()):
            if parameter.requires_grad:
                values = torch.randn(parameter.shape, generator=generator)
                parameter.copy_(values * size)
    model.save_pretrained(folder)
    return model.eval()


def random_stack(
    n_rows: int,
    n_columns: int,
    ranks: Sequence[int],
    scales: Sequence[float] | None = None,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    alike: bool = False,
) -> Stack:
    """Factors of experts with these ranks, each of its own size; `alike`: they share a rank."""
    generator = torch.Generator().manual_seed(seed)
    K = sum(ranks)
    sizes = torch.repeat_interleave(
        torch.rand(len(ranks), generator=generator), torch.tensor(ranks)
    )
    left = torch.randn(K, n_rows, generator=generator) * sizes[:, None]
    right = torch.randn(K, n_columns, generator=generator) * 0.3
    if alike:
        firsts = [sum(ranks[:k]) for k in range(len(ranks)) if ranks[k]]
        left[firsts] += 3.0 * left[:1].clone()
        right[firsts] += 3.0 * right[:1].clone()
    scales = [1.0] * len(ranks) if scales is None else scales
    return Stack(left.to(dtype), right.to(dtype), tuple(ranks), tuple(scales))


def exact_deltas(stack: Stack) -> list[Tensor]:
    """What every expert changes, in float64."""
    return [
        scale * stack.left[stack.rows(k)].double().T @ stack.right[stack.rows(k)].double()
        for k, scale in enumerate(stack.scales)
    ]
