"""The documents of a task: read and rendered once, chosen as items of both splits."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from evomerge.datatypes import Split, digest_of
from fitness.items import choose, divide


@dataclass(frozen=True, slots=True)
class Item:
    """A document as lm-eval asks it: `instances` are its requests, in lm-eval's order.

    `subtask` is the number of its task among those of the fitness.
    """

    subtask: int
    document: Any
    text: str
    digest: str
    instances: tuple[Any, ...] = ()


class Documents:
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


class Pool:
    """What search and held-out items of a task are drawn from: two splits, or one for both."""

    def __init__(self, task: Any) -> None:
        self.is_one = not (task.has_validation_docs() and task.has_test_docs())
        if self.is_one:
            self._search = self._held_out = Documents(task, task.eval_docs)
        else:
            self._search = Documents(task, task.validation_docs())
            self._held_out = Documents(task, task.test_docs())

    def size(self, split: Split) -> int:
        """How many documents there are for a split."""
        return len(self._search if split is Split.SEARCH else self._held_out)

    def draw(
        self, subtask: int, n_search: int | None, n_held_out: int | None, seed: int, name: str
    ) -> dict[Split, list[Item]]:
        """Items without requests, in the order of the documents."""
        if self.is_one:
            positions = divide(
                len(self._search), self._search.digest, n_search, n_held_out, seed, name
            )
        else:
            positions = (
                choose(len(self._search), n_search, seed, Split.SEARCH, name),
                choose(len(self._held_out), n_held_out, seed, Split.HELD_OUT, name),
            )
        return {
            split: [Item(subtask, *documents[position]) for position in chosen]
            for split, documents, chosen in zip(
                (Split.SEARCH, Split.HELD_OUT),
                (self._search, self._held_out),
                positions,
                strict=True,
            )
        }


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


def remember_templates(task: Any) -> None:
    """Make the templates of a YAML task render each document and few-shot example once."""
    if getattr(task, "prompt", None) is not None or not hasattr(task, "features"):
        return
    for config in (task.config, task.fewshot_cfg):
        for name in ("doc_to_text", "doc_to_choice", "doc_to_target"):
            template = getattr(config, name)
            if isinstance(template, str) and template not in task.features:
                render = getattr(task, name)  # a bound method; its second argument is the template

                def render_template(
                    document: Any, render: Callable[..., Any] = render, template: str = template
                ) -> Any:
                    return render(document, template)

                setattr(config, name, _Remembered(render_template))
