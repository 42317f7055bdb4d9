"""The fitness that asks lm-eval's tasks: what it promises, and how its parts work together."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

from evomerge.datatypes import Direction, FloatArray, Objective, Split
from evomerge.errors import TaskError
from evomerge.protocols import LiveModel
from fitness.lm_eval import benchmarks
from fitness.lm_eval.containment import contained, lm_eval_errors, unusable
from fitness.lm_eval.documents import Item
from fitness.lm_eval.drawing import Drawn, draw, keep_from_fewshot, with_requests
from fitness.lm_eval.metrics import resolve
from fitness.lm_eval.requests import Chat, chat_of, check_generation, override_generation, samples
from fitness.lm_eval.results import results_of, row, trial
from fitness.lm_eval.settings import described, digest_of_asking
from fitness.lm_eval.tasks import load

if TYPE_CHECKING:
    from fitness.lm_eval.asking import Asking

_TOO_LONG = ("refuse", "truncate_left")


class LmEvalFitness:
    """Tasks of lm-eval; each objective is one of their metrics, answered item by item.

    Numbers equal those of `lm_eval.simple_evaluate` on the same documents (models in half
    precision: up to rounding, the log-softmax here is in float32; text that is sampled is drawn
    anew, by `seed` and the item's content). When a task has a validation and a test split,
    search items come from the first and held-out items from the second; a single split is
    divided (`fitness.items.divide`). Digests are of an item's prompt, choices and target, without
    few-shot examples and chat template.

    One fitness may stand for several tasks: a group, a tag, or a folder. Its items are those of
    all of them, one task after the other, and its score is the group's: weighted by the tasks'
    numbers of items, or not where the group says `weight_by_size: false`.

    Args:
        objectives: What to answer, in the order of the columns.
        task: Path of a YAML file of a task or group, of a folder with some, or a name of a task,
            group or tag that `include_path` or lm-eval knows (slower to start: lm-eval then reads
            its whole catalogue).
        metrics: For each objective `metric,filter`, or just `metric` if the task has one filter,
            or None if the task has one metric.
        items: How many search items; None takes all. Of several tasks, a number is divided in
            proportion to the sizes of their splits; a mapping gives a number for each.
        held_out: How many held-out items, likewise; None takes all, 0 none.
        seed: Draws the items, the few-shot examples and what is sampled.
        num_fewshot: Examples before each question, never search or held-out items themselves;
            None leaves the number to the task.
        batch_size: Most rows of a forward.
        max_batch_tokens: Most tokens of a forward, padding included.
        apply_chat_template: Whether to put the prompts into the tokenizer's chat template, or the
            name of one of several.
        fewshot_as_multiturn: With a chat template: each few-shot example is a turn of its own.
        system_instruction: A system message, or the first line of each prompt.
        gen_kwargs: Arguments of generation that replace those of tasks that generate text.
        include_path: A folder with tasks, in YAML or Python, that `task` may name.
        confirm_run_unsafe_code: Whether tasks may run code that models write.
        too_long: What happens to items that with their answer do not fit into the model: `refuse`
            them, or `truncate_left`, as lm-eval does, which cuts off their beginning.

    Raises:
        TaskError: when a task, a metric, a split or an option cannot be used.
    """

    def __init__(
        self,
        objectives: tuple[Objective, ...],
        *,
        task: str,
        metrics: Sequence[str | None],
        items: int | Mapping[str, int] | None = None,
        held_out: int | Mapping[str, int] | None = None,
        seed: int = 0,
        num_fewshot: int | None = None,
        batch_size: int = 64,
        max_batch_tokens: int = 16384,
        apply_chat_template: bool | str = False,
        fewshot_as_multiturn: bool = False,
        system_instruction: str | None = None,
        gen_kwargs: Mapping[str, Any] | None = None,
        include_path: str | None = None,
        confirm_run_unsafe_code: bool = False,
        too_long: str = "refuse",
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
        if fewshot_as_multiturn and not apply_chat_template:
            raise TaskError(
                f"{task}: fewshot_as_multiturn needs a chat, but apply_chat_template is off: turn "
                "it on, or leave fewshot_as_multiturn out"
            )
        if too_long not in _TOO_LONG:
            raise TaskError(
                f"{task}: too_long must be one of {', '.join(_TOO_LONG)}, but it is {too_long!r}: "
                "choose one"
            )
        self._name = task
        self._seed = seed
        self._batch_size = batch_size
        self._max_batch_tokens = max_batch_tokens
        self._chat_template = apply_chat_template
        self._multiturn = fewshot_as_multiturn
        self._system = system_instruction
        self._too_long: Any = too_long
        with contained():
            loaded = load(task, include_path)
            self._tasks = loaded.by_name
            tasks = [*loaded.by_name.values()]
            for one in tasks:
                _refuse_unsupported(one, task, confirm_run_unsafe_code)
            try:
                if gen_kwargs is not None:
                    override_generation(tasks, gen_kwargs, task)
                for one in tasks:
                    check_generation(one, task)
                self._described = [described(one) for one in tasks]
                self._items = draw(self._tasks, items, held_out, seed, task)
                self._n_shots = keep_from_fewshot(self._items, self._tasks, num_fewshot, task)
                self._items = self._with_requests(None)
                trials = [trial(tasks, item) for item in self._firsts()]
                self._measures = resolve(metrics, loaded, trials, task)
            except lm_eval_errors() as error:
                raise unusable(task, error) from error
        self._objectives = tuple(
            replace(objective, statistic=measure.statistic)
            for objective, measure in zip(objectives, self._measures, strict=True)
        )
        self._warnings = tuple(
            warning
            for warning in (benchmarks.warning(task, loaded.by_name), *self._wrong_directions())
            if warning is not None
        )
        self._chat: Chat | None = None
        self._asking: Asking | None = None

    @property
    def objectives(self) -> tuple[Objective, ...]:
        """What each item is answered for, each with the statistic of its metric."""
        return self._objectives

    @property
    def settings(self) -> str:
        """Digest of prompts, generation, filters and metrics; after `bind`, of the chat template.

        Batches do not count, nor which items there are, but where few-shot examples are drawn.
        """
        drawn: list[Any] = []
        if any(self._n_shots):
            every_item = chain.from_iterable(self._items.values())
            drawn = [instance.args for item in every_item for instance in item.instances]
        return digest_of_asking(
            self._described,
            [[measure.name, repr(measure.statistic)] for measure in self._measures],
            [self._chat_template, self._multiturn, self._system, self._too_long, self._n_shots],
            [self._seed, drawn] if drawn or any(map(samples, self._tasks.values())) else None,
            None if self._chat is None else self._chat.text,
        )

    @property
    def warnings(self) -> tuple[str, ...]:
        """A public benchmark's test split as search items, a direction that looks wrong.

        After `bind` also: a chat template that takes no system messages.
        """
        if self._chat is None or not self._chat.left_out_system:
            return self._warnings
        return (
            *self._warnings,
            f"{self._name}: the chat template takes no system messages, and they are left out, as "
            "by lm-eval: move what they say into the questions if it matters",
        )

    def items(self, split: Split) -> tuple[str, ...]:
        """Digests of the contents of a split's items, in the order of tasks and documents."""
        return tuple(item.digest for item in self._items[split])

    def bind(self, live: LiveModel) -> None:
        """Put all items into the chat template, if one is asked for, and tokenize them.

        As lm-eval does, this puts the model into evaluation mode and gives a tokenizer without
        a pad token one.

        Raises:
            TaskError: when there is no tokenizer or chat template, the model is not a causal one,
                or an item is too long for it.
        """
        model, tokenizer = live.model, live.tokenizer
        if tokenizer is None:
            raise TaskError(
                f"{self._name}: lm-eval tasks need a tokenizer, but the model folder has none: "
                "add the tokenizer's files to the base model's folder"
            )
        from fitness.lm_eval.asking import Asking
        from fitness.lm_eval.encoding import encoder_for

        with contained():
            if self._chat_template:
                self._chat = chat_of(tokenizer, self._chat_template, self._multiturn, self._name)
            encode = encoder_for(model, tokenizer, self._seed, self._too_long, self._name)
            try:
                if self._chat is not None:
                    self._items = self._with_requests(self._chat)
                requests = {
                    split: [
                        [encode(instance, f"{split.value} item {number}") for instance in instances]
                        for number, instances in enumerate(item.instances for item in items)
                    ]
                    for split, items in self._items.items()
                }
            except lm_eval_errors() as error:
                raise unusable(self._name, error) from error
        self._asking = Asking(
            model, tokenizer, self._items, requests, self._batch_size, self._max_batch_tokens
        )

    def respond(self, split: Split, items: Sequence[int]) -> FloatArray:
        """The metrics of these items, shape `(len(items), n_columns)`, in the items' order.

        Raises:
            FloatingPointError: the model computes NaN, or a metric is no finite number.
        """
        if self._asking is None:
            raise RuntimeError("bind(live) comes before respond")
        ends = np.cumsum([0, *(measure.statistic.n_columns for measure in self._measures)])
        responses = np.empty((len(items), int(ends[-1])))
        if len(items) == 0:
            return responses
        self._asking.ask(split, tuple(items))
        tasks = [*self._tasks.values()]
        asked = [self._items[split][item] for item in items]
        for filter_name in {measure.filter: None for measure in self._measures}:
            values = results_of(tasks, asked, filter_name)
            for measure, start, end in zip(self._measures, ends, ends[1:], strict=False):
                if measure.filter == filter_name:
                    responses[:, start:end] = [
                        row(measure, item, value, self._name)
                        for item, value in zip(asked, values, strict=True)
                    ]
        return responses

    def _with_requests(self, chat: Chat | None) -> Drawn:
        return with_requests(self._items, self._tasks, self._seed, self._system, chat, self._name)

    def _firsts(self) -> list[Item]:
        """The first search item of each task."""
        firsts = {item.subtask: item for item in reversed(self._items[Split.SEARCH])}
        return [firsts[number] for number in range(len(self._tasks))]

    def _wrong_directions(self) -> Iterator[str]:
        """lm-eval knows which way most of its metrics improve."""
        first = next(iter(self._tasks.values()))
        for objective, measure in zip(self._objectives, self._measures, strict=True):
            higher = first.higher_is_better().get(measure.metric)
            if higher is not None and higher != (objective.direction is Direction.MAXIMIZE):
                better = "maximize" if higher else "minimize"
                yield (
                    f"{self._name}: {measure.metric} is better when it is "
                    f"{'higher' if higher else 'lower'}, but the objective {objective.name} would "
                    f"{objective.direction.value} it: write direction: {better} if that is meant"
                )


def _refuse_unsupported(task: Any, name: str, confirm_unsafe: bool) -> None:
    if getattr(task, "MULTIMODAL", False):
        raise TaskError(
            f"{name}: a task must be text only, but this one shows images or plays sounds: "
            "choose another task"
        )
    if getattr(task, "UNSAFE_CODE", False) and not confirm_unsafe:
        raise TaskError(
            f"{name}: a task must not run code that models write, but this one does "
            "(unsafe_code: true): set confirm_run_unsafe_code: true where nothing can be harmed, "
            "or choose another task"
        )
