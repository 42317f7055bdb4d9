"""The fitness that asks lm-eval's tasks: what it promises, and how its parts work together."""

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

from evomerge.datatypes import Direction, FloatArray, Objective, Split
from evomerge.errors import TaskError
from evomerge.protocols import LiveModel
from fitness.items import refuse_overlap, share
from fitness.lm_eval import benchmarks
from fitness.lm_eval.containment import contained, lm_eval_errors, unusable
from fitness.lm_eval.documents import Item, Pool, remember_templates
from fitness.lm_eval.metrics import Measure, resolve
from fitness.lm_eval.requests import (
    Chat,
    chat_of,
    check_generation,
    instances_of,
    override_generation,
    prepare_fewshot,
    samples,
)
from fitness.lm_eval.settings import described, digest_of_asking
from fitness.lm_eval.tasks import load

if TYPE_CHECKING:
    from fitness.generation import Generation
    from fitness.likelihood import Likelihood
    from fitness.lm_eval.encoding import Request

_N_PLANS = 8
_TOO_LONG = ("refuse", "truncate_left")


@dataclass(frozen=True, slots=True)
class _Bound:
    """A model with the requests of all items, tokenized."""

    likelihood: "Likelihood"
    generation: "Generation | None"
    requests: Mapping[Split, Sequence[Sequence["Request"]]]


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
            self._tasks = tuple(loaded.by_name.values())
            for one in self._tasks:
                _refuse_unsupported(one, task, confirm_run_unsafe_code)
            try:
                if gen_kwargs is not None:
                    override_generation(self._tasks, gen_kwargs, task)
                for one in self._tasks:
                    check_generation(one, task)
                self._described = [described(one) for one in self._tasks]
                self._items = self._draw(loaded.by_name, items, held_out)
                self._n_shots = self._prepare_fewshot(num_fewshot)
                self._write_requests(None)
                self._measures = resolve(metrics, loaded, [*map(self._try, self._firsts())], task)
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
        self._bound: _Bound | None = None
        self._plans: OrderedDict[tuple[Split, tuple[int, ...]], tuple[Any, Any]] = OrderedDict()

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
            drawn = [instance.args for item in self._every_item() for instance in item.instances]
        return digest_of_asking(
            self._described,
            [[measure.name, repr(measure.statistic)] for measure in self._measures],
            [self._chat_template, self._multiturn, self._system, self._too_long, self._n_shots],
            [self._seed, drawn] if drawn or any(map(samples, self._tasks)) else None,
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
        from fitness.generation import Generation
        from fitness.likelihood import Likelihood
        from fitness.lm_eval.encoding import encoder_for

        with contained():
            if self._chat_template:
                self._chat = chat_of(tokenizer, self._chat_template, self._multiturn, self._name)
            encode = encoder_for(model, tokenizer, self._seed, self._too_long, self._name)
            try:
                if self._chat is not None:
                    self._write_requests(self._chat)
                requests = {
                    split: [
                        [encode(instance, f"{split.value} item {number}") for instance in instances]
                        for number, instances in enumerate(item.instances for item in items)
                    ]
                    for split, items in self._items.items()
                }
            except lm_eval_errors() as error:
                raise unusable(self._name, error) from error
        every = chain.from_iterable(chain(*requests.values()))
        batches = (self._batch_size, self._max_batch_tokens)
        self._bound = _Bound(
            Likelihood(model, *batches),
            Generation(model, tokenizer, *batches) if any(one.prompts for one in every) else None,
            requests,
        )
        self._plans.clear()

    def respond(self, split: Split, items: Sequence[int]) -> FloatArray:
        """The metrics of these items, shape `(len(items), n_columns)`, in the items' order.

        Raises:
            FloatingPointError: the model computes NaN, or a metric is no finite number.
        """
        if self._bound is None:
            raise RuntimeError("bind(live) comes before respond")
        ends = np.cumsum([0, *(measure.statistic.n_columns for measure in self._measures)])
        responses = np.empty((len(items), int(ends[-1])))
        if len(items) == 0:
            return responses
        self._answer(self._bound, split, tuple(items))
        asked = [self._items[split][item] for item in items]
        for filter_name in {measure.filter: None for measure in self._measures}:
            values = self._process(asked, filter_name)
            for measure, start, end in zip(self._measures, ends, ends[1:], strict=False):
                if measure.filter == filter_name:
                    responses[:, start:end] = [
                        self._row(measure, item, value)
                        for item, value in zip(asked, values, strict=True)
                    ]
        return responses

    def _answer(self, bound: _Bound, split: Split, items: tuple[int, ...]) -> None:
        """Let the model answer, and hand the answers to lm-eval's instances."""
        pairs, prompts = self._plan(bound, split, items)
        scores = iter(() if pairs is None else bound.likelihood.answer(pairs))
        texts: Iterator[str] = iter(())
        if bound.generation is not None and prompts is not None:
            texts = iter(bound.generation.answer(prompts))
        for item in items:
            for instance, request in zip(
                self._items[split][item].instances, bound.requests[split][item], strict=True
            ):
                instance.resps = request.read(scores, texts)

    def _plan(self, bound: _Bound, split: Split, items: tuple[int, ...]) -> tuple[Any, Any]:
        key = (split, items)
        if key not in self._plans:
            requests = [request for item in items for request in bound.requests[split][item]]
            pairs = [pair for request in requests for pair in request.pairs]
            prompts = [prompt for request in requests for prompt in request.prompts]
            self._plans[key] = (
                bound.likelihood.plan(pairs) if pairs else None,
                bound.generation.plan(prompts) if bound.generation and prompts else None,
            )
            if len(self._plans) > _N_PLANS:
                self._plans.popitem(last=False)
        self._plans.move_to_end(key)
        return self._plans[key]

    def _process(self, items: Sequence[Item], filter_name: str) -> list[Mapping[str, Any]]:
        """lm-eval's metrics of items whose instances hold their answers."""
        results: list[Mapping[str, Any]] = [{}] * len(items)
        for number, task in enumerate(self._tasks):
            positions = [place for place, item in enumerate(items) if item.subtask == number]
            if not positions:
                continue
            (ensemble,) = (known for known in task._filters if known.name == filter_name)
            ensemble.apply([one for place in positions for one in items[place].instances])
            for place in positions:
                item = items[place]
                filtered = [instance.filtered_resps[filter_name] for instance in item.instances]
                results[place] = task.process_results(item.document, filtered)
        return results

    def _row(self, measure: Measure, item: Item, values: Mapping[str, Any]) -> Sequence[float]:
        where = f"an item that begins {item.text[:40]!r}"
        try:
            row = measure.row(item.subtask, values[measure.metric])
        except KeyError as error:
            raise TaskError(
                f"{self._name}: each item must have each metric, but {measure.name!r} is missing "
                f"for {where}: choose another metric, or mend the task's process_results"
            ) from error
        except (TypeError, ValueError, IndexError) as error:
            raise TaskError(
                f"{self._name}: {measure.name!r} must be of one form for all items, but {where} "
                f"has {values[measure.metric]!r} ({error}): mend the task's process_results"
            ) from error
        if not np.isfinite(row).all():
            raise FloatingPointError(
                f"{self._name}: {measure.name} is {values[measure.metric]!r} for {where}"
            )
        return row

    def _draw(
        self,
        tasks: Mapping[str, Any],
        n_search: int | Mapping[str, int] | None,
        n_held_out: int | Mapping[str, int] | None,
    ) -> dict[Split, list[Item]]:
        """Items of both splits, without requests.

        All tasks draw with the same seed: where they are translations of each other, a question
        is in the same split in all languages.
        """
        for task in self._tasks:
            remember_templates(task)
        pools = {name: Pool(task) for name, task in tasks.items()}
        sizes = {name: pool.size(Split.SEARCH) for name, pool in pools.items()}
        search = share(n_search, sizes, Split.SEARCH, self._name)
        rest = {
            name: pool.size(Split.HELD_OUT) - ((search[name] or 0) if pool.is_one else 0)
            for name, pool in pools.items()
        }
        held_out = share(n_held_out, rest, Split.HELD_OUT, self._name)
        drawn: dict[Split, list[Item]] = {split: [] for split in Split}
        for number, (name, pool) in enumerate(pools.items()):
            shown = self._name if len(pools) == 1 else f"{self._name}, {name}"
            one = pool.draw(number, search[name], held_out[name], self._seed, shown)
            for split, items in one.items():
                drawn[split] += items
        refuse_overlap(
            [item.digest for item in drawn[Split.SEARCH]],
            [item.digest for item in drawn[Split.HELD_OUT]],
            lambda position: drawn[Split.HELD_OUT][position].text,
            self._name,
        )
        return drawn

    def _prepare_fewshot(self, num_fewshot: int | None) -> list[int]:
        return [
            prepare_fewshot(
                task,
                num_fewshot,
                [item.document for item in self._every_item() if item.subtask == number],
                len(self._tasks) == 1,
                self._name,
            )
            for number, task in enumerate(self._tasks)
        ]

    def _write_requests(self, chat: Chat | None) -> None:
        """Give all items their requests."""
        for split, items in self._items.items():
            written: list[Item] = []
            for number, task in enumerate(self._tasks):
                own = [item for item in items if item.subtask == number]
                asked = instances_of(task, own, self._seed, self._system, chat, self._name)
                written += [
                    replace(item, instances=instances)
                    for item, instances in zip(own, asked, strict=True)
                ]
            self._items[split] = written

    def _every_item(self) -> Iterator[Item]:
        return chain.from_iterable(self._items.values())

    def _firsts(self) -> list[Item]:
        """The first search item of each task."""
        firsts = {item.subtask: item for item in reversed(self._items[Split.SEARCH])}
        return [firsts[number] for number in range(len(self._tasks))]

    def _try(self, item: Item) -> dict[tuple[str, str], Any]:
        """What an item would be worth with a made-up answer, as any model might give it."""
        made_up = {"generate_until": "", "loglikelihood_rolling": -1.0}
        for instance in item.instances:
            answer = made_up.get(instance.request_type, (-1.0, False))
            instance.resps = [answer] * (instance.repeats or 1)
        return {
            (metric, known.name): value
            for known in self._tasks[item.subtask]._filters
            for metric, value in self._process([item], known.name)[0].items()
        }

    def _wrong_directions(self) -> Iterator[str]:
        """lm-eval knows which way most of its metrics improve."""
        for objective, measure in zip(self._objectives, self._measures, strict=True):
            higher = self._tasks[0].higher_is_better().get(measure.metric)
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
