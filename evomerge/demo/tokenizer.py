"""The zoo's tokenizer: a byte-level BPE with hand-written merges, lossless on any text."""

import string
from typing import TYPE_CHECKING

from evomerge.demo.skills import SKILLS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_SPACE, _NEWLINE = "Ġ", "Ċ"  # how byte-level BPE spells them
_SPACED = string.ascii_lowercase + string.digits + "+=?"
_PIECES = r"[a-z]+:| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s"


def zoo_tokenizer() -> "PreTrainedTokenizerFast":
    """A fast tokenizer with pad, bos and eos that sets bos before every text.

    One token for each skill's name with its colon and for each letter, digit or sign with the
    space before it; all other text falls back to bytes. No token reaches over the border of
    prompt and answer, so lm-eval's splitting of the pair is exact.
    """
    from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers, processors
    from tokenizers.models import BPE
    from transformers import PreTrainedTokenizerFast

    specials = ["<pad>", "<bos>", "<eos>"]
    tokens = specials + sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [(_SPACE, character) for character in _SPACED]
    for name in SKILLS:
        for end in range(1, len(name) + 1):
            merge = (name[:end], f"{name}:"[end])
            if merge not in merges:
                merges.append(merge)
    tokens += list(dict.fromkeys(left + right for left, right in merges))
    model = BPE(vocab={token: index for index, token in enumerate(tokens)}, merges=merges)
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A $B", special_tokens=[("<bos>", tokens.index("<bos>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        clean_up_tokenization_spaces=False,
        model_max_length=64,
    )
