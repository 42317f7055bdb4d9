"""Numbers by tensor as filters of mergekit: fragments of names, of which the first hit wins."""

from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import TypeVar

Key = TypeVar("Key", bound=Hashable)


def separate(keys: Mapping[str, Key]) -> list[tuple[str, Key]]:
    """Fragments of names that give every tensor its key when the first hit wins.

    A key whose tensors have a beginning in common that no other tensor has (dots included, so that
    `layers.1.` does not match layer 10) takes one fragment; where a beginning also matches tensors
    of other keys, those come first; tensors that cannot be told apart by it are named in full.

    Args:
        keys: For each tensor's name what it is to be told by.

    Returns:
        Pairs of fragment and key, in the order in which they are to be tried.
    """
    waiting: dict[Key, list[str]] = {}
    for name, key in keys.items():
        waiting.setdefault(key, []).append(name)
    chosen: list[tuple[str, Key]] = []
    while waiting:
        n_before = len(chosen)
        for key, names in list(waiting.items()):
            fragment = _common_beginning(names)
            if fragment and not any(fragment in other for other in _others(waiting, key)):
                chosen.append((fragment, key))
                del waiting[key]
        if len(chosen) == n_before:
            chosen.append(_whole_name(waiting))
    return chosen


def _whole_name(waiting: dict[Key, list[str]]) -> tuple[str, Key]:
    """Take out a name that is part of no other key's names, of the key that has the fewest.

    There is one: the longest of all names.
    """
    fewest_first = sorted(waiting, key=lambda key: len(waiting[key]))
    name, key = next(
        (name, key)
        for key in fewest_first
        for name in waiting[key]
        if not any(name in other for other in _others(waiting, key))
    )
    waiting[key].remove(name)
    if not waiting[key]:
        del waiting[key]
    return name, key


def _others(waiting: Mapping[Key, Sequence[str]], key: Key) -> Iterator[str]:
    return (name for k, names in waiting.items() if k != key for name in names)


def _common_beginning(names: Sequence[str]) -> str:
    """The longest common beginning that ends with a dot; of a single name, all but its last part.

    A name without a dot stands for itself.
    """
    first, last = min(names), max(names)
    n = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
    beginning = first[: first.rfind(".", 0, n) + 1]
    return beginning or (first if len(names) == 1 else "")
