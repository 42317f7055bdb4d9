"""Nested MAP: experts are merged in pairs, the merges in pairs again, until one is left."""

from collections.abc import Mapping, Sequence

import numpy as np

from evomerge.datatypes import Candidate, Evidence, FloatArray, Problem
from evomerge.errors import ConfigError
from evomerge.samplers.design import Kinds, proposal
from evomerge.samplers.ledger import Ledger, Told
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


class NestedMapSampler:
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
        self._ledger = Ledger(m)
        ends = [problem.origin, *problem.experts]
        written = [tuple(proposal(np.array(end, dtype=np.float64), self._kinds)) for end in ends]
        anchors = [tuple(map(float, anchor)) for anchor in problem.anchors]
        self._upcoming = list(dict.fromkeys([*anchors, *written]))
        room = FOR_PAIRS * (problem.budget - len(self._upcoming)) / (len(problem.experts) - 1)
        self._n_samples = given or int(np.clip(room - 3, FEWEST, SAMPLES))
        self._n_current = len(self._upcoming)
        self._proposed = set(self._upcoming)
        self._generation = 0
        self._tasks: Tasks | None = None
        self._open: list[Node] = []
        self._pairs: list[Merge] = []
        self._plan: list[tuple[Merge, FloatArray]] = []
        self._known: list[Told] = []
        self._n_final = 0
        self._remarks: dict[str, None] = {}

    @property
    def generation_size(self) -> int:
        """How many candidates are asked for before the next generation is made."""
        return self._n_current

    @property
    def remarks(self) -> tuple[str, ...]:
        """What the user should know about the pairs' quadratics."""
        return tuple(self._remarks)

    def ask(self) -> Candidate | None:
        """The next candidate, or None while a wholly asked generation is not wholly told."""
        if not self._upcoming:
            return None
        return self._ledger.ask(self._generation, self._upcoming.pop(0))

    def tell(
        self,
        candidate: Candidate,
        losses: Sequence[float] | None,
        evidence: Evidence | None = None,
    ) -> None:
        """Take in losses; the last of a generation settles its pairs.

        Raises:
            ValueError: the candidate is not pending or its losses are not finite.
        """
        self._ledger.tell(candidate, losses, evidence)
        if not self._upcoming and self._ledger.n_pending == 0:
            generation = self._ledger.close_generation()
            self._known += [told for told in generation if told.losses is not None]
            self._upcoming = self._following(generation)
            self._generation += 1
            self._n_current = len(self._upcoming)

    def _following(self, generation: Sequence[Told]) -> list[tuple[float, ...]]:
        rng = np.random.default_rng([self._seed, 0x3A95, self._generation])
        if self._tasks is None:
            self._open = self._leaves(generation)
            self._tasks = Tasks(self._open, self._weights)
            return self._sampled(rng)
        if self._pairs and not self._pairs[0].sampled:
            for pair, told in self._told_pairs(generation):
                pair.settle(told, self._problem, self._tasks)
                self._remarks.update(dict.fromkeys(pair.remarks))
            return self._checked(rng)
        if self._pairs:
            for pair, told in self._told_pairs(generation):
                pair.choose(told, self._tasks)
            self._open = [*self._open, *self._pairs]
            self._pairs = []
        if len(self._open) > 1:
            return self._sampled(rng)
        return self._final(rng)

    def _leaves(self, generation: Sequence[Told]) -> list[Node]:
        by_point = {told.candidate.u: told for told in generation}
        leaves = []
        for i, expert in enumerate(self._problem.experts):
            u = tuple(proposal(np.array(expert, dtype=np.float64), self._kinds))
            leaves.append(Node((i,), np.array(u), by_point[u]))
        return leaves

    def _sampled(self, rng: np.random.Generator) -> list[tuple[float, ...]]:
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

    def _checked(self, rng: np.random.Generator) -> list[tuple[float, ...]]:
        """What the quadratics of each pair propose."""
        assert self._tasks is not None
        self._plan, points = [], []
        for pair in self._pairs:
            for c in pair.proposals(self._tasks):
                points.append(self._point(pair.at(c, self._origin), pair.best_point, rng))
                self._plan.append((pair, c))
        return points

    def _final(self, rng: np.random.Generator) -> list[tuple[float, ...]]:
        """Nested merges for other preferences."""
        assert self._tasks is not None
        (root,) = self._open
        m = self._problem.n_objectives
        directions = np.ones((1, m))  # the preferences as they are, then more of each
        if m > 1:
            directions = np.vstack([directions / m, reference_directions(m, 4 * FINAL)])
        points = []
        for i in range(FINAL):
            turn = self._n_final + i
            drawn = rng.dirichlet(np.ones(m))
            w = directions[turn] if turn < len(directions) else drawn
            w = (w + EVEN / m) * self._weights
            w = w / w.sum()
            x = root.for_preferences(w, self._tasks, self._origin)
            others = self._varied(w, rng)
            points.append(self._point(x, others, rng))
        self._n_final += FINAL
        return points

    def _varied(self, w: FloatArray, rng: np.random.Generator) -> FloatArray:
        """Bits and choices of the best merge known, about one of them turned."""
        n_whole = int((~self._kinds.real).sum())
        if n_whole == 0:
            return self._origin
        others = self._best_known(w)
        turned = rng.random(len(others)) < min(TURN, 1.0 / n_whole)
        return np.where(turned, rng.random(len(others)), others)

    def _best_known(self, w: FloatArray) -> FloatArray:
        """The point of the smallest weighted loss, in the experts' ranges."""
        assert self._tasks is not None
        if not self._known:
            return np.array(self._problem.anchors[0])
        losses = np.array([told.losses for told in self._known])
        best = int(np.argmin(self._tasks.weighted(losses, w)))
        return np.array(self._known[best].candidate.u)

    def _told_pairs(
        self, generation: Sequence[Told]
    ) -> list[tuple[Merge, list[tuple[FloatArray, Told]]]]:
        """Each pair with its coefficients and what was told of them."""
        told: dict[int, list[Row]] = {id(pair): [] for pair in self._pairs}
        for (pair, c), one in zip(self._plan, generation, strict=True):
            told[id(pair)].append((c, one))
        return [(pair, told[id(pair)]) for pair in self._pairs]

    def _point(
        self, x: FloatArray, others: FloatArray, rng: np.random.Generator
    ) -> tuple[float, ...]:
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
