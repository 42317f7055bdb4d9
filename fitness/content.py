"""Digests of items that may be anything: by content, so that they are the same on every worker."""

import hashlib
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from evomerge.datatypes import digest_of
from evomerge.errors import TaskError


def digest_content(item: Any, where: str) -> str:
    """16 hex digits that tell items apart.

    By content: JSON types, bytes, numpy arrays and numbers, torch tensors, PIL images, and lists,
    tuples and mappings of these. A mapping with a key `digest`, or an object with an attribute of
    that name, is told by that text alone.

    Raises:
        TaskError: when something else is in the item; `where` says which item it is.
    """
    return digest_of(_plain(item, where))


def _plain(item: Any, where: str) -> Any:
    """The same for equal contents, in JSON's types."""
    match item:
        case None | bool() | int() | str():
            return item
        case float():
            # JSON knows no NaN and no infinity.
            return item if np.isfinite(item) else {"float": str(item)}
        case bytes() | bytearray():
            return {"bytes": _hash(bytes(item))}
        case Mapping():
            return _plain_mapping(item, where)
        case list() | tuple():
            return [_plain(one, where) for one in item]
        case np.generic() | np.ndarray():
            array = np.asarray(item)
            if not array.dtype.hasobject:
                return {"array": [str(array.dtype), list(array.shape), _hash(array.tobytes())]}
    torch, image = sys.modules.get("torch"), sys.modules.get("PIL.Image")
    if torch is not None and isinstance(item, torch.Tensor) and item.layout == torch.strided:
        dense = item.detach().cpu().contiguous().reshape(-1)
        content = dense.view(torch.uint8).numpy().tobytes()
        return {"tensor": [str(item.dtype), list(item.shape), _hash(content)]}
    if image is not None and isinstance(item, image.Image):
        palette = item.getpalette() if item.mode == "P" else None
        return {"image": [item.mode, list(item.size), _hash(item.tobytes()), palette]}
    own = getattr(item, "digest", None)
    if isinstance(own, str):
        return {"digest": own}
    raise TaskError(
        f"{where}: items are told apart by content (JSON types, bytes, arrays, tensors, images), "
        f"but this one holds a {type(item).__module__}.{type(item).__qualname__}: give the item a "
        "key or an attribute `digest`, a text that no other item has"
    )


def _plain_mapping(item: Mapping[Any, Any], where: str) -> Any:
    own = item.get("digest")
    if isinstance(own, str):
        return {"digest": own}
    if all(isinstance(key, str) for key in item):
        return {key: _plain(value, where) for key, value in item.items()}
    pairs = [[_plain(key, where), _plain(value, where)] for key, value in item.items()]
    return {"mapping": sorted(pairs, key=digest_of)}


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
