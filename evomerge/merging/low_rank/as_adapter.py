"""A merge of adapters as one PEFT adapter."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType

import torch
from safetensors.torch import save_file
from torch import Tensor

from evomerge.checkpoints.anatomy import Anatomy
from evomerge.checkpoints.experts import Expert
from evomerge.checkpoints.reading import Checkpoint
from evomerge.checkpoints.writing import new_folder
from evomerge.datatypes import Recipe
from evomerge.errors import CheckpointError, ConfigError, IncompatibleError
from evomerge.merging.deltas import rounded_deltas
from evomerge.merging.low_rank.stack import LowRank
from evomerge.merging.low_rank.stacks import Stacks, bound
from evomerge.merging.serial_threads import in_order
from evomerge.merging.survey import Survey
from evomerge.merging.variant import Source, Variant


def merged_factors(
    base: Checkpoint, experts: Sequence[Expert], anatomy: Anatomy, recipe: Recipe
) -> dict[str, LowRank]:
    """What a recipe adds to each weight, in factors; weights that stay the base's are left out.

    Raises:
        ConfigError: The operator does not merge factors.
        IncompatibleError: A weight is not merged in factors, or is tied to another one.
    """
    variant, stacks = Variant.of_recipe(recipe), Stacks(base, experts)
    if variant.operator.weigh is not None or not (variant.is_plain or variant.is_on_factors):
        raise ConfigError(
            f"an adapter holds factors, but {variant.operator.name} merges whole deltas: export "
            "the model, or search task_arithmetic or an operator on factors"
        )
    stacks.refuse_others(variant.operator)
    C = recipe.matrix()

    def source(name: str) -> Source:
        weight, deltas = base.read(name), rounded_deltas(base, experts, name)
        return Source(anatomy.roles[name], weight, deltas, stacks.of(name))

    survey = Survey.make(variant, base.tensors, source)

    def merge(name: str) -> LowRank | None:
        weights = C[:, anatomy.roles[name].group].tolist()
        stack = stacks.of(name)
        if stack is not None:
            return bound(variant, anatomy.roles[name], stack, survey)(weights)
        for expert, c in zip(experts, weights, strict=True):
            if c != 0.0 and expert.delta(name) is not None:
                raise IncompatibleError(
                    f"an adapter holds factors, but {expert.name} changes {name} as a whole: "
                    "export the model"
                )
        return None

    made = dict(zip(base.tensors, in_order(merge, base.tensors), strict=True))
    found = {name: change for name, change in made.items() if change is not None}
    for alias, owner in base.tied.items():
        if owner in found:
            raise IncompatibleError(
                f"an adapter changes one end of a tie only, but {alias} is tied to {owner}, which "
                "the merge changes: export the model"
            )
    return found


def truncated(factors: Mapping[str, LowRank], rank: int) -> tuple[dict[str, LowRank], float]:
    """The nearest factors of at most this rank, and the relative error of them all together.

    By an SVD of the small matrix between two QR decompositions, in float64; the error is the
    Frobenius norm of what is left out over that of the whole change.
    """
    found = list(in_order(partial(_truncate, rank=rank), factors.values()))
    total, lost = sum(t for _, t, _ in found), sum(x for _, _, x in found)
    error = (lost / total) ** 0.5 if total else 0.0
    return {name: change for name, (change, _, _) in zip(factors, found, strict=True)}, error


def write_adapter(
    folder: Path,
    base: Checkpoint,
    factors: Mapping[str, LowRank],
    *,
    card: str,
    extra_files: Mapping[str, str] = MappingProxyType({}),
) -> Path:
    """Write a folder that PEFT loads: the change of every weight is `B @ A`, with alpha = r.

    Raises:
        CheckpointError: There is nothing to write, or the folder is not empty or not writable.
    """
    if not factors:
        raise CheckpointError("an adapter changes something, but this merge is the base: export it")
    tensors: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    is_conv1d = False
    for name, (left, right) in factors.items():
        module = name.removesuffix(".weight")
        kind = base.modules.get(module, "Linear")
        is_conv1d |= kind == "Conv1D"
        A, B = (left, right.T) if kind in ("Conv1D", "Embedding") else (right, left.T)
        a, b = ("embedding_A", "embedding_B") if kind == "Embedding" else ("A.weight", "B.weight")
        for side, factor in ((a, A), (b, B)):
            tensors[f"base_model.model.{module}.lora_{side}"] = factor.float().contiguous().clone()
        ranks[module] = len(right)
    r = Counter(ranks.values()).most_common(1)[0][0]
    others = {module: rank for module, rank in ranks.items() if rank != r}
    source = Path(base.source)
    config = {
        "peft_type": "LORA",
        "task_type": None,
        # A local folder's place is nobody else's business.
        "base_model_name_or_path": source.name if source.is_absolute() else base.source,
        "r": r,
        "lora_alpha": r,
        "rank_pattern": others,
        "alpha_pattern": others,
        "target_modules": sorted(ranks),
        "fan_in_fan_out": is_conv1d,
        "lora_dropout": 0.0,
        "bias": "none",
        "inference_mode": True,
    }
    with new_folder(folder) as partial_folder:
        save_file(tensors, partial_folder / "adapter_model.safetensors", metadata={"format": "pt"})
        text = json.dumps(config, indent=2) + "\n"
        for name, content in {
            "adapter_config.json": text,
            "README.md": card,
            **extra_files,
        }.items():
            (partial_folder / name).write_text(content, encoding="utf-8")
    return folder.expanduser().absolute()


def _truncate(change: LowRank, rank: int) -> tuple[LowRank, float, float]:
    """The factors, the squared norm of the change, and of what is left out."""
    Q, R = torch.linalg.qr(change.left.double().T)
    P, T = torch.linalg.qr(change.right.double().T)
    U, S, Vt = torch.linalg.svd(R @ T.T, full_matrices=False)
    total, lost = float((S**2).sum()), float((S[rank:] ** 2).sum())
    if change.rank <= rank:
        return change, total, 0.0
    root = S[:rank].sqrt()
    left, right = (Q @ U[:, :rank] * root).T, (P @ Vt[:rank].T * root).T
    return LowRank(left.float(), right.float()), total, lost
