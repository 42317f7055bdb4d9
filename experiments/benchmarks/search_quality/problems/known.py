"""The best known hypervolumes, by which results are divided; `best_known.py` computes them."""

import json
from pathlib import Path

from . import has_instances

PATH = Path(__file__).parents[1] / "best_known.json"


def best_known() -> dict[str, float]:
    """What was computed so far, by `key_of`."""
    return json.loads(PATH.read_text(encoding="utf-8")) if PATH.exists() else {}


def key_of(name: str, seed: int) -> str:
    """Of a problem and, where it has several, of its instance."""
    return f"{name}/{seed}" if has_instances(name) else name
