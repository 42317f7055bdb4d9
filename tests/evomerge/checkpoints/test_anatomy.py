"""Layer and kind of every tensor."""

import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import pytest

from evomerge.checkpoints.anatomy import KINDS, Anatomy, role_of
from evomerge.checkpoints.reading import Checkpoint
from evomerge.datatypes import Group

Make = Callable[..., object]


def test_anatomy_does_not_load_torch() -> None:
    code = "import sys, evomerge.checkpoints.anatomy; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("name", "layer", "kind"),
    [
        # Llama, Mistral, Qwen, Gemma
        ("model.embed_tokens.weight", None, "embed"),
        ("model.layers.11.self_attn.q_proj.weight", 11, "attn.q"),
        ("model.layers.11.self_attn.q_proj.bias", 11, "attn.q"),
        ("model.layers.0.self_attn.k_proj.weight", 0, "attn.k"),
        ("model.layers.0.self_attn.v_proj.weight", 0, "attn.v"),
        ("model.layers.0.self_attn.o_proj.weight", 0, "attn.o"),
        ("model.layers.0.self_attn.q_norm.weight", 0, "norm"),
        ("model.layers.0.mlp.gate_proj.weight", 0, "mlp.gate"),
        ("model.layers.0.mlp.up_proj.weight", 0, "mlp.up"),
        ("model.layers.0.mlp.down_proj.weight", 0, "mlp.down"),
        ("model.layers.0.input_layernorm.weight", 0, "norm"),
        ("model.layers.0.post_attention_layernorm.weight", 0, "norm"),
        ("model.layers.0.pre_feedforward_layernorm.weight", 0, "norm"),
        ("model.norm.weight", None, "norm"),
        ("lm_head.weight", None, "head"),
        ("score.weight", None, "head"),
        # Phi, Phi-3
        ("model.layers.0.self_attn.dense.weight", 0, "attn.o"),
        ("model.layers.0.mlp.fc1.bias", 0, "mlp.up"),
        ("model.layers.0.mlp.fc2.weight", 0, "mlp.down"),
        ("model.final_layernorm.bias", None, "norm"),
        ("model.layers.0.self_attn.qkv_proj.weight", 0, "attn.qkv"),
        ("model.layers.0.mlp.gate_up_proj.weight", 0, "mlp.other"),
        # GPT-2
        ("transformer.wte.weight", None, "embed"),
        ("transformer.wpe.weight", None, "embed"),
        ("transformer.h.3.ln_1.weight", 3, "norm"),
        ("transformer.h.3.attn.c_attn.weight", 3, "attn.qkv"),
        ("transformer.h.3.attn.c_proj.bias", 3, "attn.o"),
        ("transformer.h.3.mlp.c_fc.weight", 3, "mlp.up"),
        ("transformer.h.3.mlp.c_proj.weight", 3, "mlp.down"),
        ("transformer.ln_f.bias", None, "norm"),
        # GPT-NeoX
        ("gpt_neox.embed_in.weight", None, "embed"),
        ("embed_out.weight", None, "head"),
        ("gpt_neox.layers.1.attention.query_key_value.weight", 1, "attn.qkv"),
        ("gpt_neox.layers.1.attention.dense.weight", 1, "attn.o"),
        ("gpt_neox.layers.1.mlp.dense_h_to_4h.weight", 1, "mlp.up"),
        ("gpt_neox.layers.1.mlp.dense_4h_to_h.weight", 1, "mlp.down"),
        ("gpt_neox.final_layer_norm.weight", None, "norm"),
        # BERT
        ("bert.embeddings.word_embeddings.weight", None, "embed"),
        ("bert.embeddings.LayerNorm.weight", None, "embed"),
        ("bert.encoder.layer.7.attention.self.query.weight", 7, "attn.q"),
        ("bert.encoder.layer.7.attention.self.key.weight", 7, "attn.k"),
        ("bert.encoder.layer.7.attention.self.value.bias", 7, "attn.v"),
        ("bert.encoder.layer.7.attention.output.dense.weight", 7, "attn.o"),
        ("bert.encoder.layer.7.attention.output.LayerNorm.weight", 7, "norm"),
        ("bert.encoder.layer.7.intermediate.dense.weight", 7, "mlp.up"),
        ("bert.encoder.layer.7.output.dense.weight", 7, "mlp.down"),
        ("bert.encoder.layer.7.output.LayerNorm.bias", 7, "norm"),
        ("bert.pooler.dense.weight", None, "head"),
        ("classifier.weight", None, "head"),
        ("cls.predictions.transform.LayerNorm.weight", None, "head"),
        # Relatives
        ("distilbert.transformer.layer.2.attention.q_lin.weight", 2, "attn.q"),
        ("distilbert.transformer.layer.2.ffn.lin2.weight", 2, "mlp.down"),
        ("distilbert.transformer.layer.2.sa_layer_norm.weight", 2, "norm"),
        ("model.decoder.layers.4.self_attn.out_proj.weight", 4, "attn.o"),
        ("model.decoder.layers.4.fc1.weight", 4, "mlp.up"),
        ("encoder.block.5.layer.0.SelfAttention.q.weight", 5, "attn.q"),
        ("encoder.block.5.layer.1.DenseReluDense.wo.weight", 5, "mlp.down"),
        ("shared.weight", None, "embed"),
        ("model.layers.0.mlp.gate.weight", 0, "mlp.other"),
        ("model.layers.0.mlp.experts.down_proj", 0, "mlp.down"),
        ("model.layers.0.mlp.shared_expert.up_proj.weight", 0, "mlp.up"),
        # Not told
        ("trunk.weight", None, None),
        ("model.layers.0.mixer.weight", 0, None),
    ],
)
def test_names_tell_layer_and_kind(name: str, layer: int | None, kind: str | None) -> None:
    assert role_of(name) == (layer, kind)


@pytest.mark.parametrize(
    ("family", "kinds"),
    [
        ("llama", "q k v o gate up down norm"),
        ("mistral", "q k v o gate up down norm"),
        ("qwen2", "q k v o gate up down norm"),
        ("qwen3", "q k v o gate up down norm"),
        ("gemma", "q k v o gate up down norm"),
        ("gemma2", "q k v o gate up down norm"),
        ("phi", "q k v o up down norm"),
        ("phi3", "qkv o down other norm"),
        ("gpt2", "qkv o up down norm"),
        ("gpt_neox", "qkv o up down norm"),
        ("bert", "q k v o up down norm"),
    ],
)
def test_every_family_is_told_by_its_names(make_folder: Make, family: str, kinds: str) -> None:
    checkpoint = Checkpoint.open(make_folder("m", family))
    assert all(role_of(name)[1] is not None for name in checkpoint.tensors)
    anatomy = Anatomy.of(checkpoint)
    assert anatomy.n_layers == 2
    attention = {"q", "k", "v", "o", "qkv"}
    expected = [
        k if k == "norm" else f"attn.{k}" if k in attention else f"mlp.{k}" for k in kinds.split()
    ]
    for layer in range(2):
        assert [g.kind for g in anatomy.groups if g.layer == layer] == expected
    outside = [g.label for g in anatomy.groups if g.layer is None]
    ends = [] if family == "bert" else ["norm"]
    ends += [] if checkpoint.tied else ["head"]
    assert outside == ["embed", *ends]


def test_groups_hold_every_parameter_once_in_order(make_folder: Make) -> None:
    checkpoint = Checkpoint.open(make_folder("m", "llama"))
    anatomy = Anatomy.of(checkpoint)
    assert set(anatomy.roles) == set(checkpoint.tensors)
    assert sum(g.n_parameters for g in anatomy.groups) * 4 == checkpoint.n_bytes
    assert len(set(anatomy.group_labels)) == len(anatomy.groups)
    assert anatomy.groups[0] == Group(None, "embed", 0.0, 32 * 16)
    assert anatomy.groups[-1] == Group(None, "head", 1.0, 32 * 16)
    assert {g.layer: g.depth for g in anatomy.groups} == {None: 1.0, 0: 0.0, 1: 1.0}
    for role in anatomy.roles.values():
        group = anatomy.groups[role.group]
        assert (group.layer, group.kind) == (role.layer, role.kind)
    assert anatomy == Anatomy.of(checkpoint)


def test_a_tied_head_belongs_to_the_embedding(make_folder: Make) -> None:
    anatomy = Anatomy.of(Checkpoint.open(make_folder("m", "gpt2")))
    assert dict(anatomy.tied) == {"lm_head.weight": "transformer.wte.weight"}
    assert "head" not in anatomy.group_labels


def test_where_names_do_not_tell_the_modules_do(make_folder: Make) -> None:
    checkpoint = Checkpoint.open(make_folder("m", "xlm"))
    anatomy = Anatomy.of(checkpoint)
    assert anatomy.n_layers == 2
    roles = {name: (role.layer, role.kind) for name, role in anatomy.roles.items()}
    assert roles["transformer.attentions.1.q_lin.weight"] == (1, "attn.q")
    assert roles["transformer.layer_norm1.1.weight"] == (1, "norm")
    assert roles["transformer.ffns.0.lin1.weight"] == (0, "mlp.up")
    assert roles["transformer.layer_norm_emb.weight"] == (None, "norm")


@dataclass(frozen=True)
class Shape:
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Model:
    tensors: Mapping[str, Shape]
    modules: Mapping[str, str] = field(default_factory=dict)
    tied: Mapping[str, str] = field(default_factory=dict)


def test_an_encoder_and_a_decoder_count_their_layers_through() -> None:
    names = [
        f"{side}.block.{i}.layer.0.SelfAttention.q.weight"
        for side in ("encoder", "decoder")
        for i in range(2)
    ]
    anatomy = Anatomy.of(Model({name: Shape((2, 2)) for name in names}))
    assert [anatomy.roles[name].layer for name in names] == [0, 1, 2, 3]
    assert anatomy.n_layers == 4


def test_without_names_and_modules_everything_is_other() -> None:
    anatomy = Anatomy.of(Model({"a": Shape((2, 3)), "b": Shape(())}))
    assert anatomy.groups == (Group(None, "other", 1.0, 7),)


def test_a_single_layer_has_depth_zero() -> None:
    anatomy = Anatomy.of(Model({"layers.0.mlp.up_proj.weight": Shape((1,))}))
    assert anatomy.groups == (Group(0, "mlp.up", 0.0, 1),)


def test_kinds_are_those_of_group() -> None:
    assert Group.__doc__ is not None
    assert all(kind in Group.__doc__ for kind in KINDS)
