import pytest

from evomerge.datatypes import Split
from evomerge.errors import TaskError
from fitness.items import share

SIZES = {"a": 100, "b": 50, "c": 3}


@pytest.mark.parametrize(
    ("n_wanted", "expected"),
    [
        (None, [None, None, None]),
        (0, [0, 0, 0]),
        (3, [1, 1, 1]),
        (15, [9, 5, 1]),
        (152, [99, 50, 3]),
        (153, [100, 50, 3]),
        ({"b": 7}, [None, 7, None]),
        ({"a": 0, "b": 1, "c": 2}, [0, 1, 2]),
    ],
)
def test_items_are_shared_by_size_and_each_subtask_gets_one(n_wanted, expected):
    assert list(share(n_wanted, SIZES, Split.HELD_OUT, "all").values()) == expected


def test_a_single_task_gets_what_is_asked():
    assert share(7, {"a": 3}, Split.SEARCH, "a") == {"a": 7}  # refused where they are drawn


def test_more_items_keep_or_add_to_each_subtask():
    before = share(3, SIZES, Split.SEARCH, "all")
    for n_wanted in range(4, 154):
        after = share(n_wanted, SIZES, Split.SEARCH, "all")
        assert sum(after.values()) == n_wanted
        assert all(before[name] <= after[name] <= SIZES[name] for name in SIZES)
        before = after


@pytest.mark.parametrize(
    ("n_wanted", "fact"),
    [
        (2, "2 search items are asked of 3 subtasks with 153 documents"),
        (154, "154 search items are asked of 3 subtasks"),
        ({"aa": 1}, "'aa' is none: did you mean a?"),
        ({"a": "many"}, "search items are 'many'"),
        ({"a": 0}, "at least 1 search items"),
    ],
)
def test_numbers_that_cannot_be_shared_are_refused(n_wanted, fact):
    with pytest.raises(TaskError, match=r"all: |all, a: ") as caught:
        share(n_wanted, SIZES, Split.SEARCH, "all")
    assert fact in str(caught.value)
