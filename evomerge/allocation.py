"""Who answers which items next: races within cohorts, a contest at the end.

The arithmetic is in `fidelity`; here it meets the state of a run. Every conclusion follows from the
journal alone and is journaled itself, so that a resumed run draws no other.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from evomerge import fidelity
from evomerge.datatypes import Estimate, FloatArray, Split
from evomerge.fidelity import Schedule
from evomerge.history import History, Started, Trial
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
    (the race); then all have scores. Between cohorts the best so far are sharpened; when no more
    candidates come, the contest takes the most promising ones of the run to all items.

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
        size = generation_size or self._schedule.cohort
        return len(members) < size and all(history.trials[m].wanted == 1 for m in members)

    def block_of(self, history: History, name: str) -> Block | None:
        """The items that a candidate answers next; None stands for all at once."""
        if self._schedule is None:
            return None
        trial = history.trials.get(name)
        if trial is not None:
            assert trial.cohort is not None  # a candidate of a run with a schedule has one
            return self._block(trial.cohort, trial.rung)
        cohort = history.open_cohort
        return self._block(len(history.cohorts) if cohort is None else cohort, 0)

    def _block(self, cohort: int, rung: int) -> Block:
        items = []
        for number, (n_pool, counts) in enumerate(zip(self._pools, self._counts, strict=True)):
            order = fidelity.item_order(n_pool, self._seed, cohort, number)
            start = counts[rung - 1] if rung else 0
            items.append(tuple(sorted(order[start : counts[rung]].tolist())))
        return Block(cohort, rung, tuple(items))

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
            losses = self._scoring.item_losses(history, at)
            chosen = fidelity.promote(losses, self._weights, self._schedule.n_promoted(len(at)))
            if chosen:
                names = [at[row] for row in sorted(chosen)]
                return _promoted("race", names, rung + 1, cohort)
        return self._scored(history, [trial.name for trial in members], cohort)

    def _unscored(self, history: History) -> list[str]:
        """Candidates with scores that have answered more since."""
        return [
            trial.name
            for trial in history.trials.values()
            if trial.search is not None and not trial.is_baseline and trial.rung > trial.scored_rung
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
        names = self._most_promising(history, self._incomplete(history), self._schedule.sharpen)
        if not names:
            return None
        rung = 1 + min(history.trials[name].rung for name in names)
        return _promoted("sharpen", names, rung, last)

    def _contest(self, history: History) -> Event | None:
        assert self._schedule is not None  # only asked with one
        if history.stage == "race":
            among = [t for t in history.scored() if not t.is_baseline]
            n = self._schedule.contest
        else:
            among = [history.trials[name] for name in history.contestants]
            n = self._schedule.n_promoted(len(among))
        names = self._most_promising(history, among, n)
        lacking = [name for name in names if history.trials[name].rung < self.n_rungs]
        if not lacking:
            return None
        rung = 1 + min(history.trials[name].rung for name in lacking)
        return _promoted("contest", names, rung, len(history.cohorts) - 1)

    def _incomplete(self, history: History) -> list[Trial]:
        return [t for t in history.scored() if not t.is_baseline and t.rung < self.n_rungs]

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
        """The trials among whom the front is: those who answered all items, if there are such.

        Before the contest a candidate may be in it that went through its cohort's race.
        """
        scored = history.scored()
        if self._schedule is None:
            return scored
        least = min(1 + self._schedule.race, self.n_rungs)
        if not self.is_provisional(history):
            least = self.n_rungs
        return [t for t in scored if t.is_baseline or t.scored_rung >= least]

    def is_provisional(self, history: History) -> bool:
        """Whether the front now rests on a part of the items."""
        return self._schedule is not None and history.stage == "race"


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
