"""How many items for whom: the rungs of a race, which items, and who goes on.

Everywhere less is better. `losses[o]` has shape `(n_members, n_items_o)`: what each member answered
to the items of objective `o`, which are the same for all members. Defaults are the best
measured within a tenth of the items, and lose to full evaluation (docs/benchmarks.md).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from evomerge.confidence import front_probability, front_probability_normal
from evomerge.datatypes import FloatArray
from evomerge.errors import ConfigError

TINY = 64
"""Up to that many items, all pools are answered whole: rungs would save little and cost errors."""

LARGEST_SHARE = 0.1
"""Of what full evaluation would answer: the most that a default schedule plans to, baselines in."""

FIRSTS = (64, 48, 40, 36, 32, 28, 24, 20, 16)
"""Items at rung 0 that a default schedule may have, best first; the last if nothing fits."""

N_RESAMPLES = 256
"""Draws behind a promotion: their error (.03) is far below that of the few items."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """How many items candidates answer, rung by rung.

    Args:
        first: Items of each task that all members of a cohort answer.
        growth: Each rung has so many times the items of the one before.
        keep: Share of those at a rung that goes on to the next.
        race: Promotions inside a cohort, before its scores are told; 0: all answer the same.
        sharpen: Trials that go on to their next rung between two cohorts.
        contest: Trials that enter the contest at the end of the run.
        finalists: Trials that the contest takes to all items; the final front is among them.
        cohort: Members of a cohort, for samplers without generations.
        doubt: Who is less likely than that to be among the best of its cohort is stopped early,
            even if places on the next rung are free.
        items: `random` ones on the first rung, or `greedy` ones, from which the answers of those
            who answered all items are best told (`fitness.readout`).
        fresh: Whether every cohort draws items of its own; False for samplers that compare their
            survivors with newcomers (NSGA-II), for which all cohorts then meet the same items.
        baselines: `race`: baselines answer the items of the race's rungs and compete for all of
            them; `all`: they answer all items first, for estimators that learn from them.

    Raises:
        ConfigError: an option is out of range.
    """

    first: int = 16
    growth: float = 2.0
    keep: float = 0.5
    race: int = 1
    sharpen: int = 0
    contest: int = 16
    finalists: int = 8
    cohort: int = 16
    doubt: float = 0.01
    items: str = "random"
    fresh: bool = True
    baselines: str = "race"

    def __post_init__(self) -> None:
        """Refuse what cannot be."""
        least = {"first": 1, "race": 0, "sharpen": 0, "contest": 1, "finalists": 1, "cohort": 2}
        for name, at_least in least.items():
            _check_whole(name, getattr(self, name), at_least)
        if not (_is_finite(self.growth) and self.growth > 1):
            raise ConfigError(
                f"fidelity.growth must be above 1, but is {self.growth!r}: 2 doubles the items "
                f"from rung to rung"
            )
        if not (_is_finite(self.keep) and 0 < self.keep <= 1):
            raise ConfigError(
                f"fidelity.keep must be above 0 and at most 1, but is {self.keep!r}: 0.5 lets the "
                f"better half go on"
            )
        if not (_is_finite(self.doubt) and 0 <= self.doubt < 1):
            raise ConfigError(
                f"fidelity.doubt must be at least 0 and below 1, but is {self.doubt!r}: 0 stops "
                f"nobody early, 0.01 only the hopeless"
            )
        for name, known in (("items", ("random", "greedy")), ("baselines", ("race", "all"))):
            if getattr(self, name) not in known:
                raise ConfigError(
                    f"fidelity.{name} must be {' or '.join(known)}, but is "
                    f"{getattr(self, name)!r}: take one of them"
                )

    def counts(self, n_pool: int) -> tuple[int, ...]:
        """Items answered by the end of each rung, rising; the last is the whole pool.

        Raises:
            ValueError: the pool is empty.
        """
        if n_pool < 1:
            raise ValueError(f"a pool has at least one item, got {n_pool}")
        counts = [min(self.first, n_pool)]
        while counts[-1] < n_pool:
            counts.append(min(n_pool, math.ceil(counts[-1] * self.growth)))
        return tuple(counts)

    def n_promoted(self, n: int) -> int:
        """How many of `n` go on: at least one of any, never more than there are."""
        return min(n, math.ceil(round(n * self.keep, 9)))

    def n_entering(self, n: int, *, is_first: bool) -> int:
        """How many of `n` trials go on to the next rung of the contest."""
        if is_first:
            return min(n, max(self.contest, self.finalists))
        return min(n, max(self.n_promoted(n), self.finalists))

    def n_items(self, n_pool: int, budget: int, n_baselines: int) -> float:
        """Answers that a run is expected to give on the items of one task.

        Contestants are taken to have gone through their cohort's race.
        """
        counts = self.counts(n_pool)
        steps = [counts[0], *np.diff(counts).tolist()]
        of_baselines = n_pool if self.baselines == "all" else sum(steps[: self.race + 1])
        answers = float(n_baselines * of_baselines)
        share = 1.0
        for step in steps[: self.race + 1]:
            answers += share * budget * step
            share *= self.keep
        n_cohorts = math.ceil(budget / self.cohort)
        answers += self.sharpen * n_cohorts * (steps[1] if len(steps) > 1 else 0)
        entrants = self.n_entering(budget + n_baselines, is_first=True)
        for step in steps[self.race + 1 :]:
            answers += entrants * step
            entrants = self.n_entering(entrants, is_first=False)
        return answers


def choose_schedule(
    pools: Sequence[int],
    budget: int,
    n_baselines: int,
    given: Mapping[str, Any],
    implied: Mapping[str, Any] = MappingProxyType({}),
) -> tuple[Schedule | None, str]:
    """The schedule of a run: what the user gave, the rest by default.

    Args:
        pools: Search items of each task.
        budget: Candidates planned.
        n_baselines: Models that are evaluated besides.
        given: Options of `Schedule` that the user chose.
        implied: Options that the search itself suggests; the user's come first.

    Returns:
        The schedule, or None for full evaluation, and the reason in a sentence.

    Raises:
        ConfigError: an option is unknown or out of range.
        ValueError: there is no pool, or one is empty.
    """
    if not pools or min(pools) < 1:
        raise ValueError(f"every task needs search items, got {list(pools)}")
    unknown = sorted(set(given) - set(Schedule.__dataclass_fields__))
    if unknown:
        raise ConfigError(
            f"fidelity takes {', '.join(Schedule.__dataclass_fields__)}, but got "
            f"{', '.join(unknown)}: remove them"
        )
    options = {**implied, **given}
    if given:
        schedule = Schedule(**{**_default_first(pools, budget, n_baselines, options), **options})
        return schedule, f"as configured ({', '.join(sorted(given))})"
    if max(pools) <= TINY:
        return None, f"tiny tasks (at most {TINY} items): every candidate answers all items"
    schedule = Schedule(**{**_default_first(pools, budget, n_baselines, options), **options})
    share = _planned_share(schedule, pools, budget, n_baselines)
    return schedule, f"default: about {share:.0%} of the answers of full evaluation"


def _default_first(
    pools: Sequence[int], budget: int, n_baselines: int, given: Mapping[str, Any]
) -> dict[str, Any]:
    """The most items at rung 0 with which the plan stays within `LARGEST_SHARE`."""
    for first in FIRSTS:
        schedule = Schedule(**{"first": first, **given})
        if _planned_share(schedule, pools, budget, n_baselines) <= LARGEST_SHARE:
            break
    # Where nothing fits (few candidates, small pools) a sampler still needs scores to climb by.
    return {"first": first}


def _planned_share(
    schedule: Schedule, pools: Sequence[int], budget: int, n_baselines: int
) -> float:
    """Answers planned, as a share of everybody's to everything."""
    planned = sum(schedule.n_items(n, budget, n_baselines) for n in pools)
    return planned / ((budget + n_baselines) * sum(pools))


def item_order(n_pool: int, seed: int, cohort: int, fitness: int) -> NDArray[np.int64]:
    """The order in which a cohort meets the items of a task; its rungs are prefixes of it.

    Every cohort and task has its own: a subset kept for the whole run is overfitted.

    Args:
        n_pool: Items of the task.
        seed: Of the run.
        cohort: Its number.
        fitness: The task's number.

    Returns:
        `(n_pool,)` permutation.
    """
    return np.random.default_rng([seed, 0xF1D, cohort, fitness]).permutation(n_pool)


def promote(
    losses: Sequence[FloatArray], weights: FloatArray | None, n: int, doubt: float = 0.0
) -> list[int]:
    """Choose who goes on to more items.

    Args:
        losses: Per objective `(n_members, n_items_o)` losses on shared items.
        weights: `(n_objectives,)` if the weighted mean counts. With None the Pareto front does:
            preferred is who is most often non-dominated when items are drawn again (paired
            bootstrap), then who has the lower mean standardised loss.
        n: Places.
        doubt: Members less likely than that to be among the best stay, even if places are free
            (see `hopeless`); the first always goes on.

    Returns:
        Rows, rising; equal members go on in their order.

    Raises:
        ValueError: shapes do not fit or something is not finite.
    """
    matrices = _checked(losses, weights)
    n_members = len(matrices[0])
    if n_members == 0 or n <= 0:
        return []
    if weights is not None:
        order = np.argsort(_weighted(matrices, weights), kind="stable")
    else:
        means = np.stack([matrix.mean(axis=1) for matrix in matrices], axis=1)
        probability = front_probability(matrices, n_resamples=N_RESAMPLES)
        order = np.lexsort((_standardised(means).sum(axis=1), -probability))
    chosen = [int(row) for row in order[:n]]
    if doubt > 0:
        gone = hopeless(matrices, weights, doubt)
        chosen = [chosen[0]] + [row for row in chosen[1:] if not gone[row]]
    return sorted(chosen)


def hopeless(
    losses: Sequence[FloatArray], weights: FloatArray | None, doubt: float = 0.01
) -> NDArray[np.bool_]:
    """Mark members who are, to all appearance, worse than some other.

    From paired differences on shared items under normal errors: some other member is better in the
    weighted mean, or dominates (the product over objectives, each in units of its own error), with
    a probability above `1 - doubt`.

    Args:
        losses: Per objective `(n_members, n_items_o)` losses on shared items.
        weights: `(n_objectives,)` if the weighted mean counts, None for the Pareto front.
        doubt: Probability below which there is no hope.

    Returns:
        `(n_members,)` mask; never marks all.

    Raises:
        ValueError: shapes do not fit or something is not finite.
    """
    matrices = _checked(losses, weights)
    if len(matrices[0]) == 0:
        return np.zeros(0, dtype=np.bool_)
    if weights is not None:
        w = np.asarray(weights, dtype=np.float64)
        difference, variance = np.zeros(()), np.zeros(())
        for wo, matrix in zip(w, matrices, strict=True):
            d, v = _paired(matrix)
            difference, variance = difference + wo * d, variance + wo**2 * v
        beaten = _probability_above(difference, variance)
    else:
        beaten = np.ones((len(matrices[0]), len(matrices[0])))
        for matrix in matrices:
            beaten *= _probability_above(*_paired(matrix))
    np.fill_diagonal(beaten, 0.0)
    gone = beaten.max(axis=1) > 1 - doubt
    return np.asarray(gone & ~gone.all())


def most_promising(
    losses: ArrayLike, errors: ArrayLike, weights: FloatArray | None, n: int
) -> list[int]:
    """Choose trials that are worth more items, from estimates on different items.

    Args:
        losses: `(n_trials, n_objectives)` estimated losses.
        errors: Their standard errors, same shape, not negative.
        weights: `(n_objectives,)` if the weighted mean counts. With None the Pareto front does:
            who is most often non-dominated under independent normal errors.
        n: Places.

    Returns:
        Rows, rising; equal trials in their order.

    Raises:
        ValueError: shapes do not fit, something is not finite or an error is negative.
    """
    m, s = np.asarray(losses, dtype=np.float64), np.asarray(errors, dtype=np.float64)
    if m.ndim != 2 or m.shape[1] == 0 or s.shape != m.shape:
        raise ValueError(f"losses and errors must be matrices of one shape: {m.shape}, {s.shape}")
    if not (np.isfinite(m).all() and np.isfinite(s).all() and (s >= 0).all()):
        raise ValueError("losses must be finite and errors finite and not negative")
    if len(m) == 0 or n <= 0:
        return []
    if weights is not None:
        w = _checked_weights(weights, m.shape[1])
        order = np.argsort(m @ w, kind="stable")
    else:
        probability = front_probability_normal(m, s, n_resamples=N_RESAMPLES)
        order = np.lexsort((_standardised(m).sum(axis=1), -probability))
    return sorted(int(row) for row in order[:n])


def _weighted(matrices: Sequence[FloatArray], weights: FloatArray) -> FloatArray:
    """`(n_members,)` weighted mean losses."""
    w = np.asarray(weights, dtype=np.float64)
    total = sum(wo * matrix.mean(axis=1) for wo, matrix in zip(w, matrices, strict=True))
    return np.asarray(total, dtype=np.float64)


def _standardised(means: FloatArray) -> FloatArray:
    """Columns with mean 0 and deviation 1, so that no task's scale counts; constant ones are 0."""
    centred = means - means.mean(axis=0)
    spread = centred.std(axis=0)
    is_constant = np.ptp(means, axis=0) == 0
    return np.where(is_constant, 0.0, centred / np.where(is_constant, 1.0, spread))


def _paired(matrix: FloatArray) -> tuple[FloatArray, FloatArray]:
    """`[i, j]`: mean of member i's losses minus member j's, and the variance of that mean.

    As in `confidence.paired_difference`, two items more count, one each way.
    """
    n_items = matrix.shape[1]
    d = matrix[:, None, :] - matrix[None, :, :]
    mean = d.mean(axis=2)
    if n_items == 1:
        return mean, np.zeros_like(mean)
    squares = ((d - mean[:, :, None]) ** 2).sum(axis=2) + 2 * np.abs(d).max(axis=2) ** 2
    return mean, squares / (n_items - 1) / n_items


def _probability_above(mean: FloatArray, variance: FloatArray) -> FloatArray:
    """P(N(mean, variance) > 0); without variance 1, 0.5 or 0 by the sign of the mean."""
    from scipy.special import ndtr

    is_sure = variance <= 0
    z = mean / np.sqrt(np.where(is_sure, 1.0, variance))
    return np.asarray(np.where(is_sure, 0.5 * (1 + np.sign(mean)), ndtr(z)))


def _checked(losses: Sequence[FloatArray], weights: FloatArray | None) -> list[FloatArray]:
    matrices = [np.asarray(matrix, dtype=np.float64) for matrix in losses]
    if not matrices or any(m.ndim != 2 or m.shape[1] == 0 for m in matrices):
        raise ValueError("losses need a (n_members, n_items) matrix with items per objective")
    if len({len(m) for m in matrices}) != 1 or not all(np.isfinite(m).all() for m in matrices):
        raise ValueError("losses must be finite and have the same members in every objective")
    if weights is not None:
        _checked_weights(weights, len(matrices))
    return matrices


def _checked_weights(weights: FloatArray, n_objectives: int) -> FloatArray:
    w = np.asarray(weights, dtype=np.float64)
    if w.shape != (n_objectives,) or not np.isfinite(w).all():
        raise ValueError(f"weights must be one finite number per objective ({n_objectives}): {w}")
    return w


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _check_whole(name: str, value: Any, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ConfigError(
            f"fidelity.{name} must be a whole number of at least {least}, but is {value!r}: leave "
            f"it out for the default"
        )
