"""The experts' changes as they are merged: rounded to the base's dtype, read slice by slice."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from evomerge.checkpoints.experts import Expert
from evomerge.checkpoints.reading import Checkpoint
from evomerge.errors import CheckpointError
from evomerge.merging.pieces import Flat, piece_length, spans


@dataclass(frozen=True, slots=True)
class RoundedDelta:
    """The change that an expert makes to one weight, flat; see `Flat`."""

    expert: Expert
    name: str
    dtype: torch.dtype

    def __getitem__(self, elements: slice) -> Tensor:
        """Read, round.

        Raises:
            CheckpointError: The change is NaN or infinite, or too large for the dtype.
        """
        delta = self.expert.delta(self.name, elements.start, elements.stop)
        if delta is None:
            return torch.zeros(elements.stop - elements.start, dtype=self.dtype)
        rounded = delta.to(self.dtype)
        if not bool(torch.isfinite(rounded).all()):
            raise CheckpointError(
                f"the change that an expert makes must be finite, but {self.expert.name} changes "
                f"{self.name} by NaN or infinity (as {self.dtype}): use a checkpoint from before "
                "its training diverged"
            )
        return rounded


def rounded_deltas(base: Checkpoint, experts: Sequence[Expert], name: str) -> list[Flat | None]:
    """The change of one weight by every expert; None if it is zero throughout.

    Reads until the first element that changes.

    Raises:
        CheckpointError: A change is NaN or infinite, or too large for the base's dtype.
    """
    facts = base.tensors[name]
    length = piece_length(len(experts))

    def rounded(expert: Expert) -> Flat | None:
        delta = RoundedDelta(expert, name, getattr(torch, facts.dtype))
        pieces = (delta[span] for span in spans(facts.n_parameters, length))
        return delta if any(bool(piece.any()) for piece in pieces) else None

    return [rounded(expert) for expert in experts]
