"""A function of the user as fitness."""

import importlib
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from evomerge.datatypes import FloatArray, Objective, Split, canonical_json, digest_of
from evomerge.errors import TaskError
from evomerge.protocols import LiveModel
from fitness.items import divide, refuse_overlap

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase


class PythonFitness:
    """Asks a function `score(model, tokenizer, items, **arguments)` for one number per item.

    `items` is a list of dicts, one for each line of a JSON-lines file, never empty; the function
    must not change them. It answers with a sequence, array or tensor of shape `(len(items),)`, or
    `(len(items), n_objectives)` when it serves several objectives, in the order of the items. The
    answer to an item may depend on that item and the model's weights only. The model is in
    evaluation mode, gradients are off. With a file `words.py` on PYTHONPATH:

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
        objectives: What the function's numbers mean, in the order of the columns.
        callable: The function, as `package.module:name`.
        items: Path of a JSON-lines file; each line is an object.
        held_out: Path of a second such file; or how many different items of the first one to
            hold out, drawn by the seed; or None for no held-out items.
        seed: Draws the held-out items of a single file.
        arguments: Further arguments of the function, by name.

    Raises:
        TaskError: when the function or the items cannot be used.
    """

    def __init__(
        self,
        objectives: tuple[Objective, ...],
        *,
        callable: str,  # noqa: A002  # the word that users write in a config
        items: str,
        held_out: str | int | None = None,
        seed: int = 0,
        arguments: Mapping[str, Any] | None = None,
    ) -> None:
        if not objectives:
            raise TaskError(f"{callable}: a fitness needs an objective, but has none: name one")
        if not isinstance(items, str):
            raise TaskError(
                f"{callable}: items must be the path of a JSON-lines file, but {items=}: "
                "write one object per line and give its path"
            )
        self._objectives = tuple(objectives)
        self._name = callable
        self._arguments = dict(arguments or {})
        self._score = _resolve(callable, self._arguments)
        search = _read(items)
        if isinstance(held_out, str):
            self._items = {Split.SEARCH: search, Split.HELD_OUT: _read(held_out)}
        elif held_out is None:
            self._items = {Split.SEARCH: search, Split.HELD_OUT: []}
        else:
            positions = divide(
                len(search),
                lambda position: digest_of(search[position]),
                None,
                held_out,
                seed,
                items,
            )
            self._items = {
                split: [search[position] for position in chosen]
                for split, chosen in zip((Split.SEARCH, Split.HELD_OUT), positions, strict=True)
            }
        self._digests = {
            split: tuple(digest_of(item) for item in of_split)
            for split, of_split in self._items.items()
        }
        refuse_overlap(
            self._digests[Split.SEARCH],
            self._digests[Split.HELD_OUT],
            lambda position: canonical_json(self._items[Split.HELD_OUT][position]),
            str(held_out),
        )
        self._bound: tuple[nn.Module, PreTrainedTokenizerBase | None] | None = None

    @property
    def objectives(self) -> tuple[Objective, ...]:
        """What each item is answered for."""
        return self._objectives

    @property
    def settings(self) -> str:
        """Digest of the function's source file and of its arguments."""
        source = inspect.getsourcefile(self._score)
        code = "" if source is None else Path(source).read_text(encoding="utf-8")
        return digest_of([self._name, code, repr(sorted(self._arguments.items()))])

    @property
    def warnings(self) -> tuple[str, ...]:
        """Nothing to warn of."""
        return ()

    def items(self, split: Split) -> tuple[str, ...]:
        """Digests of the items, in the order of their file."""
        return self._digests[split]

    def bind(self, live: LiveModel) -> None:
        """Put the model into evaluation mode; the function is called by `respond` only."""
        live.model.eval()
        self._bound = (live.model, live.tokenizer)

    def respond(self, split: Split, items: Sequence[int]) -> FloatArray:
        """The function's answers, shape `(len(items), n_objectives)`, in the items' order.

        Raises:
            TaskError: when its answer has the wrong shape or holds something else than numbers.
        """
        import torch

        if self._bound is None:
            raise RuntimeError("bind(model, tokenizer) comes before respond")
        expected = (len(items), len(self._objectives))
        if len(items) == 0:
            return np.empty(expected)
        asked = [self._items[split][item] for item in items]
        with torch.no_grad():
            answer = self._score(*self._bound, asked, **self._arguments)
        if isinstance(answer, torch.Tensor):
            answer = answer.detach().double().cpu().numpy()
        try:
            responses = np.asarray(answer, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise TaskError(
                f"{self._name}: the function must answer with numbers, but its answer to "
                f"{len(items)} items is none ({error}): return one number per item"
            ) from error
        if responses.shape == expected[:1] and len(self._objectives) == 1:
            return responses.reshape(expected)
        if responses.shape != expected:
            wanted = f"{expected[:1]} or {expected}" if expected[1] == 1 else f"{expected}"
            raise TaskError(
                f"{self._name}: the function must answer {len(items)} items for "
                f"{len(self._objectives)} objectives in the shape {wanted}, but its answer has "
                f"{responses.shape}: return one row per item, in their order"
            )
        return responses


def _resolve(target: str, arguments: Mapping[str, Any]) -> Callable[..., Any]:
    """The function that an import path names; it must take what it will be given."""
    module_name, colon, name = target.partition(":")
    if not (module_name and colon and name):
        raise TaskError(
            f"{target}: a function is named as package.module:name, but this has another form: "
            "give its import path"
        )
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not module_name.startswith(error.name):
            raise
        raise TaskError(
            f"{target}: the function must be importable, but there is no module {error.name!r}: "
            "install it, or put its folder on PYTHONPATH"
        ) from error
    score = getattr(module, name, None)
    if not callable(score):
        raise TaskError(
            f"{target}: the import path must name a function, but module {module_name!r} has "
            f"{'none' if score is None else 'something else'} of this name: check the path"
        )
    try:
        inspect.signature(score).bind(None, None, [], **arguments)
    except TypeError as error:
        raise TaskError(
            f"{target}: the function must take (model, tokenizer, items) and the configured "
            f"arguments, but {error}: change its signature or the arguments"
        ) from error
    return score  # type: ignore[no-any-return]  # whatever the user's function is


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
