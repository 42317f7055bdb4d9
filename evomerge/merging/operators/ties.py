"""TIES: trim, elect signs, average what agrees (Yadav et al. 2023, TIES-Merging)."""

from evomerge.merging.magnitudes import code_of_top
from evomerge.merging.operators.knobs import KnobFacts
from evomerge.merging.pipeline import Facts, Selection, pipeline


def _trim(delta: Facts) -> Selection:
    """Keep the fraction `density` of largest magnitude."""
    return Selection(low=code_of_top(delta.from_above, delta.knobs["density"]))


_DENSITY = KnobFacts("density", 0.2, scope="runtime", per_expert=True)

# With the deltas `t_k`, the density `d` and lambda the common factor of the coefficients:
#
#     trim   t^_k = keep_top(t_k, d)    at least one entry, and all that equal the last
#     elect  g = sign(sum_k t^_k)       + where they cancel (the authors: the majority's sign)
#     merge  D_k = [sign(t^_k) = g] t^_k / #{j: sign(t^_j) = g}
#
# `ties` elects on unscaled deltas: `W0 + lambda sum_k D_k` is the paper's merge, and every other
# coefficient stays exactly linear. `ties_exact` is mergekit's meaning: the coefficients take part
# in the election and in the mean, `W0 + scale sum_k c_k D_k(c)`. Thresholds are per tensor, as in
# the codes for language models; `ranking: model` is the paper's one per expert.
OPERATORS = (
    pipeline("ties", _trim, (_DENSITY,), elects=True, reduce="mean"),
    pipeline("ties_exact", _trim, (_DENSITY,), elects=True, reduce="mean", early=True),
)
