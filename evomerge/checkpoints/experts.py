"""What is merged into the base: full fine-tunes and adapters behind one promise."""

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol, Self

import torch

from evomerge.checkpoints.adapters import Adapter
from evomerge.checkpoints.compatibility import (
    check_architecture,
    check_tensors,
    check_tokenizer,
    identity_warning,
    setting_warnings,
)
from evomerge.checkpoints.hub import local_folder
from evomerge.checkpoints.reading import Checkpoint
from evomerge.checkpoints.vocabulary import VocabularyChoice, read_chat_template, read_vocabulary

_UNDECIDED = VocabularyChoice()


class Expert(Protocol):
    """A change of the base; `FullExpert` and `Adapter` keep this promise."""

    @property
    def name(self) -> str:
        """The user's name for it."""

    @property
    def path(self) -> Path:
        """Its absolute folder."""

    @property
    def digest(self) -> str:
        """Content address; computing it refuses non-finite weights."""

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the user should know, a sentence each."""

    def delta(self, name: str, start: int = 0, stop: int | None = None) -> torch.Tensor | None:
        """Elements `start` to `stop` of the flattened change of the base's weight `name`, in fp32.

        None if they do not change. The same numbers come however the weight is cut.
        """

    def n_rows(self, name: str) -> int:
        """How many rows it has for a weight of the vocabulary, which may be more than the base."""

    def rows(self, name: str, ids: torch.Tensor) -> torch.Tensor | None:
        """These rows of its own weight, or None if it has no such weight; all below `n_rows`."""

    def release(self) -> None:
        """Unmap its files as soon as nothing read from them is in use; reading maps them again."""


class FullExpert:
    """A fine-tuned checkpoint beside the base it came from."""

    def __init__(
        self,
        name: str,
        checkpoint: Checkpoint,
        base: Checkpoint,
        mapping: Mapping[str, str],
        warnings: tuple[str, ...],
    ) -> None:
        self.name = name
        self.checkpoint = checkpoint
        self.base = base
        self.warnings = warnings
        self._mapping = mapping

    @classmethod
    def of(
        cls,
        name: str,
        checkpoint: Checkpoint,
        base: Checkpoint,
        *,
        allow_tokenizer_mismatch: bool = False,
        vocabulary: VocabularyChoice = _UNDECIDED,
    ) -> Self:
        """Compare with the base.

        Raises:
            IncompatibleError: Architectures, tensors, shapes or tokenizers do not agree.
        """
        check_architecture(name, checkpoint, base)
        mapping, warnings = check_tensors(name, checkpoint, base)
        warnings += check_tokenizer(
            name,
            checkpoint.path,
            checkpoint.vocabulary,
            checkpoint.chat_template,
            base,
            allow_mismatch=allow_tokenizer_mismatch,
            choice=vocabulary,
        )
        warnings += setting_warnings(name, checkpoint, base)
        identical = identity_warning(name, checkpoint, base, mapping)
        if identical:
            warnings.append(identical)
        return cls(name, checkpoint, base, mapping, tuple(warnings))

    @property
    def path(self) -> Path:
        """The expert's absolute folder."""
        return self.checkpoint.path

    @property
    def digest(self) -> str:
        """The checkpoint's digest.

        Raises:
            CheckpointError: A weight is NaN or infinite.
        """
        return self.checkpoint.digest

    def delta(self, name: str, start: int = 0, stop: int | None = None) -> torch.Tensor | None:
        """Expert minus base in fp32: elements `start` to `stop`, flat; None if equal or lacking.

        Vocabulary rows that only one of both has are zero.

        Raises:
            CheckpointError: A weight is NaN or infinite.
        """
        theirs = self._mapping.get(name)
        if theirs is None:
            return None
        weight, where = self.checkpoint.read(theirs), f"{theirs} in {self.checkpoint.path}"
        return self.base.change_to(weight, where, name, start, stop)

    def n_rows(self, name: str) -> int:
        """Rows of the expert's weight; the base's if it lacks it."""
        theirs = self._mapping.get(name)
        return (self.base if theirs is None else self.checkpoint).tensors[theirs or name].shape[0]

    def rows(self, name: str, ids: torch.Tensor) -> torch.Tensor | None:
        """These rows of the expert's weight, or None if it lacks it."""
        theirs = self._mapping.get(name)
        return None if theirs is None else self.checkpoint.read(theirs)[ids]

    def release(self) -> None:
        """Unmap the expert's files; the base's stay."""
        self.checkpoint.release()


def open_expert(
    name: str,
    path: str | Path,
    base: Checkpoint,
    *,
    revision: str | None = None,
    allow_pickle: bool = False,
    trust_remote_code: bool = False,
    allow_tokenizer_mismatch: bool = False,
    vocabulary: VocabularyChoice = _UNDECIDED,
) -> Expert:
    """Open an adapter (a folder with `adapter_config.json`) or a full model and compare it.

    Raises:
        CheckpointError: The folder cannot be read.
        IncompatibleError: It cannot be merged with the base.
    """
    folder = local_folder(
        path, revision=revision, allow_pickle=allow_pickle, trust_remote_code=trust_remote_code
    )
    if (folder / "adapter_config.json").is_file():
        adapter = Adapter.open(folder, base, name=name, allow_pickle=allow_pickle)
        own = read_vocabulary(folder)
        if own is not None:
            adapter.warnings += tuple(
                check_tokenizer(
                    name,
                    folder,
                    own,
                    read_chat_template(folder),
                    base,
                    allow_mismatch=allow_tokenizer_mismatch,
                    choice=vocabulary,
                )
            )
        return adapter
    checkpoint = Checkpoint.open(
        folder, allow_pickle=allow_pickle, trust_remote_code=trust_remote_code
    )
    return FullExpert.of(
        name,
        checkpoint,
        base,
        allow_tokenizer_mismatch=allow_tokenizer_mismatch,
        vocabulary=vocabulary,
    )
