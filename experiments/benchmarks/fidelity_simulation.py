"""Which share of the items a search needs: the simulation behind the defaults of `fidelity`.

    python experiments/benchmarks/fidelity_simulation.py [--quick] [--instances N] [--minutes M]

Four tasks of 500 search items each in 24 dimensions. Model x is right on item j of task o iff
1.2 - q_o(x) + 0.6 sqrt(2) cos(w_j x + u_j) > b_j, with q_o a rotated quadratic (axes from 1 to
10^-1.5) around the task's optimum, mean 3 over uniform points, w_j ~ N(0, 4), u_j ~ U(0, 2 pi),
b_j ~ N(0, 2.25): smooth answers of each item, so that items can be overfitted. Truth is the
accuracy on 4 x 5000 items that no search sees. 300 candidates of CMA-ES on the mean or of NSGA-II,
12 baselines on all items. The result is chosen by answers to search items alone.
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evomerge.datatypes import Candidate, Dimension, FloatArray, Problem
from evomerge.fidelity import Schedule, item_order, most_promising, promote
from evomerge.pareto import hypervolume, non_dominated
from evomerge.samplers.cma_es import CmaEsSampler
from evomerge.samplers.nsga2 import Nsga2Sampler

N_DIMENSIONS, N_TASKS, N_SEARCH, N_TRUTH = 24, 4, 500, 5000
N_CANDIDATES, N_BASELINES, COHORT = 300, 12, 16
EQUAL = np.ones(N_TASKS) / N_TASKS


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

    `subset`: `fresh` for each cohort, `fixed` for the run, `own` for each candidate.
    """

    name: str
    schedule: Schedule | None = None
    subset: str = "fresh"
    corrected: bool = True
    stratified: bool = False
    shrink: bool = False
    doubt: float = 0.0
    with_contest: bool = True


def stratified_order(
    difficulty: FloatArray, seed: int, cohort: int, task: int
) -> NDArray[np.int64]:
    """A permutation whose prefixes spread over the difficulty: van der Corput, random start."""
    rng = np.random.default_rng([seed, 0x57, cohort, task])
    n = len(difficulty)
    by_difficulty = np.lexsort((rng.uniform(size=n), difficulty))
    bits = int(np.ceil(np.log2(n)))
    reverse = np.array([int(f"{i:0{bits}b}"[::-1], 2) for i in range(2**bits)])
    return by_difficulty[(reverse[reverse < n] + rng.integers(n)) % n]


class Run:
    """One search: the driver's rules on arrays."""

    def __init__(self, land: Landscape, variant: Variant, sampler: str, seed: int) -> None:
        """Make the sampler and answer the baselines."""
        self.land, self.v, self.seed = land, variant, seed
        problem = Problem(
            dimensions=tuple(Dimension(f"x{i}") for i in range(N_DIMENSIONS)),
            n_objectives=N_TASKS,
            anchors=((0.5,) * N_DIMENSIONS,),
            budget=N_CANDIDATES,
        )
        self.weights = EQUAL if sampler == "cma_es" else None
        self.sampler = (
            CmaEsSampler(problem, seed=seed, weights=EQUAL.tolist())
            if sampler == "cma_es"
            else Nsga2Sampler(problem, seed=seed)
        )
        self.known = land.losses(land.baselines)
        self.difficulty = self.known.mean(axis=0)  # (n_tasks, N_SEARCH)
        self.x = np.empty((N_CANDIDATES, N_DIMENSIONS))
        self.answers = np.empty((N_CANDIDATES, N_TASKS, N_SEARCH))
        self.rung = np.zeros(N_CANDIDATES, dtype=int)
        self.order: dict[int, NDArray[np.int64]] = {}
        schedule = variant.schedule
        self.counts = schedule.counts(N_SEARCH) if schedule else (N_SEARCH,)
        self.last = len(self.counts) - 1

    def orders(self, key: int) -> NDArray[np.int64]:
        """`(n_tasks, N_SEARCH)`: the order of items of one cohort."""
        if self.v.stratified:
            rows = [stratified_order(self.difficulty[t], self.seed, key, t) for t in range(N_TASKS)]
        else:
            rows = [item_order(N_SEARCH, self.seed, key, t) for t in range(N_TASKS)]
        return np.stack(rows)

    def seen(self, row: int) -> FloatArray:
        """`(n_tasks, n)` losses of a candidate on what it has answered."""
        items = self.order[row][:, : self.counts[self.rung[row]]]
        return np.take_along_axis(self.answers[row], items, axis=1)

    def estimate(self, row: int) -> tuple[FloatArray, FloatArray]:
        """Losses `(n_tasks,)` and standard errors, difference-corrected if asked for."""
        items = self.order[row][:, : self.counts[self.rung[row]]]
        y = np.take_along_axis(self.answers[row], items, axis=1)
        n = y.shape[1]
        if n == N_SEARCH or not self.v.corrected:
            return y.mean(axis=1), y.std(axis=1, ddof=1) / np.sqrt(n)
        rest = y - np.take_along_axis(self.difficulty, items, axis=1)
        mean = self.difficulty.mean(axis=1) + rest.mean(axis=1)
        return mean, rest.std(axis=1, ddof=1) / np.sqrt(n) * np.sqrt(1 - n / N_SEARCH)

    def promising(self, rows: Sequence[int], n: int) -> list[int]:
        """Who is worth more items."""
        if not rows:
            return []
        pairs = [self.estimate(row) for row in rows]
        m, s = np.stack([p[0] for p in pairs]), np.stack([p[1] for p in pairs])
        if self.v.shrink:
            prior = np.maximum(m.var(axis=0) - (s**2).mean(axis=0), 1e-6)
            share = prior / (prior + s**2)
            m = m.mean(axis=0) + share * (m - m.mean(axis=0))
            s = s * np.sqrt(share)
        return [rows[i] for i in most_promising(m, s, self.weights, n)]

    def search(self) -> None:
        """Ask, race, tell, sharpen; then the contest."""
        n, cohort, size = 0, 0, self.sampler.generation_size or COHORT
        while n < N_CANDIDATES:
            asked: list[Candidate] = []
            while len(asked) < size and n + len(asked) < N_CANDIDATES:
                candidate = self.sampler.ask()
                if candidate is None:
                    break
                asked.append(candidate)
            rows = list(range(n, n + len(asked)))
            self.x[rows] = [c.u for c in asked]
            self.answers[rows] = self.land.losses(self.x[rows])
            for row in rows:
                key = {"fresh": cohort, "fixed": 0, "own": 10_000 + row}[self.v.subset]
                self.order[row] = self.orders(key)
            schedule, at = self.v.schedule, rows
            if schedule is not None:
                for rung in range(min(schedule.race, self.last)):
                    seen = np.stack([self.seen(row) for row in at])
                    losses = [seen[:, t] for t in range(N_TASKS)]
                    places = schedule.n_promoted(len(at))
                    at = [at[i] for i in promote(losses, self.weights, places, self.v.doubt)]
                    self.rung[at] = rung + 1
            for candidate, row in zip(asked, rows, strict=True):
                self.sampler.tell(candidate, self.estimate(row)[0].tolist())
            n, cohort = n + len(rows), cohort + 1
            if schedule is not None and schedule.sharpen and n < N_CANDIDATES:
                lacking = [row for row in range(n) if self.rung[row] < self.last]
                for row in self.promising(lacking, schedule.sharpen):
                    self.rung[row] += 1
        if self.v.schedule is not None and self.v.with_contest:
            self.contest(self.v.schedule)

    def contest(self, schedule: Schedule) -> None:
        """The most promising trials of the run, rung by rung, up to all items."""
        among = self.promising(list(range(N_CANDIDATES)), schedule.contest)
        while lacking := [row for row in among if self.rung[row] < self.last]:
            rung = 1 + min(self.rung[row] for row in lacking)
            for row in among:
                self.rung[row] = max(self.rung[row], rung)
            if rung < self.last:
                among = self.promising(among, schedule.n_promoted(len(among)))

    def result(self) -> tuple[float, float]:
        """True quality of what was chosen (mean accuracy, or hypervolume), and share of items."""
        enough = self.last if self.v.with_contest else self.rung.max()
        rows = [row for row in range(N_CANDIDATES) if self.rung[row] >= enough]
        estimates = np.stack([self.estimate(row)[0] for row in rows])
        estimates = np.vstack([estimates, self.known.mean(axis=2)])
        points = np.vstack([self.x[rows], self.land.baselines])
        if self.weights is not None:
            best = points[np.argmin(estimates @ self.weights)]
            quality = 1 - float(self.land.truth(best[None]).mean())
        else:
            front = points[non_dominated(estimates)]
            quality = hypervolume(self.land.truth(front), np.full(N_TASKS, 0.7)) ** (1 / N_TASKS)
        answered = sum(self.counts[r] for r in self.rung) + N_BASELINES * N_SEARCH
        return quality, answered / (N_CANDIDATES * N_SEARCH)


def schedule(
    first: int,
    growth: float = 2.0,
    keep: float = 0.5,
    race: int = 1,
    sharpen: int = 0,
    contest: int = 8,
) -> Schedule:
    """A schedule with the options that vary most first; no sharpening unless asked for."""
    return Schedule(first, growth, keep, race, sharpen, contest)


VARIANTS = [
    Variant("full evaluation"),
    Variant("fixed subset 24", schedule(24, race=0), subset="fixed"),
    Variant("own subset 24, uncorrected", schedule(24, race=0), subset="own", corrected=False),
    Variant("fresh 24", schedule(24, race=0)),
    Variant("fresh 24, no contest", schedule(24, race=0), with_contest=False),
    Variant("fresh 24, uncorrected", schedule(24, race=0), corrected=False),
    Variant("fresh 24, stratified", schedule(24, race=0), stratified=True),
    Variant("fresh 24, contest 16", schedule(24, race=0, contest=16)),
    Variant("fresh 24, contest 24", schedule(24, race=0, contest=24)),
    Variant("fresh 24, contest 24, shrunk", schedule(24, race=0, contest=24), shrink=True),
    Variant("fresh 24, contest 16, sharpen 1", schedule(24, race=0, contest=16, sharpen=1)),
    Variant("fresh 24, contest 16, sharpen 2", schedule(24, race=0, contest=16, sharpen=2)),
    Variant("race 16, contest 16", schedule(16, race=1, contest=16)),
    Variant("race 16, no contest", schedule(16, race=1), with_contest=False),
    Variant("race 16, contest 16, sharpen 1", schedule(16, contest=16, sharpen=1)),
    Variant("race 16, contest 16, doubt .02", schedule(16, contest=16), doubt=0.02),
    Variant("race 12 x 3, keep 1/3", schedule(12, 3.0, 0.34, race=1, contest=16)),
    Variant("race 8 twice", schedule(8, race=2, contest=16)),
    Variant("fresh 12, contest 10, keep 1", schedule(12, keep=1.0, race=0, contest=10)),
    Variant("fresh 16, contest 24, keep .7", schedule(16, keep=0.7, race=0, contest=24)),
]
QUICK = {"full evaluation", "fixed subset 24", "fresh 24, contest 16", "race 16, contest 16"}


def main() -> None:
    """Print a table per sampler: quality, difference from full evaluation, items."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="3 instances of 4 variants")
    parser.add_argument("--instances", type=int, default=24)
    parser.add_argument("--minutes", type=float, default=5.0, help="no more instances after that")
    parser.add_argument("--samplers", nargs="*", default=["cma_es", "nsga2"])
    arguments = parser.parse_args()
    variants = [v for v in VARIANTS if v.name in QUICK] if arguments.quick else VARIANTS
    n_instances = 3 if arguments.quick else arguments.instances
    for sampler in arguments.samplers:
        began = time.perf_counter()
        quality = np.empty((len(variants), n_instances))
        items = np.empty_like(quality)
        n_done = 0
        for instance in range(n_instances):
            if time.perf_counter() - began > 60 * arguments.minutes:
                break
            n_done += 1
            land = Landscape(instance)
            for number, variant in enumerate(variants):
                run = Run(land, variant, sampler, seed=instance)
                run.search()
                quality[number, instance], items[number, instance] = run.result()
        quality, items = quality[:, :n_done], items[:, :n_done]
        measure = "true accuracy" if sampler == "cma_es" else "(hypervolume of truth)^1/4"
        print(f"\n{sampler}, {n_done} instances, {time.perf_counter() - began:.0f} s")
        print(f"| variant | {measure} | minus full | items |\n|---|---|---|---|")
        for variant, q, share in zip(variants, quality, items, strict=True):
            d = (q - quality[0]).mean()
            error = (q - quality[0]).std(ddof=1) / np.sqrt(n_done)
            print(
                f"| {variant.name} | {q.mean():.4f} | {d:+.4f} ± {error:.4f} "
                f"| {share.mean():.1%} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
