"""What a run has shown: who may be on the front, how much selection flatters, whether it paid.

Made from the answers to single items, because trials that answer the same items err together.
Costs up to a second: made once for a page or a table, never while a search runs.
"""

import contextlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from evomerge.confidence import (
    N_ERRORS,
    front_probability,
    front_probability_normal,
    gain,
    paired_difference,
)
from evomerge.datatypes import FloatArray, Split
from evomerge.errors import ConfigError
from evomerge.history import History, Trial
from evomerge.item_losses import by_pool, has_answered_all, item_losses, pools_of
from evomerge.reporting.rows import (
    Row,
    baseline_trials,
    best_in_mean,
    front_trials,
    mean_loss,
    pick,
    preference_of,
    preferred_baseline,
    title_of,
)

MOST_COMPARED = 150
"""Trials in a bootstrap besides front and baselines: the best in mean; its cost is quadratic."""

COMPARISONS = 60_000_000
"""Pairs of trials that all draws of a bootstrap may compare: about a second."""

FAR_APART = 5.0
"""Objectives whose scores spread over baselines by more than such a factor have no common scale."""


@dataclass(frozen=True, slots=True)
class FrontConfidence:
    """How probable it is that trials are non-dominated, by name; how that was found."""

    probabilities: Mapping[str, float]
    split: Split
    is_paired: bool

    @property
    def caption(self) -> str:
        """How to read the column."""
        where = "held-out" if self.split is Split.HELD_OUT else "search"
        how = (
            f"share of draws of the {where} items, with repeats (paired bootstrap)"
            if self.is_paired
            else f"share of draws of the scores from their errors ({where} items, each its own)"
        )
        return (
            f"on front: {how}, in which it is non-dominated among {len(self.probabilities)} trials"
        )


@dataclass(frozen=True, slots=True)
class Difference:
    """A number with its standard error; 0 for one that is exact."""

    value: float
    standard_error: float

    def text(self) -> str:
        """`+0.064 ±0.008`; a number without error is exact."""
        size = max(abs(self.value), self.standard_error)
        decimals = 3 if size < 10 else 2 if size < 100 else 1
        shown = f"{self.value:+.{decimals}f}"
        if self.standard_error == 0:
            return f"{shown} (exact)"
        return f"{shown} ±{self.standard_error:.{decimals}f}"

    def row(self) -> Row:
        """As plain values."""
        return {"value": self.value, "standard_error": self.standard_error}


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether the search's choice beats the best baseline on items that chose neither.

    Differences are in losses, oriented so that above 0 is better.
    """

    sentence: str
    chosen: str | None = None
    baseline: str | None = None
    difference: Difference | None = None
    by_objective: Mapping[str, Difference] | None = None
    is_gain: bool | None = None
    """Beyond noise; None while it cannot be said."""

    def row(self) -> Row:
        """As plain values."""
        return {
            "sentence": self.sentence,
            "chosen": self.chosen,
            "baseline": self.baseline,
            "difference": None if self.difference is None else self.difference.row(),
            "by_objective": None
            if self.by_objective is None
            else {name: d.row() for name, d in self.by_objective.items()},
            "is_gain": self.is_gain,
        }


@dataclass(frozen=True, slots=True)
class Conclusion:
    """All of it."""

    confidence: FrontConfidence | None
    optimism: list[Row]
    verdict: Verdict


def conclude(history: History) -> Conclusion:
    """What the answers so far show."""
    return Conclusion(front_confidence(history), optimism_rows(history), verdict_of(history))


def front_confidence(history: History) -> FrontConfidence | None:
    """The probability of being on the front, or None before the first front.

    From held-out answers of all finalists and baselines where they exist, else from search
    answers of front, baselines and the best others.
    """
    if history.front is None:
        return None
    held_out = history.scored(Split.HELD_OUT)
    if any(not t.is_baseline for t in held_out) and not history.front.is_provisional:
        return _bootstrap(history, held_out, Split.HELD_OUT)
    scored = history.scored()
    chosen = {t.name: t for t in [*front_trials(history), *(t for t in scored if t.is_baseline)]}
    others = [t for t in scored if t.name not in chosen]
    others.sort(key=lambda t: mean_loss(t, history.objectives))
    trials = [*chosen.values(), *others[:MOST_COMPARED]]
    if all(history.has_all_items(t) for t in trials):
        return _bootstrap(history, trials, Split.SEARCH)
    errors = np.array(
        [
            [t.search[o.name].standard_error for o in history.objectives]
            for t in trials
            if t.search is not None
        ]
    )
    shares = front_probability_normal(history.losses(trials), errors, _n_resamples(len(trials)))
    return _confidence(trials, shares, Split.SEARCH, is_paired=False)


def optimism_rows(history: History) -> list[Row]:
    """How much better search scores look than held-out ones: per objective and for the mean.

    One row per objective and one for their mean, each with search minus held-out (above 0 where
    the search flatters) of the chosen trial, the front's candidates and the baselines, and the
    front's and the chosen trial's beyond that of the baselines: how the two sets of items differ
    by themselves. Empty without held-out scores.
    """

    def judged(trials: Sequence[Trial]) -> list[Trial]:
        return [
            t
            for t in trials
            if t.held_out is not None and has_answered_all(history, t, Split.SEARCH)
        ]

    front = judged([t for t in front_trials(history) if not t.is_baseline])
    baselines = judged(baseline_trials(history))
    best = best_in_mean(front, history.objectives)
    if preference_of(history) is not None and front:
        with contextlib.suppress(ConfigError):  # the verdict says that nobody meets its thresholds
            taken = pick(history)
            best = taken if taken in front else None
    chosen = [] if best is None else [best]
    trials = [*front, *baselines]
    if not trials:
        return []
    search, held_out = (item_losses(history, trials, split) for split in Split)
    place = {t.name: i for i, t in enumerate(trials)}

    def row(name: str | None, matrices: Sequence[Sequence[FloatArray]], scale: float) -> Row:
        def gap(of: Sequence[Trial], minus: Sequence[Trial] = ()) -> Row | None:
            if not of:
                return None
            weights = np.zeros(len(trials))
            weights[[place[t.name] for t in of]] += 1 / len(of)
            if minus:
                weights[[place[t.name] for t in minus]] -= 1 / len(minus)
            return _gap(matrices[0], matrices[1], weights, scale).row()

        return {
            "objective": name,
            "chosen": gap(chosen),
            "front": gap(front),
            "baselines": gap(baselines),
            "chosen_beyond_baselines": gap(chosen, baselines) if baselines else None,
            "front_beyond_baselines": gap(front, baselines) if baselines else None,
        }

    rows = [
        row(o.name, ([s], [h]), 1.0)
        for o, s, h in zip(history.objectives, search, held_out, strict=True)
    ]
    if len(rows) > 1:
        pools = pools_of(history)
        both = (by_pool(search, pools), by_pool(held_out, pools))
        rows.append(row(None, both, 1 / len(history.objectives)))
    return rows


def verdict_of(history: History, chosen: Trial | None = None) -> Verdict:
    """Whether a trial beats the best baseline on held-out items by more than noise.

    Both are chosen by their mean on search items. In the mean as everywhere in reports: the plain
    mean of the losses of all objectives.

    Args:
        history: Of the run.
        chosen: The trial to judge; by default the one that the run's preference takes, or the best
            in mean of the front if it has none. A preference also says which baseline is to beat.
    """
    objectives = history.objectives
    baselines = [t for t in baseline_trials(history) if t.search is not None]
    prefer = preference_of(history) if chosen is None else None
    rival = best_in_mean(baselines, objectives)
    if prefer is not None:
        rival = preferred_baseline(history)
    if history.front is None or rival is None:
        return Verdict("no verdict yet: the run has no front")
    if chosen is None:
        try:
            chosen = pick(history) if prefer else best_in_mean(front_trials(history), objectives)
        except ConfigError as error:
            return Verdict(f"no verdict: {error}")
        assert chosen is not None  # a front is never empty
        if chosen.is_baseline:
            best = "best of the front in mean" if prefer is None else f"choice by {prefer.text}"
            return Verdict(
                f"no gain: the {best} is a baseline, {title_of(chosen)}: prefer it",
                chosen.name,
                chosen.name,
                is_gain=False if chosen.held_out is not None else None,
            )
    if chosen.held_out is None or rival.held_out is None or history.front.is_provisional:
        may = all(n for _, n in history.started.n_items.values())
        why = (
            "held-out items are answered when the search ends"
            if may
            else "the run has no held-out items, and search items flatter what they chose"
        )
        return Verdict(f"no verdict{' yet' if may else ''}: {why}", chosen.name, rival.name)
    mean, by_objective, is_gain = compared(history, chosen, rival)
    sentence = _sentence(mean, title_of(rival), is_gain=is_gain)
    # A rival chosen on few items may be an easy one: the hardest is named beside it.
    hardest = best_in_mean(baselines, objectives, Split.HELD_OUT)
    if is_gain and hardest is not None and hardest.name not in (rival.name, chosen.name):
        against, _, _ = compared(history, chosen, hardest)
        sentence += f" ({against.text()} over {title_of(hardest)}, best on held-out items)"
    if len(objectives) > 1 and (prefer is not None or not _has_common_scale(history)):
        if prefer is not None:
            sentence += f"; {title_of(chosen)} is the choice by {prefer.text}: "
        else:
            sentence += "; objectives differ in scale or direction, so read them one by one: "
        sentence += ", ".join(
            f"{name} {difference.text()} ({_word(difference)})"
            for name, difference in by_objective.items()
        )
    return Verdict(sentence, chosen.name, rival.name, mean, by_objective, is_gain=is_gain)


def compared(
    history: History, chosen: Trial, rival: Trial
) -> tuple[Difference, dict[str, Difference], bool]:
    """By how much one is better on held-out items, in the mean and by objective; beyond noise?"""
    losses = item_losses(history, [chosen, rival], Split.HELD_OUT)
    by_objective = {
        o.name: Difference(*paired_difference(matrix[1], matrix[0]))
        for o, matrix in zip(history.objectives, losses, strict=True)
    }
    summed = by_pool(losses, pools_of(history))
    found = gain([m[0] for m in summed], [m[1] for m in summed])
    # from the mean over pools to the mean over objectives
    scale = len(summed) / len(history.objectives)
    mean = Difference(scale * found.difference, scale * found.standard_error)
    return mean, by_objective, found.is_beyond_noise


def _sentence(mean: Difference, rival: str, *, is_gain: bool) -> str:
    if is_gain:
        return f"gain over the best baseline ({rival}) on held-out items: {mean.text()}"
    if mean.value < -N_ERRORS * mean.standard_error:
        return f"a loss: {mean.text()} against {rival} on held-out items: prefer the baseline"
    return (
        f"no gain beyond noise: {mean.text()} over {rival} on held-out items: prefer the baseline"
    )


def _word(difference: Difference) -> str:
    if abs(difference.value) <= N_ERRORS * difference.standard_error:
        return "noise" if difference.standard_error > 0 else "equal"
    return "better" if difference.value > 0 else "worse"


def _has_common_scale(history: History) -> bool:
    """Whether a mean over objectives means something: one direction, and spreads that are alike."""
    if len({o.direction for o in history.objectives}) > 1:
        return False
    spreads = np.ptp(history.losses([t for t in history.scored() if t.is_baseline]), axis=0)
    moving = spreads[spreads > 0]
    return len(moving) == 0 or bool(moving.max() <= FAR_APART * moving.min())


def _gap(
    search: Sequence[FloatArray], held_out: Sequence[FloatArray], weights: FloatArray, scale: float
) -> Difference:
    """Held-out minus search loss of a weighted sum of trials; the two sets of items independent."""
    value, variance = 0.0, 0.0
    for sign, matrices in ((-1.0, search), (1.0, held_out)):
        for matrix in matrices:
            of_items = weights @ matrix
            mean, error = paired_difference(of_items, np.zeros_like(of_items))
            value += sign * mean
            variance += error**2
    return Difference(scale * value, scale * math.sqrt(variance))


def _bootstrap(history: History, trials: Sequence[Trial], split: Split) -> FrontConfidence:
    losses = item_losses(history, trials, split)
    shares = front_probability(losses, _n_resamples(len(trials)), pools=pools_of(history))
    return _confidence(trials, shares, split, is_paired=True)


def _confidence(
    trials: Sequence[Trial], shares: FloatArray, split: Split, *, is_paired: bool
) -> FrontConfidence:
    by_name = {t.name: float(share) for t, share in zip(trials, shares, strict=True)}
    return FrontConfidence(by_name, split, is_paired)


def _n_resamples(n_trials: int) -> int:
    """1000, of very many trials fewer (at least 100: an error of at most .05)."""
    return max(100, min(1000, COMPARISONS // max(n_trials, 1) ** 2))
