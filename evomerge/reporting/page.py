"""The report of a run: one HTML file that needs no network.

Everything that comes from the run goes through Jinja's escaping or into one JSON block in which
`<`, `>` and `&` are escaped; the page's own policy forbids it to load anything.
"""

import json
import os
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from importlib.resources import files
from math import hypot
from pathlib import Path
from typing import Any

from evomerge.datatypes import Direction, Estimate, Recipe, Split
from evomerge.errors import ConfigError
from evomerge.history import History, Trial, estimates_of
from evomerge.reporting.conclusion import Difference, compared, conclude
from evomerge.reporting.rows import (
    Row,
    baseline_rows,
    baseline_trials,
    best_in_mean,
    estimators_text,
    front_rows,
    front_trials,
    hypervolume_growth,
    is_partial,
    knee_of,
    mean_estimate,
    n_provisional,
    picked,
    schedule_text,
    seconds_by_phase,
    share_of_full,
    stage_text,
    title_of,
)
from evomerge.reporting.terminal import difference_text, percent_text, score_text

MOST_DOMINATED = 2000
"""Dominated trials that are drawn, evenly over the run: a page with more reacts slowly."""

MOST_COEFFICIENTS = 500_000
"""Coefficients of dominated trials that the page carries (8 bytes each); the front has them all."""

DIGITS = 6
"""Decimals of coefficients in the page."""


def write_page(history: History, decode: Callable[[Sequence[float]], Recipe], path: Path) -> Path:
    """Write the report as one self-contained HTML file (about 5 MB, nearly all of it plotly.js).

    Args:
        history: A run, finished or not, with or without held-out scores and failures.
        decode: The decoder of the run's search space: from a point of the unit cube to a recipe.
        path: Where the file goes; an older one is replaced.

    Returns:
        `path`.

    Raises:
        JournalError: when `decode` does not give the recipes of the run.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs

    environment = Environment(
        loader=PackageLoader("evomerge.reporting", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["score"] = _score_text
    environment.filters["percent"] = percent_text
    environment.filters["difference"] = difference_text
    conclusion = conclude(history)
    confidence = conclusion.confidence
    on_front = None if confidence is None else confidence.probabilities
    own = files("evomerge.reporting")
    html = environment.get_template("page.html.jinja").render(
        experts=history.started.experts,
        started=history.started,
        figures=_headline(history),
        front=front_rows(history, on_front),
        baselines=baseline_rows(history, on_front),
        confidence=confidence,
        verdict=conclusion.verdict,
        fidelity=_fidelity_text(history),
        has_partial=any(is_partial(history, t) for t in history.scored()),
        objectives=history.objectives,
        may_hold_out=all(n_held_out for _, n_held_out in history.started.n_items.values()),
        has_held_out=bool(history.scored(Split.HELD_OUT)),
        optimism=conclusion.optimism,
        facts=_facts(history),
        failures=[t for t in history.trials.values() if t.failure is not None],
        notes=history.notes,
        # trusted: the package's own files and escaped JSON
        report=Markup(_json(_report(history, decode))),
        style=Markup((own / "page.css").read_text(encoding="utf-8")),
        script=Markup((own / "page.js").read_text(encoding="utf-8")),
        plotly=Markup(get_plotlyjs()),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(html, encoding="utf-8")
    os.replace(partial, path)  # noqa: PTH105  (the house's name for an atomic replacement)
    return path


def _report(history: History, decode: Callable[[Sequence[float]], Recipe]) -> Row:
    """What the script draws."""
    front = front_trials(history)
    kept = {t.name for t in [*front, *baseline_trials(history)]}
    others = [t for t in history.scored() if t.name not in kept]
    shown = _evenly(others, MOST_DOMINATED)
    n_experts, n_groups = len(history.started.experts), len(history.started.groups)
    with_matrix = _evenly(shown, MOST_COEFFICIENTS // max(n_experts * n_groups, 1))
    kept |= {t.name for t in with_matrix}
    in_front = {t.name for t in front}
    best_first = [*front, *(t for t in baseline_trials(history) if t.name not in in_front), *shown]
    return {
        "objectives": [
            {"name": o.name, "minimized": o.direction is Direction.MINIMIZE}
            for o in history.objectives
        ],
        "groups": [
            {"label": g.label, "layer": g.layer, "kind": g.kind, "n_parameters": g.n_parameters}
            for g in history.started.groups
        ],
        "trials": [
            _trial(t, history, history.recipe(t, decode), t.name in in_front, t.name in kept)
            for t in best_first
        ],
        "knee": knee_of(history),
        "n_left_out": len(others) - len(shown),
        "growth": hypervolume_growth(history),
        "n_provisional": n_provisional(history),
        "n_evaluations": history.n_evaluations,
    }


def _trial(trial: Trial, history: History, recipe: Recipe, in_front: bool, whole: bool) -> Row:
    matrix = recipe.matrix()
    column = {label: i for i, label in enumerate(recipe.groups)}
    sizes = {g.label: g.n_parameters for g in history.started.groups}
    weights = [max(sizes.get(label, 1), 1) for label in recipe.groups]
    return {
        "name": trial.name,
        "title": title_of(trial),
        "baseline": trial.is_baseline,
        "front": in_front,
        "generation": trial.generation,
        "partial": is_partial(history, trial),
        "search": _triples(trial, history, Split.SEARCH),
        "held_out": _triples(trial, history, Split.HELD_OUT),
        "failure": None if trial.failure is None else trial.failure.kind,
        "operator": recipe.operator,
        "knobs": {**recipe.prepare, **recipe.runtime},
        "digest": trial.recipe_digest,
        "experts": recipe.experts,
        "means": [round(float(row @ weights) / sum(weights), DIGITS) for row in matrix],
        # in the order of the run's groups; None where the recipe has no such group
        "coefficients": [
            [
                round(float(row[column[g.label]]), DIGITS) if g.label in column else None
                for g in history.started.groups
            ]
            for row in matrix
        ]
        if whole
        else None,
    }


def _triples(trial: Trial, history: History, split: Split) -> list[list[float]] | None:
    """Score, standard error and number of items by objective, and those of the mean at the end."""
    estimates = estimates_of(trial, split)
    mean = mean_estimate(trial, history.objectives, split)
    if estimates is None or mean is None:
        return None
    every = [*(estimates[o.name] for o in history.objectives), mean]
    return [[e.score, e.standard_error, e.n_items] for e in every]


def _picked_text(history: History) -> str:
    """Whom the run's preference takes, or the knee."""
    if history.front is None:
        return ""
    try:
        taken = picked(history)
    except ConfigError:  # the verdict says why
        return "nobody meets the thresholds"
    return f"{taken.why}: {title_of(taken.trial)}"


def _headline(history: History) -> list[Row]:
    """The figures at the top: a label, a value, a remark."""
    front = history.front
    n_failures = sum(t.failure is not None for t in history.trials.values())
    figures = [
        _figure(
            "Evaluations",
            f"{history.n_evaluations} of {history.n_planned}",
            f"{n_failures} failed, {len(history.pending)} pending",
        ),
        _figure(
            "Pareto front",
            f"{len(front.trials)} trials" if front else "–",
            _picked_text(history),
        ),
        _figure(
            "Hypervolume",
            f"{front.hypervolume:.4g}" if front else "–",
            _growth_text(history),
        ),
    ]
    scored = history.scored()
    # of the front only: a merge that answered few items may look better by luck
    candidates = [t for t in front_trials(history) if not t.is_baseline]
    best = best_in_mean(candidates, history.objectives)
    if best is None:
        return figures
    split = Split.SEARCH if best.held_out is None else Split.HELD_OUT
    mean = _mean(best, history, split)
    where = "held-out" if split is Split.HELD_OUT else "search"
    figures.append(
        _figure(
            "Best merge in mean",
            f"{mean.score:.3f}",
            f"{where}; {title_of(best)}",
            f"±{mean.standard_error:.3f}",
        )
    )
    rivals = {
        "best expert": [t for t in scored if t.name.startswith("expert:")],
        "uniform average": [t for t in scored if t.name == "uniform_average"],
        "best global scale": [t for t in scored if t.name.startswith("task_arithmetic_")],
    }
    for label, trials in rivals.items():
        # chosen by search scores, as the best merge is: held-out scores judge, they do not choose
        rival = best_in_mean(trials, history.objectives)
        if rival is None or estimates_of(rival, split) is None:
            continue
        theirs = _mean(rival, history, split)
        if split is Split.HELD_OUT:
            difference, _, _ = compared(history, best, rival)
        else:  # they may have answered different items
            losses = history.losses([rival, best]).mean(axis=1)
            error = hypot(mean.standard_error, theirs.standard_error)
            difference = Difference(float(losses[0] - losses[1]), error)
        figures.append(
            _figure(
                f"Against {label}",
                f"{difference.value:+.3f}",
                f"{title_of(rival)}: {_score_text(theirs)}",
                f"±{difference.standard_error:.3f}",
            )
        )
    return figures


def _figure(label: str, value: str, remark: str, error: str = "") -> Row:
    return {"label": label, "value": value, "error": error, "remark": remark}


def _growth_text(history: History) -> str:
    if history.front is not None and history.front.is_provisional:
        return "provisional: scores from a part of the items"
    if n_provisional(history):
        return "final; earlier fronts were provisional"
    growth = hypervolume_growth(history)
    if len(growth) < 2:
        return ""
    return f"from {growth[0][1]:.4g} after {growth[0][0]} evaluations"


def _mean(trial: Trial, history: History, split: Split) -> Estimate:
    mean = mean_estimate(trial, history.objectives, split)
    assert mean is not None  # the caller has looked for scores in the split
    return mean


def _fidelity_text(history: History) -> str:
    """Who answered how much, and what scores are made of, in a line."""
    share = share_of_full(history)
    parts = [f"Search items answered: {history.n_item_answers:,}"]
    if share is not None:
        parts[0] += f" ({100 * share:.3g} % of full evaluation)"
    if history.started.fidelity is not None:
        parts.append(f"stage: {stage_text(history)}")
    if history.n_reused:
        parts.append(f"{history.n_reused} evaluations reused")
    return "; ".join([*parts, estimators_text(history)]) + "."


def _facts(history: History) -> list[tuple[str, str]]:
    started = history.started
    facts = [
        ("started", datetime.fromtimestamp(started.time, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")),
        ("elapsed", f"{max(0.0, history.last_time - started.time):.0f} s"),
        ("finished", history.finished or "not yet"),
        ("sampler", f"{started.sampler}: {started.sampler_reason}"),
        ("search space", f"{len(started.dimensions)} dimensions, {len(started.groups)} groups"),
        ("configuration", started.config_digest),
        ("schedule of items", schedule_text(history)),
        *((f"promotions: {why}", str(n)) for why, n in sorted(history.promotions.items())),
        *((f"estimator, {use}", path) for use, path in sorted(started.estimators.items())),
    ]
    if history.front is not None:
        worst = zip(history.objectives, history.front.reference, strict=True)
        reference = ", ".join(f"{o.name} {o.score(loss):.4g}" for o, loss in worst)
        facts.append(("hypervolume reference", reference))
    for phase, seconds in seconds_by_phase(history).items():
        facts.append((f"seconds per evaluation, {phase}", f"{seconds:.3g}"))
    for name, (search, held_out) in started.n_items.items():
        facts.append((f"items of {name}", f"{search} search, {held_out} held-out"))
    facts += [(f"items of {name}, digest", d) for name, d in started.item_digests.items()]
    facts += [(f"model {name}, digest", d) for name, d in started.model_digests.items()]
    facts += [(f"version of {name}", v) for name, v in started.versions.items()]
    return facts


def _score_text(score: Any, standard_error: float | None = None) -> str:
    if isinstance(score, Estimate):
        return score_text(score.score, score.standard_error)
    return score_text(score, standard_error)


def _evenly(trials: Sequence[Trial], most: int) -> list[Trial]:
    """At most so many of them, evenly spaced in their order."""
    if len(trials) <= most:
        return list(trials)
    return [trials[i * len(trials) // most] for i in range(most)]


def _json(plain: Row) -> str:
    """JSON that is safe inside a script element, whatever text it holds."""
    text = json.dumps(plain, allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text
