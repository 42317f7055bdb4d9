"""The quadratics of all objectives of a problem, fitted as published or with what is known."""

import numpy as np

from evomerge.datatypes import FloatArray, Problem
from evomerge.samplers.history_based import View
from evomerge.samplers.map.coordinates import Coordinates
from evomerge.samplers.map.quadratic import (
    Link,
    Quadratic,
    cliff,
    fit_binomial,
    fit_least_squares,
    fit_validated,
    n_parameters,
)

SOFTPLUS_UP_TO = 100.0
"""Losses beyond are fitted without a link: the published start of all ones is far from them."""


class Surrogates:
    """One quadratic per objective, of `(n,)` rows of a view; predicts losses.

    Where an objective is an accuracy (losses within -1 and 0) and numbers of items are known, the
    logit is fitted to the binomial counts; otherwise the standardised losses are fitted with the
    ridge that predicts left-out points best. As published, it is Levenberg-Marquardt instead, on
    accuracies behind a sigmoid, on positive losses behind a softplus, on others as they are; where
    that fails (the paper's code then drops the objective), it is the ridge.
    """

    def __init__(
        self, problem: Problem, coordinates: Coordinates, view: View, *, published: bool
    ) -> None:
        """Fit.

        Args:
            problem: Names and number of the objectives.
            coordinates: In which the quadratics are.
            view: What was told, one success at least.
            published: Fit as MAP's authors do.
        """
        self._coordinates = coordinates
        self.remarks: tuple[str, ...] = ()
        """What the user should know about the fits."""
        C = coordinates.coefficients(view.points)
        P = n_parameters(C.shape[1])
        if len(C) < P:
            self._remark(
                f"the quadratics have {P} parameters but {len(C)} merges to learn from: what these "
                f"do not tell is taken for flat"
            )
        self._scaled: list[tuple[Quadratic, float]] = []
        self.targets = np.zeros(view.losses.shape)
        """What was fitted, shape `(n, n_objectives)`, in the units of the predictions."""
        for i in range(problem.n_objectives):
            name = problem.names[i] if problem.names else f"objective {i + 1}"
            losses, errors = view.losses[:, i], view.standard_errors[:, i]
            n_items = view.n_items[:, i].astype(np.float64)
            model, sign, metric = self._fitted(C, losses, n_items, name, published=published)
            factor = sign / (float(np.ptp(metric)) or 1.0)
            self._scaled.append((model, factor))
            self.targets[:, i] = factor * metric
            # differences of huge losses must not overflow
            size = max(float(np.abs(losses).max()), np.finfo(np.float64).tiny)
            if cliff(C, losses / size, None if np.isnan(errors).any() else errors / size):
                self._remark(
                    f"{name} falls off a cliff somewhere among the sampled merges, which no "
                    f"quadratic describes: narrow the space, or use the surrogate or nsga2 sampler"
                )

    def losses(self, points: FloatArray) -> FloatArray:
        """Predicted, shape `(n_points, n_objectives)`, each in units of its range when fitted."""
        C = self._coordinates.coefficients(points)
        return np.column_stack([factor * model.predict(C) for model, factor in self._scaled])

    def _fitted(
        self, C: FloatArray, losses: FloatArray, n_items: FloatArray, name: str, *, published: bool
    ) -> tuple[Quadratic, float, FloatArray]:
        """A model, the sign that makes losses of its metric, and the `(n,)` metric."""
        shares = bool(((losses >= -1.0) & (losses <= 0.0)).all()) and bool(losses.any())
        if published:
            link: Link = "identity"
            if shares:
                link = "sigmoid"
            elif losses.min() > 0.0 and losses.max() <= SOFTPLUS_UP_TO:
                link = "softplus"
            metric, sign = (-losses, -1.0) if shares else (losses, 1.0)
            if link == "identity":
                metric = _standardised(losses)
            try:
                with np.errstate(all="ignore"):
                    found = fit_least_squares(C, metric, link)
                if np.isfinite(found.parameters).all():
                    return found, sign, metric
            except (RuntimeError, ValueError):  # it did not converge, or points are too few
                pass
            self._remark(f"the published fit failed for {name}: a ridge fit stands in")
        elif shares and (n_items > 0).all():
            return fit_binomial(C, -losses, n_items), -1.0, -losses
        z = _standardised(losses)
        return fit_validated(C, z), 1.0, z

    def _remark(self, text: str) -> None:
        self.remarks = (*self.remarks, text)


def _standardised(losses: FloatArray) -> FloatArray:
    """Mean 0 and deviation 1, or all 0 where they are equal; of any magnitude."""
    size = float(np.abs(losses).max())
    if size == 0.0:
        return np.zeros(len(losses))
    z = losses / size
    deviation = float(z.std())
    if deviation <= 1e-12:
        return np.zeros(len(losses))
    return np.asarray((z - z.mean()) / deviation)
