"""Collecting what operators need besides the weights, once per expert and text."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol, Self

import torch
from torch import Tensor, nn

from evomerge.checkpoints.anatomy import Anatomy
from evomerge.checkpoints.experts import Expert
from evomerge.checkpoints.reading import Checkpoint
from evomerge.datatypes import Recipe, digest_of
from evomerge.errors import ConfigError, TaskError
from evomerge.merging.aids.fisher import fisher_information, parameters
from evomerge.merging.aids.forwards import longest, refuse_other_than_causal, refuse_unreadable
from evomerge.merging.aids.grams import grams, linear_layers, shared_inputs
from evomerge.merging.aids.kept import KeptAids, Plan
from evomerge.merging.aids.second_moments import SecondMoments
from evomerge.merging.aids.source import StatisticsSource
from evomerge.merging.aids.texts import read_texts, token_ids
from evomerge.merging.least_squares import FISHER, GRAM, INPUT_AXIS, SECOND_MOMENT
from evomerge.merging.materialize import merged_tensors
from evomerge.merging.operators import Statistics, get_operator
from evomerge.protocols import LiveModel

# Part of the key: to be raised when the same texts would give other numbers or another layout.
_FORMAT = 1

_REMEDIES = {
    GRAM: "name a file of unlabeled text in space.statistics.text",
    FISHER: "name a file of unlabeled text in space.statistics.text",
    SECOND_MOMENT: "name a file for every expert in space.statistics.second_moments",
}


def refuse_missing(
    operators: Iterable[str], source: StatisticsSource, experts: Collection[str]
) -> tuple[str, ...]:
    """What operators need, sorted, after a look at whether it is named; reads no file.

    Raises:
        ConfigError: An operator needs what the source does not name, or there is no such operator.
    """
    needs: dict[str, str] = {}
    for name in operators:
        operator = get_operator(name)
        needs.update(dict.fromkeys(operator.needs, operator.name))
    for need, operator_name in needs.items():
        lacking = ""
        if need == SECOND_MOMENT:
            lacking = ", ".join(name for name in experts if name not in source.second_moments)
        if lacking or (need != SECOND_MOMENT and source.text is None):
            raise ConfigError(
                f"{operator_name} weighs experts by statistics, but there is no {need}"
                f"{' of ' if lacking else ''}{lacking}: {_REMEDIES[need]}, or choose another "
                "operator"
            )
    return tuple(sorted(needs))


class _Kept(Protocol):
    """One aid of one expert."""

    digest: str

    def read(self, name: str) -> Tensor | None: ...

    def release(self) -> None: ...


class Collected:
    """The aids of all experts, in order; tensors are read when they are asked for.

    Attributes:
        digests: Content address of each aid.
    """

    def __init__(self, kept: Mapping[str, Sequence[_Kept]]) -> None:
        self._kept = kept
        self.digests: Mapping[str, str] = {
            aid: digest_of([one.digest for one in each]) for aid, each in kept.items()
        }

    @property
    def digest(self) -> str:
        """Content address of all of them."""
        return digest_of(dict(self.digests))

    def only(self, names: Sequence[str]) -> Self:
        """These aids alone, so that what is made with them does not depend on others.

        Raises:
            ConfigError: One was not collected.
        """
        for name in names:
            if name not in self._kept:
                raise ConfigError(
                    f"statistics are collected before a search, but {name} was not: "
                    f"{_REMEDIES[name]}"
                )
        return type(self)({name: self._kept[name] for name in names})

    def of(self, name: str) -> tuple[Statistics, ...]:
        """For each expert what is known of a weight, by aid; not to be written to."""
        n_experts = len(next(iter(self._kept.values()), ()))
        found: tuple[dict[str, Tensor], ...] = tuple({} for _ in range(n_experts))
        for aid, each in self._kept.items():
            for one, aids in zip(each, found, strict=True):
                tensor = one.read(name)
                if tensor is not None:
                    aids[aid] = tensor
                    if isinstance(one, KeptAids) and name in one.input_axes:
                        aids[INPUT_AXIS] = torch.tensor(one.input_axes[name])
        return found

    def release(self) -> None:
        """Unmap all files as soon as nothing read from them is in use; reading maps them again."""
        for each in self._kept.values():
            for one in each:
                one.release()


def collect(
    needs: Collection[str],
    source: StatisticsSource,
    base: Checkpoint,
    experts: Sequence[Expert],
    cache: Path,
    live: Callable[[], LiveModel],
) -> Collected:
    """Open what was collected, after collecting what is not there yet.

    Kept under `<cache>/aids/<key>/`, one folder per expert and aid; the key is a digest of base,
    expert, tokenizer, texts and length. One process collects, others wait. The last bits of
    activations depend on the machine: whoever shares the folder has the same numbers, and the
    digest is of the numbers themselves.

    Args:
        needs: Names of aids.
        source: Where they come from.
        base: What the experts change.
        experts: In the order of the recipes.
        cache: A folder.
        live: Called if something must be collected: a model that experts can be written into; its
            weights are then the last expert's.

    Raises:
        ConfigError: The source lacks something, or a file cannot be used.
        TaskError: The model has no tokenizer or cannot be run on text, or is not finite there.
        CheckpointError: The cache cannot be written, or is damaged.
    """
    kept: dict[str, Sequence[_Kept]] = {}
    for aid in sorted(set(needs)):
        if aid == SECOND_MOMENT:
            kept[aid] = [
                SecondMoments(e.name, source.second_moments[e.name], base) for e in experts
            ]
        else:
            kept[aid] = _collected_on_text(aid, source, base, experts, cache, live)
    return Collected(kept)


def _collected_on_text(
    aid: str,
    source: StatisticsSource,
    base: Checkpoint,
    experts: Sequence[Expert],
    cache: Path,
    live: Callable[[], LiveModel],
) -> list[KeptAids]:
    if source.text is None:
        raise ConfigError(f"{aid} is collected on text, but none is named: {_REMEDIES[aid]}")
    texts = read_texts(source.text, source.samples)
    of_all = {
        "format": _FORMAT,
        "aid": aid,
        "base": base.digest,
        "tokenizer": base.tokenizer_digest,
        "texts": texts,
        "max_length": source.max_length,
    }
    folder = cache.expanduser().absolute() / "aids"
    kept = []
    for expert in experts:
        path = folder / digest_of({**of_all, "expert": expert.digest})

        def make(name: str = expert.name) -> tuple[Plan, Iterable[tuple[str, Tensor]]]:
            return _run(aid, name, live(), base, texts, source.max_length)

        kept.append(KeptAids.open_or_make(path, make))
    return kept


def _run(
    aid: str,
    expert: str,
    live: LiveModel,
    base: Checkpoint,
    texts: Sequence[str],
    max_length: int,
) -> tuple[Plan, Iterable[tuple[str, Tensor]]]:
    """Make the model the expert, and say what will come of running it over the texts."""
    model = live.model
    if live.tokenizer is None:
        raise TaskError(
            f"statistics are collected on text, but the base in {base.path} has no tokenizer: add "
            "its files to that folder, or choose an operator that needs no statistics"
        )
    refuse_unreadable(model)
    if aid == FISHER:
        refuse_other_than_causal(model)
    sequences = token_ids(texts, live.tokenizer, longest(model, max_length))
    live.write(expert)
    if aid == FISHER:
        shapes = {name: tuple(p.shape) for name, p in parameters(model, base.tensors).items()}
        plan = Plan(shapes, {name: name for name in shapes})
        return plan, fisher_information(model, base.tensors, sequences, expert)
    layers = linear_layers(model, base.tensors, base.tied)
    readers = shared_inputs(model, layers, sequences[0])
    first = [layer for layer in layers if readers[layer.weight] is layer]
    plan = Plan(
        {layer.weight: (layer.n_inputs, layer.n_inputs) for layer in first},
        {weight: reader.weight for weight, reader in readers.items()},
        {layer.weight: layer.input_axis for layer in layers},
    )
    return plan, grams(model, first, sequences, expert)


def expert_writer(
    base: Checkpoint, experts: Sequence[Expert], anatomy: Anatomy, model: nn.Module
) -> Callable[[str], None]:
    """What gives a model the weights of an expert without a bank, for a while or for good."""
    names, groups = tuple(expert.name for expert in experts), anatomy.group_labels

    def write(name: str) -> None:
        rows = tuple((float(other == name),) * len(groups) for other in names)
        recipe = Recipe("task_arithmetic", names, groups, rows)
        state = model.state_dict()
        with torch.no_grad():
            for weight, merged in merged_tensors(base, experts, anatomy, recipe):
                state[weight].copy_(merged)

    return write
