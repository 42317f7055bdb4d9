"""DARE: drop at random and rescale (Yu et al. 2024, Language Models are Super Mario)."""

from functools import partial

from evomerge.merging.operators.knobs import KnobFacts
from evomerge.merging.pipeline import Facts, Selection, pipeline


def _drop(delta: Facts) -> Selection:
    """Keep each entry with probability `1 - drop_rate`, divided by it."""
    return Selection(floor=1.0 - delta.knobs["drop_rate"])


_DROP_RATE = KnobFacts("drop_rate", 0.9, 0.0, 0.99, scope="runtime", per_expert=True)

# `D_k = m_k t_k / (1 - p)`, `m_k ~ Bernoulli(1 - p)` per entry; masks of one seed are nested in p,
# so that the merge moves smoothly with it. Then task arithmetic (`dare`), or TIES' election with
# `ties` (late) or `ties_exact` (early) semantics. mergekit rescales by the ratio of l1 norms
# instead of 1 / (1 - p): the same in expectation.
_dare = partial(pipeline, unary=_drop, knobs=(_DROP_RATE,), seeded=True, counted=False)

OPERATORS = (
    _dare("dare"),
    _dare("dare_ties", elects=True, reduce="mean"),
    _dare("dare_ties_exact", elects=True, early=True),
)
ALIASES = {"dare_linear": "dare"}
