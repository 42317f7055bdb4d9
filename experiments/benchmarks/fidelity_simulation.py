"""Which share of the items a search needs: the simulation behind the defaults of `fidelity`.

    python experiments/benchmarks/fidelity_simulation.py [--all] [--start N] [--instances N]

Four tasks of 500 search items each in 24 dimensions. Model x is right on item j of task o iff
1.2 - q_o(x) + 0.6 sqrt(2) cos(w_j x + u_j) > b_j, with q_o a rotated quadratic (axes from 1 to
10^-1.5) around the task's optimum, mean 3 over uniform points, w_j ~ N(0, 4), u_j ~ U(0, 2 pi),
b_j ~ N(0, 2.25): smooth answers of each item, so that items can be overfitted. Truth is the
accuracy on 4 x 5000 items that no search sees. 300 candidates of CMA-ES on the mean or of NSGA-II,
and 12 baselines, which are the first cohort. The result is chosen by answers to search items alone.
"""

import argparse
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from evomerge.datatypes import Candidate, Dimension, FloatArray, Problem
from evomerge.fidelity import Schedule, item_order, most_promising, promote
from evomerge.pareto import hypervolume, non_dominated
from evomerge.samplers.cma_es import CmaEsSampler, default_population
from evomerge.samplers.nsga2 import Nsga2Sampler

N_DIMENSIONS, N_TASKS, N_SEARCH, N_TRUTH = 24, 4, 500, 5000
N_CANDIDATES, N_BASELINES = 300, 12
N_ALL = N_BASELINES + N_CANDIDATES
EQUAL = np.ones(N_TASKS) / N_TASKS
FIXED = 1000
"""Cohorts: more than any run has."""

LATEST = 4
"""Generations that `entrants="latest"` lets into the contest."""


class Landscape:
    """One random instance: answers to search items, and the truth."""

    def __init__(self, seed: int) -> None:
        """Draw tasks and items."""
        rng = np.random.default_rng([seed, 0x5E])
        rotation, _ = np.linalg.qr(rng.normal(size=(N_DIMENSIONS, N_DIMENSIONS)))
        spectrum = np.logspace(0, -1.5, N_DIMENSIONS)
        self._shape = rotation * np.sqrt(spectrum)
        centre = rng.normal(0.5, 0.25, N_DIMENSIONS)
        optima = centre + rng.normal(0, 0.1, (N_TASKS, N_DIMENSIONS))
        self._optima = np.clip(optima, 0, 1)
        uniform = rng.uniform(size=(2000, N_DIMENSIONS))
        self._scale = np.ones(N_TASKS)
        self._scale = 3 / self._quadratic(uniform).mean(axis=0)
        shape = (N_TASKS, N_SEARCH + N_TRUTH)
        self._w = rng.normal(0, 2, (*shape, N_DIMENSIONS))
        self._u = rng.uniform(0, 2 * np.pi, shape)
        self._b = rng.normal(0, 1.5, shape)
        self.baselines = np.vstack(
            [np.full(N_DIMENSIONS, 0.5), rng.uniform(size=(N_BASELINES - 1, N_DIMENSIONS))]
        )

    def _quadratic(self, x: FloatArray) -> FloatArray:
        moved = (x[:, None, :] - self._optima[None]) @ self._shape
        return np.asarray((moved**2).sum(axis=2) * self._scale)

    def _wrong(self, x: FloatArray, part: slice) -> FloatArray:
        """`(n, n_tasks, n_items)`: 1 where wrong."""
        quadratic = self._quadratic(x)
        wrong = []
        for task in range(N_TASKS):
            waves = np.cos(x @ self._w[task, part].T + self._u[task, part])
            ability = 1.2 - quadratic[:, [task]] + 0.6 * np.sqrt(2) * waves
            wrong.append(ability <= self._b[task, part])
        return np.stack(wrong, axis=1).astype(np.float64)

    def losses(self, x: FloatArray) -> FloatArray:
        """`(n, n_tasks, N_SEARCH)`: what a search may see a part of."""
        return self._wrong(x, slice(N_SEARCH))

    def truth(self, x: FloatArray) -> FloatArray:
        """`(n, n_tasks)` true losses."""
        return np.asarray(self._wrong(x, slice(N_SEARCH, None)).mean(axis=2))


@dataclass(frozen=True, slots=True)
class Variant:
    """How a search spends its items. No `schedule` is full evaluation.

    Args:
        name: In the table.
        schedule: The engine's.
        kept: So many cohorts one after another answer the same items; `FIXED` is all.
        ramp: The race's rungs grow over the run, from `1 - ramp` to `1 + ramp` times their items.
        population: Times the sampler's default.
        entrants: To the contest: `all`, only the `latest` generations, or first all `means` of
            CMA-ES's generations and then others.
        is_linked: Who was left on an early rung is scored as if the next rung's items had been as
            much harder for him as they were for those who answered them.
        is_shrunk: Estimates are shrunk towards the mean of their generation.
        with_contest: False: the best on the race's last rung is the result.
    """

    name: str
    schedule: Schedule | None = None
    kept: int = 1
    ramp: float = 0.0
    population: float = 1.0
    entrants: str = "all"
    is_linked: bool = False
    is_shrunk: bool = False
    with_contest: bool = True


class Run:
    """One search: the driver's rules on arrays. Baselines are the first rows."""

    def __init__(self, land: Landscape, variant: Variant, sampler: str, seed: int) -> None:
        """Make the sampler and the baselines' cohort."""
        self.land, self.v, self.seed = land, variant, seed
        problem = Problem(
            dimensions=tuple(Dimension(f"x{i}") for i in range(N_DIMENSIONS)),
            n_objectives=N_TASKS,
            anchors=((0.5,) * N_DIMENSIONS,),
            budget=N_CANDIDATES,
        )
        self.weights = EQUAL if sampler == "cma_es" else None
        self.sampler: CmaEsSampler | Nsga2Sampler
        if sampler == "cma_es":
            population = round(variant.population * default_population(N_DIMENSIONS, N_CANDIDATES))
            self.sampler = CmaEsSampler(
                problem, seed=seed, weights=EQUAL.tolist(), population=population
            )
        else:
            self.sampler = Nsga2Sampler(problem, seed=seed)
        self.x = np.empty((N_ALL, N_DIMENSIONS))
        self.answers = np.empty((N_ALL, N_TASKS, N_SEARCH))
        self.items = np.empty((N_ALL, N_TASKS, N_SEARCH), dtype=np.int64)
        self.cohort = np.zeros(N_ALL, dtype=int)
        self.rung = np.zeros(N_ALL, dtype=int)
        self.shift = np.zeros((N_ALL, N_TASKS))
        self.means: list[int] = []
        schedule = variant.schedule
        self.counts = schedule.counts(N_SEARCH) if schedule else (N_SEARCH,)
        self.last = len(self.counts) - 1
        self.n_race = min(schedule.race, self.last) if schedule else 0
        self._counts_of: list[tuple[int, ...]] = []
        self._open(land.baselines, 0)
        self.rung[:N_BASELINES] = self.n_race

    def _open(self, x: FloatArray, start: int) -> list[int]:
        """A cohort's candidates, items, and rungs."""
        rows = list(range(start, start + len(x)))
        cohort = len(self._counts_of)
        self.x[rows], self.answers[rows], self.cohort[rows] = x, self.land.losses(x), cohort
        key = cohort // self.v.kept
        orders = [item_order(N_SEARCH, self.seed, key, task) for task in range(N_TASKS)]
        self.items[rows] = np.stack(orders)
        share = max(0, start - N_BASELINES) / N_CANDIDATES if cohort else 0.5
        factor = 1 - self.v.ramp + 2 * self.v.ramp * share
        self._counts_of.append(
            tuple(
                max(1, round(n * factor)) if rung <= self.n_race and n < N_SEARCH else n
                for rung, n in enumerate(self.counts)
            )
        )
        return rows

    def n_answered(self, row: int) -> int:
        """Items of each task that a candidate has answered."""
        return self._counts_of[int(self.cohort[row])][int(self.rung[row])]

    def seen(self, row: int) -> FloatArray:
        """`(n_tasks, n)` losses of a candidate on what it has answered."""
        items = self.items[row][:, : self.n_answered(row)]
        return np.take_along_axis(self.answers[row], items, axis=1)

    def estimate(self, row: int) -> tuple[FloatArray, FloatArray]:
        """Mean losses `(n_tasks,)` and standard errors."""
        y = self.seen(row)
        n = y.shape[1]
        return y.mean(axis=1) + self.shift[row], y.std(axis=1, ddof=1) / np.sqrt(n)

    def estimates(self, rows: Sequence[int]) -> tuple[FloatArray, FloatArray]:
        """`(n, n_tasks)` losses and errors, shrunk towards each generation's mean if asked for."""
        pairs = [self.estimate(row) for row in rows]
        m, s = np.stack([p[0] for p in pairs]), np.stack([p[1] for p in pairs])
        if not self.v.is_shrunk:
            return m, s
        for cohort in np.unique(self.cohort[rows]):
            of = self.cohort[rows] == cohort
            centre = m[of].mean(axis=0)
            prior = np.maximum(m[of].var(axis=0) - (s[of] ** 2).mean(axis=0), 1e-4)
            share = prior / (prior + s[of] ** 2)
            m[of], s[of] = centre + share * (m[of] - centre), s[of] * np.sqrt(share)
        return m, s

    def promising(self, rows: Sequence[int], n: int) -> list[int]:
        """Who is worth more items."""
        if not rows or n <= 0:
            return []
        return [rows[i] for i in most_promising(*self.estimates(rows), self.weights, n)]

    def search(self) -> None:
        """Ask, race, tell; then the contest."""
        n = N_BASELINES
        while n < N_ALL:
            asked: list[Candidate] = []
            size = self.sampler.generation_size
            while len(asked) < size and n + len(asked) < N_ALL:
                candidate = self.sampler.ask()
                if candidate is None:
                    break
                asked.append(candidate)
            if self.weights is not None and n > N_BASELINES:
                self.means.append(n)
            rows = self._open(np.array([c.u for c in asked]), n)
            self.race(rows)
            for candidate, losses in zip(asked, self.estimates(rows)[0].tolist(), strict=True):
                self.sampler.tell(candidate, losses)
            n += len(rows)
        if self.v.schedule is not None and self.v.with_contest:
            self.contest(self.v.schedule)

    def race(self, rows: Sequence[int]) -> None:
        """The better ones of a cohort answer more."""
        at, schedule = list(rows), self.v.schedule
        for rung in range(self.n_race):
            assert schedule is not None  # without one there is a single rung
            seen = np.stack([self.seen(row) for row in at])
            losses = [seen[:, t] for t in range(N_TASKS)]
            places = schedule.n_promoted(len(at))
            on = [at[i] for i in promote(losses, self.weights, places, schedule.doubt)]
            self.rung[on] = rung + 1
            if self.v.is_linked:
                before = seen[[at.index(row) for row in on]].mean(axis=(0, 2))
                harder = np.mean([self.seen(row).mean(axis=1) for row in on], axis=0) - before
                self.shift[[row for row in rows if row not in on]] += harder
            at = on

    def contest(self, schedule: Schedule) -> None:
        """The most promising trials of the run, rung by rung, up to all items."""
        among, entered = list(range(N_ALL)), schedule.n_entering(N_ALL, is_first=True)
        if self.v.entrants == "latest":
            newest = self.cohort.max() - LATEST
            among = [row for row in among if self.cohort[row] in (0, *range(newest + 1, 99))]
        chosen = self.means[-entered:] if self.v.entrants == "means" else []
        others = [row for row in among if row not in chosen]
        among = sorted([*chosen, *self.promising(others, entered - len(chosen))])
        self.shift[:] = 0
        while lacking := [row for row in among if self.rung[row] < self.last]:
            rung = 1 + min(self.rung[row] for row in lacking)
            self.rung[among] = np.maximum(self.rung[among], rung)
            if rung < self.last:
                among = self.promising(among, schedule.n_entering(len(among), is_first=False))

    def result(self) -> tuple[float, float]:
        """True quality of what was chosen (mean accuracy, or hypervolume), and share of items."""
        enough = self.last if self.v.with_contest else self.n_race
        rows = [row for row in range(N_ALL) if self.rung[row] >= enough]
        estimates, points = self.estimates(rows)[0], self.x[rows]
        if self.weights is not None:
            best = points[np.argmin(estimates @ self.weights)]
            quality = 1 - float(self.land.truth(best[None]).mean())
        else:
            front = points[non_dominated(estimates)]
            quality = hypervolume(self.land.truth(front), np.full(N_TASKS, 0.7)) ** (1 / N_TASKS)
        answered = sum(self.n_answered(row) for row in range(N_ALL))
        return quality, answered / (N_ALL * N_SEARCH)


def schedule(
    first: int = 24,
    growth: float = 2.0,
    keep: float = 0.5,
    race: int = 1,
    contest: int = 16,
    finalists: int = 8,
    doubt: float = 0.01,
) -> Schedule:
    """A schedule, by default the engine's for these tasks."""
    return Schedule(first, growth, keep, race, 0, contest, finalists, doubt=doubt)


FULL = Variant("full evaluation")
DEFAULT = Variant("default", schedule())
TELLING = {
    "cma_es": [
        FULL,
        DEFAULT,
        Variant("first 26", schedule(26)),
        Variant("contest 8, finalists 4, first 26", schedule(26, contest=8, finalists=4)),
        Variant("finalists 2, first 28", schedule(28, finalists=2)),
        Variant("race 0, first 36", schedule(36, race=0)),
        Variant("growth 3, first 18", schedule(18, growth=3.0)),
        Variant("ramp .67", schedule(), ramp=0.67),
        Variant("ramp .67, first 28", schedule(28), ramp=0.67),
        Variant("linked", schedule(), is_linked=True),
        Variant("fixed items", schedule(), kept=FIXED),
        Variant("no contest, first 28", schedule(28), with_contest=False),
    ],
    "nsga2": [
        FULL,
        DEFAULT,
        Variant("finalists 16, first 18", schedule(18, finalists=16)),
        Variant("contest 32, first 22", schedule(22, contest=32)),
        Variant("race 0, first 36", schedule(36, race=0)),
        Variant("fixed items", schedule(), kept=FIXED),
        Variant("fixed items, race 0, first 36", schedule(36, race=0), kept=FIXED),
        Variant("fixed items, no contest, first 30", schedule(30), kept=FIXED, with_contest=False),
    ],
}
REST = {
    "cma_es": [
        Variant("contest 24", schedule(contest=24)),
        Variant("finalists 10", schedule(finalists=10)),
        Variant("finalists 12, first 22", schedule(22, finalists=12)),
        Variant("finalists 16, first 18", schedule(18, finalists=16)),
        Variant("race 2, first 18", schedule(18, race=2)),
        Variant("race 12 x 3, keep 1/3", schedule(12, growth=3.0, keep=0.34)),
        Variant("growth 1.5, first 28", schedule(28, growth=1.5)),
        Variant("keep .7, first 20", schedule(20, keep=0.7)),
        Variant("keep .34, first 28", schedule(28, keep=0.34)),
        Variant("doubt 0", schedule(doubt=0.0)),
        Variant("doubt .05, first 26", schedule(26, doubt=0.05)),
        Variant("ramp .5", schedule(), ramp=0.5),
        Variant("ramp .67, first 26", schedule(26), ramp=0.67),
        Variant("ramp .67, race 0, first 36", schedule(36, race=0), ramp=0.67),
        Variant("ramp .5, race 0, first 36", schedule(36, race=0), ramp=0.5),
        Variant("population x 1.5", schedule(), population=1.5),
        Variant("population x .75", schedule(), population=0.75),
        Variant("entrants of the latest 4", schedule(), entrants="latest"),
        Variant("means by right", schedule(), entrants="means"),
        Variant("means, finalists 4, first 26", schedule(26, finalists=4), entrants="means"),
        Variant(
            "means, finalists 4, first 26, ramp .5",
            schedule(26, finalists=4),
            entrants="means",
            ramp=0.5,
        ),
        Variant(
            "means, finalists 4, first 26, linked",
            schedule(26, finalists=4),
            entrants="means",
            is_linked=True,
        ),
        Variant("linked, first 26", schedule(26), is_linked=True),
        Variant("linked, ramp .5", schedule(), is_linked=True, ramp=0.5),
        Variant("linked, ramp .67, first 28", schedule(28), is_linked=True, ramp=0.67),
        Variant("first 26, contest 24", schedule(26, contest=24)),
        Variant("shrunk", schedule(), is_shrunk=True),
        Variant("kept for 2 cohorts", schedule(), kept=2),
        Variant("kept for 3 cohorts", schedule(), kept=3),
        Variant("ramp .8, first 28", schedule(28), ramp=0.8),
        Variant("ramp .67, finalists 4, first 30", schedule(30, finalists=4), ramp=0.67),
        Variant(
            "ramp .67, contest 8, finalists 4, first 30",
            schedule(30, contest=8, finalists=4),
            ramp=0.67,
        ),
    ],
    "nsga2": [
        Variant("contest 32, finalists 16, first 16", schedule(16, contest=32, finalists=16)),
        Variant("race 0, contest 32, finalists 16", schedule(race=0, contest=32, finalists=16)),
        Variant("ramp .5", schedule(), ramp=0.5),
        Variant("linked", schedule(), is_linked=True),
        Variant("no contest, first 30", schedule(30), with_contest=False),
        Variant("no contest, race 0, first 48", schedule(48, race=0), with_contest=False),
        Variant("contest 32, first 24", schedule(contest=32)),
        Variant("contest 32, first 22, ramp .5", schedule(22, contest=32), ramp=0.5),
        Variant("contest 48, first 20", schedule(20, contest=48)),
        Variant("contest 32, first 19, keep .7", schedule(19, keep=0.7, contest=32)),
        Variant("contest 24, finalists 12, first 20", schedule(20, contest=24, finalists=12)),
        Variant("race 0, contest 32, first 30", schedule(30, race=0, contest=32)),
        Variant("kept for 3 cohorts", schedule(), kept=3),
        Variant("kept for 5 cohorts", schedule(), kept=5),
        Variant("fixed, first 25, contest 8", schedule(25, contest=8), kept=FIXED),
        Variant("fixed, first 22, contest 32", schedule(22, contest=32), kept=FIXED),
        Variant(
            "fixed, first 19, contest 32, finalists 12",
            schedule(19, contest=32, finalists=12),
            kept=FIXED,
        ),
        Variant(
            "fixed, no contest, race 0, first 48",
            schedule(48, race=0),
            kept=FIXED,
            with_contest=False,
        ),
    ],
}


def main() -> None:
    """Print a table per sampler: quality, differences from full evaluation and default, items."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--all", action="store_true", help="all variants, not the most telling")
    parser.add_argument("--start", type=int, default=2000, help="first instance")
    parser.add_argument("--instances", type=int, default=60)
    parser.add_argument("--samplers", nargs="*", default=["cma_es", "nsga2"])
    arguments = parser.parse_args()
    for sampler in arguments.samplers:
        began = time.perf_counter()
        variants = TELLING[sampler] + (REST[sampler] if arguments.all else [])
        runs = []
        for instance in range(arguments.start, arguments.start + arguments.instances):
            land = Landscape(instance)
            for variant in variants:
                run = Run(land, variant, sampler, seed=instance)
                run.search()
                runs.append(run.result())
        results = np.array(runs).reshape(arguments.instances, len(variants), 2)
        print(
            f"\n{sampler}, instances {arguments.start} to {instance}, "
            f"{time.perf_counter() - began:.0f} s"
        )
        measure = "true accuracy" if sampler == "cma_es" else "(hypervolume of truth)^1/4"
        print(
            f"| variant | {measure} | minus full | minus default | items |\n|---|---|---|---|---|"
        )
        quality, items = results[:, :, 0], results[:, :, 1].mean(axis=0)
        for number, variant in enumerate(variants):
            q = quality[:, number]
            print(
                f"| {variant.name} | {q.mean():.4f} | {_paired(q, quality[:, 0])} "
                f"| {_paired(q, quality[:, 1])} | {items[number]:.1%} |",
                flush=True,
            )


def _paired(a: FloatArray, b: FloatArray) -> str:
    """Mean difference over instances, and its standard error."""
    return f"{(a - b).mean():+.4f} ± {(a - b).std(ddof=1) / math.sqrt(len(a)):.4f}"


if __name__ == "__main__":
    main()
