"""Localize-and-Stitch without data: every expert's largest changes, stitched by their mean."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from evomerge.datatypes import Knob
from evomerge.merging.magnitudes import (
    code_of_top,
    codes_of,
    count_codes,
    counts_from_above,
    total_counts,
)
from evomerge.merging.operators.knobs import KnobFacts
from evomerge.merging.operators.operator import NOTHING, Operator, Statistics, TensorContext
from evomerge.merging.pieces import Piece, Pieces

_EMBEDDINGS = ("embed", "head")


def _scan(pieces: Pieces, context: TensorContext) -> Statistics:
    """The magnitudes of every delta, counted by code; not of a tensor that is left out."""
    return NOTHING if _is_left_out(context) else {"counts": count_codes(pieces)}


def _gather(
    of_tensors: Sequence[Statistics],
    knobs: Mapping[str, Knob],  # noqa: ARG001 (the operators' common signature)
) -> Statistics:
    """How many entries of each whole expert have at least a code, `(n_experts, N_CODES)` int64."""
    counts = [statistics["counts"] for statistics in of_tensors if statistics]
    return {"from_above": counts_from_above(total_counts(counts))} if counts else NOTHING


def _prepare(
    piece: Piece,
    statistics: Statistics,  # noqa: ARG001 (the operators' common signature)
    context: TensorContext,
) -> list[Tensor]:
    """He et al. 2024, Localize-and-Stitch: Efficient Model Merging via Sparse Task Arithmetic.

    Its dataless form, with one threshold per expert over the whole model::

        m_i = [|t_i| is among the largest `density` of expert i]
        D_i = m_i t_i / max(1, sum_j m_j)

    The authors keep 5 % in language models (1 % where masks are trained on data, which is another
    method), MergeBench 10 %. They keep strictly more than a threshold, which with the many equal
    magnitudes of bfloat16 may be far fewer; here all that equal the last are kept. Their language
    models localize in the blocks only: by default (`embeddings` is `base`) embeddings and head stay
    the base's and do not count; with `localize` they are tensors like others. Frozen: masks and
    counts are of unscaled deltas.
    """
    if _is_left_out(context):
        return [torch.zeros_like(t) for t in piece.deltas]
    from_above = context.model["from_above"]
    densities = context.numbers("density")
    masks = [
        (codes_of(t) >= code_of_top(of_expert, density)).float()
        for t, of_expert, density in zip(piece.deltas, from_above, densities, strict=True)
    ]
    count = masks[0].clone()
    for mask in masks[1:]:
        count += mask
    count.clamp_(min=1.0)
    return [mask.mul_(t).div_(count) for mask, t in zip(masks, piece.deltas, strict=True)]


def _is_left_out(context: TensorContext) -> bool:
    return context.kind in _EMBEDDINGS and context.knobs["embeddings"] == "base"


OPERATORS = (
    Operator(
        "localize_and_stitch",
        _prepare,
        _scan,
        _gather,
        knobs=(
            KnobFacts("density", 0.1, scope="runtime", per_expert=True),
            KnobFacts("embeddings", "base", choices=("base", "localize")),
        ),
    ),
)
