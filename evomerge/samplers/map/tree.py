"""The tree of nested MAP: experts are its leaves, a merge of two models is a node."""

import itertools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from evomerge.datatypes import Dimension, FloatArray, Problem
from evomerge.samplers.history_based import View
from evomerge.samplers.ledger import Told
from evomerge.samplers.map.coordinates import Coordinates
from evomerge.samplers.map.surrogates import Surrogates

STEPS = 41
"""Values of a coefficient among which the best is sought: finer ones no quadratic tells apart."""

EMPHASIS = 2.0
"""How much more a side's tasks weigh in the proposal for it."""


Row = tuple[FloatArray, Told]
"""A pair's two coefficients, and what was told of them."""


class Node:
    """A model: the numbers of its experts, its `(n_dimensions,)` point, what was told of it."""

    def __init__(self, members: tuple[int, ...], point: FloatArray, told: Told | None) -> None:
        self.members, self.point, self.told = members, point, told

    def for_preferences(self, w: FloatArray, tasks: "Tasks", origin: FloatArray) -> FloatArray:
        """The point of this model made for other preferences; an expert stays as it is."""
        del w, tasks, origin
        return self.point


class Tasks:
    """Which objectives are whose, how much they weigh, and in which ranges losses count."""

    def __init__(self, leaves: Sequence[Node], weights: FloatArray) -> None:
        """Give every objective to the expert who is best at it, the first of equals."""
        self.weights = weights
        known = [leaf for leaf in leaves if leaf.told is not None and leaf.told.losses is not None]
        losses = np.array([leaf.told.losses for leaf in known if leaf.told is not None])
        self._best, self._range = np.zeros(len(weights)), np.ones(len(weights))
        self._owners = np.full(len(weights), -1)
        if known:
            self._best = losses.min(axis=0)
            spread = losses.max(axis=0) / 2.0 - self._best / 2.0  # of huge losses, too
            self._range = np.where(spread > 0.0, spread, 1.0)
            self._owners = np.array([known[row].members[0] for row in losses.argmin(axis=0)])

    def of(self, members: Sequence[int]) -> FloatArray:
        """Weights `(n_objectives,)` of the tasks of some experts, all if they lead at none."""
        own = np.isin(self._owners, members)
        return np.where(own, self.weights, 0.0) if own.any() else self.weights

    def scaled(self, losses: FloatArray) -> FloatArray:
        """Losses `(n, n_objectives)` in the experts' ranges."""
        return np.asarray((losses / 2.0 - self._best / 2.0) / self._range)

    def weighted(self, losses: FloatArray, w: FloatArray) -> FloatArray:
        """Mean of `(n, n_objectives)` losses in the experts' ranges, shape `(n,)`."""
        return np.asarray((self.scaled(losses) * w).sum(axis=1) / w.sum())

    def score(self, node: Node) -> float:
        """Weighted loss at the node's own tasks; failures score as the worst expert."""
        if node.told is None or node.told.losses is None:
            return 1.0
        return float(self.weighted(np.array([node.told.losses]), self.of(node.members))[0])


def paired(nodes: Sequence[Node], tasks: Tasks) -> tuple[list[tuple[Node, Node]], list[Node]]:
    """Pair neighbours in the order of scores; of an odd number the one that fits least is left."""
    order = sorted(nodes, key=tasks.score)
    pairs: list[tuple[Node, Node]] = []
    while len(order) > 1:
        gaps = [tasks.score(b) - tasks.score(a) for a, b in itertools.pairwise(order)]
        i = int(np.argmin(gaps))
        pairs.append((order[i], order[i + 1]))
        del order[i : i + 2]
    return pairs, order


class Merge(Node):
    """Two models and the quadratics in their coefficients."""

    def __init__(self, a: Node, b: Node) -> None:
        super().__init__((*a.members, *b.members), a.point, None)
        self.a, self.b = a, b
        self.c = np.array([0.5, 0.5])
        self.sampled = False
        self.best_point = a.point
        self.remarks: tuple[str, ...] = ()
        self._is_own: NDArray[np.bool_] | None = None
        self._grid, self._predicted = np.zeros((0, 2)), np.zeros((0, 0))

    def at(self, c: FloatArray, origin: FloatArray) -> FloatArray:
        """The point of two coefficients."""
        return self._between(c, self.a.point, self.b.point, origin)

    def settle(self, told: Sequence[Row], problem: Problem, tasks: Tasks) -> None:
        """Fit the quadratics to what was told of pairs of coefficients and of the sides alone."""
        self.sampled = True
        sides = [(np.array([1.0, 0.0]), self.a.told), (np.array([0.0, 1.0]), self.b.told)]
        rows = [(c, t) for c, t in (*sides, *told) if t is not None and t.losses is not None]
        if not rows:
            return
        self._take_best(rows, tasks)
        view = _view(rows, problem.n_objectives)
        inner = Problem(
            dimensions=(Dimension("first"), Dimension("second")),
            n_objectives=problem.n_objectives,
            anchors=((0.5, 0.5),),
            budget=len(rows),
            names=problem.names,
        )
        surrogates = Surrogates(inner, Coordinates(inner), view, published=False)
        self.remarks = surrogates.remarks
        axis = np.linspace(0.0, 1.0, STEPS)
        self._grid = np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1).reshape(-1, 2)
        self._predicted = surrogates.losses(self._grid)
        self.c = self._best(tasks.of(self.members))

    def proposals(self, tasks: Tasks) -> list[FloatArray]:
        """Coefficients for the preferences, and for each side's tasks more; each once."""
        w = tasks.of(self.members)
        emphasised = [w + (EMPHASIS - 1.0) * tasks.of(side.members) for side in (self.a, self.b)]
        found = {tuple(self._best(one).tolist()): None for one in (w, *emphasised)}
        return [np.array(c) for c in found]

    def choose(self, told: Sequence[Row], tasks: Tasks) -> None:
        """Become the best of what was proposed; where all of it failed, the best of the samples."""
        rows = [(c, t) for c, t in told if t.losses is not None]
        if rows:
            self._take_best(rows, tasks)
        self.point = self.best_point

    def for_preferences(self, w: FloatArray, tasks: Tasks, origin: FloatArray) -> FloatArray:
        """The nested merge for `(n_objectives,)` preferences, by the quadratics from below."""
        if self._is_own is None:
            self._is_own = tasks.of(self.members) > 0.0
        own = np.where(self._is_own, w, 0.0)
        a = self.a.for_preferences(w, tasks, origin)
        b = self.b.for_preferences(w, tasks, origin)
        return self._between(self._best(own), a, b, origin)

    @staticmethod
    def _between(c: FloatArray, a: FloatArray, b: FloatArray, origin: FloatArray) -> FloatArray:
        x = origin + c[0] * (a - origin) + c[1] * (b - origin)
        return np.asarray(np.clip(x, 0.0, 1.0))

    def _take_best(self, rows: Sequence[Row], tasks: Tasks) -> None:
        losses = np.array([told.losses for _, told in rows])
        best = int(np.argmin(tasks.weighted(losses, tasks.of(self.members))))
        self.c, self.told = rows[best]
        self.best_point = np.array(self.told.candidate.u)

    def _best(self, w: FloatArray) -> FloatArray:
        """Of a grid of coefficients the one of the smallest predicted weighted loss."""
        if not len(self._grid) or not w.any():
            return self.c
        losses = (self._predicted * w).sum(axis=1) / w.sum()
        # rounded: what another processor computes is as good
        return np.asarray(self._grid[np.argmin(losses.round(6))])


def _view(rows: Sequence[Row], m: int) -> View:
    """What the quadratics learn from: coefficients for points."""
    errors, n_items = np.full((len(rows), m), np.nan), np.zeros((len(rows), m), dtype=np.int64)
    for row, (_, told) in enumerate(rows):
        if told.evidence is not None:
            errors[row], n_items[row] = told.evidence.standard_errors, told.evidence.n_items
    return View(
        ids=np.arange(len(rows)),
        points=np.array([c for c, _ in rows]),
        losses=np.array([told.losses for _, told in rows], dtype=np.float64),
        standard_errors=errors,
        n_items=n_items,
        failed=np.zeros((0, 2)),
        pending=np.zeros((0, 2)),
        n_asked=len(rows),
    )
