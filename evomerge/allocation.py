"""Who answers which items next: races within cohorts, a contest at the end.

The arithmetic is in `fidelity`; here it meets the state of a run. Every conclusion follows from the
journal alone and is journaled itself, so that a resumed run draws no other.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from evomerge import fidelity
from evomerge.datatypes import Estimate, FloatArray, Split
from evomerge.fidelity import Schedule
from evomerge.history import History, Started, Trial
from evomerge.item_losses import item_losses
from evomerge.journal import Event
from evomerge.scoring import Scoring


class Block(NamedTuple):
    """Search items that a cohort's candidates answer together: for each fitness their numbers."""

    cohort: int
    rung: int
    items: tuple[tuple[int, ...], ...]

    @property
    def name(self) -> str:
        """How the journal calls it."""
        return f"{self.cohort}.{self.rung}"


class Allocation:
    """Decides after every round of answers.

    A cohort is a sampler's generation, or `schedule.cohort` candidates of a sampler without. Its
    members answer the same items, drawn anew for each cohort; the better ones go on to more
    (the race); then all have scores. The baselines are the first cohort, and all go on. Between
    cohorts the best so far are sharpened; when no more candidates come, the contest takes the most
    promising trials of the run to all items.

    Args:
        schedule: Item counts; None has every candidate answer all items at once.
        scoring: Makes scores of answers.
        started: The run's first event.
        weights: `(n_objectives,)` if the search climbs a weighted mean, None for the Pareto front.
    """

    def __init__(
        self,
        schedule: Schedule | None,
        scoring: Scoring,
        started: Started,
        weights: FloatArray | None,
    ) -> None:
        self._schedule = schedule
        self._scoring = scoring
        self._weights = weights
        self._seed = started.seed
        self._pools = [started.n_items[names[0]][0] for names in started.fitness]
        counts = [schedule.counts(n) for n in self._pools] if schedule is not None else [()]
        self.n_rungs = max(map(len, counts))
        # A small pool is answered whole on an early rung; then it has nothing more to give.
        self._counts = [(*c, *(c[-1:] * (self.n_rungs - len(c)))) for c in counts]

    def has_room(self, history: History, generation_size: int | None) -> bool:
        """Whether the open cohort takes another candidate, or a new one may be opened."""
        if self._schedule is None:
            return True
        cohort = history.open_cohort
        if cohort is None:
            # who is sharpened between two cohorts comes first
            return self._sharpening(history) is None and not self._unscored(history)
        members = history.cohorts[cohort]
        if history.trials[members[0]].is_baseline:
            return False
        size = generation_size or self._schedule.cohort
        return len(members) < size and all(history.trials[m].wanted == 1 for m in members)

    def block_of(self, history: History, name: str, *, is_baseline: bool) -> Block | None:
        """The items that a trial answers next; None stands for all at once."""
        if self._schedule is None or (is_baseline and self._schedule.baselines == "all"):
            return None
        trial = history.trials.get(name)
        if trial is not None:
            assert trial.cohort is not None  # in a run with a schedule everybody has one
            return self._block(history, trial.cohort, trial.rung)
        cohort = history.open_cohort
        return self._block(history, len(history.cohorts) if cohort is None else cohort, 0)

    def _block(self, history: History, cohort: int, rung: int) -> Block:
        known = history.blocks.get(f"{cohort}.{rung}")
        if known is not None:
            return Block(cohort, rung, known)
        items = []
        for number, (n_pool, counts) in enumerate(zip(self._pools, self._counts, strict=True)):
            order = self._order(history, n_pool, cohort, number)
            start = counts[rung - 1] if rung else 0
            items.append(tuple(sorted(order[start : counts[rung]].tolist())))
        return Block(cohort, rung, tuple(items))

    def _order(self, history: History, n_pool: int, cohort: int, number: int) -> NDArray[np.int64]:
        """The order in which a cohort meets the items of a fitness."""
        assert self._schedule is not None  # only asked with one
        drawn_for = cohort if self._schedule.fresh else 0
        order = fidelity.item_order(n_pool, self._seed, drawn_for, number)
        is_first = cohort == 0 and self._schedule.baselines == "race"
        if self._schedule.items == "random" or is_first:
            return order
        # What the first rung answered stays in front, although more is known on later ones.
        first = history.blocks.get(f"{cohort}.0")
        if first is None:
            n_first = self._counts[number][0]
            chosen = self._scoring.greedy_items(history, number, n_first, cohort)
        else:
            chosen = np.array(first[number], dtype=np.int64)
        return np.concatenate([chosen, order[~np.isin(order, chosen)]])

    def conclude(self, history: History, *, goes_on: bool) -> Event | None:
        """What follows when all that was asked is answered: who goes on, or scores; or nothing.

        Args:
            history: Of the run; nothing is pending on search items.
            goes_on: Whether more candidates will come.
        """
        if self._schedule is None:
            return None
        cohort = history.open_cohort
        if cohort is not None:
            return self._race(history, cohort)
        unscored = self._unscored(history)
        if unscored:
            return self._scored(history, unscored, None)
        return self._sharpening(history) if goes_on else self._contest(history)

    def _race(self, history: History, cohort: int) -> Event:
        assert self._schedule is not None  # only asked with one
        members = [history.trials[name] for name in history.cohorts[cohort]]
        members = [trial for trial in members if trial.failure is None]
        rung = max((trial.rung for trial in members), default=0)
        at = [trial.name for trial in members if trial.rung == rung]
        if at and rung <= self._schedule.race and rung < self.n_rungs:
            names = at if members[0].is_baseline else self._promote(history, at)
            return _promoted("race", names, rung + 1, cohort)
        return self._scored(history, [trial.name for trial in members], cohort)

    def _promote(self, history: History, names: Sequence[str]) -> list[str]:
        """Who of those that share their items goes on."""
        assert self._schedule is not None  # only asked with one
        losses = item_losses(history, [history.trials[name] for name in names], Split.SEARCH)
        n, doubt = self._schedule.n_promoted(len(names)), self._schedule.doubt
        return [names[row] for row in fidelity.promote(losses, self._weights, n, doubt)]

    def _unscored(self, history: History) -> list[str]:
        """Trials with scores that have answered more since."""
        return [
            trial.name
            for trial in history.trials.values()
            if trial.search is not None and trial.rung > trial.scored_rung
        ]

    def _scored(self, history: History, names: Sequence[str], cohort: int | None) -> Event:
        scores = self._scoring.score(history, names) if names else {}
        return {
            "event": "scored",
            "cohort": cohort,
            "estimates": {name: plain_estimates(scores[name]) for name in names},
        }

    def _sharpening(self, history: History) -> Event | None:
        assert self._schedule is not None  # only asked with one
        last = len(history.cohorts) - 1
        if self._schedule.sharpen == 0 or last < 0 or history.sharpened == last:
            return None
        if history.stage == "contest":
            return None
        names = self._most_promising(
            history, self._lacking(history, history.scored()), self._schedule.sharpen
        )
        if not names:
            return None
        rung = 1 + min(history.trials[name].rung for name in names)
        return _promoted("sharpen", names, rung, last)

    def _contest(self, history: History) -> Event | None:
        assert self._schedule is not None  # only asked with one
        is_first = history.stage == "race"
        among = history.scored() if is_first else [history.trials[n] for n in history.contestants]
        among = [trial for trial in among if not trial.is_stuck]
        n = self._schedule.n_entering(len(among), is_first=is_first)
        names = self._most_promising(history, among, n)
        lacking = self._lacking(history, [history.trials[name] for name in names])
        if not lacking:
            return None
        rung = 1 + min(trial.rung for trial in lacking)
        return _promoted("contest", names, rung, len(history.cohorts) - 1)

    def _lacking(self, history: History, trials: Sequence[Trial]) -> list[Trial]:
        return [t for t in trials if not (t.is_stuck or history.has_all_items(t))]

    def _most_promising(self, history: History, trials: Sequence[Trial], n: int) -> list[str]:
        if not trials or n <= 0:
            return []
        losses = history.losses(trials)
        errors = np.array(
            [
                [t.search[o.name].standard_error for o in history.objectives]
                for t in trials
                if t.search is not None
            ]
        )
        rows = fidelity.most_promising(losses, errors, self._weights, n)
        return [trials[row].name for row in sorted(rows)]

    def contenders(self, history: History) -> list[Trial]:
        """The trials among whom the front is: those who answered all items.

        Before the contest, those who went through their cohort's race.
        """
        scored = history.scored()
        if self._schedule is None:
            return scored
        least = min(1 + self._schedule.race, self.n_rungs)
        if not self.is_provisional(history):
            least = self.n_rungs + 1
        return [t for t in scored if t.scored_rung >= least or history.has_all_items(t)]

    def is_provisional(self, history: History) -> bool:
        """Whether the front rests on a part of the items: until the contest has its finalists."""
        if self._schedule is None:
            return False
        return history.stage == "race" or not any(
            history.has_all_items(history.trials[name]) for name in history.contestants
        )


def plain_estimates(estimates: Mapping[str, Estimate]) -> dict[str, list[Any]]:
    """Estimates as the journal has them."""
    return {name: [e.score, e.standard_error, e.n_items] for name, e in estimates.items()}


def _promoted(why: str, names: Sequence[str], rung: int, cohort: int) -> Event:
    return {
        "event": "promoted",
        "why": why,
        "trials": list(names),
        "rung": rung,
        "cohort": cohort,
        "split": Split.SEARCH.value,
    }
