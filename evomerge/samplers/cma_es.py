"""CMA-ES on one loss: adapts a normal distribution to the problem (Hansen 2016, arXiv 1604.00772).

The algorithm is that of the package cmaes; around it are the start, failures and restarts.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from evomerge.datatypes import Candidate, Evidence, FloatArray, Problem
from evomerge.errors import ConfigError
from evomerge.samplers.design import DECIMALS
from evomerge.samplers.ledger import Ledger, Told
from evomerge.samplers.options import checked_population, is_number
from evomerge.samplers.relaxation import Relaxation

SEPARABLE_FROM = 48
"""Dimensions from which a diagonal covariance does as well and costs a fraction (measured)."""

CONVERGED = 1e-6
"""A generation narrower than this in every dimension has about one recipe."""


class CmaEsSampler:
    """Minimises one loss, or a declared weighted mean of several.

    The mean starts at the first anchor with `sigma` in every dimension; the anchors are candidates
    of generation 0. Bits are relaxed to reals: they turn where these pass 0.5; choices to one real
    each, of which the largest wins. A failed candidate ranks last in its generation; a generation
    without any success changes nothing. When the distribution has collapsed or stagnates (then its
    bits and choices no longer turn), a new one with twice the population starts from the next
    anchor (restarts with increasing population: Auger and Hansen 2005).

    From generation 1 on the distribution's mean is a candidate too, beside the samples: under noise
    it is better than the best of them. The distribution does not learn from it.

    The weighted mean is of the losses as they come: with objectives on different scales, state
    weights that make up for it.
    """

    def __init__(
        self,
        problem: Problem,
        *,
        seed: int,
        population: int | None = None,
        sigma: float = 0.2,
        weights: Sequence[float] | Mapping[str, float] | None = None,
    ) -> None:
        """Start at the problem's anchors.

        Args:
            problem: dimensions, anchors, number of objectives and budget.
            seed: of everything random.
            population: candidates of a generation; anchors beyond it are left out. By default
                twice eq. 48 of the tutorial, the best measured medicine against noise, but not so
                many that the budget has room for fewer than ten generations, and never fewer than
                eq. 48 or than there are anchors.
            sigma: initial standard deviation in the unit cube.
            weights: one per objective, in the problem's order. Of a mapping from names only the
                values count: a sampler does not know the names, so the caller has to order it.

        Raises:
            ConfigError: an option is out of range, or there are several objectives and no weights.
        """
        if not (is_number(sigma) and 0 < sigma <= 10):
            raise ConfigError(
                f"sigma must be above 0 and at most 10 (in the unit cube), but got {sigma!r}: "
                f"0.2 is a good start"
            )
        self._weights = _weights(problem.n_objectives, weights)
        self._anchors = tuple(dict.fromkeys(problem.anchors))
        self._population = checked_population("cma_es", population) or max(
            default_population(len(problem.dimensions), problem.budget), len(self._anchors)
        )
        self._seed = seed
        self._sigma = sigma
        self._relaxation = Relaxation(problem, sigma)
        self._ledger = Ledger(problem.n_objectives)
        self._generation = 0
        self._n_restarts = 0
        self._optimizer = self._start()
        # what is asked, and where the distribution is told that it was
        self._upcoming = [(a, self._injected(a)) for a in self._anchors[: self._population]]
        self._points: dict[int, FloatArray] = {}
        self._owes_mean = False
        """Whether this generation has yet to ask for the distribution's mean."""
        self._has_asked_mean = False

    @property
    def generation_size(self) -> int:
        """How many candidates are asked for before the next generation is made."""
        return self._population + (self._owes_mean or self._has_asked_mean)

    def ask(self) -> Candidate | None:
        """The next candidate, or None while a wholly asked generation is not wholly told."""
        if self._owes_mean:
            self._owes_mean, self._has_asked_mean = False, True
            mean = self._relaxation.proposed(np.asarray(self._optimizer.mean))
            return self._ledger.ask(self._generation, mean)
        if len(self._points) == self._population:
            return None
        if self._upcoming:
            u, x = self._upcoming.pop(0)
        else:
            x = np.round(self._optimizer.ask(), DECIMALS)
            u = tuple(self._relaxation.proposed(x))
        candidate = self._ledger.ask(self._generation, u)
        self._points[candidate.id] = x
        return candidate

    def tell(
        self,
        candidate: Candidate,
        losses: Sequence[float] | None,
        evidence: Evidence | None = None,
    ) -> None:
        """Take in losses; the last of a generation moves the distribution.

        Raises:
            ValueError: the candidate is not pending or its losses are not finite.
        """
        self._ledger.tell(candidate, losses, evidence)
        if len(self._points) == self._population and self._ledger.n_pending == 0:
            self._learn(self._ledger.close_generation())

    def _learn(self, generation: Sequence[Told]) -> None:
        points, self._points = self._points, {}
        self._generation += 1
        generation = [told for told in generation if told.candidate.id in points]
        self._owes_mean, self._has_asked_mean = True, False
        successes = [told.losses for told in generation if told.losses is not None]
        if not successes:
            return  # nothing is known about any point: draw again from the same distribution
        worst = max(self._scalar(losses) for losses in successes)
        solutions = [
            (points[told.candidate.id], self._scalar(told.losses))
            for told in generation
            if told.losses is not None
        ]
        # failures behind the worst success: the sort in cmaes is stable
        solutions += [
            (points[told.candidate.id], worst) for told in generation if told.losses is None
        ]
        width = np.ptp([x for x, _ in solutions], axis=0).max()
        self._optimizer.tell(solutions)
        if width < CONVERGED or self._optimizer.should_stop():
            self._n_restarts += 1
            self._population *= 2
            self._optimizer = self._start()
            self._owes_mean = False  # the mean is an anchor now, which is known

    def _start(self) -> Any:
        """An optimizer around the anchor whose turn it is, with a seed of its own."""
        from cmaes import CMA, SepCMA

        class PortableCMA(CMA):  # type: ignore[misc]  # cmaes ships no types
            """Samples with the symmetric root of C, which does not depend on the eigenvectors.

            B D z does: near C = I any rotation of B is right, and LAPACK's choice differs between
            processors, so that a run could not be replayed on another node. C^1/2 = B D B^T.
            """

            def _sample_solution(self) -> FloatArray:
                B, D = self._eigen_decomposition()
                z = self._rng.randn(self._n_dim)  # ~ N(0, I)
                return np.asarray(self._mean + self._sigma * (B @ (D * (B.T @ z))))

        mean = self._relaxation.relaxed(self._anchors[self._n_restarts % len(self._anchors)])
        seed = np.random.SeedSequence([self._seed, 0xC3A, self._n_restarts])
        algorithm = SepCMA if len(mean) >= SEPARABLE_FROM else PortableCMA
        return algorithm(
            mean=mean,
            sigma=self._sigma,
            bounds=np.tile([0.0, 1.0], (len(mean), 1)),
            n_max_resampling=1,  # in many dimensions hardly any sample lies inside: clip
            seed=int(seed.generate_state(1)[0]),
            population_size=self._population,
        )

    def _injected(self, anchor: Sequence[float]) -> FloatArray:
        """An anchor, no farther from the first mean than a sample would be.

        An injected point that is improbably far would blow up the step size (Hansen 2011,
        arXiv 1110.4181).
        """
        mean, x = (self._relaxation.relaxed(point) for point in (self._anchors[0], anchor))
        n = len(mean)
        length = float(np.linalg.norm(x - mean)) / self._sigma
        c_y = math.sqrt(n) + 2 * n / (n + 2)
        return np.asarray(mean + (x - mean) * (c_y / max(length, c_y)))

    def _scalar(self, losses: Sequence[float]) -> float:
        return float(np.dot(self._weights, losses))


def default_population(n_dimensions: int, budget: int) -> int:
    """Twice eq. 48 of the tutorial if the budget has room for ten generations of that size."""
    smallest = 4 + math.floor(3 * math.log(n_dimensions))  # eq. 48
    return min(2 * smallest, max(smallest, budget // 10))


def _weights(
    n_objectives: int, weights: Sequence[float] | Mapping[str, float] | None
) -> FloatArray:
    """Weights that sum to one."""
    if weights is None:
        if n_objectives > 1:
            raise ConfigError(
                f"cma_es minimises one loss, but there are {n_objectives} objectives: give "
                f"sampler.weights, one number per objective, or use nsga2"
            )
        return np.ones(1)
    numbers = list(weights.values() if isinstance(weights, Mapping) else weights)
    fits = len(numbers) == n_objectives and all(is_number(w) and 0 <= w < math.inf for w in numbers)
    if not fits or max(numbers) == 0:
        raise ConfigError(
            f"weights must be one number >= 0 per objective ({n_objectives}), one of them above 0, "
            f"but got {numbers}: give one for each objective in order"
        )
    w = np.array(numbers, dtype=np.float64)
    return np.asarray(w / w.sum())
