"""Rectified flow: pictures and noise at the two ends of straight lines, t = 0 and t = 1.

The network is asked for the clean end, from which the velocity follows. So a single step from
pure noise is already its best guess of the next frames, and more steps only sharpen it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from wm_gym.world_model.transformer import VideoTransformer

# In a simulator the next frames nearly follow from the actions. Times spread evenly would be spent
# on denoising what is visible already; from pure noise only the actions help.
AT_NOISE = 0.6  # share of the training at t = 1


def blend(clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """Points of the lines, (1 - t) clean + t noise; clean, noise (n, ...), t (n,)."""
    t = t.view(-1, *[1] * (clean.dim() - 1))
    return (1 - t) * clean + t * noise


def velocity(x: Tensor, clean: Tensor, t: float) -> Tensor:
    """How the point x at time t > 0 moves as t grows, on the line that begins at `clean`."""
    return (x - clean) / t


def sample(predict: Callable[[Tensor, Tensor], Tensor], noise: Tensor, steps: int) -> Tensor:
    """Follow the flow from noise (n, ...) at t = 1 to t = 0 in equal Euler steps.

    predict: (x (n, ...), t (n,)) -> the clean end, like x; it is called `steps` times.
    """
    if steps < 1:
        raise ValueError(f"Expected 1 sampling step or more, got {steps}; set sampling_steps.")
    x = noise
    for left in range(steps, 0, -1):
        t = left / steps
        clean = predict(x, x.new_full((len(x),), t))
        x = x - velocity(x, clean, t) / steps
    return x


def draw_times(n: int, generator: torch.Generator) -> Tensor:
    """Draw times of training, (n,) in (0, 1]: 1 for a share AT_NOISE, else evenly spread."""
    t = 1 - torch.rand(n, generator=generator)
    return torch.where(torch.rand(n, generator=generator) < AT_NOISE, torch.ones(n), t)


def flow_loss(
    model: VideoTransformer, batch: dict[str, Tensor], generator: torch.Generator
) -> Tensor:
    """Mean squared error of the clean latents of the new frames, (): over valid ones alone.

    batch: of `Windows.batch`, with the model's `memory` and a block of 1 to `max_chunk` steps; of
    pictures, or of their latents, floats (..., f), which spares encoding them at every step.

    All new frames of a row share a time. Remembered ones are noised by `memory_noise`: added, not
    blended in, since memories are clean in play and must not look brighter there. The autoencoder
    is left as it is.
    """
    device, remembered = model.device, 1 + model.config.memory
    if batch["memory"].shape[1] != model.config.memory:
        raise ValueError(
            f"The model remembers {model.config.memory} frames and the windows hold "
            f"{batch['memory'].shape[1]}; make them with Windows(memory={model.config.memory})."
        )
    shown = [batch["anchor"][:, None], batch["memory"], batch["future"]]
    if shown[0].is_floating_point():
        latents = torch.cat([part.to(device).float() for part in shown], dim=1)  # (n, 1 + m + k, f)
    else:
        with torch.no_grad():
            latents = model.encode(torch.cat(shown, dim=1))
    t = draw_times(len(latents), generator).to(device)
    noise = torch.randn(latents.shape, generator=generator).to(device)
    known = latents[:, :remembered] + model.config.memory_noise * noise[:, :remembered]
    clean, noise = latents[:, remembered:], noise[:, remembered:]
    drawn = model.predict(
        model.remember(known), blend(clean, noise, t), t, batch["actions"].to(device)
    )
    valid = batch["valid"].to(device)
    error = (drawn - clean).square().mean(dim=-1) * valid  # (n, k)
    return error.sum() / valid.sum().clamp(min=1)
