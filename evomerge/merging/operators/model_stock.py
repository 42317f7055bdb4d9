"""Model Stock: how far towards the experts' mean the angle between them says to go."""

from collections import defaultdict
from itertools import combinations_with_replacement

from torch import Tensor

from evomerge.merging.inner_product import inner_product
from evomerge.merging.operators.operator import Operator, TensorContext
from evomerge.merging.pieces import Piece, Pieces


def _scan(
    pieces: Pieces,
    context: TensorContext,  # noqa: ARG001 (the operators' common signature)
) -> float:
    """The ratio `r` of Jang et al. 2024 (arXiv:2403.19522).

    With `cos` the mean of the pairwise cosines of N deltas, `r = N cos / (1 + (N - 1) cos)`. A
    negative `cos` gives r = 0 (the formula diverges at -1 / (N - 1)), a delta of zero has the
    cosine 0 to the others, and for a single delta r = 1.
    """
    products: dict[tuple[int, int], float] = defaultdict(float)
    for piece in pieces():
        for i, j in combinations_with_replacement(range(len(piece.deltas)), 2):
            products[i, j] = inner_product(piece.deltas[i], piece.deltas[j], products[i, j])
    cosines = [
        product / (products[i, i] * products[j, j]) ** 0.5
        if products[i, i] and products[j, j]
        else 0.0
        for (i, j), product in products.items()
        if i != j
    ]
    N = sum(i == j for i, j in products)
    cos = max(0.0, sum(cosines) / len(cosines)) if cosines else 1.0
    return N * cos / (1 + (N - 1) * cos)


def _prepare(
    piece: Piece,
    r: float,
    context: TensorContext,  # noqa: ARG001 (the operators' common signature)
) -> list[Tensor]:
    """Bases whose plain sum is `r mean_i(W0 + t_i) + (1 - r) W0`, per tensor: `D_i = r / N t_i`."""
    return [t * (r / len(piece.deltas)) for t in piece.deltas]


model_stock = Operator("model_stock", _prepare, _scan)
