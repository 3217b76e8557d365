"""Is the task done at the end of these frames? A small network on the world model's own latents."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wm_gym.hub import Pretrained


@dataclass(frozen=True, slots=True)
class SuccessConfig:
    """Shape of the classifier, and the verdict rule that was calibrated with its weights."""

    channels: int = 128
    """Channels of the grid that begins a latent; 0 for latents without one."""
    side: int = 8
    """Height and width of that grid."""
    vector: int = 412
    """Numbers after the grid: the rest of a latent; 0 for latents that are a grid alone."""
    width: int = 64
    features: int = 64
    """Numbers that are kept of a frame."""
    window: int = 8
    """Frames that a verdict looks at (WMPO 4.1: 8)."""
    threshold: float = 0.5
    """A window with at least this probability is a hit."""
    hold_k: int = 2
    """Hits needed among the last `hold_n` windows for the step to count as a success."""
    hold_n: int = 3

    def __post_init__(self) -> None:
        """Check the rule; raises ValueError."""
        if self.window < 2 or not 1 <= self.hold_k <= self.hold_n:
            raise ValueError(
                "Expected window of at least 2 and hold_k from 1 to hold_n, got "
                f"window={self.window}, hold_k={self.hold_k}, hold_n={self.hold_n}."
            )

    @property
    def latent_size(self) -> int:
        """Numbers in a latent: the grid, then the rest."""
        return self.channels * self.side**2 + self.vector


class SuccessClassifier(nn.Module, Pretrained):
    """Probability that the task is done at the end of a window of 8 frames.

    A frame is embedded once, when it appears; a verdict reads the embeddings of its window, so
    nothing is decoded for it and a step costs one embedding.
    """

    config_class = SuccessConfig
    asset = "success"
    interface = """\
Input: latents of the world model that it was trained with, float32 (n, t, f). Output of `watch`:
after every frame the probability, float32 (n, t), that the task is done. An episode succeeds
where this reaches `config.threshold` in `config.hold_k` of the last `config.hold_n` frames."""

    def __init__(self, config: SuccessConfig) -> None:
        """Build with random weights."""
        super().__init__()
        self.config = config
        w, half = config.width, -(-config.side // 2)  # halved once, rounded up
        if config.channels:
            self.grid = nn.Sequential(
                nn.Unflatten(1, (config.channels, config.side, config.side)),
                nn.GroupNorm(math.gcd(8, config.channels), config.channels),
                nn.Conv2d(config.channels, w, 3, stride=2, padding=1),
                nn.GroupNorm(8, w),
                nn.SiLU(),
                nn.Flatten(),
                nn.Linear(w * half * half, config.features),
            )
        if config.vector:
            self.vector = nn.Sequential(
                nn.Linear(config.vector, 2 * w), nn.SiLU(), nn.Linear(2 * w, config.features)
            )
        self.verdict = nn.Sequential(
            nn.SiLU(),
            nn.Linear(config.window * config.features, 128),
            nn.SiLU(),
            nn.Dropout(0.1),
            nn.Linear(128, 1),
        )

    @property
    def threshold(self) -> float:
        """A window with at least this probability is a hit."""
        return self.config.threshold

    @property
    def hold_k(self) -> int:
        """Hits needed among the last `hold_n` windows."""
        return self.config.hold_k

    @property
    def hold_n(self) -> int:
        """Windows that the verdict on a step looks back on."""
        return self.config.hold_n

    def embed(self, latents: Tensor) -> Tensor:
        """Embed frames: latents (n, t, f), see WorldModel.encode, to features (n, t, features)."""
        c = self.config
        grid, vector = latents.flatten(0, 1).split([c.latent_size - c.vector, c.vector], dim=1)
        parts = [self.grid(grid)] if c.channels else []
        parts += [self.vector(vector)] if c.vector else []
        return sum(parts).unflatten(0, latents.shape[:2])

    def logits(self, features: Tensor) -> Tensor:
        """Log-odds at the end of every whole window of features (n, window - 1 + t, d): (n, t)."""
        windows = features.unfold(1, self.config.window, 1)  # (n, t, d, window)
        return self.verdict(windows.flatten(2)).squeeze(-1)

    def probability(self, features: Tensor) -> Tensor:
        """Probability that the task is done at the end of each window, (n, t) in [0, 1]."""
        return torch.sigmoid(self.logits(features).float())

    def watch(self, latents: Tensor) -> Tensor:
        """Probability after every frame of an episode from its start, (n, t, ...) to (n, t)."""
        return self.probability(pad_features(self.embed(latents), self.config.window))


def pad_features(features: Tensor, window: int) -> Tensor:
    """Put window - 1 copies of the first frame's features before those of an episode."""
    return torch.cat([features[:, :1].expand(-1, window - 1, -1), features], dim=1)


def held(hits: Tensor, k: int, n: int) -> Tensor:
    """Say where at least k of the last n windows hit; hits bool (..., t) to bool (..., t)."""
    padded = F.pad(hits.float(), (n - 1, 0))
    return padded.unfold(-1, n, 1).sum(-1) >= k
