"""PEFT LoRA adapters as experts: low-rank factors over a base."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import torch

from evomerge.checkpoints.compatibility import check_finite, vocabulary_warning
from evomerge.checkpoints.digests import digest_tensors
from evomerge.checkpoints.hub import local_folder
from evomerge.checkpoints.reading import Checkpoint
from evomerge.checkpoints.weights import Weights, open_weights, read_json
from evomerge.datatypes import digest_of
from evomerge.errors import CheckpointError, IncompatibleError

Factors = tuple[torch.Tensor, torch.Tensor, float]

# Elements of a product that are made at once.
_BLOCK = 1 << 16

_PREFIX = "base_model.model."
_FACTOR = re.compile(
    r"(?P<module>.+)\.lora_(?P<e>embedding_)?(?P<side>[AB])(?:\.default)?(\.weight)?"
)
_LORA_BIAS = re.compile(r"(?P<module>.+)\.lora_B(?:\.default)?\.bias")
# Settings under which the saved factors are not the whole, fixed change of the weights.
_UNSUPPORTED = {
    "use_dora": "DoRA",
    "use_qalora": "QALoRA",
    "use_bdlora": "BD-LoRA",
    "alora_invocation_tokens": "activated LoRA",
    "arrow_config": "Arrow routing",
    "layer_replication": "layer replication",
    "target_parameters": "targeted parameters",
    "trainable_token_indices": "trainable tokens",
    "kasa_config": "KaSA",
    "monteclora_config": "MonteCLoRA",
    "velora_config": "VeLoRA",
}
# Initialisations that also change the base: against the true base the factors mean nothing.
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


@dataclass(frozen=True, slots=True)
class _Pair:
    """The names in the file of both factors of a weight, and how they become its change."""

    a: str
    b: str
    scale: float
    transposed: bool


class Adapter:
    """A LoRA adapter over a base; deltas have the layout of the base's weights.

    For a weight of shape `(out, in)` the delta is `scale * B @ A` with `A` of shape `(r, in)` and
    `B` of shape `(out, r)`. For weights that are stored transposed (GPT-2's Conv1D, embeddings)
    the factors are swapped, so that the formula stays true.
    """

    def __init__(
        self,
        *,
        name: str,
        path: Path,
        base: Checkpoint,
        config: Mapping[str, Any],
        weights: Weights,
        pairs: Mapping[str, _Pair],
        full: Mapping[str, str],
        biases: Mapping[str, tuple[str, float]],
        warnings: tuple[str, ...],
    ) -> None:
        self.name = name
        self.path = path
        self.base = base
        self.config = config
        self.warnings = warnings
        self._weights = weights
        self._pairs = pairs
        self._full = full
        self._biases = biases

    @classmethod
    def open(
        cls,
        path: str | Path,
        base: Checkpoint,
        *,
        name: str | None = None,
        revision: str | None = None,
        allow_pickle: bool = False,
    ) -> Self:
        """Open an adapter folder or Hub id and find the base's weight of every factor.

        Raises:
            CheckpointError: Files are missing or truncated, or the adapter is of another kind.
            IncompatibleError: A module or a shape is not the base's.
        """
        folder = local_folder(path, revision=revision, allow_pickle=allow_pickle)
        config = read_json(folder / "adapter_config.json")
        name = name or folder.name
        _refuse_unsupported(folder, config)
        weights = open_weights(folder, "adapter_model", allow_pickle=allow_pickle)
        sides: dict[str, dict[str, str]] = {}
        embeddings: set[str] = set()
        full: dict[str, str] = {}
        biases: dict[str, tuple[str, float]] = {}
        for key in sorted(weights.facts):
            stripped = key.removeprefix(_PREFIX)
            factor = _FACTOR.fullmatch(stripped)
            lora_bias = _LORA_BIAS.fullmatch(stripped)
            if factor:
                sides.setdefault(factor["module"], {})[factor["side"]] = key
                if factor["e"]:
                    embeddings.add(factor["module"])
            elif lora_bias:
                target = _target(base, lora_bias["module"], "bias", name, folder)
                rank_key = f"{_PREFIX}{lora_bias['module']}.lora_A.weight"
                if rank_key not in weights.facts:
                    raise _unknown(folder, key)
                rank = weights.facts[rank_key].shape[0]
                biases[target] = (key, _scale(config, lora_bias["module"], rank))
            elif re.search(r"lora_|token_adapter|\.trainable_", stripped):
                raise _unknown(folder, key)
            else:
                module, _, parameter = stripped.replace(".base_layer.", ".").rpartition(".")
                module = re.sub(r"\.modules_to_save(\.default)?$", "", module)
                target = _target(base, module, parameter, name, folder)
                other = full.setdefault(target, key)
                if not torch.equal(weights.read(other), weights.read(key)):
                    raise CheckpointError(
                        f"tied weights must be equal, but {folder} holds {other} and {key} with "
                        f"different values for {target}: give a base with untied embeddings"
                    )
        pairs: dict[str, _Pair] = {}
        tied_modules = []
        for module, pair in sides.items():
            if set(pair) != {"A", "B"}:
                raise _unknown(folder, next(iter(pair.values())))
            target = _target(base, module, "weight", name, folder)
            if target in pairs:
                raise CheckpointError(
                    f"a weight must have one pair of factors, but {folder} has two for the tied "
                    f"weight {target}: merge this adapter into its base with PEFT and give the "
                    "result"
                )
            if target != f"{module}.weight" and f"{module}.weight" in base.tied:
                tied_modules.append(module)
            rank = weights.facts[pair["A"]].shape[0]
            transposed = (
                bool(config.get("fan_in_fan_out"))
                or module in embeddings
                or base.modules.get(target.removesuffix(".weight")) == "Conv1D"
            )
            pairs[target] = _Pair(pair["A"], pair["B"], _scale(config, module, rank), transposed)
        adapter = cls(
            name=name,
            path=folder,
            base=base,
            config=config,
            weights=weights,
            pairs=pairs,
            full=full,
            biases=biases,
            warnings=(
                *_trained_on(name, config, base),
                *(
                    f"adapter {name} was trained on {module}, whose weight is tied: merging also "
                    "changes the other end of the tie"
                    for module in tied_modules
                ),
            ),
        )
        adapter._check_shapes()
        return adapter

    @cached_property
    def digest(self) -> str:
        """16 hex digits over all tensors and the settings that scale them.

        Raises:
            CheckpointError: A tensor holds NaN or infinity.
        """
        keys = ("r", "lora_alpha", "alpha_pattern", "rank_pattern", "use_rslora", "fan_in_fan_out")
        named = ((name, self._weights.read(name)) for name in self._weights.facts)
        content = digest_tensors(named, self.path)
        return digest_of([content, {key: self.config.get(key) for key in keys}])

    @property
    def n_bytes(self) -> int:
        """The size of the adapter's tensors."""
        return sum(facts.n_bytes for facts in self._weights.facts.values())

    def factors(self, name: str) -> Factors | None:
        """`A` `(r, columns)`, `B` `(rows, r)`, both fp32, and the scale, or None.

        None if the weight is untouched or also changed as a whole: then only `delta` tells. (PEFT
        saves embeddings whole beside their factors, but mostly as the base has them.)

        Raises:
            CheckpointError: A factor holds NaN or infinity.
        """
        pair = self._pairs.get(name)
        if pair is None or self._replaced(name) is not None:
            return None
        return (*self._factors(pair), pair.scale)

    def delta(self, name: str, start: int = 0, stop: int | None = None) -> torch.Tensor | None:
        """Elements `start` to `stop` of the flattened change in fp32, or None if untouched.

        Of `B @ A` only the rows that the elements lie in are made, a few more at both ends.

        Raises:
            CheckpointError: A tensor holds NaN or infinity.
        """
        if stop is None:
            stop = self.base.tensors[name].n_parameters
        total = self._replaced(name, start, stop)
        if name in self._biases:
            key, scale = self._biases[name]
            bias = self._finite(key, self._weights.read(key).reshape(-1)[start:stop])
            change = scale * bias.float()
            total = change if total is None else total + change
        if name in self._pairs:
            change = self._product(name, start, stop)
            total = change if total is None else total + change
        return total

    def n_rows(self, name: str) -> int:
        """Rows of the weight as the adapter stores it; the base's if it stores factors only."""
        if name in self._full:
            return self._weights.facts[self._full[name]].shape[0]
        return self.base.tensors[name].shape[0]

    def rows(self, name: str, ids: torch.Tensor) -> torch.Tensor:
        """These rows of the adapted weight."""
        shape = self.base.tensors[name].shape
        if name in self._full and bool((ids >= shape[0]).any()):
            return self._weights.read(self._full[name])[ids]
        W0, change = self.base.read(name)[ids], self.delta(name)
        return W0 if change is None else W0.float() + change.reshape(shape)[ids]

    def release(self) -> None:
        """Unmap the files as soon as nothing read from them is in use; reading maps them again."""
        self._weights.release()

    def _replaced(self, name: str, start: int = 0, stop: int | None = None) -> torch.Tensor | None:
        """The change to a weight that was saved as a whole, flat; None if there is none."""
        if name not in self._full:
            return None
        key = self._full[name]
        theirs = self._weights.read(key)
        return self.base.change_to(theirs, f"{key} in {self.path}", name, start, stop)

    def _product(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Elements `start` to `stop` of `scale * B @ A`, flattened.

        The last bits of a matrix product depend on how many rows it has and how they lie in
        memory: rows are multiplied in blocks that begin at fixed places, each a copy.
        """
        pair = self._pairs[name]
        n_rows, n_columns = self.base.tensors[name].shape
        block = max(1, _BLOCK // n_columns)
        first = start // (block * n_columns) * block
        rows = range(first, min(n_rows, -(-stop // n_columns)), block)
        A, B = self._factors(pair, slice(first, rows[-1] + block))
        made = torch.cat([B[row - first : row - first + block].clone() @ A for row in rows])
        offset = first * n_columns
        return pair.scale * made.reshape(-1)[start - offset : stop - offset]

    def _factors(self, pair: _Pair, rows: slice = slice(None)) -> tuple[torch.Tensor, torch.Tensor]:
        """`A` and those rows of `B`, both fp32."""
        a, b = (pair.b, pair.a) if pair.transposed else (pair.a, pair.b)
        A, B = self._weights.read(a), self._weights.read(b)
        if pair.transposed:
            A, B = A.T, B.T
        return self._finite(a, A).float(), self._finite(b, B[rows]).float()

    def _finite(self, key: str, tensor: torch.Tensor) -> torch.Tensor:
        check_finite(tensor, f"{key} in {self.path}")
        return tensor

    def _check_shapes(self) -> None:
        shape_of = {key: facts.shape for key, facts in self._weights.facts.items()}
        for name, pair in self._pairs.items():
            a, b = shape_of[pair.a], shape_of[pair.b]
            made: tuple[int, ...] = ()
            if len(a) == len(b) == 2 and a[0] == b[1]:
                made = (a[1], b[0]) if pair.transposed else (b[0], a[1])
            self._refuse_unless(made == self.base.tensors[name].shape, name, (a, b))
        for name, (key, _) in self._biases.items():
            self._refuse_unless(shape_of[key] == self.base.tensors[name].shape, name, shape_of[key])
        rows: set[tuple[int, int]] = set()
        for name, key in self._full.items():
            ours, theirs = self.base.tensors[name].shape, shape_of[key]
            if ours != theirs and ours[1:] == theirs[1:] and ours[:1] == (self.base.vocab_size,):
                rows.add((theirs[0], ours[0]))
            else:
                self._refuse_unless(ours == theirs, name, theirs)
        self.warnings += tuple(vocabulary_warning(self.name, *pair) for pair in sorted(rows))

    def _refuse_unless(self, fits: bool, name: str, found: object) -> None:
        if not fits:
            raise IncompatibleError(
                f"an adapter must fit its base, but adapter {self.name} ({self.path}) has {found} "
                f"for {name} of shape {self.base.tensors[name].shape}: give the base it was "
                f"trained on ({self.config.get('base_model_name_or_path')})"
            )


def _scale(config: Mapping[str, Any], module: str, rank: int) -> float:
    """PEFT's scaling: alpha / r, or alpha / sqrt(r) for rank-stabilised LoRA (Kalajdzievski 2023).

    The rank is the factor's own, so `rank_pattern` need not be consulted.
    """
    alpha = float(config.get("lora_alpha", 8))
    for pattern, value in (config.get("alpha_pattern") or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            alpha = float(value)
            break
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _target(base: Checkpoint, module: str, parameter: str, name: str, folder: Path) -> str:
    target = base.canonical(f"{module}.{parameter}")
    if target is None:
        raise IncompatibleError(
            f"an adapter must fit its base, but adapter {name} ({folder}) changes "
            f"{module}.{parameter}, which {base.source} ({base.architecture}) lacks: give the base "
            "it was trained on"
        )
    return target


def _refuse_unsupported(folder: Path, config: Mapping[str, Any]) -> None:
    peft_type = config.get("peft_type")
    if peft_type != "LORA":
        raise CheckpointError(
            f"an adapter must be LoRA, but {folder} is {peft_type}: merge it into its base with "
            "PEFT and give the result"
        )
    for key, what in _UNSUPPORTED.items():
        if config.get(key):
            raise CheckpointError(
                f"an adapter must be plain LoRA, but {folder} uses {what} ({key}): merge it into "
                "its base with PEFT and give the result"
            )
    init = str(config.get("init_lora_weights", "")).lower()
    if init.startswith(_CHANGES_BASE):
        raise CheckpointError(
            f"an adapter must be relative to the published base, but {folder} was initialised with "
            f"{init}, which changes it: save it with "
            "path_initial_model_for_weight_conversion, or merge it with PEFT"
        )


def _unknown(folder: Path, key: str) -> CheckpointError:
    return CheckpointError(
        f"an adapter must hold pairs of LoRA factors and whole weights, but {folder} holds {key}: "
        "merge it into its base with PEFT and give the result"
    )


def _trained_on(name: str, config: Mapping[str, Any], base: Checkpoint) -> list[str]:
    trained_on = config.get("base_model_name_or_path")
    if not trained_on or Path(str(trained_on)).name == Path(base.source).name:
        return []
    return [f"adapter {name} was trained on {trained_on} and is used on {base.source}"]
