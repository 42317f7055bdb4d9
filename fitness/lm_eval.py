"""Tasks of lm-evaluation-harness, asked of the live model: the only importer of `lm_eval`."""

import logging
import random
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from evomerge.datatypes import FloatArray, Objective, Split, digest_of
from evomerge.errors import TaskError
from evomerge.protocols import LiveModel
from fitness.items import choose, divide, refuse_overlap

_OUTPUT_TYPES = ("multiple_choice", "loglikelihood", "generate_until")
_N_PLANS = 8


class _Engine(Protocol):
    """`Likelihood` or `Generation`: prepares requests once and answers them with any weights."""

    def plan(self, requests: Sequence[Any], /) -> Any: ...

    def answer(self, plan: Any, /) -> Sequence[Any]: ...


@dataclass(frozen=True, slots=True)
class _Item:
    """A document as lm-eval asks it: `instances` are its requests, in lm-eval's order."""

    document: Any
    text: str
    digest: str
    instances: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class _Column:
    """Where an objective's responses come from: a metric, behind one of the task's filters."""

    metric: str
    filter: str


class LmEvalFitness:
    """One lm-eval task; each objective is one of its metrics, answered item by item.

    Numbers equal those of `lm_eval.simple_evaluate` on the same documents (models in half
    precision: up to rounding, the log-softmax here is in float32). When the task has a validation
    and a test split, search items come from the first and held-out items from the second; a
    single split is divided (`fitness.items.divide`). Digests are of an item's prompt, choices
    and target, without few-shot examples.

    Args:
        objectives: What to answer, in the order of the columns.
        task: Path of a task's YAML file, of a folder with one such file, or lm-eval's own name
            for a task (slower to start: lm-eval then reads its whole catalogue).
        metrics: For each objective `metric,filter`, or just `metric` if the task has one filter,
            or None if the task has one metric.
        items: How many search items; None takes all.
        held_out: How many held-out items; None takes all, 0 none.
        seed: Draws the items and the few-shot examples.
        num_fewshot: Examples before each question, never search or held-out items themselves;
            None leaves the number to the task.
        batch_size: Most rows of a forward.
        max_batch_tokens: Most tokens of a forward, padding included.

    Raises:
        TaskError: when the task, a metric, a split or an option cannot be used.
    """

    def __init__(
        self,
        objectives: tuple[Objective, ...],
        *,
        task: str,
        metrics: Sequence[str | None],
        items: int | None = None,
        held_out: int | None = None,
        seed: int = 0,
        num_fewshot: int | None = None,
        batch_size: int = 64,
        max_batch_tokens: int = 16384,
    ) -> None:
        metrics = (metrics,) if isinstance(metrics, str) else tuple(metrics)
        if len(metrics) != len(objectives) or not metrics:
            raise TaskError(
                f"{task}: each objective needs one metric, but there are {len(objectives)} "
                f"objectives and {len(metrics)} metrics: give one metric for each"
            )
        if batch_size < 1 or max_batch_tokens < 1:
            raise TaskError(
                f"{task}: a batch must hold something, but {batch_size=} and {max_batch_tokens=}: "
                "give numbers above 0"
            )
        self._objectives = tuple(objectives)
        self._name = task
        self._batch_size = batch_size
        self._max_batch_tokens = max_batch_tokens
        with _contained():
            self._task = _load(task)
            _refuse_unsupported(self._task, task)
            _remember_templates(self._task)
            try:
                self._items = _choose_items(self._task, items, held_out, seed, num_fewshot, task)
                refuse_overlap(
                    self.items(Split.SEARCH),
                    self.items(Split.HELD_OUT),
                    lambda position: self._items[Split.HELD_OUT][position].text,
                    task,
                )
                self._columns = self._resolve(metrics)
            except _lm_eval_errors() as error:
                raise _unusable(task, error) from error
        self._engine: _Engine | None = None
        self._requests: dict[Split, list[list[Any]]] = {}
        self._plans: OrderedDict[tuple[Split, tuple[int, ...]], Any] = OrderedDict()

    @property
    def objectives(self) -> tuple[Objective, ...]:
        """What each item is answered for."""
        return self._objectives

    @property
    def settings(self) -> str:
        """Digest of the prompts as they are asked, and of the metrics."""
        asked = {
            split.value: [[instance.args for instance in item.instances] for item in items]
            for split, items in self._items.items()
        }
        metrics = [[column.metric, column.filter] for column in self._columns]
        return digest_of([self._task.OUTPUT_TYPE, metrics, repr(asked)])

    @property
    def warnings(self) -> tuple[str, ...]:
        """Nothing to warn of."""
        return ()

    def items(self, split: Split) -> tuple[str, ...]:
        """Digests of the contents of a split's items, in the order of the documents."""
        return tuple(item.digest for item in self._items[split])

    def bind(self, live: LiveModel) -> None:
        """Tokenize all items as lm-eval does for this model.

        As lm-eval does, this puts the model into evaluation mode and gives a tokenizer without
        a pad token one.

        Raises:
            TaskError: when there is no tokenizer, the model is not a causal one, or an item is
                too long for it.
        """
        model, tokenizer = live.model, live.tokenizer
        if tokenizer is None:
            raise TaskError(
                f"{self._name}: lm-eval tasks need a tokenizer, but the model folder has none: "
                "add the tokenizer's files to the base model's folder"
            )
        with _contained():
            encoder = _encoder(model, tokenizer, self._name)
            if self._task.OUTPUT_TYPE == "generate_until":
                from fitness.generation import Generation

                self._engine = Generation(
                    model, tokenizer, self._batch_size, self._max_batch_tokens
                )
                encode: Callable[[Any], Any] = encoder.prompt
            else:
                from fitness.likelihood import Likelihood

                self._engine = Likelihood(model, self._batch_size, self._max_batch_tokens)
                encode = encoder.pair
            try:
                self._requests = {
                    split: [[encode(instance) for instance in item.instances] for item in items]
                    for split, items in self._items.items()
                }
            except _lm_eval_errors() as error:
                raise _unusable(self._name, error) from error
        self._plans.clear()

    def respond(self, split: Split, items: Sequence[int]) -> FloatArray:
        """The metrics of these items, shape `(len(items), n_objectives)`, in the items' order."""
        if self._engine is None:
            raise RuntimeError("bind(model, tokenizer) comes before respond")
        responses = np.empty((len(items), len(self._columns)))
        if len(items) == 0:
            return responses
        answers = self._engine.answer(self._plan(self._engine, split, tuple(items)))
        asked = [self._items[split][item] for item in items]
        for name in {column.filter: None for column in self._columns}:
            results = self._process(asked, answers, name)
            for number, column in enumerate(self._columns):
                if column.filter == name:
                    responses[:, number] = [result[column.metric] for result in results]
        return responses

    def _plan(self, engine: _Engine, split: Split, items: tuple[int, ...]) -> Any:
        key = (split, items)
        if key not in self._plans:
            self._plans[key] = engine.plan(
                [request for item in items for request in self._requests[split][item]]
            )
            if len(self._plans) > _N_PLANS:
                self._plans.popitem(last=False)
        self._plans.move_to_end(key)
        return self._plans[key]

    def _process(
        self, items: Sequence[_Item], answers: Sequence[Any], filter_name: str
    ) -> list[Mapping[str, Any]]:
        """lm-eval's metrics of each item; `answers` has one entry per request, item by item."""
        instances = [instance for item in items for instance in item.instances]
        for instance, answer in zip(instances, answers, strict=True):
            instance.resps = [answer] * (instance.repeats or 1)  # greedy: repeats are all the same
        (ensemble,) = (known for known in self._task._filters if known.name == filter_name)
        ensemble.apply(instances)
        return [
            self._task.process_results(
                item.document,
                [instance.filtered_resps[filter_name] for instance in item.instances],
            )
            for item in items
        ]

    def _resolve(self, metrics: Sequence[str | None]) -> tuple[_Column, ...]:
        """Find the metrics by scoring the first item with a made-up answer, as any model might."""
        from lm_eval.api.metrics import mean

        first = self._items[Split.SEARCH][0]
        answer = "" if self._task.OUTPUT_TYPE == "generate_until" else (-1.0, False)
        filters = [known.name for known in self._task._filters]
        values = {
            (metric, name): value
            for name in filters
            for metric, value in self._process([first], [answer] * len(first.instances), name)[
                0
            ].items()
        }
        columns = []
        for asked in metrics:
            given = ",".join(next(iter(values))) if asked is None and len(values) == 1 else asked
            if given is None:
                raise TaskError(
                    f"{self._name}: an objective must name its metric where the task has several, "
                    f"but it does not: choose from {_names(values)}"
                )
            metric, comma, name = given.partition(",")
            if not comma and len(filters) == 1:
                name = filters[0]
            if (metric, name) not in values:
                raise TaskError(
                    f"{self._name}: a metric must be one that the task computes, but {given!r} is "
                    f"not: choose from {_names(values)}"
                )
            value, aggregation = values[metric, name], self._task.aggregation().get(metric, mean)
            if not isinstance(value, int | float | np.number | np.bool_) or aggregation is not mean:
                raise TaskError(
                    f"{self._name}: a metric must be a number per item whose mean is the score, "
                    f"but {given!r} is combined by {_name_of(aggregation)!r}: choose another metric"
                )
            columns.append(_Column(metric, name))
        return tuple(columns)


def _names(metrics: Iterable[tuple[str, str]]) -> str:
    """Metrics as a user gives them."""
    known = ", ".join(sorted(f"{metric},{name}" for metric, name in metrics))
    return known or "none, its metric_list is empty"


class _Documents:
    """The documents of one split, each read and rendered once, when it is first asked for."""

    def __init__(self, task: Any, rows: Any) -> None:
        self._task = task
        self._rows = rows if hasattr(rows, "__getitem__") else list(rows)
        self._known: dict[int, tuple[Any, str, str]] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def digest(self, position: int) -> str:
        """Digest of the prompt, the choices and the target."""
        return self[position][2]

    def __getitem__(self, position: int) -> tuple[Any, str, str]:
        """The document, its prompt and its digest."""
        if position not in self._known:
            document = self._rows[position]
            text = str(self._task.doc_to_text(document))
            choices = (
                None
                if self._task.config.doc_to_choice is None
                else [str(choice) for choice in self._task.doc_to_choice(document)]
            )
            content = [text, choices, str(self._task.doc_to_target(document))]
            self._known[position] = (document, text, digest_of(content))
        return self._known[position]


class _Remembered:
    """A template of a task, rendered once per document.

    lm-eval compiles it anew at every call (0.3 ms), also when it scores an answer.
    """

    def __init__(self, render: Callable[[Any], Any]) -> None:
        self._render = render
        self._known: dict[int, tuple[Any, Any]] = {}

    def __call__(self, document: Any) -> Any:
        known = self._known.get(id(document))
        if known is None:
            # The document is kept too: its id cannot then become another document's.
            known = self._known[id(document)] = (document, self._render(document))
        return known[1]


def _remember_templates(task: Any) -> None:
    if getattr(task, "prompt", None) is not None or not hasattr(task, "features"):
        return
    for name in ("doc_to_text", "doc_to_choice", "doc_to_target"):
        template = getattr(task.config, name)
        if isinstance(template, str) and template not in task.features:
            render = getattr(task, name)  # a bound method; its second argument is the template

            def render_template(
                document: Any, render: Callable[..., Any] = render, template: str = template
            ) -> Any:
                return render(document, template)

            task.set_config(name, _Remembered(render_template))


def _load(name: str) -> Any:
    """The lm-eval task of a path or a name."""
    from lm_eval.tasks import TaskManager

    path = Path(name).expanduser()
    is_path = path.suffix in {".yaml", ".yml"} or path.exists()
    if is_path and not path.exists():
        raise TaskError(
            f"{name}: a task must be a YAML file, a folder with one, or a name that lm-eval knows, "
            "but there is no such file: check the path"
        )
    try:
        if path.is_dir():
            manager = TaskManager(include_path=str(path), include_defaults=False)
            if len(manager.all_subtasks) != 1:
                raise TaskError(
                    f"{name}: a folder must hold exactly one task, but this one holds "
                    f"{', '.join(manager.all_subtasks) or 'none'}: give the path of one YAML file"
                )
            loaded = manager.load(manager.all_subtasks)
        elif is_path:
            loaded = TaskManager(include_defaults=False).load([str(path.resolve())])
        else:
            manager = _catalogue()
            if name not in manager.all_tasks:
                close = get_close_matches(name, manager.all_subtasks, n=3)
                raise TaskError(
                    f"{name}: a task must be a YAML file, a folder with one, or a name that "
                    "lm-eval knows, but it is none of these: "
                    + (f"did you mean {' or '.join(close)}?" if close else "check the spelling")
                )
            if name not in manager.all_subtasks:
                raise TaskError(
                    f"{name}: each fitness asks one task, but this is lm-eval's name for a group "
                    "or a tag: give one of its tasks"
                )
            loaded = manager.load([name])
    except _lm_eval_errors() as error:
        raise _unusable(name, error) from error
    tasks = loaded["tasks"]
    if len(tasks) != 1:
        raise TaskError(
            f"{name}: each fitness asks one task, but this name stands for {len(tasks)}: "
            f"give one of {', '.join(sorted(tasks)[:10])}"
        )
    return next(iter(tasks.values()))


@cache
def _catalogue() -> Any:
    """All tasks that come with lm-eval: half a minute, so once per process."""
    from lm_eval.tasks import TaskManager

    return TaskManager()


def _refuse_unsupported(task: Any, name: str) -> None:
    if task.OUTPUT_TYPE not in _OUTPUT_TYPES:
        raise TaskError(
            f"{name}: a task's output_type must be one of {', '.join(_OUTPUT_TYPES)}, but it is "
            f"{task.OUTPUT_TYPE}: choose another task"
        )
    if getattr(task, "MULTIMODAL", False):
        raise TaskError(
            f"{name}: a task must be text only, but this one shows images or plays sounds: "
            "choose another task"
        )
    if getattr(task, "UNSAFE_CODE", False):
        raise TaskError(
            f"{name}: a task must not run code that models write, but this one does "
            "(unsafe_code: true): choose another task, or score it in a sandbox of your own"
        )
    if task.OUTPUT_TYPE == "generate_until":
        from lm_eval.models.utils import normalize_gen_kwargs

        options = normalize_gen_kwargs(task.config.generation_kwargs or {})
        sampling = options.pop("do_sample", False) or options.pop("temperature", 0.0) > 0
        others = sorted(set(options) - {"until", "max_gen_toks", "temperature"})
        if sampling or others:
            raise TaskError(
                f"{name}: text must be generated greedily, but generation_kwargs ask for "
                f"{'sampling' if sampling else ', '.join(others)}: keep only until, max_gen_toks "
                "and do_sample: false"
            )


def _choose_items(
    task: Any,
    n_search: int | None,
    n_held_out: int | None,
    seed: int,
    num_fewshot: int | None,
    name: str,
) -> dict[Split, tuple[_Item, ...]]:
    """Draw the items of both splits and write down their requests."""
    if task.has_validation_docs() and task.has_test_docs():
        search = _Documents(task, task.validation_docs())
        held_out = _Documents(task, task.test_docs())
        positions = (
            choose(len(search), n_search, seed, Split.SEARCH, name),
            choose(len(held_out), n_held_out, seed, Split.HELD_OUT, name),
        )
    else:
        search = held_out = _Documents(task, task.eval_docs)
        positions = divide(len(search), search.digest, n_search, n_held_out, seed, name)
    chosen = {
        Split.SEARCH: [search[position] for position in positions[0]],
        Split.HELD_OUT: [held_out[position] for position in positions[1]],
    }
    _prepare_fewshot(task, num_fewshot, [row[0] for rows in chosen.values() for row in rows], name)
    items = {}
    for split, rows in chosen.items():
        task.set_fewshot_seed(seed)  # as lm-eval does before it builds the requests of a task
        items[split] = tuple(
            _Item(document, text, digest, _instances(task, document, number))
            for number, (document, text, digest) in enumerate(rows)
        )
    return items


def _prepare_fewshot(
    task: Any, num_fewshot: int | None, documents: Sequence[Any], name: str
) -> None:
    """Set the number of examples and keep the items out of their pool."""
    default = task.get_config("num_fewshot")
    n_examples = (default or 0) if num_fewshot is None else num_fewshot
    if n_examples < 0 or (n_examples > 0 and (default == 0 or not hasattr(task, "sampler"))):
        raise TaskError(
            f"{name}: num_fewshot must be a number that the task allows, but {n_examples} is not "
            f"(the task sets {default}): leave num_fewshot out"
        )
    task.set_config("num_fewshot", n_examples)
    if n_examples == 0:
        return
    asked = {repr(document) for document in documents}
    pool = [document for document in task.sampler.df if repr(document) not in asked]
    if len(pool) <= n_examples:
        raise TaskError(
            f"{name}: few-shot examples must not be items, but besides the items there are "
            f"{len(pool)} documents for {n_examples} examples: ask for fewer items or examples"
        )
    if len(pool) < len(task.sampler.df):
        task.sampler.replace_df(pool)


def _instances(task: Any, document: Any, number: int) -> tuple[Any, ...]:
    """What `build_all_requests` does for one document, without its traps of numbering."""
    context = task.fewshot_context(
        document,
        num_fewshot=task.config.num_fewshot,
        gen_prefix=task.doc_to_prefix(document),
    )
    instances = task.construct_requests(
        doc=document,
        ctx=context,
        metadata=(task.config["task"], number, task.config.repeats),
    )
    return tuple(instances) if isinstance(instances, list) else (instances,)


class _Encoder(Protocol):
    """Tokenizes requests for one model, as lm-eval does."""

    def pair(self, instance: Any) -> Any:
        """A `likelihood.Pair`."""

    def prompt(self, instance: Any) -> Any:
        """A `generation.Prompt`."""


def _encoder(model: Any, tokenizer: Any, name: str) -> _Encoder:
    from lm_eval.models.huggingface import HFLM
    from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs

    from fitness.generation import Prompt
    from fitness.likelihood import Pair

    class Encoder(HFLM):  # type: ignore[misc]  # lm_eval ships no types
        """lm-eval's model, stopped before it scores: what it would have scored comes back."""

        def _loglikelihood_tokens(self, requests: list[Any], **_: Any) -> list[Any]:
            return requests

        def pair(self, instance: Any) -> Pair:
            ((_, context, continuation),) = self.loglikelihood([instance], disable_tqdm=True)
            n_tokens = len(context) + len(continuation) - 1
            if not continuation:
                raise TaskError(
                    f"{name}: each answer must have a token, but {instance.args[1]!r} after "
                    f"{instance.args[0][-40:]!r} has none: mend the item"
                )
            if n_tokens > self.max_length:
                raise _too_long(name, n_tokens, self.max_length, instance)
            return Pair(tuple(context), tuple(continuation))

        def prompt(self, instance: Any) -> Prompt:
            text, options = instance.args
            options = normalize_gen_kwargs(options, self.max_gen_toks)
            end = (
                None
                if self.eot_token_id is None
                else self.tok_decode(self.eot_token_id, skip_special_tokens=False)
            )
            stops = handle_stop_sequences(options["until"], eos=end)
            tokens = tuple(self.tok_batch_encode([text])[0][0].tolist())
            n_tokens = len(tokens) + options["max_gen_toks"]
            if n_tokens > self.max_length:
                raise _too_long(name, n_tokens, self.max_length, instance)
            return Prompt(tokens, tuple(stops), options["max_gen_toks"])

    encoder = Encoder(pretrained=model, tokenizer=tokenizer)
    if encoder.backend != "causal":
        raise TaskError(
            f"{name}: the model must be a causal language model, but it has an encoder and a "
            "decoder: choose another base model"
        )
    return encoder


def _too_long(name: str, n_tokens: int, max_length: int, instance: Any) -> TaskError:
    return TaskError(
        f"{name}: an item with its answer must fit into the model, but one takes {n_tokens} "
        f"tokens and the model reads {max_length} (it begins {instance.args[0][:40]!r}): leave it "
        "out, or lower num_fewshot or max_gen_toks"
    )


def _lm_eval_errors() -> tuple[type[Exception], ...]:
    """What lm-eval and datasets raise for tasks that they cannot read or render."""
    from datasets.exceptions import DatasetsError
    from jinja2 import TemplateError
    from yaml import YAMLError

    return (
        AssertionError,
        AttributeError,
        ImportError,
        LookupError,
        OSError,
        StopIteration,
        TypeError,
        ValueError,
        DatasetsError,
        TemplateError,
        YAMLError,
    )


def _unusable(name: str, error: Exception) -> TaskError:
    fact = " ".join(f"{type(error).__name__}: {error}".split())
    if isinstance(error, StopIteration) or "corresponds to no data" in fact:
        return TaskError(
            f"{name}: every split of a task must have documents, but one is empty ({fact}): fill "
            "its file, or take the split out of the task"
        )
    return TaskError(
        f"{name}: lm-eval must be able to read the task, but it says {fact}: check its YAML and "
        "its files (relative data_files count from the working directory: make them absolute)"
    )


def _name_of(aggregation: Any) -> str:
    return str(getattr(aggregation, "__name__", aggregation))


@contextmanager
def _contained() -> Iterator[None]:
    """lm-eval and datasets give no advice, show no progress and draw no numbers of the process.

    lm-eval draws from Python's global generator whenever it is asked for the name of a task.
    """
    import datasets

    logger = logging.getLogger("lm_eval")
    level, bars_off, state = logger.level, datasets.are_progress_bars_disabled(), random.getstate()
    logger.setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        logger.setLevel(level)
        random.setstate(state)
        if not bars_off:
            datasets.enable_progress_bars()
