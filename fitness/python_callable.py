"""A function or a class of the user as fitness: for any kind of model."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from evomerge.datatypes import FloatArray, Objective, Split, digest_of
from evomerge.errors import TaskError
from evomerge.protocols import LiveModel
from fitness.content import digest_content
from fitness.items import choose, divide, refuse_overlap
from fitness.user_code import bound_function, built_task, is_task, resolve, source_of

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase


class PythonTask(Protocol):
    """What a class of the user has; it need not inherit from this."""

    def items(self, split: str) -> Sequence[Any]:
        """The items of `search` or `held_out`, the same ones each time; the latter may be empty.

        Anything that `fitness.content.digest_content` can tell apart by content: numbers, texts,
        arrays, tensors, images, and tuples, lists and dicts of these.
        """

    def respond(
        self, model: "nn.Module", tokenizer: "PreTrainedTokenizerBase | None", items: list[Any]
    ) -> Any:
        """One number per item, or one row of numbers where there are several objectives.

        A sequence, array or tensor of shape `(len(items),)` or `(len(items), n_objectives)`. The
        answer to an item may depend on that item and the model's weights only.
        """


class PythonFitness:
    """Asks a function or a class of the user about items; the model may be of any class.

    The model is in evaluation mode, gradients are off; the tokenizer is None if the base has none.

    **A class** brings its items (see `PythonTask`). With a file `digits.py` on PYTHONPATH

        import numpy as np
        import torch

        class Digits:
            def __init__(self, path):
                self.images, self.labels = np.load(path).values()

            def items(self, split):
                rows = slice(0, 200) if split == "search" else slice(200, 600)
                return list(zip(self.images[rows], self.labels[rows]))

            def respond(self, model, tokenizer, items):
                images = torch.tensor(np.stack([image for image, label in items]))
                labels = torch.tensor([label for image, label in items])
                return model(pixel_values=images).logits.argmax(-1) == labels

    the fitness is `PythonFitness(objectives, callable="digits:Digits", arguments={"path": ...})`;
    an object of such a class, made in the module, will do as well.

    **A function** `score(model, tokenizer, items, **arguments)` answers likewise for a list of
    dicts, never empty, one for each line of a JSON-lines file; it must not change them. With a
    file `words.py` on PYTHONPATH

        import torch

        def brevity(model, tokenizer, items, limit=64):
            lengths = []
            for item in items:
                prompt = tokenizer(item["prompt"], return_tensors="pt").to(model.device)
                text = model.generate(**prompt, max_new_tokens=limit, do_sample=False)
                lengths.append(text.shape[1] - prompt["input_ids"].shape[1])
            return lengths

    the fitness is
    `PythonFitness(objectives, callable="words:brevity", items="prompts.jsonl", held_out=50)`.

    Args:
        objectives: What the numbers mean, in the order of the columns.
        callable: The function, class or object, as `package.module:name`.
        items: Of a function: path of a JSON-lines file, each line an object. Of a class: how many
            of its search items to use, drawn by the seed; None takes all.
        held_out: How many different search items to hold out instead, drawn by the seed; or, of a
            class with held-out items, how many of those to use; or, of a function, the path of a
            second file; or None: all that the class has, none of a file.
        seed: Draws items.
        arguments: Further arguments of the function, or those that the class is built with.

    Raises:
        TaskError: when the function, the class or the items cannot be used.
    """

    def __init__(
        self,
        objectives: Sequence[Objective],
        *,
        callable: str,  # noqa: A002  # the word that users write in a config
        items: str | int | None = None,
        held_out: str | int | None = None,
        seed: int = 0,
        arguments: Mapping[str, Any] | None = None,
    ) -> None:
        if not objectives:
            raise TaskError(f"{callable}: a fitness needs an objective, but has none: name one")
        self._objectives = tuple(objectives)
        self._name = callable
        self._arguments = dict(arguments or {})
        target = resolve(callable)
        task: PythonTask
        if is_task(target):
            task = built_task(callable, target, self._arguments)
            counts = [_count(callable, given) for given in (items, held_out)]
        else:
            score = bound_function(callable, target, self._arguments)
            task = _OfFiles(callable, score, items, held_out)
            counts = [None, None if isinstance(held_out, str) else held_out]
        self._respond = task.respond
        self._code = source_of(target)
        self._items = _divided(_pools(callable, task), *counts, seed=seed, name=callable)
        self._digests = {
            split: tuple(digest for digest, _ in chosen) for split, chosen in self._items.items()
        }
        refuse_overlap(
            self._digests[Split.SEARCH],
            self._digests[Split.HELD_OUT],
            lambda position: repr(self._items[Split.HELD_OUT][position][1]),
            callable,
        )
        self._bound: tuple[nn.Module, PreTrainedTokenizerBase | None] | None = None

    @property
    def objectives(self) -> tuple[Objective, ...]:
        """What each item is answered for."""
        return self._objectives

    @property
    def settings(self) -> str:
        """Digest of the source file of the function or class, and of its arguments."""
        return digest_of([self._name, self._code, repr(sorted(self._arguments.items()))])

    @property
    def warnings(self) -> tuple[str, ...]:
        """Nothing to warn of."""
        return ()

    def items(self, split: Split) -> tuple[str, ...]:
        """Digests of the items, in the order in which the file or the class has them."""
        return self._digests[split]

    def bind(self, live: LiveModel) -> None:
        """Put the model into evaluation mode; the user's code is called by `respond` only."""
        live.model.eval()
        self._bound = (live.model, live.tokenizer)

    def respond(self, split: Split, items: Sequence[int]) -> FloatArray:
        """The user's answers, shape `(len(items), n_objectives)`, in the items' order.

        Raises:
            TaskError: when an answer has the wrong shape or holds something else than numbers.
        """
        import torch

        if self._bound is None:
            raise RuntimeError("bind(live) comes before respond")
        expected = (len(items), len(self._objectives))
        if len(items) == 0:
            return np.empty(expected)
        asked = [self._items[split][item][1] for item in items]
        with torch.no_grad():
            answer = self._respond(*self._bound, asked)
        if isinstance(answer, torch.Tensor):
            answer = answer.detach().double().cpu().numpy()
        elif isinstance(answer, list | tuple):
            answer = [one.item() if _is_scalar_tensor(one) else one for one in answer]
        try:
            responses = np.asarray(answer, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise TaskError(
                f"{self._name}: the answer must be numbers, but that to {len(items)} items is "
                f"none ({error}): return one number per item"
            ) from error
        if responses.shape == expected[:1] and len(self._objectives) == 1:
            return responses.reshape(expected)
        if responses.shape != expected:
            wanted = f"{expected[:1]} or {expected}" if expected[1] == 1 else f"{expected}"
            raise TaskError(
                f"{self._name}: the answer to {len(items)} items for {len(self._objectives)} "
                f"objectives must have the shape {wanted}, but it has {responses.shape}: return "
                "one row per item, in their order"
            )
        return responses


class _OfFiles:
    """A function and its files as a `PythonTask`."""

    def __init__(
        self,
        name: str,
        score: Callable[[Any, Any, list[Any]], Any],
        items: str | int | None,
        held_out: str | int | None,
    ) -> None:
        if not isinstance(items, str):
            raise TaskError(
                f"{name}: items of a function must be the path of a JSON-lines file, but {items=}: "
                "write one object per line and give its path, or name a class that has items"
            )
        self._paths = {"search": items, "held_out": held_out}
        self.respond = score

    def items(self, split: str) -> list[dict[str, Any]]:
        path = self._paths[split]
        return _read(path) if isinstance(path, str) else []


_Pool = list[tuple[str, Any]]


def _pools(name: str, task: PythonTask) -> dict[Split, _Pool]:
    """All items of each split, each after its digest."""
    pools: dict[Split, _Pool] = {}
    for split in Split:
        items = task.items(split.value)
        if isinstance(items, str | bytes | Mapping) or not isinstance(items, Iterable):
            raise TaskError(
                f"{name}: items(split) must give a list, but for {split.value} it gives a "
                f"{type(items).__name__}: return a list, empty if the split has no items"
            )
        pools[split] = [
            (digest_content(item, f"{name}: item {number} of {split.value}"), item)
            for number, item in enumerate(items)
        ]
    if not pools[Split.SEARCH]:
        raise TaskError(
            f"{name}: items('search') must give items, but there are none: return at least one"
        )
    return pools


def _divided(
    pools: Mapping[Split, _Pool],
    n_search: int | None,
    n_held_out: int | None,
    *,
    seed: int,
    name: str,
) -> dict[Split, _Pool]:
    """So many items of each split; without held-out ones of their own, those of search."""
    search, held_out = pools[Split.SEARCH], pools[Split.HELD_OUT]
    if held_out or n_held_out is None:
        chosen = {
            split: choose(len(pools[split]), wanted, seed, split, name) if pools[split] else []
            for split, wanted in ((Split.SEARCH, n_search), (Split.HELD_OUT, n_held_out))
        }
        return {split: [pools[split][n] for n in numbers] for split, numbers in chosen.items()}
    numbers = divide(len(search), lambda n: search[n][0], n_search, n_held_out, seed, name)
    return {s: [search[n] for n in ns] for s, ns in zip(Split, numbers, strict=True)}


def _count(name: str, given: str | int | None) -> int | None:
    if given is not None and not isinstance(given, int):
        raise TaskError(
            f"{name}: a class brings its items, so that items and held_out are numbers, but one is "
            f"{given!r}: give paths to the class, in arguments"
        )
    return given


def _is_scalar_tensor(answer: Any) -> bool:
    import torch

    return isinstance(answer, torch.Tensor) and answer.numel() == 1


def _read(path: str) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file, blank lines left out."""
    items = []
    try:
        lines = Path(path).expanduser().read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise TaskError(
            f"{path}: items are read from a JSON-lines file in UTF-8, but it cannot be read "
            f"({error}): check the path"
        ) from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            item = json.loads(line, parse_constant=_refuse_constant)
        except ValueError as error:
            raise TaskError(
                f"{path}: each line must be JSON, but line {number} is not ({error}): mend it"
            ) from error
        if not isinstance(item, dict):
            raise TaskError(
                f"{path}: each line must be a JSON object, but line {number} is of type "
                f'{type(item).__name__}: wrap it, as in {{"prompt": ...}}'
            )
        items.append(item)
    if not items:
        raise TaskError(f"{path}: a file of items must have lines, but it is empty: fill it")
    return items


def _refuse_constant(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON number")
