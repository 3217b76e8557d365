"""How measurements move, by themselves: the robot's under its actions, an object's in its hand.

Whether fingers hold or miss is decided by millimetres within a step or two. Two things let a small
network learn that from a few hundred grasps: sines and cosines of places, with which it can draw
sharp lines (Tancik et al. 2020, arXiv 2006.10739), and a loss on what it makes of many steps by
itself, where a wrong decision is wrong for the rest of the clip.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import trange

SCALES = (2.0, 4.0, 8.0, 16.0)  # frequencies, radians per standard deviation


@dataclass(frozen=True, slots=True)
class MotionTrainingConfig:
    """How the motion of measurements is learnt."""

    steps: int = 3500
    unroll: int = 12
    """Control steps of a clip that are played by the network alone."""
    batch_size: int = 85
    """Clips a step."""
    learning_rate: float = 2e-3
    """AdamW's at its peak, after a twentieth of the steps; down to nothing along a cosine."""
    weight_decay: float = 1e-2
    grad_clip: float = 1.0
    noise: float = 0.01
    """On the measurements that a clip begins with, in their standard deviations."""


class Motion(nn.Module):
    """One control step of standardised measurements, from themselves and the action."""

    def __init__(
        self, body: int, places: tuple[int, ...], action_dim: int, width: int = 256
    ) -> None:
        """Build for measurements of length `body`, of which those at `places` are places."""
        super().__init__()
        entered = body + 2 * len(SCALES) * len(places) + action_dim
        self.layers = nn.Sequential(
            nn.Linear(entered, width),
            nn.SiLU(),
            nn.Linear(width, width),
            nn.SiLU(),
            nn.Linear(width, width),
            nn.SiLU(),
            nn.Linear(width, body),
        )
        nn.init.zeros_(self.layers[-1].weight)
        nn.init.zeros_(self.layers[-1].bias)
        self.register_buffer("places", torch.tensor(places, dtype=torch.long), persistent=False)
        self.register_buffer("scales", torch.tensor(SCALES), persistent=False)
        self.register_buffer("change", torch.ones(body))  # how much each usually changes in a step

    def forward(self, body: Tensor, action: Tensor) -> Tensor:
        """How far bodies (n, p) move under actions (n, a), in units of `change`; float32 (n, p)."""
        kind = body.device.type
        exact = nullcontext()  # the `meta` device knows no autocast
        if torch.amp.is_autocast_available(kind):
            exact = torch.autocast(kind, enabled=False)  # millimetres do not survive bfloat16
        with exact:
            body, action = body.float(), action.float()
            waves = (body[:, None, self.places] * self.scales[:, None]).flatten(1)
            return self.layers(torch.cat([body, waves.sin(), waves.cos(), action], dim=1))


def fit_motion(
    motion: Motion,
    bodies: Sequence[Tensor],
    actions: Sequence[np.ndarray],
    config: MotionTrainingConfig,
    seed: int,
) -> float:
    """Train `motion` in place on episodes: standardised measurements (t + 1, p), actions (t, a).

    It is frozen afterwards. Returns the mean absolute error over the last tenth of the steps, in
    units of `change`.
    """
    motion.requires_grad_(True)
    device, unroll = motion.change.device, config.unroll
    long = [i for i, taken in enumerate(actions) if len(taken) >= unroll]
    if not long:
        raise ValueError(
            f"Motion is learnt from clips of {unroll} steps; none of {len(actions)} episodes is as "
            "long. Pass longer episodes, or a smaller `motion.unroll`."
        )
    told = torch.cat([bodies[i] for i in long]).to(device)
    taken = torch.cat([torch.from_numpy(actions[i]) for i in long]).to(device)
    lengths = torch.tensor([len(actions[i]) for i in long])
    episode = torch.repeat_interleave(torch.arange(len(long)), lengths - unroll + 1)
    first = torch.cat([torch.arange(int(t) - unroll + 1) for t in lengths])
    act = (lengths.cumsum(0) - lengths)[episode] + first  # row of a clip's first action
    at = act + episode  # and of its first measurement: episodes have one more
    optimizer = torch.optim.AdamW(
        motion.parameters(), config.learning_rate, weight_decay=config.weight_decay
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, config.learning_rate, config.steps, pct_start=0.051
    )
    generator = torch.Generator().manual_seed(seed)
    losses = []
    for _ in (bar := trange(config.steps, desc="motion")):
        clip = torch.randint(len(at), (config.batch_size,), generator=generator)
        begun = told[at[clip]]
        body = begun + config.noise * torch.randn(begun.shape, generator=generator).to(device)
        loss = torch.zeros((), device=device)
        for t in range(unroll):
            body = body + motion.change * motion(body, taken[act[clip] + t])
            away = (body - told[at[clip] + t + 1]) / motion.change
            loss = loss + away.abs().mean() / unroll
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(motion.parameters(), config.grad_clip)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        bar.set_postfix(loss=f"{losses[-1]:.3f}", refresh=False)
    motion.requires_grad_(False)
    return float(np.mean(losses[-max(1, config.steps // 10) :]))
