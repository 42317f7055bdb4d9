"""The items of one or several tasks: drawn, and kept apart from few-shot examples."""

from collections.abc import Mapping
from dataclasses import replace
from itertools import chain
from typing import Any

from evomerge.datatypes import Split
from fitness.items import refuse_overlap, share
from fitness.lm_eval.documents import Item, Pool, remember_templates
from fitness.lm_eval.requests import Chat, instances_of, prepare_fewshot

Drawn = dict[Split, list[Item]]


def draw(
    tasks: Mapping[str, Any],
    n_search: int | Mapping[str, int] | None,
    n_held_out: int | Mapping[str, int] | None,
    seed: int,
    name: str,
) -> Drawn:
    """Items of both splits, without requests: one task after the other.

    All tasks draw with the same seed: where they are translations of each other, a question is
    in the same split in all languages.

    Raises:
        TaskError: when a split is empty or too small, or the splits overlap.
    """
    for task in tasks.values():
        remember_templates(task)
    pools = {task_name: Pool(task) for task_name, task in tasks.items()}
    sizes = {task_name: pool.size(Split.SEARCH) for task_name, pool in pools.items()}
    search = share(n_search, sizes, Split.SEARCH, name)
    rest = {
        task_name: pool.size(Split.HELD_OUT) - ((search[task_name] or 0) if pool.is_one else 0)
        for task_name, pool in pools.items()
    }
    held_out = share(n_held_out, rest, Split.HELD_OUT, name)
    drawn: Drawn = {split: [] for split in Split}
    for number, (task_name, pool) in enumerate(pools.items()):
        shown = name if len(pools) == 1 else f"{name}, {task_name}"
        own = pool.draw(number, search[task_name], held_out[task_name], seed, shown)
        for split, items in own.items():
            drawn[split] += items
    refuse_overlap(
        [item.digest for item in drawn[Split.SEARCH]],
        [item.digest for item in drawn[Split.HELD_OUT]],
        lambda position: drawn[Split.HELD_OUT][position].text,
        name,
    )
    return drawn


def keep_from_fewshot(
    drawn: Drawn, tasks: Mapping[str, Any], num_fewshot: int | None, name: str
) -> list[int]:
    """Set the number of few-shot examples of each task, which are never items; they are returned.

    Raises:
        TaskError: when a task does not allow the number or has too few documents.
    """
    return [
        prepare_fewshot(
            task,
            num_fewshot,
            [item.document for item in chain(*drawn.values()) if item.subtask == number],
            len(tasks) == 1,
            name,
        )
        for number, task in enumerate(tasks.values())
    ]


def with_requests(
    drawn: Drawn,
    tasks: Mapping[str, Any],
    seed: int,
    system: str | None,
    chat: Chat | None,
    name: str,
) -> Drawn:
    """The items with what lm-eval asks for each; the seed draws their few-shot examples.

    Raises:
        TaskError: when a task or the chat template cannot ask them.
    """
    written: Drawn = {}
    for split, items in drawn.items():
        written[split] = []
        for number, task in enumerate(tasks.values()):
            own = [item for item in items if item.subtask == number]
            asked = instances_of(task, own, seed, system, chat, name)
            written[split] += [
                replace(item, instances=instances)
                for item, instances in zip(own, asked, strict=True)
            ]
    return written
