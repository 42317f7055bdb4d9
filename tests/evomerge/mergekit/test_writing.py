from dataclasses import replace

import numpy as np
import pytest
import yaml

from evomerge.datatypes import Recipe
from evomerge.errors import ConfigError
from evomerge.mergekit.coefficients import Tensor, by_tensor
from evomerge.mergekit.reading import read_merge_file
from evomerge.mergekit.writing import Names, merge_file, reference

GROUPS = (
    "embed",
    "0.attn.q",
    "0.mlp.up",
    "0.norm",
    "1.attn.q",
    "1.mlp.up",
    "1.norm",
    "norm",
    "head",
)
TENSORS = {
    "model.embed_tokens.weight": "embed",
    "model.norm.weight": "norm",
    "lm_head.weight": "head",
    **{
        f"model.layers.{layer}.{part}": f"{layer}.{kind}"
        for layer in (0, 1)
        for part, kind in {
            "self_attn.q_proj.weight": "attn.q",
            "mlp.up_proj.weight": "mlp.up",
            "input_layernorm.weight": "norm",
            "post_attention_layernorm.weight": "norm",
        }.items()
    },
}
NAMES = Names("./base", ("./math", "org/code@v1"), TENSORS, "bfloat16")


def recipe(operator, rows, **prepare):
    return Recipe(operator, ("math", "code"), GROUPS, tuple(map(tuple, rows)), prepare)


def irregular(low=0.1, high=1.3):
    return np.random.default_rng(3).uniform(low, high, (2, len(GROUPS))).round(6).tolist()


def places():
    """Every tensor's place as mergekit sees it."""
    found = {}
    for name, label in TENSORS.items():
        first, _, rest = label.partition(".")
        layer = int(first) if rest else None
        found[name] = Tensor(layer, label == "embed", GROUPS.index(label), 1)
    return found


def assert_says(text, parameter, model, row):
    file = read_merge_file(text, "the export", n_layers=2)
    values = by_tensor(file, parameter, places(), model, default=np.nan)
    assert values == {name: row[GROUPS.index(label)] for name, label in TENSORS.items()}


def test_every_tensor_has_the_coefficient_of_its_group():
    rows = irregular(-0.2)
    given = recipe("task_arithmetic", rows)
    text = merge_file(given, NAMES)
    for model, row in zip(NAMES.experts, rows, strict=True):
        assert_says(text, "weight", model, row)
    plain = yaml.safe_load(text)
    assert plain["merge_method"] == "task_arithmetic"
    assert plain["base_model"] == "./base"
    assert plain["parameters"] == {"normalize": False}
    assert (plain["dtype"], plain["out_dtype"]) == ("float32", "bfloat16")
    assert "tokenizer_source" not in plain  # the base's, and padding rows stay
    aligned = yaml.safe_load(merge_file(given, replace(NAMES, aligns_tokens=True)))
    assert aligned["tokenizer_source"] == "base"
    assert plain["models"][0]["parameters"]["weight"][-1] == {"value": 0.0}


def test_groups_of_a_layer_with_one_number_share_an_entry_and_equal_numbers_are_a_scalar():
    by_layer = [0.1, 0.4, 0.4, 0.4, 0.5, 0.5, 0.5, 0.2, 0.3]
    text = merge_file(recipe("task_arithmetic", [by_layer, [0.25] * len(GROUPS)]), NAMES)
    first, second = yaml.safe_load(text)["models"]
    assert [entry.get("filter") for entry in first["parameters"]["weight"]] == [
        "model.embed_tokens.",
        "model.norm.",
        "lm_head.",
        "model.layers.0.",
        "model.layers.1.",
        None,
    ]
    assert second["parameters"] == {"weight": 0.25}
    assert_says(text, "weight", "./math", by_layer)


def test_small_numbers_are_written_in_decimals():
    row = [1e-7 * (g + 1) for g in range(len(GROUPS))]
    text = merge_file(recipe("task_arithmetic", [row, row]), NAMES)
    assert "e-" not in text.replace("pre-", "")
    assert_says(text, "weight", "./math", row)


def test_the_election_with_coefficients_is_said_with_its_knobs():
    rows = irregular()
    given = recipe("ties_exact", rows, **{"density": 0.3, "density@code": 0.7, "scale": 0.9})
    text = merge_file(given, NAMES)
    plain = yaml.safe_load(text)
    assert plain["merge_method"] == "ties"
    assert plain["parameters"] == {"normalize": True, "lambda": 0.9}
    assert [m["parameters"]["density"] for m in plain["models"]] == [0.3, 0.7]
    for model, row in zip(NAMES.experts, rows, strict=True):
        assert_says(text, "weight", model, row)


def test_late_coefficients_that_are_a_common_factor_are_lambda():
    row = irregular()[0]
    text = merge_file(recipe("ties", [row, row], density=0.2), NAMES)
    assert_says(text, "lambda", None, row)
    assert yaml.safe_load(text)["models"][0]["parameters"] == {"weight": 1.0, "density": 0.2}


@pytest.mark.parametrize(
    ("operator", "rows", "knobs", "why"),
    [
        ("ties", irregular(), {}, "coefficients of ties come after its election"),
        ("ties_exact", irregular(-0.2), {}, "another number where one is negative"),
        ("ties_exact", irregular(), {"ranking": "model"}, "magnitudes within a tensor only"),
        ("dare", irregular(), {}, "no seed for the random numbers of dare"),
        ("dare_ties_exact", irregular(), {}, "no seed"),
        ("model_stock", irregular(), {}, "model_stock has no coefficients"),
        ("breadcrumbs", irregular(), {"gamma": 0.2}, "density and gamma exceed 1 together"),
        ("random_delta", irregular(), {}, "no seed"),
    ],
)
def test_what_mergekit_cannot_say_is_refused_with_the_reason(operator, rows, knobs, why):
    with pytest.raises(ConfigError) as caught:
        merge_file(recipe(operator, rows, **knobs), NAMES)
    assert why in str(caught.value)
    assert str(caught.value).endswith("export the weights")


def test_paths_that_mergekit_would_cut_are_refused():
    assert reference("org/model", "main") == "org/model@main"
    for path, revision in [("./a+b", None), ("./a@b", None), ("org/model", "x+y")]:
        with pytest.raises(ConfigError, match=r"no \+ and no @"):
            reference(path, revision)
