"""Diagonals of the Fisher information: how much each weight matters to the likelihood of texts."""

from collections.abc import Collection, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from evomerge.errors import TaskError
from evomerge.merging.aids.forwards import forward

# Sums of squares that grow at a time, in bytes; the texts are run again for the rest.
_MOST_BYTES = 4 << 30


def parameters(model: nn.Module, names: Collection[str]) -> dict[str, nn.Parameter]:
    """Those of the weights that have gradients, each once, in the order of the model."""
    return {name: p for name, p in model.named_parameters() if name in names}


def fisher_information(
    model: nn.Module, names: Collection[str], sequences: Sequence[Tensor], expert: str
) -> Iterator[tuple[str, Tensor]]:
    """The diagonal of the empirical Fisher information of each weight, fp32 on the CPU.

    With texts x_s and `log p(x_s) = sum_t log p(x_st | x_s1 .. x_s,t-1)`::

        F = 1/n sum_s (d log p(x_s) / d W)^2

    Empirical: the tokens are the texts' own, not drawn from the model. Squares are summed in
    float64, in the order of the sequences; gradients are in the model's dtype.

    Args:
        model: A causal language model whose parameters need no gradients otherwise.
        names: Weights that are merged.
        sequences: `(1, n_tokens)` ids each.
        expert: For messages.

    Raises:
        TaskError: A gradient is NaN or infinite.
    """
    part: dict[str, nn.Parameter] = {}
    for name, parameter in parameters(model, names).items():
        part[name] = parameter
        if 8 * sum(p.numel() for p in part.values()) >= _MOST_BYTES:
            yield from _of_part(model, part, sequences, expert)
            part = {}
    if part:
        yield from _of_part(model, part, sequences, expert)


def log_likelihood(model: nn.Module, ids: Tensor) -> Tensor:
    """Of one text, `(1, n_tokens)`, in nats, without its first token."""
    logits = forward(model, ids).logits[0, :-1]
    return -cross_entropy(logits.float(), ids[0, 1:].to(logits.device), reduction="sum")


def _of_part(
    model: nn.Module, part: dict[str, nn.Parameter], sequences: Sequence[Tensor], expert: str
) -> Iterator[tuple[str, Tensor]]:
    sums = {name: torch.zeros_like(p, dtype=torch.float64) for name, p in part.items()}
    needed = {name: p.requires_grad for name, p in part.items()}
    try:
        for parameter in part.values():
            parameter.requires_grad_(True)
        for ids in sequences:
            with torch.enable_grad():
                gradients = torch.autograd.grad(
                    log_likelihood(model, ids), list(part.values()), allow_unused=True
                )
            for total, gradient in zip(sums.values(), gradients, strict=True):
                if gradient is not None:
                    total.add_(gradient.double().square_())
    finally:
        for name, parameter in part.items():
            parameter.requires_grad_(needed[name])
    for name, total in sums.items():
        information = (total / len(sequences)).float().cpu()
        if not bool(torch.isfinite(information).all()):
            raise TaskError(
                f"gradients must be finite, but those of {name} are not in {expert} on the texts "
                "of space.statistics: use a base in bfloat16 or float32, or leave that expert out"
            )
        yield name, information
