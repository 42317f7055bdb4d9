"""The base as the merge has it, where vocabularies differ: more rows, another tokenizer.

Rows of tokens that the base does not have belong to the expert that has them. They are presented
as rows of the base that no expert changes, so that merging need not know of them.
"""

import contextlib
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from evomerge.checkpoints.companions import (
    CODE,
    MODEL_FILES,
    TOKENIZER_FILES,
    read_files,
    write_files,
)
from evomerge.checkpoints.compatibility import vocabulary_warning
from evomerge.checkpoints.digests import digest_tensors
from evomerge.checkpoints.experts import Expert
from evomerge.checkpoints.reading import Checkpoint
from evomerge.checkpoints.vocabulary import (
    Vocabulary,
    VocabularyChoice,
    is_reserved,
    read_raw_template,
    read_vocabulary,
)
from evomerge.checkpoints.weights import TensorFacts, read_json
from evomerge.datatypes import digest_of
from evomerge.errors import IncompatibleError

if TYPE_CHECKING:
    from torch import nn

_SPECIAL_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


@dataclass(frozen=True, slots=True)
class OwnedRows:
    """Which vocabulary rows come whole from experts.

    Attributes:
        n_rows: Of the merge; the base's or more.
        owners: Row to the experts that have it, in order: a row of several is their mean.
    """

    n_rows: int
    owners: Mapping[int, tuple[Expert, ...]] = field(repr=False)


class MergedBase(Checkpoint):
    """The base with the rows, the tokenizer and the chat template that the merge has.

    Weights with owned rows are held in memory while they are in use.
    """

    def __init__(
        self,
        base: Checkpoint,
        rows: OwnedRows,
        tokenizer: Path,
        template: Any,
    ) -> None:
        """`template` is as stored (see `read_raw_template`); None is no chat template."""
        super().__init__(
            path=base.path,
            source=base.source,
            config=base.config,
            weights=base._weights,
            names=base._names,
            tied=base.tied,
            skeleton=base._skeleton,
            notes=base.notes,
            trust_remote_code=base.trust_remote_code,
        )
        self._base = base
        self._rows = rows
        self._tokenizer = tokenizer
        self._template = template
        self._widened = base.vocabulary_weights() if rows.owners else []
        self.config = self._settled(base.config)
        self.tensors = {
            name: TensorFacts(name, (rows.n_rows, *facts.shape[1:]), facts.dtype)
            if name in self._widened
            else facts
            for name, facts in base.tensors.items()
        }
        self._held: dict[str, torch.Tensor] = {}

    @property
    def settings(self) -> Mapping[str, Any]:
        """The base's, with the number of rows and the special tokens of the merge."""
        return self._settled(self._base.settings)

    @cached_property
    def vocabulary(self) -> Vocabulary | None:
        """Of the chosen tokenizer."""
        return read_vocabulary(self._tokenizer)

    @cached_property
    def chat_template(self) -> str | None:
        """The chosen one."""
        template = self._template
        if template is None:
            return None
        return template.strip() if isinstance(template, str) else json.dumps(template)

    @cached_property
    def digest(self) -> str:
        """Of the base, the owned rows and all that the choice decides."""
        named = ((name, self.read(name)) for name in self._widened)
        rows = digest_tensors(named, self.path) if self._widened else None
        special = [self.config.get(key) for key in _SPECIAL_IDS]
        return digest_of(
            [self._base.digest, rows, self.tokenizer_digest, self.chat_template, special]
        )

    def read(self, name: str) -> torch.Tensor:
        """A weight (or constant) with its owned rows: do not write into it."""
        if name not in self._widened:
            return self._base.read(name)
        held = self._held.get(name)
        if held is None:  # in two threads at once: harmless
            held = self._held[name] = self._widen(name)
        return held

    def companions(self) -> dict[str, bytes]:
        """The base's files, with the chosen tokenizer and chat template."""
        code = CODE if self.trust_remote_code else ()
        files = read_files(self.path, (*MODEL_FILES, *code))
        files["config.json"] = _as_json(self.config)
        if self._tokenizer != self.path:
            files |= read_files(self._tokenizer, ("generation_config.json",))
        tokenizer = read_files(self._tokenizer, (*TOKENIZER_FILES, *code))
        files = tokenizer | files
        for name in [name for name in files if name.startswith("chat_template")]:
            del files[name]
        if "tokenizer_config.json" in files:
            settings = json.loads(files["tokenizer_config.json"])
            settings.pop("chat_template", None)
            if not isinstance(self._template, str | None):
                settings["chat_template"] = self._template
            files["tokenizer_config.json"] = _as_json(settings)
        if isinstance(self._template, str):
            files["chat_template.jinja"] = self._template.encode()
        return files

    @contextlib.contextmanager
    def tokenizer_folder(self) -> Iterator[Path]:
        """A temporary folder with exactly the files that an export gets."""
        with tempfile.TemporaryDirectory(prefix="evomerge-tokenizer-") as folder:
            write_files(Path(folder), self.companions())
            yield Path(folder)

    def fit(self, model: "nn.Module") -> None:
        """Resize a model of the base, write the owned rows and set its special tokens."""
        from transformers import GenerationConfig

        resized: Any = model
        if self._widened:
            # The random rows that transformers makes are all written over.
            with torch.random.fork_rng(devices=[]):
                resized.resize_token_embeddings(self._rows.n_rows, mean_resizing=False)
            state = model.state_dict(keep_vars=True)
            with torch.no_grad():
                for name in self._widened:
                    state[name].copy_(self.read(name))
        if self._tokenizer != self.path:
            for key in _SPECIAL_IDS:
                setattr(resized.config, key, self.config.get(key))
            if (self._tokenizer / "generation_config.json").is_file():
                resized.generation_config = GenerationConfig.from_pretrained(self._tokenizer)

    def release(self) -> None:
        """Unmap the files and let go of what is held."""
        self._held = {}
        self._base.release()

    def _widen(self, name: str) -> torch.Tensor:
        W0 = self._base.read(name)
        wide = W0.new_zeros(self.tensors[name].shape)
        wide[: len(W0)] = W0
        by_owners: dict[tuple[Expert, ...], list[int]] = {}
        for i, owners in self._rows.owners.items():
            by_owners.setdefault(owners, []).append(i)
        for owners, ids in by_owners.items():
            rows = [self._rows_of(owner, name, torch.tensor(ids)) for owner in owners]
            wide[ids] = torch.stack(rows).mean(0).to(W0.dtype)
        return wide

    def _rows_of(self, owner: Expert, name: str, ids: torch.Tensor) -> torch.Tensor:
        rows = owner.rows(name, ids)
        if rows is None:
            raise IncompatibleError(
                f"an expert must have all rows of the tokens that it adds, but {owner.name} "
                f"({owner.path}) lacks {name}: set `vocabulary: {{extra_rows: base}}`"
            )
        return rows.float()

    def _settled(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Settings with the number of rows, and the special tokens of another tokenizer."""
        settled = dict(settings)
        if self._rows.owners:
            nested = settled.get("text_config")
            if isinstance(nested, dict) and "vocab_size" in nested:
                settled["text_config"] = nested | {"vocab_size": self._rows.n_rows}
            if "vocab_size" in settled or not isinstance(nested, dict):
                settled["vocab_size"] = self._rows.n_rows
        config = self._tokenizer / "config.json"
        if self._tokenizer != self.path and config.is_file():
            theirs = read_json(config)
            settled |= {key: theirs[key] for key in _SPECIAL_IDS if key in theirs}
        return settled


class SharedRowsExpert:
    """An expert of a `MergedBase`: it leaves owned rows alone, whoever owns them."""

    def __init__(
        self, expert: Expert, base: Checkpoint, rows: OwnedRows, warnings: tuple[str, ...]
    ) -> None:
        self.expert = expert
        self.warnings = warnings
        self._base = base
        self._widened = frozenset(base.vocabulary_weights())
        self._n_rows = rows.n_rows
        self._owned = sorted(rows.owners)

    @property
    def name(self) -> str:
        """The user's name for it."""
        return self.expert.name

    @property
    def path(self) -> Path:
        """Its absolute folder."""
        return self.expert.path

    @property
    def digest(self) -> str:
        """The expert's."""
        return self.expert.digest

    def delta(self, name: str, start: int = 0, stop: int | None = None) -> torch.Tensor | None:
        """The expert's change, zero in owned rows; flat, of the merged base's shape."""
        if name not in self._widened:
            return self.expert.delta(name, start, stop)
        shape = self._base.tensors[name].shape
        width = self._base.tensors[name].n_parameters // shape[0]
        stop = self._n_rows * width if stop is None else stop
        end = min(stop, shape[0] * width)
        change = self.expert.delta(name, start, end) if start < end else None
        if change is None:
            return None
        wide = torch.zeros(stop - start, dtype=change.dtype)
        wide[: len(change)] = change
        for i in self._owned:
            wide[max(i * width - start, 0) : max((i + 1) * width - start, 0)] = 0.0
        return wide

    def n_rows(self, name: str) -> int:
        """The expert's."""
        return self.expert.n_rows(name)

    def rows(self, name: str, ids: torch.Tensor) -> torch.Tensor | None:
        """The expert's."""
        return self.expert.rows(name, ids)

    def release(self) -> None:
        """Unmap the expert's files."""
        self.expert.release()


def resolve_vocabulary(
    base: Checkpoint, experts: Sequence[Expert], choice: VocabularyChoice
) -> tuple[Checkpoint, tuple[Expert, ...]]:
    """Base and experts as the choice has them; themselves if it changes nothing.

    Raises:
        IncompatibleError: Experts use the same new id for different tokens, or what is chosen is
            not there or does not fit.
    """
    folders = {"base": base.path, **{expert.name: expert.path for expert in experts}}
    tokenizer = folders[choice.tokenizer or "base"]
    vocabulary = read_vocabulary(tokenizer)
    if choice.tokenizer is not None and vocabulary is None:
        raise IncompatibleError(
            f"a tokenizer is taken from a model that has one, but {choice.tokenizer} ({tokenizer}) "
            "has none: correct `vocabulary.tokenizer`"
        )
    n_base = base.vocab_size
    rows = OwnedRows(n_base or 0, {})
    tokens: dict[int, str] = {}
    if choice.extra_rows == "owner" and n_base is not None:
        rows, tokens = _owned_rows(base, n_base, experts)
    if n_base is not None and choice.tokenizer not in (None, "base") and vocabulary is not None:
        _check_ids(choice.tokenizer, vocabulary, rows.n_rows)
    template = _template(folders, tokenizer, choice)
    unchanged = tokenizer == base.path and template == read_raw_template(base.path)
    if unchanged and not rows.owners:
        return base, tuple(experts)
    merged = MergedBase(base, rows, tokenizer, template)
    if not rows.owners:
        return merged, tuple(experts)
    return merged, tuple(
        SharedRowsExpert(expert, base, rows, _warnings(expert, base, rows, tokens, vocabulary))
        for expert in experts
    )


def _owned_rows(
    base: Checkpoint, n_base: int, experts: Sequence[Expert]
) -> tuple[OwnedRows, dict[int, str]]:
    """The rows that belong to experts, and the tokens of those that mean one."""
    weights = base.vocabulary_weights()
    n_rows = {
        expert.name: min((expert.n_rows(w) for w in weights), default=0) for expert in experts
    }
    ours = base.vocabulary
    token_of = {} if ours is None else {i: token for token, i in ours.tokens.items()}
    named: dict[int, dict[str, list[Expert]]] = {}
    for expert in experts:
        theirs = read_vocabulary(expert.path)
        for token, i in (theirs.tokens if theirs is not None else {}).items():
            known = token_of.get(i)
            # Without the base's tokenizer nobody knows which of its rows are free.
            free = known != token and (known is None or is_reserved(known)) and bool(token_of)
            if i < n_rows[expert.name] and (i >= n_base or free):
                named.setdefault(i, {}).setdefault(token, []).append(expert)
    _refuse_clashes(named)
    n_wide = max(
        (
            n_rows[expert.name]
            for i, by_token in named.items()
            if i >= n_base
            for owners in by_token.values()
            for expert in owners
        ),
        default=n_base,
    )
    tokens = {i: next(iter(by_token)) for i, by_token in sorted(named.items())}
    owners = {i: tuple(named[i][token]) for i, token in tokens.items()}
    for i in range(n_base, n_wide):  # padding: of the first that is as long
        if i not in owners:
            owners[i] = (next(expert for expert in experts if n_rows[expert.name] > i),)
    return OwnedRows(n_wide, dict(sorted(owners.items()))), tokens


def _refuse_clashes(named: Mapping[int, Mapping[str, Sequence[Expert]]]) -> None:
    clashes = [
        f"{i} is "
        + " and ".join(f"{token!r} in {owners[0].name}" for token, owners in by_token.items())
        for i, by_token in sorted(named.items())
        if len(by_token) > 1
    ]
    if clashes:
        more = f" ({len(clashes)} ids in all)" if len(clashes) > 3 else ""
        raise IncompatibleError(
            f"experts must use a new id for the same token, but {', '.join(clashes[:3])}{more}: "
            "drop one of these experts, or set `vocabulary: {extra_rows: base}`"
        )


def _check_ids(name: str | None, vocabulary: Vocabulary, n_rows: int) -> None:
    """Every token of the tokenizer must have a row."""
    beyond = sorted((i, token) for token, i in vocabulary.tokens.items() if i >= n_rows)
    if beyond:
        i, token = beyond[0]
        raise IncompatibleError(
            f"every token must have a row, but the tokenizer of {name} has {token!r} at {i} and "
            f"the merge {n_rows} rows: set `vocabulary: {{extra_rows: owner}}`, or choose another "
            "tokenizer"
        )


def _template(folders: Mapping[str, Path], tokenizer: Path, choice: VocabularyChoice) -> Any:
    if choice.chat_template is None:
        return read_raw_template(tokenizer)
    if choice.chat_template == "none":
        return None
    template = read_raw_template(folders[choice.chat_template])
    if template is None:
        raise IncompatibleError(
            f"a chat template is taken from a model that has one, but {choice.chat_template} "
            f"({folders[choice.chat_template]}) has none: correct `vocabulary.chat_template`"
        )
    return template


def _warnings(
    expert: Expert,
    base: Checkpoint,
    rows: OwnedRows,
    tokens: Mapping[int, str],
    vocabulary: Vocabulary | None,
) -> tuple[str, ...]:
    """The expert's own, with what becomes of its rows."""
    weights = base.vocabulary_weights()
    n_base = base.vocab_size or 0
    wrong = {vocabulary_warning(expert.name, expert.n_rows(name), n_base) for name in weights}
    own = [i for i in tokens if expert in rows.owners[i]]
    if not own:
        return expert.warnings
    shown = ", ".join(repr(tokens[i]) for i in own[:3]) + (", …" if len(own) > 3 else "")
    shared = [i for i in own if len(rows.owners[i]) > 1]
    also = f" ({len(shared)} of them as the mean with others)" if shared else ""
    kept = [w for w in expert.warnings if w not in wrong]
    kept.append(
        f"the rows of {len(own)} tokens ({shown}) come whole from expert {expert.name}{also}: the "
        f"merge has {rows.n_rows} rows, the base {n_base}"
    )
    mute = [i for i in own if vocabulary is None or vocabulary.tokens.get(tokens[i]) != i]
    if mute:
        kept.append(
            f"{len(mute)} tokens of expert {expert.name} have rows in the merge, but its tokenizer "
            f"never makes them: set `vocabulary.tokenizer: {expert.name}`"
        )
    return tuple(kept)


def _as_json(plain: Mapping[str, Any]) -> bytes:
    return (json.dumps(plain, indent=2, ensure_ascii=False) + "\n").encode()
