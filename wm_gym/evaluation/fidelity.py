"""Does the imagination follow the recording when it is given the same actions?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from wm_gym.data.episodes import Episode
from wm_gym.noise import row_noise

if TYPE_CHECKING:
    from wm_gym.world_model.model import WorldModel

STEPS = (1, 8, 16, 32, 48)  # where a replay is judged


@torch.inference_mode()
def replay_latents(
    model: WorldModel,
    frames: Tensor,
    actions: Tensor,
    *,
    chunk: int | None = None,
    seed: int = 0,
) -> Tensor:
    """Imagine on from the first pictures under recorded actions, `chunk` steps a call (or most).

    frames: (n, H, W, 3) uint8, where the episodes begin; actions: (n, t, 7) float32. Returns
    latents (n, t, ...) on the model's device.
    """
    device, chunk = model.device, chunk or model.config.max_chunk
    rows = np.arange(len(frames))
    imagined = []
    with torch.autocast(torch.device(device).type, torch.bfloat16):
        memory = model.begin(frames[:, None].to(device))
        for step in range(0, actions.shape[1], chunk):
            block = actions[:, step : step + chunk].to(device)
            keys = rows + seed, np.zeros_like(rows), np.full_like(rows, step)
            noise = row_noise(*keys, model.noise_shape(block.shape[1]), device)
            memory, latents = model.imagine(memory, block, noise)
            imagined.append(latents)
    return torch.cat(imagined, dim=1)


@torch.inference_mode()
def replay(model: WorldModel, frames: Tensor, actions: Tensor, **options: Any) -> Tensor:
    """The pictures of `replay_latents`, (n, t, H, W, 3) uint8 on the CPU."""
    latents = replay_latents(model, frames, actions, **options)
    with torch.autocast(latents.device.type, torch.bfloat16):
        return torch.cat([model.decode(part).cpu() for part in latents.split(8, dim=1)], dim=1)


def long_enough(episodes: Sequence[Episode], steps: int = max(STEPS)) -> list[Episode]:
    """Return the episodes that `replay_report` can compare; raises ValueError for less than 2."""
    long = [e for e in episodes if len(e) >= steps]
    if len(long) < 2:
        raise ValueError(
            f"A replay needs 2 episodes of at least {steps} steps, got {len(long)} of "
            f"{len(episodes)}; pass more episodes or fewer steps."
        )
    return long


def psnr(pictures: Tensor, reference: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each picture, uint8 (..., H, W, 3) to (...) float32 dB."""
    error = pictures.float() - reference.float()
    return 20 * np.log10(255) - 10 * torch.log10(error.square().mean(dim=(-3, -2, -1)).clamp(1e-2))


def replay_report(
    model: WorldModel, episodes: Sequence[Episode], steps: Sequence[int] = STEPS
) -> dict[str, float]:
    """Replay held-out episodes and compare picture by picture; returns dB, means over episodes.

    Keys: `psnr/<step>`; `psnr_first/<step>` of the first frame held still; `psnr_other/<step>`
    under the actions of another episode, which has to be far lower in a model that obeys them.
    """
    longest = max(steps)
    long = long_enough(episodes, longest)
    frames = torch.from_numpy(np.stack([e.frames[: longest + 1] for e in long]))
    actions = torch.from_numpy(np.stack([e.actions[:longest] for e in long]))
    first, rest = frames[:, 0], frames[:, 1:]
    shown = {
        "psnr": replay(model, first, actions),
        "psnr_other": replay(model, first, actions.roll(1, dims=0)),
        "psnr_first": first[:, None].expand_as(rest),
    }
    report = {}
    for name, pictures in shown.items():
        by_step = psnr(pictures, rest).mean(dim=0)
        report |= {f"{name}/{step}": round(float(by_step[step - 1]), 2) for step in steps}
    return report
