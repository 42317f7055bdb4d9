"""Whether what was generated has reached a stop string, decoding as little as that takes."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class StopStrings:
    """The stop strings of some prompts: `met` looks for them in the text, `cut` ends it there.

    Text is decoded (special tokens left out) only when its last token may end a stop string, which
    is found out once for every token. A stop string that is a special token is met by that token.

    Args:
        tokenizer: Knows special tokens.
        decode: Text of tokens, without special ones.
        stops: Empty ones are left out.
    """

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        decode: Callable[[tuple[int, ...]], str],
        stops: Sequence[str],
    ) -> None:
        self._decode = decode
        self._stops = tuple(stop for stop in stops if stop)
        # A token that ends in the middle of a character may complete one later.
        self._last_characters = {stop[-1] for stop in self._stops} | {"\N{REPLACEMENT CHARACTER}"}
        self._may_end: dict[int, bool] = {}
        self._specials = {
            token
            for token in map(tokenizer.convert_tokens_to_ids, self._stops)
            if isinstance(token, int) and not decode((token,))
        }

    def met(self, tokens: Sequence[int]) -> bool:
        """Whether the text of these tokens has a stop string, which the last one has completed."""
        if not self._stops:
            return False
        last = tokens[-1]
        if last in self._specials:
            return True
        may_end = self._may_end.get(last)
        if may_end is None:
            # Twice, because some tokenizers drop a space before the first token.
            may_end = not self._last_characters.isdisjoint(self._decode((last, last)))
            self._may_end[last] = may_end
        if not may_end:
            return False
        text = self._decode(tuple(tokens))
        return any(stop in text for stop in self._stops)

    def cut(self, text: str) -> str:
        """What comes before the first stop string."""
        for stop in self._stops:
            text = text.partition(stop)[0]
        return text
