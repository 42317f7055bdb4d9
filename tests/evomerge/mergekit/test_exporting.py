import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from evomerge.cli import app
from evomerge.config import read_config
from evomerge.datatypes import Recipe
from evomerge.errors import ConfigError
from evomerge.evaluation import open_models, worker_setup
from evomerge.export import export
from evomerge.mergekit.coefficients import Tensor, by_group, by_tensor
from evomerge.mergekit.exporting import FILE, of_run
from evomerge.mergekit.reading import read_merge_file


@pytest.fixture
def opened(write_config):
    config = read_config(write_config())
    return config, open_models(worker_setup(config).models)


def test_the_coefficients_of_a_real_model_are_read_back_as_they_were(opened):
    config, models = opened
    groups = models.anatomy.groups
    C = np.random.default_rng(1).uniform(-0.2, 1.5, (len(models.experts), len(groups))).round(6)
    recipe = Recipe(
        "task_arithmetic",
        tuple(config.experts),
        models.anatomy.group_labels,
        tuple(map(tuple, C.tolist())),
    )
    text = of_run(config, models, recipe)
    file = read_merge_file(text, "the export", models.anatomy.n_layers)
    assert file.base == config.base.path
    tensors = {
        models.base.file_name(name): Tensor(role.layer, role.kind == "embed", role.group, 1)
        for name, role in models.anatomy.roles.items()
    }
    for model, row in zip(file.models, C.tolist(), strict=True):
        values = by_tensor(file, "weight", tensors, model, default=np.nan)
        assert by_group(values, tensors, groups) == (tuple(row), ())


def test_adapters_are_named_with_their_base_and_folders_by_name_on_request(opened, tiny_zoo):
    config, models = opened
    recipe = Recipe(
        "task_arithmetic",
        tuple(config.experts),
        models.anatomy.group_labels,
        ((0.3,) * len(models.anatomy.groups),) * len(config.experts),
    )
    text = of_run(config, models, recipe)
    named = [model["model"] for model in yaml.safe_load(text)["models"]]
    adapters = [f"{tiny_zoo.base}+{path}" for path in tiny_zoo.adapters.values()]
    assert named == [*map(str, tiny_zoo.experts.values()), *adapters]
    assert "--lora-merge-cache" in text
    shown = of_run(config, models, recipe, folders_by_name=True)
    assert str(tiny_zoo.folder) not in shown
    assert [m["model"] for m in yaml.safe_load(shown)["models"]][-1].startswith("./base+./")


def test_an_export_has_the_file_beside_the_weights_or_says_why_not(write_config, tmp_path):
    from evomerge.search import start

    start(read_config(write_config(budget={"evaluations": 0})), tmp_path / "run")
    export(tmp_path / "run", "uniform_average", tmp_path / "average", verify=False)
    assert (tmp_path / "average" / FILE).read_text().count("weight: 0.33") == 3
    assert "`mergekit-yaml mergekit.yaml OUT" in (tmp_path / "average" / "README.md").read_text()
    export(tmp_path / "run", "random_delta", tmp_path / "random", verify=False)
    assert not (tmp_path / "random" / FILE).exists()
    assert "no seed for the random numbers" in (tmp_path / "random" / "README.md").read_text()

    only = tmp_path / "only.yaml"
    arguments = ["export", str(tmp_path / "run"), "ties", "--mergekit", str(only)]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    assert yaml.safe_load(only.read_text())["merge_method"] == "ties"
    with pytest.raises(ConfigError, match="random_delta"):
        CliRunner().invoke(
            app,
            [*arguments[:2], "random_delta", "--mergekit", str(tmp_path / "other.yaml")],
            catch_exceptions=False,
        )
    with pytest.raises(ConfigError, match="there already"):
        CliRunner().invoke(app, arguments, catch_exceptions=False)
