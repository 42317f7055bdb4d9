"""Which tasks are public benchmarks, whose published scores a search must not spoil."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_LOCAL_FORMATS = frozenset(
    {"json", "csv", "parquet", "text", "arrow", "pandas", "xml", "sql", "spark", "webdataset"}
)


def is_public(
    config_source: str | None, dataset_path: str | None, data_files: Any, catalogue: Path
) -> bool:
    """Whether a task comes with lm-eval, or reads its documents from the Hub or another server.

    `config_source` is the path of its YAML file, `catalogue` lm-eval's own folder of tasks;
    `dataset_path` and `data_files` are what `datasets.load_dataset` gets.
    """
    if config_source is not None and Path(config_source).is_relative_to(catalogue):
        return True
    if dataset_path is None:  # documents that a Python task makes itself
        return False
    if dataset_path in _LOCAL_FORMATS:
        return any("://" in str(path).removeprefix("file://") for path in _paths(data_files))
    return not Path(dataset_path).expanduser().exists()


def warning(name: str, tasks: Mapping[str, Any]) -> str | None:
    """One sentence if search items come from the split that scores of public tasks are told of.

    That is the test split, or where a task has none its validation split. When a task has both,
    search items come from validation and there is nothing to warn of.
    """
    import lm_eval.tasks

    catalogue = Path(lm_eval.tasks.__file__).parent
    spoiled: dict[str, str] = {}
    for task_name, task in tasks.items():
        config = task.config
        metadata = config.metadata if isinstance(config.metadata, Mapping) else {}
        files = (config.dataset_kwargs or {}).get("data_files")
        path = config.dataset_path or getattr(task, "DATASET_PATH", None)
        own = path if config.custom_dataset is None else None
        if is_public(metadata.get("config_source"), own, files, catalogue) and not (
            task.has_validation_docs() and task.has_test_docs()
        ):
            spoiled[task_name] = "test" if task.has_test_docs() else "validation"
    if not spoiled:
        return None
    more = f" and {len(spoiled) - 3} more" if len(spoiled) > 3 else ""
    return (
        f"{name}: search items come from the {' and '.join(sorted(set(spoiled.values())))} split "
        f"of a public benchmark ({', '.join(list(spoiled)[:3])}{more}), which models are compared "
        "on: a merge that is selected on them must not be compared with published scores; report "
        "its held-out score, or search on a task with a validation split of its own"
    )


def _paths(data_files: Any) -> Sequence[Any]:
    if isinstance(data_files, Mapping):
        return [path for value in data_files.values() for path in _paths(value)]
    if isinstance(data_files, list | tuple):
        return data_files
    return [data_files]
