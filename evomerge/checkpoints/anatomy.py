"""Which layer and which part of a model every tensor belongs to; no torch, so that spaces can ask.

Names tell for the usual families (Llama, Mistral, Qwen, Gemma, Phi, GPT-2, GPT-NeoX, BERT and
their relatives); where they do not, the modules of the instantiated model do.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol, Self

from evomerge.datatypes import Group

KINDS = (
    "embed",
    "attn.q",
    "attn.k",
    "attn.v",
    "attn.qkv",
    "attn.o",
    "attn.other",
    "mlp.gate",
    "mlp.up",
    "mlp.down",
    "mlp.other",
    "norm",
    "head",
    "other",
)

_LAYER = re.compile(r"(?:^|\.)((?:\w+_)?(?:layers?|blocks?|h))\.(\d+)\.")
_NORM = re.compile(r"norm|\.ln(_\w+|\d)?\.|_ln\.", re.IGNORECASE)
_ATTENTION = re.compile(r"attn|attention", re.IGNORECASE)

# All patterns meet the name between two dots, so that `.q.` is a whole component. First hit wins.
_ATTENTION_KINDS = (
    (r"qkv|query_key_value|\.c_attn\.|\.in_proj_(weight|bias)\.|\.W_pack\.", "attn.qkv"),
    (r"\.(q|wq|q_proj|query|query_proj|q_lin|q_attn|q_[ab]_proj)\.", "attn.q"),
    (r"\.(k|wk|k_proj|key|key_proj|k_lin)\.", "attn.k"),
    (r"\.(v|wv|v_proj|value|value_proj|v_lin)\.", "attn.v"),
    (r"\.(o|[wW]o|o_proj|out_proj|c_proj|out_lin|dense)\.", "attn.o"),
    (r"", "attn.other"),
)
_MLP_KINDS = (
    # Both halves fused, or a router of experts: neither gate nor up.
    (r"gate_up|router|shared_expert_gate|\.(mlp|block_sparse_moe)\.gate\.|\.Wi\.", "mlp.other"),
    (r"\.(gate_proj|w1|wi_0)\.", "mlp.gate"),
    (r"\.(up_proj|w3|wi_1|wi|c_fc|fc1|fc_in|dense_h_to_4h|lin1)\.|\.intermediate\.", "mlp.up"),
    (
        r"\.(down_proj|w2|[wW]o|c_proj|fc2|fc_out|dense_4h_to_h|lin2)\.|\.output\.dense\.",
        "mlp.down",
    ),
    (r"mlp|ffn|feed_?forward|experts?\.|\.moe\.", "mlp.other"),
)
_OUTSIDE_KINDS = (
    (r"\.(lm_head|embed_out|classifier|pre_classifier|score|qa_outputs|pooler|cls|head)\.", "head"),
    (r"^\.output\.|\.(vocab_\w+|classification_head|generator)\.", "head"),
    # What stands inside the embeddings, their norm included, comes before the stack.
    (r"embed|\.(wte|wpe|shared)\.", "embed"),
    (_NORM.pattern, "norm"),
)


class HasShape(Protocol):
    """Facts of a tensor."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its sizes."""


class Described(Protocol):
    """What a checkpoint tells about itself; `Checkpoint` fulfils it."""

    @property
    def tensors(self) -> Mapping[str, HasShape]:
        """Every weight once, by name, in the order of the state dict."""

    @property
    def tied(self) -> Mapping[str, str]:
        """Alias to owner."""

    @property
    def modules(self) -> Mapping[str, str]:
        """Module path to class name; empty if the model cannot be instantiated."""


@dataclass(frozen=True, slots=True)
class TensorRole:
    """Where a tensor belongs; `group` indexes `Anatomy.groups`, `layer` is None outside a stack."""

    name: str
    layer: int | None
    kind: str
    group: int


@dataclass(frozen=True)
class Anatomy:
    """The groups of a model in order (embed, layers, norm, head, other) and every tensor's role."""

    groups: tuple[Group, ...]
    roles: Mapping[str, TensorRole]
    tied: Mapping[str, str]
    n_layers: int

    @property
    def group_labels(self) -> tuple[str, ...]:
        """The labels of the groups, in order."""
        return tuple(group.label for group in self.groups)

    @classmethod
    def of(cls, checkpoint: Described) -> Self:
        """Find the role of every tensor.

        A model of several stacks (an encoder and a decoder) counts its layers through, in the
        order of the state dict.
        """
        placed = {name: _place(name, checkpoint.modules) for name in checkpoint.tensors}
        offsets, n_layers = _offsets(placed.values())
        layers = {
            name: None if place.index is None else place.index + offsets[place.stack]
            for name, place in placed.items()
        }
        keys = {name: _order(layers[name], placed[name].kind) for name in placed}
        positions = {key: i for i, key in enumerate(sorted(set(keys.values())))}
        sizes = dict.fromkeys(positions, 0)
        for name, facts in checkpoint.tensors.items():
            n_parameters = 1
            for size in facts.shape:
                n_parameters *= size
            sizes[keys[name]] += n_parameters
        roles = {
            name: TensorRole(name, layers[name], placed[name].kind, positions[keys[name]])
            for name in placed
        }
        groups: dict[int, Group] = {}
        for name, role in roles.items():
            depth = _depth(role.layer, role.kind, n_layers)
            groups[role.group] = Group(role.layer, role.kind, depth, sizes[keys[name]])
        return cls(
            groups=tuple(groups[i] for i in sorted(groups)),
            roles=roles,
            tied=dict(checkpoint.tied),
            n_layers=n_layers,
        )


def role_of(name: str) -> tuple[int | None, str | None]:
    """Layer and kind as far as the name tells; a kind of None means that it does not.

    Biases share the kind of their weight. Norms inside the attention (of queries, keys) are norms.
    """
    stack = _LAYER.search(name)
    if stack is None:
        return None, _first(_OUTSIDE_KINDS, f".{name}.")
    return int(stack.group(2)), _kind_inside(f".{name[stack.end() :]}.")


def _kind_inside(rest: str) -> str | None:
    """The kind of what has the name `rest`, between two dots, inside a layer."""
    if _NORM.search(rest):
        return "norm"
    return _first(_ATTENTION_KINDS if _ATTENTION.search(rest) else _MLP_KINDS, rest)


@dataclass(frozen=True, slots=True)
class _Place:
    stack: str
    index: int | None
    kind: str


def _place(name: str, modules: Mapping[str, str]) -> _Place:
    layer, kind = role_of(name)
    found = _LAYER.search(name)
    stack = name[: found.end(1)] if found else ""
    if layer is None:
        layer = _layer_in_modules(name, modules)
        if layer is not None:
            kind = _kind_inside(f".{name}.")
    return _Place(stack, layer, kind or _kind_of_module(name, modules))


def _layer_in_modules(name: str, modules: Mapping[str, str]) -> int | None:
    """The place of a tensor in the longest list of modules, or in one beside it as long."""
    lengths: dict[str, int] = {}
    for path, type_name in modules.items():
        # Modules come outside in; lists within a layer (of experts, say) do not count.
        if type_name == "ModuleList" and not any(path.startswith(f"{p}.") for p in lengths):
            lengths[path] = sum(f"{path}.{i}" in modules for i in range(len(modules)))
    for path, length in lengths.items():
        if length == max(lengths.values()) and name.startswith(f"{path}."):
            return int(name.removeprefix(f"{path}.").partition(".")[0])
    return None


def _kind_of_module(name: str, modules: Mapping[str, str]) -> str:
    """From the class of the tensor's own module, else from those around it, inside out."""
    path, _, _ = name.rpartition(".")
    own = modules.get(path, "")
    if "Embedding" in own:
        return "embed"
    if "Norm" in own:
        return "norm"
    while path:
        around = modules.get(path, "")
        if _ATTENTION.search(around):
            return "attn.other"
        if re.search(r"mlp|ffn|feedforward|experts|moe", around, re.IGNORECASE):
            return "mlp.other"
        path, _, _ = path.rpartition(".")
    return "other"


def _offsets(places: Iterable[_Place]) -> tuple[dict[str, int], int]:
    """Where each stack's count starts, and the number of layers of all."""
    lengths: dict[str, int] = {}
    for place in places:
        if place.index is not None:
            lengths[place.stack] = max(lengths.get(place.stack, 0), place.index + 1)
    offsets, n_layers = {}, 0
    for stack, length in lengths.items():
        offsets[stack] = n_layers
        n_layers += length
    return offsets, n_layers


def _order(layer: int | None, kind: str) -> tuple[int, int, int]:
    """Sort key of a group: before the stack, in it, after it."""
    if layer is not None:
        return (1, layer, KINDS.index(kind))
    return (0 if kind == "embed" else 2, 0, KINDS.index(kind))


def _depth(layer: int | None, kind: str, n_layers: int) -> float:
    if layer is not None:
        return layer / (n_layers - 1) if n_layers > 1 else 0.0
    return 0.0 if kind == "embed" else 1.0


def _first(kinds: tuple[tuple[str, str], ...], name: str) -> str | None:
    return next((k for p, k in kinds if re.search(p, name, re.IGNORECASE)), None)
