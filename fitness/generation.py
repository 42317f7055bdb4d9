"""What a live model writes after given prompts: prompts are prepared once."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class Prompt:
    """Token ids to continue, for at most `max_new_tokens`, up to the first of `stops`.

    `options` are further arguments of transformers' `generate` (`do_sample`, `temperature`,
    `top_p`, `top_k`, `num_beams`, `repetition_penalty`, ...) as pairs of name and value; `seed`
    decides what is drawn for this prompt where they ask for sampling.
    """

    tokens: tuple[int, ...]
    stops: tuple[str, ...]
    max_new_tokens: int
    options: tuple[tuple[str, Any], ...] = ()
    seed: int = 0


@dataclass(frozen=True, slots=True)
class _Batch:
    """Prompts with the same stops and limit, padded on the left: both `(n_rows, length)`."""

    inputs: Tensor
    mask: Tensor
    stops: tuple[str, ...]
    config: Any


@dataclass(frozen=True, slots=True)
class Plan:
    """The batches for some prompts; row `i` of them all belongs to prompt `order[i]`."""

    batches: tuple[_Batch, ...]
    order: tuple[int, ...]


class Generation:
    """Continues prompts as lm-eval's `generate_until` does when it does not sample.

    Built on the model's own `generate`, which honours all of its generation config that greedy
    decoding uses (repetition penalty, end tokens) and costs about 0.5 ms a token over a bare loop.

    Args:
        model: A causal language model with `generate`; its weights may change between calls.
        tokenizer: Decodes what was generated.
        batch_size: Most rows of a forward.
        max_batch_tokens: Most tokens of a batch when it is full, padding included.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: "PreTrainedTokenizerBase",
        batch_size: int,
        max_batch_tokens: int,
    ) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._batch_size = batch_size
        self._max_batch_tokens = max_batch_tokens
        self._pieces: dict[int, str] = {}
        # The sampling settings of a checkpoint mean nothing here, and `generate` would warn.
        self._config = copy.deepcopy(model.generation_config)
        self._config.do_sample = False
        self._config.num_beams = 1
        self._config.temperature = self._config.top_p = self._config.top_k = None
        self._config.max_length = None
        self._config.pad_token_id = tokenizer.pad_token_id
        ends = self._config.eos_token_id
        ends = [] if ends is None else [ends] if isinstance(ends, int) else list(ends)
        if tokenizer.eos_token_id is not None and tokenizer.eos_token_id not in ends:
            ends.append(tokenizer.eos_token_id)
        self._config.eos_token_id = ends or None

    def plan(self, prompts: Sequence[Prompt]) -> Plan:
        """Sort, batch, pad and move to the device: what no later call repeats."""
        device = next(self._model.parameters()).device
        order = sorted(range(len(prompts)), key=lambda number: _sort_key(prompts[number]))
        batches: list[_Batch] = []
        start = 0
        while start < len(order):
            first = prompts[order[start]]
            full_length = len(first.tokens) + first.max_new_tokens
            n_rows = min(self._batch_size, max(1, self._max_batch_tokens // full_length))
            settings = _settings(first)
            chunk = [
                prompts[number]
                for number in order[start : start + n_rows]
                if _settings(prompts[number]) == settings
            ]
            length = len(first.tokens)
            inputs = torch.full((len(chunk), length), self._config.pad_token_id or 0)
            mask = torch.zeros((len(chunk), length), dtype=torch.long)
            for row, prompt in enumerate(chunk):
                inputs[row, length - len(prompt.tokens) :] = torch.tensor(prompt.tokens)
                mask[row, length - len(prompt.tokens) :] = 1
            config = copy.deepcopy(self._config)
            config.update(**dict(first.options))
            config.max_new_tokens = first.max_new_tokens
            batches.append(_Batch(inputs.to(device), mask.to(device), first.stops, config))
            start += len(chunk)
        return Plan(tuple(batches), tuple(order))

    @torch.inference_mode()
    def answer(self, plan: Plan) -> list[str]:
        """For each prompt: the text before its first stop string, special tokens left out.

        Raises:
            FloatingPointError: a logit is NaN; the text after it would look like any other.
        """
        texts: list[str] = []
        for batch in plan.batches:
            criterion = _StopStrings(self._tokenizer, self._pieces, batch)
            tokens = self._model.generate(
                input_ids=batch.inputs,
                attention_mask=batch.mask,
                generation_config=batch.config,
                stopping_criteria=StoppingCriteriaList([criterion]),
                logits_processor=LogitsProcessorList([_refuse_nan]),
            )
            new_tokens = tokens[:, batch.inputs.shape[1] :].tolist()
            texts += [_cut(self._decode(row), batch.stops) for row in new_tokens]
        answers = [""] * len(plan.order)
        for number, text in zip(plan.order, texts, strict=True):
            answers[number] = text
        return answers

    def _decode(self, tokens: Sequence[int]) -> str:
        return str(self._tokenizer.decode(tokens, skip_special_tokens=True))


def _refuse_nan(input_ids: Tensor, scores: Tensor) -> Tensor:  # noqa: ARG001 - transformers' signature
    """A logits processor that changes nothing."""
    if torch.isnan(scores).any():
        raise FloatingPointError("logits of the model are NaN")
    return scores


class _StopStrings(StoppingCriteria):  # type: ignore[misc]  # transformers ships no types
    """Which rows have written a stop string: only those whose last token may end one are decoded.

    `pieces` remembers the text of each token met so far.
    """

    def __init__(
        self, tokenizer: "PreTrainedTokenizerBase", pieces: dict[int, str], batch: _Batch
    ) -> None:
        self._tokenizer = tokenizer
        self._pieces = pieces
        self._stops = tuple(stop for stop in batch.stops if stop)
        self._last_characters = {stop[-1] for stop in self._stops} | {"\N{REPLACEMENT CHARACTER}"}
        self._n_prompt_tokens = batch.inputs.shape[1]
        self._done = [False] * batch.inputs.shape[0]

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:  # noqa: ARG002  # the signature of transformers
        for row, token in enumerate(input_ids[:, -1].tolist()):
            if not self._done[row] and not self._last_characters.isdisjoint(self._piece(token)):
                text = self._tokenizer.decode(
                    input_ids[row, self._n_prompt_tokens :], skip_special_tokens=True
                )
                self._done[row] = any(stop in text for stop in self._stops)
        return torch.tensor(self._done, device=input_ids.device)

    def _piece(self, token: int) -> str:
        piece = self._pieces.get(token)
        if piece is None:
            # Twice, because some tokenizers drop a space before the first token.
            piece = str(self._tokenizer.decode([token, token], skip_special_tokens=True))
            self._pieces[token] = piece
        return piece


def _settings(prompt: Prompt) -> tuple[object, ...]:
    return prompt.stops, prompt.max_new_tokens, repr(prompt.options)


def _sort_key(prompt: Prompt) -> tuple[object, ...]:
    return (*_settings(prompt), -len(prompt.tokens), prompt.tokens)


def _cut(text: str, stops: Sequence[str]) -> str:
    for stop in stops:
        if stop:
            text = text.split(stop)[0]
    return text
