"""Layers of the video transformer: attention within each frame, then along time at each place.

What a frame's tokens are told (noise level, action) enters by adaptive normalisation, frame by
frame. Attention along time is causal, so frames that are known can be passed through once and
kept as keys and values for all that follow.
"""

from __future__ import annotations

from functools import reduce
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PARTS = 12  # numbers a channel that a layer is told: shift, scale and gate of four changes


class Past(NamedTuple):
    """The frames that a layer has seen, as attention along time needs them."""

    key: Tensor  # (n, t, s, heads, e), already turned by their places
    value: Tensor  # (n, t, s, heads, e)


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
        q, k, v = (part.flatten(0, 1).transpose(1, 2) for part in self.split(x))
        mixed = F.scaled_dot_product_attention(q, k, v)  # (n * t, heads, s, e)
        return self.leave(mixed.transpose(1, 2).reshape(x.shape))

    def split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values (n, t, s, heads, e) of x (n, t, s, d)."""
        q, k, v = self.query_key_value(x).unflatten(3, (3, self.heads, -1)).unbind(3)
        q, k = self.query_norm(q.float()), self.key_norm(k.float())
        return q.to(v.dtype), k.to(v.dtype), v


class CausalAttention(Attention):
    """Every token sees its own place in its own frame and in those before."""

    def forward(  # type: ignore[override]
        self, x: Tensor, turn: Tensor, past: Past | None = None
    ) -> tuple[Tensor, Past]:
        """Map x (n, t, s, d) to the same shape; also returns the past with these frames in it."""
        q, k, v = self.split(x)
        q, k = rotate(q, turn), rotate(k, turn)
        if past is not None:
            k, v = torch.cat([past.key, k], dim=1), torch.cat([past.value, v], dim=1)
        mixed = along_time(q, k, v)
        return self.leave(mixed.reshape(x.shape)), Past(k, v)


def along_time(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Let queries (n, t, s, heads, e) attend to their own place in the frames up to their own.

    Keys and values, (n, known + t, s, heads, e), begin with frames that are known. Returns (n, t,
    s, heads, e).
    """
    (n, t, s, *_), frames = q.shape, k.shape[1]
    seen = torch.ones(t, frames, dtype=torch.bool, device=q.device).tril(frames - t)
    if q.is_cuda and torch.compiler.is_compiling():
        return written_out(q, k, v, seen)
    q, k, v = (part.permute(0, 2, 3, 1, 4).flatten(0, 1) for part in (q, k, v))
    mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=seen)  # (n * s, heads, t, e)
    return mixed.unflatten(0, (n, s)).permute(0, 3, 1, 2, 4)


def written_out(q: Tensor, k: Tensor, v: Tensor, seen: Tensor) -> Tensor:
    """Compute `along_time` frame by frame, for a compiler to fuse; seen: bool (t, known + t).

    Kernels for attention are made for long sequences: so few frames would fill a corner of a tile.
    """
    q = q.float() * q.shape[-1] ** -0.5
    scores = [
        (q * key[:, None]).sum(-1, keepdim=True).masked_fill(~mine[:, None, None, None], -torch.inf)
        for key, mine in zip(k.unbind(1), seen.unbind(1), strict=True)
    ]  # of every frame, (n, t, s, heads, 1)
    top = reduce(torch.maximum, scores)
    weights = [(score - top).exp() for score in scores]
    mixed = sum(w * value[:, None] for w, value in zip(weights, v.unbind(1), strict=True))
    return (mixed / sum(weights)).to(v.dtype)


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
    """Turn x (n, t, s, heads, e), whose pairs are (i, i + e / 2), by turn (2, t, e / 2)."""
    cos, sin = turn[:, :, None, None]
    one, two = x.float().chunk(2, dim=-1)
    return torch.cat([one * cos - two * sin, one * sin + two * cos], dim=-1).to(x.dtype)
