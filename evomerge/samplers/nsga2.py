"""NSGA-II: a population that spreads over the Pareto front (Deb, Pratap, Agarwal, Meyarivan 2002).

The loop, the sorting, the tournament and the real operators are pymoo's; around them are bits,
failures, repeats, and survival that is the same on every processor.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from evomerge.datatypes import FloatArray, Problem
from evomerge.samplers.design import Kinds, centred_design
from evomerge.samplers.generational import Generational, Point
from evomerge.samplers.ledger import Told
from evomerge.samplers.options import checked_population
from evomerge.samplers.recombination import Recombination

PATIENCE = 20
"""Rounds of mating without a full generation of new points before repeats are let through."""


class Nsga2Sampler(Generational):
    """Minimises one or more losses at once; a generation is asked, told, and bred from.

    Generation 0 is the centred design. Real dimensions are varied by simulated binary crossover and
    polynomial mutation, binary ones by uniform crossover and bit flips, categorical ones by uniform
    crossover and another choice at random. A point is not proposed twice in a run, unless all
    neighbours are exhausted. Failed candidates are infeasible: they survive only where there are
    too few successes, and lose every tournament against one.
    """

    def __init__(self, problem: Problem, *, seed: int, population: int | None = None) -> None:
        """Start with the centred design.

        Args:
            problem: dimensions, anchors, number of objectives and budget.
            seed: of everything random.
            population: candidates of a generation; anchors beyond it are left out. By default a
                tenth of the budget within 12 and 100, but no fewer than there are anchors.

        Raises:
            ConfigError: `population` is not a whole number of at least 4.
        """
        size = checked_population("nsga2", population) or max(
            default_population(problem.budget), len(problem.anchors)
        )
        self._unseen = _Unseen()
        self._algorithm = _algorithm(
            Kinds.of(problem),
            problem.n_objectives,
            centred_design(problem, size, seed),
            int(np.random.SeedSequence([seed, 0x452]).generate_state(1)[0]),
            self._unseen,
        )
        super().__init__(problem.n_objectives, self._breed())

    def _breed(self) -> list[Point]:
        self._unseen.rounds = 0
        self._infills = self._algorithm.ask()
        points = [tuple(row) for row in self._infills.get("X").tolist()]
        self._unseen.proposed.update(points)
        return points

    def _take(self, generation: Sequence[Told]) -> None:
        """Let pymoo choose the survivors; rows are in the order of asks, as ids are."""
        from pymoo.core.evaluator import Evaluator
        from pymoo.problems.static import StaticProblem

        n_objectives = self._algorithm.problem.n_obj
        # never NaN, which pymoo ranks best: finite, and infeasible by G > 0
        F = np.array([told.losses or (0.0,) * n_objectives for told in generation])
        G = np.array([[1.0 if told.losses is None else -1.0] for told in generation])
        Evaluator().eval(StaticProblem(self._algorithm.problem, F=F, G=G), self._infills)
        self._algorithm.tell(infills=self._infills)


class _Unseen:
    """The duplicate elimination of pymoo, but against all that was ever proposed."""

    def __init__(self) -> None:
        self.proposed: set[tuple[float, ...]] = set()
        self.rounds = 0

    def do(self, offspring: Any, *others: Any) -> Any:
        """Keep the offspring that are new, or all when there is no more hope for new ones."""
        self.rounds += 1
        if self.rounds > PATIENCE:
            return offspring
        seen = {tuple(individual.X.tolist()) for other in others for individual in other}
        new = []
        for i, individual in enumerate(offspring):
            x = tuple(individual.X.tolist())
            if x not in seen and x not in self.proposed:
                new.append(i)
                seen.add(x)
        return offspring[new]


def _algorithm(
    kinds: Kinds,
    n_objectives: int,
    start: FloatArray,
    seed: int,
    unseen: _Unseen,
) -> Any:
    """Build the NSGA2 of pymoo with a variation that knows bits and choices, ready to be asked."""
    from pymoo.config import Config

    Config.warnings["not_compiled"] = False  # else it prints, also into tables and JSON

    from pymoo.algorithms.moo.nsga2 import NSGA2
    from pymoo.core.crossover import Crossover
    from pymoo.core.mutation import Mutation
    from pymoo.core.problem import Problem as PymooProblem
    from pymoo.core.survival import Survival
    from pymoo.core.termination import NoTermination
    from pymoo.operators.survival.rank_and_crowding.metrics import get_crowding_function
    from pymoo.util.nds.non_dominated_sorting import NonDominatedSorting

    recombination = Recombination(kinds)
    sorting, crowding = NonDominatedSorting(), get_crowding_function("cd")

    # X has shape (2 parents, n_matings, n_dimensions)
    class MixedCrossover(Crossover):  # type: ignore[misc]  # pymoo ships no types
        def _do(self, _: Any, X: FloatArray, *, random_state: Any, **__: Any) -> FloatArray:
            return recombination.crossed(X, random_state)

    # X has shape (n_offspring, n_dimensions)
    class MixedMutation(Mutation):  # type: ignore[misc]  # pymoo ships no types
        def _do(self, _: Any, X: FloatArray, *, random_state: Any, **__: Any) -> FloatArray:
            return recombination.mutated(X, random_state)

    # pymoo's own sorts unstably: which of equals it keeps depends on the processor, and a run could
    # not be replayed on another node
    class StableRankAndCrowding(Survival):  # type: ignore[misc]  # pymoo ships no types
        def _do(self, _: Any, population: Any, *, n_survive: int, **__: Any) -> Any:
            feasible = population.get("FEAS").ravel()
            rows, F = np.flatnonzero(feasible), population.get("F")
            survivors: list[int] = []
            for rank, front in enumerate(sorting.do(F[rows], n_stop_if_ranked=n_survive)):
                distances = crowding.do(F[rows[front]])
                for individual, distance in zip(population[rows[front]], distances, strict=True):
                    individual.set("rank", rank)
                    individual.set("crowding", distance)
                widest_first = np.argsort(-distances, kind="stable")
                survivors.extend(rows[front][widest_first].tolist())
            survivors.extend(np.flatnonzero(~feasible).tolist())
            return population[survivors[:n_survive]]

    algorithm = NSGA2(
        pop_size=len(start),
        sampling=start,
        crossover=MixedCrossover(n_parents=2, n_offsprings=2, prob=0.9),
        mutation=MixedMutation(prob=1.0),
        survival=StableRankAndCrowding(filter_infeasible=False),
        eliminate_duplicates=unseen,
    )
    problem = PymooProblem(
        n_var=len(kinds.real), n_obj=n_objectives, n_ieq_constr=1, xl=0.0, xu=1.0
    )
    algorithm.setup(problem, termination=NoTermination(), seed=seed)
    return algorithm


def default_population(budget: int) -> int:
    """A tenth of the budget within 12 and 100: there should be ten generations at least."""
    return min(max(budget // 10, 12), 100)
