"""Crossover and mutation of a whole generation of points that have reals, bits and choices."""

from typing import Any

import numpy as np

from evomerge.datatypes import FloatArray
from evomerge.samplers.design import DECIMALS, FLIP_PROBABILITY, Kinds


class Recombination:
    """Real dimensions by simulated binary crossover and polynomial mutation (pymoo's: Deb 1995).

    Binary ones are varied by uniform crossover and bit flips, categorical ones by uniform crossover
    and another choice at random.
    """

    def __init__(self, kinds: Kinds) -> None:
        """Prepare for dimensions of these kinds."""
        from pymoo.config import Config

        Config.warnings["not_compiled"] = False  # else it prints, also into tables and JSON

        from pymoo.core.problem import Problem
        from pymoo.operators.crossover.sbx import SBX
        from pymoo.operators.mutation.pm import PM

        self._kinds = kinds
        self._real = kinds.real
        self._reals = Problem(n_var=int(kinds.real.sum()), n_obj=1, xl=0.0, xu=1.0)
        self._sbx: Any = SBX(eta=15)
        self._pm: Any = PM(eta=20)

    def crossed(self, X: FloatArray, rng: np.random.Generator) -> FloatArray:
        """Cross pairs.

        Args:
            X: `(2, n_matings, n_dimensions)` parents.
            rng: of the crossover.

        Returns:
            Two children of each pair in the same shape, not rounded.
        """
        Q = X.copy()
        if self._reals.n_var:
            Q[:, :, self._real] = self._sbx._do(self._reals, X[:, :, self._real], random_state=rng)
        swap = (rng.random(X.shape[1:]) < 0.5) & ~self._real
        Q[:, swap] = X[::-1, swap]
        return Q

    def mutated(self, X: FloatArray, rng: np.random.Generator) -> FloatArray:
        """Mutate `(n_points, n_dimensions)` points into others, written as they are proposed."""
        binary, categorical = self._kinds.binary, self._kinds.categorical
        Q = X.copy()
        if self._reals.n_var:
            Q[:, self._real] = self._pm._do(self._reals, X[:, self._real], random_state=rng)
        flip = (rng.random(X.shape) < 1.0 / max(binary.sum(), 1)) & binary
        Q[flip] = np.where(X[flip] >= 0.5, 0.0, 1.0)
        if categorical.any():
            n = self._kinds.n_choices[categorical]
            C = X[:, categorical]
            changes = rng.random(C.shape) < min(FLIP_PROBABILITY, 1.0 / len(n))
            others = 1 + np.floor(rng.random(C.shape) * (n - 1))  # steps around
            chosen = (np.floor(C * n) + others) % n
            Q[:, categorical] = np.where(changes, (chosen + 0.5) / n, Q[:, categorical])
        return np.asarray(np.round(Q, DECIMALS))
