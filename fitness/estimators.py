"""From responses to a score with a standard error."""

import math
from collections.abc import Sequence

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
