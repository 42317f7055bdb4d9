"""Element-wise operators as stages: what a delta keeps, who is elected, how it is reduced.

Every such operator is one `Selector` per tensor: for each expert a `Selection` (the unary stage:
which magnitudes stay, with which probability), then whether signs are elected (joint), then what
the agreeing entries are divided by (reduce). It is interpreted here in torch, on any device, and
in one pass over memory by the C kernel (`mix.c`); both give the same bits.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from evomerge.datatypes import Knob
from evomerge.merging.draws import uniform
from evomerge.merging.magnitudes import (
    N_CODES,
    codes_of,
    count_codes,
    counts_from_above,
    ranks,
    total_counts,
)
from evomerge.merging.operators.knobs import KnobFacts
from evomerge.merging.operators.operator import NOTHING, Operator, Statistics, TensorContext
from evomerge.merging.pieces import Piece, Pieces

Reduce = Literal["sum", "mean"]


@dataclass(frozen=True, slots=True)
class Selection:
    """Which entries `x` of one delta stay: `low <= code(x) < high` and a draw below `p`.

    `p = floor + slope rank(x)`, and what stays is divided by it, so that its mean is kept. With
    `floor` 1 and `slope` 0 nothing is drawn.

    Attributes:
        low: The least magnitude code that stays.
        high: The first that does not any more.
        floor: Probability of staying at rank 0.
        slope: How much it grows to rank 1.
        ranks: Rank by code, fp32 `(N_CODES,)`; needed where `slope` is not 0.
    """

    low: int = 1
    high: int = N_CODES
    floor: float = 1.0
    slope: float = 0.0
    ranks: Tensor | None = None

    @property
    def draws(self) -> bool:
        """Whether chance has a part."""
        return self.floor != 1.0 or self.slope != 0.0


@dataclass(frozen=True, slots=True)
class Selector:
    """The stages of one tensor, with all knobs set.

    Attributes:
        selections: One per expert.
        elects: Whether only entries with the elected sign stay.
        divides: Whether what stays is divided by how many stay (early: by their weights' sum).
        scale: A factor of the result (lambda).
    """

    selections: tuple[Selection, ...]
    elects: bool
    divides: bool
    scale: float = 1.0


# Their place in an `Operator`: from statistics and knobs to the stages.
Select = Callable[[Statistics, TensorContext], Selector]
# From what is known of one delta (how many entries have at least a code, `(N_CODES,)`, and their
# ranks) and the knobs of its expert to what it keeps.
Unary = Callable[["Facts"], Selection]


@dataclass(frozen=True, slots=True)
class Facts:
    """What a unary stage may ask of its delta.

    Attributes:
        from_above: How many entries have at least this code, int64 `(N_CODES,)`, falling.
        knobs: The numeric knobs as they are for its expert.
        ranks: Rank by code, fp32 `(N_CODES,)`, if the operator asks for ranks.
    """

    from_above: Tensor
    knobs: dict[str, float]
    ranks: Tensor | None


def _statistics(counts: Tensor, *, with_ranks: bool) -> Statistics:
    """Of `(n_experts, N_CODES)` counts: entries from each code on, int64, and the ranks, fp32."""
    statistics = {"from_above": counts_from_above(counts)}
    if with_ranks:
        statistics["ranks"] = torch.stack([ranks(of_delta) for of_delta in counts])
    return statistics


def _counts(statistics: Statistics) -> Tensor:
    """The inverse of `_statistics`."""
    from_above = statistics["from_above"]
    return from_above - torch.nn.functional.pad(from_above[:, 1:], (0, 1))


def pipeline(
    name: str,
    unary: Unary,
    knobs: tuple[KnobFacts, ...],
    *,
    elects: bool = False,
    reduce: Reduce = "sum",
    early: bool = False,
    seeded: bool = False,
    counted: bool = True,
    ranked: bool = False,
) -> Operator:
    """An operator of these stages.

    Args:
        name: As recipes spell it.
        unary: What a delta keeps.
        knobs: Of the unary stage.
        elects: Whether signs are elected.
        reduce: The default of the knob `reduce`.
        early: Whether the coefficients take part in the election and in the mean.
        seeded: Whether the unary stage draws.
        counted: Whether it asks for magnitudes at all.
        ranked: Whether it asks for ranks.
    """
    names = [knob.name for knob in knobs]
    all_knobs = knobs
    if counted:
        all_knobs += (KnobFacts("ranking", "tensor", choices=("tensor", "model")),)
    if elects:
        all_knobs += (KnobFacts("reduce", reduce, choices=("mean", "sum")),)
    if early:
        all_knobs += (KnobFacts("scale", 1.0, -10.0, 10.0, "runtime"),)

    def scan(pieces: Pieces, context: TensorContext) -> Statistics:
        if not counted:
            return {"from_above": torch.zeros(len(context.experts), 1, dtype=torch.int64)}
        return _statistics(count_codes(pieces), with_ranks=ranked)

    def gather(statistics: Sequence[Statistics], knobs: Mapping[str, Knob]) -> Statistics:
        if knobs.get("ranking") != "model" or not statistics:
            return NOTHING
        return _statistics(total_counts([_counts(s) for s in statistics]), with_ranks=ranked)

    def select(statistics: Statistics, context: TensorContext) -> Selector:
        known = context.model if context.knobs.get("ranking") == "model" else statistics
        values = {knob: context.numbers(knob) for knob in names}
        facts = (
            Facts(
                from_above,
                {knob: of_experts[k] for knob, of_experts in values.items()},
                known["ranks"][k] if ranked else None,
            )
            for k, from_above in enumerate(known["from_above"])
        )
        return Selector(
            tuple(unary(of_delta) for of_delta in facts),
            elects,
            elects and context.knobs["reduce"] == "mean",
            context.number("scale") if early else 1.0,
        )

    def prepare(piece: Piece, statistics: Statistics, context: TensorContext) -> list[Tensor]:
        return selected(piece, select(statistics, context), context)

    return Operator(
        name,
        prepare,
        scan,
        gather,
        select=select,
        knobs=all_knobs,
        seeded=seeded,
        early=early,
    )


def selected(piece: Piece, selector: Selector, context: TensorContext) -> list[Tensor]:
    """The bases of a piece.

    With `v_k` what delta k keeps, and weights `w` (late: ones)::

        elect   g = sign(sum_k w_k v_k), + where 0
        agree   a_k = [w_k v_k g > 0]
        reduce  D_k = a_k v_k / sum_j a_j |w_j|          "mean"; "sum" does not divide

    Late, `sum_j a_j |w_j|` is how many agree. For weights of one sign it is what mergekit divides
    by; with mixed signs its own divisor comes near 0, and this one never does.
    """
    weights = context.weights or (1.0,) * len(piece.deltas)
    kept = [
        _kept(delta, selection, context, k, piece.start)
        for k, (delta, selection) in enumerate(zip(piece.deltas, selector.selections, strict=True))
    ]
    if selector.elects:
        votes = torch.zeros_like(kept[0])
        for w, v in zip(weights, kept, strict=True):
            votes.add_(v, alpha=w)
        g = torch.where(votes >= 0.0, 1.0, -1.0)
        agree = [
            (v * g > 0.0) if w > 0.0 else (v * g < 0.0) if w < 0.0 else torch.zeros_like(v) > 0.0
            for w, v in zip(weights, kept, strict=True)
        ]
        if selector.divides:
            divisor = torch.zeros_like(votes)
            for w, a in zip(weights, agree, strict=True):
                divisor.add_(a.to(divisor.dtype), alpha=abs(w))
            kept = [v / divisor for v in kept]
        kept = [torch.where(a, v, 0.0) for a, v in zip(agree, kept, strict=True)]
    return [v * selector.scale for v in kept] if selector.scale != 1.0 else kept


def _kept(
    delta: Tensor, selection: Selection, context: TensorContext, k: int, start: int
) -> Tensor:
    codes = codes_of(delta)
    stays = (codes >= selection.low) & (codes < selection.high)
    if not selection.draws:
        return torch.where(stays, delta, 0.0)
    p = torch.full_like(delta, selection.floor)
    if selection.slope != 0.0 and selection.ranks is not None:
        of_entries = selection.ranks.to(delta.device)[codes.long()]
        p = (of_entries * selection.slope).add_(selection.floor)
    u = uniform(context.seed, context.name, k, start, delta.numel(), delta.device)
    return torch.where(stays & (u < p), delta / p, 0.0)
