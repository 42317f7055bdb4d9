from pathlib import Path

import pytest

from evomerge.config import LM_EVAL_FITNESS, parse, read_config
from evomerge.errors import ConfigError

GOOD = """\
base: org/base
experts: {math: ./math, code: {path: org/code, revision: main}}
objectives:
  - {name: math, lm_eval: ./math.yaml, metric: acc}
"""


def parsed(text: str, folder: Path = Path("/somewhere")):
    return parse(text, folder=folder)


def test_short_forms_and_defaults():
    config = parsed(GOOD)
    assert config.experts["code"].revision == "main"
    assert config.base.path == "org/base"
    assert config.sampler.name == "auto"
    assert config.workers.executor == "in_process"


def test_relative_paths_are_taken_from_the_file(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "tasks").mkdir()
    file = tmp_path / "sub" / "c.yaml"
    file.write_text(GOOD.replace("./math.yaml", "tasks"))
    config = read_config(file)
    assert config.experts["math"].path == str(tmp_path / "sub" / "math")
    assert config.objectives[0].lm_eval == str(tmp_path / "sub" / "tasks")
    assert config.base.path == "org/base"  # no such folder: a Hub id


def test_what_is_written_reads_back_equal_from_anywhere():
    config = parsed(GOOD + "sampler: {name: nsga2, population: 8}\nbudget: {evaluations: 7}\n")
    assert parse(config.to_yaml(), folder=Path("/elsewhere")) == config
    assert config.sampler.options == {"population": 8}


def test_budget_and_workers_do_not_change_the_digest_but_seed_and_space_do():
    digest = parsed(GOOD).digest
    assert parsed(GOOD + "budget: {evaluations: 5}\nworkers: {threads: 2}\n").digest == digest
    assert parsed(GOOD + "seed: 1\n").digest != digest
    assert parsed(GOOD + "space: {coefficients: {map: global}}\n").digest != digest


def test_objectives_of_one_task_share_one_fitness():
    text = GOOD + "  - {name: n, lm_eval: ./math.yaml, metric: acc_norm}\n"
    text += "  - {name: other, lm_eval: ./other.yaml, metric: acc}\n"
    first, second = parsed(text).fitness()
    assert first.target == LM_EVAL_FITNESS
    assert first.arguments["metrics"] == ("acc", "acc_norm")
    assert [o.name for o in first.arguments["objectives"]] == ["math", "n"]
    assert second.arguments["metrics"] == ("acc",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GOOD + "sampelr: x\n", "unknown key `sampelr`: did you mean `sampler`?"),
        (GOOD + "budget: {evaluation: 3}\n", "`budget.evaluation`: did you mean `evaluations`"),
        (GOOD.replace("metric:", "metrc:"), "`objectives.0.metrc`: did you mean `metric`"),
        (GOOD + "zzz: 1\n", "known keys: base, experts"),
        (GOOD + "workers: {count: 2}\n", "one worker, but count is 2: set `executor: ray`"),
        (GOOD + "workers: {executor: rai}\n", "`workers.executor`"),
        (GOOD + "seed: -1\n", "`seed`: Input should be greater than or equal to 0, but got -1"),
        (GOOD + "seed: 1\nseed: 2\n", "'seed' is there twice (line 6)"),
        (
            GOOD.replace("lm_eval: ./math.yaml, ", ""),
            "exactly one of lm_eval, unlabeled, merge, python, fitness",
        ),
        (GOOD.replace("{math:", "{'a/b':"), "letters, digits"),
        (GOOD.replace("experts:", "expert:"), "`experts` is required"),
        ("- 1\n", "must be a mapping"),
        ("a: [\n", "must be YAML"),
        (GOOD + "  - {name: math, python: 'a:b'}\n", "distinct names"),
    ],
)
def test_refusals_say_rule_fact_and_remedy(text, message):
    with pytest.raises(ConfigError) as caught:
        parsed(text)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"readable YAML file, but .* is not \(No such file"):
        read_config(tmp_path / "none.yaml")


def test_a_start_is_read_once_and_stands_in_the_configuration_from_then_on(tmp_path):
    import json

    from evomerge.config import STARTED_SPACE
    from evomerge.datatypes import Recipe

    recipe = Recipe("task_arithmetic", ("math", "code"), ("embed",), ((0.5,), (0.25,)))
    file = tmp_path / "recipe.json"
    file.write_text(json.dumps(recipe.to_json()))
    text = GOOD + "space: {start: recipe.json}\n"
    config = parsed(text, tmp_path)
    assert config.space.spec(0).target == STARTED_SPACE
    assert config.space.spec(0).arguments["start"] == recipe.to_json()
    file.write_text("{}")
    assert parse(config.to_yaml(), folder=Path("/elsewhere")) == config
    with pytest.raises(ConfigError, match="holds another thing"):
        parsed(text, tmp_path)
    file.unlink()
    with pytest.raises(ConfigError, match="is not readable"):
        parsed(text, tmp_path)
