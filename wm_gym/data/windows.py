"""Windows of episodes for training: drawn by index, gathered a batch at a time."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from wm_gym.checks import check_share
from wm_gym.data.episode import Episode
from wm_gym.data.measurements import measured


class Windows:
    """World-model windows: one for every step s of every episode.

    `weights` is the relative chance of a window by source (1 where not named). All pictures lie in
    one uint8 tensor and a batch is one gather. `latents`, (t + 1, ...) of every episode, are
    gathered in the place of its pictures where they are given.
    """

    def __init__(
        self,
        episodes: Sequence[Episode],
        *,
        memory: int = 4,
        block: int = 8,
        weights: Mapping[str, float] | None = None,
        body: Sequence[str] = (),
        latents: Sequence[Tensor] | None = None,
    ) -> None:
        """Index all windows; raises ValueError when pictures differ in size or there are none.

        `body`: keys of `Episode.low_dim` to gather; ValueError names one that is not recorded.
        """
        _check_pictures(episodes)
        self.memory, self.block = memory, block
        self.lengths = torch.tensor([len(e) for e in episodes])  # (episodes,) control steps
        self.episode = torch.repeat_interleave(torch.arange(len(episodes)), self.lengths)
        self.time = torch.cat([torch.arange(len(e)) for e in episodes])  # both (windows,)
        self.by_episode = _chances([e.source for e in episodes], weights or {})  # (episodes,)
        self.weights = _checked(self.by_episode[self.episode], len(self))  # (windows,)
        # One row a frame, of all episodes one after the other; actions end with a row of 0.
        self._first = torch.cumsum(self.lengths + 1, 0) - self.lengths - 1
        pictures = [torch.from_numpy(e.frames) for e in episodes] if latents is None else latents
        self._frames = torch.cat([*pictures])
        acts = [torch.from_numpy(e.actions) for e in episodes]
        self._actions = torch.cat([F.pad(rows, (0, 0, 0, 1)) for rows in acts])
        self._body = torch.cat([torch.from_numpy(measured(e, body)) for e in episodes])

    def __len__(self) -> int:
        """Windows."""
        return len(self.time)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw n windows with replacement, in proportion to `weights`; (n,) int64 indices."""
        edges = self.weights.cumsum(0)
        points = torch.rand(n, generator=generator, dtype=torch.float64) * edges[-1]
        return torch.searchsorted(edges, points, right=True).clamp_(max=len(self) - 1)

    def reweight(self, weights: Tensor) -> Self:
        """The same windows with other sampling weights, (windows,) >= 0, say for rare events."""
        other = copy.copy(self)
        other.weights = _checked(weights.double(), len(self))
        return other

    def _pick(self, indices: Tensor | np.ndarray | Sequence[int]) -> tuple[Tensor, Tensor]:
        index = torch.as_tensor(indices, dtype=torch.int64)
        return self.episode[index], self.time[index][:, None]

    def lasting(self, block: int) -> Self:
        """The same windows with another number of frames to come."""
        other = copy.copy(self)
        other.block = block
        return other

    def batch(self, indices: Tensor | np.ndarray | Sequence[int]) -> dict[str, Tensor]:
        """Gather windows (b,) as fresh tensors.

        anchor   (b, H, W, 3) uint8: frame 0
        memory   (b, memory, H, W, 3) uint8: frames up to and with s, left-padded with frame 0
        future   (b, block, H, W, 3) uint8: frames s + 1 on, padded with the last
        actions  (b, block, 7) float32: the actions that lead to them, zero where padded
        valid    (b, block) bool: False where padded
        body     (b, 1 + block, p) float32: what `body` names at s and after, padded with the last
        """
        episode, s = self._pick(indices)
        last = self.lengths[episode][:, None]  # (b, 1)
        past = (s + torch.arange(1 - self.memory, 1)).clamp(min=0)  # (b, memory)
        step = s + torch.arange(self.block)  # (b, block)
        frames = torch.cat([past, torch.minimum(step + 1, last)], 1)
        pictures = self._gather(self._frames, episode, frames)
        valid = step < last
        actions = self._gather(self._actions, episode, torch.minimum(step, last - 1))
        told = torch.minimum(torch.cat([s, step + 1], 1), last)  # (b, 1 + block)
        return {
            "anchor": self._gather(self._frames, episode, torch.zeros_like(s))[:, 0],
            "memory": pictures[:, : self.memory],
            "future": pictures[:, self.memory :],
            "actions": actions * valid[:, :, None],
            "valid": valid,
            "body": self._gather(self._body, episode, told),
        }

    def _gather(self, table: Tensor, episode: Tensor, index: Tensor) -> Tensor:
        """Rows `index` (b, k) of episodes (b,) of a table: (b, k, ...)."""
        rows = (self._first[episode][:, None] + index).flatten()
        return table.index_select(0, rows).view(*index.shape, *table.shape[1:])


def holdout_episodes(sources: Sequence[str], fraction: float, seed: int) -> list[int]:
    """Episodes to hold out: round(fraction * n) of each source, at least 1 and at most n - 1.

    Of a single source at least 2: a replay is compared with that of another episode. Which ones of
    a source does not depend on what others there are, as long as there are any.
    """
    check_share("fraction", fraction)
    held: list[int] = []
    least = 2 if len(set(sources)) == 1 else 1
    for source in sorted(set(sources)):
        rng = np.random.default_rng([seed, *source.encode()])
        of_source = [i for i, s in enumerate(sources) if s == source]
        count = min(max(round(fraction * len(of_source)), least), len(of_source) - 1)
        held += rng.permutation(of_source)[:count].tolist()
    if not held:
        raise ValueError(f"Nothing to hold out of sources {list(sources)}: none has two episodes.")
    return sorted(held)


def deal(sources: Sequence[str], folds: int, seed: int) -> np.ndarray:
    """Deal episodes into folds, int64 (n,) from 0, as evenly as can be, and those of each source.

    There are as many folds as episodes where these are fewer; raises ValueError for less than 2.
    """
    folds = min(folds, len(sources))
    if folds < 2:
        raise ValueError(
            f"Cross-validation needs at least 2 folds and 2 episodes; got {folds} of "
            f"{len(sources)} episodes."
        )
    order: list[int] = []
    for source in sorted(set(sources)):
        rng = np.random.default_rng([seed, *source.encode()])
        order += rng.permutation([i for i, s in enumerate(sources) if s == source]).tolist()
    fold = np.empty(len(sources), np.int64)
    fold[order] = np.arange(len(sources)) % folds
    return fold


def _check_pictures(episodes: Sequence[Episode]) -> None:
    if not episodes:
        raise ValueError("No episodes to take windows from; collect some first.")
    shapes = {e.frames.shape[1:] for e in episodes}
    if len(shapes) > 1:
        raise ValueError(f"Pictures must all have one size; got {sorted(shapes)}. Resize them.")


def _chances(sources: Sequence[str], weights: Mapping[str, float]) -> Tensor:
    """How often to draw a window of each episode, by its source, float64 (episodes,)."""
    if unknown := set(weights) - set(sources):
        raise ValueError(
            f"weights name sources {sorted(unknown)} that no episode has; "
            f"known: {sorted(set(sources))}."
        )
    return torch.tensor([float(weights.get(s, 1.0)) for s in sources], dtype=torch.float64)


def _checked(weights: Tensor, n: int) -> Tensor:
    if weights.shape != (n,) or not bool((weights >= 0).all() & weights.any()):
        raise ValueError(
            f"weights must be ({n},), none negative and not all zero; got "
            f"{tuple(weights.shape)}, {weights}."
        )
    return weights
