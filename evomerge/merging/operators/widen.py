"""WIDEN: how much of each delta a column of a weight gets, by how far it moved the column."""

import numpy as np
import torch
from torch import Tensor

from evomerge.merging.operators.knobs import KnobFacts
from evomerge.merging.operators.operator import Operator, Statistics, TensorContext
from evomerge.merging.pieces import BLOCK, Piece, Pieces

# A delta is parallel to its column if the sine of their angle is below this: the rest is rounding.
_PARALLEL = 1e-6


def _scan(pieces: Pieces, context: TensorContext) -> Statistics:
    """The weight of every column in every expert, `(n_experts, n_columns)` fp32.

    A tensor of less than two dimensions has one column per element.
    """
    if len(context.shape) < 2:
        changes = [_magnitudes(pieces)]
    else:
        changes = list(_column_changes(pieces, context))
    scores = [_scores(c, context.number("threshold"), context.number("score")) for c in changes]
    return {"weights": torch.from_numpy(sum(scores) / len(scores)).float()}


def _prepare(piece: Piece, statistics: Statistics, context: TensorContext) -> list[Tensor]:
    """The bases of WIDEN (Yu et al. 2024, Weight Disentanglement, arXiv:2408.03092).

    With the columns `W[:, j]` of a weight, `m = |W[:, j]|`, and N experts::

        magnitude   dm_i = |m_i - m_0|                         of W_i = W0 + t_i and of W0
        direction   dD_i = 1 - cos(W_i[:, j], W0[:, j])
        rank        r = rank of the change among the n columns of its expert, from below, / n
        score       softmax of r over the experts; `score` where r > `threshold` mean_j r
        D_i         = t_i (score of magnitude + score of direction) / 2, column by column

    The paper's t and s are `threshold` and `score`, both 1 by default. Vectors rank `|t_i|` element
    by element and have one score. A column of an embedding is what it says of one token: it is
    taken transposed, as in the authors' code, and an output head is not. The weights depend on
    whole weights, not on deltas alone: scaling all deltas may change them; their sum over experts
    may be up to N.

    Deviations from the authors' code: equal changes share their mean rank (there: the order of the
    columns); changes are computed from `W0` and `t` without the cancellation of `1 - cos` (a
    fine-tune's 1e-6 is all rounding in fp32); a column of zeros has the direction of nothing, so
    that `dD` is 0 if it stays zero and else 1 (there: NaN).
    """
    columns = torch.from_numpy(_columns_of(piece.start, piece.base.numel(), context))
    weights = statistics["weights"]
    return [t * of_columns[columns] for t, of_columns in zip(piece.deltas, weights, strict=True)]


def _columns_of(start: int, n: int, context: TensorContext) -> np.ndarray:
    """The columns in which elements `start` to `start + n` of the flattened tensor lie."""
    places = np.arange(start, start + n)
    if len(context.shape) < 2:
        return places
    row_length = context.n_elements // context.shape[0]
    return places // row_length if context.kind == "embed" else places % row_length


def _magnitudes(pieces: Pieces) -> np.ndarray:
    """`|t|` of every delta, `(n_experts, n_elements)`."""
    return np.concatenate([torch.stack(list(p.deltas)).abs().numpy() for p in pieces()], axis=1)


def _column_changes(pieces: Pieces, context: TensorContext) -> tuple[np.ndarray, np.ndarray]:
    """How far the columns' magnitudes and directions moved, `(n_experts, n_columns)` each.

    With `a` a column of the base and `t` of a delta::

        dm = |2 a.t + t.t| / (|a| + |a + t|)
        dD = (|a|^2 |t|^2 - (a.t)^2) / (|a| |a + t| (|a| |a + t| + a.(a + t)))
    """
    aa, at, tt = _column_products(pieces, context)
    bb = np.maximum(aa + 2.0 * at + tt, 0.0)
    a, b = np.sqrt(aa), np.sqrt(bb)
    magnitude = _ratio(np.abs(2.0 * at + tt), a + b)

    across = np.maximum(aa * tt - at**2, 0.0)
    across[across <= _PARALLEL**2 * aa * tt] = 0.0
    norms, inner = a * b, aa + at
    near = inner > 0.0  # else 1 - cos does not cancel
    direction = _ratio(
        np.where(near, across, norms - inner), norms * np.where(near, norms + inner, 1.0)
    )
    direction[(aa == 0.0) != (bb == 0.0)] = 1.0
    return magnitude, direction


def _ratio(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """`x / y`, 0 where y is 0."""
    quotient = np.zeros_like(y)
    np.divide(x, y, out=quotient, where=y > 0.0)
    return quotient


def _column_products(
    pieces: Pieces, context: TensorContext
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Inner products `a.a` `(n_columns,)`, `a.t` and `t.t` `(n_experts, n_columns)`, float64.

    Summed block by block in the order of the elements, whatever the length of the pieces.
    """
    n_rows = context.shape[0]
    n_columns = n_rows if context.kind == "embed" else context.n_elements // n_rows
    totals: list[np.ndarray] = []
    for piece in pieces():
        if not totals:
            totals = [np.zeros(n_columns) for _ in range(1 + 2 * len(piece.deltas))]
        for start in range(0, piece.base.numel(), BLOCK):
            block = slice(start, min(start + BLOCK, piece.base.numel()))
            columns = _columns_of(piece.start + start, block.stop - start, context)
            first = int(columns.min())
            a = piece.base[block].double().numpy()
            deltas = [delta[block].double().numpy() for delta in piece.deltas]
            products = [a * a, *(a * t for t in deltas), *(t * t for t in deltas)]
            for total, product in zip(totals, products, strict=True):
                found = np.bincount(columns - first, weights=product)
                total[first : first + len(found)] += found
    n_experts = len(totals) // 2
    return totals[0], np.stack(totals[1 : 1 + n_experts]), np.stack(totals[1 + n_experts :])


def _scores(changes: np.ndarray, threshold: float, score: float) -> np.ndarray:
    """Scores of `(n_experts, n)` changes: softmax of ranks, or `score` for the foremost."""
    n = changes.shape[1]
    doubled = np.stack([_doubled_ranks(of_expert) for of_expert in changes])
    powers = np.exp(doubled / (2 * n))
    softmax = powers / np.add.reduce(powers, axis=0)
    # The mean of doubled ranks is n - 1, exactly.
    return np.where(doubled > threshold * (n - 1), score, softmax)


def _doubled_ranks(values: np.ndarray) -> np.ndarray:
    """Twice the rank from 0, a whole number: equal values share the mean of theirs."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    below = counts.cumsum() - counts
    return np.asarray((2 * below + counts - 1)[places])


OPERATORS = (
    Operator(
        "widen",
        _prepare,
        _scan,
        knobs=(KnobFacts("threshold", 1.0, 0.0, 2.0), KnobFacts("score", 1.0, 0.0, 2.0)),
    ),
)
