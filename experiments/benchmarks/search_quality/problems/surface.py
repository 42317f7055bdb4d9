"""What a problem of the bench is: a noisy surface over the unit cube whose truth is known."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from evomerge import pareto
from evomerge.datatypes import Dimension, Evidence, FloatArray, Problem


class Surface(Protocol):
    """Losses over a cube; `truth` is noise-free."""

    n_dimensions: int
    reference: FloatArray
    """`(n_objectives,)` losses that do not count any more."""

    def truth(self, points: FloatArray) -> FloatArray:
        """`(n_points, n_objectives)` losses."""

    def observe(self, losses: FloatArray, rng: np.random.Generator) -> tuple[FloatArray, Evidence]:
        """One evaluation: noisy `(n_objectives,)` losses and what they rest on."""


@dataclass(frozen=True)
class Binomial:
    """Accuracies counted over items: losses are minus the share of right answers."""

    n_items: int = 500

    def observe(self, losses: FloatArray, rng: np.random.Generator) -> tuple[FloatArray, Evidence]:
        """Draw the number of right answers of each objective."""
        n = self.n_items
        share = rng.binomial(n, np.clip(-losses, 0.0, 1.0)) / n
        # Wilson-like: all right is no certainty
        padded = (share * n + 1.0) / (n + 2.0)
        errors = np.sqrt(padded * (1.0 - padded) / n)
        return -share, Evidence(tuple(errors.tolist()), (n,) * len(losses))


@dataclass(frozen=True)
class Normal:
    """Noise of one known standard deviation."""

    deviation: float = 0.01

    def observe(self, losses: FloatArray, rng: np.random.Generator) -> tuple[FloatArray, Evidence]:
        """Add it to each objective."""
        noisy = losses + self.deviation * rng.normal(size=len(losses))
        return noisy, Evidence((self.deviation,) * len(losses), (1,) * len(losses))


def problem_of(surface: Surface, budget: int) -> Problem:
    """What a sampler is told of a surface: its centre is the known-good merge."""
    return Problem(
        dimensions=tuple(Dimension(f"x{i}") for i in range(surface.n_dimensions)),
        n_objectives=len(surface.reference),
        anchors=((0.5,) * surface.n_dimensions,),
        budget=budget,
    )


def hypervolume(surface: Surface, points: FloatArray) -> float:
    """The true hypervolume of all points."""
    return pareto.hypervolume(surface.truth(points), surface.reference)
