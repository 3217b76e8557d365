"""Rectified flow on frames: the times it trains at, what is denoised, how it is sampled.

A noisy frame at time t is (1 - t) x + t e, with x the clean frame and e standard normal noise, so
t = 1 is pure noise. The network predicts x itself.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def draw_times(n: int, pure: float, generator: torch.Generator | None = None) -> Tensor:
    """Draw n training times in (0, 1]: exactly 1 with probability `pure`, else uniform.

    In a simulator the next picture nearly follows from the actions, so what matters is to predict
    it from nothing; logit-normal times would spend the training on denoising what is visible.
    """
    uniform = torch.rand(n, generator=generator)
    is_pure = torch.rand(n, generator=generator) < pure
    return torch.where(is_pure, torch.ones(n), 1 - uniform)


def add_noise(clean: Tensor, noise: Tensor, time: Tensor) -> Tensor:
    """Mix frames (n, k, c, h, w) with noise of the same shape at times (n,)."""
    t = time.view(-1, *[1] * (clean.dim() - 1))
    return (1 - t) * clean + t * noise


def sample(predict: Callable[[Tensor, Tensor], Tensor], noise: Tensor, steps: int) -> Tensor:
    """Integrate from noise (n, ...) at t = 1 to frames at t = 0 in `steps` equal Euler steps.

    `predict(noisy, time (n,)) -> clean`; the velocity e - x is (noisy - clean) / t. One step is
    the prediction from pure noise.
    """
    noisy = noise
    times = torch.linspace(1, 0, steps + 1).tolist()
    for now, after in zip(times[:-1], times[1:], strict=True):
        clean = predict(noisy, noisy.new_full((len(noisy),), now))
        noisy = clean if after == 0 else noisy + (after - now) / now * (noisy - clean)
    return noisy
