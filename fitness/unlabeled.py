"""What can be told of a model from text without labels."""

import itertools
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor

from evomerge.datatypes import FloatArray, Objective, Split, digest_of
from evomerge.errors import TaskError
from evomerge.protocols import LiveModel
from fitness.forwards import Forwards, Plan, spread
from fitness.greedy_answers import GreedyAnswers
from fitness.measures import Measure, parse_measure
from fitness.readings import Reading, read
from fitness.references import HIDDEN, LOG_PROBABILITIES, Passages, refer
from fitness.refusals import REFUSALS, is_refusal, plain
from fitness.texts import Text, divided_texts, encode

_N_PLANS = 8


class UnlabeledFitness:
    """Measures of a causal language model on unlabeled text, all from the same forwards.

    The measures; an item is a text, and its answer is:

    - `perplexity`: the log-likelihood of its tokens after the first one, and their number; the
      score is the perplexity of all tokens of all texts together.
    - `entropy`: the mean over its tokens of the entropy of the next-token distribution, in nats:
      what AdaMerging minimises (Yang et al. 2024).
    - `kl_to_experts`, `js_to_experts`: the mean over experts and positions of KL(expert || model)
      or of the Jensen-Shannon divergence, in nats: the part of Expert Merging's loss that looks at
      logits, at temperature 1 and up to the experts' own entropy. `kl_to:NAME`, `js_to:NAME`: to
      one expert, or to `base`.
    - `alignment_to_experts`, `alignment_to:NAME`: the mean over experts, layers and positions of
      the cosine between the hidden states after each layer; more is better. Expert Merging takes
      their squared distance; the cosine has no scale, so that no layer outweighs the others.
    - `output_length`: how many tokens it is continued by greedily, the end token not counted.
    - `refusal_rate`: 1 if the greedy continuation has one of the phrases of a refusal, else 0.

    What other models say is computed once, when the fitness is bound, at a few positions of each
    text, and kept in a file: later runs on the same models and texts find it there. It takes
    `2 n_texts positions n_tokens` bytes per model for divergences: 470 MB for 200 texts and a
    vocabulary of 73,000.

    Args:
        objectives: One per measure, in their order.
        measures: Names as above.
        text: Path of a JSON-lines file of `{"text": ...}` or `{"prompt": ...}`; or, ending in
            `.txt`, of one text per line.
        items: How many of its texts to use, drawn by the seed; None takes all.
        held_out: Path of a second such file; or how many different texts of the first one to hold
            out; or None for no held-out items.
        seed: Draws items.
        batch_size: Most rows of a forward.
        max_batch_tokens: Most tokens of a forward, padding included.
        max_tokens: Texts are cut after so many tokens (not where they are continued); None does
            not cut, and refuses texts that are longer than the model reads.
        positions: At how many positions of a text other models are compared with, evenly spread
            and the last one always among them.
        max_new_tokens: Most tokens of a continuation.
        refusals: Phrases that tell a refusal, anywhere in the continuation, in any case; those of
            `fitness.refusals` if not given.
        apply_chat_template: Whether prompts (not texts) are put into the tokenizer's template.
        reference_dtype: `float16`, in which a position's divergence is off by some 1e-5 nats or
            0.1 %, or `float32`.

    Raises:
        TaskError: when a measure, an option or the texts cannot be used.
    """

    def __init__(
        self,
        objectives: Sequence[Objective],
        *,
        measures: Sequence[str],
        text: str,
        items: int | None = None,
        held_out: int | str | None = None,
        seed: int = 0,
        batch_size: int = 64,
        max_batch_tokens: int = 4096,
        max_tokens: int | None = 512,
        positions: int = 16,
        max_new_tokens: int = 64,
        refusals: Sequence[str] = REFUSALS,
        apply_chat_template: bool = False,
        reference_dtype: str = "float16",
    ) -> None:
        self._measures = [parse_measure(name) for name in measures]
        if not objectives or len(objectives) != len(self._measures):
            raise TaskError(
                f"{text}: there is one measure for each objective, but there are "
                f"{len(self._measures)} and {len(objectives)}: name as many"
            )
        counts = {
            "batch_size": batch_size,
            "max_batch_tokens": max_batch_tokens,
            "positions": positions,
            "max_new_tokens": max_new_tokens,
            **({} if max_tokens is None else {"max_tokens": max_tokens}),
        }
        for option, count in counts.items():
            if not isinstance(count, int) or count < 1:
                raise TaskError(
                    f"{text}: {option} must be at least 1, but it is {count!r}: raise it"
                )
        if reference_dtype not in ("float16", "float32"):
            raise TaskError(
                f"{text}: reference_dtype is float16 or float32, but {reference_dtype=}: choose one"
            )
        if isinstance(refusals, str) or not all(isinstance(p, str) and p.strip() for p in refusals):
            raise TaskError(
                f"{text}: refusals is a list of phrases, but {refusals=}: write one per entry"
            )
        self._objectives = tuple(
            replace(objective, statistic=measure.statistic)
            for objective, measure in zip(objectives, self._measures, strict=True)
        )
        self._name = text
        self._texts = divided_texts(text, items, held_out, seed)
        self._digests = {
            split: tuple(one.digest for one in texts) for split, texts in self._texts.items()
        }
        self._batch_size = batch_size
        self._max_batch_tokens = max_batch_tokens
        self._max_tokens = max_tokens
        self._positions = positions
        self._max_new_tokens = max_new_tokens
        self._refusals = tuple(plain(phrase) for phrase in refusals)
        self._apply_chat_template = apply_chat_template
        self._reference_dtype = reference_dtype
        self._every = any(m.kind in ("perplexity", "entropy") for m in self._measures)
        self._generates = any(m.generates for m in self._measures)
        self._forwards: Forwards | None = None
        self._answers: GreedyAnswers | None = None
        self._passages: dict[Split, Passages] = {}
        self._references: dict[Split, dict[str, dict[str, Tensor]]] = {}
        self._compared: list[tuple[Measure, tuple[str, ...]]] = []
        self._plans: OrderedDict[tuple[Split, tuple[int, ...]], tuple[Plan | None, Any]] = (
            OrderedDict()
        )

    @property
    def objectives(self) -> tuple[Objective, ...]:
        """What each text is answered for."""
        return self._objectives

    @property
    def settings(self) -> str:
        """Digest of the measures and of the options that change an answer."""
        return digest_of(
            {
                "measures": [measure.name for measure in self._measures],
                "max_tokens": self._max_tokens,
                "positions": self._positions,
                "max_new_tokens": self._max_new_tokens,
                "refusals": self._refusals,
                "apply_chat_template": self._apply_chat_template,
                "reference_dtype": self._reference_dtype,
            }
        )

    @property
    def warnings(self) -> tuple[str, ...]:
        """Objectives that are improved the wrong way."""
        return tuple(
            f"objective {objective.name} is to {objective.direction.value} {measure.name}, but "
            f"better ones {measure.better} it: is this meant?"
            for objective, measure in zip(self._objectives, self._measures, strict=True)
            if measure.better not in (None, objective.direction)
        )

    def items(self, split: Split) -> tuple[str, ...]:
        """Digests of the texts."""
        return self._digests[split]

    def bind(self, live: LiveModel) -> None:
        """Tokenize, and let the other models speak, if no earlier run has kept what they said.

        The live model is the base's again afterwards.

        Raises:
            TaskError: when the model is no causal language model with a tokenizer, there is no
                expert of a measure's name, a text does not fit, or another model computes NaN.
        """
        model: Any = live.model
        _refuse_other_models(live, self._name)
        self._compared = [(m, m.references(live.experts)) for m in self._measures]
        context = _context(model)
        self._passages = {split: self._read_texts(live, split, context) for split in Split}
        self._plans.clear()
        self._forwards = self._answers = None
        if self._generates:
            self._answers = GreedyAnswers(
                model,
                live.tokenizer,
                self._batch_size,
                self._max_batch_tokens,
                self._max_new_tokens,
            )
        if not all(measure.generates for measure in self._measures):
            hidden = any(measure.kind == "alignment" for measure in self._measures)
            self._forwards = Forwards(
                model, self._batch_size, self._max_batch_tokens, hidden=hidden
            )
            needed: dict[str, set[str]] = {}
            for measure, name in self._readings():
                if name is not None:
                    tensor = HIDDEN if measure.kind == "alignment" else LOG_PROBABILITIES
                    needed.setdefault(name, set()).add(tensor)
            self._references = refer(
                live, self._forwards, self._passages, needed, self._reference_dtype
            )

    def respond(self, split: Split, items: Sequence[int]) -> FloatArray:
        """The answers of the measures side by side, shape `(len(items), n_columns)`.

        Raises:
            FloatingPointError: a measure is not finite, because the model computes NaN.
        """
        if not self._passages:
            raise RuntimeError("bind(live) comes before respond")
        if len(items) == 0:
            return np.empty((0, sum(o.statistic.n_columns for o in self._objectives)))
        forwards, prompts = self._plan(split, tuple(items))
        columns: dict[str, FloatArray] = {}
        if forwards is not None:
            columns |= self._read(forwards, split, items)
        if self._answers is not None:
            answers = self._answers.answer(prompts)
            columns["output_length"] = np.array([float(n) for _, n in answers])
            columns["refusal_rate"] = np.array(
                [float(is_refusal(told, self._refusals)) for told, _ in answers]
            )
        found = [columns[measure.name].reshape(len(items), -1) for measure in self._measures]
        for measure, answers_of in zip(self._measures, found, strict=True):
            n_broken = int((~np.isfinite(answers_of)).any(axis=1).sum())
            if n_broken:
                raise FloatingPointError(
                    f"{n_broken} of {len(items)} answers to {measure.name} are not finite: the "
                    "model computes NaN or infinity"
                )
        return np.concatenate(found, axis=1)

    def _read_texts(self, live: LiveModel, split: Split, context: int | None) -> Passages:
        assert live.tokenizer is not None
        texts = self._texts[split]
        whole = encode(
            texts,
            live.tokenizer,
            apply_chat_template=self._apply_chat_template,
            name=self._name,
        )
        cut = [tokens[: self._max_tokens] for tokens in whole]
        for text, tokens, forward in zip(texts, whole, cut, strict=True):
            reads = [(forward, 0)] if not all(m.generates for m in self._measures) else []
            reads += [(tokens, self._max_new_tokens)] if self._generates else []
            for taken, n_new in reads:
                if context is not None and len(taken) + n_new > context:
                    raise TaskError(_too_long(self._name, text, len(taken), n_new, context))
            if len(forward) < 2 and any(m.kind == "perplexity" for m in self._measures):
                raise TaskError(
                    f"{self._name}: a text needs two tokens to have a perplexity, but "
                    f"{text.content[:40]!r} has {len(forward)}: leave it out, or raise max_tokens"
                )
        chosen = [spread(len(tokens), self._positions) for tokens in cut]
        counts = itertools.accumulate((len(positions) for positions in chosen), initial=0)
        return Passages(cut, whole, chosen, list(counts)[: len(texts)])

    def _plan(self, split: Split, items: tuple[int, ...]) -> "tuple[Plan | None, Any]":
        key = (split, items)
        if key not in self._plans:
            passages = self._passages[split]
            forwards = prompts = None
            if self._forwards is not None:
                forwards = self._forwards.plan(
                    [passages.forwards[item] for item in items],
                    [passages.chosen[item] for item in items],
                    [passages.first_numbers[item] for item in items],
                    every=self._every,
                )
            if self._answers is not None:
                prompts = self._answers.plan([passages.prompts[item] for item in items])
            self._plans[key] = (forwards, prompts)
            if len(self._plans) > _N_PLANS:
                self._plans.popitem(last=False)
        self._plans.move_to_end(key)
        return self._plans[key]

    def _read(self, plan: Plan, split: Split, items: Sequence[int]) -> dict[str, FloatArray]:
        """The answers of the measures that need no generation, by name."""
        assert self._forwards is not None
        wanted: set[Reading] = {(measure.kind, name) for measure, name in self._readings()}
        sums = read(self._forwards, plan, wanted, self._references.get(split, {}))
        passages = self._passages[split]
        lengths = np.array([len(passages.forwards[item]) for item in items], dtype=np.float64)
        n_chosen = np.array([len(passages.chosen[item]) for item in items], dtype=np.float64)
        columns: dict[str, FloatArray] = {}
        for measure, names in self._compared:
            if measure.kind == "perplexity":
                columns[measure.name] = np.column_stack([sums["perplexity", None], lengths - 1])
            elif measure.kind == "entropy":
                columns[measure.name] = sums["entropy", None] / lengths
            elif measure.compares:
                total = np.sum([sums[measure.kind, name] for name in names], axis=0)
                columns[measure.name] = total / len(names) / n_chosen
        return columns

    def _readings(self) -> Iterator[tuple[Measure, str | None]]:
        """What is read of a forward: measures with each model that they compare with."""
        for measure, names in self._compared:
            if not measure.generates:
                yield from ((measure, name) for name in names or (None,))


def _refuse_other_models(live: LiveModel, name: str) -> None:
    model: Any = live.model
    can_generate = getattr(model, "can_generate", None)
    is_causal = can_generate is not None and can_generate()
    if not is_causal or getattr(model.config, "is_encoder_decoder", False):
        raise TaskError(
            f"{name}: measures on unlabeled text are for causal language models, but the base is a "
            f"{type(model).__name__}: use a python objective"
        )
    if live.tokenizer is None:
        raise TaskError(
            f"{name}: texts are read by the base's tokenizer, but it has none: save one into its "
            "folder"
        )


def _context(model: Any) -> int | None:
    """How many tokens the model reads, if it says so."""
    length = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return length if isinstance(length, int) and length > 0 else None


def _too_long(name: str, text: Text, n_tokens: int, n_new: int, context: int) -> str:
    what = f"{n_tokens} tokens" + (f" and {n_new} new ones" if n_new else "")
    remedy = "or lower max_new_tokens" if n_new else "or set max_tokens to what it reads"
    return (
        f"{name}: a text must fit into the model, but {text.content[:40]!r} takes {what} and the "
        f"model reads {context}: shorten it, {remedy}"
    )
