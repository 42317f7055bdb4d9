"""Which documents are search items and which are held out, and proof that they are not the same."""

import heapq
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from textwrap import shorten

import numpy as np

from evomerge.datatypes import Split
from evomerge.errors import TaskError


def choose(n_documents: int, n_wanted: int | None, seed: int, split: Split, task: str) -> list[int]:
    """Positions of the items in a split of its own, sorted; None stands for all documents.

    The first items of one seeded permutation are taken, so that fewer items are a part of more.

    Raises:
        TaskError: when the split has no documents, or fewer than asked.
    """
    if n_documents == 0:
        raise TaskError(
            f"{task}: a split must have documents, but the one for {split.value} items has none: "
            "fill its file or name another split"
        )
    _check_wanted(n_wanted, split, task)
    if n_wanted is not None and n_wanted > n_documents:
        raise TaskError(
            f"{task}: a split must have as many documents as items are asked for, but "
            f"{n_wanted} {split.value} items are asked for and there are {n_documents}: "
            "ask for fewer"
        )
    order = np.random.default_rng([seed, list(Split).index(split)]).permutation(n_documents)
    return sorted(order[:n_wanted].tolist())


def divide(
    n_documents: int,
    digest: Callable[[int], str],
    n_search: int | None,
    n_held_out: int | None,
    seed: int,
    task: str,
) -> tuple[list[int], list[int]]:
    """Positions of search and held-out items when one split must serve for both, each sorted.

    The documents are taken in the order of one seeded permutation, search items first; of equal
    documents (by `digest`) only one is taken. With one count the other items are all the rest;
    without counts each split gets half. `n_held_out` may be 0.

    Raises:
        TaskError: when there are too few different documents.
    """
    _check_wanted(n_search, Split.SEARCH, task)
    _check_wanted(n_held_out, Split.HELD_OUT, task)
    order = np.random.default_rng([seed, len(Split)]).permutation(n_documents).tolist()
    n_needed = None if n_search is None or n_held_out is None else n_search + n_held_out
    different: dict[str, int] = {}
    for position in order:
        if n_needed is not None and len(different) == n_needed:
            break
        different.setdefault(digest(position), position)
    positions = list(different.values())
    if n_search is None:
        n_search = len(positions) - (len(positions) // 2 if n_held_out is None else n_held_out)
    if n_held_out is None:
        n_held_out = len(positions) - n_search
    if n_search < 1 or n_held_out < 0 or n_search + n_held_out > len(positions):
        raise TaskError(
            f"{task}: the documents must suffice for search and held-out items, but "
            f"{max(n_search, 1)} + {max(n_held_out, 0)} are needed and there are {len(positions)} "
            "different ones: ask for fewer or give the task a second split"
        )
    return sorted(positions[:n_search]), sorted(positions[n_search : n_search + n_held_out])


def share(
    n_wanted: int | Mapping[str, int] | None, sizes: Mapping[str, int], split: Split, task: str
) -> dict[str, int | None]:
    """How many items each of several subtasks gives; `sizes` are their numbers of documents.

    A mapping says so itself: a subtask that it leaves out gives all of its documents, as all do
    for None. A number is divided in proportion to the sizes, at least one item each (as seats by
    votes: Sainte-Lague).

    Raises:
        TaskError: when a mapping names an unknown subtask, or a number does not suffice for all.
    """
    if isinstance(n_wanted, Mapping):
        for name, n_items in n_wanted.items():
            if name not in sizes:
                close = get_close_matches(str(name), sizes, n=2)
                raise TaskError(
                    f"{task}: items are given for subtasks that there are, but {name!r} is none: "
                    + (f"did you mean {' or '.join(close)}?" if close else "check the name")
                )
            _check_wanted(n_items, split, f"{task}, {name}")
        return {name: n_wanted.get(name) for name in sizes}
    _check_wanted(n_wanted, split, task)
    if n_wanted is None or len(sizes) == 1 or n_wanted == 0:
        return dict.fromkeys(sizes, n_wanted)
    total = sum(sizes.values())
    if not len(sizes) <= n_wanted <= total:
        raise TaskError(
            f"{task}: there must be at least one item of each subtask and no more than there are, "
            f"but {n_wanted} {split.value} items are asked of {len(sizes)} subtasks with {total} "
            "documents: ask for another number, or give one for each subtask"
        )
    counts = dict.fromkeys(sizes, 1)
    waiting = [(-size / 3, name) for name, size in sizes.items()]
    heapq.heapify(waiting)
    for _ in range(n_wanted - len(sizes)):
        while counts[name := heapq.heappop(waiting)[1]] >= sizes[name]:
            pass
        counts[name] += 1
        heapq.heappush(waiting, (-sizes[name] / (2 * counts[name] + 1), name))
    return dict(counts)


def refuse_overlap(
    search: Sequence[str], held_out: Sequence[str], text: Callable[[int], str], task: str
) -> None:
    """Compare the digests of both splits; `text` shows a held-out item by its position.

    Raises:
        TaskError: when a held-out item is also a search item.
    """
    searched = set(search)
    both = [position for position, digest in enumerate(held_out) if digest in searched]
    if both:
        raise TaskError(
            f"{task}: held-out items must not be search items, but {len(both)} of {len(held_out)} "
            f"are (the first: {shorten(text(both[0]), 60)!r}): remove them from one of the splits"
        )


def _check_wanted(n_wanted: int | None, split: Split, task: str) -> None:
    least = 1 if split is Split.SEARCH else 0
    if n_wanted is not None and not isinstance(n_wanted, int):
        raise TaskError(
            f"{task}: the items of a task are given as a number, or one for each of several tasks, "
            f"but {split.value} items are {n_wanted!r}: give how many, or leave it out to take all"
        )
    if n_wanted is not None and n_wanted < least:
        raise TaskError(
            f"{task}: there must be at least {least} {split.value} items, but {n_wanted} are "
            "asked for: ask for more, or leave the count out to take all"
        )
