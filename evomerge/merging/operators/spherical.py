"""Merges along arcs: slerp, nuslerp, multislerp and the Karcher mean of the weights' directions.

All are combinations of the base and the deltas whose coefficients depend on inner products only,
so that per candidate they cost what task arithmetic costs. Names are mergekit's. Sums are NumPy's
own: those of a BLAS may depend on the number of threads.

Except in slerp the coefficients are relative weights: they are divided by their sum, and so their
size does not matter. A weight below zero counts as zero (divided by a sum near zero it would be
anything), and where all do, the merge is the base.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from evomerge.merging.inner_product import gram_matrix
from evomerge.merging.operators.knobs import KnobFacts
from evomerge.merging.operators.operator import Operator, Statistics, TensorContext
from evomerge.merging.pieces import Pieces

_Numbers = npt.NDArray[np.float64]
_STRAIGHT = 0.9995  # from this |cosine| on, an arc is taken for a line
# Of unit vectors: a shorter mean has no direction but that of rounding errors.
_LEAST_MEAN = 1e-3
# Of a circle: below it an angle and its sine are equal, or the vectors are opposite.
_LEAST_SINE = 1e-6


def _scan(
    pieces: Pieces,
    context: TensorContext,  # noqa: ARG001 (the operators' common signature)
) -> Statistics:
    """Inner products of the base (first) and the deltas, `(n_experts + 1, n_experts + 1)`."""
    return {"gram": gram_matrix(pieces, with_base=True)}


def _slerp(
    weights: Sequence[float],
    statistics: Statistics,
    context: TensorContext,  # noqa: ARG001
) -> tuple[float, list[float]]:
    """From the base (c = 0) along the arc to the expert (c = 1), and beyond (Shoemake 1985).

    With theta the angle between the flattened weights `W0` and `W1`, per tensor::

        W = sin((1 - c) theta) / sin(theta) W0 + sin(c theta) / sin(theta) W1

    A line where |cos(theta)| > .9995, which most fine-tunings are.
    """
    G = _gram(statistics)
    W0_W1 = G[0, 0] + G[0, 1]
    W1_W1 = float(_of_weights(G)[0, 0])
    along_base, along_expert = _arc(weights[0], np.array([[G[0, 0], W0_W1], [W0_W1, W1_W1]]))
    return along_base + along_expert - 1.0, [along_expert]


def _nuslerp(
    weights: Sequence[float],
    statistics: Statistics,
    context: TensorContext,  # noqa: ARG001
) -> tuple[float, list[float]]:
    """From the first delta along the arc to the second, `t = c_2 / (c_1 + c_2)`.

    The formula of slerp with deltas in place of weights, added to the base; the length is that of
    the arc, whatever the sum of the coefficients.
    """
    shares = _shares(weights)
    if shares is None:
        return 0.0, [0.0, 0.0]
    return 0.0, list(_arc(float(shares[1]), _gram(statistics)[1:, 1:]))


def _multislerp(
    weights: Sequence[float],
    statistics: Statistics,
    context: TensorContext,  # noqa: ARG001
) -> tuple[float, list[float]]:
    """The mean direction of the deltas, with their mean length.

    With `u_i = t_i / |t_i|` and shares `w_i`, per tensor::

        W = W0 + (sum_i w_i |t_i|) m,    m = sum_i w_i u_i / |sum_i w_i u_i|

    mergekit goes on by `sum_i w_i (u_i - <u_i, m> m)` in the plane that touches the sphere in m;
    that sum is zero for every m of this form, so nothing is left out here. A delta of zero has no
    direction and the length 0. Where directions cancel, it is the mean of the deltas.
    """
    shares = _shares(weights)
    if shares is None:
        return 0.0, [0.0] * len(weights)
    lengths, cosines = _directions(_gram(statistics)[1:, 1:])
    return 0.0, _restored(shares, _mean_direction(shares, cosines), lengths)


def _karcher(
    weights: Sequence[float], statistics: Statistics, context: TensorContext
) -> tuple[float, list[float]]:
    """The weighted Karcher (Riemannian) mean of the directions of the experts' weights.

    With `u_i = W_i / |W_i|` and shares `w_i`, per tensor, from the normalised mean of the `u_i`::

        theta_i = arccos <u_i, mu>
        T       = sum_i w_i theta_i / sin(theta_i) (u_i - cos(theta_i) mu)
        mu     <- cos(|T|) mu + sin(|T|) T / |T|       until |T| < tol, at most max_iter times

    and `W = (sum_i w_i |W_i|) mu`. The base has no part in it unless it is listed as an expert.
    Where directions cancel, it is the mean of the weights.
    """
    shares = _shares(weights)
    if shares is None:
        return 0.0, [0.0] * len(weights)
    lengths, cosines = _directions(_of_weights(_gram(statistics)))
    mu = _mean_direction(shares, cosines)
    for _ in range(int(context.knobs["max_iter"])):
        T = None if mu is None else _towards_all(mu, shares, cosines)
        length = 0.0 if T is None else _length(T, cosines)
        if mu is None or T is None or length < context.number("tol") or length == 0.0:
            break
        mu = np.cos(length) * mu + np.sin(length) / length * T
        mu = mu / _length(mu, cosines)
    along = _restored(shares, mu, lengths)
    return sum(along) - 1.0, along


def _towards_all(mu: _Numbers, shares: _Numbers, cosines: _Numbers) -> _Numbers:
    """The weighted mean of the tangents in `mu` to the `u_i`, as coefficients of the `u_i`."""
    cos = np.clip((cosines * mu).sum(axis=1), -1.0, 1.0)
    sin = np.sqrt(1.0 - cos**2)
    stretch = np.where(sin > _LEAST_SINE, np.arccos(cos) / np.maximum(sin, _LEAST_SINE), 1.0)
    tangents = shares * stretch
    T: _Numbers = tangents - (tangents * cos).sum() * mu
    return T


def _gram(statistics: Statistics) -> _Numbers:
    return np.asarray(statistics["gram"].numpy(), dtype=np.float64)


def _of_weights(G: _Numbers) -> _Numbers:
    """Inner products of the experts' weights `W_i = W0 + t_i`."""
    products: _Numbers = G[1:, 1:] + G[0, 1:] + G[1:, :1] + G[0, 0]
    return products


def _shares(weights: Sequence[float]) -> _Numbers | None:
    """Weights that sum to 1; None where none is above zero."""
    positive = np.maximum(np.asarray(weights, dtype=np.float64), 0.0)
    largest = positive.max()
    if largest == 0.0:
        return None
    positive /= largest  # so that the sum is neither infinite nor subnormal
    shares: _Numbers = positive / positive.sum()
    return shares


def _arc(t: float, gram: _Numbers) -> tuple[float, float]:
    """What two vectors are multiplied by, at `t` of the way from one to the other."""
    squares = gram[0, 0] * gram[1, 1]
    cos = gram[0, 1] / np.sqrt(squares) if squares > 0.0 else 1.0
    if not abs(cos) <= _STRAIGHT:
        return 1.0 - t, t
    theta = np.arccos(cos)
    return (
        float(np.sin((1.0 - t) * theta) / np.sin(theta)),
        float(np.sin(t * theta) / np.sin(theta)),
    )


def _directions(gram: _Numbers) -> tuple[_Numbers, _Numbers]:
    """Lengths of vectors, and the cosines between them: 0 with a vector of zero, itself too."""
    lengths = np.sqrt(np.maximum(np.diag(gram), 0.0))
    inverse = np.divide(1.0, lengths, out=np.zeros_like(lengths), where=lengths > 0.0)
    cosines = np.clip(gram * inverse[:, None] * inverse, -1.0, 1.0)
    np.fill_diagonal(cosines, np.where(lengths > 0.0, 1.0, 0.0))
    return lengths, cosines


def _length(a: _Numbers, cosines: _Numbers) -> float:
    """Of `sum_i a_i u_i`."""
    return float(np.sqrt(max(0.0, float((a[:, None] * cosines * a).sum()))))


def _mean_direction(shares: _Numbers, cosines: _Numbers) -> _Numbers | None:
    """Coefficients of the `u_i` for their mean, of length 1; None if they cancel."""
    length = _length(shares, cosines)
    return shares / length if length > _LEAST_MEAN else None


def _restored(shares: _Numbers, mu: _Numbers | None, lengths: _Numbers) -> list[float]:
    """Coefficients of the vectors themselves for the direction `mu` at their mean length."""
    if mu is None:
        return [float(share) for share in shares]
    scaled = float((shares * lengths).sum()) * mu
    along = np.divide(scaled, lengths, out=np.zeros_like(scaled), where=lengths > 0.0)
    return [float(a) for a in along]


OPERATORS = (
    Operator("slerp", scan=_scan, weigh=_slerp, n_experts=(1, 1)),
    Operator("nuslerp", scan=_scan, weigh=_nuslerp, n_experts=(2, 2)),
    Operator("multislerp", scan=_scan, weigh=_multislerp),
    Operator(
        "karcher",
        scan=_scan,
        weigh=_karcher,
        knobs=(
            KnobFacts("max_iter", 10, 0, 1000, "runtime", is_whole=True),
            KnobFacts("tol", 1e-5, 0.0, 1.0, "runtime"),
        ),
    ),
)
