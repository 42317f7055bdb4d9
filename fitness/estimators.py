"""From responses to a score with a standard error: the mean, and the regression estimator."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from evomerge.datatypes import Answers, Estimate, FloatArray


class MeanEstimator:
    """The mean of the responses, with `s / sqrt(n)` as its standard error.

    `s` is the sample standard deviation (`n - 1` below the line): lm-eval's number. Two cases in
    which that formula would claim certainty, or claim nothing, are answered otherwise:

    - All responses are 0, or all are 1. The formula says 0, as if 50 right answers of 50 proved a
      perfect model. Two successes and two failures are added (Agresti and Coull 1998): 0.026 for
      50 of 50. So 50 of 50 is a little less certain than 49 of 50 (0.020), where the formula holds.
    - There is one response. Its spread is unknown: the answer is 0.5, the most that responses
      between 0 and 1 can spread (Popoviciu 1935), or the response's own size where that is more.
    """

    def estimate(self, answers: Sequence[Answers], known: FloatArray) -> list[Estimate]:  # noqa: ARG002 - a mean looks at nothing else
        """The score of each model from its own answers, in their own units."""
        return [mean(answer.values) for answer in answers]


def mean(responses: Sequence[float] | FloatArray) -> Estimate:
    """The mean of `(n_items,)` responses with its standard error, as `MeanEstimator` has it.

    Raises:
        ValueError: when there are no responses.
    """
    values = np.asarray(responses, dtype=np.float64)
    n = len(values)
    if n == 0:
        raise ValueError("an estimate needs at least one response, but there are none")
    score = float(values.mean())
    if n == 1:
        return Estimate(score, max(0.5, abs(score)), n)
    if np.all(values == values[0]) and score in (0.0, 1.0):
        p = (n * score + 2) / (n + 4)
        return Estimate(score, math.sqrt(p * (1 - p) / (n + 4)), n)
    return Estimate(score, float(values.std(ddof=1)) / math.sqrt(n), n)


class RegressionEstimator:
    """The mean, corrected by how hard the answered items are for models that answered everything.

    `mean_S(y) + beta (mean_pool(b) - mean_S(b))` (Cochran 1977, eq. 7.1), where `b` is the mean
    answer of the known models to each item. `beta` is the mean slope of each known model over the
    mean of the others. It is the same for all models: eight answers of their own would not tell
    it, and models that answered the same items keep the order of their means. With fewer than 3
    known models, or where all items are equally hard for them, it is the mean.

    The standard error is that of the population of which the pool is a sample: the spread around
    the regression line `/ n * (1 - n / N)`, what a slope of one's own may differ, and the spread of
    all answers `/ N`. With `n = N` it is the mean's.
    """

    def estimate(self, answers: Sequence[Answers], known: FloatArray) -> list[Estimate]:
        """The score of each model on the whole pool, from its own answers and the known ones."""
        n_pool = known.shape[1]
        line = _Line.learned(known) if len(known) >= _FEWEST_MODELS else None
        estimates = []
        for answer in answers:
            if line is None or len(answer.items) >= n_pool:
                estimates.append(mean(answer.values))
            else:
                estimates.append(line.estimate(answer))
        return estimates


_FEWEST_MODELS = 3
_PRIOR_ANSWERS = 4.0
"""How many of a model's own answers the known models' spread stands for."""


@dataclass(frozen=True, slots=True, eq=False)
class _Line:
    """What known models say about a regression of one model's answers on the items' difficulty."""

    difficulty: FloatArray
    """Mean answer of the known models to each item of the pool, shape `(n_pool,)`."""
    beta: float
    """The slope to expect, with its variance."""
    beta_variance: float
    residual_variance: float
    """Around the line, and of all answers of a model."""
    total_variance: float

    @classmethod
    def learned(cls, known: FloatArray) -> "_Line":
        """From the `(n_known, n_pool)` answers: each model is regressed on the mean of the rest."""
        n_known, n_pool = known.shape
        centered = known - known.mean(axis=1, keepdims=True)
        total = float((centered**2).sum() / (n_known * max(n_pool - 1, 1)))
        slopes, residuals = [], []
        others = (centered.sum(axis=0) - centered) / (n_known - 1)
        for row, other in zip(centered, others, strict=True):
            size = float(other @ other)
            slope = float(row @ other) / size if size > 1e-12 * max(1.0, n_pool * total) else 0.0
            slopes.append(slope)
            residuals.append(((row - slope * other) ** 2).sum() / max(n_pool - 2, 1))
        beta = float(np.mean(slopes))
        return cls(
            known.mean(axis=0),
            beta,
            float(np.var(slopes, ddof=1)) * (1 + 1 / n_known),
            float(np.mean(residuals)),
            total,
        )

    def estimate(self, answer: Answers) -> Estimate:
        """The score of one model on the pool."""
        n, n_pool = len(answer.items), len(self.difficulty)
        x, y = self.difficulty[answer.items], answer.values
        x_mean, y_mean = float(x.mean()), float(y.mean())
        shift = float(self.difficulty.mean()) - x_mean
        residual = self._pooled(y - y_mean - self.beta * (x - x_mean), self.residual_variance)
        total = self._pooled(y - y_mean, self.total_variance)
        variance = residual / n * (1 - n / n_pool) + shift**2 * self.beta_variance + total / n_pool
        return Estimate(y_mean + self.beta * shift, math.sqrt(variance), n)

    def _pooled(self, residuals: FloatArray, expected: float) -> float:
        """A variance from one model's residuals and from what the known ones lead to expect."""
        squares = float(residuals @ residuals) + _PRIOR_ANSWERS * expected
        return squares / (len(residuals) - 1 + _PRIOR_ANSWERS)
