"""What a live model's forwards over texts tell, summed over the positions of each text."""

from collections.abc import Callable, Mapping, Set

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evomerge.datatypes import FloatArray
from fitness.divergences import cosine, entropy, jensen_shannon, kullback_leibler
from fitness.forwards import Forwards, Output, Plan
from fitness.references import HIDDEN, LOG_PROBABILITIES

# What is told, and the other model if it is compared with one.
Reading = tuple[str, str | None]
_Add = Callable[[Reading, NDArray[np.int64], Tensor], None]

_DIVERGENCES = {"kl": kullback_leibler, "js": jensen_shannon}


def read(
    forwards: Forwards,
    plan: Plan,
    wanted: Set[Reading],
    references: Mapping[str, Mapping[str, Tensor]],
) -> dict[Reading, FloatArray]:
    """One sum for each sequence of the plan, `(n_sequences,)`, of each reading.

    Args:
        forwards: Of the model.
        plan: Of the texts; of every position, if perplexity or entropy are wanted.
        wanted: Pairs of perplexity (log-likelihood), entropy, kl, js or alignment and the other
            model, None for the first two.
        references: What the other models said, by their names.
    """
    sums = {reading: np.zeros(plan.n_sequences) for reading in wanted}

    def add(reading: Reading, sequences: NDArray[np.int64], values: Tensor) -> None:
        # Summed here and not on the device: the order of the sum is then always the same.
        np.add.at(sums[reading], sequences, values.double().cpu().numpy())

    with torch.inference_mode():
        for output in forwards.run(plan):
            _read_every(output, wanted, add)
            _compare_distributions(output, wanted, references, add)
            _compare_states(output, wanted, references, add)
    return sums


def _read_every(output: Output, wanted: Set[Reading], add: _Add) -> None:
    points = output.batch.every
    for part, log_p in output.log_probabilities(points):
        sequences = points.sequences[part]
        if ("perplexity", None) in wanted:
            targets = points.targets[part]
            told = log_p.gather(1, targets.clamp(min=0)[:, None])[:, 0]
            # After the last token there is nothing to foretell.
            add(("perplexity", None), sequences, told.where(targets >= 0, 0.0))
        if ("entropy", None) in wanted:
            add(("entropy", None), sequences, entropy(log_p))


def _compare_distributions(
    output: Output,
    wanted: Set[Reading],
    references: Mapping[str, Mapping[str, Tensor]],
    add: _Add,
) -> None:
    names = sorted({name for kind, name in wanted if kind in _DIVERGENCES and name is not None})
    points = output.batch.chosen
    for part, log_q in output.log_probabilities(points) if names else ():
        numbers = torch.from_numpy(points.numbers[part])
        for name in names:
            kept = references[name][LOG_PROBABILITIES][numbers]
            # Normalised again: what rounding took from the sum would count as divergence.
            log_p = kept.to(log_q).log_softmax(dim=-1)
            for kind, divergence in _DIVERGENCES.items():
                if (kind, name) in wanted:
                    add((kind, name), points.sequences[part], divergence(log_p, log_q))


def _compare_states(
    output: Output,
    wanted: Set[Reading],
    references: Mapping[str, Mapping[str, Tensor]],
    add: _Add,
) -> None:
    points = output.batch.chosen
    numbers = torch.from_numpy(points.numbers)
    for name in sorted(name for kind, name in wanted if kind == "alignment" and name is not None):
        for layer, states in enumerate(output.hidden):
            h = states[points.rows, points.columns]
            h = h.to(torch.promote_types(h.dtype, torch.float32))
            other = references[name][HIDDEN][layer][numbers].to(h)
            add(("alignment", name), points.sequences, cosine(h, other) / len(output.hidden))
