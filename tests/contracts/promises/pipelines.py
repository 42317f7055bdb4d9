"""TIES, DARE, DELLA, Breadcrumbs: trims, draws, elections."""

from tests.support.promises import Promise


def one(_n):
    return 1.0


TRIM = {"density": 1.0}
DRAW = {"drop_rate": 0.0}
PRUNE = {"density": 1.0, "epsilon": 0.0}
BAND = {"density": 1.0, "gamma": 0.0}
# A draw that keeps a tenth multiplies it by ten; whole tensors are too small for the mean to hold.
DRAWN = {"permutes": False, "bounded": 1e2}

PROMISES = {
    "ties": Promise(TRIM, identical=one),
    "ties_exact": Promise(TRIM, identical=one),
    "dare": Promise(DRAW, identical=float, **DRAWN),
    "dare_ties": Promise(DRAW, identical=one, **DRAWN),
    "dare_ties_exact": Promise(DRAW, identical=float, **DRAWN),
    "della_linear": Promise(PRUNE, identical=float, **DRAWN),
    "della": Promise(PRUNE, identical=one, **DRAWN),
    "della_exact": Promise(PRUNE, identical=one, **DRAWN),
    "breadcrumbs": Promise(BAND, identical=float),
    "breadcrumbs_ties": Promise(BAND, identical=float),
    "breadcrumbs_ties_exact": Promise(BAND, identical=float),
}
