"""Imagined futures: what is remembered of each, and what the success classifier saw in it."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from wm_gym.state import map_arrays
from wm_gym.success.classifier import held, pad_features

if TYPE_CHECKING:
    from wm_gym.success.classifier import SuccessClassifier
    from wm_gym.world_model.model import Memory


class Futures(NamedTuple):
    """Of n rows, or of n rows with e futures each, all it takes to imagine and to judge on."""

    memory: Memory
    features: Tensor  # (n, [e,] window - 1, d) float32, of the last frames
    hits: Tensor  # (n, [e,] hold_n - 1) bool, the last windows' verdicts
    seen: Tensor  # (n, [e]) bool, whether a success has held by now

    @classmethod
    def begin(cls, success: SuccessClassifier, memory: Memory, latents: Tensor) -> Futures:
        """Begin n rows from what is remembered and the latents, (n, t, ...), of the last frames."""
        window = success.config.window
        features = pad_features(success.embed(latents).float(), window)[:, 1 - window :]
        no = torch.zeros(len(latents), success.hold_n, dtype=torch.bool, device=features.device)
        return cls(memory, features, no[:, 1:], no[:, 0])

    def repeated(self, members: int) -> Futures:
        """Give every row (n,) as many futures, (n, members), which begin alike."""
        return map_arrays(lambda part: torch.stack([part] * members, dim=1), self)

    def watched(
        self, success: SuccessClassifier, memory: Memory, latents: Tensor
    ) -> tuple[Futures, Tensor, Tensor, Tensor]:
        """Judge the k frames that followed: latents (n, [e,] k, ...), at whose end is `memory`.

        Returns the futures after them, and of each frame, (n, [e,] k): the probability that the
        task is done, float32; whether a success holds, bool; whether one has by then, bool.
        """
        lead, k = self.seen.shape, latents.shape[self.seen.ndim]
        flat = latents.flatten(0, len(lead) - 1)
        features = success.embed(flat).float().unflatten(0, lead)
        features = torch.cat([self.features, features], dim=-2)
        flat = features.flatten(0, len(lead) - 1)
        probability = success.probability(flat).float().unflatten(0, lead)
        hits = torch.cat([self.hits, probability >= success.threshold], dim=-1)
        holds = held(hits, success.hold_k, success.hold_n)[..., success.hold_n - 1 :]
        seen = self.seen[..., None] | (holds.cumsum(-1) > 0)
        after = Futures(memory, features[..., k:, :], hits[..., k:], seen[..., -1])
        return after, probability, holds, seen

    def take(self, rows: Tensor) -> Futures:
        """Return rows (r,) int64 as futures of their own, fresh."""
        return Futures(self.memory.take(rows), *(part.index_select(0, rows) for part in self[1:]))

    def put(self, rows: Tensor, other: Futures) -> None:
        """Overwrite rows (r,) int64 with those of `other`, in place."""
        self.memory.put(rows, other.memory)
        for mine, others in zip(self[1:], other[1:], strict=True):
            mine.index_copy_(0, rows, others)
