"""What other models say about the same texts: computed once, found again by later runs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from evomerge.datatypes import Split, digest_of
from evomerge.errors import TaskError
from evomerge.protocols import LiveModel
from fitness.forwards import Forwards
from fitness.kept_tensors import Room, read_or_make

LOG_PROBABILITIES = "log_probabilities"
"""Name of the tensor of next-token distributions, `(n_chosen, n_tokens)`."""

HIDDEN = "hidden"
"""Name of the tensor of hidden states after each layer, `(n_layers, n_chosen, size)`."""


@dataclass(frozen=True, slots=True)
class Passages:
    """The texts of a split as token ids: `forwards` cut to a limit, `prompts` whole.

    `chosen` are the positions of each text at which models are compared; `first_numbers` counts
    them through.
    """

    forwards: Sequence[tuple[int, ...]]
    prompts: Sequence[tuple[int, ...]]
    chosen: Sequence[tuple[int, ...]]
    first_numbers: Sequence[int]

    @property
    def n_chosen(self) -> int:
        """Chosen positions of all texts."""
        return sum(len(positions) for positions in self.chosen)


def refer(
    live: LiveModel,
    forwards: Forwards,
    passages: Mapping[Split, Passages],
    needed: Mapping[str, set[str]],
    dtype: str,
) -> dict[Split, dict[str, dict[str, Tensor]]]:
    """The tensors of each split and model, from their files, else from the models themselves.

    Args:
        live: Becomes each model whose file is missing or damaged, then the base again.
        forwards: Of the live model.
        passages: What to say something about.
        needed: Names of tensors by names of models.
        dtype: Of log-probabilities, which are kept in `float16` or `float32`.

    Raises:
        TaskError: when a model computes NaN or infinity.
    """
    references: dict[Split, dict[str, dict[str, Tensor]]] = {split: {} for split in passages}
    filled = {split: part for split, part in passages.items() if part.forwards}
    rooms = {
        split: _rooms(forwards, part, getattr(torch, dtype))
        for split, part in filled.items()
        if needed
    }
    written: list[str] = []
    try:
        for name in sorted(needed):
            for split, part in filled.items():
                wanted = {tensor: rooms[split][tensor] for tensor in sorted(needed[name])}

                def fill(
                    tensors: dict[str, Tensor], name: str = name, part: Passages = part
                ) -> None:
                    if written[-1:] != [name]:
                        written.append(name)
                        live.write(name)
                    _write(tensors, forwards, part, name)

                key = digest_of(
                    {
                        "models": live.digest,
                        "name": name,
                        "tokens": digest_of(part.forwards),
                        "positions": digest_of(part.chosen),
                        "tensors": {tensor: str(room) for tensor, room in wanted.items()},
                    }
                )
                path = live.cache / "references" / f"{key}.safetensors"
                references[split][name] = read_or_make(path, wanted, fill)
    finally:
        if written:
            live.write("base")
    return references


def _rooms(forwards: Forwards, passages: Passages, dtype: torch.dtype) -> dict[str, Room]:
    """What a model's tensors take, from a forward of the first text."""
    plan = forwards.plan(passages.forwards[:1], passages.chosen[:1], [0], every=False)
    (output,) = forwards.run(plan)
    rooms = {LOG_PROBABILITIES: Room((passages.n_chosen, output.logits.shape[-1]), dtype)}
    if output.hidden:
        shape = (len(output.hidden), passages.n_chosen, output.hidden[0].shape[-1])
        rooms[HIDDEN] = Room(shape, output.hidden[0].dtype)
    return rooms


def _write(tensors: dict[str, Tensor], forwards: Forwards, passages: Passages, name: str) -> None:
    """Fill in what the model says now."""
    plan = forwards.plan(passages.forwards, passages.chosen, passages.first_numbers, every=False)
    is_finite = True
    with torch.inference_mode():
        for output in forwards.run(plan):
            points = output.batch.chosen
            numbers = torch.from_numpy(points.numbers)
            if LOG_PROBABILITIES in tensors:
                kept = tensors[LOG_PROBABILITIES]
                least = torch.finfo(kept.dtype).min
                for part, log_p in output.log_probabilities(points):
                    # A token that is ruled out has -inf, which float16 reaches sooner.
                    told = log_p.clamp(min=least).to(kept.dtype).cpu()
                    is_finite = is_finite and bool(told.isfinite().all())
                    kept[numbers[part]] = told
            if HIDDEN in tensors:
                for layer, states in enumerate(output.hidden):
                    told = states[points.rows, points.columns].cpu()
                    is_finite = is_finite and bool(told.isfinite().all())
                    tensors[HIDDEN][layer][numbers] = told
    if not is_finite:
        raise TaskError(
            f"models are compared with what {name} says, but {name} computes NaN or infinity on "
            "the texts: leave it out, or mend its checkpoint"
        )
