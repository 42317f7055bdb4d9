"""Nested MAP: experts are merged in pairs, the merges in pairs again, until one is left."""

from collections.abc import Mapping, Sequence

import numpy as np

from evomerge.datatypes import FloatArray, Problem
from evomerge.errors import ConfigError
from evomerge.samplers.design import Kinds, proposal
from evomerge.samplers.generational import Generational, Point
from evomerge.samplers.ledger import Told
from evomerge.samplers.map.design import latin_hypercube
from evomerge.samplers.map.one_shot import checked_samples
from evomerge.samplers.map.tree import Merge, Node, Row, Tasks, paired
from evomerge.samplers.reference_directions import reference_directions
from evomerge.samplers.scalarization import checked_weights

SAMPLES = 20
"""Merges of a pair, as published: a quadratic in two coefficients has six parameters."""

FEWEST = 8

FOR_PAIRS = 0.7
"""Share of the budget for the pairs, where the published number does not fit."""

FINAL = 8
"""Candidates of a generation, once one merge is left."""

TURN = 0.2
"""Probability at most with which a bit or choice is no side's, and in the end not the best's."""

EVEN = 0.3
"""How much of even preferences is mixed into every other one: no expert is given up for little."""

_TRIES = 20


class NestedMapSampler(Generational):
    """Merges pairs of models by quadratics in two coefficients each: many experts cost little.

    Generation 0 is the anchors, the base and the experts alone. A level pairs those whose scores on
    their own tasks are nearest (the paper: one pair after the other, here all of a level at once);
    an expert's tasks are those at which no other expert is better. A generation samples every
    pair's two coefficients in [0, 1], the next one tries what the quadratics predict to be best,
    for the preferences and for each side more. The best of these is a model of the next level.

    The paper ends with one merge for one preference. Here every later candidate is the nested merge
    for another preference, by the pairs' quadratics from the bottom up: a front. Bits and choices
    are taken over from the sides, and from the best merge known in the end.
    """

    def __init__(
        self,
        problem: Problem,
        *,
        seed: int,
        samples: int | None = None,
        weights: Sequence[float] | Mapping[str, float] | None = None,
    ) -> None:
        """Start with the anchors, the base and the experts.

        Args:
            problem: Dimensions, anchors, objectives, budget; base and experts have to be known.
            seed: Of everything random.
            samples: Merges of a pair; by default SAMPLES, or fewer where the budget is short.
            weights: Preferences, one per objective, in their order or by name; equal by default.

        Raises:
            ConfigError: An option does not fit, or there are no two experts.
        """
        if problem.origin is None or len(problem.experts) < 2:
            raise ConfigError(
                f"nested_map merges experts in pairs and needs to know the base and two experts at "
                f"least, but the space names {len(problem.experts)}: use map"
            )
        m = problem.n_objectives
        preferred = [1.0] * m if weights is None else weights
        self._weights = checked_weights(problem, preferred, sampler="nested_map")
        self._problem, self._kinds, self._seed = problem, Kinds.of(problem), seed
        self._origin = np.array(problem.origin, dtype=np.float64)
        given = None if samples is None else checked_samples("nested_map", problem, samples)
        ends = [problem.origin, *problem.experts]
        written = [tuple(proposal(np.array(end, dtype=np.float64), self._kinds)) for end in ends]
        anchors = [tuple(map(float, anchor)) for anchor in problem.anchors]
        super().__init__(m, list(dict.fromkeys([*anchors, *written])))
        room = FOR_PAIRS * (problem.budget - len(self._upcoming)) / (len(problem.experts) - 1)
        self._n_samples = given or int(np.clip(room - 3, FEWEST, SAMPLES))
        self._proposed = set(self._upcoming)
        self._tasks: Tasks | None = None
        self._open: list[Node] = []
        self._pairs: list[Merge] = []
        self._plan: list[tuple[Merge, FloatArray]] = []
        self._points: list[Point] = []
        self._scaled = np.empty((0, m))
        """Losses of the points, in the experts' ranges."""
        self._n_final = 0
        self._remarks: dict[str, None] = {}

    def _take(self, generation: Sequence[Told]) -> None:
        if self._tasks is None:
            self._open = self._leaves(generation)
            self._tasks = Tasks(self._open, self._weights)
        self._remember(generation, self._tasks)
        is_sampled = any(pair.sampled for pair in self._pairs)
        for pair, told in self._told_pairs(generation):
            if is_sampled:
                pair.choose(told, self._tasks)
            else:
                pair.settle(told, self._problem, self._tasks)
                self._remarks.update(dict.fromkeys(pair.remarks))
        if is_sampled:
            self._open, self._pairs = [*self._open, *self._pairs], []

    def _remember(self, generation: Sequence[Told], tasks: Tasks) -> None:
        known = [told for told in generation if told.losses is not None]
        self._points += [told.candidate.u for told in known]
        losses = np.array([told.losses for told in known]).reshape(-1, self._problem.n_objectives)
        self._scaled = np.concatenate([self._scaled, tasks.scaled(losses)])

    def _breed(self) -> list[Point]:
        rng = np.random.default_rng([self._seed, 0x3A95, self._generation])
        if self._pairs:
            return self._checked(rng)
        return self._sampled(rng) if len(self._open) > 1 else self._final(rng)

    def _leaves(self, generation: Sequence[Told]) -> list[Node]:
        by_point = {told.candidate.u: told for told in generation}
        leaves = []
        for i, expert in enumerate(self._problem.experts):
            u = tuple(proposal(np.array(expert, dtype=np.float64), self._kinds))
            leaves.append(Node((i,), np.array(u), by_point[u]))
        return leaves

    def _sampled(self, rng: np.random.Generator) -> list[Point]:
        """Pair the models of this level, and lay out every pair's coefficients."""
        assert self._tasks is not None
        pairs, self._open = paired(self._open, self._tasks)
        self._pairs = [Merge(a, b) for a, b in pairs]
        self._plan, points = [], []
        for pair in self._pairs:
            for c in latin_hypercube(self._n_samples, np.zeros(2), np.ones(2), rng):
                sides = np.where(rng.random(len(self._origin)) < 0.5, pair.a.point, pair.b.point)
                turned = rng.random(len(sides)) < TURN
                others = np.where(turned, rng.random(len(sides)), sides)
                points.append(self._point(pair.at(c, self._origin), others, rng))
                self._plan.append((pair, c))
        return points

    def _checked(self, rng: np.random.Generator) -> list[Point]:
        """What the quadratics of each pair propose."""
        assert self._tasks is not None
        self._plan, points = [], []
        for pair in self._pairs:
            for c in pair.proposals(self._tasks):
                points.append(self._point(pair.at(c, self._origin), pair.best_point, rng))
                self._plan.append((pair, c))
        return points

    def _final(self, rng: np.random.Generator) -> list[Point]:
        """Nested merges for other preferences."""
        assert self._tasks is not None
        (root,) = self._open
        m = self._problem.n_objectives
        directions = np.ones((1, m))  # the preferences as they are, then more of each
        if m > 1:
            directions = np.vstack([directions / m, reference_directions(m, 4 * FINAL)])
        points: list[Point] = []
        for i in range(FINAL):
            turn = self._n_final + i
            drawn = rng.dirichlet(np.ones(m))
            w = directions[turn] if turn < len(directions) else drawn
            w = (w + EVEN / m) * self._weights
            w = w / w.sum()
            x = root.for_preferences(w, self._tasks, self._origin)
            is_known = tuple(proposal(x, self._kinds)) in self._proposed
            # looked for only where it counts: the search goes through all that is known
            best = self._best_known(w) if is_known or not self._kinds.real.all() else x
            # what the quadratics have said before is left for the best merge
            points.append(self._point(best if is_known else x, self._varied(best, rng), rng))
        self._n_final += FINAL
        return points

    def _best_known(self, w: FloatArray) -> FloatArray:
        """The point of the smallest weighted loss, in the experts' ranges."""
        if not self._points:
            return np.array(self._problem.anchors[0])
        return np.array(self._points[int(np.argmin((self._scaled * w).sum(axis=1)))])

    def _varied(self, best: FloatArray, rng: np.random.Generator) -> FloatArray:
        """Bits and choices of the best merge known, about one of them turned."""
        n_whole = max(int((~self._kinds.real).sum()), 1)
        turned = rng.random(len(best)) < min(TURN, 1.0 / n_whole)
        return np.where(turned, rng.random(len(best)), best)

    def _told_pairs(self, generation: Sequence[Told]) -> list[tuple[Merge, list[Row]]]:
        """Each pair with its coefficients and what was told of them."""
        planned = list(zip(self._plan, generation, strict=True)) if self._pairs else []
        return [
            (pair, [(c, told) for (its, c), told in planned if its is pair]) for pair in self._pairs
        ]

    def _point(self, x: FloatArray, others: FloatArray, rng: np.random.Generator) -> Point:
        """As proposed, bits and choices those of another point; moved until it is new."""
        x = np.where(self._kinds.real, np.clip(x, 0.0, 1.0), others)
        u = tuple(proposal(x, self._kinds))
        for attempt in range(_TRIES):
            if u not in self._proposed:
                break
            moved = np.clip(x + rng.normal(0.0, 0.02 * 1.3**attempt, len(x)), 0.0, 1.0)
            turns = rng.random(len(x)) < (attempt + 1) / len(x)
            row = np.where(self._kinds.real, moved, np.where(turns, rng.random(len(x)), x))
            u = tuple(proposal(row, self._kinds))
        self._proposed.add(u)
        return u
