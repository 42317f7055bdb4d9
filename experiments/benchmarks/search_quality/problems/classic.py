"""DTLZ2 and ZDT with noise, from pymoo."""

import numpy as np

from evomerge.datatypes import Evidence, FloatArray

from .surface import Normal


class Classic:
    """A textbook problem with normal noise; the start's centre is no good point here."""

    def __init__(self, name: str, n_dimensions: int, n_objectives: int) -> None:
        from pymoo.problems import get_problem

        options = {"n_obj": n_objectives} if name.startswith("dtlz") else {}
        self._problem = get_problem(name, n_var=n_dimensions, **options)
        self._noise = Normal()
        self.n_dimensions = n_dimensions
        worst = {"zdt1": [1.1, 7.0], "zdt2": [1.1, 7.0], "zdt3": [1.1, 7.0]}
        self.reference = np.array(worst.get(name, [2.5] * n_objectives))

    def truth(self, points: FloatArray) -> FloatArray:
        """The problem's own losses."""
        return np.asarray(self._problem.evaluate(points))

    def observe(self, losses: FloatArray, rng: np.random.Generator) -> tuple[FloatArray, Evidence]:
        """With a standard deviation of .01."""
        return self._noise.observe(losses, rng)
