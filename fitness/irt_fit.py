"""Item banks fitted to the answers of many models."""

from collections.abc import Sequence

import numpy as np

from evomerge.datatypes import FloatArray
from evomerge.errors import TaskError
from fitness.irt import Gaussian, fit_ability, probabilities
from fitness.item_bank import ItemBank


def fit_item_bank(
    responses: FloatArray,
    n_dimensions: int = 1,
    seed: int = 0,
    n_iterations: int = 200,
    item_ids: Sequence[str] = (),
) -> ItemBank:
    """Fit the two-parameter logistic model (2PL) in some dimensions to a response matrix.

    Abilities have the prior `N(0, I)` and are integrated out by a Gaussian variational
    approximation with a bound that is quadratic in the ability (Jaakkola and Jordan 2000; Cho et
    al. 2021), so that every step has a closed form and answers may be missing. Discriminations
    (per dimension) and difficulties have Gaussian priors whose means and variances are learned
    (hierarchical), each as if two more items at the start had been seen. Answers between 0 and 1
    are used as they are: a threshold would throw away what they say and move the means.

    Args:
        responses: Answers in [0, 1], shape `(n_subjects, n_items)`; NaN where not answered.
        n_dimensions: Of the ability.
        seed: Of the start in dimensions beyond what the data say.
        n_iterations: At most; it ends when nothing moves by more than 1e-3.
        item_ids: Name of each item, or empty.

    Raises:
        TaskError: when there are fewer than two subjects, an answer is not in [0, 1], an item or
            subject has no answers, or there are more dimensions than subjects.
    """
    _check(responses, n_dimensions)
    n_subjects, n_items = responses.shape
    given = np.isfinite(responses)
    kappa = np.where(given, responses - 0.5, 0.0)
    A, b = _start(responses, n_dimensions, seed)
    m_a, v_a = A.mean(axis=0), np.full(n_dimensions, 0.5)
    m_b, v_b = float(b.mean()), 2.0
    mu = np.zeros((n_subjects, n_dimensions))
    S = np.broadcast_to(np.eye(n_dimensions), (n_subjects, n_dimensions, n_dimensions)).copy()
    for _ in range(n_iterations):
        for _ in range(2):
            second = S + mu[:, :, None] * mu[:, None, :]  # E[theta theta^T]
            z2 = np.einsum("id,kde,ie->ki", A, second, A, optimize=True)
            xi = np.sqrt(np.maximum(z2 - 2 * b * (mu @ A.T) + b**2, 1e-8))
            w = np.where(given, np.tanh(xi / 2) / (2 * xi), 0.0)  # 2 eta(xi)
            outer = A[:, :, None] * A[:, None, :]
            S = np.linalg.inv(np.eye(n_dimensions) + np.einsum("ki,ide->kde", w, outer))
            mu = np.einsum("kde,ke->kd", S, (kappa + w * b) @ A)
        # Each item: a weighted regression on (theta, -1), with its prior.
        second = S + mu[:, :, None] * mu[:, None, :]
        H = np.empty((n_items, n_dimensions + 1, n_dimensions + 1))
        H[:, :-1, :-1] = np.einsum("ki,kde->ide", w, second)
        H[:, :-1, -1] = H[:, -1, :-1] = -(w.T @ mu)
        H[:, -1, -1] = w.sum(axis=0)
        H += np.diag(1 / np.append(v_a, v_b))
        g = np.column_stack([kappa.T @ mu + m_a / v_a, -kappa.sum(axis=0) + m_b / v_b])
        C = np.linalg.inv(H)
        new = np.einsum("ide,ie->id", C, g)
        moved = max(np.abs(new[:, :-1] - A).max(), np.abs(new[:, -1] - b).max())
        A, b = new[:, :-1], new[:, -1]
        m_a, m_b = A.mean(axis=0), float(b.mean())
        own = np.diagonal(C, axis1=1, axis2=2)
        v_a = (((A - m_a) ** 2 + own[:, :-1]).sum(axis=0) + 2 * 0.25) / (n_items + 2)
        v_b = float((((b - m_b) ** 2 + own[:, -1]).sum() + 2 * 1.0) / (n_items + 2))
        # Abilities back to mean 0 and covariance I, items the other way (parameter expansion: Liu
        # et al. 1998); without it the scale creeps for hundreds of steps.
        center = mu.mean(axis=0)
        away = mu - center
        L = np.linalg.cholesky((S.sum(axis=0) + away.T @ away) / n_subjects)
        A, b = A @ L, b - A @ center
        mu = np.linalg.solve(L, away.T).T
        back = np.linalg.inv(L)
        S = back @ S @ back.T
        if moved < 1e-3:
            break
    # The sign of a dimension means nothing: more ability shall mean more right answers.
    A = A * np.where(A.sum(axis=0) < 0, -1.0, 1.0)
    B = np.repeat(b[:, None] / n_dimensions, n_dimensions, axis=1)
    return ItemBank(A, B, tuple(item_ids))


def choose_n_dimensions(
    responses: FloatArray, candidates: Sequence[int] = (1, 2, 3, 5), seed: int = 0
) -> tuple[int, dict[int, float]]:
    """The number of dimensions that best predicts new subjects, and each one's cross-entropy.

    Subjects are held out in four parts (each alone, if there are fewer than 12); their abilities
    are fitted on even items and judged on odd ones (Polo et al. 2024), in nats per answer.

    Raises:
        TaskError: as `fit_item_bank`.
    """
    n_subjects, n_items = responses.shape
    n_parts = 4 if n_subjects >= 12 else n_subjects
    part = np.random.default_rng(seed).permutation(n_subjects) % n_parts
    possible = [d for d in candidates if d <= n_subjects - int(np.ceil(n_subjects / n_parts))]
    if not possible:
        raise TaskError(
            f"a dimension needs a subject to be seen in, but {n_subjects} subjects leave none of "
            f"{tuple(candidates)} dimensions: add answers of more models"
        )
    even = np.arange(n_items) % 2 == 0
    losses = {}
    for n_dimensions in possible:
        prior = Gaussian.around(np.zeros(n_dimensions), 1.0)
        total, count = 0.0, 0
        for number in range(n_parts):
            bank = fit_item_bank(responses[part != number], n_dimensions, seed)
            for row in responses[part == number]:
                fit, judge = (np.isfinite(row) & chosen for chosen in (even, ~even))
                theta, _ = fit_ability(bank.A[fit], bank.B[fit], row[fit], prior)
                P = np.clip(probabilities(bank.A[judge], bank.B[judge], theta), 1e-10, 1 - 1e-10)
                y = row[judge]
                total -= float((y * np.log(P) + (1 - y) * np.log(1 - P)).sum())
                count += len(y)
        losses[n_dimensions] = total / count
    return min(losses, key=lambda d: (losses[d], d)), losses


def _check(responses: FloatArray, n_dimensions: int) -> None:
    if responses.ndim != 2 or len(responses) < 2 or responses.shape[1] < 1:
        raise TaskError(
            "an item bank is fitted to answers of shape (n_subjects, n_items) with at least 2 "
            f"subjects, but got {responses.shape}"
        )
    if not 1 <= n_dimensions <= len(responses):
        raise TaskError(
            f"there is at least 1 dimension and a subject for each, but {n_dimensions=} and "
            f"there are {len(responses)} subjects"
        )
    given = np.isfinite(responses)
    if np.isinf(responses).any() or (responses[given] < 0).any() or (responses[given] > 1).any():
        raise TaskError(
            "answers are between 0 (wrong) and 1 (right), or NaN where not answered, but one is "
            "outside: rescale them"
        )
    for axis, name in ((0, "item"), (1, "subject")):
        empty = np.flatnonzero(~given.any(axis=axis))
        if len(empty):
            raise TaskError(
                f"each {name} has at least one answer, but {name} {empty[0]} has none: leave it out"
            )


def _start(responses: FloatArray, n_dimensions: int, seed: int) -> tuple[FloatArray, FloatArray]:
    """Difficulties from the means, discriminations from the largest singular vectors."""
    given = np.isfinite(responses)
    filled = np.where(given, responses, 0.0)
    counts = given.sum(axis=0)
    p = (filled.sum(axis=0) + 1) / (counts + 2)
    b = -np.log(p / (1 - p))
    Z = np.where(given, (responses - p) / np.sqrt(p * (1 - p)), 0.0)
    _, sizes, rows = np.linalg.svd(Z, full_matrices=False)
    A = np.zeros((responses.shape[1], n_dimensions))
    n = min(n_dimensions, len(sizes))
    A[:, :n] = (rows[:n] * sizes[:n, None]).T / np.sqrt(len(responses))
    A *= np.where(A.sum(axis=0) < 0, -1.0, 1.0)
    A += np.random.default_rng(seed).normal(0, 0.01, A.shape)  # no dimension starts at 0
    return 1.5 * A, b
