"""Answers to items as short text, without loss: how the journal keeps them.

500 right-or-wrong answers take 84 characters; other numbers take 4 bytes each where these hold
them exactly, else 8.
"""

import base64
import binascii
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from evomerge.datatypes import FloatArray
from evomerge.errors import JournalError


def pack(values: Sequence[float] | FloatArray) -> str:
    """The text of `(n,)` finite numbers: `kind:n:base64`."""
    numbers = np.asarray(values, dtype=np.float64).ravel()
    if np.isin(numbers, (0.0, 1.0)).all() and not np.signbit(numbers).any():
        return f"bits:{len(numbers)}:{_text(np.packbits(numbers.astype(np.uint8)))}"
    with np.errstate(over="ignore"):
        short = numbers.astype("<f4")
    if (short.astype(np.float64) == numbers).all():
        return f"f4:{len(numbers)}:{_text(short)}"
    return f"f8:{len(numbers)}:{_text(numbers.astype('<f8'))}"


def unpack(text: str) -> FloatArray:
    """The inverse of `pack`, shape `(n,)`.

    Raises:
        JournalError: when the text was not made by `pack`.
    """
    try:
        kind, count, packed = text.split(":")
        n, content = int(count), base64.b64decode(packed, validate=True)
        if kind == "bits":
            bits = np.unpackbits(np.frombuffer(content, dtype=np.uint8), count=n)
            return bits.astype(np.float64)
        values = np.frombuffer(content, dtype={"f4": "<f4", "f8": "<f8"}[kind])
        if len(values) != n:
            raise ValueError(f"{len(values)} numbers instead of {n}")
    except (ValueError, KeyError, binascii.Error) as error:
        raise JournalError(
            f"answers in a journal are packed numbers, but {text[:30]!r} is not ({error}): use the "
            "version of evomerge that wrote the run"
        ) from error
    return values.astype(np.float64)


def _text(array: NDArray[np.generic]) -> str:
    return base64.b64encode(array.tobytes()).decode("ascii")
