"""What is shown of a run, as plain rows: the same for the terminal, JSON and the page.

Every row is plain (text, numbers, None, dicts): `json.dumps` takes it as it is.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from evomerge.datatypes import Estimate, Objective, Split
from evomerge.errors import ConfigError, RunError
from evomerge.fidelity import Schedule
from evomerge.history import FrontChange, History, Trial, estimates_of, losses_of
from evomerge.pareto import hypervolume, knee
from evomerge.preferences import Preference, choose, doubt, parse_preference

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Picked:
    """The trial that a preference takes, how to call the reason, and what to know, in sentences."""

    trial: Trial
    why: str
    remarks: tuple[str, ...]


def title_of(trial: Trial) -> str:
    """How a trial is called in front of people: `17` is a candidate, `expert:math` is `math`."""
    if not trial.is_baseline:
        return f"Trial {trial.name}"
    return trial.name.removeprefix("expert:").replace("_", " ")


def mean_estimate(
    trial: Trial, objectives: Sequence[Objective], split: Split = Split.SEARCH
) -> Estimate | None:
    """The mean over objectives with its standard error, or None without scores in the split.

    The plain mean of the scores if all objectives improve the same way; otherwise minimised ones
    count negative, so that more is better. Errors of different objectives are taken as
    independent.
    """
    estimates = estimates_of(trial, split)
    if not estimates:
        return None
    mean_loss = sum(o.loss(estimates[o.name].score) for o in objectives) / len(objectives)
    return Estimate(
        score=mean_loss if _all_minimised(objectives) else -mean_loss,
        standard_error=math.hypot(*(estimates[o.name].standard_error for o in objectives))
        / len(objectives),
        n_items=sum(estimates[o.name].n_items for o in objectives),
    )


def mean_loss(trial: Trial, objectives: Sequence[Objective], split: Split = Split.SEARCH) -> float:
    """The mean over objectives of the losses of a scored trial: less is better, for sorting."""
    return float(losses_of([trial], objectives, split).mean())


def best_in_mean(
    trials: Sequence[Trial], objectives: Sequence[Objective], split: Split = Split.SEARCH
) -> Trial | None:
    """The trial with the best mean of its scores in a split, the first of equals."""
    scored = [t for t in trials if estimates_of(t, split) is not None]
    return min(scored, key=lambda t: mean_loss(t, objectives, split), default=None)


def front_trials(history: History) -> list[Trial]:
    """The trials of the current front, best mean first; empty before the first front."""
    if history.front is None:
        return []
    trials = [history.trials[name] for name in history.front.trials]
    return sorted(trials, key=lambda t: mean_loss(t, history.objectives))


def baseline_trials(history: History) -> list[Trial]:
    """All baselines in the order in which they were asked, with scores or not."""
    return [t for t in history.trials.values() if t.is_baseline]


def knee_of(history: History) -> str | None:
    """The name of the knee of the current front, by search scores; None before the first."""
    trials = front_trials(history)
    return trials[knee(history.losses(trials))].name if trials else None


def preference_of(history: History) -> Preference | None:
    """What the run's configuration prefers, if it says."""
    text = history.started.prefer
    return None if text is None else parse_preference(text)


def pick(history: History, prefer: Preference | None = None) -> Trial:
    """The trial of the current front to take; as `picked`."""
    return picked(history, prefer).trial


def picked(history: History, prefer: Preference | None = None) -> Picked:
    """The trial of the current front to take, and what to know about that.

    Chosen by search scores only: held-out scores judge the choice, so they must not make it.

    Args:
        history: A run with at least one front.
        prefer: What is wanted; by default what the run's configuration says, else the knee.

    Raises:
        RunError: when the run has no front yet.
        ConfigError: when the preference does not fit the objectives, or no trial its thresholds.
    """
    trials = front_trials(history)
    if not trials:
        raise RunError(
            "a trial is picked from the front, but this run has none yet: wait for its first "
            "evaluations"
        )
    wanted = prefer or preference_of(history) or Preference()
    taken, remarks = _chosen(history, trials, wanted)
    why = "knee" if wanted == Preference() else f"preferred by {wanted.text}"
    of_thresholds = [
        text
        for threshold in wanted.thresholds
        if taken.held_out is not None
        and (text := doubt(threshold, *_pair(taken.held_out[threshold.name])))
    ]
    on_held_out = tuple(f"on held-out items {text}" for text in of_thresholds)
    return Picked(taken, why, remarks + on_held_out)


def preferred_baseline(history: History) -> Trial | None:
    """The baseline to beat: the one that the run's preference takes, else the best in mean.

    None while no baseline has scores. The best in mean also where none meets the thresholds.
    """
    baselines = [t for t in baseline_trials(history) if t.search is not None]
    prefer = preference_of(history)
    if prefer is not None and baselines:
        try:
            return _chosen(history, baselines, prefer)[0]
        except ConfigError:
            pass
    return best_in_mean(baselines, history.objectives)


def _chosen(
    history: History, trials: Sequence[Trial], prefer: Preference
) -> tuple[Trial, tuple[str, ...]]:
    """The one of some scored trials that a preference takes, with remarks."""
    objectives = history.objectives
    found = [[_pair(t.search[o.name]) for o in objectives] for t in trials if t.search is not None]
    pairs = np.array(found, dtype=np.float64)
    titles = [title_of(t) for t in trials]
    choice = choose(prefer, pairs[:, :, 0], pairs[:, :, 1], objectives, titles)
    return trials[choice.row], choice.remarks


def _pair(estimate: Estimate) -> tuple[float, float]:
    return estimate.score, estimate.standard_error


def front_rows(history: History, on_front: Mapping[str, float] | None = None) -> list[Row]:
    """One row per trial of the current front, best mean first.

    `on_front` holds probabilities of being on the front by trial (`conclusion.front_confidence`).
    """
    knee_name = knee_of(history)
    trials = front_trials(history)
    return [_row(t, history.objectives, t.name == knee_name, on_front) for t in trials]


def baseline_rows(history: History, on_front: Mapping[str, float] | None = None) -> list[Row]:
    """One row per baseline in the order asked; `search` is None while it has no scores."""
    return [_row(t, history.objectives, False, on_front) for t in baseline_trials(history)]


def status_rows(history: History) -> list[Row]:
    """Where the run stands, as rows of `name`, `value` and `unit`."""
    failures = Counter(t.failure.kind for t in history.trials.values() if t.failure is not None)
    front = history.front
    return [
        _fact("evaluations", history.n_evaluations),
        _fact("planned", history.n_planned),
        _fact("pending", len(history.pending)),
        _fact("failures", sum(failures.values())),
        *(_fact(f"failures: {kind}", n) for kind, n in sorted(failures.items())),
        _fact("search items answered", history.n_item_answers),
        _fact("share of full evaluation", share_of_full(history)),
        _fact("reused evaluations", history.n_reused),
        _fact("schedule", schedule_text(history)),
        *_fidelity_facts(history),
        *(
            _fact(f"estimator, {use}", target)
            for use, target in sorted(history.started.estimators.items())
        ),
        _fact("front size", len(front.trials) if front else 0),
        _fact("hypervolume", front.hypervolume if front else None),
        *(
            _fact(f"seconds per evaluation: {phase}", seconds, "s")
            for phase, seconds in seconds_by_phase(history).items()
        ),
        _fact("elapsed", max(0.0, history.last_time - history.started.time), "s"),
        _fact("finished", history.finished),
        _fact("last note", history.notes[-1] if history.notes else None),
    ]


def share_of_full(history: History) -> float | None:
    """Search items answered, of those that the same trials had answered without fidelity."""
    pools = [history.started.n_items[names[0]][0] for names in history.started.fitness]
    n_trials = sum(trial.rung > 0 for trial in history.trials.values())
    return history.n_item_answers / (n_trials * sum(pools)) if n_trials else None


def schedule_text(history: History) -> str:
    """Who answers how many items, and why, in a line."""
    started = history.started
    if started.fidelity is None:
        return f"every trial answers all search items ({started.fidelity_reason})"
    # in the order of their docstring; the journal sorts them by name
    options = {field.name: started.fidelity[field.name] for field in fields(Schedule)}
    plain = ", ".join(
        f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in options.items()
    )
    return f"{plain} ({started.fidelity_reason})"


def estimators_text(history: History) -> str:
    """Which estimators made the scores."""
    used = history.started.estimators
    text = f"final scores by {used['reporting']}"
    if history.started.fidelity is not None:
        text += f", ranking on a part of the items by {used['ranking']}"
    return text


def _fidelity_facts(history: History) -> list[Row]:
    """Stage and promotions, where trials answer different numbers of items."""
    if history.started.fidelity is None:
        return []
    promotions = history.promotions
    return [
        _fact("stage", stage_text(history)),
        *(_fact(f"promotions: {why}", n) for why, n in sorted(promotions.items())),
    ]


def stage_text(history: History) -> str:
    """`race`, `contest`, and whether the front is provisional."""
    is_provisional = history.front is not None and history.front.is_provisional
    return f"{history.stage}{', front provisional' if is_provisional else ''}"


def is_partial(history: History, trial: Trial) -> bool:
    """Whether a trial's search scores are from a part of the items."""
    return trial.search is not None and not history.has_all_items(trial)


def seconds_by_phase(history: History) -> dict[str, float]:
    """Mean wall time of a trial's search items in each phase, in seconds, in order of the phases.

    All jobs of a trial count; trials whose answers were all known already do not.
    """
    sums: dict[str, float] = {}
    counts: Counter[str] = Counter()
    for trial in history.trials.values():
        for phase, seconds in trial.seconds.items():
            sums[phase] = sums.get(phase, 0.0) + seconds
            counts[phase] += 1
    return {phase: total / counts[phase] for phase, total in sums.items()}


def n_provisional(history: History) -> int:
    """How many of `hypervolume_growth`, from its start, are of provisional fronts.

    Scores from a part of the items move when more are answered, so their volume can fall.
    """
    of = [f.is_provisional for f in history.fronts]
    return len(of) - of[::-1].index(True) if True in of else 0


def hypervolume_growth(history: History) -> list[tuple[int, float]]:
    """Pairs of evaluations and hypervolume, one per front.

    As journaled, unless the reference point has moved within the run: then all fronts are measured
    again from the last one, because volumes of different references do not compare.
    """
    if len({f.reference for f in history.fronts}) <= 1:
        return [(f.n_evaluations, f.hypervolume) for f in history.fronts]
    reference = history.fronts[-1].reference

    def measured(front: FrontChange) -> float:
        return hypervolume(history.losses([history.trials[n] for n in front.trials]), reference)

    return [(f.n_evaluations, measured(f)) for f in history.fronts]


def estimate_row(estimate: Estimate) -> Row:
    """An estimate as a plain row."""
    return {
        "score": estimate.score,
        "standard_error": estimate.standard_error,
        "n_items": estimate.n_items,
    }


def _row(
    trial: Trial,
    objectives: Sequence[Objective],
    is_knee: bool,
    on_front: Mapping[str, float] | None,
) -> Row:
    mean = {split: mean_estimate(trial, objectives, split) for split in Split}
    return {
        "trial": trial.name,
        "kind": "baseline" if trial.is_baseline else "candidate",
        "search": _estimates_row(trial.search),
        "held_out": _estimates_row(trial.held_out),
        "mean": _score(mean[Split.SEARCH]),
        "mean_standard_error": _error(mean[Split.SEARCH]),
        "held_out_mean": _score(mean[Split.HELD_OUT]),
        "held_out_mean_standard_error": _error(mean[Split.HELD_OUT]),
        "on_front": None if on_front is None else on_front.get(trial.name),
        "n_items": _n_items(mean[Split.SEARCH]),
        "knee": is_knee,
        "failure": None if trial.failure is None else trial.failure.kind,
    }


def _estimates_row(estimates: Mapping[str, Estimate] | None) -> Row | None:
    return None if estimates is None else {n: estimate_row(e) for n, e in estimates.items()}


def _score(estimate: Estimate | None) -> float | None:
    return None if estimate is None else estimate.score


def _n_items(estimate: Estimate | None) -> int | None:
    return None if estimate is None else estimate.n_items


def _error(estimate: Estimate | None) -> float | None:
    return None if estimate is None else estimate.standard_error


def _fact(name: str, value: Any, unit: str | None = None) -> Row:
    return {"name": name, "value": value, "unit": unit}


def _all_minimised(objectives: Sequence[Objective]) -> bool:
    return all(o.loss(1.0) > 0 for o in objectives)
