"""CMA-ES on a loss with a price on the coefficients: the frame of LoraHub and Evo-Merging."""

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from evomerge.datatypes import Candidate, Dimension, FloatArray, Problem
from evomerge.errors import ConfigError
from evomerge.samplers.archive_based import checked_range
from evomerge.samplers.cma_es import CmaEsSampler
from evomerge.samplers.design import Kinds, proposal
from evomerge.samplers.generational import Generational, Point
from evomerge.samplers.ledger import Told
from evomerge.samplers.options import checked_population
from evomerge.samplers.scalarization import scalarizer

SMALLEST_SPAN = 1e-3
"""Distance of base and expert in a dimension of the cube below which it is no coefficient."""


class Coefficients:
    """Real dimensions as coefficients: 0 at the base and 1 at the expert whom they move.

    `origin`, `span` (of the cube for a coefficient of 1) and `owners` (-1: nobody's) are
    `(n_dimensions,)`; `is_scaled` says which dimensions have a coefficient, `is_gate` which are an
    expert's bits and choices.
    """

    def __init__(self, problem: Problem, *, sampler: str) -> None:
        """Find them.

        Raises:
            ConfigError: the problem does not know its base, its experts or whom dimensions move.
        """
        d = len(problem.dimensions)
        owners = [-1 if owner is None else owner for owner in problem.owners or (None,) * d]
        kinds = Kinds.of(problem)
        self._kinds = kinds
        self.owners = np.array(owners, dtype=np.int64)
        self.n_experts = len(problem.experts)
        is_owned = self.owners >= 0
        self.is_gate = ~kinds.real & is_owned
        self.span = np.zeros(d)
        if problem.origin is not None and problem.experts:
            self.origin = np.array(problem.origin)
            alone = np.array(problem.experts)[self.owners, np.arange(d)]
            self.span = np.where(is_owned, alone - self.origin, 0.0)
        self.is_scaled = kinds.real & (np.abs(self.span) >= SMALLEST_SPAN)
        unknown = [
            *(["the base"] if problem.origin is None else []),
            *([] if problem.experts else ["the experts"]),
            *([] if (self.is_scaled | self.is_gate).any() else ["coefficients of one expert each"]),
        ]
        if unknown:
            raise ConfigError(
                f"{sampler} charges for coefficients, and so must find the base, each expert alone "
                f"and coordinates that lead from one to the other in the space, but it does not "
                f"find {' or '.join(unknown)}: take a space with a coefficient for each expert, "
                f"from 0 to 1 at least, or use cma_es or genetic"
            )

    def of(self, u: FloatArray) -> FloatArray:
        """Coefficients of a point where there are any, then 1 for each gate that is not the base's.

        Shape `(n_scaled + n_gates,)`.
        """
        scaled = self.is_scaled
        return np.concatenate([(u - self.origin)[scaled] / self.span[scaled], self.gates(u)])

    def gates(self, u: FloatArray) -> FloatArray:
        """0 for each gate of a point that is as the base's, else 1; shape `(n_gates,)`."""
        n = np.where(self._kinds.binary, 2, np.maximum(self._kinds.n_choices, 1))
        chosen, base = (np.minimum(np.floor(x * n), n - 1) for x in (u, self.origin))
        return np.asarray((chosen != base)[self.is_gate], dtype=np.float64)

    def at(self, c: FloatArray, u: FloatArray) -> FloatArray:
        """The point with coefficients `(n_scaled,)`, as far as the cube reaches, else as `u`."""
        scaled = self.is_scaled
        x = u.copy()
        x[scaled] = np.clip(self.origin[scaled] + c * self.span[scaled], 0.0, 1.0)
        return x

    def reach(self) -> tuple[FloatArray, FloatArray]:
        """The lowest and highest coefficients in the cube, `(n_scaled,)` each."""
        span, origin = self.span[self.is_scaled], self.origin[self.is_scaled]
        ends = np.array([-origin / span, (1.0 - origin) / span])
        return ends.min(axis=0), ends.max(axis=0)


@dataclass(frozen=True, slots=True, eq=False)
class Stage:
    """What CMA-ES varies: a cube of its own, of which it knows but these dimensions and a start.

    `point` gives the problem's point for one of the stage, `charged` the numbers whose mean
    magnitude is charged for.
    """

    dimensions: tuple[Dimension, ...]
    start: Point
    budget: int
    point: Callable[[FloatArray], FloatArray]
    charged: Callable[[FloatArray], FloatArray]


@dataclass(frozen=True, slots=True, eq=False)
class Tried:
    """A candidate with its place in its stage (its own point in generation 0), and what it costs.

    `magnitude` is the mean magnitude of what is charged for in its stage.
    """

    told: Told
    z: FloatArray
    magnitude: float


class RegularizedCmaEs(Generational):
    """Minimises loss + `regularization` * mean |coefficient|, in one stage or more.

    Generation 0 is the anchors and the mean of the experts; the stages begin at what came of it.
    Each is CMA-ES with the distribution's mean as a candidate, as the sampler `cma_es` is. Where a
    stage begins at a point whose losses are known, it is told these with its own charge, and the
    point is not asked again.
    """

    def __init__(
        self,
        problem: Problem,
        *,
        seed: int,
        sampler: str,
        population: int | None,
        sigma: float,
        bound: float,
        regularization: float,
        weights: Sequence[float] | Mapping[str, float] | None,
        scalarization: str,
    ) -> None:
        """Prepare generation 0; raises `ConfigError` for what does not fit."""
        checked_range("sigma", sigma, low=0.001, high=1.0)
        checked_range("bound", bound, low=0.01)
        checked_range("regularization", regularization, low=0.0)
        self._population = checked_population(sampler, population)
        self._scalarizer = scalarizer(problem, weights, scalarization, sampler=sampler)
        self._coefficients = Coefficients(problem, sampler=sampler)
        self._problem = problem
        self._kinds = Kinds.of(problem)
        self._seed = seed
        self._sigma = sigma
        self._bound = bound
        self._regularization = regularization
        self._history = np.empty((0, problem.n_objectives))
        self._n_told = 0
        self._n_stages = 0
        self._stage: Stage | None = None
        self._cma_es: CmaEsSampler | None = None
        self._tried: list[Tried] = []
        """Of the stage, or of generation 0."""
        self._known: tuple[Candidate, Told] | None = None
        """The start of a stage that has yet to be told what is known of it."""
        self._inner: list[Candidate] = []
        """What the stage's CMA-ES asked for, in the order of the generation's points."""
        super().__init__(problem.n_objectives, self._first_points())

    def _breed(self) -> list[Point]:
        stage = self._next_stage()
        if stage is not None:
            self._begin(stage)
        assert self._cma_es is not None  # the first stage begins after generation 0
        self._inner += iter(self._cma_es.ask, None)
        return [self._point(inner) for inner in self._inner]

    @abstractmethod
    def _next_stage(self) -> Stage | None:
        """What begins after the generation that was just told; None: the stage goes on."""

    def _best(self) -> Tried | None:
        """The best that was tried in the stage, charges included; None without any success."""
        losses = [tried.told.losses for tried in self._tried if tried.told.losses is not None]
        if not losses:
            return None
        succeeded = [tried for tried in self._tried if tried.told.losses is not None]
        values = self._scalarizer.losses(np.array(losses), self._history)
        magnitudes = np.array([tried.magnitude for tried in succeeded])
        return succeeded[int(np.argmin(values + self._regularization * magnitudes))]

    def _first_points(self) -> list[Point]:
        anchors = [tuple(map(float, anchor)) for anchor in dict.fromkeys(self._problem.anchors)]
        shares = np.full(
            int(self._coefficients.is_scaled.sum()), 1.0 / self._coefficients.n_experts
        )
        mean = self._coefficients.at(shares, np.array(anchors[0]))
        return list(dict.fromkeys([*anchors, tuple(proposal(mean, self._kinds))]))

    def _take(self, generation: Sequence[Told]) -> None:
        self._n_told += len(generation)
        F = [told.losses for told in generation if told.losses is not None]
        self._history = np.concatenate(
            [self._history, np.array(F).reshape(-1, self._problem.n_objectives)]
        )
        if self._stage is None or self._cma_es is None:
            for told in generation:
                u = np.array(told.candidate.u)
                magnitude = float(np.abs(self._coefficients.of(u)).mean())
                self._tried.append(Tried(told, u, magnitude))
            return
        pairs = list(zip(self._inner, generation, strict=True))
        self._inner = []
        if self._known is not None:
            pairs.insert(0, self._known)
            self._known = None
        for inner, told in pairs:
            z = np.array(inner.u)
            tried = Tried(told, z, float(np.abs(self._stage.charged(z)).mean()))
            self._tried.append(tried)
            if told.losses is None:
                self._cma_es.tell(inner, None)
                continue
            value = float(self._scalarizer.losses(np.array([told.losses]), self._history)[0])
            self._cma_es.tell(inner, [value + self._regularization * tried.magnitude])

    def _begin(self, stage: Stage) -> None:
        known = {tried.told.candidate.u: tried.told for tried in reversed(self._tried)}
        sequence = np.random.SeedSequence([self._seed, 0x4E60, self._n_stages])
        self._n_stages += 1
        self._stage = stage
        self._cma_es = CmaEsSampler(
            Problem(stage.dimensions, 1, (stage.start,), max(stage.budget, 1)),
            seed=int(sequence.generate_state(1)[0]),
            population=self._population,
            sigma=self._sigma,
        )
        self._tried = []
        start = self._cma_es.ask()
        assert start is not None  # a generation has four candidates at least
        told = known.get(self._point(start))
        if told is None:
            self._inner.append(start)
        else:
            self._known = (start, told)

    def _point(self, inner: Candidate) -> Point:
        assert self._stage is not None
        return tuple(proposal(self._stage.point(np.array(inner.u)), self._kinds))
