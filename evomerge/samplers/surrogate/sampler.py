"""Iterative surrogate search: fit, propose by hypervolume gain, evaluate, check, fit again."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import cdist

from evomerge import pareto
from evomerge.datatypes import FloatArray, Problem
from evomerge.errors import ConfigError
from evomerge.samplers.design import proposal
from evomerge.samplers.history_based import HistoryBased, View
from evomerge.samplers.surrogate.ascent import POOL, best_point, pool
from evomerge.samplers.surrogate.encoding import Encoding
from evomerge.samplers.surrogate.evolution import child
from evomerge.samplers.surrogate.improvement import improvement_over
from evomerge.samplers.surrogate.links import Logit
from evomerge.samplers.surrogate.models import (
    FORMS,
    Choice,
    Model,
    Observed,
    Quality,
    choose,
    without_collapses,
)

START = 8
"""Points of the centred design before the first model."""

LEAST = 4
"""Successes without which there is no model."""

MOST_POINTS, MOST_FITTED = 400, 150
"""Of a longer history the models see the best and the latest, and hyperparameters are fitted to
fewer: time grows with the cube."""

REFERENCE = 0.1
"""How far beyond the worst of the start, in ranges, the hypervolume's reference lies."""

DOUBT = 0.25
"""Mean rank correlation below which half the proposals are an evolution's."""

ENOUGH = 24
"""Points from which a poor rank correlation says something about the model."""


LARGE = 1e100
"""No loss of a task, but a perplexity may explode."""


class SurrogateSampler(HistoryBased):
    """Minimises one or more losses by models of them that are checked while it runs.

    For each objective a Gaussian process is fitted to what was told: on logits where losses are
    accuracies (binomial likelihood: Laplace's approximation), with or without a Bayesian quadratic
    (MAP's surrogate), whichever predicts left-out points best. The noise is that of the scores'
    standard errors, up to a factor that is fitted. A candidate is where the expected hypervolume
    improvement over the front of the models' means is largest, pending candidates believed to come
    out as expected; never farther than half the cube from what was sampled.

    When left-out points are ranked hardly better than by chance, or losses fall off cliffs, it
    says so, and crossover and mutation of the best points take turns with the models until these
    have recovered.

    Hyperparameters are fitted anew whenever the history has grown by an eighth.
    """

    def __init__(
        self,
        problem: Problem,
        *,
        seed: int,
        start: int = START,
        forms: Sequence[str] = FORMS,
    ) -> None:
        """Start with the centred design.

        Args:
            problem: dimensions, anchors, number of objectives; names, owners and depths are used.
            seed: of everything random.
            start: points before the first model; never fewer than there are anchors.
            forms: models to choose among.

        Raises:
            ConfigError: an option is out of range.
        """
        if isinstance(start, bool) or not isinstance(start, int) or start < 4:
            raise ConfigError(
                f"start must be a whole number of at least 4 points, but got {start!r}: leave it "
                f"out for {START}"
            )
        if not forms or any(form not in FORMS for form in forms):
            raise ConfigError(
                f"forms must name models among {', '.join(FORMS)}, but got {list(forms)}: leave "
                "them out to have the best one chosen"
            )
        super().__init__(problem, seed=seed, n_start=start)
        self._forms = tuple(forms)
        self._encoding = Encoding(problem)
        self._choices: tuple[tuple[int, ...], list[Choice]] | None = None
        self._remarks: list[str] = []
        self._next_remark = 20

    @property
    def remarks(self) -> tuple[str, ...]:
        """How good the models were, at 20 points and each time their number has doubled."""
        return tuple(self._remarks)

    def _propose(self, view: View, rng: np.random.Generator) -> FloatArray:
        if len(view.points) < LEAST:
            return self._wander(rng)
        view = _squarable(view)
        choices = self._fitted(view, LEAST)
        view = _best_and_latest(view, MOST_POINTS)
        X = self._encoding.encode(view.points)
        models = [
            Model(X, seen, choice) for seen, choice in zip(_observed(view), choices, strict=True)
        ]
        qualities = [model.quality() for model in models]
        self._remark(len(view.points), models, qualities)
        rank = float(np.mean([quality.rank for quality in qualities]))
        if len(view.points) >= ENOUGH and rank < DOUBT and rng.random() < 0.5:
            return child(view.points, view.losses, self._kinds, rng)
        models = [model.believing(self._encoding.encode(view.pending)) for model in models]
        known = np.vstack([view.points, view.pending])
        places = self._encoding.encode(known)
        means = np.stack([model.moments(places)[0] for model in models], axis=1)
        on_front = pareto.non_dominated(means)
        improvement = improvement_over(means[on_front], self._reference(view), rng)
        points = pool(self._problem, self._kinds, known[on_front], POOL, rng)
        points = _distinct([proposal(point, self._kinds) for point in points])
        points = _not_beside_failures(points, known, view.failed)
        return best_point(models, self._encoding, self._kinds, improvement, points, known)

    def _fitted(self, view: View, limit: int) -> list[Choice]:
        """Forms and hyperparameters from the first part of the history, a function of its ids."""
        n = limit
        while (following := max(n + 1, n * 9 // 8)) <= len(view.points):
            n = following
        part = _best_and_latest(_first(view, n), MOST_FITTED)
        key = tuple(part.ids.tolist())
        if self._choices is None or self._choices[0] != key:
            X = self._encoding.encode(part.points)
            scales = self._encoding.log_scales
            self._choices = key, [choose(X, seen, scales, self._forms) for seen in _observed(part)]
        return self._choices[1]

    def _reference(self, view: View) -> FloatArray:
        """A little worse than the worst of the start: what is worse than that gains nothing.

        A share of nothing is the end: what trades all of one objective away gains nothing either.
        """
        start = view.losses[: len(self._start)]
        worst, best = start.max(axis=0), view.losses.min(axis=0)
        reference = worst + np.maximum(REFERENCE * (worst - best), 1e-9)
        links = [Logit.fitting(column) for column in view.losses.T]
        ends = [np.inf if link is None else link.worst for link in links]
        return np.asarray(np.minimum(reference, ends))

    def _wander(self, rng: np.random.Generator) -> FloatArray:
        """Around the centre, farther than the start."""
        centre = np.array(self._problem.anchors[0])
        uniform = rng.random(len(centre))
        return np.asarray(np.where(rng.random() < 0.5, 0.5 * (centre + uniform), uniform))

    def _remark(self, n_points: int, models: Sequence[Model], qualities: Sequence[Quality]) -> None:
        """Say how good the models are, when it is time."""
        if n_points < self._next_remark:
            return
        while self._next_remark <= n_points:
            self._next_remark *= 2
        names = self._problem.names or tuple(f"objective {i}" for i in range(len(models)))
        parts = []
        for name, model, quality in zip(names, models, qualities, strict=True):
            text = f"{name} R2 {quality.r2:.2f}, rank correlation {quality.rank:.2f} ({model.form})"
            if quality.cliffs:
                text += f", {quality.cliffs} off a cliff"
            parts.append(text)
        remark = f"surrogate on {n_points} points, each left out: " + "; ".join(parts)
        if n_points >= ENOUGH and any(quality.rank < DOUBT for quality in qualities):
            remark += "; not to be trusted where the rank correlation is low"
        self._remarks.append(remark)


def _squarable(view: View) -> View:
    """Losses so large that their squares overflow, in units of the largest."""
    largest = np.abs(view.losses).max(axis=0)
    units = np.where(largest > LARGE, largest, 1.0)
    return replace(view, losses=view.losses / units, standard_errors=view.standard_errors / units)


def _observed(view: View) -> list[Observed]:
    losses = without_collapses(view.losses)
    return [
        Observed(losses[:, i], view.standard_errors[:, i], view.n_items[:, i].astype(float))
        for i in range(losses.shape[1])
    ]


def _first(view: View, n: int) -> View:
    rows = np.arange(len(view.points)) < n
    return _rows(view, rows)


def _best_and_latest(view: View, most: int) -> View:
    """Half of those kept by rank in the mean of the objectives' ranks, the others by age."""
    n = len(view.points)
    if n <= most:
        return view
    ranks = view.losses.argsort(axis=0, kind="stable").argsort(axis=0, kind="stable").mean(axis=1)
    good = np.argsort(ranks, kind="stable")[: most // 2]
    front = np.flatnonzero(pareto.non_dominated(view.losses))[: most // 4]
    keep = np.zeros(n, dtype=np.bool_)
    keep[good] = keep[front] = True
    for row in range(n - 1, -1, -1):
        if keep.sum() == most:
            break
        keep[row] = True
    return _rows(view, keep)


def _rows(view: View, rows: NDArray[np.bool_]) -> View:
    return replace(
        view,
        ids=view.ids[rows],
        points=view.points[rows],
        losses=view.losses[rows],
        standard_errors=view.standard_errors[rows],
        n_items=view.n_items[rows],
    )


def _distinct(points: list[list[float]]) -> FloatArray:
    """In their order; a space of a few bits has few."""
    return np.array(list(dict.fromkeys(map(tuple, points))))


def _not_beside_failures(points: FloatArray, known: FloatArray, failed: FloatArray) -> FloatArray:
    """The points whose nearest neighbour has not failed, or all if none is left."""
    if not len(failed):
        return points
    to_known = cdist(points, known).min(axis=1)
    to_failed = cdist(points, failed).min(axis=1)
    kept = points[to_known <= to_failed]
    return kept if len(kept) else points
