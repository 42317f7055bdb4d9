"""What a process needs to drive a run: space, sampler, workers; all checked before any work."""

import difflib
import importlib.metadata
import platform
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Self

from evomerge import loading, samplers
from evomerge.baselines import baselines
from evomerge.config import MEAN_ESTIMATOR, Config
from evomerge.datatypes import Group, Problem, Recipe, Spec, Split, WorkerFacts, digest_of
from evomerge.errors import ConfigError, RunError
from evomerge.evaluation import open_models, worker_setup
from evomerge.execution import start_executor
from evomerge.history import Started
from evomerge.journal import Event
from evomerge.protocols import Estimator, Executor, Sampler, SearchSpace
from evomerge.run_folder import RunFolder

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
        self.config = config
        self.objectives = tuple(o.objective for o in config.objectives)
        setup = worker_setup(config, spool_folder=None if folder is None else folder.spool)
        self.models = open_models(setup.models)
        groups = self.models.anatomy.groups
        self.space = bind_space(config, groups)
        self.problem = Problem(
            dimensions=self.space.dimensions,
            n_objectives=len(self.objectives),
            anchors=self.space.anchors,
            # Fixed at the start: a sampler may depend on it, and must not change on resume.
            budget=config.budget.evaluations if started is None else started.budget,
        )
        self.sampler_target, self.sampler_reason = choose_sampler(config.sampler.name, self.problem)
        options = dict(config.sampler.options)
        if isinstance(options.get("weights"), dict):
            options["weights"] = self._in_order(options["weights"])
        self.sampler: Sampler = loading.build(
            Spec(self.sampler_target, options), self.problem, seed=config.seed
        )
        self.estimator: Estimator = loading.build(Spec(MEAN_ESTIMATOR))
        self.baselines: dict[str, Recipe] = baselines(
            tuple(config.experts),
            tuple(group.label for group in groups),
            scales=config.baselines.scales,
            seed=config.seed,
        )
        self.executor: Executor = start_executor(config.workers, setup)
        try:
            if started is not None:
                self._refuse_changes(started)
        except BaseException:
            self.close()
            raise

    def _in_order(self, weights: Mapping[str, float]) -> list[float]:
        """Weights by objective in the order of the losses: samplers know no names."""
        names = [objective.name for objective in self.objectives]
        if set(weights) != set(names):
            raise ConfigError(
                f"sampler.weights has one weight for each objective ({', '.join(names)}), "
                f"but names {', '.join(weights)}"
            )
        return [weights[name] for name in names]

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
            "n_items": _item_counts(facts),
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
                {"name": o.name, "direction": o.direction.value, "worst": o.worst}
                for o in self.objectives
            ],
            "dimensions": [dimension.label for dimension in self.problem.dimensions],
            "sampler": self.sampler_target,
            "sampler_reason": self.sampler_reason,
            "n_baselines": len(self.baselines),
            "budget": self.problem.budget,
        }

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
