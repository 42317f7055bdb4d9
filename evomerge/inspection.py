"""What the experts change, before any search: how much, where, how alike, and what looks wrong.

One pass over the checkpoints, tensor by tensor and piece by piece. Every figure is a ratio of sums
that are kept by group (a kind of tensor in a layer), so that any part of the model can be asked.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evomerge.checkpoints.anatomy import Anatomy
from evomerge.checkpoints.compatibility import disparity_warning, identical_to_base
from evomerge.checkpoints.experts import Expert
from evomerge.checkpoints.reading import Checkpoint
from evomerge.datatypes import FloatArray, Group
from evomerge.merging.deltas import rounded_deltas
from evomerge.merging.magnitudes import code_of_top, codes_of, count_codes, counts_from_above
from evomerge.merging.pieces import in_pieces, piece_length
from evomerge.merging.serial_threads import in_order

Counts = NDArray[np.int64]

TOP = 0.2
"""The share of each tensor's entries that TIES keeps by default (Yadav et al. 2023)."""

# Fine-tunes change their weights by a few per cent; two models trained apart differ by 1.41 times
# their norm, and one that was transformed at random against merging (MergeLock) by as much, in the
# transformed part only.
_FAR = 0.7
_TRANSFORMED = 0.5
_TRANSFORMED_RATIO = 5.0
# Changes learned apart are nearly orthogonal; beyond this most of both is one common step.
_COMMON = 0.9
_PARALLEL = 1.0 - 1e-6
_NEARER = 0.8
# Mapped pages that were read count as memory until they are let go of.
_RELEASE_EVERY_BYTES = 1 << 30

_ATTENTION = ("attn.q", "attn.k", "attn.v", "attn.qkv", "attn.o", "attn.other")
_MLP = ("mlp.gate", "mlp.up", "mlp.down", "mlp.other")
# A transform of one is undone by the other.
_PAIRED = (("attn.q", "attn.k", "attn.qkv"), ("attn.v", "attn.o", "attn.qkv"))


@dataclass(frozen=True, slots=True, eq=False)
class Signs:
    """How often experts change the same entry in opposite directions.

    Attributes:
        both: `(n_experts, n_experts)` entries that both change; on the diagonal those that one
            changes.
        opposed: `(n_experts, n_experts)` of them with different signs.
        n_shared: Entries that at least two experts change.
        n_disputed: Of them with both signs.
    """

    both: Counts
    opposed: Counts
    n_shared: int = 0
    n_disputed: int = 0

    @classmethod
    def none(cls, n_experts: int) -> Self:
        """Of no entries."""
        zeros = np.zeros((n_experts, n_experts), dtype=np.int64)
        return cls(zeros, zeros)

    @classmethod
    def of(cls, signs: Tensor) -> Self:
        """From fp32 signs, `(n_experts, at most 2^24 entries)`: sums of ones are exact."""
        changed = signs.abs()
        both = changed @ changed.T
        opposed = (both - signs @ signs.T) / 2
        n_changing = changed.sum(0)
        disputed = signs.sum(0).abs() < n_changing
        return cls(
            both.numpy().astype(np.int64),
            opposed.numpy().astype(np.int64),
            int((n_changing >= 2).sum()),
            int(disputed.sum()),
        )

    def __add__(self, other: Self) -> Self:
        return type(self)(
            self.both + other.both,
            self.opposed + other.opposed,
            self.n_shared + other.n_shared,
            self.n_disputed + other.n_disputed,
        )

    @property
    def conflict(self) -> float:
        """The share of the entries that at least two change whose signs differ; NaN of none."""
        return self.n_disputed / self.n_shared if self.n_shared else float("nan")

    @property
    def conflicts(self) -> FloatArray:
        """The same for each pair of experts, `(n_experts, n_experts)`."""
        return _divided(self.opposed.astype(np.float64), self.both.astype(np.float64))


@dataclass(frozen=True, slots=True, eq=False)
class Tally:
    """Sums over some tensors.

    Attributes:
        n_parameters: How many entries.
        products: `(1 + n_experts, 1 + n_experts)` inner products, the base first, then the
            experts' changes, in float64.
        signs: Of all entries.
        top: Of the largest `TOP` of each tensor's entries, for each expert its own.
        equal: `(n_experts, n_experts)` whether two changes are the same number for number.
    """

    n_parameters: int
    products: FloatArray
    signs: Signs
    top: Signs
    equal: NDArray[np.bool_]

    @classmethod
    def none(cls, n_experts: int) -> Self:
        """Over no tensors."""
        return cls(
            0,
            np.zeros((n_experts + 1, n_experts + 1)),
            Signs.none(n_experts),
            Signs.none(n_experts),
            np.ones((n_experts, n_experts), dtype=np.bool_),
        )

    def __add__(self, other: Self) -> Self:
        return type(self)(
            self.n_parameters + other.n_parameters,
            self.products + other.products,
            self.signs + other.signs,
            self.top + other.top,
            self.equal & other.equal,
        )

    @property
    def base_norm(self) -> float:
        """Euclidean norm of the base's weights."""
        return float(np.sqrt(self.products[0, 0]))

    @property
    def norms(self) -> FloatArray:
        """Euclidean norms of the changes, `(n_experts,)`."""
        return np.sqrt(np.diagonal(self.products)[1:])

    @property
    def relative(self) -> FloatArray:
        """Norms of the changes over the base's, `(n_experts,)`; NaN where the base is zero."""
        return _divided(self.norms, np.full_like(self.norms, self.base_norm))

    @property
    def zeros(self) -> FloatArray:
        """The share of entries that an expert leaves exactly as they are, `(n_experts,)`."""
        changed = np.diagonal(self.signs.both).astype(np.float64)
        return 1.0 - _divided(changed, np.full_like(changed, self.n_parameters))

    @property
    def cosines(self) -> FloatArray:
        """Between the experts' changes, `(n_experts, n_experts)`; NaN where one is zero."""
        return _divided(self.products[1:, 1:], np.outer(self.norms, self.norms))

    @property
    def mean_cosine(self) -> float:
        """Over all pairs of experts that change something; NaN if there is no pair."""
        return _mean_off_diagonal(self.cosines)

    @property
    def weight_cosines(self) -> FloatArray:
        """Between each expert's weights themselves and the base's, `(n_experts,)`."""
        W0, t = self.products[0, 0], np.diagonal(self.products)[1:]
        W0_t = self.products[0, 1:]
        return _divided(W0 + W0_t, np.sqrt(np.maximum(W0 * (W0 + 2.0 * W0_t + t), 0.0)))

    @property
    def distances(self) -> FloatArray:
        """Between the experts' weights, `(n_experts, n_experts)`."""
        gram = self.products[1:, 1:]
        squares = np.diagonal(gram)
        squared = squares[:, None] + squares[None, :] - 2.0 * gram
        return np.sqrt(np.maximum(squared, 0.0))


@dataclass(frozen=True, slots=True, eq=False)
class Inspection:
    """What was found: one tally per group, in order, and what the user should look at."""

    experts: tuple[str, ...]
    groups: tuple[Group, ...]
    tallies: tuple[Tally, ...]
    warnings: tuple[str, ...]

    @property
    def total(self) -> Tally:
        """Over the whole model."""
        return self._sum(self.tallies)

    def of_kinds(self, kinds: Collection[str]) -> Tally:
        """Over all groups of these kinds."""
        pairs = zip(self.groups, self.tallies, strict=True)
        return self._sum(tally for group, tally in pairs if group.kind in kinds)

    def by_kind(self) -> dict[str, Tally]:
        """Over all layers, in the order of the groups."""
        kinds = dict.fromkeys(group.kind for group in self.groups)
        return {kind: self.of_kinds((kind,)) for kind in kinds}

    def by_layer(self) -> dict[int | None, Tally]:
        """Over all kinds; None, the last, is what lies outside the stack."""
        tallies: dict[int | None, Tally] = {}
        for group, tally in zip(self.groups, self.tallies, strict=True):
            before = tallies.get(group.layer)
            tallies[group.layer] = tally if before is None else before + tally
        return dict(sorted(tallies.items(), key=lambda item: (item[0] is None, item[0] or 0)))

    def _sum(self, tallies: Iterable[Tally]) -> Tally:
        total = Tally.none(len(self.experts))
        for tally in tallies:
            total = total + tally
        return total


def inspect(base: Checkpoint, experts: Sequence[Expert], anatomy: Anatomy) -> Inspection:
    """Compare the experts' changes as they would be merged: rounded to the base's dtype.

    Memory is bounded by pieces of a tensor, whatever the size of the model; as many threads as
    torch uses read at once.

    Raises:
        CheckpointError: A weight is NaN or infinite.
    """
    n = len(experts)
    tallies = [Tally.none(n) for _ in anatomy.groups]
    n_bytes_mapped = 0
    tallied = in_order(lambda name: _tally(base, experts, name), base.tensors)
    for name, tally in zip(base.tensors, tallied, strict=True):
        group = anatomy.roles[name].group
        tallies[group] = tallies[group] + tally
        n_bytes_mapped += (n + 1) * base.tensors[name].n_bytes
        if n_bytes_mapped > _RELEASE_EVERY_BYTES:
            n_bytes_mapped = 0
            _release(base, experts)
    _release(base, experts)
    found = Inspection(
        tuple(expert.name for expert in experts), anatomy.groups, tuple(tallies), warnings=()
    )
    opened = [warning for expert in experts for warning in expert.warnings]
    # What opening an expert has found already is not said twice.
    warnings = tuple(dict.fromkeys([*opened, *findings(found)]))
    return Inspection(found.experts, found.groups, found.tallies, warnings)


def findings(inspection: Inspection) -> list[str]:
    """Signs that a search would be wasted, each with its remedy."""
    names, total = inspection.experts, inspection.total
    found = [
        identical_to_base(name)
        for name, norm in zip(names, total.norms.tolist(), strict=True)
        if norm == 0
    ]
    found += _twins(names, total)
    found += _foreign(inspection)
    found += _relatives(names, total)
    disparity = disparity_warning(dict(zip(names, total.norms.tolist(), strict=True)))
    return found if disparity is None else [*found, disparity]


def _twins(names: Sequence[str], total: Tally) -> list[str]:
    """Experts that are one expert."""
    found = []
    for i, j in _pairs_that_change(total):
        if total.equal[i, j]:
            found.append(
                f"experts must differ, but {names[i]} and {names[j]} change every weight alike: "
                "drop one"
            )
        elif total.cosines[i, j] > _PARALLEL:
            ratio = total.norms[j] / total.norms[i]
            found.append(
                f"experts must differ in direction, but the change of {names[j]} is {ratio:.3g} "
                f"times that of {names[i]}: drop one"
            )
    return found


def _foreign(inspection: Inspection) -> list[str]:
    """Experts that do not come from this base, or were transformed so that no merge works."""
    found = []
    attentions = inspection.of_kinds(_ATTENTION).relative
    mlps = inspection.of_kinds(_MLP).relative
    inside = inspection.of_kinds(_ATTENTION + _MLP)
    paired = np.stack([inspection.of_kinds(kinds).relative for kinds in _PAIRED])
    # Comparisons with NaN (a part that the model lacks) are false.
    for k, name in enumerate(inspection.experts):
        attention = float(np.nanmax([*paired[:, k], -np.inf]))
        mlp = float(mlps[k])
        if attention >= _TRANSFORMED and attention >= _TRANSFORMED_RATIO * mlp:
            found.append(
                "an expert must lie near the base in every part, but the attention weights of "
                f"{name} differ by {_percent(attention)} of their norm and its MLP by "
                f"{_percent(mlp)}, as after random transforms that forbid merging (MergeLock): "
                "ask its author for the original, or merge its MLP only"
            )
        elif mlp >= _TRANSFORMED and mlp >= _TRANSFORMED_RATIO * attentions[k]:
            found.append(
                f"an expert must lie near the base in every part, but the MLP of {name} differs by "
                f"{_percent(mlp)} of its norm and its attention by {_percent(attentions[k])}, as "
                "after a permutation of neurons: ask its author for the original, or merge its "
                "attention only"
            )
        elif inside.relative[k] >= _FAR:
            found.append(
                f"an expert must be fine-tuned from the base, but {name} differs from it by "
                f"{_percent(float(inside.relative[k]))} of its norm (cosine of the weights "
                f"{inside.weight_cosines[k]:.2f}): give the base that it was trained from"
            )
    return found


def _relatives(names: Sequence[str], total: Tally) -> list[str]:
    """Experts with a nearer common ancestor than the base."""
    cosines, distances, norms = total.cosines, total.distances, total.norms
    pairs = [
        (i, j)
        for i, j in _pairs_that_change(total)
        if not total.equal[i, j] and cosines[i, j] <= _PARALLEL
    ]
    found = []
    common = [(i, j) for i, j in pairs if cosines[i, j] > _COMMON]
    if common:
        listed = ", ".join(f"{names[i]} and {names[j]} ({cosines[i, j]:.2f})" for i, j in common)
        found.append(
            "the base should be the nearest model that experts come from, but most of the change "
            f"is common to {listed} (cosine): give the model that they were fine-tuned from as "
            "base"
        )
    for i, j in pairs:
        far = max(norms[i], norms[j])
        if (i, j) not in common and distances[i, j] < _NEARER * min(norms[i], norms[j]):
            found.append(
                "the base should be the nearest model that experts come from, but "
                f"{names[i]} and {names[j]} are nearer to each other ({distances[i, j]:.3g}) than "
                f"to it ({min(norms[i], norms[j]):.3g} and {far:.3g}): give the model that they "
                "were fine-tuned from as base"
            )
    return found


def _pairs_that_change(total: Tally) -> list[tuple[int, int]]:
    return [
        (i, j) for i, j in combinations(range(len(total.norms)), 2) if total.norms[[i, j]].all()
    ]


def _tally(base: Checkpoint, experts: Sequence[Expert], name: str) -> Tally:
    n, weight = len(experts), base.read(name)
    products = torch.zeros(n + 1, n + 1, dtype=torch.float64)
    signs = top = Signs.none(n)
    equal = torch.ones(n, n, dtype=torch.bool)
    deltas = rounded_deltas(base, experts, name)
    pieces = in_pieces(weight.reshape(-1), deltas, piece_length(n))
    kept: Tensor | None = None
    if any(delta is not None for delta in deltas):
        counts = count_codes(pieces)
        kept = torch.tensor([[code_of_top(counts_from_above(count), TOP)] for count in counts])
    for piece in pieces():
        W0 = piece.base.double().unsqueeze(0)
        if kept is None:
            products[:1, :1] += W0 @ W0.T
            continue
        t = torch.stack(list(piece.deltas))
        both = torch.cat([W0, t.double()])
        products += both @ both.T
        for i, j in combinations(range(n), 2):
            if equal[i, j] and not torch.equal(t[i], t[j]):
                equal[i, j] = equal[j, i] = False
        sign = t.sign()
        signs = signs + Signs.of(sign)
        top = top + Signs.of(sign * (codes_of(t) >= kept))
    return Tally(weight.numel(), products.numpy(), signs, top, equal.numpy())


def _release(base: Checkpoint, experts: Sequence[Expert]) -> None:
    base.release()
    for expert in experts:
        expert.release()


def _divided(x: FloatArray, y: FloatArray) -> FloatArray:
    """Elementwise; NaN where the divisor is zero."""
    quotient: FloatArray = np.full(np.shape(x), np.nan)
    np.divide(x, y, out=quotient, where=y != 0)
    return quotient


def _mean_off_diagonal(matrix: FloatArray) -> float:
    values = matrix[~np.eye(len(matrix), dtype=np.bool_)]
    values = values[np.isfinite(values)]
    return float(values.mean()) if values.size else float("nan")


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"
