import pytest

from evomerge.errors import ConfigError
from evomerge.mergekit.reading import read_merge_file

SLICES = """\
merge_method: task_arithmetic
base_model: base
slices:
  - sources:
      - {model: base, layer_range: [0, 2]}
      - {model: math, layer_range: [0, 2], parameters: {weight: [0.0, 1.0]}}
    parameters: {lambda: 0.5}
  - sources:
      - {model: base, layer_range: [2, 3]}
      - {model: math, layer_range: [2, 3], parameters: {weight: [0.2, 0.8]}}
parameters: {weight: 0.9, lambda: 2.0}
"""


def weight(file, layer=None, is_first=False, parameter="weight", model="math"):
    return file.value(parameter, "x", layer=layer, is_first=is_first, model=model)


def test_gradients_run_over_their_slice_and_ends_take_the_first_value():
    file = read_merge_file(SLICES, "f", n_layers=3)
    assert [weight(file, layer) for layer in (0, 1)] == [0.0, 1.0]
    assert weight(file, 2) == 0.8  # a slice of one layer takes the last value
    assert weight(file, is_first=True) == 0.0  # embeddings: the first slice's first value
    assert weight(file) == 0.2  # norm and head: the last slice's first value
    assert [weight(file, i, parameter="lambda", model=None) for i in (0, 2)] == [0.5, 2.0]
    assert weight(file, 0, model="base") == 0.9  # none of its own: the file's


def test_gradients_of_whole_models_need_the_number_of_layers():
    text = "merge_method: ties\nbase_model: b\nmodels: [{model: m, parameters: {weight: [0, 1]}}]\n"
    assert weight(read_merge_file(text, "f", n_layers=5), 2, model="m") == 0.5
    with pytest.raises(ConfigError, match="their number is not known"):
        weight(read_merge_file(text, "f"), 2, model="m")


def test_model_references_of_both_forms_are_one_string():
    text = """\
merge_method: linear
models:
  - model: {model: {path: org/a, revision: v1}, lora: {path: ./lora}}
  - model: org/b@main
"""
    file = read_merge_file(text, "f")
    assert file.models == ("org/a@v1+./lora", "org/b@main")


def test_what_is_ignored_is_named():
    text = SLICES.replace("lambda: 2.0}", "lambda: 2.0}\nmerge_metod: x")
    text = text.replace("    parameters: {lambda: 0.5}", "    residual_weight: 0.5")
    notes = read_merge_file(text, "f").notes
    assert any("`merge_metod` is no key of mergekit's" in note for note in notes)
    assert any("residual_weight" in note for note in notes)
    models = "merge_method: ties\nmodels: [{model: a, layer_range: [0, 1], wieght: 1}]\n"
    notes = read_merge_file(models, "f").notes
    assert any("models[0].wieght" in note for note in notes)
    assert any("layer_range" in note for note in notes)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("merge_method: ties\n", "exactly one of models, slices and modules"),
        ("merge_method: ties\nmodels: [{modle: a}]\n", "has `model` and `parameters`"),
        (SLICES.replace("[2, 3]", "[1, 2]"), "stacked anew"),
        (SLICES.replace("math, layer_range: [2, 3]", "math, layer_range: [0, 1]"), "same layers"),
        (SLICES.replace("math, layer_range: [2", "code, layer_range: [2"), "the same models"),
        ("- 1\n", "must be a mapping"),
        ("a: [\n", "must be YAML"),
    ],
)
def test_files_that_are_no_coefficients_by_tensor_are_refused(text, message):
    with pytest.raises(ConfigError, match=message):
        read_merge_file(text, "f", n_layers=3)
