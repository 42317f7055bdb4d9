"""What operators share that merge in a space common to all experts."""

from collections.abc import Sequence

import torch
from torch import Tensor

from evomerge.merging.spectral import FLOOR, positive_eigenpairs


def joint_directions(deltas: Sequence[Tensor], floor: float = FLOOR) -> tuple[Tensor, Tensor]:
    """Left singular vectors and values of `[t_1 | .. | t_N]`, `(m, r)` and `(r,)`, float64.

    Values descend; those up to `floor` times the largest are left out.

    Args:
        deltas: `(m, n)` each, float64.
        floor: Not below `spectral.FLOOR`.
    """
    m, n = deltas[0].shape
    if m <= n * len(deltas):
        gram = deltas[0] @ deltas[0].T
        for t in deltas[1:]:
            gram += t @ t.T
        values, U = positive_eigenpairs(gram)
    else:
        X = torch.cat(list(deltas), 1)
        values, V = positive_eigenpairs(X.T @ X)
        U = X @ V / values.sqrt()
    r = int((values > floor**2 * values[:1]).sum())
    return U[:, :r], values[:r].sqrt()


def disjoint_mean(deltas: Sequence[Tensor]) -> list[Tensor]:
    """Shares whose sum is, entry by entry, the mean of what has the elected sign, as in TIES.

    With the tensors `t_i`, all of one shape::

        g = sign(sum_i t_i)      D_i = [t_i g > 0] t_i / max(1, #{j: t_j g > 0})

    Nobody is elected where the deltas cancel, up to rounding. The sign of a direction of a
    singular space is arbitrary, and so would be any choice.
    """
    total, weight = torch.zeros_like(deltas[0]), torch.zeros_like(deltas[0])
    for t in deltas:
        total += t
        weight += t.abs()
    g = torch.where(total.abs() > _CANCELLED * weight, total.sign(), 0.0)
    shares = [t * (t * g > 0.0) for t in deltas]
    count = torch.zeros_like(g)
    for share in shares:
        count += share != 0.0
    return [share / count.clamp(min=1.0) for share in shares]


# Of the sum of magnitudes: far above the rounding of float64, far below that of weights.
_CANCELLED = 1e-9
