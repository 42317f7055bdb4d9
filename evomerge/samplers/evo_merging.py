"""Evo-Merging: a pool of adapters is denoised, then scaled with signs, by CMA-ES."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from evomerge.datatypes import Dimension, FloatArray, Problem
from evomerge.samplers.archive_based import checked_range
from evomerge.samplers.regularized import RegularizedCmaEs, Stage

NOTHING = 1e-9
"""A share of which no scale makes anything."""

SMALLEST_SCALE = 1.0 / 512.0
"""Coefficients below are as good as 0: they give stage 1 no scale and stage 2 no ratios."""


class EvoMergingSampler(RegularizedCmaEs):
    """Minimises a loss in two stages: what to keep of each expert, then how much of each, signed.

    Published for adapters, of which stage 1 keeps the largest entries. Here a share is kept of each
    coefficient: stage 1 searches shares alpha in [0, 1] of coefficients alpha * scale and charges
    for mean |alpha|; stage 2 searches one beta per expert within `bound`, from where stage 1 has
    come, and charges for mean |beta|. Of stage 1 it keeps the ratios of an expert's coefficients,
    the largest being alpha * beta = beta; whom stage 1 has dropped altogether, it can take back
    with a sign. Where an expert has many coefficients, stage 1 sees where in the model it is worth
    keeping; where it has one, both stages search the same, the first without signs.

    Stage 1 begins at the best of the anchors and of the experts' mean, whose scale is 1 / n_experts
    and whose shares are all 1, as published; of another point the scale is the largest coefficient.
    Stage 2 knows the result of stage 1, but values it with its own charge. Other dimensions (bits,
    choices, what no expert owns) are searched in both stages.
    """

    def __init__(
        self,
        problem: Problem,
        *,
        seed: int,
        denoise: int | None = None,
        population: int | None = None,
        sigma: float = 0.05,
        bound: float = 1.5,
        regularization: float = 0.05,
        weights: Sequence[float] | Mapping[str, float] | None = None,
        scalarization: str = "weighted",
    ) -> None:
        """Start with the anchors and the mean of the experts.

        Args:
            problem: dimensions, anchors, objectives and budget; base, experts and owners.
            seed: of everything random.
            denoise: evaluations until stage 1 ends, with its generation; a third of the budget if
                left out, none if 0.
            population: candidates of a generation of CMA-ES; its own default if left out.
            sigma: initial standard deviation, as a share of the range of what is searched.
            bound: largest magnitude of a beta.
            regularization: what a mean magnitude of 1 costs, in units of the (scalarized) loss.
            weights: of the objectives, in their order or by name; only their ratios matter.
            scalarization: `weighted`, `tchebycheff` or `percentile`.

        Raises:
            ConfigError: an option is out of range, there are several objectives and no weights, or
                the space does not say where its base and its experts are.
        """
        checked_range("denoise", 0 if denoise is None else denoise, low=0, whole=True)
        super().__init__(
            problem,
            seed=seed,
            sampler="evo_merging",
            population=population,
            sigma=sigma,
            bound=bound,
            regularization=regularization,
            weights=weights,
            scalarization=scalarization,
        )
        self._denoise = problem.budget // 3 if denoise is None else denoise
        scaled = self._coefficients.is_scaled
        self._numbers: NDArray[np.int64] = np.unique(self._coefficients.owners[scaled])
        """Of the experts with a beta."""
        self._whose = np.searchsorted(self._numbers, self._coefficients.owners[scaled])
        """Which beta scales a coefficient."""
        self._scale = 1.0 / self._coefficients.n_experts
        self._alpha = np.ones(int(scaled.sum()))
        self._u = np.array(problem.anchors[0])  # for the other dimensions

    def _next_stage(self) -> Stage | None:
        if self._n_stages == 2 or (self._n_stages == 1 and self._n_told < self._denoise):
            return None
        best = self._best()
        if self._n_stages == 0:
            if best is not None:
                self._u = best.z
                self._split(best.z)
            if self._n_told < self._denoise:
                return self._keeping()
            self._n_stages = 1  # there is nothing to denoise
        elif best is not None:
            self._u = self._kept(best.z)
            self._alpha = best.z[self._coefficients.is_scaled]
        return self._scaling()

    def _split(self, u: FloatArray) -> None:
        """Write a point's coefficients as shares of a scale."""
        c = self._coefficients.of(u)[: len(self._alpha)]
        if len(c) and c.max() >= SMALLEST_SCALE:
            self._scale = float(c.max())
            self._alpha = np.clip(c / self._scale, 0.0, 1.0)

    def _keeping(self) -> Stage:
        """Stage 1: every dimension is itself, but coefficients are shares of the scale."""
        start = self._u.copy()
        start[self._coefficients.is_scaled] = self._alpha
        return Stage(
            dimensions=self._problem.dimensions,
            start=tuple(start.tolist()),
            budget=self._denoise - self._n_told,
            point=self._kept,
            charged=lambda z: np.concatenate(
                [z[self._coefficients.is_scaled], self._coefficients.gates(z)]
            ),
        )

    def _kept(self, z: FloatArray) -> FloatArray:
        return self._coefficients.at(z[self._coefficients.is_scaled] * self._scale, z)

    def _scaling(self) -> Stage:
        """Stage 2: a beta per expert, then the dimensions that are no coefficients."""
        others = ~self._coefficients.is_scaled
        n = len(self._numbers)
        largest = np.zeros(n)
        np.maximum.at(largest, self._whose, self._alpha)
        is_dropped = largest * self._scale < SMALLEST_SCALE
        of_expert = np.where(is_dropped, 1.0, largest)[self._whose]
        alpha = np.where(is_dropped[self._whose], 1.0, self._alpha / of_expert)
        low, width = self._betas(alpha)
        kept = [self._problem.dimensions[i] for i in np.flatnonzero(others)]
        start = np.clip((largest * self._scale - low) / width, 0.0, 1.0)

        def point(z: FloatArray) -> FloatArray:
            u = self._u.copy()
            u[others] = z[n:]
            beta = low + z[:n] * width
            return self._coefficients.at(alpha * beta[self._whose], u)

        def charged(z: FloatArray) -> FloatArray:
            return np.concatenate([low + z[:n] * width, self._coefficients.gates(point(z))])

        return Stage(
            dimensions=(
                *(Dimension(f"scale of expert {k}") for k in self._numbers.tolist()),
                *kept,
            ),
            start=(*start.tolist(), *self._u[others].tolist()),
            budget=self._problem.budget - self._n_told,
            point=point,
            charged=charged,
        )

    def _betas(self, alpha: FloatArray) -> tuple[FloatArray, FloatArray]:
        """The lowest beta of each expert and the width of its range, as far as the cube reaches."""
        lowest, highest = self._coefficients.reach()
        share = np.maximum(alpha, NOTHING)
        low, high = np.zeros((2, len(self._numbers)))
        np.minimum.at(low, self._whose, lowest / share)
        np.maximum.at(high, self._whose, highest / share)
        low, high = np.maximum(low, -self._bound), np.minimum(high, self._bound)
        return low, high - low
