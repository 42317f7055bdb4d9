"""What a live model writes after prompts, as text and as the number of tokens it took."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fitness.generation import Generation, Plan, Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class GreedyAnswers:
    """Greedy continuations of token ids, up to an end token or `max_new_tokens`.

    Args:
        model: A causal language model; its weights may change between calls.
        tokenizer: Its own.
        batch_size: Most rows of a forward.
        max_batch_tokens: Most tokens of a batch when it is full, padding included.
        max_new_tokens: Most tokens of an answer.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: "PreTrainedTokenizerBase",
        batch_size: int,
        max_batch_tokens: int,
        max_new_tokens: int,
    ) -> None:
        self._tokenizer = tokenizer
        self._max_new_tokens = max_new_tokens
        ids: Any = _TokenIds(tokenizer)
        self._generation = Generation(model, ids, batch_size, max_batch_tokens)

    def plan(self, prompts: Sequence[tuple[int, ...]]) -> Plan:
        """Prepare prompts: what no later call repeats."""
        return self._generation.plan(
            [Prompt(tokens, (), self._max_new_tokens) for tokens in prompts]
        )

    def answer(self, plan: Plan) -> list[tuple[str, int]]:
        """For each prompt: the text and its number of tokens, special ones left out.

        Raises:
            FloatingPointError: a logit is NaN.
        """
        answers = []
        for written in self._generation.answer(plan):
            tokens = [int(token) for token in written.split()]
            answers.append((str(self._tokenizer.decode(tokens)), len(tokens)))
        return answers


class _TokenIds:
    """A tokenizer that decodes into numbers: text made into tokens again may have others."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        self._tokenizer = tokenizer
        self._special = frozenset(tokenizer.all_special_ids)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def decode(self, tokens: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        """The numbers of tokens, a space between them."""
        skipped = self._special if skip_special_tokens else frozenset[int]()
        return " ".join(str(token) for token in tokens if token not in skipped)
