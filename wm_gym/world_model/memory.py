"""What a world model remembers of an episode: the state that its dynamics move on."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Memory(NamedTuple):
    """Of n rows; a row of it is all it takes to imagine on."""

    state: Tensor  # (n, f) float32: the latent of the last frame

    def take(self, rows: Tensor) -> Memory:
        """Return rows (r,) int64 as a memory of its own, fresh."""
        return Memory(self.state.index_select(0, rows))

    def put(self, rows: Tensor, other: Memory) -> None:
        """Overwrite rows (r,) int64 with those of `other`, in place."""
        self.state.index_copy_(0, rows, other.state)
