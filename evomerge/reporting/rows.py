"""What is shown of a run, as plain rows: the same for the terminal, JSON and the page.

Every row is plain (text, numbers, None, dicts): `json.dumps` takes it as it is.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from evomerge.datatypes import Estimate, Objective, Split
from evomerge.errors import ConfigError, RunError
from evomerge.history import FrontChange, History, Trial, estimates_of, losses_of
from evomerge.pareto import hypervolume, knee
from evomerge.pareto import prefer as preferred

Row = dict[str, Any]


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


def pick(history: History, prefer: Mapping[str, float] | None = None) -> Trial:
    """The trial of the current front to take: its knee, or the best for a preference.

    Chosen by search scores only: held-out scores judge the choice, so they must not make it.

    Args:
        history: A run with at least one front.
        prefer: Weight by name of objective; objectives that are left out weigh 0.

    Raises:
        RunError: when the run has no front yet.
        ConfigError: when `prefer` names an unknown objective or holds no usable weights.
    """
    trials = front_trials(history)
    if not trials:
        raise RunError(
            "a trial is picked from the front, but this run has none yet: wait for its first "
            "evaluations"
        )
    losses = history.losses(trials)
    if prefer is None:
        return trials[knee(losses)]
    names = [o.name for o in history.objectives]
    if unknown := sorted(set(prefer) - set(names)):
        raise ConfigError(
            f"preferences name objectives of the run, but {', '.join(unknown)} is none: "
            f"it has {', '.join(names)}"
        )
    return trials[preferred(losses, [prefer.get(name, 0.0) for name in names])]


def front_rows(history: History) -> list[Row]:
    """One row per trial of the current front, best mean first."""
    knee_name = knee_of(history)
    return [_row(t, history.objectives, t.name == knee_name) for t in front_trials(history)]


def baseline_rows(history: History) -> list[Row]:
    """One row per baseline in the order asked; `search` is None while it has no scores."""
    return [_row(t, history.objectives, False) for t in baseline_trials(history)]


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


def seconds_by_phase(history: History) -> dict[str, float]:
    """Mean wall time of an evaluation in each phase, in seconds, in the order of the phases."""
    sums: dict[str, float] = {}
    counts: Counter[str] = Counter()
    for trial in history.trials.values():
        for phase, seconds in trial.seconds.items():
            sums[phase] = sums.get(phase, 0.0) + seconds
            counts[phase] += 1
    return {phase: total / counts[phase] for phase, total in sums.items()}


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


def optimism(
    trials: Sequence[Trial], objective: Objective
) -> tuple[float, float] | tuple[None, None]:
    """How much better the search scores of some trials look than their held-out scores.

    The mean of search minus held-out, oriented so that positive is optimistic, and its standard
    error. All trials answer the same items, so their errors are taken as fully shared: the mean of
    the single errors, not divided by the square root of their number.
    """
    gaps: list[float] = []
    errors: list[float] = []
    for trial in trials:
        if trial.search is None or trial.held_out is None:
            continue
        search, held_out = trial.search[objective.name], trial.held_out[objective.name]
        gaps.append(objective.loss(held_out.score) - objective.loss(search.score))
        errors.append(math.hypot(search.standard_error, held_out.standard_error))
    if not gaps:
        return None, None
    return sum(gaps) / len(gaps), sum(errors) / len(errors)


def estimate_row(estimate: Estimate) -> Row:
    """An estimate as a plain row."""
    return {
        "score": estimate.score,
        "standard_error": estimate.standard_error,
        "n_items": estimate.n_items,
    }


def _row(trial: Trial, objectives: Sequence[Objective], is_knee: bool) -> Row:
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
        "knee": is_knee,
        "failure": None if trial.failure is None else trial.failure.kind,
    }


def _estimates_row(estimates: Mapping[str, Estimate] | None) -> Row | None:
    return None if estimates is None else {n: estimate_row(e) for n, e in estimates.items()}


def _score(estimate: Estimate | None) -> float | None:
    return None if estimate is None else estimate.score


def _error(estimate: Estimate | None) -> float | None:
    return None if estimate is None else estimate.standard_error


def _fact(name: str, value: Any, unit: str | None = None) -> Row:
    return {"name": name, "value": value, "unit": unit}


def _all_minimised(objectives: Sequence[Objective]) -> bool:
    return all(o.loss(1.0) > 0 for o in objectives)
