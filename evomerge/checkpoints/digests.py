"""Content digests of weights: one pass over all bytes, remembered between runs."""

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import platformdirs
import torch

from evomerge.datatypes import digest_of
from evomerge.errors import CheckpointError


def check_finite(tensor: torch.Tensor, where: str) -> None:
    """Refuse NaN and infinity; `where` names the file and the tensor.

    Raises:
        CheckpointError: With the number of values that are not finite.
    """
    # The extremes show NaN and infinity alike, in one pass without temporaries.
    if tensor.numel() == 0 or bool(torch.isfinite(torch.stack(torch.aminmax(tensor))).all()):
        return
    n_bad = int((~torch.isfinite(tensor)).sum())
    raise CheckpointError(
        f"weights must be finite, but {n_bad} of {tensor.numel()} values of {where} are NaN or "
        "infinite: download the checkpoint again, or use one from before the training diverged"
    )


def digest_tensors(named: Iterable[tuple[str, torch.Tensor]], where: Path) -> str:
    """16 hex digits over names, shapes, dtypes and bytes, whatever the order and the files.

    The pass also refuses non-finite values, so that every byte is read once only.

    Raises:
        CheckpointError: A tensor holds NaN or infinity.
    """

    def digest(item: tuple[str, torch.Tensor]) -> list[Any]:
        name, tensor = item
        check_finite(tensor, f"{name} in {where}")
        content: Any = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
        return [name, list(tensor.shape), str(tensor.dtype), hashlib.sha256(content).hexdigest()]

    # hashlib and torch release the interpreter for large tensors.
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        return digest_of(sorted(pool.map(digest, named)))


def cache_folder() -> Path:
    """Where digests are remembered: `EVOMERGE_CACHE`, or the user's cache folder."""
    override = os.environ.get("EVOMERGE_CACHE")
    return Path(override) if override else Path(platformdirs.user_cache_dir("evomerge"))


def remembered(files: Iterable[Path], identity: Any, compute: Callable[[], str]) -> str:
    """`compute()`, once for the same files (real path, size, time of change) and identity.

    One small file per digest: several processes may write at once and none loses anything. A
    cache folder that cannot be written costs time, not the run.
    """
    stats = [(os.path.realpath(file), file.stat()) for file in files]
    facts = [[path, stat.st_size, stat.st_mtime_ns] for path, stat in stats]
    key = digest_of([sorted(facts), identity])
    memo = cache_folder() / "digests" / f"{key}.json"
    try:
        return str(json.loads(memo.read_text(encoding="utf-8"))["digest"])
    except (OSError, ValueError, KeyError, TypeError):
        digest = compute()
    try:
        memo.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            "w", dir=memo.parent, suffix=".tmp", delete=False, encoding="utf-8"
        ) as file:
            json.dump({"digest": digest, "files": facts}, file)
        Path(file.name).replace(memo)
    except OSError:
        pass
    return digest
