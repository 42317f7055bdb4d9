"""A run as its journal tells it: trials, fronts, what is pending. Read-only; loads no torch."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from evomerge.datatypes import (
    Direction,
    Estimate,
    Failure,
    FloatArray,
    Group,
    Objective,
    Recipe,
    Split,
)
from evomerge.errors import JournalError, RunError
from evomerge.journal import Event, read_events


@dataclass(frozen=True, slots=True)
class Trial:
    """One merge of a run: a candidate of the sampler (named by its id) or a baseline (by name).

    Candidates have a point `u`, baselines a `recipe`. Scores are None until told.
    """

    name: str
    generation: int
    recipe_digest: str
    u: tuple[float, ...] | None = None
    recipe: Recipe | None = None
    search: Mapping[str, Estimate] | None = None
    held_out: Mapping[str, Estimate] | None = None
    failure: Failure | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)

    @property
    def is_baseline(self) -> bool:
        """Whether it was evaluated for comparison rather than proposed by the sampler."""
        return self.u is None

    def mean(self, split: Split = Split.SEARCH) -> float | None:
        """The plain mean of its scores over objectives, or None if it has none in that split."""
        estimates = self.search if split is Split.SEARCH else self.held_out
        if not estimates:
            return None
        return sum(e.score for e in estimates.values()) / len(estimates)


@dataclass(frozen=True, slots=True)
class FrontChange:
    """The non-dominated trials after `n_evaluations` were told, with their hypervolume."""

    n_evaluations: int
    trials: tuple[str, ...]
    hypervolume: float
    reference: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Started:
    """The run's first event: everything that must not change under it."""

    versions: Mapping[str, str]
    config_digest: str
    model_digests: Mapping[str, str]
    item_digests: Mapping[str, str]
    n_items: Mapping[str, tuple[int, int]]
    experts: tuple[str, ...]
    groups: tuple[Group, ...]
    objectives: tuple[Objective, ...]
    dimensions: tuple[str, ...]
    sampler: str
    sampler_reason: str
    n_baselines: int
    budget: int
    time: float

    @classmethod
    def from_event(cls, event: Event) -> "Started":
        """Read the `started` event."""
        return cls(
            versions=event["versions"],
            config_digest=event["config_digest"],
            model_digests=event["model_digests"],
            item_digests=event["item_digests"],
            n_items={name: (n[0], n[1]) for name, n in event["n_items"].items()},
            experts=tuple(event["experts"]),
            groups=tuple(Group(**group) for group in event["groups"]),
            objectives=tuple(
                Objective(o["name"], Direction(o["direction"]), o["worst"])
                for o in event["objectives"]
            ),
            dimensions=tuple(event["dimensions"]),
            sampler=event["sampler"],
            sampler_reason=event["sampler_reason"],
            n_baselines=event["n_baselines"],
            budget=event["budget"],
            time=event["time"],
        )


@dataclass(slots=True)
class History:
    """The state of a run, built event by event; `apply` accepts what the journal accepts."""

    started: Started
    trials: dict[str, Trial] = field(default_factory=dict)
    fronts: list[FrontChange] = field(default_factory=list)
    asked: set[tuple[str, Split]] = field(default_factory=set)
    pending: dict[tuple[str, Split], None] = field(default_factory=dict)
    """Asked and not answered, in the order of asking."""
    finished: str | None = None
    notes: list[str] = field(default_factory=list)
    last_time: float = 0.0
    budget: int = 0
    """Candidates of the sampler that may be asked; a resume can change it."""
    answered: list[str] = field(default_factory=list)
    """Trials answered on search items, failures included, in the order of answers."""

    def apply(self, event: Event) -> None:
        """Take in one event after `started`."""
        self.last_time = event.get("time", self.last_time)
        match event["event"]:
            case "asked":
                self._apply_asked(event)
            case "told" | "failed":
                self._apply_answer(event)
            case "front":
                self.fronts.append(
                    FrontChange(
                        event["n_evaluations"],
                        tuple(event["trials"]),
                        event["hypervolume"],
                        tuple(event["reference"]),
                    )
                )
            case "finished":
                self.finished = event["reason"]
            case "budget":
                self.budget = event["evaluations"]
                self.finished = None
            case "note":
                self.notes.append(event["text"])
            case other:
                raise JournalError(
                    f"this version knows no event {other!r}: use the version of evomerge that "
                    f"wrote the run ({self.started.versions.get('evomerge')})"
                )

    def _apply_asked(self, event: Event) -> None:
        name, split = event["trial"], Split(event["split"])
        self.finished = None
        self.asked.add((name, split))
        self.pending[name, split] = None
        if split is Split.SEARCH:
            u = event.get("u")
            recipe = event.get("recipe")
            self.trials[name] = Trial(
                name=name,
                generation=event["generation"],
                recipe_digest=event["recipe_digest"],
                u=None if u is None else tuple(u),
                recipe=None if recipe is None else Recipe.from_json(recipe),
            )

    def _apply_answer(self, event: Event) -> None:
        name, split = event["trial"], Split(event["split"])
        if (name, split) not in self.pending:
            raise JournalError(f"an answer follows its question, but {name} was not asked: {split}")
        del self.pending[name, split]
        trial = self.trials[name]
        if split is Split.SEARCH:
            self.answered.append(name)
        if event["event"] == "failed":
            if split is Split.SEARCH:
                failure = Failure(event["kind"], event["message"])
                self.trials[name] = replace(trial, failure=failure)
            return
        estimates = {
            objective: Estimate(score, standard_error, n)
            for objective, (score, standard_error, n) in event["estimates"].items()
        }
        if split is Split.SEARCH:
            trial = replace(trial, search=estimates, seconds=event["seconds"])
        else:
            trial = replace(trial, held_out=estimates)
        self.trials[name] = trial

    @property
    def objectives(self) -> tuple[Objective, ...]:
        """The objectives of the run, in order."""
        return self.started.objectives

    @property
    def front(self) -> FrontChange | None:
        """The current front, or None before the first."""
        return self.fronts[-1] if self.fronts else None

    @property
    def n_planned(self) -> int:
        """Evaluations on search items when the run is complete: baselines and candidates."""
        return self.started.n_baselines + self.budget

    @property
    def n_evaluations(self) -> int:
        """How many trials were answered on search items, baselines and failures included."""
        return len(self.answered)

    def scored_since(self, n_evaluations: int) -> list[Trial]:
        """The trials that got search scores after the first `n_evaluations` answers."""
        trials = (self.trials[name] for name in self.answered[n_evaluations:])
        return [trial for trial in trials if trial.search is not None]

    def scored(self, split: Split = Split.SEARCH) -> list[Trial]:
        """The trials that have scores in a split, in the order in which they were asked."""
        return [t for t in self.trials.values() if estimates_of(t, split) is not None]

    def losses(self, trials: Sequence[Trial], split: Split = Split.SEARCH) -> FloatArray:
        """Shape `(n_trials, n_objectives)`, oriented so that less is better."""
        return losses_of(trials, self.objectives, split)

    def recipe(self, trial: Trial, decode: Callable[[Sequence[float]], Recipe]) -> Recipe:
        """The recipe of a trial; `decode` is that of the run's search space.

        Raises:
            JournalError: when the space decodes the point to another recipe than in the run.
        """
        if trial.recipe is not None:
            return trial.recipe
        assert trial.u is not None  # a trial has either
        recipe = decode(trial.u)
        if recipe.digest != trial.recipe_digest:
            raise JournalError(
                f"a point must decode to the recipe of the run, but trial {trial.name} gives "
                f"{recipe.digest} instead of {trial.recipe_digest}: the search space has changed; "
                f"use evomerge {self.started.versions.get('evomerge')}"
            )
        return recipe


def estimates_of(trial: Trial, split: Split) -> Mapping[str, Estimate] | None:
    """The scores of a trial in a split."""
    return trial.search if split is Split.SEARCH else trial.held_out


def losses_of(
    trials: Sequence[Trial], objectives: Sequence[Objective], split: Split = Split.SEARCH
) -> FloatArray:
    """Losses of scored trials, shape `(n_trials, n_objectives)`."""
    import numpy as np

    rows: list[list[float]] = []
    for trial in trials:
        estimates = estimates_of(trial, split)
        if estimates is None:
            raise ValueError(f"trial {trial.name} has no {split.value} scores")
        rows.append([o.loss(estimates[o.name].score) for o in objectives])
    return np.array(rows, dtype=np.float64).reshape(len(rows), len(objectives))


def history_of(events: Sequence[Mapping[str, Any]]) -> History:
    """The history of a journal's events.

    Raises:
        JournalError: when the journal does not begin with `started`.
    """
    if not events or events[0]["event"] != "started":
        raise JournalError("a journal begins with a `started` event, but this one does not")
    started = Started.from_event(dict(events[0]))
    history = History(started, last_time=started.time, budget=started.budget)
    for event in events[1:]:
        history.apply(dict(event))
    return history


def read_history(run: Path) -> History:
    """The history of a run directory, read without its lock: safe while the run goes on.

    Raises:
        RunError: when there is no such run.
        JournalError: when its journal is damaged.
    """
    if not (run / "journal.jsonl").exists():
        raise RunError(f"{run} is no run directory: it holds no journal.jsonl; check the path")
    events, _ = read_events(run / "journal.jsonl")
    return history_of(events)
