"""The world model: begin with pictures, imagine under actions, decode what is looked at."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wm_gym.hub import Pretrained
from wm_gym.world_model.denoiser import ConvDenoiser
from wm_gym.world_model.flow import sample
from wm_gym.world_model.memory import Memory
from wm_gym.world_model.presets import WorldModelConfig


class WorldModel(nn.Module, Pretrained):
    """Imagines K frames from a memory of past frames and K actions (WMPO, section 3.2).

    Beyond the paper: the first frame stays in the memory (WoVR), and a block may have any K from 1
    to `max_chunk`. Latents are the pixels themselves, in [-1, 1], folded `patch` x `patch` into
    channels, so encoding and decoding are exact.
    """

    config_class = WorldModelConfig
    asset = "world_model"

    def __init__(self, config: WorldModelConfig) -> None:
        """Build with random weights."""
        super().__init__()
        if config.image_size % (2 * config.patch):
            raise ValueError(
                f"image_size must be a multiple of twice the patch ({2 * config.patch}), got "
                f"{config.image_size}."
            )
        self.config = config
        self.denoiser = ConvDenoiser(
            config.channels, 1 + config.memory, config.action_dim, config.widths, config.embed
        )

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return self.denoiser.enter.weight.device

    def noise_shape(self, k: int) -> tuple[int, int, int, int]:
        """Shape of one row's noise for a block of k frames: (k, c, h, w)."""
        return (k, self.config.channels, self.config.size, self.config.size)

    def encode(self, frames: Tensor) -> Tensor:
        """Turn pictures, uint8 (n, t, H, W, 3), into latents, float32 (n, t, c, h, w)."""
        pixels = frames.to(self.device).flatten(0, 1).permute(0, 3, 1, 2).float() / 127.5 - 1
        return F.pixel_unshuffle(pixels, self.config.patch).unflatten(0, frames.shape[:2])

    def decode(self, latents: Tensor) -> Tensor:
        """Turn latents (n, t, c, h, w) into pictures, uint8 (n, t, H, W, 3)."""
        pixels = F.pixel_shuffle(latents.float().flatten(0, 1), self.config.patch)
        pixels = ((pixels + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
        return pixels.permute(0, 2, 3, 1).unflatten(0, latents.shape[:2]).contiguous()

    def begin(self, frames: Tensor) -> Memory:
        """Remember pictures, uint8 (n, t, H, W, 3), t >= 1: the first, and the last `memory`.

        Fewer than `memory` pictures are filled up with the first: a scene at rest.
        """
        m = self.config.memory
        latents = self.encode(torch.cat([frames[:, :1], frames[:, -m:]], dim=1))
        anchor, recent = latents[:, 0], latents[:, 1:]
        rest = anchor[:, None].expand(-1, m - recent.shape[1], -1, -1, -1)
        return Memory(anchor, torch.cat([rest, recent], dim=1))

    def imagine(
        self, memory: Memory, actions: Tensor, noise: Tensor, sampling_steps: int | None = None
    ) -> tuple[Memory, Tensor]:
        """Imagine the k frames that follow `memory` under actions (n, k, 7), 1 <= k <= max_chunk.

        noise: (n, k, c, h, w) standard normal, all the randomness there is. Returns the memory
        after these frames and their latents, float32 (n, k, c, h, w) in [-1, 1]; all fresh.
        """
        if not 1 <= actions.shape[1] <= self.config.max_chunk:
            raise ValueError(
                f"A block has 1 to {self.config.max_chunk} actions, got {actions.shape[1]}; split "
                "longer ones."
            )
        level = noise.new_full((len(noise),), self.config.memory_level)
        seen = self.denoiser.look_ahead(stack(memory), actions, level)
        latents = sample(
            lambda noisy, time: self.denoiser(noisy, time, seen),
            noise,
            sampling_steps or self.config.sampling_steps,
        ).clamp(-1, 1)
        return memory.advance(latents), latents


def stack(memory: Memory) -> Tensor:
    """Return the frames of a memory in one tensor, (n, 1 + m, c, h, w), the anchor first."""
    return torch.cat([memory.anchor[:, None], memory.recent], dim=1)
