"""What a world model remembers of an episode: the first frame and the most recent ones."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Memory(NamedTuple):
    """Latents of n rows; a row of it is all it takes to imagine on."""

    anchor: Tensor  # (n, c, h, w) float32: the first frame
    recent: Tensor  # (n, m, c, h, w) float32: the last m frames, oldest first

    def take(self, rows: Tensor) -> Memory:
        """Return rows (r,) int64 as a memory of its own, fresh."""
        return Memory(*(part.index_select(0, rows) for part in self))

    def put(self, rows: Tensor, other: Memory) -> None:
        """Overwrite rows (r,) int64 with those of `other`, in place."""
        for part, new in zip(self, other, strict=True):
            part.index_copy_(0, rows, new)

    def advance(self, latents: Tensor) -> Memory:
        """Return the memory after k more frames, (n, k, c, h, w)."""
        frames = torch.cat([self.recent, latents], dim=1)
        return Memory(self.anchor, frames[:, -self.recent.shape[1] :])
