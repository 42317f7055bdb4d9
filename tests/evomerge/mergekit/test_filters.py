import random

import pytest

from evomerge.mergekit.filters import separate
from evomerge.mergekit.settings import Place, lookup


def first_hit(entries, name):
    return next(key for fragment, key in entries if fragment in name)


def llama_names(n_layers):
    keys = {
        "model.embed_tokens.weight": "embed",
        "model.norm.weight": "norm",
        "lm_head.weight": "head",
    }
    parts = {
        "self_attn.q_proj.weight": "q",
        "self_attn.q_proj.bias": "q",
        "mlp.up_proj.weight": "up",
        "input_layernorm.weight": "norm",
        "post_attention_layernorm.weight": "norm",
    }
    for layer in range(n_layers):
        for part, kind in parts.items():
            keys[f"model.layers.{layer}.{part}"] = f"{layer}.{kind}"
    return keys


def test_every_group_of_a_llama_takes_one_fragment_and_layer_1_is_not_layer_10():
    keys = llama_names(12)
    entries = separate(keys)
    assert {name: first_hit(entries, name) for name in keys} == keys
    assert len(entries) == len(set(keys.values()))
    assert ("model.layers.1.self_attn.q_proj.", "1.q") in entries
    # both norms of a layer have no beginning of their own: what is left of the layer
    assert entries.index(("model.layers.1.", "1.norm")) > entries.index(
        ("model.layers.1.mlp.up_proj.", "1.up")
    )


def test_names_without_any_order_are_still_told_apart():
    for seed in range(300):
        rng = random.Random(seed)
        parts = ["a", "b", "ab", "aa", "1", "11"]
        names = {
            ".".join(rng.choice(parts) for _ in range(rng.randint(1, 4)))
            for _ in range(rng.randint(1, 12))
        }
        keys = {name: rng.randint(0, 3) for name in sorted(names)}
        entries = separate(keys)
        assert {name: first_hit(entries, name) for name in keys} == keys


def test_a_name_inside_another_name_comes_after_it():
    keys = {"norm.weight": 0, "post_norm.weight": 1, "pre_norm.weight": 0}
    entries = separate(keys)
    assert {name: first_hit(entries, name) for name in keys} == keys


@pytest.mark.parametrize(
    ("setting", "t", "value"),
    [
        (0.5, 0.0, 0.5),
        ([0.0, 1.0], 0.25, 0.25),
        ([0.0, 1.0, 0.0], 0.75, 0.5),
        ([0.3], 1.0, 0.3),
        (["1e-1", 0.3], 0.5, 0.2),  # YAML 1.1 reads 1e-1 as text
        ([True, False], 0.9, True),  # truth values are not interpolated
        ([{"filter": "mlp", "value": 0.1}, {"value": 0.7}], 0.0, 0.7),
        ([{"filter": "*", "value": [0.0, 1.0]}], 0.5, 0.5),
        ({"filter": "attn", "value": 0.2}, 0.0, 0.2),
    ],
)
def test_values_are_found_as_the_grammar_says(setting, t, value):
    found = lookup([{"weight": setting}], "weight", Place("layers.3.self_attn.q_proj.weight", t))
    assert found == pytest.approx(value)


def test_the_narrowest_scope_wins_and_one_whose_filters_all_miss_is_passed_over():
    place = Place("layers.3.mlp.weight")
    narrow = {"weight": [{"filter": "attn", "value": 0.2}]}
    assert lookup([narrow, {"weight": 0.9}], "weight", place) == 0.9
    assert lookup([{"weight": 0.1}, {"weight": 0.9}], "weight", place) == 0.1
    assert lookup([narrow], "weight", place) is None
    assert lookup([narrow, {"density": 1.0}], "weight", place) is None
