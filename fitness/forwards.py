"""What a live model says after each of many token sequences: all but the forwards is prepared once.

"Every" position of a sequence is each of its tokens; "chosen" ones are a few, evenly spread, for
what is kept of other models.
"""

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

# As many numbers in fp32 take 1 MiB, and stay in a core's cache; or 64 MiB, and fill a GPU.
_CHUNK_CPU = 1 << 18
_CHUNK_GPU = 1 << 24


@dataclass(frozen=True, slots=True)
class Points:
    """Positions in a batch: all `(n_points,)`, the first four on the device.

    `rows` and `columns` say where they stand in the batch's hidden states, `kept_columns` where
    in its logits; `targets` are the tokens that come next (-1 after the last one). `sequences` are
    the numbers of their sequences, `numbers` those of the chosen positions in a whole split.
    """

    rows: Tensor
    columns: Tensor
    kept_columns: Tensor
    targets: Tensor
    sequences: NDArray[np.int64]
    numbers: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Batch:
    """One forward of `(n_rows, length)` inputs, padded on the right; `kept` columns have logits."""

    inputs: Tensor
    kept: Tensor
    every: Points
    chosen: Points


@dataclass(frozen=True, slots=True)
class Plan:
    """The batches for `n_sequences`."""

    batches: tuple[Batch, ...]
    n_sequences: int


@dataclass(frozen=True, slots=True)
class Output:
    """What a forward gave for its batch: `hidden` has `(n_rows, length, size)` per layer."""

    batch: Batch
    logits: Tensor
    hidden: tuple[Tensor, ...]

    def log_probabilities(self, points: Points) -> Iterator[tuple[slice, Tensor]]:
        """Of the next token at points, `(n, n_tokens)` in fp32, a few points at a time."""
        chunk = _CHUNK_CPU if self.logits.device.type == "cpu" else _CHUNK_GPU
        step = max(1, chunk // self.logits.shape[-1])
        for start in range(0, len(points.rows), step):
            part = slice(start, start + step)
            logits = self.logits[points.rows[part], points.kept_columns[part]]
            # Half precision would lose small divergences.
            wide = torch.promote_types(logits.dtype, torch.float32)
            yield part, logits.to(wide).log_softmax(dim=-1)


class Forwards:
    """Runs sequences through a causal language model in batches of like length.

    Padding is on the right, where no token of a causal model looks: no mask is needed.

    Args:
        model: Its weights may change between calls.
        batch_size: Most rows of a forward.
        max_batch_tokens: Most tokens of a forward, padding included.
        hidden: Whether hidden states are asked for.
    """

    def __init__(
        self, model: nn.Module, batch_size: int, max_batch_tokens: int, *, hidden: bool = False
    ) -> None:
        self._model = model
        self._device = next(model.parameters()).device
        self._batch_size = batch_size
        self._max_batch_tokens = max_batch_tokens
        self._hidden = hidden
        kept = inspect.signature(model.forward).parameters.get("logits_to_keep")
        self._model_keeps = kept is not None and "Tensor" in str(kept.annotation)

    def plan(
        self,
        sequences: Sequence[tuple[int, ...]],
        chosen: Sequence[Sequence[int]],
        first_numbers: Sequence[int],
        *,
        every: bool,
    ) -> Plan:
        """Sort, batch, pad and move to the device.

        Args:
            sequences: Token ids.
            chosen: Positions in each sequence, ascending.
            first_numbers: What the number of the first chosen position of each sequence is.
            every: Whether every position is needed; else only the chosen ones.
        """
        order = sorted(
            range(len(sequences)), key=lambda number: (-len(sequences[number]), sequences[number])
        )
        batches: list[Batch] = []
        start = 0
        while start < len(order):
            length = len(sequences[order[start]])
            n_rows = min(self._batch_size, max(1, self._max_batch_tokens // length))
            numbers = order[start : start + n_rows]
            batches.append(self._batch(numbers, sequences, chosen, first_numbers, every))
            start += n_rows
        return Plan(tuple(batches), len(sequences))

    def _batch(
        self,
        numbers: Sequence[int],
        sequences: Sequence[tuple[int, ...]],
        chosen: Sequence[Sequence[int]],
        first_numbers: Sequence[int],
        every: bool,
    ) -> Batch:
        inputs = torch.zeros((len(numbers), len(sequences[numbers[0]])), dtype=torch.long)
        for row, number in enumerate(numbers):
            inputs[row, : len(sequences[number])] = torch.tensor(sequences[number])
        needed = [range(len(sequences[n])) if every else chosen[n] for n in numbers]
        kept = sorted({position for positions in needed for position in positions})
        place = {position: column for column, position in enumerate(kept)}

        def points(of_rows: Sequence[Sequence[int]]) -> Points:
            found = [
                (
                    row,
                    column,
                    place[column],
                    _next(sequences[number], column),
                    number,
                    first_numbers[number] + i,
                )
                for row, (number, positions) in enumerate(zip(numbers, of_rows, strict=True))
                for i, column in enumerate(positions)
            ]
            table = torch.tensor(found, dtype=torch.long).reshape(-1, 6).T.contiguous()
            on_device = table[:4].to(self._device)
            return Points(*on_device, *table[4:].numpy())

        return Batch(
            inputs.to(self._device),
            torch.tensor(kept, dtype=torch.long, device=self._device),
            points(needed if every else [[]] * len(numbers)),
            points([chosen[number] for number in numbers]),
        )

    @torch.inference_mode()
    def run(self, plan: Plan) -> Iterator[Output]:
        """The forward of each batch, one at a time."""
        options: dict[str, Any] = {"output_hidden_states": True} if self._hidden else {}
        for batch in plan.batches:
            if self._model_keeps:
                output = self._model(
                    batch.inputs, use_cache=False, logits_to_keep=batch.kept, **options
                )
                logits = output.logits
            else:
                output = self._model(batch.inputs, use_cache=False, **options)
                logits = output.logits[:, batch.kept]
            # The first hidden state is the embedding, before any layer.
            yield Output(batch, logits, tuple(output.hidden_states[1:]) if self._hidden else ())


def spread(length: int, n_positions: int) -> tuple[int, ...]:
    """Up to `n_positions` of `length` positions, evenly spread, the last one always among them."""
    if n_positions >= length:
        return tuple(range(length))
    # From the end, because the last position is where a prompt's answer starts.
    return tuple(length - 1 - (i * length) // n_positions for i in reversed(range(n_positions)))


def _next(sequence: Sequence[int], position: int) -> int:
    return sequence[position + 1] if position + 1 < len(sequence) else -1
