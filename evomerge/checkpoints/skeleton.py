"""A model without weights: the names, shapes and ties that its configuration implies."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from evomerge.errors import CheckpointError


@dataclass(frozen=True)
class Skeleton:
    """What instantiation on the meta device tells.

    `shapes` has every entry of the state dict in its order; `required` are those that a file must
    hold (parameters); `tied` maps alias to owner; `modules` maps module path to class name.
    """

    model_class: Any
    config: Mapping[str, Any]
    shapes: Mapping[str, tuple[int, ...]]
    required: frozenset[str]
    tied: Mapping[str, str]
    prefix: str
    modules: Mapping[str, str] = field(repr=False)
    renamings: tuple[Any, ...] = field(repr=False)

    def spellings(self, name: str) -> list[str]:
        """Names that transformers would take a file's `name` for, most likely first."""
        renamed = name
        for renaming in self.renamings:
            renamed, _ = renaming.rename_source_key(renamed)
        spellings = list(dict.fromkeys((name, renamed)))
        if self.prefix:
            dotted = f"{self.prefix}."
            spellings += [dotted + spelling for spelling in spellings]
            spellings += [s.removeprefix(dotted) for s in (name, renamed) if s.startswith(dotted)]
        return spellings


def skeleton_of(
    folder: Path, config: Mapping[str, Any], *, trust_remote_code: bool = False
) -> Skeleton | None:
    """Instantiate the model of a folder without weights; None if transformers has no such type.

    Raises:
        CheckpointError: The model needs remote code that is not allowed, or its configuration is
            contradictory.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    auto_map = config.get("auto_map") or {}
    native = config.get("model_type") in CONFIG_MAPPING
    if not native and not auto_map:
        return None
    if not native and not trust_remote_code:
        raise CheckpointError(
            f"models must be built into transformers, because code from a model folder can do "
            f"anything, but {folder} (model_type={config.get('model_type')}) brings its own: set "
            "`trust_remote_code: true` if you have read it and trust its author"
        )
    try:
        configuration = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
        model_class = _model_class(folder, config, configuration, trust_remote_code)
        if model_class is None:
            return None
        with torch.device("meta"):
            model = model_class(configuration)
    except (
        ArithmeticError,
        AttributeError,
        ImportError,
        LookupError,
        OSError,
        RuntimeError,
        StrictDataclassError,
        TypeError,
        ValueError,
    ) as error:
        raise CheckpointError(
            f"config.json must describe a model that transformers can build, but {folder} does not "
            f"({type(error).__name__}: {_one_line(error)}): copy or download it again"
        ) from error
    state = model.state_dict()
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    tied = _owners({**_ties(model), **_shared(model)})
    return Skeleton(
        model_class=model_class,
        config=configuration.to_dict(),
        shapes={name: tuple(tensor.shape) for name, tensor in state.items()},
        required=frozenset(parameters & state.keys()),
        tied={alias: owner for alias, owner in tied.items() if alias in state},
        prefix=str(getattr(model, "base_model_prefix", "")),
        modules={name: type(module).__name__ for name, module in model.named_modules()},
        renamings=_renamings(model),
    )


def _model_class(
    folder: Path, config: Mapping[str, Any], configuration: Any, trust_remote_code: bool
) -> Any:
    """The class that `architectures` names; without a name, the causal language model."""
    import transformers
    from transformers.dynamic_module_utils import get_class_from_dynamic_module
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_MAPPING

    architecture = str((config.get("architectures") or [""])[0])
    if trust_remote_code:
        for reference in (config.get("auto_map") or {}).values():
            if isinstance(reference, str) and reference.rsplit(".", 1)[-1] == architecture:
                return get_class_from_dynamic_module(reference, str(folder))
    # The name comes from an untrusted file: only a model class will do.
    named = getattr(transformers, architecture, None) if architecture else None
    if isinstance(named, type) and issubclass(named, transformers.PreTrainedModel):
        return named
    for mapping in (MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_MAPPING):
        if type(configuration) in mapping:
            return mapping[type(configuration)]
    return None


def _renamings(model: Any) -> tuple[Any, ...]:
    """How transformers renames tensors of older files while loading, fusing ones left out."""
    try:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightRenaming
    except ImportError:  # the first versions of transformers 5 rename elsewhere
        return ()
    return tuple(t for t in get_model_conversion_mapping(model) if isinstance(t, WeightRenaming))


def _ties(model: Any) -> dict[str, str]:
    return dict(getattr(model, "all_tied_weights_keys", None) or {})


def _shared(model: Any) -> dict[str, str]:
    """Parameters that are one object under two names."""
    first: dict[int, str] = {}
    tied = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owner = first.setdefault(id(parameter), name)
        if owner != name:
            tied[name] = owner
    return tied


def _owners(tied: Mapping[str, str]) -> dict[str, str]:
    """Follow chains of aliases to the one that owns the weight."""
    owners = {}
    for alias in tied:
        owner, seen = tied[alias], {alias}
        while owner in tied and owner not in seen:
            seen.add(owner)
            owner = tied[owner]
        if owner != alias:
            owners[alias] = owner
    return owners


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300].rstrip(".:") or "no message"
