"""Uniform random numbers by counter: the same on any device, in pieces of any length."""

from zlib import crc32

import torch
from torch import Tensor

_WORD = 0xFFFFFFFF


def uniform(
    seed: int, name: str, expert: int, start: int, n: int, device: torch.device | str = "cpu"
) -> Tensor:
    """Elements `start` to `start + n` of a stream in [0, 1), fp32, multiples of 2^-24.

    Each is a hash of (seed, name of the tensor, number of the expert, place), so masks drawn as
    `uniform(...) < p` are nested in p: a candidate with a slightly larger p keeps all that the
    other kept. Two rounds of `lowbias32` (C. Wellons, "Prospecting for hash functions", 2018).
    """
    places = torch.arange(start, start + n, dtype=torch.int64, device=device)
    low, high = stream_key(seed, name, expert)
    bits = _mix((places & _WORD) ^ low)
    bits = _mix(bits ^ (places >> 32) ^ high)
    return (bits >> 8).to(torch.float32) * 2.0**-24


def stream_key(seed: int, name: str, expert: int) -> tuple[int, int]:
    """Two 32-bit words that stand for a stream."""
    text = f"{seed}/{expert}/{name}".encode()
    return crc32(text), crc32(text[::-1], 0x9E3779B9)


def _mix(bits: Tensor) -> Tensor:
    """`lowbias32` of 32-bit words in int64: products wrap there, and only lower halves count."""
    bits = bits ^ (bits >> 16)
    bits = (bits * 0x21F0AAAD) & _WORD
    bits = bits ^ (bits >> 15)
    bits = (bits * 0x735A2D97) & _WORD
    return bits ^ (bits >> 15)
