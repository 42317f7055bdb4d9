"""What answers are worth, by lm-eval's filters and metrics."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from evomerge.errors import TaskError
from fitness.lm_eval.documents import Item
from fitness.lm_eval.metrics import Measure

_MADE_UP = {"generate_until": "", "loglikelihood_rolling": -1.0, "loglikelihood": (-1.0, False)}


def results_of(
    tasks: Sequence[Any], items: Sequence[Item], filter_name: str
) -> list[Mapping[str, Any]]:
    """lm-eval's metrics of items whose instances hold their answers, behind one filter."""
    results: list[Mapping[str, Any]] = [{}] * len(items)
    for number, task in enumerate(tasks):
        positions = [place for place, item in enumerate(items) if item.subtask == number]
        if not positions:
            continue
        (ensemble,) = (known for known in task._filters if known.name == filter_name)
        ensemble.apply([instance for place in positions for instance in items[place].instances])
        for place in positions:
            item = items[place]
            filtered = [instance.filtered_resps[filter_name] for instance in item.instances]
            results[place] = task.process_results(item.document, filtered)
    return results


def trial(tasks: Sequence[Any], item: Item) -> dict[tuple[str, str], Any]:
    """What an item would be worth with a made-up answer, by metric and filter."""
    for instance in item.instances:
        instance.resps = [_MADE_UP[instance.request_type]] * (instance.repeats or 1)
    return {
        (metric, known.name): value
        for known in tasks[item.subtask]._filters
        for metric, value in results_of(tasks, [item], known.name)[0].items()
    }


def row(measure: Measure, item: Item, values: Mapping[str, Any], name: str) -> Sequence[float]:
    """The numbers of one item, finite.

    Raises:
        TaskError: when the item lacks the metric, or has it in another form than the first one.
        FloatingPointError: when it is no finite number.
    """
    where = f"an item that begins {item.text[:40]!r}"
    try:
        numbers = measure.row(item.subtask, values[measure.metric])
    except KeyError as error:
        raise TaskError(
            f"{name}: each item must have each metric, but {measure.name!r} is missing for "
            f"{where}: choose another metric, or mend the task's process_results"
        ) from error
    except (TypeError, ValueError, IndexError) as error:
        raise TaskError(
            f"{name}: {measure.name!r} must be of one form for all items, but {where} has "
            f"{values[measure.metric]!r} ({error}): mend the task's process_results"
        ) from error
    if not all(map(math.isfinite, numbers)):
        raise FloatingPointError(
            f"{name}: {measure.name} is {values[measure.metric]!r} for {where}"
        )
    return numbers
