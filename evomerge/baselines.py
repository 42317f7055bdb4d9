"""The merges that every run evaluates first, so that a search has something to beat."""

from collections.abc import Sequence

from evomerge.datatypes import Recipe

DEFAULT_SCALES = (0.3, 0.4)


def baselines(
    experts: Sequence[str],
    groups: Sequence[str],
    *,
    scales: Sequence[float] = DEFAULT_SCALES,
    seed: int = 0,
) -> dict[str, Recipe]:
    """Base, each expert, uniform average, task arithmetic at `scales`, TIES, model stock, control.

    TIES is at its authors' defaults (density 0.2, lambda 1). The control adds random directions
    with the norms of the experts' deltas, averaged like the uniform average: whatever it gains is
    not due to what the experts have learned.

    Args:
        experts: Names, in the order of the run.
        groups: Labels of all groups.
        scales: Coefficients of task arithmetic, the same for all experts and groups.
        seed: Feeds the control's directions.
    """
    n_experts = len(experts)

    def recipe(per_expert: Sequence[float], operator: str = "task_arithmetic") -> Recipe:
        return Recipe(
            operator=operator,
            experts=tuple(experts),
            groups=tuple(groups),
            coefficients=tuple((round(c, 6),) * len(groups) for c in per_expert),
            seed=seed,
        )

    one_hot = {
        f"expert:{name}": recipe([1.0 if other == name else 0.0 for other in experts])
        for name in experts
    }
    average = [1.0 / n_experts] * n_experts
    return {
        "base": recipe([0.0] * n_experts),
        **one_hot,
        "uniform_average": recipe(average),
        **{f"task_arithmetic_{scale:g}": recipe([scale] * n_experts) for scale in scales},
        "ties": recipe([1.0] * n_experts, "ties"),
        "model_stock": recipe([1.0] * n_experts, "model_stock"),
        "random_delta": recipe(average, "random_delta"),
    }
