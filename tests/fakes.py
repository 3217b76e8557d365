"""Tiny stand-ins for the models and the worlds: few or no weights, numbers that fit in the head."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from wm_gym.contract import WorldVectorEnv
from wm_gym.imagined import ImaginedVectorEnv
from wm_gym.starts import StartPool
from wm_gym.state import Played
from wm_gym.world_model.model import WorldModel

SIZE = 8  # pixels


def fake_pool(size: int = 5, split: str = "train", image_size: int = SIZE) -> StartPool:
    """Start s is a picture of 100 + s everywhere, and the state [s]."""
    levels = np.arange(100, 100 + size, dtype=np.uint8)
    frames = np.broadcast_to(levels[:, None, None, None], (size, image_size, image_size, 3)).copy()
    return StartPool(frames, np.arange(size, dtype=np.float64)[:, None], "Lift", split)


class ScriptedEnv(WorldVectorEnv):
    """A world without physics: row i succeeds at control step `wins[i]` of each episode.

    A picture shows (row, episode, elapsed) in its three channels; `calls` lists the rows that each
    `_play` was asked for.
    """

    def __init__(self, wins: list[int], **kwargs: Any) -> None:
        """Make one row a number; 99 stands for never."""
        kwargs = {"starts": fake_pool(), "horizon": 3} | kwargs
        super().__init__("Lift", len(wins), **kwargs)
        self.wins = np.array(wins)
        self.calls: list[list[int]] = []
        self.begun: list[tuple[int, int]] = []

    def picture(self, rows: np.ndarray, elapsed: np.ndarray) -> np.ndarray:
        """Paint (row, episode, elapsed) on uint8 (m, H, W, 3)."""
        pixel = np.stack([rows, self.episode[rows], elapsed], -1).astype(np.uint8)
        return np.broadcast_to(pixel[:, None, None], (len(rows), SIZE, SIZE, 3)).copy()

    def _begin(self, rows: np.ndarray, starts: np.ndarray) -> np.ndarray:
        self.begun += zip(rows.tolist(), starts.tolist(), strict=True)
        return self.picture(rows, self.elapsed[rows])

    def _play(self, rows: np.ndarray, actions: np.ndarray, steps: np.ndarray) -> Played:
        self.calls.append(rows.tolist())
        assert np.abs(actions).max() <= 1
        clock = self.elapsed[rows][:, None] + np.arange(1, self.chunk + 1)  # (m, K)
        self.playbacks = [None] * self.num_envs  # as RealVectorEnv's
        for row in rows:
            track = self.elapsed[row] + np.arange(self.chunk + 1.0)[:, None]
            low_dim = {"clock": track.astype(np.float32)}
            self.playbacks[row] = SimpleNamespace(states=track, low_dim=low_dim)
        success = clock == self.wins[rows][:, None]
        played = steps
        if not self.ignore_terminations:
            played = np.minimum(steps, np.where(success.any(1), success.argmax(1) + 1, self.chunk))
        success &= np.arange(self.chunk) < played[:, None]
        probability = success.astype(np.float32)
        unsure = np.zeros_like(probability)
        image = self.picture(rows, self.elapsed[rows] + played)
        if not self.return_frames:
            return Played(image, success, probability, played, unsure)
        clock = np.minimum(clock, (self.elapsed[rows] + played)[:, None])
        frames = np.stack([self.picture(rows, column) for column in clock.T], 1)
        return Played(image, success, probability, played, unsure, frames)


class FakeMemory(NamedTuple):
    """The memory of n rows, as the real model's."""

    anchor: Tensor  # (n, C, h, w)
    recent: Tensor  # (n, 4, C, h, w)

    def take(self, rows: Tensor) -> FakeMemory:
        """Return a fresh copy of some rows."""
        return FakeMemory(self.anchor[rows], self.recent[rows])

    def put(self, rows: Tensor, other: FakeMemory) -> None:
        """Overwrite some rows."""
        self.anchor[rows], self.recent[rows] = other.anchor, other.recent


class FakeWorldModel(nn.Module):
    """Latents are the pixels in [-1, 1]; a frame is the last plus 0.1 x the first action value.

    `noise` scales the noise added to each frame, `mix` a small convolution (84 weights) of the
    last frame.
    """

    def __init__(self, noise: float = 0.0, mix: float = 0.0) -> None:
        """Build the same weights every time."""
        super().__init__()
        self.config = SimpleNamespace(
            image_size=SIZE, memory=4, max_chunk=8, latent_size=3 * SIZE**2
        )
        self.noise, self.mix = noise, mix
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        generator = torch.Generator().manual_seed(0)
        for weight in self.conv.parameters():
            nn.init.normal_(weight, std=0.3, generator=generator)
        self.rows_imagined: list[int] = []  # batch size of every call
        self.told: Tensor | None = None  # of the robots, at the last beginning

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.conv.weight.device

    def noise_shape(self, k: int) -> tuple[int, ...]:
        """Shape of one row's noise."""
        return (k, 3, SIZE, SIZE)

    def encode(self, frames: Tensor, last: int | None = None) -> Tensor:
        """uint8 (n, t, H, W, 3) -> float32 (n, t, 3, H, W), of the `last` ones alone."""
        return frames[:, -last if last else 0 :].movedim(-1, -3).float() / 127.5 - 1

    def decode(self, latents: Tensor) -> Tensor:
        """(n, t, 3, H, W) -> uint8 (n, t, H, W, 3)."""
        pixels = ((latents.float() + 1) * 127.5).round().clamp(0, 255)
        return pixels.to(torch.uint8).movedim(-3, -1)

    def begin(self, frames: Tensor, robot: Tensor | None = None) -> FakeMemory:
        """Remember the first frame and the last four, and what was told of the robots."""
        self.told = robot
        latents = self.encode(frames)
        missing = max(4 - latents.shape[1], 0)
        padded = torch.cat([latents[:, :1].expand(-1, missing, -1, -1, -1), latents], 1)
        return FakeMemory(latents[:, 0], padded[:, -4:])

    def heavy(self) -> list[nn.Module]:
        """Nothing is worth compiling."""
        return []

    def imagine(
        self, memory: FakeMemory, actions: Tensor, noise: Tensor
    ) -> tuple[FakeMemory, Tensor, Tensor]:
        """Play actions (n, k, 7) with noise (n, k, 3, H, W).

        As uncertain is every step as the second action value is, and 0 where that is negative.
        """
        self.rows_imagined.append(len(actions))
        last, frames = memory.recent[:, -1], []
        for j in range(actions.shape[1]):
            push = 0.1 * actions[:, j, 0, None, None, None] + self.noise * noise[:, j]
            last = last + push + (self.mix * torch.tanh(self.conv(last)) if self.mix else 0)
            frames.append(last)
        latents = torch.stack(frames, 1)
        recent = torch.cat([memory.recent, latents], 1)[:, -4:]
        return FakeMemory(memory.anchor, recent), latents, actions[..., 1].clamp(min=0)


class FakeMembers(FakeWorldModel):
    """Two members, which read action values 2 and 3 where they imagine alone."""

    def __init__(self, noise: float = 0.0, mix: float = 0.0) -> None:
        """Build the same weights every time."""
        super().__init__(noise, mix)
        self.config.members = 2

    def imagine_alone(
        self, memory: FakeMemory, actions: Tensor, noise: Tensor
    ) -> tuple[FakeMemory, Tensor]:
        """Play actions (n, k, 7) with noise (n, k, 3, H, W) from memories (n, 2, ...)."""
        futures = []
        for member in range(2):
            mine = FakeMemory(*(part[:, member] for part in memory))
            after, latents, _ = self.imagine(mine, actions[..., [2 + member, 1]], noise)
            futures.append((*after, latents))
        anchor, recent, latents = (torch.stack(parts, 1) for parts in zip(*futures, strict=True))
        return FakeMemory(anchor, recent), latents


class FakeSuccess(nn.Module):
    """The probability of success is the brightness (0 to 1) of the window's last frame."""

    def __init__(self, threshold: float = 0.7, hold_k: int = 1, hold_n: int = 1) -> None:
        """Take the verdict's settings."""
        super().__init__()
        self.config = SimpleNamespace(window=8, latent_size=3 * SIZE**2)
        self.threshold, self.hold_k, self.hold_n = threshold, hold_k, hold_n
        self.windows: list[Tensor] = []  # what every call was shown

    def embed(self, latents: Tensor) -> Tensor:
        """(n, t, C, h, w) -> brightness (n, t, 1)."""
        return latents.mean((-3, -2, -1))[..., None]

    def probability(self, features: Tensor) -> Tensor:
        """(n, 7 + t, 1) -> (n, t)."""
        self.windows.append(features.clone())
        return ((features[:, 7:, 0] + 1) / 2).clamp(0, 1)


def alone(model: WorldModel, member: int) -> WorldModel:
    """Make a world model of one member of another."""
    single = WorldModel(replace(model.config, members=1)).requires_grad_(False)
    shapes, weights = single.state_dict(), model.state_dict()
    own = slice(member, member + 1)
    single.load_state_dict(
        {name: w if w.shape == shapes[name].shape else w[own] for name, w in weights.items()}
    )
    return single


def imagined(num_envs: int = 1, **kwargs: Any) -> ImaginedVectorEnv:
    """Make an imagined world of fakes."""
    fakes = {"world_model": FakeWorldModel(), "success": FakeSuccess(), "starts": fake_pool()}
    return ImaginedVectorEnv("Lift", num_envs, **(fakes | kwargs))
