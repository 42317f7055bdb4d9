"""Model Stock: how far towards the experts' mean the angle between them says to go."""

from collections.abc import Sequence
from itertools import combinations

import torch

from evomerge.merging.inner_product import gram_matrix
from evomerge.merging.operators.knobs import KnobFacts
from evomerge.merging.operators.operator import Operator, Statistics, TensorContext
from evomerge.merging.pieces import Pieces


def _scan(
    pieces: Pieces,
    context: TensorContext,  # noqa: ARG001 (the operators' common signature)
) -> Statistics:
    """The ratio `r` of Jang et al. 2024 (arXiv:2403.19522).

    With `cos` the mean of the pairwise cosines of N deltas, `r = N cos / (1 + (N - 1) cos)`. A
    negative `cos` gives r = 0 (the formula diverges at -1 / (N - 1)), a delta of zero has the
    cosine 0 to the others, and for a single delta r = 1.
    """
    gram = gram_matrix(pieces).tolist()
    N = len(gram)
    cosines = [
        gram[i][j] / (gram[i][i] * gram[j][j]) ** 0.5 if gram[i][i] and gram[j][j] else 0.0
        for i, j in combinations(range(N), 2)
    ]
    cos = max(0.0, sum(cosines) / len(cosines)) if cosines else 1.0
    return {"r": torch.tensor(N * cos / (1 + (N - 1) * cos), dtype=torch.float64)}


def _weigh(
    weights: Sequence[float], statistics: Statistics, context: TensorContext
) -> tuple[float, list[float]]:
    """At ones `r mean_i(W0 + t_i) + (1 - r) W0`, per tensor: `t_i` gets `c_i r / N`.

    `blend` goes from the plain mean (0) to Model Stock's ratio (1).
    """
    blend = context.number("blend")
    r = blend * float(statistics["r"]) + (1.0 - blend)
    return 0.0, [c * r / len(weights) for c in weights]


OPERATORS = (
    Operator(
        "model_stock",
        scan=_scan,
        weigh=_weigh,
        knobs=(KnobFacts("blend", 1.0, 0.0, 1.0, "runtime"),),
    ),
)
