"""Model Breadcrumbs: neither the outliers nor the crumbs (Davari & Belilovsky 2024)."""

from evomerge.merging.magnitudes import code_beyond, code_of_top
from evomerge.merging.operators.knobs import KnobFacts
from evomerge.merging.pipeline import Facts, Selection, pipeline


def _band(delta: Facts) -> Selection:
    """Drop the fraction `gamma` of largest magnitude, keep the next `density`.

    With gamma 0 no outlier is dropped, in tensors of any size.
    """
    density, gamma = delta.knobs["density"], delta.knobs["gamma"]
    kept = min(1.0, gamma + density) if density > 0.0 else 0.0
    return Selection(
        low=code_of_top(delta.from_above, kept), high=code_beyond(delta.from_above, gamma)
    )


_KNOBS = (
    KnobFacts("density", 0.9, scope="runtime", per_expert=True),
    KnobFacts("gamma", 0.01, 0.0, 0.9, scope="runtime", per_expert=True),
)

# `D_k = [1 - gamma - density <= rank < 1 - gamma] t_k`, ranks of magnitudes within the tensor (the
# authors: within the row). `breadcrumbs_ties` elects signs late, `breadcrumbs_ties_exact` with the
# coefficients. The defaults are mergekit's; the paper's example keeps .2 below .1 of outliers.
OPERATORS = (
    pipeline("breadcrumbs", _band, _KNOBS),
    pipeline("breadcrumbs_ties", _band, _KNOBS, elects=True),
    pipeline("breadcrumbs_ties_exact", _band, _KNOBS, elects=True, early=True),
)
