"""From points of the cube to the coefficients in which MAP's quadratics are written."""

import numpy as np

from evomerge.datatypes import FloatArray, Problem
from evomerge.samplers.design import Kinds


class Coordinates:
    """Real dimensions become coefficients, 0 at the base and 1 at the expert who owns them.

    Where the problem does not know base, experts or owners, a coefficient is the coordinate of the
    cube. Bits are 0 or 1; a choice is one coefficient for each possibility, 1 for what is chosen.
    """

    def __init__(self, problem: Problem) -> None:
        self._kinds = Kinds.of(problem)
        d = len(problem.dimensions)
        self.origin = np.zeros(d) if problem.origin is None else np.array(problem.origin)
        """`(n_dimensions,)` point whose coefficients are 0."""
        self.scale: FloatArray = np.ones(d)
        """`(n_dimensions,)` step of the cube that raises a coefficient by 1."""
        for i, owner in enumerate(problem.owners):
            if owner is not None and problem.origin is not None and owner < len(problem.experts):
                step = problem.experts[owner][i] - problem.origin[i]
                self.scale[i] = step if step != 0.0 else 1.0
        self.n_coefficients = int(np.maximum(self._kinds.n_choices, 1).sum())
        """How many there are."""

    def coefficients(self, points: FloatArray) -> FloatArray:
        """Shape `(n_points, n_coefficients)` of `(n_points, n_dimensions)` points as proposed."""
        kinds = self._kinds
        columns = [
            np.where(kinds.real, (points - self.origin) / self.scale, points)[:, ~kinds.categorical]
        ]
        for i in np.flatnonzero(kinds.categorical):
            n = int(kinds.n_choices[i])
            columns.append(np.eye(n)[np.minimum((points[:, i] * n).astype(np.int64), n - 1)])
        return np.hstack(columns)
