"""What CMA-ES samples from: a normal distribution over relaxed points, or one with a margin.

The algorithms are those of the package cmaes; here they take and give points of the cube.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal, Protocol

import numpy as np

from evomerge.datatypes import FloatArray, Problem
from evomerge.samplers.design import DECIMALS, FLIP_PROBABILITY, Kinds, proposal
from evomerge.samplers.relaxation import CHANGE_PROBABILITY, Relaxation

Point = tuple[float, ...]

CONVERGED = 1e-6
"""A generation narrower than this in every dimension has about one recipe."""


class Distribution(Protocol):
    """Proposes points and moves to where the best of them are."""

    def sample(self) -> tuple[Point, Any]:
        """A point as it is proposed, and what `learn` wants to have back of it."""

    def placed(self, u: Sequence[float]) -> Any:
        """What `learn` takes of a point that was not sampled, near enough to do no harm."""

    def mean(self) -> Point:
        """The mean (of choices the most probable), as it is proposed."""

    def learn(self, told: Sequence[tuple[Any, float]]) -> None:
        """Move to the points of one whole generation with less loss; ties count in their order."""

    def is_exhausted(self) -> bool:
        """Whether what was learned last leaves nothing to search for."""


class RelaxedNormal:
    """A normal distribution over reals, with bits and choices relaxed to such."""

    def __init__(
        self,
        problem: Problem,
        start: Point,
        sigma: float,
        population: int,
        seed: int,
        variant: Literal["full", "separable", "learning_rate"],
    ) -> None:
        """Start at a point with `sigma` in every dimension."""
        self._relaxation = Relaxation(problem, sigma)
        self._sigma = sigma
        self._start = self._relaxation.relaxed(start)
        self._width = math.inf
        n = len(self._start)
        options: dict[str, Any] = {
            "mean": self._start.copy(),
            "sigma": sigma,
            "bounds": np.tile([0.0, 1.0], (n, 1)),
            "n_max_resampling": 1,  # in many dimensions hardly any sample lies inside: clip
            "seed": seed,
            "population_size": population,
        }
        if variant == "separable" and n > 1:  # of one dimension both are the same
            from cmaes import SepCMA

            self._optimizer: Any = SepCMA(**options)
        else:
            self._optimizer = _portable_cma()(lr_adapt=variant == "learning_rate", **options)

    def sample(self) -> tuple[Point, FloatArray]:
        """A point as it is proposed, and its reals."""
        x = np.round(self._optimizer.ask(), DECIMALS)
        return tuple(self._relaxation.proposed(x)), x

    def placed(self, u: Sequence[float]) -> FloatArray:
        """A point's reals, no farther from the start than a sample would be."""
        x = self._relaxation.relaxed(u)
        return self._start + (x - self._start) * _shrunk(x - self._start, self._sigma)

    def mean(self) -> Point:
        """The mean, as it is proposed."""
        return tuple(self._relaxation.proposed(np.asarray(self._optimizer.mean)))

    def learn(self, told: Sequence[tuple[FloatArray, float]]) -> None:
        """Move to the points of one whole generation with less loss; ties count in their order."""
        self._width = float(np.ptp([x for x, _ in told], axis=0).max())
        self._optimizer.tell(list(told))

    def is_exhausted(self) -> bool:
        """Whether a generation was about one point, or no axis leads anywhere."""
        return self._width < CONVERGED or bool(self._optimizer.should_stop())


class NormalWithMargin:
    """Reals are normal; each bit and choice has probabilities that stay above a margin.

    CatCMA with margin (Hamano et al. 2025, arXiv 2504.07884). Bits are choices between two, as its
    authors advise. It is told ranks: its penalty outside of the box would depend on the scale.
    """

    def __init__(
        self, problem: Problem, start: Point, sigma: float, population: int, seed: int
    ) -> None:
        """Start at a point, from which bits and choices depart with those of the relaxed form."""
        kinds = Kinds.of(problem)
        self._kinds = kinds
        self._n_choices = np.where(kinds.binary, 2, kinds.n_choices)[~kinds.real]
        self._sigma = sigma
        self._start = np.array(start)[kinds.real]
        self._width = math.inf
        n = self._n_choices[:, None]
        departs = np.where(kinds.binary[~kinds.real], FLIP_PROBABILITY, CHANGE_PROBABILITY)[:, None]
        ordinary = np.where(np.arange(n.max()) < n, departs / (n - 1), 0.0)
        has_reals = len(self._start) > 0
        self._optimizer: Any = _portable_cat_cma()(
            x_space=np.tile([0.0, 1.0], (len(self._start), 1)) if has_reals else None,
            c_space=self._n_choices.tolist(),
            mean=self._start.copy() if has_reals else None,
            sigma=sigma,
            cov=np.eye(len(self._start)) if has_reals else None,
            cat_param=np.where(self._one_hot(start), 1.0 - departs, ordinary),
            seed=seed,
            population_size=population,
        )

    def sample(self) -> tuple[Point, Any]:
        """A point as it is proposed, and the solution that stands for it."""
        solution = self._optimizer.ask()
        raw = None if solution.x is None else np.round(solution._v_raw, DECIMALS)
        x = () if raw is None else np.clip(raw, 0.0, 1.0)
        return self._written(x, solution.c), self._optimizer.Solution(x, None, solution.c, raw)

    def placed(self, u: Sequence[float]) -> Any:
        """A point's choices and reals, these no farther from the start than a sample would be."""
        x = np.array(u)[self._kinds.real]
        raw = None
        if len(x):
            raw = self._start + (x - self._start) * _shrunk(x - self._start, self._sigma)
        return self._optimizer.Solution(raw, None, self._one_hot(u), raw)

    def mean(self) -> Point:
        """The mean of reals and the most probable choices, as they are proposed."""
        has_reals = len(self._start) > 0
        x = np.clip(self._optimizer._mean, 0.0, 1.0) if has_reals else ()
        q = np.round(self._optimizer._q, DECIMALS)  # last bits must not decide
        return self._written(x, np.arange(q.shape[1]) == q.argmax(axis=1)[:, None])

    def learn(self, told: Sequence[tuple[Any, float]]) -> None:
        """Move to the points of one whole generation with less loss; ties count in their order."""
        ranked = sorted(told, key=lambda pair: pair[1])
        if len(self._start):
            self._width = float(np.ptp([point._v_raw for point, _ in told], axis=0).max())
        self._optimizer.tell([(point, float(rank)) for rank, (point, _) in enumerate(ranked)])

    def is_exhausted(self) -> bool:
        """Whether the reals are; without any, probabilities have their margin to search on."""
        if not len(self._start):
            return False
        return self._width < CONVERGED or bool(self._optimizer.should_stop())

    def _one_hot(self, u: Sequence[float]) -> FloatArray:
        """`(n_bits_and_choices, largest n_choices)` rows with a one where a point's choice is."""
        chosen = np.minimum(np.array(u)[~self._kinds.real] * self._n_choices, self._n_choices - 1)
        return np.asarray(np.arange(self._n_choices.max()) == chosen.astype(np.int64)[:, None])

    def _written(self, x: FloatArray | tuple[()], one_hot: FloatArray) -> Point:
        u = np.empty(len(self._kinds.real))
        u[self._kinds.real] = x
        u[~self._kinds.real] = (one_hot.argmax(axis=1) + 0.5) / self._n_choices
        return tuple(proposal(u, self._kinds))


def _shrunk(step: FloatArray, sigma: float) -> float:
    """What an injected step is multiplied by.

    A point that is improbably far would blow up the step size (Hansen 2011, arXiv 1110.4181).
    """
    n = len(step)
    c_y = math.sqrt(n) + 2 * n / (n + 2)
    return c_y / max(float(np.linalg.norm(step)) / sigma, c_y)


def _portable_cma() -> Any:
    """CMA that samples with the symmetric root of C, which does not depend on the eigenvectors.

    B D z does: near C = I any rotation of B is right, and LAPACK's choice differs between
    processors, so that a run could not be replayed on another node. C^1/2 = B D B^T.
    """
    from cmaes import CMA

    class PortableCMA(CMA):  # type: ignore[misc]  # cmaes ships no types
        def _sample_solution(self) -> FloatArray:
            B, D = self._eigen_decomposition()
            z = self._rng.randn(self._n_dim)  # ~ N(0, I)
            return np.asarray(self._mean + self._sigma * (B @ (D * (B.T @ z))))

    return PortableCMA


def _portable_cat_cma() -> Any:
    """CatCMAwM with the same root."""
    from cmaes import CatCMAwM

    class PortableCatCMAwM(CatCMAwM):  # type: ignore[misc]  # cmaes ships no types
        def _sample_from_gaussian(self) -> FloatArray:
            B, D = self._eigen_decomposition()
            z = self._rng.randn(self._Nmi)  # ~ N(0, I)
            return np.asarray(self._mean + self._sigma * (B @ (D * (B.T @ z))))

    return PortableCatCMAwM
