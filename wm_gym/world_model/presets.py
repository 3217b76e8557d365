"""Sizes of world models: one code, one table."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class WorldModelConfig:
    """Shape of a pixel world model, and how it is sampled; the defaults are `nano`."""

    image_size: int = 64
    patch: int = 4
    """Pixels are folded into channels by this factor; no autoencoder to lose a small object."""
    memory: int = 4
    """Recent frames that are remembered beside the first one (WMPO 4.1: 4, without the first)."""
    max_chunk: int = 8
    """Most actions in one call (WMPO 4.1: 8)."""
    action_dim: int = 7
    widths: tuple[int, int, int] = (96, 192, 64)
    """Channels at latent resolution, at half of it, and in the head."""
    embed: int = 256
    """Length of the conditioning vectors."""
    sampling_steps: int = 1
    """Network calls a block (WMPO: 10 to 30)."""
    memory_level: float = 0.02
    """Noise level that the model is told its memory has; its own frames are never clean."""

    @property
    def channels(self) -> int:
        """Channels of a latent frame."""
        return 3 * self.patch**2

    @property
    def size(self) -> int:
        """Height and width of a latent frame."""
        return self.image_size // self.patch


PRESETS = {"nano": WorldModelConfig()}
