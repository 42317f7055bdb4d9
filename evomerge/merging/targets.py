"""Which tensors of the live model are written to, and whether they fit the base."""

import torch
from torch import Tensor, nn

from evomerge.checkpoints.reading import Checkpoint
from evomerge.errors import IncompatibleError


def targets_of(base: Checkpoint, model: nn.Module) -> dict[str, Tensor]:
    """What to write to, by canonical name; every storage once.

    Raises:
        IncompatibleError: The model's names, shapes, dtypes or ties are not those of the base.
    """
    state: dict[str, Tensor] = model.state_dict(keep_vars=True)
    targets: dict[str, Tensor] = {}
    for name, facts in base.tensors.items():
        if name not in state:
            raise IncompatibleError(
                f"the live model must have every weight of the base, but it has no {name}: build "
                "it from the base's config.json"
            )
        target = state[name].detach()
        dtype = str(target.dtype).removeprefix("torch.")
        if (tuple(target.shape), dtype) != (tuple(facts.shape), facts.dtype):
            raise IncompatibleError(
                f"the live model must have the base's shapes and dtypes, but {name} is "
                f"{list(target.shape)} {dtype} instead of {list(facts.shape)} {facts.dtype}: load "
                'it from the base with dtype="auto"'
            )
        if not target.is_contiguous():
            raise IncompatibleError(
                f"weights are written in place and must be contiguous, but {name} is a strided "
                "view: build the model without it"
            )
        targets[name] = target
    _check_ties(base, state)
    return targets


def _check_ties(base: Checkpoint, state: dict[str, Tensor]) -> None:
    owners: dict[tuple[torch.device, int], str] = {}
    for name in base.tensors:
        if state[name].numel() == 0:
            continue
        owner = owners.setdefault((state[name].device, state[name].data_ptr()), name)
        if owner != name:
            raise IncompatibleError(
                f"weights that differ in the base must be apart in the live model, but {name} "
                f"shares the memory of {owner}: untie them"
            )
    for alias, owner in base.tied.items():
        if alias in state and state[alias].data_ptr() != state[owner].data_ptr():
            raise IncompatibleError(
                f"weights that are tied in the base must share memory in the live model, but "
                f"{alias} is apart from {owner}: call model.tie_weights()"
            )
    for name, value in state.items():
        if isinstance(value, nn.Parameter) and name not in base.tensors and name not in base.tied:
            raise IncompatibleError(
                f"every parameter of the live model must come from the base, but {name} is not in "
                "it: build the model from the base's config.json"
            )
