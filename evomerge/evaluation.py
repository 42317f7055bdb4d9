"""The unit of work in a worker: materialize a recipe, answer items, check the answers.

The one place with a broad `except`: whatever a candidate does wrong costs that candidate only.
"""

import contextlib
import ctypes
import functools
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import platformdirs

from evomerge import loading, spool
from evomerge.checkpoints.anatomy import Anatomy
from evomerge.checkpoints.vocabulary import VocabularyChoice
from evomerge.datatypes import (
    Evaluation,
    Failure,
    ItemFacts,
    Job,
    Objective,
    Recipe,
    Spec,
    Split,
    WorkerFacts,
    digest_of,
)
from evomerge.errors import ConfigError, TaskError
from evomerge.live_model import LoadedModel
from evomerge.merging.aids.source import StatisticsSource

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase

    from evomerge.checkpoints.experts import Expert
    from evomerge.checkpoints.reading import Checkpoint
    from evomerge.config import Config
    from evomerge.merging.aids.collection import Collected
    from evomerge.protocols import Fitness


_TRIM_EVERY = 100
"""Evaluations between two returns of free memory: each costs about a millisecond."""


@dataclass(frozen=True, slots=True)
class ModelSource:
    """Where a model is: a folder or Hub id with an optional revision."""

    path: str
    revision: str | None = None


@dataclass(frozen=True, slots=True)
class ModelSources:
    """The models of a run and what may be done to read them."""

    base: ModelSource
    experts: Mapping[str, ModelSource]
    allow_pickle: bool = False
    trust_remote_code: bool = False
    allow_tokenizer_mismatch: bool = False
    vocabulary: VocabularyChoice = field(default_factory=VocabularyChoice)


@dataclass(frozen=True, slots=True)
class WorkerSetup:
    """All that a worker needs to start, plain enough to cross processes; paths are absolute.

    The bases of the operators of `announced` recipes are kept as banks under `cache`, which may
    take `bank_bytes` in all; those of others (baselines) are prepared as they come. Results are
    spooled to `spool`, if any.
    """

    models: ModelSources
    fitness: tuple[Spec, ...]
    cache: str
    announced: tuple[Recipe, ...] = ()
    statistics: StatisticsSource = field(default_factory=StatisticsSource)
    bank_bytes: int = 100_000_000_000
    spool: str | None = None
    threads: int = 1
    device: str = "auto"


def worker_setup(config: "Config", *, spool_folder: Path | None = None) -> WorkerSetup:
    """What the workers of a configuration get."""
    workers = config.workers
    cache = config.cache or platformdirs.user_cache_dir("evomerge")
    return WorkerSetup(
        models=ModelSources(
            base=ModelSource(config.base.path, config.base.revision),
            experts={
                name: ModelSource(ref.path, ref.revision) for name, ref in config.experts.items()
            },
            allow_pickle=config.allow_pickle,
            trust_remote_code=config.trust_remote_code,
            allow_tokenizer_mismatch=config.allow_tokenizer_mismatch,
            vocabulary=VocabularyChoice(**dict(config.vocabulary)),
        ),
        fitness=config.fitness(),
        cache=os.environ.get("EVOMERGE_CACHE", cache),
        statistics=StatisticsSource(**dict(config.space.statistics)),
        bank_bytes=int(config.bank_gigabytes * 1e9),
        spool=None if spool_folder is None else str(spool_folder),
        threads=workers.threads or max(1, (os.cpu_count() or 1) // workers.count),
        device=workers.device,
    )


@dataclass(frozen=True, slots=True)
class OpenedModels:
    """Base, experts and anatomy, opened and found compatible."""

    base: "Checkpoint"
    experts: tuple["Expert", ...]
    anatomy: Anatomy

    @property
    def digests(self) -> dict[str, str]:
        """Content digests by name; `base` for the base."""
        return {"base": self.base.digest, **{e.name: e.digest for e in self.experts}}

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the user should know before a search."""
        return tuple(warning for expert in self.experts for warning in expert.warnings)


def open_models(sources: ModelSources) -> OpenedModels:
    """Open the models of a run.

    Raises:
        CheckpointError: when one cannot be read.
        IncompatibleError: when they cannot be merged.
    """
    from evomerge.checkpoints.experts import open_expert
    from evomerge.checkpoints.merged_base import resolve_vocabulary
    from evomerge.checkpoints.reading import Checkpoint

    base = Checkpoint.open(
        sources.base.path,
        revision=sources.base.revision,
        allow_pickle=sources.allow_pickle,
        trust_remote_code=sources.trust_remote_code,
    )
    experts = tuple(
        open_expert(
            name,
            source.path,
            base,
            revision=source.revision,
            allow_pickle=sources.allow_pickle,
            trust_remote_code=sources.trust_remote_code,
            allow_tokenizer_mismatch=sources.allow_tokenizer_mismatch,
            vocabulary=sources.vocabulary,
        )
        for name, source in sources.experts.items()
    )
    base, experts = resolve_vocabulary(base, experts, sources.vocabulary)
    return OpenedModels(base, experts, Anatomy.of(base))


_LoadedLive = tuple["nn.Module", "PreTrainedTokenizerBase | None"]


def statistics_for(
    operators: Iterable[str],
    setup: WorkerSetup,
    models: OpenedModels,
    load: Callable[[], _LoadedLive] | None = None,
) -> "Collected | None":
    """What operators need besides the weights, from the cache or collected now; None for nothing.

    Args:
        operators: Names.
        setup: Says where statistics come from, and where they are kept.
        models: Of the run.
        load: Called if something must be collected: the model to run, which is left as an expert,
            and its tokenizer. By default one is loaded for that.

    Raises:
        ConfigError: The setup does not name what an operator needs, or names what cannot be read.
        TaskError: The models cannot be run on text.
        CheckpointError: The cache cannot be written, or is damaged.
    """
    from evomerge.merging.aids.collection import collect, expert_writer, refuse_missing

    needs = refuse_missing(operators, setup.statistics, tuple(setup.models.experts))
    if not needs:
        return None

    def live() -> LoadedModel:
        if load is None:
            model, tokenizer = load_live_model(
                models.base,
                choose_device(setup.device),
                trust_remote_code=setup.models.trust_remote_code,
            )
        else:
            model, tokenizer = load()
        writer = expert_writer(models.base, models.experts, models.anatomy, model)
        return LoadedModel(model, tokenizer, writer=writer)

    source, cache = setup.statistics, Path(setup.cache)
    return collect(needs, source, models.base, models.experts, cache, functools.cache(live))


def digests_of_statistics(aids: "Collected | None") -> dict[str, str]:
    """As a run remembers them beside those of its models."""
    digests = {} if aids is None else aids.digests
    return {f"{aid} of the experts": digest for aid, digest in digests.items()}


class Worker:
    """Resident base, deltas and one live model on one device; answers jobs one at a time.

    Raises:
        CheckpointError: when a model cannot be used.
        TaskError: when a task cannot be used.
        ConfigError: when an operator, a device or an option is unknown.
    """

    def __init__(self, setup: WorkerSetup) -> None:
        import torch

        from evomerge.checkpoints.compatibility import disparity_warning
        from evomerge.merging.shelf import Shelf
        from evomerge.merging.variant import Variant

        torch.set_num_threads(setup.threads)
        self._spool = None if setup.spool is None else Path(setup.spool)
        self._n_evaluations = 0
        device = choose_device(setup.device)
        models = open_models(setup.models)
        self._fitness: list[Fitness] = [loading.build(spec) for spec in setup.fitness]
        items = [self._item_facts(fitness) for fitness in self._fitness]
        _refuse_overlap(items)
        self._models = models
        self._cache = Path(setup.cache)
        names = tuple(expert.name for expert in models.experts)
        trusted = setup.models.trust_remote_code
        load = functools.cache(
            lambda: load_live_model(models.base, device, trust_remote_code=trusted)
        )
        aids = statistics_for((r.operator for r in setup.announced), setup, models, load)
        announced = [Variant.of_recipe(recipe, aids) for recipe in setup.announced]
        model, tokenizer = load()
        self._shelf = Shelf(
            self._cache,
            models.base,
            models.experts,
            models.anatomy,
            model,
            announced=announced,
            most_bytes=setup.bank_bytes,
            aids=aids,
        )
        self._live = LoadedModel(
            model,
            tokenizer,
            recipe=self._recipe_of("base"),
            experts=names,
            groups=models.anatomy.groups,
            digest=digest_of(models.digests),
            cache=self._cache,
            writer=lambda name: self._materialize(self._recipe_of(name)),
            compare=self._shelf.weights,
        )
        for fitness in self._fitness:
            fitness.bind(self._live)
        self.facts = WorkerFacts(
            model_digests={**models.digests, **digests_of_statistics(aids)},
            groups=models.anatomy.groups,
            objectives=tuple(o for fitness in self._fitness for o in fitness.objectives),
            items=tuple(facts for pair in items for facts in pair),
            model_bytes=models.base.n_bytes,
            settings=tuple(fitness.settings for fitness in self._fitness),
            notes=tuple(self._shelf.notes),
            norms=self._shelf.norms,
            warnings=(
                *models.warnings,
                *filter(None, [disparity_warning(self._shelf.norms)]),
                *(warning for fitness in self._fitness for warning in fitness.warnings),
            ),
        )

    def _recipe_of(self, name: str) -> Recipe:
        """What makes the model the base or an expert."""
        groups = self._models.anatomy.group_labels
        experts = tuple(expert.name for expert in self._models.experts)
        return Recipe(
            "task_arithmetic",
            experts,
            groups,
            tuple((1.0 if expert == name else 0.0,) * len(groups) for expert in experts),
        )

    @staticmethod
    def _item_facts(fitness: "Fitness") -> tuple[ItemFacts, ItemFacts]:
        names = tuple(objective.name for objective in fitness.objectives)
        search, held_out = (ItemFacts(names, s, tuple(fitness.items(s))) for s in Split)
        return search, held_out

    def evaluate(self, job: Job) -> Evaluation:
        """Answer a job; never raises for what a candidate does wrong. Spooled before it returns."""
        seconds: dict[str, float] = {}
        started = time.perf_counter()
        responses: dict[str, tuple[float, ...]] = {}
        failure: Failure | None = None
        try:
            responses = self._respond(job, seconds)
            failure = _non_finite(responses)
        except MemoryError as error:
            failure = Failure("out_of_memory", _describe(error))
        except FloatingPointError as error:
            failure = Failure("non_finite", str(error))
        except Exception as error:  # noqa: BLE001 - costs this candidate, never the run
            failure = Failure(
                "out_of_memory" if _is_out_of_memory(error) else "error", _describe(error)
            )
        seconds["total"] = time.perf_counter() - started
        evaluation = Evaluation(job.key, {} if failure is not None else responses, seconds, failure)
        self._n_evaluations += 1
        if self._n_evaluations % _TRIM_EVERY == 0:
            _give_free_memory_back()
        if self._spool is not None:
            spool.write(self._spool, evaluation)
        return evaluation

    def _respond(self, job: Job, seconds: dict[str, float]) -> dict[str, tuple[float, ...]]:
        started = time.perf_counter()
        self._materialize(job.recipe)
        seconds["materialize"] = time.perf_counter() - started
        responses = self._answer(job)
        seconds["respond"] = time.perf_counter() - started - seconds["materialize"]
        return responses

    def answer_as(self, other: "nn.Module", job: Job) -> dict[str, tuple[float, ...]]:
        """The answers to a job of a model that was loaded elsewhere, instead of a merged one."""
        self._live.model.load_state_dict(other.state_dict())
        self._live.recipe = job.recipe
        return self._answer(job)

    def _answer(self, job: Job) -> dict[str, tuple[float, ...]]:
        responses: dict[str, tuple[float, ...]] = {}
        for index, fitness in enumerate(self._fitness):
            items: Sequence[int] = (
                range(len(fitness.items(job.split))) if job.items is None else job.items[index]
            )
            slices = columns_of(fitness.objectives)
            answers = (
                fitness.respond(job.split, items)
                if len(items) > 0
                else np.empty((0, slices[-1].stop))
            )
            for objective, columns in zip(fitness.objectives, slices, strict=True):
                responses[objective.name] = tuple(answers[:, columns].ravel().tolist())
        return responses

    def _materialize(self, recipe: Recipe) -> None:
        self._live.recipe = recipe
        self._shelf.write(recipe)


def _give_free_memory_back() -> None:
    """Have glibc return what it holds of freed memory; elsewhere nothing.

    Activations of every length come and go: without this a worker of 555 MB had 625 MB after 1,000
    evaluations, all of the difference free.
    """
    if sys.platform == "linux":
        with contextlib.suppress(AttributeError, OSError):  # another C library
            ctypes.CDLL("libc.so.6").malloc_trim(0)


def columns_of(objectives: Sequence[Objective]) -> list[slice]:
    """Which columns of a fitness's answers belong to each of its objectives."""
    slices: list[slice] = []
    start = 0
    for objective in objectives:
        slices.append(slice(start, start + objective.statistic.n_columns))
        start += objective.statistic.n_columns
    return slices


def choose_device(name: str) -> str:
    """`auto` is the first CUDA device if there is one, else the CPU; other names are torch's.

    Raises:
        ConfigError: when torch knows no such device, or it is not there.
    """
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"workers.device is a device that torch finds here, but {name!r} is not "
            f"({_describe(error)[:120]}): use auto, cpu or cuda:N"
        ) from error
    return name


def load_live_model(
    base: "Checkpoint", device: str, *, trust_remote_code: bool = False
) -> "tuple[nn.Module, PreTrainedTokenizerBase | None]":
    """The one model whose weights candidates are written into, and its tokenizer if it has one.

    The class is that of the checkpoint's architecture, so that any kind of model can be merged.

    Raises:
        TaskError: when there are tokenizer files that do not load.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model_class = base.model_class or AutoModelForCausalLM
    with _without_progress_bars():
        model = model_class.from_pretrained(
            base.path, dtype="auto", trust_remote_code=trust_remote_code
        )
    base.fit(model)
    model.requires_grad_(False)
    model.eval().to(device)
    if base.tokenizer_digest is None:
        return model, None
    try:
        with base.tokenizer_folder() as folder:
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise TaskError(
            f"the base's tokenizer must load, but that in {base.path} does not "
            f"({_describe(error)}): save it again with save_pretrained"
        ) from error
    return model, tokenizer


@contextlib.contextmanager
def _without_progress_bars() -> Iterator[None]:
    """Transformers draws one per model loaded, across our own display."""
    from transformers.utils import logging

    was_enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_enabled:
            logging.enable_progress_bar()


def _refuse_overlap(items: Sequence[tuple[ItemFacts, ItemFacts]]) -> None:
    """Search and held-out items must be disjoint, also between the fitness objects of a run."""
    search = {digest: facts for facts, _ in items for digest in facts.digests}
    for _, held_out in items:
        for digest in held_out.digests:
            if digest in search:
                raise TaskError(
                    "search and held-out items are disjoint, but an item of "
                    f"{', '.join(search[digest].objectives)} is held out in "
                    f"{', '.join(held_out.objectives)} ({digest}): remove it from one of them"
                )


def _non_finite(responses: Mapping[str, Sequence[float]]) -> Failure | None:
    for name, answers in responses.items():
        bad = sum(not math.isfinite(answer) for answer in answers)
        if bad:
            return Failure(
                "non_finite", f"{bad} of {len(answers)} answers to {name} are not finite"
            )
    return None


def _is_out_of_memory(error: Exception) -> bool:
    import torch

    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and "alloc" in str(error) and "memory" in str(error)
    )


def _describe(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:500]
