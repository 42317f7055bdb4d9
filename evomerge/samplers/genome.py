"""GENOME and GENOME+: a population that crosses, mutates and flies (arXiv 2503.01155)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from evomerge.datatypes import FloatArray, Problem
from evomerge.errors import ConfigError
from evomerge.samplers.archive_based import checked_range
from evomerge.samplers.design import proposal
from evomerge.samplers.ledger import Losses, Told
from evomerge.samplers.options import checked_population
from evomerge.samplers.population_based import PopulationBased
from evomerge.samplers.scalarization import scalarizer
from evomerge.samplers.swarm import (
    Pulls,
    crossed,
    default_swarm,
    flown,
    pool_start,
    scattered,
    step_to,
)
from evomerge.samplers.variation import mutated

CROSSOVER = 0.8
"""Probability that a child has two parents."""

MUTATES = 0.3
"""Probability that a child is mutated, or who has flown; what was proposed before always is."""

MUTATED_SHARE = 0.1
"""Of the real dimensions; one at least."""

ELITE = 0.1
"""Share of the population that survives by rank, one at least; the others win tournaments."""

TOURNAMENT = 3

PULLS = Pulls(inertia=0.2, personal_best=0.2, best=0.2, worst=0.1)

STEP = 0.5
"""Share of the velocity that is flown to generation 1."""


@dataclass(frozen=True, slots=True, eq=False)
class Member:
    """A recipe of the population, where it flies, and the best that it was on its way."""

    x: FloatArray
    v: FloatArray
    losses: Losses
    best: FloatArray
    best_losses: Losses


class GenomeSampler(PopulationBased):
    """Minimises one loss, or several as one, by evolution of a pool of experts.

    Published for the weights of adapters; here a member of the population is a recipe. Generation 0
    is the anchors, the experts alone and points between two of them (without experts the centred
    design). Parents are drawn with probabilities proportional to fitness, which is the loss scaled
    to 0 for the worst and 1 for the best of the population, plus a little for everybody. A child
    lies between its two parents, and is then mutated or not. Of parents and children together the
    best survive, and who wins a tournament of three.

    With `swarm` (GENOME+) each generation begins with one step of every member by particle swarm
    optimisation (`swarm.flown`); parents are those from before the step. Failed candidates rank
    last and are nobody's parents.
    """

    def __init__(
        self,
        problem: Problem,
        *,
        seed: int,
        population: int | None = None,
        swarm: bool = False,
        mutation: float = 0.1,
        weights: Sequence[float] | Mapping[str, float] | None = None,
        scalarization: str = "weighted",
    ) -> None:
        """Start with the pool.

        Args:
            problem: dimensions, anchors, number of objectives and budget; experts where known.
            seed: of everything random.
            population: members; anchors and experts beyond it are left out. By default as many as
                `swarm.default_swarm` says.
            swarm: whether members fly too; then a generation has half as many children.
            mutation: standard deviation of a mutated coordinate's step, in the unit cube.
            weights: of the objectives, in their order or by name; only their ratios matter.
            scalarization: `weighted`, `tchebycheff` or `percentile`.

        Raises:
            ConfigError: an option is out of range, or there are several objectives and no weights.
        """
        if not isinstance(swarm, bool):
            raise ConfigError(f"swarm is true or false, but got {swarm!r}: leave it out for false")
        checked_range("mutation", mutation, low=0.0, high=1.0)
        self._mutation = mutation
        self._scalarizer = scalarizer(problem, weights, scalarization, sampler="genome")
        size = checked_population("genome", population) or default_swarm(problem)
        self._size = size
        self._n_flights = size if swarm else 0
        self._members: list[Member] = []
        self._values_of_members = np.zeros(0)
        self._history = np.empty((0, problem.n_objectives))
        n_children = size // 2 if swarm else size
        super().__init__(
            problem, seed=seed, first_generation=size, generation=self._n_flights + n_children
        )

    def _start(self, problem: Problem, n: int) -> list[tuple[float, ...]]:
        return [tuple(row) for row in pool_start(problem, n, self._seed).tolist()]

    def _take(self, generation: Sequence[Told]) -> None:
        pool = list(self._members)
        for place, told in enumerate(generation):
            x = np.array(told.candidate.u)
            newborn = Member(x, np.zeros(len(x)), told.losses, x, None)
            if self._members and place < self._n_flights:
                flier = self._members[place]
                newborn = replace(
                    newborn,
                    v=(x - flier.x) / self._step(),
                    best=flier.best,
                    best_losses=flier.best_losses,
                )
            pool.append(newborn)
        new = [told.losses for told in generation if told.losses is not None]
        m = self._history.shape[1]
        self._history = np.concatenate([self._history, np.array(new).reshape(-1, m)])
        values = self._values([member.losses for member in pool])
        bests = self._values([member.best_losses for member in pool])
        for i in np.flatnonzero(values < bests):
            pool[i] = replace(pool[i], best=pool[i].x, best_losses=pool[i].losses)
        survivors = self._survivors(values)
        self._members = [pool[i] for i in survivors]
        self._values_of_members = values[survivors]

    def _values(self, losses: Sequence[Losses]) -> FloatArray:
        """One loss for each, infinite where there are none, compared with all that is known."""
        values = np.full(len(losses), np.inf)
        known = [i for i, row in enumerate(losses) if row is not None]
        if known:
            F = np.array([losses[i] for i in known], dtype=np.float64)
            values[known] = self._scalarizer.losses(F, self._history)
        return values

    def _survivors(self, values: FloatArray) -> list[int]:
        """Rows of the elite, then of those who win against two others, each but once."""
        rng = np.random.default_rng([self._seed, 0x6E0E, self._generation])
        by_rank: list[int] = np.argsort(values, kind="stable").tolist()
        n_elite = max(int(ELITE * self._size), 1)
        chosen, others = by_rank[:n_elite], by_rank[n_elite:]
        while len(chosen) < self._size:
            drawn = rng.permutation(len(others))[:TOURNAMENT]
            chosen.append(others.pop(int(drawn.min())))
        return chosen

    def _step(self) -> float:
        """Share of the velocity that is flown to the present generation."""
        return step_to(self._generation, STEP)

    def _children(self, places: Sequence[int], rng: np.random.Generator) -> FloatArray:
        succeeds = np.isfinite(self._values_of_members)
        if not succeeds.any():
            rows = rng.integers(len(self._members), size=len(places))
            return scattered(np.array([self._members[i].x for i in rows]), self._kinds, rng)
        fliers = [self._members[place] for place in places if place < self._n_flights]
        weights = roulette(self._values_of_members)
        children = [] if not fliers else list(self._flown(fliers, rng))
        while len(children) < len(places):
            a, b = np.searchsorted(weights, rng.random(2), "right")
            t = float(rng.random()) if rng.random() < CROSSOVER else 0.0
            child = crossed(self._members[a].x, self._members[b].x, t, self._kinds, rng)
            children.append(np.array(proposal(child, self._kinds)))
        return np.array(children)

    def _flown(self, fliers: Sequence[Member], rng: np.random.Generator) -> FloatArray:
        values = self._values_of_members
        best = self._members[int(np.argmin(values))].x
        worst = self._members[int(np.argmax(np.where(np.isfinite(values), values, -np.inf)))].x
        return flown(
            np.array([member.x for member in fliers]),
            np.array([member.v for member in fliers]),
            # who has found nothing has nowhere to return to but the best of all
            np.array([best if member.best_losses is None else member.best for member in fliers]),
            best,
            worst,
            pulls=PULLS,
            step=self._step(),
            kinds=self._kinds,
            rng=rng,
        )

    def _mutated(self, children: FloatArray, rng: np.random.Generator) -> FloatArray:
        after = children.copy()
        for i, child in enumerate(children):
            turn, genes = rng.random(), rng.random(len(child)) < MUTATED_SHARE
            genes[rng.integers(len(child))] = True
            if turn < MUTATES or tuple(child.tolist()) in self._proposed:
                moved = mutated(child, self._kinds, np.where(genes, self._mutation, 0.0), rng)
                after[i] = proposal(moved, self._kinds)
        return after


def roulette(values: FloatArray) -> FloatArray:
    """Where each member's share of the wheel ends.

    Args:
        values: `(n_members,)` losses, infinite for failures; one is finite at least.

    Returns:
        `(n_members,)` numbers from above 0 to 1, in order; shares of failures are empty.
    """
    finite = np.isfinite(values)
    low, high = values[finite].min(), values[finite].max()
    # halves: the difference of two huge losses must not overflow
    half_range = high / 2 - low / 2
    gains = high / 2 - np.where(finite, values, high) / 2
    fitness = np.where(finite, gains / (half_range or 1.0) + 1.0 / finite.sum(), 0.0)
    ends = np.cumsum(fitness)
    return np.asarray(ends / ends[-1])
