"""From YAML to a checked configuration: the only reader of YAML.

Unknown keys are refused with a suggestion; relative paths are taken from the file's own folder, so
that a run can be resumed from anywhere.
"""

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from evomerge.baselines import DEFAULT_SCALES
from evomerge.datatypes import Direction, Knob, Objective, Recipe, Spec, digest_of
from evomerge.errors import ConfigError
from evomerge.preferences import check_preference, parse_preference

# Content by its import path: the engine itself never imports it.
MERGE_SPACE = "search_spaces.merge_space:merge_space"
STARTED_SPACE = "search_spaces.started:started_space"
LM_EVAL_FITNESS = "fitness.lm_eval:LmEvalFitness"
PYTHON_FITNESS = "fitness.python_callable:PythonFitness"
UNLABELED_FITNESS = "fitness.unlabeled:UnlabeledFitness"
MERGE_FACTS = "fitness.merge_facts:MergeFacts"
JACKKNIFE = "fitness.statistics:jackknife"
FIT_ITEM_BANK = "fitness.irt_fit:fit_item_bank"
GREEDY_ITEMS = "fitness.readout:greedy_items"
ESTIMATORS: dict[str, str] = {
    "mean": "fitness.estimators:MeanEstimator",
    "regression": "fitness.estimators:RegressionEstimator",
    "ridge": "fitness.readout:RidgeReadout",
    "pirt": "fitness.irt:PIrt",
    "gpirt": "fitness.irt:GpIrt",
    "mpirt": "fitness.irt:MpIrt",
    "gmpirt": "fitness.irt:GmpIrt",
}
"""Short name -> import path of every estimator that comes with evomerge."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelRef(_Section):
    """A model folder or Hub id, with an optional Hub revision; a plain string is the path."""

    path: str
    revision: str | None = None


def _as_model_ref(value: Any) -> Any:
    return {"path": value} if isinstance(value, str) else value


Model = Annotated[ModelRef, BeforeValidator(_as_model_ref)]


class StatisticsConfig(_Section):
    """What is collected beside the weights, for operators that need it.

    `samples` texts of at most `max_length` tokens, spread over the file `text`, are run through
    each expert. `second_moments` names a safetensors file of Adam's `exp_avg_sq` for each expert.
    """

    text: str | None = None
    samples: int = Field(default=256, ge=1)
    max_length: int = Field(default=512, ge=2)
    second_moments: dict[str, str] = Field(default_factory=dict)


class SpaceConfig(_Section):
    """What is searched: a preset and what overrides it; docs/search_spaces.md explains the keys.

    `start` is a merge to begin at: the file of a recipe (an export has one), which stands here as a
    mapping once it was read. `target` names another space class, which then takes `options`.
    """

    preset: str | None = None
    operator: str | None = None
    coefficients: dict[str, Any] = Field(default_factory=dict)
    gates: dict[str, Any] | None = None
    genes: dict[str, Any] = Field(default_factory=dict)
    prepare: dict[str, Knob] = Field(default_factory=dict)
    runtime: dict[str, Knob] = Field(default_factory=dict)
    strength: float | None = None
    start: str | dict[str, Any] | None = None
    variants: list[dict[str, Any]] | None = None
    target: str = MERGE_SPACE
    options: dict[str, Any] = Field(default_factory=dict)
    statistics: StatisticsConfig = StatisticsConfig()

    def spec(self, seed: int) -> Spec:
        """How to build it, but for the experts and groups that it is bound to."""
        if self.target != MERGE_SPACE:
            return Spec(self.target, self.options)
        given = self.model_dump(exclude={"target", "options", "statistics"})
        arguments = {key: value for key, value in given.items() if value not in (None, {})}
        target = MERGE_SPACE if self.start is None else STARTED_SPACE
        return Spec(target, {**arguments, "seed": seed})


_SOURCES = ("lm_eval", "unlabeled", "merge", "python", "fitness")


class ObjectiveConfig(_Section):
    """One objective; exactly one of these says how it is measured.

    `lm_eval` names a task (with `metric`), `unlabeled` a measure on `text` without labels, `merge`
    a fact of the merge itself, `python` a function or class, `fitness` an own `Fitness`.
    `item_bank` is a file of item parameters for estimators of item response theory.
    """

    name: str = Field(min_length=1)
    direction: Direction = Direction.MAXIMIZE
    worst: float | None = None
    lm_eval: str | None = None
    unlabeled: str | None = None
    merge: str | None = None
    python: str | None = None
    fitness: str | None = None
    metric: str | None = None
    text: str | None = None
    item_bank: str | None = None
    items: int | str | dict[str, int] | None = None
    held_out: int | str | dict[str, int] | None = None
    num_fewshot: int | None = Field(default=None, ge=0)
    batch_size: int | None = Field(default=None, ge=1)
    options: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        sources = [source for source in _SOURCES if getattr(self, source) is not None]
        if len(sources) != 1:
            raise ValueError(
                f"an objective has exactly one of {', '.join(_SOURCES)}, "
                f"but {self.name!r} has {' and '.join(sources) or 'none'}"
            )
        if (self.unlabeled is None) != (self.text is None):
            raise ValueError(
                f"an unlabeled objective has a text file, and no other has, but {self.name!r} has "
                f"{'no text' if self.text is None else 'text and ' + sources[0]}"
            )
        return self

    @property
    def objective(self) -> Objective:
        """The engine's value."""
        return Objective(self.name, self.direction, self.worst)

    def source(self, seed: int) -> Spec:
        """The fitness that answers it, but for the metric: equal sources share one fitness."""
        common = {"seed": seed, **self.options}
        if self.fitness is not None:
            return Spec(self.fitness, common)
        if self.merge is not None:
            return Spec(MERGE_FACTS, common)
        counts = {"items": self.items, "held_out": self.held_out}
        if self.unlabeled is not None:
            return Spec(UNLABELED_FITNESS, {"text": self.text, **counts, **common})
        if self.python is not None:
            return Spec(PYTHON_FITNESS, {"callable": self.python, **counts, **common})
        optional = {"num_fewshot": self.num_fewshot, "batch_size": self.batch_size}
        given = {key: value for key, value in optional.items() if value is not None}
        return Spec(LM_EVAL_FITNESS, {"task": self.lm_eval, **counts, **given, **common})


class SamplerConfig(_Section):
    """The search algorithm by short name or import path; the rest are its own options."""

    model_config = ConfigDict(extra="allow", frozen=True)

    name: str = "auto"

    @property
    def options(self) -> dict[str, Any]:
        """What the sampler's class takes beyond the problem and the seed."""
        return dict(self.model_extra or {})


def _as_sampler(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


class BudgetConfig(_Section):
    """When to stop: `evaluations` are candidates of the sampler (baselines come on top)."""

    evaluations: int = Field(default=200, ge=0)
    hours: float | None = Field(default=None, gt=0)


class WorkersConfig(_Section):
    """Where evaluations run. `threads` are CPU threads per worker (default: cores / count)."""

    executor: Literal["in_process", "ray"] = "in_process"
    count: int = Field(default=1, ge=1)
    threads: int | None = Field(default=None, ge=1)
    gpus: float = Field(default=0.0, ge=0.0)
    address: str | None = None
    device: str = "auto"
    timeout_seconds: float = Field(default=3600.0, gt=0)

    @model_validator(mode="after")
    def _in_process_is_one(self) -> Self:
        if self.executor == "in_process" and self.count != 1:
            raise ValueError(
                f"the in_process executor has one worker, but count is {self.count}: "
                "set `executor: ray` for several"
            )
        return self


class BaselinesConfig(_Section):
    """What every run evaluates first; `scales` are those of global task arithmetic."""

    scales: list[float] = Field(default_factory=lambda: list(DEFAULT_SCALES))


class FidelityConfig(_Section):
    """How many items a candidate answers; what is left out is chosen (see `fidelity.Schedule`)."""

    first: int | None = None
    growth: float | None = None
    keep: float | None = None
    race: int | None = None
    sharpen: int | None = None
    contest: int | None = None
    finalists: int | None = None
    cohort: int | None = None
    doubt: float | None = None
    items: str | None = None
    fresh: bool | None = None
    baselines: str | None = None

    @property
    def given(self) -> dict[str, Any]:
        """The options that the user wrote."""
        return self.model_dump(exclude_none=True)


class EstimatorsConfig(_Section):
    """How answers become scores: `ranking` ones go to the sampler, `reporting` ones into tables.

    `ranking` sees a part of the items and may learn from the other candidates; `reporting` scores
    who answered all search items, and held-out items. Options are the estimator's own.
    """

    ranking: str = "auto"
    reporting: str = "mean"
    options: dict[str, dict[str, Any]] = Field(default_factory=dict)


class VocabularyConfig(_Section):
    """What the merge has where vocabularies differ; None decides nothing, and warns.

    `extra_rows: owner` takes the rows of tokens that only experts have whole from them. `tokenizer`
    and `chat_template` are `base` or the name of an expert; a template may also be `none`.
    """

    extra_rows: Literal["base", "owner"] = "base"
    tokenizer: str | None = None
    chat_template: str | None = None


class FinalConfig(_Section):
    """The last step: up to `front` trials of the front are re-scored on held-out items.

    `prefer` says which of them is taken where none is named (see `preferences`).
    """

    front: int = Field(default=24, ge=0)
    prefer: str | None = None


class StartConfig(_Section):
    """Where the sampler starts, before the anchors of the space; see `warm_starts`.

    `run` is the directory of another run, of whose front up to `n` merges are taken; `recipes` are
    files of recipes (an export has one), which stand here as mappings once they were read.
    `layer_priors` may also list the mean coefficients of its ramps.
    """

    run: str | None = None
    n: int = Field(default=8, ge=1)
    recipes: list[str | dict[str, Any]] = Field(default_factory=list)
    baselines: bool = False
    layer_priors: bool | list[Annotated[float, Field(allow_inf_nan=False)]] = False


_MAY_CHANGE = {"budget", "workers", "cache", "bank_gigabytes", "reuse_evaluations", "fuse"}


class Config(_Section):
    """A whole configuration, as a user writes it; see the README for a commented example."""

    base: Model
    experts: Annotated[dict[str, Model], Field(min_length=1)]
    objectives: Annotated[list[ObjectiveConfig], Field(min_length=1)]
    space: SpaceConfig = SpaceConfig()
    start: StartConfig | None = None
    sampler: Annotated[SamplerConfig, BeforeValidator(_as_sampler)] = SamplerConfig()
    budget: BudgetConfig = BudgetConfig()
    workers: WorkersConfig = WorkersConfig()
    baselines: BaselinesConfig = BaselinesConfig()
    fidelity: Literal["auto", "off"] | FidelityConfig = "auto"
    estimators: EstimatorsConfig = EstimatorsConfig()
    final: FinalConfig = FinalConfig()
    fuse: int = Field(default=20, ge=1)
    seed: int = Field(default=0, ge=0)
    cache: str | None = None
    bank_gigabytes: float = Field(default=100.0, gt=0)
    reuse_evaluations: bool = True
    allow_pickle: bool = False
    trust_remote_code: bool = False
    allow_tokenizer_mismatch: bool = False
    vocabulary: VocabularyConfig = VocabularyConfig()

    @model_validator(mode="after")
    def _plain_names(self) -> Self:
        for name in self.experts:
            if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
                raise ValueError(
                    f"an expert's name has letters, digits, dots, dashes and underscores only, "
                    f"but one is {name!r}"
                )
        return self

    @model_validator(mode="after")
    def _known_vocabularies(self) -> Self:
        known = {"base", *self.experts}
        for key, others in (("tokenizer", set()), ("chat_template", {"none"})):
            value = getattr(self.vocabulary, key)
            if value is not None and value not in known | others:
                raise ValueError(
                    f"vocabulary.{key} is one of {', '.join(sorted(known | others))}, "
                    f"but it is {value!r}"
                )
        return self

    @model_validator(mode="after")
    def _distinct_names(self) -> Self:
        names = [objective.name for objective in self.objectives]
        if len(set(names)) != len(names):
            raise ValueError(f"objectives have distinct names, but they are {', '.join(names)}")
        return self

    @model_validator(mode="after")
    def _usable_preference(self) -> Self:
        if self.final.prefer is not None:
            try:
                preference = parse_preference(self.final.prefer)
                check_preference(preference, [o.objective for o in self.objectives])
            except ConfigError as error:
                raise ValueError(f"final.prefer: {error}") from error
        return self

    @model_validator(mode="after")
    def _known_second_moments(self) -> Self:
        unknown = sorted(self.space.statistics.second_moments.keys() - self.experts.keys())
        if unknown:
            raise ValueError(
                f"second moments are of experts, but there is no expert {', '.join(unknown)}: "
                f"choose among {', '.join(self.experts)}"
            )
        return self

    @property
    def digest(self) -> str:
        """Content address of what decides the run's results.

        Budget, workers and the cache may change on resume; the results do not depend on them.
        """
        plain = self.model_dump(mode="json", exclude=_MAY_CHANGE)
        return digest_of(plain)

    def fitness(self) -> tuple[Spec, ...]:
        """The fitness objects to build, equal sources merged; each spec is complete."""
        by_source: dict[str, tuple[Spec, list[ObjectiveConfig]]] = {}
        for objective in self.objectives:
            source = objective.source(self.seed)
            key = digest_of({"target": source.target, **source.arguments})
            by_source.setdefault(key, (source, []))[1].append(objective)
        specs: list[Spec] = []
        for source, sharing in by_source.values():
            arguments = {**source.arguments, "objectives": tuple(o.objective for o in sharing)}
            if source.target == LM_EVAL_FITNESS:
                arguments["metrics"] = tuple(o.metric for o in sharing)
            if source.target in (UNLABELED_FITNESS, MERGE_FACTS):
                arguments["measures"] = tuple(o.unlabeled or o.merge for o in sharing)
            specs.append(Spec(source.target, arguments))
        return tuple(specs)

    def to_yaml(self) -> str:
        """The resolved configuration as YAML; `parse` of it gives an equal one."""
        plain = self.model_dump(mode="json", exclude_none=True)
        return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)


class _StrictLoader(yaml.SafeLoader):
    """A safe loader that refuses duplicate keys, of which YAML would keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            key = str(key_node.value)
            if key in seen:
                raise ConfigError(
                    f"a key stands once in a mapping, but {key!r} is there twice "
                    f"(line {key_node.start_mark.line + 1}): remove one"
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


def read_config(path: Path) -> Config:
    """The configuration of a YAML file.

    Raises:
        ConfigError: when the file is missing, is no YAML, or breaks a rule.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"a configuration is a readable YAML file, but {path} is not ({error.strerror})"
        ) from error
    return parse(text, folder=path.resolve().parent, name=str(path))


def parse(text: str, *, folder: Path, name: str = "configuration") -> Config:
    """The configuration of a YAML text; relative paths are taken from `folder`.

    Raises:
        ConfigError: when it is no YAML mapping or breaks a rule.
    """
    try:
        plain = yaml.load(text, Loader=_StrictLoader)  # noqa: S506 - a subclass of SafeLoader
    except yaml.YAMLError as error:
        raise ConfigError(f"{name} must be YAML, but it is not: {_one_line(error)}") from error
    if not isinstance(plain, dict):
        raise ConfigError(f"{name} must be a mapping of keys, but it is {type(plain).__name__}")
    try:
        config = Config.model_validate(plain)
    except ValidationError as error:
        raise ConfigError(f"{name}: {_explain(error)}") from error
    return _with_absolute_paths(config, folder)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _explain(error: ValidationError) -> str:
    """All complaints of pydantic in one line, unknown keys with their nearest known ones."""
    complaints: list[str] = []
    for detail in error.errors(include_url=False):
        location = detail["loc"]
        where = ".".join(str(part) for part in location)
        if detail["type"] == "extra_forbidden":
            known = _known_keys(location[:-1])
            near = difflib.get_close_matches(str(location[-1]), known, n=1)
            hint = f"did you mean `{near[0]}`?" if near else f"known keys: {', '.join(known)}"
            complaints.append(f"unknown key `{where}`: {hint}")
        elif detail["type"] == "missing":
            complaints.append(f"`{where}` is required, but it is missing")
        elif detail["type"] == "value_error":
            complaints.append(detail["msg"].removeprefix("Value error, "))
        else:
            complaints.append(f"`{where}`: {detail['msg']}, but got {detail['input']!r}")
    return "; ".join(complaints)


def _known_keys(location: Sequence[str | int]) -> list[str]:
    """The keys of the section at a location of the configuration."""
    section: Any = Config
    for part in location:
        if isinstance(section, type) and issubclass(section, BaseModel):
            field = section.model_fields.get(str(part))
            section = field.annotation if field is not None else None
        else:  # a list or a mapping of sections: its elements' type comes last
            section = get_args(section)[-1]
        while get_args(section) and not _is_container(section):
            section = get_args(section)[0]
    if isinstance(section, type) and issubclass(section, BaseModel):
        return list(section.model_fields)
    return []


def _is_container(annotation: Any) -> bool:
    return getattr(annotation, "__origin__", None) in (list, dict)


def _read_recipe(key: str, path: Path) -> dict[str, Any]:
    """The recipe of a JSON file: a run keeps it, and not the file's name."""
    try:
        return Recipe.from_json(json.loads(path.read_text(encoding="utf-8"))).to_json()
    except OSError as error:
        raise ConfigError(
            f"{key} must be the file of a recipe, but {path} is not readable "
            f"({error.strerror}): give the evomerge_recipe.json of an export"
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{key} must be the file of a recipe, but {path} holds another thing: give the "
            "evomerge_recipe.json of an export"
        ) from error


def _with_absolute_paths(config: Config, folder: Path) -> Config:
    def absolute(path: str) -> str:
        """Local paths become absolute; what is no local path stays (a Hub id or a task name)."""
        expanded = Path(path).expanduser()
        if expanded.is_absolute():
            return str(expanded)
        if (folder / expanded).exists() or path.startswith("."):
            return str((folder / expanded).resolve())
        return path

    def model(ref: ModelRef) -> ModelRef:
        return ref.model_copy(update={"path": absolute(ref.path)})

    def objective(one: ObjectiveConfig) -> ObjectiveConfig:
        paths: Mapping[str, Any] = {
            key: absolute(value)
            for key in ("lm_eval", "items", "held_out", "text", "item_bank")
            if isinstance(value := getattr(one, key), str)
        }
        options = dict(one.options)
        if isinstance(options.get("include_path"), str):
            options["include_path"] = absolute(options["include_path"])
        return one.model_copy(update={**paths, "options": options})

    def space(one: SpaceConfig) -> SpaceConfig:
        given = one.statistics
        paths: Mapping[str, Any] = {
            "text": None if given.text is None else absolute(given.text),
            "second_moments": {name: absolute(path) for name, path in given.second_moments.items()},
        }
        changed: dict[str, Any] = {"statistics": given.model_copy(update=paths)}
        if isinstance(one.start, str):
            changed["start"] = _read_recipe("space.start", Path(absolute(one.start)))
        return one.model_copy(update=changed)

    def start(one: StartConfig) -> StartConfig:
        recipes = [
            _read_recipe("start.recipes", Path(absolute(r))) if isinstance(r, str) else r
            for r in one.recipes
        ]
        run = None if one.run is None else str((folder / Path(one.run).expanduser()).resolve())
        return one.model_copy(update={"run": run, "recipes": recipes})

    return config.model_copy(
        update={
            "start": None if config.start is None else start(config.start),
            "space": space(config.space),
            "base": model(config.base),
            "experts": {name: model(ref) for name, ref in config.experts.items()},
            "objectives": [objective(one) for one in config.objectives],
            "cache": None if config.cache is None else absolute(config.cache),
        }
    )
