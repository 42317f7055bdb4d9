"""CMA-ES on one loss: adapts a normal distribution to the problem (Hansen 2016, arXiv 1604.00772).

The distributions are in search_distribution.py; around them are the start, failures and restarts.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np

from evomerge.datatypes import Candidate, Evidence, Problem
from evomerge.errors import ConfigError
from evomerge.samplers.ledger import Ledger, Told
from evomerge.samplers.options import checked_population, is_number
from evomerge.samplers.scalarization import scalarizer
from evomerge.samplers.search_distribution import (
    Distribution,
    NormalWithMargin,
    Point,
    RelaxedNormal,
)

Variant = Literal["auto", "full", "separable", "margin", "learning_rate"]

SEPARABLE_FROM = 48
"""Dimensions from which a diagonal covariance does as well and costs a fraction (measured)."""


class CmaEsSampler:
    """Minimises one loss, or several as one.

    The mean starts at the first anchor with `sigma` in every dimension; the anchors are candidates
    of generation 0. Bits are relaxed to reals: they turn where these pass 0.5; choices to one real
    each, of which the largest wins. A failed candidate ranks last in its generation; a generation
    without any success changes nothing. When the distribution has collapsed or stagnates (then its
    bits and choices no longer turn), a new one with twice the population starts from the next
    anchor (restarts with increasing population: Auger and Hansen 2005).

    From generation 1 on the distribution's mean is a candidate too, beside the samples: under noise
    it is better than the best of them. The distribution does not learn from it.

    Variants of the distribution:

    - `full` adapts all covariances, `separable` variances only (Ros and Hansen 2008). With up to
      3000 evaluations the latter is as good even on rotated problems. `auto` takes it from 48
      dimensions on, bits and choices counted as relaxed.
    - `margin` gives each bit and choice probabilities of its own that never vanish (CatCMA with
      margin: Hamano et al. 2025).
    - `learning_rate` slows down where noise hides the signal (LRA-CMA-ES: Nomura et al. 2023).
      Useless below about 3000 evaluations, and from 128 dimensions on it gets nowhere with those:
      a larger population is the better medicine (all measured).
    """

    def __init__(
        self,
        problem: Problem,
        *,
        seed: int,
        population: int | None = None,
        sigma: float = 0.2,
        variant: str = "auto",
        restarts: bool = True,
        weights: Sequence[float] | Mapping[str, float] | None = None,
        scalarization: str = "weighted",
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
            variant: `auto`, `full`, `separable`, `margin` or `learning_rate`.
            restarts: whether a collapsed distribution is followed by another; else it is sampled
                on as it is.
            weights: of the objectives, in their order or by name; only their ratios matter. They
                are of the losses as they come: with objectives on different scales, state weights
                that make up for it.
            scalarization: `weighted`, `tchebycheff` or `percentile`.

        Raises:
            ConfigError: an option is out of range, there are several objectives and no weights, or
                `margin` is asked for without a bit or choice.
        """
        if not (is_number(sigma) and 0 < sigma <= 10):
            raise ConfigError(
                f"sigma must be above 0 and at most 10 (in the unit cube), but got {sigma!r}: "
                f"0.2 is a good start"
            )
        if not isinstance(restarts, bool):
            raise ConfigError(f"restarts must be true or false, but got {restarts!r}: leave it out")
        self._variant = _checked_variant(variant, problem)
        self._scalarizer = scalarizer(problem, weights, scalarization, sampler="cma_es")
        self._problem = problem
        self._anchors = tuple(dict.fromkeys(problem.anchors))
        self._population = checked_population("cma_es", population) or max(
            default_population(len(problem.dimensions), problem.budget), len(self._anchors)
        )
        self._seed = seed
        self._sigma = sigma
        self._restarts = restarts
        self._is_settled = False
        """Whether the distribution has collapsed and none follows."""
        self._ledger = Ledger(problem.n_objectives)
        self._history = np.empty((0, problem.n_objectives))
        self._generation = 0
        self._n_restarts = 0
        self._distribution = self._start()
        # what is asked, and where the distribution is told that it was
        self._upcoming: list[tuple[Point, Any]] = [
            (a, self._distribution.placed(a)) for a in self._anchors[: self._population]
        ]
        self._points: dict[int, Any] = {}
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
            return self._ledger.ask(self._generation, self._distribution.mean())
        if len(self._points) == self._population:
            return None
        u, point = self._upcoming.pop(0) if self._upcoming else self._distribution.sample()
        candidate = self._ledger.ask(self._generation, u)
        self._points[candidate.id] = point
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
        self._owes_mean, self._has_asked_mean = not self._is_settled, False
        succeeded = [told for told in generation if told.losses is not None]
        if not succeeded or self._is_settled:
            return  # nothing is known about any point: draw again from the same distribution
        F = np.array([told.losses for told in succeeded])
        if self._scalarizer.kind != "weighted":  # the others compare with all that is known
            self._history = np.concatenate([self._history, F])
        losses = self._scalarizer.losses(F, self._history).tolist()
        ranked = [
            (points[told.candidate.id], loss) for told, loss in zip(succeeded, losses, strict=True)
        ]
        # failures behind the worst success: ties count in their order
        ranked += [
            (points[told.candidate.id], max(losses)) for told in generation if told.losses is None
        ]
        self._distribution.learn(ranked)
        if not self._distribution.is_exhausted():
            return
        if not self._restarts:
            self._is_settled = True
            return
        self._n_restarts += 1
        self._population *= 2
        self._distribution = self._start()
        self._owes_mean = False  # the mean is an anchor now, which is known

    def _start(self) -> Distribution:
        """A distribution around the anchor whose turn it is, with a seed of its own."""
        anchor = self._anchors[self._n_restarts % len(self._anchors)]
        sequence = np.random.SeedSequence([self._seed, 0xC3A, self._n_restarts])
        seed = int(sequence.generate_state(1)[0])
        if self._variant == "margin":
            return NormalWithMargin(self._problem, anchor, self._sigma, self._population, seed)
        return RelaxedNormal(
            self._problem, anchor, self._sigma, self._population, seed, self._variant
        )


def default_population(n_dimensions: int, budget: int) -> int:
    """Twice eq. 48 of the tutorial if the budget has room for ten generations of that size."""
    smallest = 4 + math.floor(3 * math.log(n_dimensions))  # eq. 48
    return min(2 * smallest, max(smallest, budget // 10))


def _checked_variant(
    variant: str, problem: Problem
) -> Literal["full", "separable", "margin", "learning_rate"]:
    """The variant, `auto` settled by the number of relaxed dimensions."""
    known = next((one for one in get_args(Variant) if one == variant), None)
    if known is None:
        raise ConfigError(
            f"the variant of cma_es is one of {', '.join(get_args(Variant))}, but got {variant!r}: "
            f"leave it out for auto"
        )
    if known == "margin" and all(d.kind == "real" for d in problem.dimensions):
        raise ConfigError(
            "margin is for bits and choices, but all dimensions are real: use full or separable"
        )
    if known != "auto":
        return known  # type: ignore[no-any-return]  # get_args has no type
    n_reals = sum(max(d.n_choices, 1) for d in problem.dimensions)
    return "separable" if n_reals >= SEPARABLE_FROM else "full"
