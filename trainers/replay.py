"""Play episodes of an imagined world, and repeat them in the simulator, step by step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from tqdm import tqdm

from wm_gym.data.collection import joined
from wm_gym.data.episode import Episode
from wm_gym.success.calibration import first_success
from wm_gym.success.classifier import SuccessClassifier
from wm_gym.world_model.model import WorldModel

ROWS = 64  # episodes side by side; their pictures are kept until they are judged
DTYPE = "bfloat16"  # of the imagined world, as policies practise in it


class Episodes(NamedTuple):
    """What n rows of a world played, in d decisions of k actions, t control steps in all."""

    actions: np.ndarray  # (d, rows of the world, k, 7) float32
    frames: np.ndarray  # (n, 1 + t, H, W, 3) uint8
    success: np.ndarray  # (n, t) bool: the world's verdict on each step
    probability: np.ndarray  # (n,) float32: the largest reported after a decision
    measured: list[dict[str, np.ndarray]]
    """What the simulator says of each, as `Episode.low_dim`; an imagined world says nothing."""


def begin(env: gym.vector.VectorEnv, starts: np.ndarray, seed: int) -> dict[str, Any]:
    """Begin an episode from each of `starts` (n,), and return what is seen; rows left over stay.

    The noise of an episode depends on `seed` and its start alone.
    """
    begun = np.resize(starts, env.num_envs)
    options = {"start": begun, "reset_mask": np.arange(len(begun)) < len(starts)}
    return env.reset(seed=(seed + begun).tolist(), options=options)[0]


def play(
    env: gym.vector.VectorEnv,
    starts: np.ndarray,
    seed: int,
    decide: Callable[[int, dict[str, Any]], np.ndarray],
    bar: tqdm,
) -> Episodes:
    """Play an episode from each of `starts` (n,) to the horizon, as it will `begin`.

    `decide(d, obs)` gives the actions (rows, k, 7) of decision d.
    """
    world, obs = env.unwrapped, begin(env, starts, seed)
    actions, frames, success, probability = [], [obs["image"][:, None]], [], []
    notes = []
    for decision in range(-(-world.horizon // world.chunk)):
        actions.append(decide(decision, obs))
        obs, *_, info = env.step(actions[-1])
        frames.append(info["frames"])
        success.append(info["frames_success"])
        probability.append(info["success_probability"])
        notes.append(getattr(world, "playbacks", None))
        bar.update()
    n, t = len(starts), world.horizon
    return Episodes(
        np.stack(actions),
        np.concatenate(frames, axis=1)[:n, : t + 1],
        np.concatenate(success, axis=1)[:n, :t],
        np.max(probability, axis=0)[:n],
        [joined([note[row] for note in notes])[1] for row in range(n)] if all(notes) else [],
    )


@torch.inference_mode()
def judge(model: WorldModel, classifier: SuccessClassifier, videos: np.ndarray) -> list[int | None]:
    """When the classifier calls videos, uint8 (n, 1 + t, H, W, 3), a success, in control steps.

    By the imagined world's own rule and precision; None where it never does.
    """
    found = []
    for video in torch.from_numpy(videos):  # one at a time: latents of all would be large
        with torch.autocast(model.device.type, getattr(torch, DTYPE)):
            probability = classifier.watch(model.encode(video[None]))[0]  # (1 + t,)
        after = probability[1:].float().cpu().numpy()  # the first picture is no step's
        rule = classifier.threshold, classifier.hold_k, classifier.hold_n
        step = first_success(after, *rule)
        found.append(None if step is None else step + 1)
    return found


def first_step(success: np.ndarray) -> int | None:
    """The first control step, from 1, of success, bool (t,); None where there is none."""
    return int(success.argmax()) + 1 if success.any() else None


def recorded(actions: np.ndarray, real: Episodes) -> list[Episode]:
    """What was played in the simulator, under actions (d, rows, k, 7), as recorded episodes."""
    n, t = real.success.shape
    flat = actions.swapaxes(0, 1).reshape(actions.shape[1], -1, 7)[:n, :t].astype(np.float32)
    parts = zip(real.frames, flat, real.success, real.measured, strict=True)
    return [Episode(*part, low_dim=low_dim) for *part, low_dim in parts]
