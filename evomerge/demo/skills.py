"""The skills of the reference zoo: small exact-answer tasks with search and held-out items."""

import random
import string
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

Split: TypeAlias = Literal["training", "search", "held_out"]
Maker: TypeAlias = Callable[[random.Random, int], tuple[str, str]]
OutputType: TypeAlias = Literal["loglikelihood", "multiple_choice", "generate_until"]

_N_BUCKETS = 16
_N_CHOICES = 4
_MAX_MISSES = 20_000


@dataclass(frozen=True, slots=True)
class Item:
    """One question: the model continues `prompt` with a space and `answer`, then a newline."""

    prompt: str
    answer: str


@dataclass(frozen=True, slots=True)
class Skill:
    """How a skill's questions are made, and how lm-eval asks them."""

    make: Maker
    output_type: OutputType


def _letters(rng: random.Random, length: int, alphabet: str = string.ascii_lowercase) -> list[str]:
    return [rng.choice(alphabet) for _ in range(length)]


def add(rng: random.Random, length: int) -> tuple[str, str]:
    """The sum of two numbers of up to `length` digits."""
    left, right = rng.randrange(10**length), rng.randrange(10**length)
    return f"add: {left} + {right} =", str(left + right)


def shift(rng: random.Random, length: int) -> tuple[str, str]:
    """Each of `length` letters moved on in the alphabet by 1 to 9 places, z to a."""
    letters, places = _letters(rng, length), rng.randrange(1, 10)
    moved = [chr((ord(letter) - ord("a") + places) % 26 + ord("a")) for letter in letters]
    return f"shift: {' '.join(letters)} + {places} =", " ".join(moved)


def sort(rng: random.Random, length: int) -> tuple[str, str]:
    """`length` letters in the order of the alphabet."""
    letters = _letters(rng, length)
    return f"sort: {' '.join(letters)} =", " ".join(sorted(letters))


def count(rng: random.Random, length: int) -> tuple[str, str]:
    """How often the first letter occurs among the `length` letters that follow it."""
    asked, *others = rng.sample(string.ascii_lowercase, 4)
    n_hits = rng.randrange(min(length, 9) + 1)
    letters = [asked] * n_hits + [rng.choice(others) for _ in range(length - n_hits)]
    rng.shuffle(letters)
    return f"count: {asked} ? {' '.join(letters)} =", str(n_hits)


def reverse(rng: random.Random, length: int) -> tuple[str, str]:
    """`length` letters from the last to the first."""
    letters = _letters(rng, length)
    return f"reverse: {' '.join(letters)} =", " ".join(reversed(letters))


def lookup(rng: random.Random, length: int) -> tuple[str, str]:
    """The digit that stands behind the asked one of `length` different letters."""
    keys = rng.sample(string.ascii_lowercase, length)
    digits = [rng.choice(string.digits) for _ in keys]
    asked = rng.randrange(length)
    pairs = " ".join(f"{key} {digit}" for key, digit in zip(keys, digits, strict=True))
    return f"lookup: {pairs} ? {keys[asked]} =", digits[asked]


SKILLS: Mapping[str, Skill] = {
    "add": Skill(add, "loglikelihood"),
    "shift": Skill(shift, "loglikelihood"),
    "sort": Skill(sort, "loglikelihood"),
    "count": Skill(count, "multiple_choice"),
    "reverse": Skill(reverse, "loglikelihood"),
    "lookup": Skill(lookup, "generate_until"),
}


def split_of(prompt: str) -> Split:
    """The one split that a prompt belongs to, whatever the seed: splits cannot overlap."""
    bucket = zlib.crc32(prompt.encode()) % _N_BUCKETS
    if bucket < 2:
        return "search"
    return "held_out" if bucket < 5 else "training"


def items(skill: str, lengths: tuple[int, int], split: Split, seed: int) -> Iterator[Item]:
    """An endless stream of a skill's items of one split, the same for the same arguments.

    Search and held-out items do not repeat; training items may.

    Raises:
        ValueError: If the skill has run out of different prompts for a search or held-out split.
    """
    make = SKILLS[skill].make
    rng = random.Random(f"{seed}/{skill}/{split}")
    seen: set[str] = set()
    n_misses = 0
    while n_misses < _MAX_MISSES:
        prompt, answer = make(rng, rng.randint(*lengths))
        if split_of(prompt) != split or prompt in seen:
            n_misses += 1
            continue
        n_misses = 0
        if split != "training":
            seen.add(prompt)
        yield Item(prompt, answer)
    raise ValueError(
        f"{skill} with {lengths=} has only {len(seen)} {split} items: ask for fewer or longer ones"
    )


def choices_for(item: Item, seed: int) -> list[str]:
    """Four different one-digit answers in random order, one of them right.

    The wrong ones are the neighbours of the right one, so that guessing near does not help.
    """
    rng = random.Random(f"{seed}/{item.prompt}")
    right = int(item.answer)
    lowest = max(0, min(9 - _N_CHOICES + 1, right - rng.randrange(_N_CHOICES)))
    choices = [str(lowest + step) for step in range(_N_CHOICES)]
    rng.shuffle(choices)
    return choices
