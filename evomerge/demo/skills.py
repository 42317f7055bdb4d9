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

_VOWELS = "aeiou"
_CONSONANTS = "bcdfghjklmnpqrstvwxyz"
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
    """Each of `length` letters moved on in the alphabet by 1 to 4 places, z to a."""
    letters, places = _letters(rng, length), rng.randrange(1, 5)
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


def last(rng: random.Random, length: int) -> tuple[str, str]:
    """The one of `length` letters that comes last in the alphabet."""
    letters = _letters(rng, length)
    return f"last: {' '.join(letters)} =", max(letters)


def vowels(rng: random.Random, length: int) -> tuple[str, str]:
    """Those of `length` letters that are vowels, in their order; there is at least one."""
    letters = [rng.choice(_VOWELS if rng.random() < 0.5 else _CONSONANTS) for _ in range(length)]
    letters[rng.randrange(length)] = rng.choice(_VOWELS)
    kept = [letter for letter in letters if letter in _VOWELS]
    return f"vowels: {' '.join(letters)} =", " ".join(kept)


def twice(rng: random.Random, length: int) -> tuple[str, str]:
    """The one of `length` letters that occurs twice."""
    letters = rng.sample(string.ascii_lowercase, length - 1)
    letters.append(letters[0])
    answer = letters[0]
    rng.shuffle(letters)
    return f"twice: {' '.join(letters)} =", answer


SKILLS: Mapping[str, Skill] = {
    "add": Skill(add, "loglikelihood"),
    "shift": Skill(shift, "loglikelihood"),
    "sort": Skill(sort, "loglikelihood"),
    "count": Skill(count, "loglikelihood"),
    "reverse": Skill(reverse, "loglikelihood"),
    "lookup": Skill(lookup, "generate_until"),
    "last": Skill(last, "multiple_choice"),
    "vowels": Skill(vowels, "loglikelihood"),
    "twice": Skill(twice, "generate_until"),
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
    """Four different letters of the question in random order, the right answer among them."""
    rng = random.Random(f"{seed}/{item.prompt}")
    letters = set(item.prompt.split()[1:-1]) - {item.answer}
    choices = [item.answer, *rng.sample(sorted(letters), _N_CHOICES - 1)]
    rng.shuffle(choices)
    return choices
