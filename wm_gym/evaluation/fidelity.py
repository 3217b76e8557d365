"""Does the imagination follow the recording when it is given the same actions?"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from wm_gym.data.episode import Episode
from wm_gym.data.measurements import measured
from wm_gym.evaluation.probe import KEYS, PositionProbe, distances, positions
from wm_gym.noise import row_noise
from wm_gym.world_model.model import WorldModel, pixels

STEPS = (1, 8, 16, 32, 48)  # where a replay is judged
GAINS = {
    "controllability": "psnr_other",
    "skill_persistence": "psnr_persistence",
    "skill_previous": "psnr_previous",
}
"""Differences in dB, and what the replay's own PSNR is compared with for each."""


@torch.inference_mode()
def replay_latents(
    model: WorldModel,
    frames: Tensor,
    actions: Tensor,
    *,
    robot: Tensor | None = None,
    chunk: int | None = None,
    seed: int = 0,
) -> Tensor:
    """Imagine on from the first pictures under recorded actions, `chunk` steps a call (or most).

    frames: (n, H, W, 3) uint8, where the episodes begin; actions: (n, t, 7) float32; robot: what
    `known` says of these episodes. Returns latents (n, t, ...) on the model's device.
    """
    device, chunk = model.device, chunk or model.config.max_chunk
    rows = np.arange(len(frames))
    imagined = []
    with torch.autocast(torch.device(device).type, torch.bfloat16):
        memory = model.begin(frames[:, None].to(device), robot)
        for step in range(0, actions.shape[1], chunk):
            block = actions[:, step : step + chunk].to(device)
            keys = rows + seed, np.zeros_like(rows), np.full_like(rows, step)
            noise = row_noise(*keys, model.noise_shape(block.shape[1]), device)
            memory, latents, _ = model.imagine(memory, block, noise)
            imagined.append(latents)
    return torch.cat(imagined, dim=1)


def known(model: WorldModel, episodes: Sequence[Episode]) -> Tensor | None:
    """What robots measured of themselves where episodes begin, float32 (n, q), as `begin` takes it.

    None where the model does not ask for it.
    """
    names = getattr(model.config, "robot", ())
    if not names:
        return None
    return torch.from_numpy(np.stack([measured(e, names)[0] for e in episodes])).to(model.device)


@torch.inference_mode()
def recorded_latents(model: WorldModel, episodes: Iterable[Episode]) -> list[Tensor]:
    """Latents (t + 1, f) float16 on the CPU of the pictures of every episode."""
    found = []
    with torch.autocast(model.device.type, torch.bfloat16):
        for episode in episodes:
            frames = torch.from_numpy(episode.frames)[None]
            found.append(model.encode(frames)[0].half().cpu())
    return found


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


def steps_to_judge(episodes: Sequence[Episode]) -> tuple[int, ...]:
    """Those of `STEPS` that 2 held-out episodes have at least; ValueError where it is none."""
    if len(episodes) < 2:
        raise ValueError(
            f"Held-out episodes are compared with one another, which takes 2; got {len(episodes)}. "
            "Pass more episodes, at least 3 of one source, or hold out a larger share (held_out)."
        )
    long_enough(episodes, min(STEPS))
    return tuple(step for step in STEPS if sum(len(e) >= step for e in episodes) >= 2)


def psnr(pictures: Tensor, reference: Tensor, region: Tensor | None = None) -> Tensor:
    """Peak signal-to-noise ratio of each picture, uint8 (..., H, W, 3) to (...) float32 dB.

    Only the pixels of `region`, bool (..., H, W), count where it is given; NaN where it has none.
    """
    error = (pictures.float() - reference.float()).square()
    mean = error.mean((-3, -2, -1)) if region is None else region_mean(error.mean(-1), region)
    return 20 * np.log10(255) - 10 * torch.log10(mean.clamp(1e-2))


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
    first, rest, robot = frames[:, 0], frames[:, 1:], known(model, long)
    shown = {
        "psnr": replay(model, first, actions, robot=robot),
        "psnr_other": replay(model, first, actions.roll(1, dims=0), robot=robot),
        "psnr_first": first[:, None].expand_as(rest),
    }
    report = {}
    for name, pictures in shown.items():
        by_step = psnr(pictures, rest).mean(dim=0)
        report |= {f"{name}/{step}": round(float(by_step[step - 1]), 2) for step in steps}
    return report


class Replays(NamedTuple):
    """Episodes beside what was imagined of them; uint8 pictures on the CPU."""

    real: Tensor  # (n, 1 + t, H, W, 3): the first picture, and those after each action
    imagined: Tensor  # (n, t, H, W, 3): from the first picture, under the same actions
    other: Tensor  # (n, t, H, W, 3): under the actions of the episode before it in the list


def replay_episodes(
    model: WorldModel, episodes: Sequence[Episode], steps: int, batch_size: int = 32
) -> Replays:
    """Replay the first `steps` steps of episodes, none of which may be shorter."""
    real = torch.from_numpy(np.stack([e.frames[: steps + 1] for e in episodes]))
    actions = torch.from_numpy(np.stack([e.actions[:steps] for e in episodes]))
    imagined, other = [], []
    for i in tqdm(range(0, len(real), batch_size), desc="replays"):
        part = slice(i, i + batch_size)
        robot = known(model, episodes[part])
        for shown, played in ((imagined, actions), (other, actions.roll(1, dims=0))):
            shown.append(replay(model, real[part, 0], played[part], robot=robot, seed=i))
    return Replays(real, torch.cat(imagined), torch.cat(other))


def measure(replays: Replays) -> dict[str, Tensor]:
    """Judge every imagined picture: "<region>/<figure>" to (n, t) float32.

    Regions: `whole` and `moving`. Figures: `psnr`, of the replay; `psnr_other`, under another
    episode's actions; `psnr_persistence` of the first picture held; `psnr_previous` of the real
    picture one step before; the differences `GAINS`; `ssim`; `sharpness`, the gradient energy
    relative to the real picture's; and `moving/share` of the pixels. NaN where there is nothing to
    judge: no pixel moves, or the real picture is flat.
    """
    found = [_measure_step(replays, step) for step in range(replays.imagined.shape[1])]
    return {name: torch.stack([step[name] for step in found], dim=1) for name in found[0]}


def _measure_step(replays: Replays, step: int) -> dict[str, Tensor]:
    first, previous, real = replays.real[:, [0, step, step + 1]].unbind(1)
    imagined = replays.imagined[:, step]
    shown = {
        "psnr": imagined,
        "psnr_other": replays.other[:, step],
        "psnr_persistence": first,
        "psnr_previous": previous,
    }
    regions = {"moving": moving(real, first)}
    regions["whole"] = torch.ones_like(regions["moving"])
    similar, edges, true_edges = ssim_map(imagined, real), edge_map(imagined), edge_map(real)
    found = {"moving/share": regions["moving"].float().mean((-2, -1))}
    for name, region in regions.items():
        figures = {key: psnr(pictures, real, region) for key, pictures in shown.items()}
        figures |= {gain: figures["psnr"] - figures[than] for gain, than in GAINS.items()}
        figures["ssim"] = region_mean(similar, region)
        true = region_mean(true_edges, region)
        figures["sharpness"] = region_mean(edges, region) / true.where(true > 0, torch.nan)
        found |= {f"{name}/{key}": values for key, values in figures.items()}
    return found


def moving(pictures: Tensor, first: Tensor) -> Tensor:
    """Where pictures uint8 (n, H, W, 3) differ from the first ones; bool (n, H, W).

    As in the world model's loss, see `changed`.
    """
    return changed(pixels(pictures), pixels(first))


def changed(pictures: Tensor, first: Tensor) -> Tensor:
    """Where pictures (n, 3, H, W) in [-1, 1] differ from the first ones; bool (n, H, W).

    A value of the pixel, or of one within 2 pixels of it, differs by more than 0.15.
    """
    difference = (pictures - first).abs().amax(1, keepdim=True)
    return F.max_pool2d(difference, 5, stride=1, padding=2)[:, 0] > 0.15


def edge_map(pictures: Tensor) -> Tensor:
    """Gradient energy of pictures uint8 (n, H, W, 3), float32 (n, H, W).

    Squared differences to the next pixel to the right and below, 0 past the edge; mean of colours.
    """
    values = pictures.float()
    right = F.pad(values.diff(dim=2), (0, 0, 0, 1)).square()
    below = F.pad(values.diff(dim=1), (0, 0, 0, 0, 0, 1)).square()
    return (right + below).mean(-1)


def ssim_map(pictures: Tensor, reference: Tensor) -> Tensor:
    """Structural similarity around every pixel, uint8 (n, H, W, 3) to float32 (n, H, W).

    Wang et al. 2004, with its Gaussian windows of 11 pixels; mean of colours.
    """
    # Here, because it takes seconds to import, and training imports this file.
    from torchmetrics.functional.image import structural_similarity_index_measure

    values, wanted = (x.movedim(-1, 1).float() for x in (pictures, reference))
    similarity = structural_similarity_index_measure(
        values, wanted, data_range=255.0, reduction="none", return_full_image=True
    )[1]
    return similarity.mean(1)


def region_mean(values: Tensor, region: Tensor) -> Tensor:
    """Mean over the pixels of a region, both (..., H, W) to (...); NaN where it has none."""
    return values.where(region, 0).sum((-2, -1)) / region.sum((-2, -1))


def state_drift(
    replays: Replays, episodes: Sequence[Episode], probe: PositionProbe
) -> dict[str, Tensor]:
    """How far from the truth what pictures show is: "<thing>/<pictures>" to (m, t) float32 mm.

    Things: `gripper` and `object`; pictures: `imagined` and `real`, which is the probe's own error.
    `episodes` are those that were replayed; the m of them whose positions were recorded count.
    """
    known = [i for i, e in enumerate(episodes) if positions(e.low_dim) is not None]
    steps = replays.imagined.shape[1]
    truth = torch.from_numpy(
        np.stack([positions(episodes[i].low_dim)[1 : steps + 1] for i in known])
    )
    found = {}
    for name, pictures in (("imagined", replays.imagined), ("real", replays.real[:, 1:])):
        away = distances(probe, pictures[known], truth)
        found |= {f"{thing}/{name}": away[..., i] for i, thing in enumerate(KEYS)}
    return found


def spread(values: Tensor) -> dict[str, list[float | None]]:
    """Mean and quantiles over episodes by step, (n, t) to lists of t; `n` counts those without NaN.

    A step at which all are NaN has None.
    """
    rows = {"mean": values.nanmean(0)}
    rows |= {f"q{percent}": values.nanquantile(percent / 100, dim=0) for percent in (10, 50, 90)}
    return {
        "n": (~values.isnan()).sum(0).tolist(),
        **{name: [rounded(value) for value in row.tolist()] for name, row in rows.items()},
    }


def rounded(value: float) -> float | None:
    """Four places behind the point; None for NaN, which JSON does not know."""
    return None if math.isnan(value) else round(value, 4)
