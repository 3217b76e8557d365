"""Layers of the video transformer: attention within each frame, then along time at each place.

What a frame's tokens are told (noise level, action) enters by adaptive normalisation, frame by
frame. Attention along time is causal, so frames that are known can be passed through once and
kept as keys and values for all that follow.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

GATHERED = 8  # places that a GPU attends to in one block of its kernels, made for long sequences
PARTS = 12  # numbers a channel that a layer is told: shift, scale and gate of four changes


class Past(NamedTuple):
    """The frames that a layer has seen, as attention along time needs them."""

    key: Tensor  # (n * s, heads, t, e), already turned by their places
    value: Tensor  # (n * s, heads, t, e)


class Layer(nn.Module):
    """A spatial block, then a temporal one (WMPO's STDiT3), each of attention and a perceptron."""

    def __init__(self, width: int, heads: int) -> None:
        """Build for tokens of `width` channels, which `heads` divides."""
        super().__init__()
        self.space = Attention(width, heads)
        self.space_mlp = perceptron(width)
        self.time = CausalAttention(width, heads)
        self.time_mlp = perceptron(width)
        self.told = nn.Parameter(torch.zeros(PARTS, width))

    def forward(
        self, x: Tensor, told: Tensor, turn: Tensor, past: Past | None = None
    ) -> tuple[Tensor, Past]:
        """Map tokens x (n, t, s, d) of t frames, the first of which follows `past`.

        told: (n, t, PARTS, d), shared by all layers, to which each adds its own; turn: see
        `turns`, of these frames. Returns the tokens and the past that these frames belong to.
        """
        parts = (told + self.told).unsqueeze(3).unflatten(2, (4, 3)).unbind(2)
        one, two, three, four = (part.unbind(2) for part in parts)  # each 3 of (n, t, 1, d)
        x = x + one[2] * self.space(adapt(x, *one[:2]))
        x = x + two[2] * self.space_mlp(adapt(x, *two[:2]))
        mixed, past = self.time(adapt(x, *three[:2]), turn, past)
        x = x + three[2] * mixed
        return x + four[2] * self.time_mlp(adapt(x, *four[:2])), past


class Attention(nn.Module):
    """Every token sees all of its frame; queries and keys are normalised."""

    def __init__(self, width: int, heads: int) -> None:
        """Build for tokens of `width` channels, which `heads` divides."""
        super().__init__()
        self.heads = heads
        self.query_key_value = nn.Linear(width, 3 * width)
        self.query_norm = nn.RMSNorm(width // heads)
        self.key_norm = nn.RMSNorm(width // heads)
        self.leave = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map x (n, t, s, d) to the same shape."""
        q, k, v = self.split(x.flatten(0, 1))
        return self.merge(F.scaled_dot_product_attention(q, k, v)).view_as(x)

    def split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values (b, heads, l, e) of x (b, l, d)."""
        qkv = self.query_key_value(x).unflatten(2, (3, self.heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        q, k = self.query_norm(q.float()), self.key_norm(k.float())
        return q.to(v.dtype), k.to(v.dtype), v

    def merge(self, mixed: Tensor) -> Tensor:
        """Put heads (b, heads, l, e) together as (b, l, d)."""
        return self.leave(mixed.transpose(1, 2).flatten(2))


class CausalAttention(Attention):
    """Every token sees its own place in its own frame and in those before."""

    def forward(  # type: ignore[override]
        self, x: Tensor, turn: Tensor, past: Past | None = None
    ) -> tuple[Tensor, Past]:
        """Map x (n, t, s, d) to the same shape; also returns the past with these frames in it."""
        n, t, s, _ = x.shape
        q, k, v = self.split(x.transpose(1, 2).flatten(0, 1))  # (n * s, heads, t, e)
        q, k = rotate(q, turn), rotate(k, turn)
        if past is not None:
            k, v = torch.cat([past.key, k], dim=2), torch.cat([past.value, v], dim=2)
        seen = torch.ones(t, k.shape[2], dtype=torch.bool, device=x.device).tril(k.shape[2] - t)
        places = math.gcd(s, gathered(x.device.type))
        mask = torch.block_diag(*[seen] * places)  # each place sees itself alone
        together = (
            part.unflatten(0, (-1, places)).transpose(1, 2).flatten(2, 3) for part in (q, k, v)
        )
        mixed = F.scaled_dot_product_attention(*together, attn_mask=mask)
        mixed = self.merge(mixed.unflatten(2, (places, t)).transpose(1, 2).flatten(0, 1))
        return mixed.unflatten(0, (n, s)).transpose(1, 2), Past(k, v)


def gathered(device: str) -> int:
    """Places in one attention along time: a few frames alone fill a corner of a GPU's tile."""
    return GATHERED if device == "cuda" else 1


def perceptron(width: int) -> nn.Sequential:
    """Two layers, four times as wide between them."""
    return nn.Sequential(
        nn.Linear(width, 4 * width), nn.GELU(approximate="tanh"), nn.Linear(4 * width, width)
    )


def adapt(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Normalise tokens x (n, t, s, d), then scale and shift them frame by frame, (n, t, 1, d)."""
    return F.layer_norm(x, x.shape[-1:]) * (1 + scale) + shift


def turns(places: int, size: int) -> Tensor:
    """Cosines and sines that mark places along time, (2, places, size / 2) float32.

    Pair i of a head's `size` numbers turns by 10000^(-2 i / size) a place (RoPE, Su et al. 2021,
    section 3.2.2), so that queries and keys meet by how far apart their frames are.
    """
    speed = 10_000 ** (-torch.arange(0, size, 2) / size)
    angle = torch.arange(places)[:, None] * speed
    return torch.stack([angle.cos(), angle.sin()])


def rotate(x: Tensor, turn: Tensor) -> Tensor:
    """Turn x (..., t, e), whose pairs are (i, i + e / 2), by turn (2, t, e / 2)."""
    cos, sin = turn
    one, two = x.float().chunk(2, dim=-1)
    return torch.cat([one * cos - two * sin, one * sin + two * cos], dim=-1).to(x.dtype)
