"""Fitness functions of a user that misbehave on purpose; importable by workers."""

import hashlib
import os
import signal
import time
from pathlib import Path
from typing import Any


def weight_norm(model: Any, tokenizer: Any, items: list[dict[str, Any]]) -> list[float]:
    """A number that depends on the weights, different per item."""
    total = float(sum(p.detach().double().abs().sum() for p in model.parameters()))
    return [total * (1.0 + item["x"]) for item in items]


def constant(model: Any, tokenizer: Any, items: list[dict[str, Any]]) -> list[float]:
    return [1.0 for _ in items]


def _calls(counter: str) -> int:
    """How often this was called in all processes together, this time included."""
    path = Path(counter)
    with path.open("a") as file:
        file.write("x")
    return len(path.read_text())


def misbehave(
    model: Any,
    tokenizer: Any,
    items: list[dict[str, Any]],
    *,
    how: str,
    when: list[int],
    counter: str,
) -> list[float]:
    """As `weight_norm`, but the calls listed in `when` (from 1) go wrong; empty: all do."""
    call = _calls(counter)
    if not when or call in when:
        match how:
            case "nan":
                return [float("nan")] * len(items)
            case "raise":
                raise RuntimeError("the user's own bug")
            case "memory":
                raise MemoryError("no more room")
            case "die":
                os.kill(os.getpid(), signal.SIGKILL)
            case "hang":
                time.sleep(3600)
    return weight_norm(model, tokenizer, items)


def noise(model: Any, tokenizer: Any, items: list[dict[str, Any]]) -> list[float]:
    """Right or wrong by chance: the same for the same weights and item, else unrelated."""
    weights = hashlib.sha256()
    for parameter in model.parameters():
        weights.update(parameter.detach().numpy().tobytes())
    seeds = [hashlib.sha256(weights.digest() + repr(item["x"]).encode()).digest() for item in items]
    return [float(seed[0] < 128) for seed in seeds]


def skill(
    model: Any, tokenizer: Any, items: list[dict[str, Any]], *, counter: str | None = None
) -> list[float]:
    """Right where the size of the weights passes the item's own threshold: smooth and paired."""
    if counter is not None:
        _calls(counter)
    size = float(sum(p.detach().double().abs().sum() for p in model.parameters()))
    return [
        float((size * (1.0 + 0.01 * item["x"])) % 1.0 < 0.5 + 0.02 * item["x"]) for item in items
    ]


def stumble(model: Any, tokenizer: Any, items: list[dict[str, Any]]) -> list[float]:
    """As `weight_norm`, but one item breaks every model that is asked it."""
    if any(item["x"] == 10.15 for item in items):
        raise RuntimeError("the item that nobody survives")
    return weight_norm(model, tokenizer, items)
