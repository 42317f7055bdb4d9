"""The lazily opened model folder."""

import contextlib
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch

from evomerge.checkpoints.anatomy import role_of
from evomerge.checkpoints.companions import CODE, MODEL_FILES, TOKENIZER_FILES, read_files
from evomerge.checkpoints.digests import check_finite, digest_tensors, remembered
from evomerge.checkpoints.hub import local_folder
from evomerge.checkpoints.skeleton import Skeleton, skeleton_of
from evomerge.checkpoints.vocabulary import Vocabulary, read_chat_template, read_vocabulary
from evomerge.checkpoints.weights import (
    FLOAT_DTYPES,
    TensorFacts,
    WeightFile,
    Weights,
    facts_of,
    open_weights,
    read_json,
)
from evomerge.errors import CheckpointError

if TYPE_CHECKING:
    from torch import nn

__all__ = ["Checkpoint", "TensorFacts"]

# Buffers that old versions of transformers saved and new ones compute.
_COMPUTED = ("inv_freq", "attn.bias", "attention.bias", "masked_bias", "position_ids")


class Checkpoint:
    """A model folder, opened lazily: names, shapes and ties first, bytes when they are read.

    Names are those of the state dict of the transformers model that `config.json` describes,
    whatever the files call them; every weight is there exactly once. Opening raises every error
    that does not need the weights' values; those are checked by `digest` in the same pass.

    Attributes:
        path: Absolute folder.
        source: What the user gave: a path or a Hub id.
        config: `config.json`.
        tensors: Every floating-point weight once, in the order of the state dict.
        tied: Alias to owner; aliases are not in `tensors`.
        constants: Integer tensors of the files: carried along, never merged.
        modules: Module path to class name; empty if transformers has no such model type.
        notes: What was ignored or converted while opening.
        trust_remote_code: Whether the user allowed the folder's own code.
    """

    def __init__(
        self,
        *,
        path: Path,
        source: str,
        config: dict[str, Any],
        weights: Weights,
        names: Mapping[str, str],
        tied: Mapping[str, str],
        skeleton: Skeleton | None,
        notes: tuple[str, ...],
        trust_remote_code: bool,
    ) -> None:
        facts = {
            name: TensorFacts(name, weights.facts[key].shape, weights.facts[key].dtype)
            for name, key in names.items()
        }
        self.path = path
        self.source = source
        self.config = config
        self.tensors: Mapping[str, TensorFacts] = {
            name: fact for name, fact in facts.items() if fact.dtype in FLOAT_DTYPES
        }
        self.constants: Mapping[str, TensorFacts] = {
            name: fact for name, fact in facts.items() if fact.dtype not in FLOAT_DTYPES
        }
        self.tied = tied
        self.modules: Mapping[str, str] = skeleton.modules if skeleton else {}
        self.notes = notes
        self.trust_remote_code = trust_remote_code
        self._weights = weights
        self._names = names
        self._skeleton = skeleton

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        revision: str | None = None,
        allow_pickle: bool = False,
        trust_remote_code: bool = False,
    ) -> Self:
        """Open a folder or a Hub id.

        Raises:
            CheckpointError: The folder or a file is missing or truncated, weights are pickled or
                code is remote without the flag, weights are quantised, or names and shapes do not
                fit `config.json`.
        """
        folder = local_folder(
            path,
            revision=revision,
            allow_pickle=allow_pickle,
            trust_remote_code=trust_remote_code,
        )
        if not (folder / "config.json").is_file() and (folder / "adapter_config.json").is_file():
            raise CheckpointError(
                f"a base must be a full model, but {folder} is a PEFT adapter: list it under "
                "experts and give the model it was trained on as base"
            )
        config = read_json(folder / "config.json")
        _refuse_quantised(folder, config)
        weights = open_weights(folder, allow_pickle=allow_pickle)
        _refuse_exotic(folder, weights)
        skeleton = skeleton_of(folder, config, trust_remote_code=trust_remote_code)
        if skeleton is None:
            names, tied = {name: name for name in weights.facts}, dict[str, str]()
            notes = [f"transformers has no model type {config.get('model_type')!r}: names as filed"]
        else:
            names, ignored = _names_in_files(skeleton, weights)
            missing = _missing(skeleton, names)
            computed = [name for name in ignored if name.endswith(_COMPUTED)]
            unknown = [name for name in ignored if not name.endswith(_COMPUTED)]
            notes = [f"ignored computed buffers: {_some(computed)}"] if computed else []
            if missing and unknown:
                # transformers may fuse tensors while loading (mixtures of experts): let it.
                weights, missing = _converted(folder, skeleton, allow_pickle, trust_remote_code)
                names = {name: name for name in weights.facts}
                notes.append("converted by transformers while loading: read into memory as a whole")
            elif unknown:
                notes.append(f"ignored unknown tensors: {_some(unknown)}")
            if missing:
                raise CheckpointError(
                    f"files must hold every weight of the model, but {folder} lacks "
                    f"{_some(missing)} of {skeleton.model_class.__name__}: copy or download it "
                    "again"
                )
            _check_shapes(folder, skeleton, weights, names)
            names, tied, untied = _each_once(skeleton, weights, names)
            notes += untied
        return cls(
            path=folder,
            source=str(path),
            config=config,
            weights=weights,
            names=names,
            tied=tied,
            skeleton=skeleton,
            notes=tuple(notes),
            trust_remote_code=trust_remote_code,
        )

    @property
    def architecture(self) -> str:
        """The name of the model class; the model type if the configuration names none."""
        named = self.config.get("architectures") or []
        return str(named[0] if named else self.config.get("model_type", "unknown"))

    @property
    def model_class(self) -> Any:
        """The transformers class whose state dict `tensors` names, or None if there is none."""
        return self._skeleton.model_class if self._skeleton else None

    @property
    def settings(self) -> Mapping[str, Any]:
        """The configuration with transformers' defaults filled in and names brought up to date."""
        return self._skeleton.config if self._skeleton else self.config

    @property
    def files(self) -> tuple[Path, ...]:
        """The weight files."""
        return self._weights.files

    @property
    def n_bytes(self) -> int:
        """The size of all weights, each counted once."""
        return sum(facts.n_bytes for facts in self.tensors.values())

    @property
    def vocab_size(self) -> int | None:
        """The number of rows of the token embedding, or None if the model has none."""
        for settings in (self.settings, self.settings.get("text_config") or {}):
            if isinstance(settings.get("vocab_size"), int):
                return int(settings["vocab_size"])
        rows = [
            facts.shape[0]
            for name, facts in self.tensors.items()
            if role_of(name) == (None, "embed") and len(facts.shape) == 2
        ]
        return max(rows, default=None)

    @property
    def dtype(self) -> str:
        """The dtype of most weights."""
        sizes: dict[str, int] = {}
        for facts in self.tensors.values():
            sizes[facts.dtype] = sizes.get(facts.dtype, 0) + facts.n_parameters
        return max(sorted(sizes), key=lambda dtype: sizes[dtype], default="float32")

    @cached_property
    def vocabulary(self) -> Vocabulary | None:
        """The tokenizer's tokens, ids and merges, or None without a tokenizer.

        Raises:
            CheckpointError: The tokenizer's file cannot be read.
        """
        return read_vocabulary(self.path)

    @property
    def tokenizer_digest(self) -> str | None:
        """16 hex digits over tokens, ids and merges only, or None without a tokenizer."""
        return self.vocabulary.digest if self.vocabulary else None

    @cached_property
    def chat_template(self) -> str | None:
        """The chat template, or None."""
        return read_chat_template(self.path)

    @cached_property
    def digest(self) -> str:
        """16 hex digits over names, shapes, dtypes and bytes of all weights, however sharded.

        Reads every byte once and remembers the result (see `digests.remembered`).

        Raises:
            CheckpointError: A weight is NaN or infinite.
        """
        identity = [
            [name, self._names[name], list(facts.shape), facts.dtype]
            for name, facts in sorted(self.tensors.items())
        ]
        return remembered(
            self.files,
            identity,
            lambda: digest_tensors(((name, self.read(name)) for name in self.tensors), self.path),
        )

    def read(self, name: str) -> torch.Tensor:
        """A weight (or constant) on the CPU, backed by the file: do not write into it.

        Raises:
            KeyError: There is no such name; aliases are to be looked up in `tied`.
        """
        return self._weights.read(self._names[name])

    def change_to(
        self, theirs: torch.Tensor, where: str, name: str, start: int = 0, stop: int | None = None
    ) -> torch.Tensor | None:
        """Elements `start` to `stop` of `theirs` minus the weight `name`, flattened, in fp32.

        None if they are equal; zero in rows that only one of both has. `where` says what `theirs`
        is.

        Raises:
            CheckpointError: One of both is NaN or infinite there.
        """
        W0 = self.read(name).reshape(-1)[start:stop]
        W = theirs.reshape(-1)[start : start + len(W0)]
        shared = W0[: len(W)]
        if W.dtype == shared.dtype and torch.equal(W, shared):
            return None
        check_finite(W, where)
        check_finite(shared, f"{name} in {self.path}")
        change = W.to(torch.float32) - shared.to(torch.float32)
        return torch.nn.functional.pad(change, (0, len(W0) - len(W)))

    def vocabulary_weights(self) -> list[str]:
        """The weights with one row per token: embeddings and heads, in the order of `tensors`."""
        return [
            name
            for name, facts in self.tensors.items()
            if role_of(name) in ((None, "embed"), (None, "head"))
            and facts.shape[:1] == (self.vocab_size,)
        ]

    def companions(self) -> dict[str, bytes]:
        """The files that belong to the model besides weights and card, by name."""
        code = CODE if self.trust_remote_code else ()
        return read_files(self.path, (*MODEL_FILES, *TOKENIZER_FILES, *code))

    @contextlib.contextmanager
    def tokenizer_folder(self) -> Iterator[Path]:
        """A folder that the tokenizer can be loaded from while the context lasts."""
        yield self.path

    def fit(self, model: "nn.Module") -> None:
        """Give a model that was loaded from `path` the weights and settings that differ here."""

    def release(self) -> None:
        """Unmap the files as soon as no weight read is in use; reading maps them again."""
        self._weights.release()

    def file_name(self, name: str) -> str:
        """What the files call a weight."""
        return self._names[name]

    def canonical(self, name: str) -> str | None:
        """The name here of a weight that another file names alike, or None.

        Follows ties and tolerates a base-model prefix too many or too few.
        """
        for candidate in self._skeleton.spellings(name) if self._skeleton else [name]:
            owner = self.tied.get(candidate, candidate)
            if owner in self.tensors:
                return owner
        return None

    def __repr__(self) -> str:
        return f"Checkpoint({self.source!r}, {self.architecture}, {len(self.tensors)} tensors)"


def _names_in_files(skeleton: Skeleton, weights: Weights) -> tuple[dict[str, str], list[str]]:
    """Canonical name to file name in the order of the state dict, and what is left over."""
    found: dict[str, str] = {}
    ignored: list[str] = []
    # Exact names first: they win over names with a prefix too many or too few.
    for key in sorted(weights.facts, key=lambda key: (key not in skeleton.shapes, key)):
        spellings = skeleton.spellings(key)
        name = next((s for s in spellings if s in skeleton.shapes and s not in found), None)
        if name is None:
            ignored.append(key)
        else:
            found[name] = key
    return {name: found[name] for name in skeleton.shapes if name in found}, sorted(ignored)


def _missing(skeleton: Skeleton, names: Mapping[str, str]) -> list[str]:
    """Required names that are there neither under their own nor under a tied name."""
    owners = {skeleton.tied.get(name, name) for name in names}
    return sorted(name for name in skeleton.required if skeleton.tied.get(name, name) not in owners)


def _each_once(
    skeleton: Skeleton, weights: Weights, names: dict[str, str]
) -> tuple[dict[str, str], dict[str, str], list[str]]:
    """Drop aliases; a file may hold the owner, the alias, or both (as transformers accepts)."""
    names = dict(names)
    tied: dict[str, str] = {}
    notes = []
    for alias, owner in skeleton.tied.items():
        if alias in names and owner in names:
            if not torch.equal(weights.read(names[alias]), weights.read(names[owner])):
                notes.append(f"{alias} and {owner} should be tied and differ: kept apart")
                continue
            del names[alias]
        elif alias in names:
            names[owner] = names.pop(alias)
        tied[alias] = owner
    return {name: names[name] for name in skeleton.shapes if name in names}, tied, notes


def _converted(
    folder: Path, skeleton: Skeleton, allow_pickle: bool, trust_remote_code: bool
) -> tuple[Weights, list[str]]:
    """Let transformers load and convert the model; also what is missing even then."""
    files = open_weights(folder, allow_pickle=allow_pickle).files
    try:
        model, report = skeleton.model_class.from_pretrained(
            folder,
            dtype="auto",
            use_safetensors=not allow_pickle,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
        )
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"files must fit the model that config.json describes, but transformers cannot load "
            f"{folder} ({type(error).__name__}): copy or download it again"
        ) from error
    state = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    # In memory for good: no file holds the converted tensors.
    converted = WeightFile(lambda: (facts_of(state), state.__getitem__))
    return Weights(files, [converted]), sorted(report["missing_keys"])


def _check_shapes(
    folder: Path, skeleton: Skeleton, weights: Weights, names: Mapping[str, str]
) -> None:
    for name, key in names.items():
        shape, dtype = weights.facts[key].shape, weights.facts[key].dtype
        if name in skeleton.required and dtype not in FLOAT_DTYPES:
            raise CheckpointError(
                f"weights must be {', '.join(FLOAT_DTYPES)}, but {key} in {folder} is {dtype}: "
                "give a checkpoint that is not quantised"
            )
        if shape != skeleton.shapes[name]:
            raise CheckpointError(
                f"shapes must be those of config.json, but {key} in {folder} is {list(shape)} "
                f"instead of {list(skeleton.shapes[name])}: copy or download config.json and "
                "weights of the same version"
            )


def _refuse_quantised(folder: Path, config: Mapping[str, Any]) -> None:
    quantised = config.get("quantization_config")
    if quantised:
        method = quantised.get("quant_method", "unknown") if isinstance(quantised, dict) else "?"
        raise CheckpointError(
            f"weights must be floating-point numbers, but {folder} is quantised ({method}): give "
            "the original, or load it, call dequantize() and save it"
        )


def _refuse_exotic(folder: Path, weights: Weights) -> None:
    for name, facts in weights.facts.items():
        if not hasattr(torch, facts.dtype):
            raise CheckpointError(
                f"weights must be {', '.join(FLOAT_DTYPES)}, but {name} in {folder} is "
                f"{facts.dtype}: give a checkpoint that is not quantised"
            )


def _some(names: list[str]) -> str:
    """The first few of many names."""
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"
