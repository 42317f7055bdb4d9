"""Fixtures of all tests: an offline world, a cache of its own, a tiny real zoo."""

import os
from pathlib import Path

import pytest

# Before anything imports transformers, datasets or torch.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Banks and digests of tests stay out of the user's cache, also in child processes."""
    os.environ["EVOMERGE_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def tiny_zoo(tmp_path_factory: pytest.TempPathFactory):
    """A real base, two experts, an adapter and their tasks, trained in seconds."""
    from evomerge.demo.zoo import TINY_RECIPE, build_zoo

    return build_zoo(tmp_path_factory.mktemp("zoo") / "tiny", TINY_RECIPE, progress=False)


@pytest.fixture
def write_config(tiny_zoo, tmp_path: Path):
    """A function that writes a configuration over the tiny zoo; keywords are added as YAML."""
    import yaml

    def write(name: str = "config.yaml", **changes: object) -> Path:
        plain = {
            "base": str(tiny_zoo.base),
            "experts": {n: str(p) for n, p in {**tiny_zoo.experts, **tiny_zoo.adapters}.items()},
            "objectives": [
                {
                    "name": skill,
                    "lm_eval": str(task),
                    "items": 20,
                    "held_out": 30,
                }
                for skill, task in tiny_zoo.tasks.items()
            ],
            "budget": {"evaluations": 12},
            "workers": {"threads": 1},
            # each test evaluates for itself
            "reuse_evaluations": False,
            "seed": 3,
        }
        plain |= changes
        path = tmp_path / name
        path.write_text(
            yaml.safe_dump({k: v for k, v in plain.items() if v is not None}, sort_keys=False)
        )
        return path

    return write


@pytest.fixture
def python_objective(tmp_path: Path):
    """A function that makes an objective of a callable in `tests.support.sabotage`."""
    import json

    for split, numbers in {"search": range(4), "held_out": range(10, 14)}.items():
        lines = "".join(json.dumps({"x": float(n)}) + "\n" for n in numbers)
        (tmp_path / f"{split}.jsonl").write_text(lines)

    def objective(function: str, **arguments: object) -> dict[str, object]:
        options = {"options": {"arguments": arguments}} if arguments else {}
        return {
            "name": function,
            "python": f"tests.support.sabotage:{function}",
            "items": str(tmp_path / "search.jsonl"),
            "held_out": str(tmp_path / "held_out.jsonl"),
            **options,
        }

    return objective
