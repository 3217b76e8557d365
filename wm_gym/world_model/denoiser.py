"""The convolutional denoiser: one transition per action in feature space, one head per picture.

The memory is encoded once; then a small transition moves the features on by one action at a time,
so that a block of any length K comes from the same weights and frame j depends on actions 1..j
alone; a head turns each frame's features and its noise into the clean frame. Further sampling
steps repeat the head, nothing else.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Features(NamedTuple):
    """What the memory and K actions say about K frames, before any noise is seen."""

    frames: Tensor  # (n, k, d, h/2, w/2)
    skip: Tensor  # (n, e, h, w), the memory at full resolution
    last: Tensor  # (n, c, h, w), the frame that the new ones are residuals to


class ConvDenoiser(nn.Module):
    """Predicts clean latents (n, k, channels, h, w) from memory, actions and noisy latents."""

    def __init__(
        self, channels: int, frames: int, action_dim: int, widths: tuple[int, int, int], embed: int
    ) -> None:
        """`frames`: pictures in the memory, the anchor among them; `widths`: outer, inner, head."""
        super().__init__()
        outer, inner, head = widths
        self.level = Fourier(embed)
        self.action = nn.Sequential(
            nn.Linear(action_dim, embed), nn.SiLU(), nn.Linear(embed, embed), nn.SiLU()
        )
        self.time = Fourier(embed)
        self.enter = nn.Conv2d(frames * channels, outer, 3, padding=1)
        self.encode_outer = Residual(outer, outer, embed)
        self.shrink = nn.Conv2d(outer, inner, 3, stride=2, padding=1)
        self.encode_inner = nn.ModuleList([Residual(inner, inner, embed) for _ in range(2)])
        self.attend = Attention(inner)
        self.transition = Residual(inner, inner, embed)
        self.grow = nn.Conv2d(inner, 4 * head, 1)
        self.noisy = nn.Conv2d(channels, head, 1)
        self.skip = nn.Conv2d(outer, head, 1)
        self.head = Residual(head, head, embed)
        self.leave = nn.Sequential(
            nn.GroupNorm(8, head), nn.SiLU(), nn.Conv2d(head, channels, 3, padding=1)
        )
        nn.init.zeros_(self.leave[-1].weight)
        nn.init.zeros_(self.leave[-1].bias)

    def look_ahead(self, memory: Tensor, actions: Tensor, level: Tensor) -> Features:
        """Encode memory (n, m, c, h, w) and step through actions (n, k, a).

        level (n,): standard deviation of the noise that the memory carries, told to the model.
        """
        told = self.level(level)
        skip = self.encode_outer(self.enter(memory.flatten(1, 2)), told)
        state = self.encode_inner[0](self.shrink(skip), told)
        state = self.encode_inner[1](self.attend(state), told)
        moves = self.action(actions)  # (n, k, embed)
        frames = []
        for move in moves.unbind(1):
            state = self.transition(state, move)
            frames.append(state)
        return Features(torch.stack(frames, 1), skip, memory[:, -1])

    def forward(self, noisy: Tensor, time: Tensor, seen: Features) -> Tensor:
        """Clean latents, float32, from noisy ones (n, k, c, h, w) at times (n,)."""
        n, k = noisy.shape[:2]
        when = self.time(time).repeat_interleave(k, 0)
        x = F.pixel_shuffle(self.grow(seen.frames.flatten(0, 1)), 2)
        x = x + self.noisy(noisy.flatten(0, 1)) + self.skip(seen.skip).repeat_interleave(k, 0)
        change = self.leave(self.head(x, when)).unflatten(0, (n, k))
        return seen.last[:, None] + change.float()


class Residual(nn.Module):
    """Two 3x3 convolutions; the condition scales and shifts between them (adaptive norm)."""

    def __init__(self, enter: int, leave: int, embed: int) -> None:
        """Map `enter` channels to `leave`, conditioned on vectors of length `embed`."""
        super().__init__()
        self.norm = nn.GroupNorm(8, enter)
        self.first = nn.Conv2d(enter, leave, 3, padding=1)
        self.adapted = nn.GroupNorm(8, leave, affine=False)
        self.condition = nn.Linear(embed, 2 * leave)
        self.second = nn.Conv2d(leave, leave, 3, padding=1)
        nn.init.zeros_(self.second.weight)
        nn.init.zeros_(self.second.bias)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Map x (n, c, h, w), given condition (n, embed)."""
        scale, shift = self.condition(condition)[:, :, None, None].chunk(2, 1)
        hidden = self.adapted(self.first(F.silu(self.norm(x)))) * (1 + scale) + shift
        return x + self.second(F.silu(hidden))


class Attention(nn.Module):
    """Self-attention over the places of a feature map."""

    def __init__(self, width: int, heads: int = 4) -> None:
        """Build for `width` channels, which `heads` divides."""
        super().__init__()
        self.heads = heads
        self.norm = nn.GroupNorm(8, width)
        self.query_key_value = nn.Conv2d(width, 3 * width, 1)
        self.leave = nn.Conv2d(width, width, 1)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map x (n, c, h, w) to the same shape."""
        n, c, h, w = x.shape
        qkv = self.query_key_value(self.norm(x)).view(n, 3, self.heads, c // self.heads, h * w)
        q, k, v = qkv.transpose(-1, -2).unbind(1)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(-1, -2)
        return x + self.leave(mixed.reshape(n, c, h, w))


class Fourier(nn.Module):
    """Embeds a scalar in [0, 1] by sines and cosines and a small network."""

    def __init__(self, embed: int, frequencies: int = 32) -> None:
        """Build with `embed` outputs."""
        super().__init__()
        speeds = 1000 * torch.exp(-math.log(1e4) * torch.arange(frequencies) / frequencies)
        self.register_buffer("speeds", speeds, persistent=False)
        self.net = nn.Sequential(
            nn.Linear(2 * frequencies, embed), nn.SiLU(), nn.Linear(embed, embed), nn.SiLU()
        )

    def forward(self, value: Tensor) -> Tensor:
        """Map value (n,) to (n, embed)."""
        angle = value[:, None] * self.speeds
        return self.net(torch.cat([angle.sin(), angle.cos()], dim=-1))
