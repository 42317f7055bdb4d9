"""LoraHub: weights of a pool of adapters, found without gradients (Huang et al. 2023)."""

from collections.abc import Mapping, Sequence

import numpy as np

from evomerge.datatypes import FloatArray, Problem
from evomerge.samplers.regularized import RegularizedCmaEs, Stage


class LorahubSampler(RegularizedCmaEs):
    """Minimises loss + `regularization` * mean |coefficient| over coefficients within `bound`.

    The published search starts with all coefficients at 0, where adapters that are added factor by
    factor have a saddle, and leaves the choice of the algorithm to Nevergrad. This one is CMA-ES
    from the best of the anchors and the experts' mean. Bits and choices are searched too; those
    that an expert owns are charged with 1 where they are not the base's.
    """

    def __init__(
        self,
        problem: Problem,
        *,
        seed: int,
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
            population: candidates of a generation of CMA-ES; its own default if left out.
            sigma: initial standard deviation, as a share of the range of a coefficient: .05 of a
                range of 3 is better than twice as much for pools of 8 and 20 experts (LOG.md).
            bound: largest magnitude of a coefficient, where the space reaches so far.
            regularization: what a mean magnitude of 1 costs, in units of the (scalarized) loss,
                which is a mean over items: it does not depend on how many there are.
            weights: of the objectives, in their order or by name; only their ratios matter.
            scalarization: `weighted`, `tchebycheff` or `percentile`.

        Raises:
            ConfigError: an option is out of range, there are several objectives and no weights, or
                the space does not say where its base and its experts are.
        """
        super().__init__(
            problem,
            seed=seed,
            sampler="lorahub",
            population=population,
            sigma=sigma,
            bound=bound,
            regularization=regularization,
            weights=weights,
            scalarization=scalarization,
        )
        at, scaled = self._coefficients, self._coefficients.is_scaled
        lowest, highest = at.reach()
        n = len(scaled)
        ends = (
            at.at(np.maximum(lowest, -bound), np.zeros(n)),
            at.at(np.minimum(highest, bound), np.ones(n)),
        )
        self._low, self._width = np.minimum(*ends), np.abs(ends[1] - ends[0])

    def _next_stage(self) -> Stage | None:
        if self._stage is not None:
            return None
        best = self._best()
        u = np.array(self._problem.anchors[0]) if best is None else best.z
        start = np.clip((u - self._low) / self._width, 0.0, 1.0)
        return Stage(
            dimensions=self._problem.dimensions,
            start=tuple(start.tolist()),
            budget=self._problem.budget - self._n_told,
            point=self._placed,
            charged=lambda z: self._coefficients.of(self._placed(z)),
        )

    def _placed(self, z: FloatArray) -> FloatArray:
        """The point of the cube for a point of the stage, where coefficients are within bounds."""
        return self._low + z * self._width
