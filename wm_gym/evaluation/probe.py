"""A small network that reads from one picture where the gripper and the object are.

Trained on recorded pictures, it says of imagined ones how far what they show is from the truth.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from torch import Tensor, nn
from tqdm import trange

from wm_gym.data.episode import Episode
from wm_gym.world_model.model import pixels

POINTS = 32  # places in a picture that the probe looks for
KEYS = {"gripper": "robot0_eef_pos", "object": "object"}
"""What is read, and the columns of `Episode.low_dim` that begin with its x, y, z in metres."""


@dataclass(frozen=True, slots=True)
class ProbeConfig:
    """How the probe is trained."""

    steps: int = 2000
    batch_size: int = 64
    """Pictures a step."""
    learning_rate: float = 1e-2
    """Of AdamW, at its peak."""
    seed: int = 0


class PositionProbe(nn.Module):
    """Positions from pictures: convolutions, spatial soft-argmax (Finn et al. 2016), two layers.

    It sees one picture and no action, so it cannot know what should be there, only what is.
    """

    def __init__(self) -> None:
        """Build with random weights."""
        super().__init__()
        self.maps = nn.Sequential(
            *_layer(3, 16, 5, stride=2, padding=2),
            *_layer(16, 32, 3, stride=2, padding=1),
            *_layer(32, 32, 3, padding=1),
            *_layer(32, 32, 3, padding=2, dilation=2),
            nn.Conv2d(32, POINTS, 1),
        )
        # Sharp from the start: the mean place under a flat map is the middle, wherever things are.
        nn.init.normal_(self.maps[-1].weight, std=2 / 32**0.5)
        numbers = 3 * len(KEYS)
        self.read = nn.Sequential(nn.Linear(2 * POINTS, 128), nn.SiLU(), nn.Linear(128, numbers))
        self.register_buffer("middle", torch.zeros(numbers))
        self.register_buffer("spread", torch.ones(()))

    def forward(self, pictures: Tensor) -> Tensor:
        """Pictures uint8 (n, H, W, 3) to metres (n, 2, 3): x, y, z of gripper and object."""
        maps = self.maps(pixels(pictures))  # (n, points, h, w)
        share = maps.flatten(2).softmax(-1).view_as(maps)
        places = [
            (share.sum(other) * torch.linspace(-1, 1, size, device=maps.device)).sum(-1)
            for other, size in ((-1, maps.shape[-2]), (-2, maps.shape[-1]))
        ]  # y and x, (n, points) in [-1, 1]
        return (self.read(torch.cat(places, -1)) * self.spread + self.middle).unflatten(1, (-1, 3))


def positions(low_dim: Mapping[str, np.ndarray]) -> np.ndarray | None:
    """Metres float32 (t + 1, 2, 3) of gripper and object, or None where they were not recorded."""
    columns = [low_dim.get(key) for key in KEYS.values()]
    if any(column is None or column.shape[1] < 3 for column in columns):
        return None
    return np.stack([column[:, :3] for column in columns], axis=1)


def train_probe(
    episodes: Sequence[Episode], config: ProbeConfig, device: torch.device | str = "cpu"
) -> PositionProbe:
    """Train a probe on single pictures of those episodes whose positions were recorded.

    The same episodes, config and device give the same weights. Raises ValueError where no episode
    has positions.
    """
    known = [(e.frames, p) for e in episodes if (p := positions(e.low_dim)) is not None]
    if not known:
        raise ValueError(
            f"A probe learns from {' and '.join(KEYS.values())} in Episode.low_dim; none of "
            f"{len(episodes)} episodes has both. Record episodes anew, or go without drift."
        )
    truth = torch.from_numpy(np.concatenate([p for _, p in known]))  # (rows, 2, 3)
    ends = np.cumsum([len(p) for _, p in known])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        probe = PositionProbe()
    probe.middle.copy_(truth.flatten(1).mean(0))
    probe.spread.copy_((truth.flatten(1) - probe.middle).square().mean().sqrt().clamp(min=1e-3))
    probe.to(device).train()
    optimizer = torch.optim.AdamW(probe.parameters(), config.learning_rate)
    # It divides by pct_start x steps - 1, so the share is none that makes this 0.
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, config.learning_rate, config.steps, pct_start=0.051
    )
    generator = torch.Generator().manual_seed(config.seed)
    for _ in trange(config.steps, desc="position probe"):
        rows = torch.randint(len(truth), (config.batch_size,), generator=generator)
        owner = np.searchsorted(ends, rows.numpy(), side="right")
        # Counted from the end of its episode: negative, as an index may be.
        pictures = np.stack([known[e][0][r - ends[e]] for e, r in zip(owner, rows, strict=True)])
        away = probe(torch.from_numpy(pictures).to(device)) - truth[rows].to(device)
        loss = (away.norm(dim=-1) / probe.spread).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return probe.eval()


@torch.inference_mode()
def read(probe: PositionProbe, pictures: np.ndarray) -> np.ndarray:
    """Read metres float32 (t, 2, 3) of gripper and object from pictures, uint8 (t, H, W, 3)."""
    return probe(torch.from_numpy(pictures).to(probe.middle.device)).cpu().numpy()


def steady(positions: np.ndarray, around: int = 2) -> np.ndarray:
    """Medians of each step and `around` steps on both sides of it, of positions (t, 2, 3).

    What a probe reads jumps by millimetres from picture to picture; things do not.
    """
    edges = np.pad(positions, ((around, around), (0, 0), (0, 0)), mode="edge")
    return np.median(sliding_window_view(edges, 2 * around + 1, axis=0), axis=-1)


@torch.inference_mode()
def distances(probe: PositionProbe, pictures: Tensor, truth: Tensor) -> Tensor:
    """How far from the truth what a picture shows is, in millimetres.

    pictures: uint8 (n, t, H, W, 3); truth: metres (n, t, 2, 3). Returns (n, t, 2) float32 on the
    CPU: gripper, object.
    """
    shown = torch.from_numpy(np.stack([read(probe, episode.numpy()) for episode in pictures]))
    return 1000 * (shown - truth).norm(dim=-1)


def _layer(before: int, after: int, size: int, **options: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(before, after, size, **options), nn.GroupNorm(4, after), nn.SiLU()
