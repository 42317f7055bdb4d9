"""Can this expert be merged with this base? Refusals and warnings, each a sentence."""

from collections.abc import Mapping
from pathlib import Path

import torch

from evomerge.checkpoints.anatomy import role_of
from evomerge.checkpoints.digests import check_finite
from evomerge.checkpoints.reading import Checkpoint
from evomerge.checkpoints.vocabulary import (
    Vocabulary,
    VocabularyChoice,
    is_reserved,
    read_special_tokens,
)
from evomerge.errors import IncompatibleError

__all__ = [
    "check_architecture",
    "check_finite",
    "check_tensors",
    "check_tokenizer",
    "disparity_warning",
    "identical_to_base",
    "identity_warning",
    "setting_warnings",
]

# Each of these decides a shape: models that differ in one cannot be added.
SHAPE_FIELDS = (
    "num_hidden_layers",
    "n_layer",
    "hidden_size",
    "n_embd",
    "intermediate_size",
    "n_inner",
    "num_attention_heads",
    "n_head",
    "num_key_value_heads",
    "head_dim",
    "num_local_experts",
    "num_experts",
)
# These change what the same weights compute: the merge takes the base's.
BEHAVIOUR_FIELDS = (
    "hidden_act",
    "hidden_activation",
    "activation_function",
    "rope_parameters",
    "rms_norm_eps",
    "layer_norm_eps",
    "layer_norm_epsilon",
    "sliding_window",
)
_DISPARITY = 10.0
_UNDECIDED = VocabularyChoice()


def check_architecture(name: str, expert: Checkpoint, base: Checkpoint) -> None:
    """Same model type and same shape-deciding settings.

    Raises:
        IncompatibleError: Naming the first settings that differ.
    """
    for field in ("model_type", *SHAPE_FIELDS):
        theirs, ours = _setting(expert, field), _setting(base, field)
        # A setting may be left to its default in one file only: then the shapes decide.
        if theirs != ours and None not in (theirs, ours):
            raise IncompatibleError(
                f"an expert must have the base's architecture, but expert {name} ({expert.source}) "
                f"has {field}={theirs} and the base ({base.source}) {field}={ours}: take models "
                "fine-tuned from this base"
            )


def check_tensors(
    name: str, expert: Checkpoint, base: Checkpoint
) -> tuple[dict[str, str], list[str]]:
    """Which of the expert's tensors answers to which of the base, and warnings.

    A missing or extra head is tolerated (the expert may have been trained for another task); so
    are vocabularies of different size.

    Raises:
        IncompatibleError: A tensor of the stack is missing, extra, or has another shape.
    """
    mapping: dict[str, str] = {}
    lacking, warnings = [], []
    for ours in base.tensors:
        theirs = expert.canonical(ours)
        if theirs is None:
            lacking.append(ours)
        else:
            mapping[ours] = theirs
    used = set(mapping.values())
    extra = [theirs for theirs in expert.tensors if theirs not in used]
    for what, verb, names in (("lacks", "keeps", lacking), ("adds", "ignores", extra)):
        if not names:
            continue
        fatal = [n for n in names if role_of(n) != (None, "head") or n in base.tied]
        if fatal:
            raise IncompatibleError(
                f"an expert must have the base's tensors, but expert {name} ({expert.source}) "
                f"{what} {fatal[0]} ({len(names)} in all): take models fine-tuned from this base, "
                "with the same tied embeddings"
            )
        warnings.append(
            f"expert {name} {what} {', '.join(names)}: the merge {verb} the "
            f"{'base' if verb == 'keeps' else 'expert'}'s"
        )
    rows: set[tuple[int, int]] = set()
    for ours, theirs in mapping.items():
        shape, other = base.tensors[ours].shape, expert.tensors[theirs].shape
        if shape == other:
            continue
        if not _differs_in_vocabulary(ours, shape, other, base, expert):
            raise IncompatibleError(
                f"shapes must agree, but {ours} is {list(other)} in expert {name} "
                f"({expert.source}) and {list(shape)} in the base ({base.source}): take models "
                "fine-tuned from this base"
            )
        rows.add((other[0], shape[0]))
    for n_expert, n_base in sorted(rows):
        warnings.append(vocabulary_warning(name, n_expert, n_base))
    if expert.dtype != base.dtype:
        warnings.append(
            f"expert {name} is {expert.dtype} and the base {base.dtype}: the merge is written in "
            "the base's"
        )
    return mapping, warnings


def vocabulary_warning(name: str, n_expert: int, n_base: int) -> str:
    """What happens when the numbers of rows differ."""
    return (
        f"expert {name} has {n_expert} vocabulary rows and the base {n_base}: the first "
        f"{min(n_expert, n_base)} are merged, further ones are the base's"
    )


def check_tokenizer(
    name: str,
    folder: Path,
    vocabulary: Vocabulary | None,
    chat_template: str | None,
    base: Checkpoint,
    *,
    allow_mismatch: bool = False,
    choice: VocabularyChoice = _UNDECIDED,
) -> list[str]:
    """The same id must mean the same token; returns warnings of what was not decided.

    Raises:
        IncompatibleError: An id means different tokens and `allow_mismatch` is not set.
    """
    warnings = []
    ours = base.vocabulary
    decide = "set `vocabulary.tokenizer` to `base` or an expert"
    if vocabulary is None:
        warnings.append(f"expert {name} ({folder}) has no tokenizer: assumed to be the base's")
    elif ours is None:
        warnings.append(f"the base ({base.source}) has no tokenizer to compare expert {name} with")
    elif vocabulary.digest != ours.digest:
        if not vocabulary.tokens or not ours.tokens:
            warnings.append(
                f"the tokenizers of expert {name} and the base are stored in different forms and "
                "cannot be compared"
            )
        else:
            by_owner = choice.extra_rows == "owner"
            conflict = _conflict(vocabulary, ours, reserved_may_change=by_owner)
            if conflict is not None and not allow_mismatch:
                only_reserved = not by_owner and not _conflict(
                    vocabulary, ours, reserved_may_change=True
                )
                setting = (
                    "`vocabulary: {extra_rows: owner}`, as they are reserved in the base"
                    if only_reserved
                    else "`allow_tokenizer_mismatch: true`"
                )
                raise IncompatibleError(
                    f"the same id must mean the same token, but {conflict} in expert {name} "
                    f"({folder}) and the base: take models with the base's tokenizer, or set "
                    f"{setting}"
                )
            if conflict is not None:
                warnings.append(
                    f"expert {name} has another tokenizer than the base ({conflict}): the merge "
                    f"uses {_whose(choice.tokenizer)}"
                )
            elif choice.tokenizer is None:
                warnings.append(
                    f"expert {name} has another tokenizer than the base with the same ids"
                    f"{_added(vocabulary, ours)}: the merge uses the base's; {decide}"
                )
    if vocabulary is not None and choice.tokenizer is None:
        different = _different_roles(read_special_tokens(folder), read_special_tokens(base.path))
        if different:
            warnings.append(
                f"expert {name} has other special tokens than the base ({different}): the merge "
                f"uses the base's; {decide}"
            )
    undecided = choice.chat_template is None and choice.tokenizer is None
    if undecided and chat_template is not None and base.chat_template != chat_template:
        has, uses = (
            ("a chat template and the base none", "none")
            if base.chat_template is None
            else ("another chat template than the base", "the base's")
        )
        warnings.append(
            f"expert {name} has {has}: the merge uses {uses}; set `vocabulary.chat_template` to "
            "`base`, an expert or `none`"
        )
    return warnings


def setting_warnings(name: str, expert: Checkpoint, base: Checkpoint) -> list[str]:
    """Settings that change what the same weights compute."""
    return [
        f"expert {name} has {field}={_setting(expert, field)} and the base "
        f"{_setting(base, field)}: the merge uses the base's"
        for field in BEHAVIOUR_FIELDS
        if _setting(expert, field) != _setting(base, field)
    ]


def identity_warning(
    name: str, expert: Checkpoint, base: Checkpoint, mapping: Mapping[str, str]
) -> str | None:
    """Whether the expert adds nothing; reads until the first difference."""
    for ours, theirs in mapping.items():
        W0, W = base.read(ours), expert.read(theirs)
        if W0.dtype != W.dtype or not torch.equal(W0, W):
            return None
    return identical_to_base(name)


def identical_to_base(name: str) -> str:
    """What it means that an expert changes nothing."""
    return f"expert {name} is identical to the base: its coefficients have no effect"


def disparity_warning(norms: Mapping[str, float]) -> str | None:
    """Whether the largest task vector drowns the smallest; `norms` by expert, zeros left out."""
    positive = {name: norm for name, norm in norms.items() if norm > 0}
    if len(positive) < 2:
        return None
    low = min(sorted(positive), key=lambda name: positive[name])
    high = max(sorted(positive), key=lambda name: positive[name])
    ratio = positive[high] / positive[low]
    if ratio <= _DISPARITY:
        return None
    return (
        f"the task vector of {high} is {ratio:.0f} times as long as that of {low} "
        f"({positive[high]:.3g} and {positive[low]:.3g}): with equal coefficients {high} decides"
    )


def _setting(checkpoint: Checkpoint, field: str) -> object:
    settings = checkpoint.settings
    return settings.get(field, (settings.get("text_config") or {}).get(field))


def _differs_in_vocabulary(
    name: str,
    shape: tuple[int, ...],
    other: tuple[int, ...],
    base: Checkpoint,
    expert: Checkpoint,
) -> bool:
    return (
        role_of(name) in ((None, "embed"), (None, "head"))
        and len(shape) == len(other) > 0
        and shape[1:] == other[1:]
        and (shape[0], other[0]) == (base.vocab_size, expert.vocab_size)
    )


def _conflict(
    theirs: Vocabulary, ours: Vocabulary, *, reserved_may_change: bool = False
) -> str | None:
    """How many ids mean different tokens, with the first as example."""
    token_of = {i: token for token, i in ours.tokens.items()}
    different = sorted(
        (i, token)
        for token, i in theirs.tokens.items()
        if token_of.get(i, token) != token
        and not (reserved_may_change and is_reserved(token_of[i]))
    )
    if not different:
        moved = sum(ours.tokens.get(token, i) != i for token, i in theirs.tokens.items())
        return f"{moved} tokens have other ids" if moved else None
    i, token = different[0]
    return f"{len(different)} ids differ, the first being {i} ({token!r} and {token_of[i]!r})"


def _added(theirs: Vocabulary, ours: Vocabulary) -> str:
    """The first tokens that only the expert has."""
    added = sorted((i, token) for token, i in theirs.tokens.items() if token not in ours.tokens)
    if not added:
        return ""
    shown = ", ".join(repr(token) for _, token in added[:3])
    return f" and {len(added)} more tokens ({shown}{', …' if len(added) > 3 else ''})"


def _different_roles(theirs: Mapping[str, object], ours: Mapping[str, object]) -> str:
    """Which special tokens the expert sets differently."""
    return ", ".join(
        f"{role} {theirs[role]!r} instead of {ours.get(role)!r}"
        for role in theirs
        if theirs[role] != ours.get(role)
    )


def _whose(chosen: str | None) -> str:
    return "the base's" if chosen in (None, "base") else f"that of {chosen}"
