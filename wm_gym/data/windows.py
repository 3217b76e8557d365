"""Windows of episodes for training: drawn by index, gathered a batch at a time."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor

from wm_gym.data.episodes import Episode, EpisodeFile
from wm_gym.data.measurements import measured, measurements


class Windows:
    """World-model windows: one for every step s of every episode.

    `episodes` are `Episode`s or robomimic files; `weights` is the relative chance of a window by
    source (1 where not named). With `in_memory=True` all pictures lie in one uint8 tensor and a
    batch is one gather; with False, files are read window by window. `latents`, (t + 1, ...)
    of every episode, are gathered in the place of its pictures where they are given.
    """

    def __init__(
        self,
        episodes: Sequence[Episode] | str | Path | Sequence[str | Path],
        *,
        memory: int = 4,
        block: int = 8,
        weights: Mapping[str, float] | None = None,
        body: Sequence[str] = (),
        in_memory: bool = True,
        latents: Sequence[Tensor] | None = None,
    ) -> None:
        """Index all windows; raises ValueError when pictures differ in size or there are none.

        `body`: keys of `Episode.low_dim` to gather; ValueError names one that is not recorded.
        """
        self.memory, self.block = memory, block
        self.store = _open(episodes, in_memory, tuple(body), latents)
        lengths = self.store.lengths
        self.episode = torch.repeat_interleave(torch.arange(len(lengths)), lengths)  # (windows,)
        self.time = torch.cat([torch.arange(int(t)) for t in lengths])  # (windows,)
        unknown = set(weights or {}) - set(self.store.sources)
        if unknown:
            raise ValueError(
                f"weights name sources {sorted(unknown)} that no episode has; "
                f"known: {sorted(set(self.store.sources))}."
            )
        chances = [float((weights or {}).get(s, 1.0)) for s in self.store.sources]
        self.by_episode = torch.tensor(chances, dtype=torch.float64)  # (episodes,)
        self.weights = _checked(self.by_episode[self.episode], len(self))  # (windows,)

    def __len__(self) -> int:
        """Windows."""
        return len(self.time)

    @property
    def sources(self) -> list[str]:
        """The source of every window's episode."""
        return [self.store.sources[e] for e in self.episode.tolist()]

    def to(self, device: torch.device | str) -> Self:
        """A view whose batches come on `device`; in-memory pictures move there once."""
        moved = copy.copy(self)
        moved.store = self.store.to(device)
        return moved

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
        last = self.store.lengths[episode][:, None]  # (b, 1)
        past = (s + torch.arange(1 - self.memory, 1)).clamp(min=0)  # (b, memory)
        step = s + torch.arange(self.block)  # (b, block)
        frames = torch.cat([past, torch.minimum(step + 1, last)], 1)
        pictures = self.store.frames(episode, frames)
        valid = (step < last).to(pictures.device)
        actions = self.store.actions(episode, torch.minimum(step, last - 1))
        return {
            "anchor": self.store.frames(episode, torch.zeros_like(s))[:, 0],
            "memory": pictures[:, : self.memory],
            "future": pictures[:, self.memory :],
            "actions": actions * valid[:, :, None],
            "valid": valid,
            "body": self.store.body(episode, torch.minimum(torch.cat([s, step + 1], 1), last)),
        }


def holdout_episodes(sources: Sequence[str], fraction: float, seed: int) -> list[int]:
    """Episodes to hold out: round(fraction * n) of each source, at least 1 and at most n - 1.

    Which ones of a source does not depend on what other sources there are.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"fraction must lie between 0 and 1; got {fraction}.")
    held: list[int] = []
    for source in sorted(set(sources)):
        rng = np.random.default_rng([seed, *source.encode()])
        of_source = [i for i, s in enumerate(sources) if s == source]
        count = min(max(round(fraction * len(of_source)), 1), len(of_source) - 1)
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


def _checked(weights: Tensor, n: int) -> Tensor:
    if weights.shape != (n,) or not bool((weights >= 0).all() & weights.any()):
        raise ValueError(
            f"weights must be ({n},), none negative and not all zero; got "
            f"{tuple(weights.shape)}, {weights}."
        )
    return weights


class _Memory:
    """All pictures and actions as flat tensors; a batch is one index_select."""

    def __init__(self, reader: _Reader, latents: Sequence[Tensor] | None = None) -> None:
        self.lengths, self.sources, self.success = reader.lengths, reader.sources, reader.success
        self._first = torch.cumsum(self.lengths + 1, 0) - self.lengths - 1
        total = int(self.lengths.sum()) + len(self.lengths)
        self._actions = torch.zeros(total, reader.acts[0].shape[1])
        self._body = torch.cat(reader.bodies)
        for first, actions in zip(self._first.tolist(), reader.acts, strict=True):
            self._actions[first : first + len(actions)] = actions
        self._frames = self._pictures(reader, total) if latents is None else torch.cat([*latents])

    def _pictures(self, reader: _Reader, total: int) -> Tensor:
        frames = torch.empty(total, *reader.read(0, 0, 1).shape[1:], dtype=torch.uint8)
        for e, (first, t) in enumerate(
            zip(self._first.tolist(), self.lengths.tolist(), strict=True)
        ):
            frames[first : first + t + 1] = torch.from_numpy(reader.read(e, 0, t + 1))
        return frames

    def to(self, device: torch.device | str) -> _Memory:
        moved = copy.copy(self)
        for name in ("_frames", "_actions", "_body"):
            setattr(moved, name, getattr(self, name).to(device))
        return moved

    def frames(self, episode: Tensor, index: Tensor) -> Tensor:
        return self._take(self._frames, episode, index)

    def actions(self, episode: Tensor, index: Tensor) -> Tensor:
        return self._take(self._actions, episode, index)

    def body(self, episode: Tensor, index: Tensor) -> Tensor:
        return self._take(self._body, episode, index)

    def _take(self, table: Tensor, episode: Tensor, index: Tensor) -> Tensor:
        rows = (self._first[episode][:, None] + index).flatten().to(table.device)
        return table.index_select(0, rows).view(*index.shape, *table.shape[1:])


class _Reader:
    """Pictures read when asked for, from episodes or files; everything else is held."""

    def __init__(
        self, episodes: Sequence[Episode] | Sequence[EpisodeFile], body: Sequence[str]
    ) -> None:
        self._at: list[tuple[Episode | EpisodeFile, int]] = []
        for item in episodes:
            count = len(item) if isinstance(item, EpisodeFile) else 1
            self._at += [(item, i) for i in range(count)]
        if not self._at:
            raise ValueError("No episodes to take windows from; collect some first.")
        held = [_facts(item, i, body) for item, i in self._at]
        acts, success, bodies, sources = zip(*held, strict=True)
        self.acts, self.success, self.bodies = (
            [torch.from_numpy(array) for array in arrays] for arrays in (acts, success, bodies)
        )
        self.sources = list(sources)
        self.lengths = torch.tensor([len(actions) for actions in self.acts])
        self._device: torch.device | str = "cpu"
        shapes = {self.read(e, 0, 1).shape[1:] for e in range(len(self._at))}
        if len(shapes) > 1:
            raise ValueError(f"Pictures must all have one size; got {sorted(shapes)}. Resize them.")

    def read(self, episode: int, a: int, b: int) -> np.ndarray:
        item, i = self._at[episode]
        return item.frames(i, a, b) if isinstance(item, EpisodeFile) else item.frames[a:b]

    def to(self, device: torch.device | str) -> _Reader:
        moved = copy.copy(self)
        moved._device = device
        return moved

    def frames(self, episode: Tensor, index: Tensor) -> Tensor:
        rows = []
        for e, wanted in zip(episode.tolist(), index.numpy(), strict=True):
            a = int(wanted.min())
            rows.append(self.read(e, a, int(wanted.max()) + 1)[wanted - a])
        return torch.from_numpy(np.stack(rows)).to(self._device)

    def actions(self, episode: Tensor, index: Tensor) -> Tensor:
        return self._gather(self.acts, episode, index)

    def body(self, episode: Tensor, index: Tensor) -> Tensor:
        return self._gather(self.bodies, episode, index)

    def _gather(self, held: list[Tensor], episode: Tensor, index: Tensor) -> Tensor:
        rows = [held[e][i] for e, i in zip(episode.tolist(), index, strict=True)]
        return torch.stack(rows).to(self._device)


def _facts(
    item: Episode | EpisodeFile, i: int, body: Sequence[str]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, str]:
    if isinstance(item, EpisodeFile):
        found = item.low_dim(i) if body else {}
        rows = measurements(found, body, item.lengths[i] + 1, f"{item.path}: {item.names[i]}")
        return item.actions(i), item.success(i), rows, item.source(i)
    return item.actions, item.success, measured(item, body), item.source


def _open(
    episodes: Sequence[Episode] | str | Path | Sequence[str | Path],
    in_memory: bool,
    body: tuple[str, ...],
    latents: Sequence[Tensor] | None,
) -> _Memory | _Reader:
    items = [episodes] if isinstance(episodes, str | Path) else list(episodes)
    reader = _Reader([x if isinstance(x, Episode) else EpisodeFile(x) for x in items], body)
    return _Memory(reader, latents) if in_memory else reader
