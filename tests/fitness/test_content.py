import math
from collections import UserDict

import numpy as np
import torch
from PIL import Image

from evomerge.datatypes import digest_of
from fitness.content import digest_content


def test_items_are_told_apart_by_content():
    red, blue = Image.new("RGB", (2, 2), "red"), Image.new("RGB", (2, 2), "blue")
    different = [
        None,
        True,
        1,
        1.5,
        math.nan,
        "1",
        b"1",
        [1],
        [[1]],
        {"1": 1},
        {1: 1},
        {2: 1},
        np.arange(4),
        np.arange(4).reshape(2, 2),
        np.arange(4, dtype=np.float32),
        torch.arange(4),
        torch.arange(4, dtype=torch.float32),
        torch.zeros(2, dtype=torch.bfloat16),
        torch.tensor(1.0),
        red,
        blue,
        red.convert("L"),
        (red, 1),
        {"image": red, "label": 1},
    ]
    digests = [digest_content(item, "item") for item in different]
    assert len(set(digests)) == len(different)
    same = [
        (np.arange(8)[::2], np.array([0, 2, 4, 6])),
        (torch.arange(4).reshape(2, 2).T, torch.tensor([[0, 2], [1, 3]])),
        ((1, 2), [1, 2]),
        ({"a": 1, "b": 2}, UserDict({"b": 2, "a": 1})),
        ({1: 2, 3: 4}, {3: 4, 1: 2}),
        (red, red.copy()),
    ]
    for one, other in same:
        assert digest_content(one, "item") == digest_content(other, "item")
    assert digest_content({"a": [1, "x", None]}, "item") == digest_of({"a": [1, "x", None]})
