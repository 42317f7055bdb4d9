"""The low-rank changes that several adapters make to one weight, in factors."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from evomerge.checkpoints.adapters import Adapter
from evomerge.checkpoints.experts import Expert
from evomerge.checkpoints.reading import Checkpoint
from evomerge.merging.low_rank.core import Core
from evomerge.merging.pieces import spans

# Elements of a full expert that are looked at together.
_LENGTH = 1 << 20


class LowRank(NamedTuple):
    """A change of a weight, `left.T @ right`: both factors lie row by row, a row for each rank.

    Attributes:
        left: `B` transposed, `(rank, n_rows)`.
        right: `A`, `(rank, n_columns)`.
    """

    left: Tensor
    right: Tensor

    @property
    def rank(self) -> int:
        """How many products of a column and a row it is the sum of, at most its true rank."""
        return len(self.right)


@dataclass(frozen=True, eq=False)
class Stack:
    """The factors of all experts for one weight, one below the other.

    Expert k changes the weight by `scales[k] * B_k @ A_k`. What it leaves alone has rank 0.

    Attributes:
        left: All `B_k` transposed, `(sum of ranks, n_rows)`.
        right: All `A_k`, `(sum of ranks, n_columns)`. Both in bfloat16 where that loses nothing,
            else in fp32.
        ranks: One per expert, in order.
        scales: One per expert.
    """

    left: Tensor
    right: Tensor
    ranks: tuple[int, ...]
    scales: tuple[float, ...]

    @property
    def shape(self) -> tuple[int, int]:
        """Of the weight."""
        return self.left.shape[1], self.right.shape[1]

    @property
    def n_bytes(self) -> int:
        """What the factors take."""
        return self.left.nbytes + self.right.nbytes

    def rows(self, k: int) -> slice:
        """Where the factors of expert k lie."""
        stop = sum(self.ranks[: k + 1])
        return slice(stop - self.ranks[k], stop)

    def pair(self, k: int) -> LowRank:
        """The factors of expert k in fp32, half of the scale in each: `left.T @ right = t_k`.

        For operators that look at the factors one by one: whoever trained an adapter with another
        alpha has not moved its scale to one side.
        """
        rows, half = self.rows(k), abs(self.scales[k]) ** 0.5
        sign = -1.0 if self.scales[k] < 0 else 1.0
        return LowRank(sign * half * self.left[rows].float(), half * self.right[rows].float())

    def pairs(self) -> Iterator[tuple[int, LowRank]]:
        """The number of every expert that changes the weight, and its factors."""
        return ((k, self.pair(k)) for k, rank in enumerate(self.ranks) if rank)

    def concatenated(self, weights: Sequence[float]) -> LowRank | None:
        """`sum_k weights[k] t_k` exactly, or None if no expert with a weight changes anything.

        `[c_1 s_1 B_1 | c_2 s_2 B_2 | ..] @ [A_1; A_2; ..]`, CAT of LoRA Soups (Prabhakar et al.
        2024, arXiv:2410.13025): what has the weight 0 is left out and costs nothing.
        """
        chosen = [k for k, rank in enumerate(self.ranks) if rank and weights[k] != 0.0]
        if not chosen:
            return None
        left, right = self.left, self.right
        if len(chosen) < sum(rank > 0 for rank in self.ranks):
            left, right = (torch.cat([f[self.rows(k)] for k in chosen]) for f in (left, right))
        factors = [weights[k] * self.scales[k] for k in chosen for _ in range(self.ranks[k])]
        scale = torch.tensor(factors, dtype=torch.float32, device=left.device)
        return LowRank(left.float() * scale[:, None], right.float())

    @cached_property
    def core(self) -> Core:
        """The changes in the spaces that all factors span; found when first asked for, and kept."""
        return Core.of([self.pair(k) if rank else None for k, rank in enumerate(self.ranks)])


def stack_of(base: Checkpoint, experts: Sequence[Expert], name: str) -> Stack | None:
    """The factors of one weight; None if nobody changes it, or somebody does not with factors.

    A pair with a factor of zeros (an adapter as it is before its training) changes nothing.

    Raises:
        CheckpointError: A factor is NaN or infinite.
    """
    changing = {}
    for k, expert in enumerate(experts):
        factors = expert.factors(name) if isinstance(expert, Adapter) else None
        if factors is not None:
            A, B, scale = factors
            if scale != 0.0 and bool(A.any()) and bool(B.any()):
                changing[k] = (A, B, scale)
        elif _changes(base, expert, name):
            return None
    if not changing:
        return None
    ranks = tuple(len(changing[k][0]) if k in changing else 0 for k in range(len(experts)))
    scales = tuple(changing[k][2] if k in changing else 0.0 for k in range(len(experts)))
    return Stack(
        _narrow(torch.cat([B.T for _, B, _ in changing.values()])),
        _narrow(torch.cat([A for A, _, _ in changing.values()])),
        ranks,
        scales,
    )


def _changes(base: Checkpoint, expert: Expert, name: str) -> bool:
    """Whether an expert changes a weight, read until the first element that it changes."""
    for span in spans(base.tensors[name].n_parameters, _LENGTH):
        delta = expert.delta(name, span.start, span.stop)
        if delta is not None and bool(delta.any()):
            return True
    return False


def _narrow(factors: Tensor) -> Tensor:
    """In bfloat16 if all values are the same there."""
    narrow = factors.bfloat16()
    return narrow if torch.equal(narrow.float(), factors) else factors.contiguous()
