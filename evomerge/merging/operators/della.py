"""DELLA: drop at random, small magnitudes more often (Deep et al. 2024, DELLA-Merging)."""

from evomerge.merging.operators.knobs import KnobFacts
from evomerge.merging.pipeline import Facts, Selection, pipeline


def _magnitude_prune(delta: Facts) -> Selection:
    """MAGPRUNE: probabilities of staying from `density - epsilon` to `density + epsilon` by rank.

    An epsilon that would leave [0, 1] is taken as the largest that does not, so that every point
    of a search space is a merge.
    """
    density = delta.knobs["density"]
    epsilon = min(delta.knobs["epsilon"], density, 1.0 - density)
    return Selection(floor=density - epsilon, slope=2.0 * epsilon, ranks=delta.ranks)


_KNOBS = (
    KnobFacts("density", 0.7, 0.01, 1.0, scope="runtime", per_expert=True),
    KnobFacts("epsilon", 0.07, 0.0, 0.5, scope="runtime", per_expert=True),
)

# `D_k = m_k t_k / p_k`, `m_k ~ Bernoulli(p_k)`, `p_k = (d - e) + 2 e rank`, with the rank of the
# magnitude within the tensor from 0 to 1 (the authors: within the row); unbiased. `della` elects
# signs as TIES does, late; `della_exact` with the coefficients, as mergekit; `della_linear` not.
# The defaults are the paper's example: drop .3, window .14. mergekit rescales by l1 norms instead.
OPERATORS = (
    pipeline("della_linear", _magnitude_prune, _KNOBS, seeded=True, ranked=True),
    pipeline(
        "della", _magnitude_prune, _KNOBS, elects=True, reduce="mean", seeded=True, ranked=True
    ),
    pipeline(
        "della_exact",
        _magnitude_prune,
        _KNOBS,
        elects=True,
        reduce="mean",
        early=True,
        seeded=True,
        ranked=True,
    ),
)
ALIASES = {"della_ties": "della"}
