"""lm-eval itself beside our fitness: what both say of one model."""

from collections.abc import Sequence
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest

from evomerge.datatypes import Objective, Split
from evomerge.errors import TaskError
from evomerge.evaluation import columns_of
from evomerge.loading import resolve
from fitness.lm_eval import LmEvalFitness


def build(path: str, metrics: Sequence[str | None] = ("acc",), **options: Any) -> LmEvalFitness:
    """A fitness with an objective for each metric."""
    objectives = tuple(Objective(f"o{number}") for number in range(len(metrics)))
    return LmEvalFitness(objectives, task=path, metrics=metrics, **options)


def refused(path: str, *facts: str, **options: Any) -> None:
    """Building must fail with one sentence about the task that holds these facts."""
    with pytest.raises(TaskError) as caught:
        build(path, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(path)
    for fact in facts:
        assert fact in message


def scores_of(fitness: LmEvalFitness, split: Split = Split.HELD_OUT) -> list[float]:
    """One score per objective, by its statistic, on all items of a split."""
    responses = fitness.respond(split, range(len(fitness.items(split))))
    scores = []
    for objective, columns in zip(fitness.objectives, columns_of(fitness.objectives), strict=True):
        target = objective.statistic.target
        statistic = np.mean if target == "mean" else resolve(target)
        scores.append(float(statistic(responses[:, columns])))
    return scores


def evaluate_all(
    path: str,
    model: Any,
    tokenizer: Any,
    fewshot_seed: int | None = None,
    include_path: str | None = None,
    **options: Any,
) -> dict[str, Any]:
    """All that lm-eval says of a task's or a group's test split."""
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    # A second per call for a report of the machine, which is not looked at here.
    with patch("lm_eval.evaluator.add_env_info"):
        return lm_eval.simple_evaluate(
            model=HFLM(pretrained=model, tokenizer=tokenizer, batch_size=8),
            tasks=[path],
            task_manager=TaskManager(include_defaults=False, include_path=include_path),
            bootstrap_iters=0,
            random_seed=None,
            numpy_random_seed=None,
            torch_random_seed=None,
            fewshot_random_seed=fewshot_seed,
            **options,
        )


def simple_evaluate(
    path: str, model: Any, tokenizer: Any, **options: Any
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """lm-eval's own scores and samples of a single task's test split."""
    results = evaluate_all(path, model, tokenizer, **options)
    ((name, scores),) = results["results"].items()
    return scores, results["samples"][name]
