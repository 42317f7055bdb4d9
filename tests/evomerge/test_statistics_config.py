"""`space.statistics`: what is collected beside the weights."""

from pathlib import Path

import pytest

from evomerge.config import Config, parse
from evomerge.errors import ConfigError

PLAIN = """
base: org/base
experts: {math: org/math, code: org/code}
objectives: [{name: math, lm_eval: gsm8k}]
"""


def of(section: str, folder: Path) -> Config:
    return parse(PLAIN + f"space: {{operator: regmean, statistics: {section}}}\n", folder=folder)


def test_files_are_taken_from_the_configurations_folder(tmp_path: Path):
    for name in ("texts.jsonl", "math.safetensors"):
        (tmp_path / name).touch()
    config = of("{text: texts.jsonl, second_moments: {math: math.safetensors}}", tmp_path)
    statistics = config.space.statistics
    assert statistics.text == str(tmp_path / "texts.jsonl")
    assert statistics.second_moments == {"math": str(tmp_path / "math.safetensors")}
    assert parse(config.to_yaml(), folder=tmp_path / "elsewhere") == config


def test_what_is_collected_decides_the_runs_results(tmp_path: Path):
    digests = {of(section, tmp_path).digest for section in ("{}", "{samples: 8}", "{text: t.txt}")}
    assert len(digests) == 3


@pytest.mark.parametrize(
    ("section", "fact"),
    [
        ("{second_moments: {chat: a.safetensors}}", "there is no expert chat"),
        ("{texts: a.txt}", "did you mean `text`"),
        ("{samples: 0}", "space.statistics.samples"),
        ("{max_length: 1}", "space.statistics.max_length"),
    ],
)
def test_mistakes_are_refused(section: str, fact: str, tmp_path: Path):
    with pytest.raises(ConfigError, match=fact):
        of(section, tmp_path)
