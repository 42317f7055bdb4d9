"""Adam's second moments, which a user kept of the training of an expert."""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from evomerge.checkpoints.digests import digest_tensors, remembered
from evomerge.checkpoints.reading import Checkpoint
from evomerge.checkpoints.weights import open_weights
from evomerge.errors import CheckpointError, ConfigError


class SecondMoments:
    """A safetensors file with the `exp_avg_sq` of weights, under the weights' names.

    Attributes:
        digest: Content address.
    """

    def __init__(self, expert: str, path: str, base: Checkpoint) -> None:
        file = Path(path).expanduser()
        where = f"space.statistics.second_moments.{expert}"
        if file.suffix != ".safetensors" or not file.is_file():
            raise ConfigError(
                f"{where} is a safetensors file with the exp_avg_sq of the expert's Adam, but "
                f"{path} is not: save them under the names of the weights"
            )
        try:
            self._weights = open_weights(file.parent, file.stem)
        except CheckpointError as error:
            raise ConfigError(f"{where}: {error}") from error
        facts = self._weights.facts
        self._names = sorted(facts.keys() & base.tensors.keys())
        if not self._names:
            raise ConfigError(
                f"{where} has tensors under the names of the base's weights, but {path} has none "
                f"such as {next(iter(base.tensors))}: rename them"
            )
        for name in self._names:
            if facts[name].shape != base.tensors[name].shape:
                raise ConfigError(
                    f"{where} has a number for every number of a weight, but {name} in {path} is "
                    f"{list(facts[name].shape)} instead of {list(base.tensors[name].shape)}: save "
                    "them unflattened and unsharded"
                )

        def checked() -> Iterator[tuple[str, Tensor]]:
            for name in self._names:
                values = self._weights.read(name)
                if values.numel() and float(values.min()) < 0.0:
                    raise ConfigError(
                        f"second moments are means of squares, but some of {name} in {path} are "
                        "negative: save exp_avg_sq, not exp_avg"
                    )
                yield name, values

        identity = ["second_moments", self._names]
        self.digest = remembered([file], identity, lambda: digest_tensors(checked(), file))

    def read(self, name: str) -> Tensor | None:
        """Of a weight, `exp_avg_sq` in fp32; None if the file lacks it."""
        return self._weights.read(name).to(torch.float32) if name in self._names else None

    def release(self) -> None:
        """Unmap the file as soon as nothing read from it is in use; reading maps it again."""
        self._weights.release()
