"""Frozen TIES: trim, elect signs, average what agrees; coefficients come afterwards."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from evomerge.datatypes import Knob
from evomerge.merging.operators.operator import KnobFacts, Operator, TensorContext


def _prepare(
    base: Tensor,  # noqa: ARG001 (the operators' common signature)
    deltas: Sequence[Tensor],
    knobs: Mapping[str, Knob],
    context: TensorContext,  # noqa: ARG001
) -> list[Tensor]:
    """Bases whose plain sum is the TIES merge of Yadav et al. 2023, in its mean variant.

    With the deltas `t_i` and the density `d`, per tensor::

        trim   t^_i = keep_top(t_i, d)
        sign   g = sign(sum_i t^_i)      where 0: the sign of the total of g, + if that is 0 too
        merge  D_i = [sign(t^_i) = g] t^_i / max(1, #{i: sign(t^_i) = g and t^_i != 0})

    Signs are elected on unscaled deltas, so that `W0 + lambda sum_i D_i` is the paper's merge and
    every other coefficient stays exactly linear; TIES with weights inside its election is another
    operator. The threshold is per tensor, where the paper has one per expert over the whole model.
    """
    density = float(knobs["density"])
    trimmed = [_keep_top(delta, density) for delta in deltas]
    elected = torch.zeros_like(deltas[0])
    for delta in trimmed:
        elected += delta
    elected.sign_()
    # Counted, not summed in floats: the same whatever the number of threads.
    n_positive, n_negative = int((elected > 0).sum()), int((elected < 0).sum())
    elected[elected == 0] = -1.0 if n_negative > n_positive else 1.0
    count = torch.zeros_like(elected)
    for delta in trimmed:
        delta.mul_(delta.sign() == elected)
        count += delta != 0
    count.clamp_(min=1.0)
    return [delta.div_(count) for delta in trimmed]


def _keep_top(delta: Tensor, density: float) -> Tensor:
    """A copy with the fraction `density` of largest magnitude, at least one entry, else zero."""
    n_kept = max(1, round(density * delta.numel()))
    magnitude = delta.abs()
    threshold = magnitude.reshape(-1).kthvalue(delta.numel() - n_kept + 1).values
    return delta * (magnitude >= threshold)


ties = Operator("ties", _prepare, knobs=(KnobFacts("density", 0.2, 0.01, 1.0, "prepare"),))
