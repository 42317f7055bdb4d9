"""A run as its journal tells it: trials, fronts, what is pending. Read-only; loads no torch."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evomerge.datatypes import (
    Answers,
    Direction,
    Estimate,
    Failure,
    FloatArray,
    Group,
    Objective,
    Recipe,
    Split,
    Statistic,
)
from evomerge.errors import JournalError, RunError
from evomerge.journal import Event, read_events
from evomerge.packing import unpack


@dataclass(frozen=True, slots=True)
class Trial:
    """One merge of a run: a candidate of the sampler (named by its id) or a baseline (by name).

    Candidates have a point `u`, baselines a `recipe`. Scores are None until they are settled.
    `rung` counts the blocks of search items that it has answered, `wanted` those that it is to
    answer, `scored_rung` those that its scores are made of. A stuck one has scores, but failed on
    further items, and is not asked again.
    """

    name: str
    generation: int
    recipe_digest: str
    cohort: int | None = None
    rung: int = 0
    wanted: int = 1
    scored_rung: int = 0
    is_stuck: bool = False
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


@dataclass(frozen=True, slots=True)
class FrontChange:
    """The non-dominated trials after `n_evaluations` were told, with their hypervolume.

    A provisional one was made from scores on a part of the items.
    """

    n_evaluations: int
    trials: tuple[str, ...]
    hypervolume: float
    reference: tuple[float, ...]
    is_provisional: bool = False


@dataclass(frozen=True, slots=True)
class Started:
    """The run's first event: everything that must not change under it."""

    versions: Mapping[str, str]
    config_digest: str
    model_digests: Mapping[str, str]
    item_digests: Mapping[str, str]
    settings: str
    """Digest of all that decides an answer besides models and items."""
    n_items: Mapping[str, tuple[int, int]]
    fitness: tuple[tuple[str, ...], ...]
    """The objectives of each fitness, in order."""
    items: Mapping[Split, tuple[tuple[str, ...], ...]]
    """Digests of the items' contents, by fitness."""
    experts: tuple[str, ...]
    groups: tuple[Group, ...]
    objectives: tuple[Objective, ...]
    dimensions: tuple[str, ...]
    sampler: str
    sampler_reason: str
    seed: int
    n_baselines: int
    budget: int
    fidelity: Mapping[str, Any] | None
    """The schedule of item counts, or None if every candidate answers all items."""
    fidelity_reason: str
    estimators: Mapping[str, str]
    """Import paths: `ranking` for what the sampler is told, `reporting` for final scores."""
    time: float
    anchors: tuple[tuple[float, ...], ...] | None = None
    """Where the sampler starts, if the configuration chose that: a resume reads no source again."""
    prefer: str | None = None
    """Which trial of the front is taken where none is named (`preferences`); None: the knee."""

    @classmethod
    def from_event(cls, event: Event) -> "Started":
        """Read the `started` event."""
        return cls(
            versions=event["versions"],
            config_digest=event["config_digest"],
            model_digests=event["model_digests"],
            item_digests=event["item_digests"],
            settings=event["settings"],
            n_items={name: (n[0], n[1]) for name, n in event["n_items"].items()},
            fitness=tuple(tuple(names) for names in event["fitness"]),
            items={
                split: tuple(
                    tuple(part["digests"])
                    for part in event.get("items", ())
                    if part["split"] == split
                )
                for split in Split
            },
            experts=tuple(event["experts"]),
            groups=tuple(Group(**group) for group in event["groups"]),
            objectives=tuple(
                Objective(
                    o["name"], Direction(o["direction"]), o["worst"], Statistic(*o["statistic"])
                )
                for o in event["objectives"]
            ),
            dimensions=tuple(event["dimensions"]),
            sampler=event["sampler"],
            sampler_reason=event["sampler_reason"],
            seed=event["seed"],
            n_baselines=event["n_baselines"],
            budget=event["budget"],
            fidelity=event["fidelity"],
            fidelity_reason=event["fidelity_reason"],
            estimators=event["estimators"],
            time=event["time"],
            anchors=tuple(tuple(point) for point in event["anchors"])
            if event.get("anchors") is not None
            else None,
            prefer=event.get("prefer"),
        )


@dataclass(frozen=True, slots=True, eq=False)
class _Block:
    """The answers to one block of items (None: to all), by objective."""

    block: str | None
    responses: Mapping[str, FloatArray]


@dataclass(slots=True)
class History:
    """The state of a run, built event by event; `apply` accepts what the journal accepts."""

    started: Started
    trials: dict[str, Trial] = field(default_factory=dict)
    fronts: list[FrontChange] = field(default_factory=list)
    asked: set[tuple[str, Split]] = field(default_factory=set)
    pending: dict[tuple[str, Split], str | None] = field(default_factory=dict)
    """Asked and not answered, in the order of asking, with the block of items (None: all)."""
    blocks: dict[str, tuple[tuple[int, ...], ...]] = field(default_factory=dict)
    """Items by block and fitness: `cohort.rung` names the block that a cohort answers there."""
    cohorts: dict[int, list[str]] = field(default_factory=dict)
    closed: set[int] = field(default_factory=set)
    """Cohorts whose candidates have scores."""
    promotions: dict[str, int] = field(default_factory=Counter)
    """How often trials were promoted, by reason."""
    stage: str = "race"
    """`race` while candidates are asked for, `contest` once the best go on to all items."""
    finished: str | None = None
    notes: list[str] = field(default_factory=list)
    last_time: float = 0.0
    budget: int = 0
    """Candidates of the sampler that may be asked; a resume can change it."""
    answered: list[str] = field(default_factory=list)
    """Trials that have scores on search items or failed, in that order."""
    n_item_answers: int = 0
    """Search items answered in all, over all trials and fitness objects, reused ones included."""
    n_reused: int = 0
    """Questions of both splits that needed no worker: their answers were known already."""
    contestants: tuple[str, ...] = ()
    """Who was last promoted in the contest."""
    sharpened: int = -1
    """The last cohort after which trials were sharpened."""
    _answers: dict[tuple[str, Split], list[_Block]] = field(default_factory=dict)
    _promoted: list[str] = field(default_factory=list)
    """Who was promoted last: nobody else can lack items."""

    def apply(self, event: Event) -> None:
        """Take in one event after `started`."""
        self.last_time = event.get("time", self.last_time)
        match event["event"]:
            case "items":
                self.blocks[event["block"]] = tuple(tuple(part) for part in event["items"])
            case "asked":
                self._apply_asked(event)
            case "told" | "failed":
                self._apply_answer(event)
            case "promoted":
                self._apply_promoted(event)
            case "scored":
                self._apply_scored(event)
            case "front":
                self.fronts.append(
                    FrontChange(
                        event["n_evaluations"],
                        tuple(event["trials"]),
                        event["hypervolume"],
                        tuple(event["reference"]),
                        event.get("provisional", False),
                    )
                )
            case "finished":
                self.finished = event["reason"]
            case "budget":
                self.budget = event["evaluations"]
                self.finished = None
                self.stage = "race"
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
        self.pending[name, split] = event.get("block")
        if split is Split.SEARCH and name not in self.trials:
            u = event.get("u")
            recipe = event.get("recipe")
            cohort = event.get("cohort")
            self.trials[name] = Trial(
                name=name,
                generation=event["generation"],
                recipe_digest=event["recipe_digest"],
                cohort=cohort,
                u=None if u is None else tuple(u),
                recipe=None if recipe is None else Recipe.from_json(recipe),
            )
            if cohort is not None:
                self.cohorts.setdefault(cohort, []).append(name)

    def _apply_answer(self, event: Event) -> None:
        name, split = event["trial"], Split(event["split"])
        if (name, split) not in self.pending:
            raise JournalError(f"an answer follows its question, but {name} was not asked: {split}")
        block = self.pending.pop((name, split))
        trial = self.trials[name]
        if event["event"] == "failed":
            if split is Split.SEARCH:
                self._apply_failure(trial, Failure(event["kind"], event["message"]))
            return
        responses = {o: unpack(packed) for o, packed in event["responses"].items()}
        self._answers.setdefault((name, split), []).append(_Block(block, responses))
        self.n_reused += event.get("known", False)
        if split is Split.SEARCH:
            self.n_item_answers += self._n_items(responses)
            seconds = dict(trial.seconds)
            for phase, spent in event["seconds"].items():
                seconds[phase] = seconds.get(phase, 0.0) + spent
            self.trials[name] = replace(trial, rung=trial.rung + 1, seconds=seconds)
        if "estimates" in event:
            self._settle(name, split, event["estimates"])

    def _apply_failure(self, trial: Trial, failure: Failure) -> None:
        """A first failure costs the trial; a later one the items that it did not answer."""
        if trial.search is None:
            self.trials[trial.name] = replace(trial, failure=failure, wanted=trial.rung)
            self.answered.append(trial.name)
        else:
            self.trials[trial.name] = replace(trial, wanted=trial.rung, is_stuck=True)
            self.notes.append(f"trial {trial.name} keeps its scores: {failure.message}")

    def _n_items(self, responses: Mapping[str, FloatArray]) -> int:
        columns = {o.name: o.statistic.n_columns for o in self.objectives}
        return sum(len(responses[names[0]]) // columns[names[0]] for names in self.started.fitness)

    def _apply_promoted(self, event: Event) -> None:
        why, names = event["why"], list(event["trials"])
        if why == "contest":
            self.stage, self.contestants = "contest", tuple(names)
        elif why == "sharpen":
            self.sharpened = event["cohort"]
        self._promoted = names
        self.promotions[why] = self.promotions.get(why, 0) + len(names)
        for name in names:
            trial = self.trials[name]
            if not self.has_all_items(trial):
                self.trials[name] = replace(trial, wanted=max(trial.wanted, event["rung"]))

    def _apply_scored(self, event: Event) -> None:
        if event["cohort"] is not None:
            self.closed.add(event["cohort"])
        for name, estimates in event["estimates"].items():
            self._settle(name, Split.SEARCH, estimates)

    def _settle(self, name: str, split: Split, plain: Mapping[str, Sequence[Any]]) -> None:
        estimates = {
            objective: Estimate(score, standard_error, n)
            for objective, (score, standard_error, n) in plain.items()
        }
        if split is Split.HELD_OUT:
            self.trials[name] = replace(self.trials[name], held_out=estimates)
            return
        if self.trials[name].search is None:
            self.answered.append(name)
        trial = self.trials[name]
        self.trials[name] = replace(trial, search=estimates, scored_rung=trial.rung)

    def answers(self, name: str, split: Split, objective: str) -> Answers:
        """What a trial has answered so far; no items if nothing.

        `values` has shape `(n_items,)`, or `(n_items, n_columns)` where the objective's statistic
        has several.
        """
        number = self._fitness_of()[objective]
        n_columns = next(o.statistic.n_columns for o in self.objectives if o.name == objective)
        items: list[NDArray[np.int64]] = []
        values: list[FloatArray] = []
        for block in self._answers.get((name, split), ()):
            responses = block.responses[objective]
            values.append(responses if n_columns == 1 else responses.reshape(-1, n_columns))
            items.append(
                np.arange(len(values[-1]), dtype=np.int64)
                if block.block is None
                else np.array(self.blocks[block.block][number], dtype=np.int64)
            )
        if not items:
            empty = (0,) if n_columns == 1 else (0, n_columns)
            return Answers(np.empty(0, dtype=np.int64), np.empty(empty))
        return Answers(np.concatenate(items), np.concatenate(values))

    def _fitness_of(self) -> dict[str, int]:
        """The number of each objective's fitness."""
        return {name: i for i, names in enumerate(self.started.fitness) for name in names}

    def response_matrix(self, objective: str) -> tuple[tuple[str, ...], FloatArray]:
        """Who answered what on search items.

        Returns:
            The items' digests, and `(n_models, n_items)` answers, NaN where none was given; equal
            recipes stand once.

        Raises:
            RunError: when the run has no such objective, or its answers are no single numbers.
        """
        known = {o.name: o for o in self.objectives}
        if objective not in known or known[objective].statistic.n_columns != 1:
            single = [name for name, o in known.items() if o.statistic.n_columns == 1]
            raise RunError(
                f"a response matrix is of an objective with one number per item "
                f"({', '.join(single)}), but {objective!r} is none"
            )
        names = self.started.items[Split.SEARCH][self._fitness_of()[objective]]
        rows: dict[str, FloatArray] = {}
        for trial in self.trials.values():
            answers = self.answers(trial.name, Split.SEARCH, objective)
            row = rows.setdefault(trial.recipe_digest, np.full(len(names), np.nan))
            row[answers.items] = answers.values
        answered = [row for row in rows.values() if not np.isnan(row).all()]
        return names, np.stack(answered) if answered else np.empty((0, len(names)))

    def next_promoted(self) -> str | None:
        """A trial that is to answer more items and is not asked now: the first in order."""
        for name in self._promoted:
            trial = self.trials[name]
            if trial.rung < trial.wanted and (name, Split.SEARCH) not in self.pending:
                return name
        return None

    @property
    def open_cohort(self) -> int | None:
        """The cohort whose candidates have no scores yet."""
        number = len(self.cohorts) - 1
        return number if number >= 0 and number not in self.closed else None

    def has_all_items(self, trial: Trial) -> bool:
        """Whether its scores are from the whole pool of search items."""
        return trial.search is not None and all(
            trial.search[name].n_items >= n for name, (n, _) in self.started.n_items.items()
        )

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
        """How many trials have scores on search items or failed, baselines included."""
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
        JournalError: when the journal does not begin with `started`, or is of another version.
    """
    if not events or events[0]["event"] != "started":
        raise JournalError("a journal begins with a `started` event, but this one does not")
    try:
        started = Started.from_event(dict(events[0]))
    except (KeyError, TypeError) as error:
        version = events[0].get("versions", {}).get("evomerge", "unknown")
        raise JournalError(
            f"this version reads journals of its own kind, but this one lacks {error}: use the "
            f"version of evomerge that wrote it ({version}), or start a new run"
        ) from error
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
