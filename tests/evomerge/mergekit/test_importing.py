import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from evomerge.cli import app
from evomerge.config import STARTED_SPACE, parse, read_config
from evomerge.errors import ConfigError
from evomerge.evaluation import open_models, worker_setup
from evomerge.mergekit.exporting import of_run
from evomerge.mergekit.importing import import_file
from evomerge.session import bind_space

EVOLVE = """\
genome:
  models: [org/math@v1, ./code, org/base]
  merge_method: ties
  base_model: org/base
  tokenizer_source: union
  layer_granularity: 8
  normalize: 1.0
  allow_negative_weights: true
  filters: [self_attn, mlp]
  smooth: false
  colour: blue
tasks:
  - gsm8k
  - {name: ./tasks/chat_train, weight: -0.5, metric: "loss,none", note: x}
limit: 100
num_fewshot: 4
shuffle: true
random_init: true
apply_chat_template: true
fewshot_as_multiturn: false
seed: 3
"""


def imported(tmp_path, text, **options):
    file = tmp_path / "file.yaml"
    file.write_text(text)
    return import_file(file, **options)


def test_every_key_of_mergekit_evolve_is_used_or_named(tmp_path):
    result = imported(tmp_path, EVOLVE, n_layers=32)
    config = parse(result.to_yaml("file.yaml"), folder=tmp_path)
    assert config.base.path == "org/base"
    assert {n: (m.path, m.revision) for n, m in config.experts.items()} == {
        "math": ("org/math", "v1"),
        "code": (str(tmp_path / "code"), None),
    }
    space = config.space
    assert (space.operator, space.prepare) == ("ties_exact", {"reduce": "mean"})
    assert space.coefficients["map"] == "kind_depth"
    assert space.coefficients["bins"] == 4
    assert space.coefficients["low"] == -0.2
    assert space.genes["density"]["per_expert"]
    first, second = config.objectives
    assert (first.name, first.metric, first.direction) == ("gsm8k", "acc,none", "maximize")
    assert (second.metric, second.direction) == ("loss,none", "minimize")
    assert (first.items, first.num_fewshot) == (100, 4)
    assert first.options == {"apply_chat_template": True}
    notes = "\n".join(result.notes)
    for named in (
        "`seed` is no key",
        "`genome.colour` is no key",
        "`tasks[1].note` is no key",
        "random_init",
        "shuffle",
        "tokenizer_source: union",
        "stands among the models too",
        "gsm8k is a public benchmark",
        "weights: {gsm8k: 1, chat_train: 0.5}",
        "add `scale",
    ):
        assert named in notes
    assert "chat_train is a public benchmark" not in notes


@pytest.mark.parametrize(
    ("genome", "operator", "coefficients"),
    [
        ({"merge_method": "linear", "base_model": None}, "task_arithmetic", {"map": "global"}),
        ({"merge_method": "slerp", "layer_granularity": 1}, "slerp", {"map": "depth_bins"}),
        ({"merge_method": "dare_ties"}, "dare_ties_exact", {"map": "global"}),
        (
            {"layer_granularity": 1, "smooth": True},
            "task_arithmetic",
            {"map": "depth_spline", "knots": 2},
        ),
        ({"filters": ["q_proj", "mlp"]}, "task_arithmetic", {"map": "kind_depth", "bins": 1}),
    ],
)
def test_genomes_become_spaces_that_are_valid(tiny_zoo, tmp_path, genome, operator, coefficients):
    base, *experts = map(str, (tiny_zoo.base, *tiny_zoo.experts.values()))
    models = [base, experts[0]] if genome.get("merge_method") == "slerp" else [base, *experts]
    plain = {"models": models, "merge_method": "task_arithmetic", "base_model": base, **genome}
    text = yaml.safe_dump({"genome": plain, "tasks": ["zoo_sort"]})
    result = imported(tmp_path, text)
    space = result.config["space"]
    assert space["operator"] == operator
    assert coefficients.items() <= space["coefficients"].items()
    config = parse(result.to_yaml("file.yaml"), folder=tmp_path)
    assert any("no template: left out" in note for note in result.notes)
    models = open_models(worker_setup(config).models)
    assert bind_space(config, models.anatomy.groups).dimensions


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"merge_method": "sce"}, "merge_method of mergekit-evolve is one of"),
        ({"base_model": None}, "ties needs a base_model"),
        ({"merge_method": "slerp"}, "slerp is imported for two models"),
        ({"merge_method": "linear", "normalize": False, "layer_granularity": 0}, "scales the base"),
        ({"layer_granularity": 5}, "no multiple of 5"),
        ({"smooth": "yes please"}, "must be true or false"),
        ({"models": ["org/base"]}, "needs an expert beside its base"),
    ],
)
def test_what_cannot_be_imported_is_refused_with_the_reason(tmp_path, change, message):
    plain = yaml.safe_load(EVOLVE)
    plain["genome"] |= change
    with pytest.raises(ConfigError, match=message):
        imported(tmp_path, yaml.safe_dump(plain), n_layers=32)


def test_the_number_of_layers_is_asked_for_where_the_base_is_elsewhere(tmp_path):
    with pytest.raises(ConfigError, match="give it with --layers"):
        imported(tmp_path, EVOLVE)


def test_a_merge_comes_back_as_the_recipe_that_it_was_exported_from(write_config, tmp_path):
    config = read_config(write_config())
    models = open_models(worker_setup(config).models)
    space = bind_space(config, models.anatomy.groups)
    rng = np.random.default_rng(2)
    recipe = space.decode(tuple(rng.uniform(0.1, 0.9, len(space.dimensions)).round(6)))
    file = tmp_path / "merge.yaml"
    file.write_text(of_run(config, models, recipe))
    result = import_file(file, tasks=("zoo_sort",))
    assert result.start is not None
    assert result.start.matrix().tolist() == recipe.matrix().tolist()
    assert result.start.operator == "task_arithmetic"

    out = tmp_path / "new.yaml"
    for path, text in result.files("merge.yaml", out).items():
        path.write_text(text)
    again = read_config(out)
    assert again.space.spec(0).target == STARTED_SPACE
    started = bind_space(again, models.anatomy.groups)
    found = started.decode(started.anchors[0])
    np.testing.assert_allclose(found.matrix(), recipe.matrix(), atol=2e-5)


def merge(tiny_zoo, method, **more):
    first, second = map(str, list(tiny_zoo.experts.values())[:2])
    plain = {
        "merge_method": method,
        "base_model": str(tiny_zoo.base),
        "models": [
            {"model": first, "parameters": {"weight": 0.6, "density": 0.3}},
            {"model": second, "parameters": {"weight": [0.2, 0.4], "density": 0.7}},
        ],
        **more,
    }
    return yaml.safe_dump(plain)


def test_methods_with_an_election_become_their_exact_operators(tiny_zoo, tmp_path):
    text = merge(tiny_zoo, "ties", parameters={"lambda": 0.8})
    result = imported(tmp_path, text)
    space = result.config["space"]
    assert space["operator"] == "ties_exact"
    names = list(result.config["experts"])
    assert space["prepare"] == {
        f"density@{names[0]}": 0.3,
        f"density@{names[1]}": 0.7,
        "reduce": "mean",
        "scale": 0.8,
    }
    C = result.start.matrix()
    assert set(C[0]) == {0.6}
    assert C[1].min() == pytest.approx(0.2)
    assert C[1].max() == pytest.approx(0.4)
    assert "# objectives:" in result.to_yaml("f")


def test_normalized_weights_are_divided_and_lambda_is_multiplied(tiny_zoo, tmp_path):
    parameters = {"normalize": 1.0, "lambda": 0.5}
    text = merge(tiny_zoo, "task_arithmetic", parameters=parameters).replace("- 0.4", "- 0.2")
    C = imported(tmp_path, text).start.matrix()
    np.testing.assert_allclose(C, np.array([[0.375], [0.125]]) * np.ones_like(C))


def test_a_linear_merge_counts_its_base_as_a_model(tiny_zoo, tmp_path):
    base, first, second = map(str, (tiny_zoo.base, *list(tiny_zoo.experts.values())[:2]))
    models = [
        {"model": m, "parameters": {"weight": w}} for m, w in ((base, 2), (first, 1), (second, 1))
    ]
    text = yaml.safe_dump({"merge_method": "linear", "models": models})
    result = imported(tmp_path, text)
    assert result.config["base"] == base
    assert set(result.start.matrix().ravel()) == {0.25}
    models[0]["parameters"]["weight"] = 0.3
    unscaled = {"merge_method": "linear", "models": models, "parameters": {"normalize": False}}
    with pytest.raises(ConfigError, match=r"add up to 2\.3"):
        imported(tmp_path, yaml.safe_dump(unscaled))


def test_parameters_without_effect_are_named(tiny_zoo, tmp_path):
    text = merge(tiny_zoo, "task_arithmetic", parameters={"wieght": 1.0, "rescale": True})
    text = text.replace("density: 0.3", "lambda: 0.3")
    notes = "\n".join(imported(tmp_path, text).notes)
    assert "`lambda` under a model is ignored" in notes
    assert "`wieght` is no parameter of task_arithmetic" in notes
    assert "`rescale: true` has no counterpart" in notes
    with pytest.raises(ConfigError, match="passthrough"):
        imported(tmp_path, merge(tiny_zoo, "passthrough"))


def test_the_command_writes_the_files_and_check_accepts_them(tiny_zoo, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plain = {
        "genome": {
            "models": [str(path) for path in tiny_zoo.experts.values()],
            "base_model": str(tiny_zoo.base),
            "merge_method": "ties",
        },
        "tasks": [str(tiny_zoo.tasks["sort"])],
        "num_fewshot": 0,
        "limit": 10,
    }
    (tmp_path / "evolve.yaml").write_text(yaml.safe_dump(plain))
    run = CliRunner()
    result = run.invoke(app, ["import-mergekit", "evolve.yaml"], catch_exceptions=False)
    assert result.exit_code == 0
    assert "--max-fevals" in " ".join(result.stdout.split())
    checked = run.invoke(app, ["check", "config.yaml"], catch_exceptions=False)
    assert "everything is in place" in checked.stdout
    with pytest.raises(ConfigError, match="exists: give another --out"):
        run.invoke(app, ["import-mergekit", "evolve.yaml"], catch_exceptions=False)
