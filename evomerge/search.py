"""The loop: ask, evaluate, record, tell; and its replay.

What has happened is in the journal and nowhere else. The driver derives everything from it, so
that resuming is the same code on a longer history.
"""

import platform
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from evomerge import pareto, spool
from evomerge.config import Config
from evomerge.datatypes import (
    Answers,
    Candidate,
    Estimate,
    Evaluation,
    Failure,
    FloatArray,
    Job,
    Recipe,
    Split,
)
from evomerge.errors import FuseError, JournalError
from evomerge.execution.retries import RETRIES
from evomerge.history import History, Started, Trial, history_of
from evomerge.journal import Event, Journal
from evomerge.run_folder import RunFolder
from evomerge.session import Session

Observer = Callable[[History], None]


def _ignore(history: History) -> None:
    """The observer of who does not want to see."""


def start(config: Config, run: Path, observe: Observer = _ignore) -> History:
    """Search from the beginning in a new run directory.

    Args:
        config: What to search, over which models, on which items.
        run: The directory to create.
        observe: Called with the history after every event.

    Raises:
        EvomergeError: when something is refused; then nothing of the run remains.
    """
    folder = RunFolder(run.resolve())
    folder.create()
    try:
        with Journal(folder.path) as journal, Session(config, folder) as session:
            folder.config.write_text(config.to_yaml(), encoding="utf-8")
            journal.append(session.started_event())
            return Driver(session, folder, journal, observe).run()
    finally:
        folder.remove_if_empty()


def resume(run: Path, observe: Observer = _ignore, *, evaluations: int | None = None) -> History:
    """Continue a run where its journal ends; `evaluations` replaces the budget.

    Raises:
        RunError: when there is no such run, another driver holds it, or its inputs changed.
        JournalError: when it does not replay.
        EvomergeError: what `start` may raise.
    """
    folder = RunFolder(run.resolve())
    config = folder.read_config()
    with Journal(folder.path) as journal:
        if not journal.events:
            raise JournalError(
                f"a run resumes from its first event, but {folder.path} has none: "
                "start it again with `evomerge search`"
            )
        started = Started.from_event(journal.events[0])
        with Session(config, folder, started) as session:
            driver = Driver(session, folder, journal, observe)
            if evaluations is not None:
                driver.change_budget(evaluations)
            return driver.run()


class Driver:
    """Drives one run to its end; what it knows it derives from the journal's events."""

    def __init__(
        self, session: Session, folder: RunFolder, journal: Journal, observe: Observer
    ) -> None:
        self._session = session
        self._folder = folder
        self._journal = journal
        self._observe = observe
        self._candidates: dict[str, Candidate] = {}
        self._recipes: dict[str, Recipe] = dict(session.baselines)
        self._scored_as: dict[str, str] = {}
        """Recipe digest to the first trial that was scored with it."""
        self._n_failures_in_a_row = 0
        self._n_considered = 0
        """Evaluations whose place in the front is settled."""
        hours = session.config.budget.hours
        self._deadline = None if hours is None else time.monotonic() + hours * 3600.0
        self.history = history_of(journal.events[:1])
        for event in journal.events[1:]:
            self._replay(event)

    def change_budget(self, evaluations: int) -> None:
        """Let the sampler be asked for so many candidates in all; fewer than asked stops it."""
        if evaluations != self.history.budget:
            self._append({"event": "budget", "evaluations": evaluations})

    def run(self) -> History:
        """Go on until the budget is spent and the front is re-scored; the history at the end.

        Raises:
            FuseError: when too many evaluations in a row failed.
        """
        if self.history.trials:
            self._settle_spool()
            if self.history.pending:
                self._append({"event": "note", "text": f"resumed on {platform.node()}"})
                for name, split in list(self.history.pending):
                    self._evaluate(name, split)
            self._update_front()
        executor = self._session.executor
        while True:
            while executor.n_free > 0 and self._ask():
                pass
            if not self.history.pending:
                break
            evaluation = executor.next_done()
            if evaluation is None:
                raise RuntimeError(f"the executor lost {list(self.history.pending)}")
            self._record(evaluation)
        if self.history.finished is None:
            reason = "time is up" if self._time_is_up else "budget spent"
            self._append({"event": "finished", "reason": reason})
        return self.history

    # Events ---------------------------------------------------------------------------------

    def _append(self, event: Event) -> None:
        """Journal first, then everything that follows from it."""
        event["time"] = time.time()
        self._journal.append(event)
        self._take_in(event)
        self._observe(self.history)

    def _replay(self, event: Event) -> None:
        """As `_append` for an event of an earlier session; the sampler must ask the same."""
        if event["event"] == "asked" and event.get("u") is not None:
            candidate = self._session.sampler.ask()
            if (
                candidate is None
                or str(candidate.id) != event["trial"]
                or candidate.u != tuple(event["u"])
                or self._remember(candidate).digest != event["recipe_digest"]
            ):
                raise JournalError(
                    f"a run replays exactly, but now another trial {event['trial']} is proposed: "
                    "resume with the versions that the journal's first line names"
                )
        self._take_in(event)

    def _take_in(self, event: Event) -> None:
        """The consequences of an event: for the history, and for the sampler."""
        self.history.apply(event)
        if event["event"] not in ("told", "failed") or event["split"] != Split.SEARCH:
            return
        name = event["trial"]
        losses: Sequence[float] | None = None
        if event["event"] == "told":
            trial = self.history.trials[name]
            self._scored_as.setdefault(trial.recipe_digest, name)
            losses = tuple(self.history.losses([trial])[0])
        if name in self._candidates:
            self._session.sampler.tell(self._candidates[name], losses)

    def _remember(self, candidate: Candidate) -> Recipe:
        name = str(candidate.id)
        self._candidates[name] = candidate
        self._recipes[name] = self._session.space.decode(candidate.u)
        return self._recipes[name]

    # Ask ------------------------------------------------------------------------------------

    @property
    def _time_is_up(self) -> bool:
        return self._deadline is not None and time.monotonic() > self._deadline

    @property
    def _baselines_are_answered(self) -> bool:
        return all(
            (name, Split.SEARCH) in self.history.asked
            and (name, Split.SEARCH) not in self.history.pending
            for name in self._session.baselines
        )

    def _ask(self) -> bool:
        """Put the next question, if there is one now: baselines, then candidates, then held-out."""
        for name in self._session.baselines:
            if (name, Split.SEARCH) not in self.history.asked:
                self._submit(name, Split.SEARCH)
                return True
        if not self._baselines_are_answered:
            return False  # the reference point of the hypervolume comes from all baselines
        if len(self._candidates) < self.history.budget and not self._time_is_up:
            candidate = self._session.sampler.ask()
            if candidate is None:
                return False
            self._remember(candidate)
            self._submit(str(candidate.id), Split.SEARCH)
            return True
        if any(split is Split.SEARCH for _, split in self.history.pending):
            return False  # the front is not final yet
        for name in self._finalists():
            if (name, Split.HELD_OUT) not in self.history.asked:
                self._submit(name, Split.HELD_OUT)
                return True
        return False

    def _finalists(self) -> list[str]:
        """Who is re-scored on held-out items: every baseline and a well-spread part of the front.

        With few enough non-dominated trials that is all of them.
        """
        if not all(n_held_out for _, n_held_out in self.history.started.n_items.values()):
            return []
        names = [trial.name for trial in self.history.scored() if trial.is_baseline]
        front = self.history.front
        if front is not None:
            trials = [self.history.trials[name] for name in front.trials if name not in names]
            losses = self.history.losses(trials)
            chosen = pareto.spread(losses, self._session.config.final.front)
            names += [trials[index].name for index in chosen]
        return names

    def _submit(self, name: str, split: Split) -> None:
        event: Event = {"event": "asked", "trial": name, "split": split.value}
        if split is Split.SEARCH:
            event["recipe_digest"] = self._recipes[name].digest
            candidate = self._candidates.get(name)
            if candidate is None:
                event |= {"generation": -1, "recipe": self._recipes[name].to_json()}
            else:
                event |= {"generation": candidate.generation, "u": list(candidate.u)}
        self._append(event)
        self._evaluate(name, split)

    def _evaluate(self, name: str, split: Split) -> None:
        """Have a question answered: from what is known already, else by a worker."""
        same = self._scored_as.get(self.history.trials[name].recipe_digest)
        if split is Split.SEARCH and same is not None:
            estimates = self.history.trials[same].search
            assert estimates is not None  # that is what being scored means
            self._tell(name, split, estimates, {}, same_as=same)
        else:
            self._session.executor.submit(Job(_key(name, split), self._recipes[name], split))

    # Record ---------------------------------------------------------------------------------

    def _record(self, evaluation: Evaluation) -> None:
        name, split = _parse_key(evaluation.key)
        if evaluation.failure is not None:
            self._fail(name, split, evaluation.failure)
        else:
            estimates = {
                objective.name: self._session.estimator.estimate(
                    [answers_of(evaluation.responses[objective.name])], np.empty((0, 0))
                )[0]
                for objective in self._session.objectives
            }
            self._tell(name, split, estimates, dict(evaluation.seconds))
        spool.settle(self._folder.path, evaluation.key)

    def _tell(
        self,
        name: str,
        split: Split,
        estimates: Mapping[str, Estimate],
        seconds: Mapping[str, float],
        *,
        same_as: str | None = None,
    ) -> None:
        event: Event = {
            "event": "told",
            "trial": name,
            "split": split.value,
            "estimates": {
                objective: [e.score, e.standard_error, e.n_items]
                for objective, e in estimates.items()
            },
            "seconds": dict(seconds),
        }
        if same_as is not None:
            event["same_as"] = same_as
        self._append(event)
        if split is Split.SEARCH:
            self._n_failures_in_a_row = 0
            self._update_front()

    def _fail(self, name: str, split: Split, failure: Failure) -> None:
        self._append(
            {
                "event": "failed",
                "trial": name,
                "split": split.value,
                "kind": failure.kind,
                "message": failure.message,
            }
        )
        self._n_failures_in_a_row += 1
        if self._n_failures_in_a_row >= self._session.config.fuse:
            self._append({"event": "finished", "reason": "fuse"})
            raise FuseError(
                f"a run goes on while something succeeds, but {self._n_failures_in_a_row} "
                f"evaluations in a row failed, the last with: {failure.message}; remedy the cause, "
                f"then `evomerge resume {self._folder.path}`"
            )
        self._update_front()

    def _settle_spool(self) -> None:
        """Tell what workers finished after the last driver had died; the rest is asked again."""
        spool.sweep(self._folder.spool)
        for name, split in list(self.history.asked):
            if (name, split) not in self.history.pending:
                spool.settle(self._folder.path, _key(name, split))
        for name, split in list(self.history.pending):
            evaluation = spool.read(self._folder.spool / f"{_key(name, split)}.json")
            failure = None if evaluation is None else evaluation.failure
            if evaluation is not None and (failure is None or not RETRIES[failure.kind]):
                self._record(evaluation)

    def _update_front(self) -> None:
        """Journal the front when the last answer changed it; nothing before all baselines."""
        if not self._baselines_are_answered:
            return
        last = self.history.front
        if last is None:
            considered = self.history.scored()
            if not considered:
                self._append({"event": "finished", "reason": "fuse"})
                raise FuseError(
                    "a search starts from its baselines, but every one of them failed: "
                    f"look at {self._folder.journal} for the causes"
                )
            self._warn_of_constants(considered)
        else:
            # Later points can only leave or join: what was dominated stays dominated.
            since = max(last.n_evaluations, self._n_considered)
            considered = [self.history.trials[name] for name in last.trials]
            considered += self.history.scored_since(since)
        self._n_considered = self.history.n_evaluations
        losses = self.history.losses(considered)
        keep = pareto.non_dominated(losses)
        names = tuple(t.name for t, kept in zip(considered, keep, strict=True) if kept)
        if last is not None and names == last.trials:
            return
        reference = self._reference() if last is None else np.array(last.reference)
        self._append(
            {
                "event": "front",
                "n_evaluations": self.history.n_evaluations,
                "trials": list(names),
                "hypervolume": pareto.hypervolume(losses[keep], reference),
                "reference": [float(r) for r in reference],
            }
        )

    def _reference(self) -> FloatArray:
        """The hypervolume's reference point in losses, fixed once all baselines are told.

        Declared `worst` scores come first; the others are worse than every baseline.
        """
        scored = [trial for trial in self.history.scored() if trial.is_baseline]
        reference = pareto.reference_point(self.history.losses(scored))
        for index, objective in enumerate(self._session.objectives):
            if objective.worst is not None:
                reference[index] = objective.loss(objective.worst)
        return reference

    def _warn_of_constants(self, baselines: Sequence[Trial]) -> None:
        """An objective that no baseline moves is probably not the one that was meant."""
        losses = self.history.losses(baselines)
        for index, objective in enumerate(self._session.objectives):
            if len(baselines) > 1 and np.ptp(losses[:, index]) == 0.0:
                score = objective.score(float(losses[0, index]))
                self._append(
                    {
                        "event": "note",
                        "text": f"warning: an objective should tell merges apart, but "
                        f"{objective.name} is {score:g} for all baselines: check its task, metric "
                        "and number of items",
                    }
                )


def _key(name: str, split: Split) -> str:
    """The name of an evaluation in the spool."""
    return f"{name}@{split.value}"


def _parse_key(key: str) -> tuple[str, Split]:
    name, _, split = key.rpartition("@")
    return name, Split(split)


def answers_of(responses: Sequence[float]) -> Answers:
    """Answers to a whole pool."""
    return Answers(np.arange(len(responses)), np.array(responses, dtype=np.float64))
