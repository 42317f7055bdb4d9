"""Builds the reference zoo: a base, experts and adapters trained from it, and lm-eval tasks.

On disk, all of it in one folder that is moved into place when it is complete:

    zoo.json              digest and recipe, and the size of every file below
    base/                 the base model and its tokenizer
    experts/SKILL/        fully fine-tuned models
    adapters/SKILL/       PEFT LoRA adapters of the base
    data/SKILL.SPLIT.jsonl    search and held-out items
    tasks/SKILL.yaml      lm-eval tasks named zoo_SKILL: validation = search, test = held-out items
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any

from evomerge.demo.recipe import DEFAULT_RECIPE, TINY_RECIPE, Shape, SkillPlan, ZooRecipe
from evomerge.demo.skills import SKILLS, Item, Split, choices_for, items
from evomerge.errors import ConfigError

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

__all__ = [
    "DEFAULT_RECIPE",
    "TINY_RECIPE",
    "Shape",
    "SkillPlan",
    "Zoo",
    "ZooRecipe",
    "build_zoo",
    "default_folder",
]

_STATE = "zoo.json"
_SPLITS: tuple[Split, ...] = ("search", "held_out")
_FEW_STEPS = 300  # below, starting processes takes longer than training in this one


@dataclass(frozen=True, slots=True)
class Zoo:
    """Where the parts of a complete zoo are; all paths are absolute, keys are skill names."""

    folder: Path
    base: Path
    experts: Mapping[str, Path]
    adapters: Mapping[str, Path]
    tasks: Mapping[str, Path]


def default_folder(recipe: ZooRecipe = DEFAULT_RECIPE) -> Path:
    """The folder in the user's cache that holds the zoo of `recipe`."""
    import platformdirs

    return Path(platformdirs.user_cache_dir("evomerge")) / "zoo" / recipe.digest


def build_zoo(
    folder: Path | None = None,
    recipe: ZooRecipe = DEFAULT_RECIPE,
    *,
    progress: bool = True,
    n_processes: int | None = None,
) -> Zoo:
    """Trains the zoo of `recipe` into `folder`, or finds it there.

    The same recipe gives the same bytes on the same machine with the same libraries. A build that
    is killed leaves nothing in `folder`; a second one for the same folder waits for the first.

    Args:
        folder: Where the zoo lives; by default a folder in the user's cache, named by the digest.
        recipe: What to build; a zoo of another recipe in `folder` is replaced.
        progress: Whether to show a progress bar on standard error.
        n_processes: How many experts are trained at a time, each on one core; by default 2, or 1
            if there is little to train. It does not change the result.

    Raises:
        ConfigError: If `folder` holds something that is not a zoo.
        MissingExtraError: If peft is missing and the recipe has adapters.
        subprocess.CalledProcessError: If a training process fails.
    """
    from filelock import FileLock

    folder = (folder or default_folder(recipe)).expanduser().absolute()
    if folder.exists() and not (folder / _STATE).is_file() and any(folder.iterdir()):
        raise ConfigError(f"the zoo needs a folder of its own, but {folder} holds other files")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.parent / f".{folder.name}.lock"):
        if not _is_complete(folder, recipe):
            # under the lock, whatever is left here by an earlier build is dead
            building = folder.parent / f".{folder.name}.building"
            shutil.rmtree(building, ignore_errors=True)
            if n_processes is None:
                n_processes = 1 if recipe.n_steps < _FEW_STEPS else 2
            _train_models(recipe, building, progress, n_processes)
            _write_items(recipe, building)
            _write_links(recipe, building, folder)
            _write_state(recipe, building)
            shutil.rmtree(folder, ignore_errors=True)
            building.replace(folder)
        _write_links(recipe, folder, folder)  # the folder may have been moved since it was built
    return Zoo(
        folder=folder,
        base=folder / "base",
        experts={plan.skill: folder / plan.folder for plan in recipe.plans if plan.kind == "full"},
        adapters={plan.skill: folder / plan.folder for plan in recipe.plans if plan.kind == "lora"},
        tasks={plan.skill: folder / "tasks" / f"{plan.skill}.yaml" for plan in recipe.plans},
    )


def _is_complete(folder: Path, recipe: ZooRecipe) -> bool:
    if not (folder / _STATE).is_file():
        return False
    state = json.loads((folder / _STATE).read_text(encoding="utf-8"))
    return state["digest"] == recipe.digest and all(
        (folder / name).is_file() and (folder / name).stat().st_size == n_bytes
        for name, n_bytes in state["files"].items()
    )


def _write_state(recipe: ZooRecipe, folder: Path) -> None:
    rewritten = {"adapter_config.json", *(f"{plan.skill}.yaml" for plan in recipe.plans)}
    files = {
        path.relative_to(folder).as_posix(): path.stat().st_size
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in rewritten
    }
    state = {"digest": recipe.digest, "recipe": asdict(recipe), "files": files}
    _write(folder / _STATE, json.dumps(state, indent=1) + "\n")


def _write(path: Path, text: str) -> None:
    """Writes `text` unless it is already there; readers see the old text or the new one."""
    if path.is_file() and path.read_text(encoding="utf-8") == text:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    fresh.write_text(text, encoding="utf-8")
    fresh.replace(path)


def _train_models(recipe: ZooRecipe, folder: Path, progress: bool, n_processes: int) -> None:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    from evomerge.demo.training import quiet_transformers, train_base, train_expert

    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=not progress,
    )
    with bar, quiet_transformers():
        task = bar.add_task("training the base", total=recipe.n_steps)
        train_base(recipe, folder / "base", lambda: bar.advance(task))
        bar.update(task, description="training the experts")
        if n_processes > 1:
            _train_in_processes(recipe, folder, n_processes, bar, task)
            return
        for plan in recipe.plans:
            train_expert(recipe, plan, folder, lambda: bar.advance(task))


def _train_in_processes(
    recipe: ZooRecipe, folder: Path, n_processes: int, bar: "Progress", task: "TaskID"
) -> None:
    """Deals the experts to `n_processes` fresh interpreters.

    Not multiprocessing: its spawn runs the caller's script again unless that has a main guard.
    """
    recipe_file = folder / "recipe.json"
    _write(recipe_file, json.dumps(asdict(recipe)))
    hands: list[list[SkillPlan]] = [[] for _ in range(min(n_processes, len(recipe.plans)))]
    for plan in sorted(recipe.plans, key=lambda plan: (-plan.n_steps, plan.skill)):
        min(hands, key=lambda hand: sum(plan.n_steps for plan in hand)).append(plan)
    package_root = str(Path(__file__).parents[2])
    path = os.pathsep.join(filter(None, [package_root, os.environ.get("PYTHONPATH")]))

    def follow(child: subprocess.Popen[str]) -> None:
        assert child.stdout is not None  # it was opened as a pipe
        for line in child.stdout:
            if line == "step\n":
                bar.advance(task)

    with ExitStack() as stack:
        children = []
        for hand in hands:
            command = [sys.executable, "-P", "-m", "evomerge.demo.training"]
            command += [str(recipe_file), str(folder), *(plan.skill for plan in hand)]
            child = stack.enter_context(
                subprocess.Popen(
                    command,
                    stdout=subprocess.PIPE,
                    text=True,
                    env={**os.environ, "PYTHONPATH": path},
                )
            )
            stack.callback(child.kill)  # runs before Popen's own exit waits for it
            children.append(child)
        followers = [Thread(target=follow, args=(child,)) for child in children]
        for follower in followers:
            follower.start()
        for child in children:
            if child.wait():
                raise subprocess.CalledProcessError(child.returncode, child.args)
        for follower in followers:
            follower.join()
    recipe_file.unlink()


def _write_items(recipe: ZooRecipe, folder: Path) -> None:
    n_items = {"search": recipe.n_search, "held_out": recipe.n_held_out}
    for plan in recipe.plans:
        for split in _SPLITS:
            asked = islice(items(plan.skill, plan.lengths, split, recipe.seed), n_items[split])
            lines = [json.dumps(_document(plan.skill, item, recipe.seed)) for item in asked]
            _write(folder / "data" / f"{plan.skill}.{split}.jsonl", "\n".join(lines) + "\n")


def _document(skill: str, item: Item, seed: int) -> dict[str, Any]:
    document: dict[str, Any] = {"prompt": item.prompt, "answer": item.answer}
    if SKILLS[skill].output_type == "multiple_choice":
        document["choices"] = choices_for(item, seed)
        document["label"] = document["choices"].index(item.answer)
    return document


def _write_links(recipe: ZooRecipe, folder: Path, final: Path) -> None:
    """Writes the files in `folder` that hold absolute paths, as they must be in `final`."""
    import yaml

    for plan in recipe.plans:
        task = yaml.safe_dump(_task(plan.skill, final / "data"), sort_keys=False)
        _write(folder / "tasks" / f"{plan.skill}.yaml", task)
        if plan.kind == "lora":
            path = folder / plan.folder / "adapter_config.json"
            config = json.loads(path.read_text(encoding="utf-8"))
            config["base_model_name_or_path"] = str(final / "base")
            config["target_modules"] = sorted(config["target_modules"])  # peft writes a set
            _write(path, json.dumps(config, indent=2, sort_keys=True) + "\n")


def _task(skill: str, data: Path) -> dict[str, Any]:
    """The lm-eval task of `skill` whose items lie in the folder `data`."""
    files = {"validation": f"{skill}.search.jsonl", "test": f"{skill}.held_out.jsonl"}
    output_type = SKILLS[skill].output_type
    task: dict[str, Any] = {
        "task": f"zoo_{skill}",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {key: str(data / name) for key, name in files.items()}},
        "validation_split": "validation",
        "test_split": "test",
        "output_type": output_type,
        "doc_to_text": "{{prompt}}",
        "metadata": {"version": 1.0},
    }
    if output_type == "multiple_choice":
        task |= {"doc_to_choice": "choices", "doc_to_target": "label"}
        metric = "acc"
    elif output_type == "generate_until":
        # the space that begins the answer is generated too, and exact_match does not strip it
        task |= {"target_delimiter": "", "doc_to_target": " {{answer}}"}
        task["generation_kwargs"] = {"until": ["\n"], "max_gen_toks": 4, "do_sample": False}
        metric = "exact_match"
    else:
        # lm-eval's acc of a loglikelihood: is the target, with its newline, the greedy answer?
        # It puts no delimiter before it: the space is part of the target.
        task |= {"target_delimiter": "", "doc_to_target": " {{answer}}\n"}
        metric = "acc"
    task["metric_list"] = [{"metric": metric, "aggregation": "mean", "higher_is_better": True}]
    return task


def _main(arguments: Sequence[str]) -> None:
    """Builds the zoo and prints how many held-out items each model answers exactly."""
    from rich.console import Console
    from rich.table import Table

    recipe = TINY_RECIPE if "--tiny" in arguments else DEFAULT_RECIPE
    folders = [argument for argument in arguments if argument != "--tiny"]
    zoo = build_zoo(Path(folders[0]) if folders else None, recipe)
    table = Table("model", *(plan.skill for plan in recipe.plans), title=str(zoo.folder))
    for name, scores in _held_out_scores(zoo, recipe):
        table.add_row(name, *(f"{score:.3f}" for score in scores))
    Console().print(table)


def _held_out_scores(zoo: Zoo, recipe: ZooRecipe) -> Iterator[tuple[str, list[float]]]:
    from evomerge.demo.tokenizer import zoo_tokenizer
    from evomerge.demo.training import exact_match, load_model, quiet_transformers

    asked = {
        plan.skill: list(
            islice(items(plan.skill, plan.lengths, "held_out", recipe.seed), recipe.n_held_out)
        )
        for plan in recipe.plans
    }
    models: list[tuple[str, Path, Path | None]] = [("base", zoo.base, None)]
    models += [(name, folder, None) for name, folder in zoo.experts.items()]
    models += [(f"{name} (adapter)", zoo.base, folder) for name, folder in zoo.adapters.items()]
    for name, folder, adapter in models:
        with quiet_transformers():
            model = load_model(folder, adapter)
        yield (
            name,
            [exact_match(model, zoo_tokenizer(), asked[plan.skill]) for plan in recipe.plans],
        )


if __name__ == "__main__":
    _main(sys.argv[1:])
