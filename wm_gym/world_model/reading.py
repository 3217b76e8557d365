"""Learn to read a body from the pictures that an episode begins with, before all else is learnt.

A cube that is read a centimetre beside where it lies is grasped in imagination and missed by the
simulator. Recordings begin only a few hundred times, so that what a first picture shows would be
learnt by heart; any picture of theirs may serve as one, though.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from tqdm import trange

from wm_gym.data.windows import Windows
from wm_gym.world_model.dynamics import Reader
from wm_gym.world_model.model import pixels
from wm_gym.world_model.muon import muon_and_adamw, warm_cosine


@dataclass(frozen=True, slots=True)
class ReadingTrainingConfig:
    """How reading measurements from pictures is learnt."""

    steps: int = 4000
    batch_size: int = 64
    """Moments a step."""
    begun: float = 0.3
    """Share of the moments that are shown as if an episode began there, with nothing before."""
    place_weight: float = 10.0
    """How much more an error counts where it says where the hand or an object is, which are few of
    the numbers and decide whether a grasp holds."""
    learning_rate: float = 8e-3
    """Muon's at its peak, after a twentieth of the steps; down to nothing along a cosine. AdamW has
    half of it, for all but matrices and convolutions."""
    weight_decay: float = 1e-2
    grad_clip: float = 1.0


def fit_reader(
    reader: Reader,
    windows: Windows,
    mean: Tensor,
    std: Tensor,
    places: Sequence[int],
    config: ReadingTrainingConfig,
    seed: int,
) -> float:
    """Train `reader` in place to read bodies, less `mean` and in units of `std`, at any moment.

    `places`: where in the body it says where things are. It is frozen afterwards. Returns the mean
    absolute error over the last tenth of the steps, weighted as in training.
    """
    reader.requires_grad_(True)
    weight = torch.ones_like(mean)
    weight[list(places)] = config.place_weight
    weight /= weight.sum()
    matrices = [p for p in reader.parameters() if p.dim() >= 2]
    rest = [p for p in reader.parameters() if p.dim() < 2]
    optimizers = muon_and_adamw(matrices, rest, config.learning_rate, config.weight_decay)
    schedules = warm_cosine(optimizers, config.steps)
    generator = torch.Generator().manual_seed(seed)
    losses = []
    for _ in (bar := trange(config.steps, desc="reading")):
        pictures, bodies = moments(windows, config.batch_size, config.begun, generator)
        with torch.autocast(mean.device.type, torch.bfloat16):
            read = reader(pictures.to(mean.device))
        # Absolute: squares would care for hands that are far out, and not for the millimetres.
        error = (read - (bodies.to(mean.device) - mean) / std).abs().mean(0)
        loss = error @ weight
        reader.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(reader.parameters(), config.grad_clip)
        for each in (*optimizers, *schedules):
            each.step()
        losses.append(loss.item())
        bar.set_postfix(loss=f"{losses[-1]:.4f}", refresh=False)
    reader.requires_grad_(False)
    return float(np.mean(losses[-max(1, config.steps // 10) :]))


def moments(
    windows: Windows, count: int, begun: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Draw moments: what is remembered there, (n, 1 + m, 3, H, W), and the bodies (n, p).

    A share `begun` of them remembers nothing but the present picture.
    """
    batch = windows.lasting(1).batch(windows.sample(count, generator))
    shown = torch.cat([batch["anchor"][:, None], batch["memory"]], dim=1)
    alone = torch.rand(count, generator=generator) < begun
    shown[alone] = shown[alone, -1:]
    return pixels(shown), batch["body"][:, 0]
