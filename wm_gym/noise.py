"""Randomness by counting: every draw is a pure function of (seed, episode, step, place).

The step is that at which an action begins, or a chunk of them: its own steps are places. No
generator is carried along, so what a row draws never depends on who else is in the batch, on the
device or on what was drawn before.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

_NOISE, _CHOICE = 1, 2  # keep the two streams of a seed apart
_GOLDEN = 0x9E3779B97F4A7C15


def row_noise(
    seeds: np.ndarray,
    episodes: np.ndarray,
    steps: np.ndarray,
    shape: tuple[int, ...],
    device: torch.device | str = "cpu",
) -> Tensor:
    """Draw standard normal noise, one tensor a row; float32 (n, *shape), fresh, on `device`.

    seeds, episodes, steps: int64 (n,). Place p of a row reads 16 bits of a 32-bit hash of p // 2
    under the row's 64-bit key and looks them up among 65,536 quantiles of the normal distribution
    (so |value| < 4.4). Only integers are computed, so every device gives the same bits.
    """
    size = math.prod(shape)
    bits = hash_counters(row_keys(seeds, episodes, steps, _NOISE), (size + 1) // 2, device)
    index = bits.view(torch.int16).to(torch.int32).bitwise_and_(0xFFFF)  # low half, then high half
    noise = _quantiles(str(device)).index_select(0, index.flatten())
    return noise.view(len(bits), -1)[:, :size].reshape(-1, *shape)


def row_choice(seeds: np.ndarray, episodes: np.ndarray, size: int) -> np.ndarray:
    """Draw one index in [0, size) a row, uniformly; int64 (n,), fresh."""
    keys = row_keys(seeds, episodes, np.zeros_like(seeds), _CHOICE)
    return (keys % np.uint64(size)).astype(np.int64)


def row_keys(seeds: np.ndarray, episodes: np.ndarray, steps: np.ndarray, stream: int) -> np.ndarray:
    """Mix (stream, seed, episode, step) into one 64-bit key a row; uint64 (n,)."""
    key = np.full(len(seeds), stream, np.uint64)
    for word in (seeds, episodes, steps):
        key = mix64(key ^ np.asarray(word).astype(np.uint64))
    return key


def mix64(x: np.ndarray) -> np.ndarray:
    """Scramble uint64 words one to one: splitmix64 (Steele, Lea and Flood, OOPSLA 2014)."""
    z = x + np.uint64(_GOLDEN)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def hash_counters(keys: np.ndarray, count: int, device: torch.device | str) -> Tensor:
    """Hash the counters 0..count-1 under each row's key; int32 (n, count), all 32 bits random.

    The avalanche is the two-multiplication hash 16-21f0aaad-15-d35a2d97-15 of hash-prospector.
    Half of the key shifts the counter and half enters between the multiplications: with one of
    them alone, two rows whose keys are near would draw the same values in another order.
    """
    halves = keys.view(np.int32).reshape(-1, 2)  # (n, 2)
    first, second = torch.from_numpy(halves.copy()).to(device).unsqueeze(-1).unbind(1)
    x = torch.arange(count, dtype=torch.int32, device=device) + first  # (n, count)
    x = _xor_shift(x, 16).mul_(0x21F0AAAD).bitwise_xor_(second)
    x = _xor_shift(x, 15).mul_(0xD35A2D97 - (1 << 32))
    return _xor_shift(x, 15)


def _xor_shift(x: Tensor, by: int) -> Tensor:
    mask = (1 << (32 - by)) - 1  # int32 shifts copy the sign bit; a logical shift does not
    return x.bitwise_xor_((x >> by).bitwise_and_(mask))


@lru_cache(maxsize=8)
def _quantiles(device: str) -> Tensor:
    middle = (torch.arange(65536, dtype=torch.float64) + 0.5) / 65536
    table = torch.special.ndtri(middle)
    return (table / table.square().mean().sqrt()).float().to(device)  # unit variance exactly
