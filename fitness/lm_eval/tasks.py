"""From a path or a name to lm-eval's tasks: one, or those that a group, a tag or a folder holds."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any

from evomerge.errors import TaskError
from fitness.lm_eval.containment import lm_eval_errors, unusable


@dataclass(frozen=True, slots=True)
class Tasks:
    """lm-eval's tasks by name, in its order, and the group that they were asked for as, if any."""

    by_name: Mapping[str, Any]
    group: Any | None = None

    def counts_by_size(self, metric: str, filter_name: str) -> bool:
        """Whether the group's score weighs its tasks by their number of items: lm-eval's default.

        So does the score of a tag or a folder, which has none in lm-eval.
        """
        listed = [] if self.group is None else self.group.aggregate_metric_list or []
        for known in listed:
            filters = known.filter_list
            if known.metric == metric and (filters is None or filter_name in filters):
                return bool(known.weight_by_size)
        return True


def load(name: str, include_path: str | None = None) -> Tasks:
    """The tasks of a YAML file, a folder, or a name in `include_path` or lm-eval's catalogue.

    A folder stands for its group if it has one, otherwise for all of its tasks. Code that a task
    names (`!function`, `class:`) is run, as lm-eval does.

    Raises:
        TaskError: when there is no such task or lm-eval cannot read it.
    """
    try:
        return _load(name, None if include_path is None else _existing(include_path))
    except lm_eval_errors() as error:
        raise unusable(name, error) from error


def _load(name: str, include_path: Path | None) -> Tasks:
    path = Path(name).expanduser()
    if include_path is not None and name in (manager := _of_folder(include_path)).all_tasks:
        return _named(name, manager, include_path)
    if path.is_dir():
        return _folder(name, path)
    if path.suffix in {".yaml", ".yml"} or path.exists():
        return _file(name, path)
    return _named(name, _catalogue(include_path), include_path)


def _existing(include_path: str) -> Path:
    path = Path(include_path).expanduser()
    if not path.is_dir():
        raise TaskError(
            f"{include_path}: include_path must be a folder with tasks, but there is none: check "
            "the path"
        )
    return path.resolve()


def _folder(name: str, path: Path) -> Tasks:
    manager = _of_folder(path)
    roots = _roots(manager)
    if len(roots) > 1:
        raise TaskError(
            f"{name}: a folder must hold one group or tasks only, but this one holds the groups "
            f"{', '.join(roots)}: give the path of one YAML file, or one name and this folder as "
            "include_path"
        )
    if roots:
        return _named(roots[0], manager, path)
    if not manager.all_subtasks:
        raise TaskError(
            f"{name}: a folder must hold tasks, but in this one no YAML file is one: check the "
            "path, and that each file has the key task"
        )
    return Tasks(manager.load(list(manager.all_subtasks))["tasks"])


def _file(name: str, path: Path) -> Tasks:
    from lm_eval.tasks import TaskManager
    from lm_eval.tasks._yaml_loader import load_yaml

    if not path.exists():
        raise TaskError(
            f"{name}: a task must be a YAML file, a folder with some, or a name that lm-eval "
            "knows, but there is no such file: check the path"
        )
    path = path.resolve()
    config = load_yaml(path, resolve_func=False)
    if "group" in config and "class" not in config:
        return _named(config["group"], _of_folder(path.parent), path.parent)
    return Tasks(TaskManager(include_defaults=False).load([str(path)])["tasks"])


def _named(name: str, manager: Any, folder: Path | None) -> Tasks:
    """A task, group or tag of the manager, or of lm-eval's catalogue if it refers to that."""
    if name not in manager.all_tasks:
        close = get_close_matches(name, manager.all_tasks, n=3)
        raise TaskError(
            f"{name}: a task must be a YAML file, a folder with some, or a name that lm-eval "
            "knows, but it is none of these: "
            + (f"did you mean {' or '.join(close)}?" if close else "check the spelling")
        )
    if not _knows_members(name, manager.task_index):
        manager = _catalogue(folder)
    loaded = manager.load([name])
    groups = loaded.get("groups") or {}
    if not loaded["tasks"]:
        raise TaskError(
            f"{name}: a group must have tasks, but this one has none: name some in its file"
        )
    return Tasks(loaded["tasks"], groups.get(name))


def _members(config: Mapping[str, Any] | None) -> Iterable[Any]:
    listed = (config or {}).get("task")
    return [listed] if isinstance(listed, str) else listed or []


def _knows_members(name: str, index: Mapping[str, Any]) -> bool:
    """Whether all that a group refers to, also through other groups, is in the index."""
    from lm_eval.tasks._index import Kind

    def known(member: Any) -> bool:
        if isinstance(member, str):
            return member in index and _knows_members(member, index)
        if "group" in member and member["group"] not in index:
            return all(known(inner) for inner in _members(member))
        # A task that is written out in place needs no index.
        referred = member.get("group") or member.get("task")
        return referred in index or bool({"dataset_path", "custom_dataset"} & set(member))

    entry = index[name]
    return entry.kind is not Kind.GROUP or all(known(member) for member in _members(entry.cfg))


def _roots(manager: Any) -> list[str]:
    """Groups that are not part of another one."""
    inner = set()
    for group in manager.all_groups:
        for member in _members(manager.task_index[group].cfg):
            inner.add(member if isinstance(member, str) else member.get("group"))
    return [group for group in manager.all_groups if group not in inner]


def _of_folder(folder: Path) -> Any:
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=str(folder), include_defaults=False)


@cache
def _catalogue(folder: Path | None) -> Any:
    """All tasks that come with lm-eval, and a folder's: half a minute, so once per process."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=None if folder is None else str(folder))
