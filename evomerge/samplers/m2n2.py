"""M2N2: models compete for items, and merge with those who know what they do not.

Abrantes, Lange and Tang 2025, "Competition and Attraction Improve Model Fusion" (M2N2).
"""

from collections.abc import Sequence

import numpy as np

from evomerge.datatypes import FloatArray, Problem
from evomerge.errors import ConfigError
from evomerge.samplers.archive_based import ArchiveBased, checked_range
from evomerge.samplers.ledger import Told
from evomerge.samplers.resource_competition import (
    attraction,
    competed_fitness,
    slerp,
    split_places,
)
from evomerge.samplers.variation import inherited, mutated

FEWEST_ITEMS = 8
"""Items that all compared members answered, below which an objective counts by its loss."""


class M2n2Sampler(ArchiveBased):
    """Keeps an archive of models that win different items, for any number of objectives.

    Each item is a resource that those share who answer it rightly; a member's fitness is what it
    gets. A first parent is drawn by fitness, a second one by attraction: by what it wins where the
    first does not (by fitness if nobody has anything to add). The child lies on the arc between
    them, relative to the base, on one side of it before a split that moves over the depth of the
    model and on the other side after it; then everything moves a little. A child enters the
    archive, and the least fit member leaves.

    *What an item is worth.* An answer is right if its loss is below `threshold`; without one, if it
    is the better one of the two values that occur. Where more values occur (likelihoods), it counts
    by how far it has come from the worst to the best of the archive on that item. All items of an
    objective have the worth 1 together, so that each objective counts the same.

    *Which items.* Those that all compared members answered. Where there are fewer than FEWEST_ITEMS
    of them (each generation may have been asked others), or no answers are known, the objective
    itself is one resource, won by how far a loss has come from the worst to the best of the
    archive: niches are then as few as objectives.

    Departures from the paper: generation 0 is the centred design instead of zero vectors, so many
    children as a generation has are bred from the same archive, and there is mutation also when the
    seeds are trained models, because a cube of coefficients has too few directions to live on
    crossover alone. Bits and choices come whole from one parent, the likelier the nearer.
    """

    wants_answers = True

    def __init__(
        self,
        problem: Problem,
        *,
        seed: int,
        archive_size: int = 20,
        competition: float = 1.0,
        mating_by_attraction: bool = True,
        mutation: float = 0.1,
        threshold: float | None = None,
        generation: int | None = None,
    ) -> None:
        """Start with the known-good merges.

        Args:
            problem: dimensions, anchors, number of objectives, budget; `origin` is where vectors
                start from (the zero of the cube if unknown), `depths` orders the dimensions.
            seed: of everything random.
            archive_size: members that are kept.
            competition: the exponent alpha; 0 counts right answers, as a plain genetic algorithm.
            mating_by_attraction: whether the second parent is drawn by attraction or by fitness.
            mutation: standard deviation of steps after crossover, in the unit cube.
            threshold: loss of an item below which its answer is right (an accuracy's are -1 and 0).
            generation: children bred before the next look at losses.

        Raises:
            ConfigError: an option is out of range.
        """
        checked_range("archive_size", archive_size, low=2, whole=True)
        checked_range("competition", competition, low=0.0, high=10.0)
        checked_range("mutation", mutation, low=0.0, high=1.0)
        if threshold is not None:
            checked_range("threshold", threshold, low=-np.finfo(float).max)
        if not isinstance(mating_by_attraction, bool):
            raise ConfigError(
                f"mating_by_attraction is true or false, but got {mating_by_attraction!r}: leave "
                f"it out for true"
            )
        self._archive_size = archive_size
        self._alpha = competition
        self._by_attraction = mating_by_attraction
        self._mutation = mutation
        self._threshold = threshold
        self._members: list[Told] = []
        self._S: FloatArray = np.zeros((0, problem.n_objectives))
        self._capacities: FloatArray = np.ones(problem.n_objectives)
        self._lacks_items = False
        d = len(problem.dimensions)
        self._origin = np.zeros(d) if problem.origin is None else np.array(problem.origin)
        depths = problem.depths or (None,) * d
        # those without a depth first, as what is left of the stack
        self._by_depth = np.array(
            sorted(range(d), key=lambda i: -1.0 if depths[i] is None else float(depths[i] or 0.0)),
            dtype=np.int64,
        )
        super().__init__(problem, seed=seed, generation=generation)

    @property
    def remarks(self) -> tuple[str, ...]:
        """Says so when models compete for objectives instead of items."""
        if not self._lacks_items:
            return ()
        return (
            f"m2n2 found fewer than {FEWEST_ITEMS} items that its whole archive answered for some "
            f"objective, and let models compete for the objective instead: its niches are items, "
            f"so give it the same items for all candidates (fidelity: off)",
        )

    def _learn(self, generation: Sequence[Told]) -> None:
        for told in generation:
            self._members.append(told)
            if len(self._members) > self._archive_size:
                self._compare()
                del self._members[_least(self._fitness)]
        if self._members:
            self._compare()

    def _compare(self) -> None:
        self._S, self._capacities, n_items = resources(
            self._members, self._problem.n_objectives, self._threshold
        )
        self._fitness = competed_fitness(self._S, self._alpha, self._capacities)
        self._lacks_items |= len(self._members) > 1 and n_items < FEWEST_ITEMS

    def _child(self, rng: np.random.Generator) -> FloatArray | None:
        if not self._members:
            return None
        first = _drawn(self._fitness, rng)
        others = np.arange(len(self._members)) != first
        weights = self._fitness * others
        if self._by_attraction:
            attractive = attraction(self._S, first, self._alpha, self._capacities)
            # 0 / 0 when nobody knows anything that the first parent does not
            weights = attractive if attractive.sum() > 0.0 else weights
        second = _drawn(weights if weights.sum() > 0.0 else others * 1.0, rng)
        a, b = (np.array(self._members[i].candidate.u) for i in (first, second))
        d = len(a)
        t = np.empty(d)
        t[self._by_depth] = split_places(d, int(rng.integers(d)), float(rng.random()))
        real = self._kinds.real
        child = inherited(a, b, t, rng)
        origin = self._origin[real]
        child[real] = origin + slerp(a[real] - origin, b[real] - origin, t[real])
        return mutated(np.clip(child, 0.0, 1.0), self._kinds, self._mutation, rng)


def resources(
    members: Sequence[Told], n_objectives: int, threshold: float | None = None
) -> tuple[FloatArray, FloatArray, int]:
    """What members compete for, as `M2n2Sampler` explains.

    Args:
        members: successes, at least one.
        n_objectives: how many losses each has.
        threshold: loss of an item below which its answer is right.

    Returns:
        `(n_members, n_resources)` scores within 0 and 1, the `(n_resources,)` capacities, and the
        number of items that all have answered, of the objective with the fewest.
    """
    losses = np.array([told.losses for told in members], dtype=np.float64)
    columns, capacities, fewest = [], [], np.iinfo(np.int64).max
    for j in range(n_objectives):
        values = _common_answers(members, j)
        fewest = min(fewest, values.shape[1])
        if values.shape[1] < FEWEST_ITEMS:
            scores = _gains(losses[:, [j]])
        else:
            scores = _item_scores(values, threshold)
        columns.append(scores)
        capacities.append(np.full(scores.shape[1], 1.0 / scores.shape[1]))
    return np.hstack(columns), np.concatenate(capacities), int(fewest)


def _common_answers(members: Sequence[Told], objective: int) -> FloatArray:
    """`(n_members, n_items)` losses of the items that all members answered."""
    answers = []
    for told in members:
        if told.evidence is None or not told.evidence.answers:
            return np.zeros((len(members), 0))
        answers.append(told.evidence.answers[objective])
    first = answers[0].items
    if {len(one.items) for one in answers} == {len(first)}:
        # each step at once: with a comparison for each member it was nearly half of a tell
        shape = len(answers), len(first)
        if (np.concatenate([one.items for one in answers]).reshape(shape) == first).all():
            return np.concatenate([one.values for one in answers]).reshape(shape)
    common = first
    for one in answers[1:]:
        common = np.intersect1d(common, one.items, assume_unique=True)
    rows = []
    for one in answers:
        order = np.argsort(one.items, kind="stable")
        rows.append(one.values[order[np.searchsorted(one.items, common, sorter=order)]])
    return np.stack(rows)


def _item_scores(values: FloatArray, threshold: float | None) -> FloatArray:
    """Losses of items to scores within 0 and 1, both `(n_members, n_items)`."""
    if threshold is not None:
        return np.asarray(values < threshold, dtype=np.float64)
    best, worst = values.min(), values.max()
    if ((values == best) | (values == worst)).all():
        return np.asarray(values < worst, dtype=np.float64)
    return _gains(values)


def _gains(L: FloatArray) -> FloatArray:
    """Losses to [0, 1] in each column: 0 for the worst, 1 for the best, 0 where all are equal."""
    # halves: the difference of two huge losses must not overflow
    worst, half_range = L.max(axis=0), L.max(axis=0) / 2 - L.min(axis=0) / 2
    return np.asarray((worst / 2 - L / 2) / np.where(half_range > 0.0, half_range, 1.0))


def _drawn(weights: FloatArray, rng: np.random.Generator) -> int:
    """A row with a probability proportional to its weight; any row if all weights are 0."""
    if weights.sum() <= 0.0:
        weights = np.ones(len(weights))
    steps = np.cumsum(weights)
    return min(int(np.searchsorted(steps, rng.random() * steps[-1], "right")), len(weights) - 1)


def _least(fitness: FloatArray) -> int:
    """The first of the least fit, whatever the last digits of equal sums are."""
    least = fitness.min()
    return int(np.flatnonzero(fitness <= least + 1e-12 * max(1.0, abs(least)))[0])
