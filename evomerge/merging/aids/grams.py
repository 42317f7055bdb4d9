"""Grams of activations: what the linear layers of a model read, as `X^T X / n`."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from evomerge.errors import TaskError
from evomerge.merging.aids.forwards import forward

# Grams that grow at a time, in bytes; the texts are run again for the rest.
_MOST_BYTES = 4 << 30


@dataclass(frozen=True, slots=True)
class LinearLayer:
    """A layer `y = x W^T` (or `x W`, then its inputs meet axis 0 of the weight)."""

    weight: str
    module: nn.Module = field(repr=False)
    input_axis: int

    @property
    def n_inputs(self) -> int:
        """How many numbers it reads of each token."""
        return int(self.module.get_parameter("weight").shape[self.input_axis])


def linear_layers(
    model: nn.Module, names: Collection[str], tied: Mapping[str, str]
) -> list[LinearLayer]:
    """The layers with a weight of their own, in the order of the model.

    Args:
        model: Linear layers are torch's, or the transposed ones of GPT-2.
        names: Weights that are merged.
        tied: Alias to owner: a weight that is an embedding too has two kinds of inputs, and none.
    """
    from transformers.pytorch_utils import Conv1D

    found = []
    for path, module in model.named_modules():
        weight = f"{path}.weight"
        if weight not in names or weight in tied.values():
            continue
        if isinstance(module, nn.Linear):
            found.append(LinearLayer(weight, module, 1))
        elif isinstance(module, Conv1D):
            found.append(LinearLayer(weight, module, 0))
    return found


def shared_inputs(
    model: nn.Module, layers: Sequence[LinearLayer], ids: Tensor
) -> dict[str, LinearLayer]:
    """For every weight the first layer that reads the very same tensors (q, k, v; gate, up).

    Found in one forward, in which all inputs stay in memory so that no address is used twice.
    """
    alive: list[Tensor] = []
    read: dict[str, list[Any]] = {layer.weight: [] for layer in layers}

    def see(weight: str, inputs: Tensor) -> None:
        alive.append(inputs)
        read[weight].append(_identity(inputs))

    with ExitStack() as stack:
        for layer in layers:
            stack.enter_context(_watched(layer.module, partial(see, layer.weight)))
        with torch.no_grad():
            forward(model, ids)
    first: dict[Any, LinearLayer] = {}
    # What this text does not reach is not known to share.
    return {
        layer.weight: first.setdefault(tuple(read[layer.weight]) or layer.weight, layer)
        for layer in layers
    }


def grams(
    model: nn.Module, layers: Sequence[LinearLayer], sequences: Sequence[Tensor], expert: str
) -> Iterator[tuple[str, Tensor]]:
    """`X^T X / n` of each layer over the n tokens that it reads, `(in, in)`, fp32 on the CPU.

    Products are summed in float64, in the order of the sequences. A layer that no token reaches
    has zeros.

    Raises:
        TaskError: An activation is NaN or infinite.
    """
    start = 0
    while start < len(layers):
        stop, n_bytes = start, 0
        while stop < len(layers) and (stop == start or n_bytes < _MOST_BYTES):
            n_bytes += 8 * layers[stop].n_inputs ** 2
            stop += 1
        yield from _grams(model, layers[start:stop], sequences, expert)
        start = stop


def _grams(
    model: nn.Module, layers: Sequence[LinearLayer], sequences: Sequence[Tensor], expert: str
) -> Iterator[tuple[str, Tensor]]:
    sums = [_Sum(layer) for layer in layers]
    with ExitStack() as stack:
        for layer, one in zip(layers, sums, strict=True):
            stack.enter_context(_watched(layer.module, one.add))
        with torch.no_grad():
            for ids in sequences:
                forward(model, ids)
    for layer, one in zip(layers, sums, strict=True):
        gram = (one.products / max(1, one.n)).cpu()
        gram = ((gram + gram.T) / 2).float()
        if not bool(torch.isfinite(gram).all()):
            raise TaskError(
                f"activations must be finite, but those that {layer.weight} reads are not in "
                f"{expert} on the texts of space.statistics: use a base in bfloat16 or float32, "
                "or leave that expert out"
            )
        yield layer.weight, gram


class _Sum:
    """`X^T X` so far, and of how many rows."""

    def __init__(self, layer: LinearLayer) -> None:
        size, device = layer.n_inputs, layer.module.get_parameter("weight").device
        self.products = torch.zeros(size, size, dtype=torch.float64, device=device)
        self.n = 0

    def add(self, inputs: Tensor) -> None:
        """All rows of `(..., in)` activations."""
        X = inputs.detach().reshape(-1, inputs.shape[-1]).float()
        self.products += X.T @ X
        self.n += len(X)


def _watched(module: nn.Module, see: Callable[[Tensor], None]) -> RemovableHandle:
    """Until the context ends, `see` is given every input of the module."""

    def hook(_: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        see(args[0] if args else next(iter(named.values())))

    return module.register_forward_pre_hook(hook, with_kwargs=True)


def _identity(tensor: Tensor) -> tuple[Any, ...]:
    """Equal for tensors in memory at once that are the same numbers at the same place."""
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype, tensor._version
