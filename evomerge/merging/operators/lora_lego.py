"""LoRA-LEGO: the rank-one parts of all adapters in clusters, one part for each cluster."""

from zlib import crc32

import numpy as np
import torch
from numpy.typing import NDArray

from evomerge.merging.low_rank.stack import Stack
from evomerge.merging.operators.factor_operator import FactorOperator, Merge, mean, on_the_left
from evomerge.merging.operators.knobs import KnobFacts
from evomerge.merging.operators.operator import Statistics, TensorContext

_MOST_ROUNDS = 100
# Members that cancel down to this share of their length have no direction to be rescaled in.
_CANCELLED = 1e-6

Matrix = NDArray[np.float64]
Labels = NDArray[np.int64]


def _bind(
    stack: Stack,
    statistics: Statistics,  # noqa: ARG001 (the operators' common signature)
    context: TensorContext,
) -> Merge:
    """Rank-wise clustering of Zhao et al. 2024 (arXiv:2409.16167); its constants are not verified.

    Every rank of every adapter is a unit `u = [b; a]` of a column of `B` and a row of `A`. k-means
    makes `rank` clusters of them (0: the mean rank of the adapters, rounded), and each becomes one
    unit, the centroid at its members' mean length. With the mean rank r and k clusters::

        rho_j = mean_{u in j} |u| / |mean_{u in j} u|
        a_j = rho_j mean_{u in j} a_u
        D_i = sqrt(r / k) sum_j (rho_j / |j|) sum_{u in j, of expert i} b_u a_j
        W = W0 + sum_i c_i D_i

    At ones that is the clustered adapter. Coefficients stand at the left factors only and change
    no cluster, so that the merge stays linear in them. Equal units count once among the clusters:
    there may be fewer than `rank`. k-means++ begins at draws that depend on the weight's name only.
    The scale of each adapter is in its factors, half of it in each. Weights that adapters change
    as a whole are averaged, `D_i = t_i / N`.
    """
    ranks = [rank for rank in stack.ranks if rank]
    r = sum(ranks) / len(ranks)
    k = int(context.knobs["rank"]) or max(1, round(r))
    pairs = [pair for _, pair in stack.pairs()]
    left = torch.cat([pair.left for pair in pairs]).double()
    right = torch.cat([pair.right for pair in pairs]).double()
    gram = (left @ left.T + right @ right.T).numpy()
    rng = np.random.default_rng(crc32(context.name.encode()))
    labels = clusters(gram, k, rng)
    shares = _shares(labels)
    wanted = shares @ np.sqrt(gram.diagonal())
    found = np.sqrt(np.maximum(np.einsum("ju,uv,jv->j", shares, gram, shares), 0.0))
    has_direction = found > _CANCELLED * wanted
    rho = np.where(has_direction, wanted / np.where(has_direction, found, 1.0), 1.0)
    factors = torch.from_numpy(rho[:, None] * shares)
    of_unit = (r / len(shares)) ** 0.5 * factors.sum(0)  # a unit is in one cluster
    return on_the_left(
        (of_unit[:, None] * left).float(),
        (factors @ right).float(),
        torch.from_numpy(labels),
        stack,
    )


def clusters(gram: Matrix, k: int, rng: np.random.Generator) -> Labels:
    """k-means by inner products only: for each of `n` units the number of its cluster, from 0.

    Begins as k-means++ (Arthur & Vassilvitskii 2007). Clusters that stay empty are left out.

    Args:
        gram: Inner products of the units, `(n, n)`.
        k: How many clusters there may be.
        rng: Draws the first centres.
    """
    squares = gram.diagonal()
    noise = 1e-12 * squares.max()
    centres = [int(rng.integers(len(gram)))]
    nearest = np.full(len(gram), np.inf)
    while True:
        last = centres[-1]
        distances = squares - 2.0 * gram[last] + squares[last]
        nearest = np.minimum(nearest, np.where(distances > noise, distances, 0.0))
        if len(centres) == k or not nearest.any():
            break
        reached = np.cumsum(nearest)
        centres.append(int(np.searchsorted(reached, rng.random() * reached[-1], side="right")))
    start = np.argmin(squares[centres][None] - 2.0 * gram[:, centres], axis=1)
    labels = np.unique(start, return_inverse=True)[1]
    for _ in range(_MOST_ROUNDS):
        shares = _shares(labels)
        towards = shares @ gram
        lengths = np.einsum("ju,ju->j", towards, shares)
        moved = np.argmin(lengths[:, None] - 2.0 * towards, axis=0)
        if np.array_equal(moved, labels):
            break
        labels = np.unique(moved, return_inverse=True)[1]
    return labels.astype(np.int64)


def _shares(labels: Labels) -> Matrix:
    """What takes means: `(n_clusters, n)`, rows sum to 1."""
    members = np.eye(int(labels.max()) + 1)[labels].T
    shares: Matrix = members / members.sum(1, keepdims=True)
    return shares


OPERATORS = (
    FactorOperator(
        "lora_lego",
        mean,
        knobs=(KnobFacts("rank", 0, 0, 256, is_whole=True),),
        bind=_bind,
    ),
)
