"""How a document is asked: few-shot examples, chat messages, generation arguments."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from evomerge.errors import TaskError
from fitness.lm_eval.documents import Item

_OWN_ARGUMENTS = ("until", "max_gen_toks", "max_tokens", "max_completion_tokens")
_REQUEST_TYPES = ("loglikelihood", "loglikelihood_rolling", "generate_until")


@dataclass(slots=True)
class Chat:
    """Messages to text through a tokenizer's chat template (`text`), as lm-eval renders them.

    Like lm-eval, a template that refuses system messages gets the others only;
    `left_out_system` then says so.
    """

    tokenizer: Any
    text: str
    multiturn: bool
    name: str
    left_out_system: bool = False

    def __call__(self, messages: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The text of a conversation, open for the assistant to go on.

        Raises:
            TaskError: when the template refuses the messages of users and assistants too.
        """
        from jinja2 import TemplateError

        others = [message for message in messages if message["role"] != "system"]
        try:
            return self._render(messages, add_generation_prompt)
        except TemplateError as error:
            refusal = error
        try:
            rendered = self._render(others, add_generation_prompt)
        except TemplateError:
            raise TaskError(
                f"{self.name}: the chat template must take the messages of the task, but it says "
                f"{type(refusal).__name__}: {refusal}: leave apply_chat_template out, or mend the "
                "template in the base's tokenizer"
            ) from refusal
        self.left_out_system = True
        return rendered

    def _render(self, messages: list[dict[str, str]], add_generation_prompt: bool) -> str:
        return str(
            self.tokenizer.apply_chat_template(
                messages,
                chat_template=self.text,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )
        )


def chat_of(tokenizer: Any, asked: bool | str, multiturn: bool, name: str) -> Chat:
    """The chat template that is asked for: the tokenizer's own, or one of several by name.

    Raises:
        TaskError: when the tokenizer has no such template.
    """
    templates = getattr(tokenizer, "chat_template", None)
    if not templates:
        raise TaskError(
            f"{name}: apply_chat_template needs a chat template, but the base's tokenizer has "
            "none: leave the option out, or save the tokenizer of a chat model with the base"
        )
    if isinstance(templates, str):
        if isinstance(asked, str):
            raise TaskError(
                f"{name}: a chat template is named where the tokenizer has several, but "
                f"{asked!r} is asked for and it has one without a name: write "
                "apply_chat_template: true"
            )
        return Chat(tokenizer, templates, multiturn, name)
    chosen = asked if isinstance(asked, str) else "default"
    if chosen not in templates:
        raise TaskError(
            f"{name}: the chat template must be one that the tokenizer has, but {chosen!r} is "
            f"not: choose from {', '.join(sorted(templates))}"
        )
    return Chat(tokenizer, templates[chosen], multiturn, name)


def override_generation(tasks: Sequence[Any], arguments: Mapping[str, Any], name: str) -> None:
    """Set arguments of generation in all tasks that generate, as lm-eval's `gen_kwargs`.

    Raises:
        TaskError: when no task generates, or a temperature would have no effect.
    """
    if not isinstance(arguments, Mapping):
        raise TaskError(
            f"{name}: gen_kwargs must be a mapping of names and values, but they are "
            f"{arguments!r}: write them as in gen_kwargs: {{max_gen_toks: 64}}"
        )
    writing = [task for task in tasks if task.get_config("output_type") == "generate_until"]
    if not writing:
        raise TaskError(
            f"{name}: gen_kwargs are for tasks that generate text, but this one does not: leave "
            "them out"
        )
    for task in writing:
        task.set_config("generation_kwargs", dict(arguments), update=True)
        if arguments.get("temperature") and not samples(task):
            raise TaskError(
                f"{name}: a temperature is for sampling, but gen_kwargs ask for temperature "
                f"{arguments['temperature']}, but do_sample is false: add do_sample: true"
            )


def check_generation(task: Any, name: str) -> None:
    """Refuse arguments that transformers' `generate` would refuse or misunderstand.

    Raises:
        TaskError: for an unknown argument, one that counts the prompt's tokens, or sampling
            without a temperature.
    """
    from transformers import GenerationConfig

    if task.get_config("output_type") != "generate_until":
        return
    given = task.config.generation_kwargs
    if given.get("do_sample") and given.get("temperature") == 0:
        raise TaskError(
            f"{name}: sampling needs a temperature above 0, but generation asks for "
            "do_sample: true and temperature: 0: raise it, or write do_sample: false"
        )
    known = [*_OWN_ARGUMENTS, *GenerationConfig().to_dict()]
    for argument in given:
        if argument in ("max_length", "min_length"):
            raise TaskError(
                f"{name}: the length of a text is given without its prompt, but {argument} counts "
                "both: give max_gen_toks (min_new_tokens)"
            )
        if argument not in known:
            close = get_close_matches(argument, known, n=2)
            raise TaskError(
                f"{name}: an argument of generation must be one of lm-eval's or transformers', "
                f"but {argument!r} is not: "
                + (f"did you mean {' or '.join(close)}?" if close else "leave it out")
            )


def samples(task: Any) -> bool:
    """Whether the task draws the texts that it asks for."""
    given = task.get_config("generation_kwargs") or {}
    return bool(given.get("do_sample", given.get("temperature", 0) > 0))


def prepare_fewshot(
    task: Any, num_fewshot: int | None, documents: Sequence[Any], is_only: bool, name: str
) -> int:
    """Set the number of examples and keep the items out of their pool; the number is returned.

    As in lm-eval, a task that sets 0 itself keeps 0: of several tasks silently, a single one
    refuses another number.

    Raises:
        TaskError: when the task does not allow the number or has too few documents.
    """
    default = task.get_config("num_fewshot")
    n_examples = (default or 0) if num_fewshot is None else num_fewshot
    if default == 0 and not is_only:
        n_examples = 0
    if n_examples < 0 or (n_examples > 0 and default == 0):
        raise TaskError(
            f"{name}: num_fewshot must be a number that the task allows, but {n_examples} is not "
            f"(the task sets {default}): leave num_fewshot out"
        )
    task.set_config("num_fewshot", n_examples)
    if n_examples == 0:
        return 0
    if not hasattr(task, "sampler"):
        if not task.has_training_docs():
            raise TaskError(
                f"{name}: few-shot examples must not be items, but this task takes them from its "
                "items' split: leave num_fewshot out, or give the task training documents"
            )
        return n_examples
    asked = {repr(document) for document in documents}
    pool = [document for document in task.sampler.df if repr(document) not in asked]
    if len(pool) <= n_examples:
        raise TaskError(
            f"{name}: few-shot examples must not be items, but besides the items there are "
            f"{len(pool)} documents for {n_examples} examples: ask for fewer items or examples"
        )
    if len(pool) < len(task.sampler.df):
        task.sampler.replace_df(pool)
    return n_examples


def instances_of(
    task: Any, items: Sequence[Item], seed: int, system: str | None, chat: Chat | None, name: str
) -> list[tuple[Any, ...]]:
    """What `build_all_requests` makes of each item, without its traps of numbering.

    Raises:
        TaskError: when the task asks for something that is no question to a language model.
    """
    task.set_fewshot_seed(seed)  # as lm-eval does before it builds the requests of a task
    render: Callable[..., str] | None = chat
    all_instances = []
    for number, item in enumerate(items):
        context = task.fewshot_context(
            item.document,
            num_fewshot=task.config.num_fewshot,
            system_instruction=system,
            apply_chat_template=chat is not None,
            fewshot_as_multiturn=chat is not None and chat.multiturn,
            chat_template=render,
            gen_prefix=task.doc_to_prefix(item.document),
        )
        made = task.construct_requests(
            doc=item.document,
            ctx=context,
            metadata=(task.config["task"], number, task.config.repeats),
            apply_chat_template=chat is not None,
            chat_template=render,
        )
        instances = sorted(made if isinstance(made, list) else [made], key=lambda one: one.idx)
        for instance in instances:
            if instance.request_type not in _REQUEST_TYPES:
                raise TaskError(
                    f"{name}: a task must ask for one of {', '.join(_REQUEST_TYPES)}, but it asks "
                    f"for {instance.request_type}: choose another task"
                )
        all_instances.append(tuple(instances))
    return all_instances
