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
from evomerge.allocation import Allocation, plain_estimates
from evomerge.config import Config
from evomerge.datatypes import (
    Candidate,
    Evaluation,
    Failure,
    FloatArray,
    Recipe,
    Split,
)
from evomerge.errors import FuseError, JournalError
from evomerge.execution.retries import RETRIES
from evomerge.history import History, Trial, history_of
from evomerge.item_losses import evidence_of
from evomerge.journal import Event, Journal
from evomerge.packing import pack, unpack
from evomerge.questions import Questions, parse_key
from evomerge.run_folder import RunFolder
from evomerge.session import Session

Observer = Callable[[History], None]

_DURABLE = {"started", "told", "failed", "budget", "finished"}
"""Events that cost work or name a wish of the user."""

_SETTLING = {"told", "failed", "scored"}
"""Events that may tell the sampler something."""


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
            journal.append(started := session.started_event())
            return Driver(session, folder, journal, [started], observe).run()
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
        started = history_of(journal.events[:1]).started
        with Session(config, folder, started) as session:
            driver = Driver(session, folder, journal, journal.events, observe)
            if evaluations is not None:
                driver.change_budget(evaluations)
            return driver.run()


class Driver:
    """Drives one run to its end; what it knows it derives from the journal's events.

    Args:
        session: Space, sampler and workers.
        folder: The run directory.
        journal: Takes what happens from now on.
        events: What has happened: `started` at least.
        observe: Called with the history after every event.
    """

    def __init__(
        self,
        session: Session,
        folder: RunFolder,
        journal: Journal,
        events: Sequence[Event],
        observe: Observer = _ignore,
    ) -> None:
        self._session = session
        self._folder = folder
        self._journal = journal
        self._observe = observe
        self._candidates: dict[str, Candidate] = {}
        self._told: set[str] = set()
        """Candidates whose losses the sampler has."""
        self._n_failures_in_a_row = 0
        self._n_considered = 0
        """Evaluations whose place in the front is settled."""
        self._has_warned_of_damage = False
        hours = session.config.budget.hours
        self._deadline = None if hours is None else time.monotonic() + hours * 3600.0
        self.history = history_of(events[:1])
        self._allocation = Allocation(
            session.schedule, session.scoring, self.history.started, session.weights
        )
        self._questions = Questions(session, self.history)
        for event in events[1:]:
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
        if self._session.answers_otherwise(self.history.started):
            self._warn(
                "answers of a run are comparable, but a task's prompts or metrics, or the source "
                "of a Python fitness, changed since it started: start a new run if scores may move"
            )
        if self.history.trials:
            spool.sweep(self._folder.spool, self._is_open)
            if self.history.pending:
                self._append({"event": "note", "text": f"resumed on {platform.node()}"})
                for name, split in list(self.history.pending):
                    self._evaluate(name, split)
            self._update_front()
        executor = self._session.executor
        while True:
            while executor.n_free > 0 and self._step():
                pass
            if not self.history.pending:
                break
            evaluation = executor.next_done()
            if evaluation is None:
                raise RuntimeError(f"the executor lost {list(self.history.pending)}")
            self._record(evaluation)
        if self.history.finished is None:
            candidates = [t for t in self.history.scored() if not t.is_baseline]
            self._warn_of_constants(candidates, "candidates")
            reason = "time is up" if self._time_is_up else "budget spent"
            self._append({"event": "finished", "reason": reason})
        return self.history

    # Events ---------------------------------------------------------------------------------

    def _append(self, event: Event) -> None:
        """Journal first, then everything that follows from it.

        Only what cannot be made again waits for the disk: after a power cut the same questions are
        asked again, and the same decisions follow from the same answers.
        """
        event["time"] = time.time()
        self._journal.append(event, durable=event["event"] in _DURABLE)
        self._take_in(event)
        self._observe(self.history)
        if event["event"] in _SETTLING:
            self._note_remarks()

    def _note_remarks(self) -> None:
        """Journal what the sampler says of itself, once in a run."""
        for remark in getattr(self._session.sampler, "remarks", ()):
            if remark not in self.history.notes:
                self._append({"event": "note", "text": remark})

    def _replay(self, event: Event) -> None:
        """As `_append` for an event of an earlier session; the sampler must ask the same."""
        if event["event"] == "asked" and event.get("u") is not None:
            candidate = self._ask_again(event)
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

    def _ask_again(self, event: Event) -> Candidate | None:
        """The candidate that a sampler is asked for in the place of a journaled one."""
        sampler = self._session.sampler
        readmit: Callable[[Candidate], None] | None = getattr(sampler, "readmit", None)
        if readmit is None:
            return sampler.ask()
        candidate = Candidate(int(event["trial"]), event["generation"], tuple(event["u"]))
        readmit(candidate)
        return candidate

    def _take_in(self, event: Event) -> None:
        """The consequences of an event: for the history, and for the sampler."""
        pending = dict(self.history.pending) if event["event"] == "told" else {}
        self.history.apply(event)
        if event["event"] == "told":
            name, split = event["trial"], Split(event["split"])
            digest = self.history.trials[name].recipe_digest
            self._questions.remember(digest, split, pending[name, split], event["responses"])
        for name in _settled_by(event):
            if name not in self._candidates or name in self._told:
                continue
            trial = self.history.trials[name]
            self._told.add(name)
            losses: Sequence[float] | None = None
            if trial.search is not None:
                losses = tuple(self.history.losses([trial])[0])
            wants_answers = getattr(self._session.sampler, "wants_answers", False)
            evidence = evidence_of(self.history, trial, with_answers=wants_answers)
            self._session.sampler.tell(self._candidates[name], losses, evidence)

    def _remember(self, candidate: Candidate) -> Recipe:
        name = str(candidate.id)
        self._candidates[name] = candidate
        return self._recipe(name)

    def _recipe(self, name: str) -> Recipe:
        """Decoded each time it is needed: thousands of them would fill the memory."""
        candidate = self._candidates.get(name)
        if candidate is None:
            return self._session.baselines[name]
        return self._session.space.decode(candidate.u)

    # Ask ------------------------------------------------------------------------------------

    @property
    def _time_is_up(self) -> bool:
        return self._deadline is not None and time.monotonic() > self._deadline

    @property
    def _baselines_are_answered(self) -> bool:
        trials = (self.history.trials.get(name) for name in self._session.baselines)
        return all(t is not None and (t.search or t.failure) is not None for t in trials)

    def _is_open(self, key: str) -> bool:
        """Whether a result of that key is waited for; those of unknown trials may yet be."""
        name, split = parse_key(key)
        return (name, split) in self.history.pending or name not in self.history.trials

    def _step(self) -> bool:
        """Put the next question or draw the next conclusion; False when answers are needed first.

        Baselines come first, then candidates, the items that promoted ones still lack, and, when
        nothing more is asked for on search items, the finalists on held-out items.
        """
        for name in self._session.baselines:
            if (name, Split.SEARCH) not in self.history.asked:
                self._ask(name, Split.SEARCH)
                return True
        promoted = self.history.next_promoted()
        if promoted is not None:
            self._ask(promoted, Split.SEARCH)
            return True
        # The reference point of the hypervolume comes from all baselines.
        if self._baselines_are_answered and self._propose():
            return True
        if any(split is Split.SEARCH for _, split in self.history.pending):
            return False
        conclusion = self._allocation.conclude(self.history, goes_on=self._goes_on)
        if conclusion is not None:
            self._append(conclusion)
            self._update_front()
            return True
        for name in self._finalists():
            if (name, Split.HELD_OUT) not in self.history.asked:
                self._ask(name, Split.HELD_OUT)
                return True
        return False

    @property
    def _goes_on(self) -> bool:
        """Whether the sampler may be asked for more candidates, now or after some answers."""
        return len(self._candidates) < self.history.budget and not self._time_is_up

    def _propose(self) -> bool:
        """Ask the sampler for a candidate of the cohort that is open, and ask its first items."""
        if not self._goes_on or not self._allocation.has_room(
            self.history, getattr(self._session.sampler, "generation_size", None)
        ):
            return False
        candidate = self._session.sampler.ask()
        if candidate is None:
            return False
        self._remember(candidate)
        self._ask(str(candidate.id), Split.SEARCH)
        return True

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

    def _ask(self, name: str, split: Split) -> None:
        """Journal a question and have it answered."""
        event: Event = {"event": "asked", "trial": name, "split": split.value}
        candidate = self._candidates.get(name)
        if split is Split.SEARCH:
            block = self._allocation.block_of(self.history, name, is_baseline=candidate is None)
            if block is not None:
                if block.name not in self.history.blocks:
                    items = [list(part) for part in block.items]
                    self._append({"event": "items", "block": block.name, "items": items})
                event |= {"block": block.name, "cohort": block.cohort}
        if split is Split.SEARCH and name not in self.history.trials:
            recipe = self._recipe(name)
            event["recipe_digest"] = recipe.digest
            if candidate is None:
                event |= {"generation": -1, "recipe": recipe.to_json()}
            else:
                event |= {"generation": candidate.generation, "u": list(candidate.u)}
        self._append(event)
        self._evaluate(name, split)

    def _evaluate(self, name: str, split: Split) -> None:
        """Have a question answered: from what is known already, else by a worker."""
        digest = self.history.trials[name].recipe_digest
        block = self.history.pending[name, split]
        known = self._questions.known(digest, split, block)
        if known is not None:
            self._tell(name, split, known, {}, is_known=True)
            return
        self._warn_of_damage()
        job = self._questions.job(name, self._recipe(name), digest, split, block)
        waiting = spool.read(spool.path_of(self._folder.spool, job.key))
        if waiting is not None and (waiting.failure is None or not RETRIES[waiting.failure.kind]):
            self._record(waiting)  # a worker finished it after the last driver had died
        else:
            self._session.executor.submit(job)

    # Record ---------------------------------------------------------------------------------

    def _record(self, evaluation: Evaluation) -> None:
        name, split = parse_key(evaluation.key)
        if evaluation.failure is not None:
            self._fail(name, split, evaluation.failure)
        else:
            packed = {o: pack(answers) for o, answers in evaluation.responses.items()}
            block = self.history.pending[name, split]
            self._tell(name, split, packed, dict(evaluation.seconds))
            digest = self.history.trials[name].recipe_digest
            self._questions.keep(digest, split, block, packed)
        spool.settle(self._folder.spool, evaluation.key)

    def _tell(
        self,
        name: str,
        split: Split,
        packed: Mapping[str, str],
        seconds: Mapping[str, float],
        *,
        is_known: bool = False,
    ) -> None:
        """Journal answers; of who has answered all items the scores too."""
        event: Event = {
            "event": "told",
            "trial": name,
            "split": split.value,
            "responses": dict(packed),
            "seconds": dict(seconds),
        }
        if is_known:
            event["known"] = True
        if self.history.pending[name, split] is None:
            responses = {objective: unpack(text) for objective, text in packed.items()}
            event["estimates"] = plain_estimates(self._session.scoring.report(responses))
        self._append(event)
        self._n_failures_in_a_row = 0
        if split is Split.SEARCH:
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

    def _update_front(self) -> None:
        """Journal the front when the last scores changed it; nothing before all baselines."""
        if not self._baselines_are_answered:
            return
        last = self.history.front
        if last is not None and self._session.schedule is None:
            # Scores never change: later points can only leave or join.
            since = max(last.n_evaluations, self._n_considered)
            considered = [self.history.trials[name] for name in last.trials]
            considered += self.history.scored_since(since)
        else:
            considered = self._allocation.contenders(self.history)
        self._n_considered = self.history.n_evaluations
        if last is None:
            if not considered:
                self._append({"event": "finished", "reason": "fuse"})
                raise FuseError(
                    "a search starts from its baselines, but every one of them failed: "
                    f"look at {self._folder.journal} for the causes"
                )
            self._warn_of_constants(considered, "baselines")
        losses = self.history.losses(considered)
        keep = pareto.non_dominated(losses)
        names = tuple(t.name for t, kept in zip(considered, keep, strict=True) if kept)
        is_provisional = self._allocation.is_provisional(self.history)
        if last is not None and (names, is_provisional) == (last.trials, last.is_provisional):
            return
        reference = self._reference() if last is None else np.array(last.reference)
        event: Event = {
            "event": "front",
            "n_evaluations": self.history.n_evaluations,
            "trials": list(names),
            "hypervolume": pareto.hypervolume(losses[keep], reference),
            "reference": [float(r) for r in reference],
        }
        if is_provisional:
            event["provisional"] = True
        self._append(event)

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

    def _warn_of_constants(self, trials: Sequence[Trial], whose: str) -> None:
        """An objective that nothing moves is probably not the one that was meant."""
        losses = self.history.losses(trials)
        for index, objective in enumerate(self._session.objectives):
            if len(trials) > 1 and np.ptp(losses[:, index]) == 0.0:
                score = objective.score(float(losses[0, index]))
                self._warn(
                    f"an objective should tell merges apart, but {objective.name} is {score:g} "
                    f"for all {whose}: check its task, metric and number of items"
                )

    def _warn_of_damage(self) -> None:
        """Say once that kept evaluations are damaged."""
        if self._questions.damaged and not self._has_warned_of_damage:
            self._has_warned_of_damage = True
            self._warn(
                "a kept evaluation matches its checksum, but "
                f"{self._questions.damaged[0].name} does not: it is made again; check the disk of "
                "the cache if this comes back"
            )

    def _warn(self, text: str) -> None:
        """Note something for the user, once in a run."""
        note = f"warning: {text}"
        if note not in self.history.notes:
            self._append({"event": "note", "text": note})


def _settled_by(event: Event) -> Sequence[str]:
    """The trials that an event gives scores on search items, or fails."""
    match event["event"]:
        case "scored":
            return sorted(event["estimates"], key=lambda name: (len(name), name))
        case "told" if event["split"] == Split.SEARCH and "estimates" in event:
            return [event["trial"]]
        case "failed" if event["split"] == Split.SEARCH:
            return [event["trial"]]
    return ()
