"""What a process needs to drive a run: space, sampler, workers; all checked before any work."""

import difflib
import importlib.metadata
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np

from evomerge import loading, samplers
from evomerge.baselines import baselines
from evomerge.config import ESTIMATORS, Config
from evomerge.datatypes import Group, Problem, Recipe, Spec, Split, WorkerFacts, digest_of
from evomerge.errors import ConfigError, RunError
from evomerge.evaluation import open_models, worker_setup
from evomerge.execution import start_executor
from evomerge.fidelity import Schedule, choose_schedule
from evomerge.history import Started
from evomerge.journal import Event
from evomerge.projection import landmarks
from evomerge.protocols import Estimator, Executor, Sampler, SearchSpace
from evomerge.run_folder import RunFolder
from evomerge.scoring import Scoring
from evomerge.warm_starts import warm_starts

_VERSIONS_OF_ANSWERS = ("evomerge", "torch", "transformers", "lm_eval")
_VERSIONS_OF = ("evomerge", "torch", "transformers", "lm_eval", "numpy", "cmaes", "pymoo")


def bind_space(config: Config, groups: Sequence[Group]) -> SearchSpace:
    """The search space of a configuration, bound to the groups of its base.

    Raises:
        ConfigError: when an option of the space is wrong.
    """
    space: SearchSpace = loading.build(
        config.space.spec(config.seed), experts=tuple(config.experts), groups=tuple(groups)
    )
    return space


def choose_sampler(name: str, problem: Problem) -> tuple[str, str]:
    """The import path of a sampler and why it is that one; `name` is short, a path or `auto`.

    Raises:
        ConfigError: when it is none of these.
    """
    reason = "asked for"
    if name == "auto":
        name, reason = samplers.auto(problem)
    if name in samplers.SAMPLERS:
        return samplers.SAMPLERS[name], reason
    if ":" in name:
        return name, reason
    known = ["auto", *samplers.SAMPLERS]
    near = difflib.get_close_matches(name, known, n=1)
    raise ConfigError(
        f"a sampler is one of {', '.join(known)} or an import path package.module:Name, "
        f"but got {name!r}" + (f": did you mean {near[0]!r}?" if near else "")
    )


AUTOMATIC = {"ranking": "mean", "reporting": "mean"}
"""What `auto` stands for (measured: docs/benchmarks.md, Estimators)."""


_WITH_BANKS = {ESTIMATORS[name] for name in ("pirt", "gpirt", "mpirt", "gmpirt")}


def estimator_name(name: str, kind: str) -> str:
    """The import path of an estimator; `name` is short, a path or `auto`.

    Raises:
        ConfigError: when it is none of these.
    """
    name = AUTOMATIC[kind] if name == "auto" else name
    if name in ESTIMATORS:
        return ESTIMATORS[name]
    if ":" in name:
        return name
    near = difflib.get_close_matches(name, ESTIMATORS, n=1)
    raise ConfigError(
        f"estimators.{kind} is one of auto, {', '.join(ESTIMATORS)} or an import path "
        f"package.module:Name, but got {name!r}" + (f": did you mean {near[0]!r}?" if near else "")
    )


def estimators_of(
    config: Config, kind: Literal["ranking", "reporting"], facts: WorkerFacts
) -> dict[str, Estimator]:
    """The estimator of each objective.

    Raises:
        ConfigError: when one is unknown or does not take its options.
        TaskError: when its item bank cannot be used.
    """
    given: str = getattr(config.estimators, kind)
    target = estimator_name(given, kind)
    pools = {
        name: items.digests
        for items in facts.items
        if items.split is Split.SEARCH
        for name in items.objectives
    }
    estimators: dict[str, Estimator] = {}
    for objective in config.objectives:
        options = dict(config.estimators.options.get(given, {}))
        if objective.item_bank is not None and target in _WITH_BANKS:
            options |= {"bank": objective.item_bank, "item_ids": pools[objective.name]}
        estimators[objective.name] = loading.build(Spec(target, options))
    return estimators


def _in_order(weights: Mapping[str, float], names: Sequence[str]) -> list[float]:
    """Weights by objective in the order of the losses: samplers know no names."""
    if set(weights) != set(names):
        raise ConfigError(
            f"sampler.weights has one weight for each objective ({', '.join(names)}), "
            f"but names {', '.join(weights)}"
        )
    return [weights[name] for name in names]


class Session:
    """Everything of a run that is not in its journal; cheap refusals come first.

    Args:
        config: The run's configuration.
        folder: Where workers spool their results; None for a session without a run.
        started: The run's first event when it is resumed.

    Raises:
        EvomergeError: when a model, a task, an option or a worker is refused, or when a resumed
            run finds other models, items or settings than it started with.
    """

    def __init__(
        self, config: Config, folder: RunFolder | None = None, started: Started | None = None
    ) -> None:
        from evomerge.merging.aids.collection import refuse_missing  # torch, only for runs

        self.config = config
        named = tuple(o.objective for o in config.objectives)
        # A worker in this process cannot outlive it: nobody would find its results in the spool.
        spools = folder is not None and config.workers.executor != "in_process"
        setup = worker_setup(config, spool_folder=folder.spool if folder and spools else None)
        self.cache = setup.cache
        self.models = open_models(setup.models)
        groups = self.models.anatomy.groups
        self.space = bind_space(config, groups)
        self.baselines: dict[str, Recipe] = baselines(
            tuple(config.experts),
            tuple(group.label for group in groups),
            scales=config.baselines.scales,
            seed=config.seed,
        )
        found_there = landmarks(self.space, groups)
        self.problem = Problem(
            dimensions=self.space.dimensions,
            n_objectives=len(named),
            anchors=self._anchors(groups, started),
            # Fixed at the start: a sampler may depend on it, and must not change on resume.
            budget=config.budget.evaluations if started is None else started.budget,
            names=tuple(objective.name for objective in named),
            origin=found_there.origin,
            experts=found_there.experts,
            owners=found_there.owners,
            depths=found_there.depths,
        )
        self.sampler_target, self.sampler_reason = choose_sampler(config.sampler.name, self.problem)
        options = dict(config.sampler.options)
        if isinstance(options.get("weights"), dict):
            names = [objective.name for objective in named]
            options["weights"] = _in_order(options["weights"], names)
        self.sampler: Sampler = loading.build(
            Spec(self.sampler_target, options), self.problem, seed=config.seed
        )
        is_mean = options.get("scalarization", "weighted") == "weighted"
        weights = options.get("weights", [1.0] if len(named) == 1 else None) if is_mean else None
        self.weights = None if weights is None else np.array(weights, dtype=np.float64)
        """What the sampler climbs, if that is a weighted mean of the objectives."""
        for kind, name in dict(config.estimators).items():
            if kind != "options":
                estimator_name(name, kind)  # refused before a worker loads a model
        # Every operator and bank that the search will ask for is at one of its anchors.
        announced = tuple(self.space.decode(u) for u in self.space.anchors)
        operators = (recipe.operator for recipe in announced)
        refuse_missing(operators, setup.statistics, tuple(config.experts))
        self.executor: Executor = start_executor(
            config.workers, replace(setup, announced=announced)
        )
        try:
            found = {objective.name: objective for objective in self.executor.facts.objectives}
            self.objectives = tuple(found[objective.name] for objective in named)
            self.scoring = Scoring(
                self.objectives,
                estimators_of(config, "ranking", self.executor.facts),
                estimators_of(config, "reporting", self.executor.facts),
            )
            self.schedule, self.schedule_reason = self._choose_schedule(started)
            if started is not None:
                self._refuse_changes(started)
        except BaseException:
            self.close()
            raise

    def _anchors(
        self, groups: Sequence[Group], started: Started | None
    ) -> tuple[tuple[float, ...], ...]:
        """Where the sampler starts; a resumed run does not look again at where that came from."""
        if started is not None and started.anchors is not None:
            return started.anchors
        if self.config.start is None:
            return self.space.anchors
        experts = tuple(self.config.experts)
        return warm_starts(
            self.config.start, self.space, experts, groups, self.baselines, bind_space
        )

    def _choose_schedule(self, started: Started | None) -> tuple[Schedule | None, str]:
        """How many items candidates answer, and why; a resumed run keeps its own."""
        if started is not None:
            plain = started.fidelity
            return None if plain is None else Schedule(**plain), started.fidelity_reason
        fidelity = self.config.fidelity
        if fidelity == "off":
            return None, "asked for"
        pools = [
            len(items.digests) for items in self.executor.facts.items if items.split is Split.SEARCH
        ]
        given = {} if fidelity == "auto" else fidelity.given
        learns = estimator_name(self.config.estimators.ranking, "ranking") != ESTIMATORS["mean"]
        # On a Pareto front survivors are compared with newcomers: equal items for all do best.
        implied: dict[str, Any] = {} if self.weights is not None else {"fresh": False, "race": 0}
        if learns or given.get("items") == "greedy":
            implied["baselines"] = "all"
        return choose_schedule(pools, self.problem.budget, len(self.baselines), given, implied)

    def started_event(self) -> Event:
        """The first line of a new run's journal."""
        facts = self.executor.facts
        return {
            "event": "started",
            "time": time.time(),
            "versions": {
                "python": platform.python_version(),
                **{name: importlib.metadata.version(name) for name in _VERSIONS_OF},
            },
            "config_digest": self.config.digest,
            "model_digests": dict(facts.model_digests),
            "item_digests": _item_digests(facts),
            "settings": digest_of(list(facts.settings)),
            "n_items": _item_counts(facts),
            "fitness": [
                list(items.objectives) for items in facts.items if items.split is Split.SEARCH
            ],
            "items": [
                {"split": items.split.value, "digests": list(items.digests)}
                for items in facts.items
            ],
            "experts": list(self.config.experts),
            "groups": [
                {
                    "layer": group.layer,
                    "kind": group.kind,
                    "depth": group.depth,
                    "n_parameters": group.n_parameters,
                }
                for group in facts.groups
            ],
            "objectives": [
                {
                    "name": o.name,
                    "direction": o.direction.value,
                    "worst": o.worst,
                    "statistic": [o.statistic.target, o.statistic.n_columns],
                }
                for o in self.objectives
            ],
            "dimensions": [dimension.label for dimension in self.problem.dimensions],
            "sampler": self.sampler_target,
            "sampler_reason": self.sampler_reason,
            "seed": self.config.seed,
            "anchors": None if self.config.start is None else self.problem.anchors,
            "prefer": self.config.final.prefer,
            "n_baselines": len(self.baselines),
            "budget": self.problem.budget,
            "fidelity": None if self.schedule is None else asdict(self.schedule),
            "fidelity_reason": self.schedule_reason,
            "estimators": {
                "ranking": estimator_name(self.config.estimators.ranking, "ranking"),
                "reporting": estimator_name(self.config.estimators.reporting, "reporting"),
            },
        }

    def answers_otherwise(self, started: Started) -> bool:
        """Whether prompts, metrics or a Python fitness's source changed since a run started."""
        return started.settings != digest_of(list(self.executor.facts.settings))

    @property
    def settings(self) -> str:
        """Digest of all that decides an answer besides models, recipe and items."""
        of_versions = [importlib.metadata.version(name) for name in _VERSIONS_OF_ANSWERS]
        return digest_of([of_versions, list(self.executor.facts.settings)])

    def _refuse_changes(self, started: Started) -> None:
        facts = self.executor.facts
        pairs: dict[str, tuple[object, object]] = {
            "the configuration": (started.config_digest, self.config.digest),
            "the models": (dict(started.model_digests), dict(facts.model_digests)),
            "the items": (dict(started.item_digests), _item_digests(facts)),
            "the sampler": (started.sampler, self.sampler_target),
        }
        for what, (before, now) in pairs.items():
            if before != now:
                raise RunError(
                    f"a run resumes on what it started with, but {what} changed "
                    f"({before} before, {now} now): restore it, or start a new run"
                )

    def close(self) -> None:
        """Release the workers."""
        self.executor.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _item_digests(facts: WorkerFacts) -> dict[str, str]:
    return {
        f"{'+'.join(items.objectives)}:{items.split.value}": digest_of(list(items.digests))
        for items in facts.items
    }


def _item_counts(facts: WorkerFacts) -> dict[str, list[int]]:
    counts: dict[str, dict[Split, int]] = {}
    for items in facts.items:
        for name in items.objectives:
            counts.setdefault(name, {})[items.split] = len(items.digests)
    return {name: [n[Split.SEARCH], n[Split.HELD_OUT]] for name, n in counts.items()}
