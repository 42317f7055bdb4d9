"""Any YAML of mergekit's as a configuration."""

from pathlib import Path

from evomerge.errors import ConfigError
from evomerge.mergekit.evolve import import_evolve
from evomerge.mergekit.imported import Imported
from evomerge.mergekit.merges import import_merge
from evomerge.mergekit.yaml_files import read_mapping


def import_file(
    path: Path, *, tasks: tuple[str, ...] = (), n_layers: int | None = None
) -> Imported:
    """A configuration of mergekit-evolve, or a merge file.

    Args:
        path: The file.
        tasks: Objectives for a merge file, which has none.
        n_layers: Of the models of mergekit-evolve, where they are not on this machine.

    Raises:
        ConfigError: The file is neither, or says what has no counterpart here.
    """
    plain = read_mapping(path)
    folder = path.resolve().parent
    if "genome" in plain:
        if tasks:
            raise ConfigError(
                f"--task is for merge files, but {path} names its own tasks: leave it out"
            )
        return import_evolve(plain, str(path), folder, n_layers=n_layers)
    if "merge_method" not in plain:
        raise ConfigError(
            f"a mergekit file has a genome (mergekit-evolve) or a merge_method, but {path} has "
            f"{', '.join(map(str, plain)) or 'nothing'}: give one of these"
        )
    return import_merge(path.read_text(encoding="utf-8"), str(path), folder, tasks=tasks)
