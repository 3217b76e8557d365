"""What the real and the imagined world share: spaces, episode clock, autoreset, info, checks."""

from __future__ import annotations

import math
from functools import cached_property
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.error import ClosedEnvironmentError, ResetNeeded
from gymnasium.spaces import Box, Dict
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from wm_gym.checks import (
    check_actions,
    check_choice,
    check_count,
    check_frames,
    check_mask,
    check_options,
    check_rows,
    check_seeds,
    check_starts,
    parse_autoreset_mode,
    to_numpy,
)
from wm_gym.noise import row_choice
from wm_gym.starts import StartPool, starts_for
from wm_gym.state import Played, WorldState, check_state
from wm_gym.tasks import get_task

MAX_CHUNK = 8


class WorldVectorEnv(VectorEnv):
    """A batch of episodes of one task; a subclass says how rows begin and how actions are played.

    Observation: {"image": uint8 (n, H, W, 3)}. Action: float32 (n, 7) in [-1, 1], or (n, K, 7) with
    `chunk=K`: K actions are played, fewer where the episode ends. Reward: 1.0 at the first success
    of an episode, else 0. `terminated`: that success, never with `ignore_terminations`.
    `truncated`: `horizon` control steps without it, or more than `max_uncertainty`. Every array
    returned is fresh; with `output="torch"` all of them are tensors on the world's device.

    info, one row an environment: `success` (bool, so far in the episode), `success_probability`
    (float32, at the last step played), `uncertainty` (float32, of the world, so far),
    `elapsed_steps`, `start` (int64, -1 for a picture), `active` (False where the step played
    nothing for the row: frozen or being reset), `clipped` (int64, played action values that were
    outside the box), `played` (int64, control steps), and with `return_frames` `frames`
    (n, K, H, W, 3) uint8, `frames_mask` (n, K) bool, True where a frame was really played, and
    `frames_success` (n, K) bool, the success predicate at each of these, False where not played.
    Under SameStep a row that ended tells of its next episode already, of which nothing is played;
    what the step played is in `final_info`.

    `reset(seed=s)` seeds row i with s + i, a list seeds row by row, None continues a row's stream.
    options: `reset_mask` bool (n,); `start` int (n,); or `frames` uint8 (n, T, H, W, 3), in
    the imagined world alone, and `actions` float32 (n, T - 1, 7) between them, which no world model
    of this package reads. All are read, never changed. A refused call raises and changes nothing.
    `get_state`, `set_state` and `fork` save, restore and branch rows.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 20}
    device: torch.device | str = "cpu"
    max_uncertainty: float = math.inf
    unanimous: bool = False

    def __init__(
        self,
        task: str,
        num_envs: int = 1,
        *,
        chunk: int | None = None,
        split: str = "train",
        horizon: int | None = None,
        autoreset_mode: str | AutoresetMode = "NextStep",
        ignore_terminations: bool = False,
        return_frames: bool = False,
        strict_actions: bool = False,
        output: str = "numpy",
        render_mode: str | None = None,
        starts: str | Path | StartPool | None = None,
    ) -> None:
        """Check every keyword, load the starts and build the spaces; nothing is played yet."""
        self.task = get_task(task)
        self.num_envs = check_count("num_envs", num_envs)
        self.chunk = 1 if chunk is None else check_count("chunk", chunk, most=MAX_CHUNK)
        self.horizon = self.task.horizon if horizon is None else check_count("horizon", horizon)
        self.autoreset_mode = parse_autoreset_mode(autoreset_mode)
        self.ignore_terminations = ignore_terminations
        self.return_frames = return_frames
        self.strict_actions = strict_actions
        self.output = check_choice("output", output, ("numpy", "torch"))
        self.render_mode = check_choice("render_mode", render_mode, (None, "rgb_array"))
        self.metadata = {**self.metadata, "autoreset_mode": self.autoreset_mode}
        self.pool = starts_for(self.task.name, split, starts)
        self.instructions = [self.task.instruction] * self.num_envs

        image = Box(0, 255, self.pool.frames.shape[1:], np.uint8)
        lead = () if chunk is None else (self.chunk,)
        self.single_observation_space = Dict({"image": image})
        self.single_action_space = Box(-1.0, 1.0, (*lead, self.task.action_dim), np.float32)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)

        n = self.num_envs
        self.seeds = np.random.default_rng().integers(2**31, size=n)
        self.episode = np.full(n, -1)  # int64, counts from 0 at every seeding
        self.elapsed = np.zeros(n, np.int64)  # control steps of the episode
        self.start = np.zeros(n, np.int64)  # index into the pool
        self._success = np.zeros(n, bool)
        self._probability, self._uncertainty = np.zeros((2, n), np.float32)
        self._over = np.ones(n, bool)  # the episode has ended and waits for its reset
        self._image: Any = None  # (n, H, W, 3) uint8, what every row shows

    # What a world implements.

    def _begin(self, rows: np.ndarray, starts: np.ndarray) -> Any:
        """Put rows (m,) at starts (m,) of the pool; return their images, uint8 (m, H, W, 3)."""
        raise NotImplementedError

    def _play(self, rows: np.ndarray, actions: np.ndarray, steps: np.ndarray) -> Played:
        """Play at most steps (m,), in 1..K, of actions, clipped float32 (m, K, 7), in each row.

        Unless `ignore_terminations`, a row stops right after its first success.
        """
        raise NotImplementedError

    def _begin_from_frames(
        self, rows: np.ndarray, frames: np.ndarray, actions: np.ndarray | None
    ) -> Any:
        """Put rows (m,) after the last of frames (m, T, H, W, 3); return images like `_begin`."""
        raise ValueError(
            f"{type(self).__name__} cannot begin from pictures: a simulator needs its state; use "
            "options={'start': indices}, or the imagined backend."
        )

    def _save(self, rows: np.ndarray) -> Any:
        """Return what the world itself knows of rows (m,), fresh: `WorldState.hidden`."""
        raise NotImplementedError

    def _load(self, rows: np.ndarray, hidden: Any) -> None:
        """Overwrite what the world knows of rows (m,) with what `_save` returned; keep no view."""
        raise NotImplementedError

    # The Gymnasium interface.

    def reset(
        self, *, seed: Any = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Begin a new episode in every row, or in the rows of `options["reset_mask"]`."""
        options = check_options(options)
        seeds = check_seeds(seed, self.num_envs)
        mask = check_mask(options.get("reset_mask"), self.num_envs)
        rows = np.flatnonzero(mask)
        starts = check_starts(options.get("start"), rows, self.num_envs, len(self.pool))
        self._check_usable(beginning=mask.all())
        shown = None
        if "frames" in options:
            shown = self._begin_past(rows, options["frames"], options.get("actions"))
        super().reset(seed=next((s for s in seeds if s is not None), None))
        for row in rows:
            if seeds[row] is not None:
                self.seeds[row], self.episode[row] = seeds[row], -1
        if shown is None:
            self._enter(rows, starts)
        else:
            self._turn(rows)
            self.start[rows] = -1
            self._show(rows, shown)
        none = np.zeros(self.num_envs, np.int64)
        return self._observe(), self._info(~self._over, none, none)

    def step(self, actions: Any) -> tuple[dict[str, Any], Any, Any, Any, dict[str, Any]]:
        """Play one action, or one chunk of K, in every row whose episode is not over."""
        self._check_usable()
        actions, outside = check_actions(actions, self.action_space.shape, self.strict_actions)
        actions = actions.reshape(self.num_envs, self.chunk, -1)
        outside = outside.reshape(actions.shape).sum(-1)  # (n, K) values clipped
        active = ~self._over
        played, first, result = self._advance(active, actions)
        terminated = first & (not self.ignore_terminations)
        out = (self.elapsed >= self.horizon) | (self._uncertainty > self.max_uncertainty)
        truncated = active & out & ~terminated
        ended = terminated | truncated
        self._over |= ended
        clipped = (outside * (np.arange(self.chunk) < played[:, None])).sum(1)  # (n,)

        if self.autoreset_mode is AutoresetMode.NEXT_STEP and not active.all():
            self._enter(np.flatnonzero(~active))
        info = self._info(active, played, clipped, result)
        if self.autoreset_mode is AutoresetMode.SAME_STEP and ended.any():
            final = {"final_obs": self._observe(), "_final_obs": self._give(ended)}
            final |= {"final_info": info, "_final_info": self._give(ended)}
            self._enter(np.flatnonzero(ended))
            played[ended], clipped[ended] = 0, 0
            info = self._info(active, played, clipped, result) | final
        reward = first.astype(np.float32 if self.output == "torch" else np.float64)
        reward, terminated, truncated = map(self._give, (reward, terminated, truncated))
        return self._observe(), reward, terminated, truncated, info

    def render(self) -> tuple[np.ndarray, ...] | None:
        """Return one uint8 (H, W, 3) picture a row, the one that its observation shows."""
        if self.render_mode is None:
            gym.logger.warn("render() needs render_mode='rgb_array' at construction.")
            return None
        self._check_usable()
        return tuple(image.copy() for image in to_numpy(self._image))

    # Saving and branching.

    @cached_property
    def made_of(self) -> dict[str, str]:
        """Fingerprints of what states refer to: with other starts they mean something else."""
        return {"starts": self.pool.fingerprint()}

    def get_state(self, rows: Any = None) -> WorldState:
        """Save rows, int (m,), by default all, in the order given; a row may be named twice.

        Together with the actions to come, a state decides all that follows: in the real world and
        with `deterministic` to the bit, otherwise as exactly as the device repeats its own sums.
        Raises ResetNeeded before the first reset, ValueError for rows that are none.
        """
        self._check_usable()
        rows = check_rows(rows, self.num_envs)
        settings = {
            "world": type(self).__name__,
            "task": self.task.name,
            "split": self.pool.split,
            "horizon": self.horizon,
            "chunk": self.chunk,
            "ignore_terminations": self.ignore_terminations,
            "max_uncertainty": self.max_uncertainty,
            "unanimous": self.unanimous,
            **self.made_of,
        }
        clock = {name: values[rows] for name, values in self._clock().items()}
        image = self._image[self._give(rows)]
        return WorldState(settings, **clock, image=image, hidden=self._save(rows))

    def set_state(
        self, state: WorldState, rows: Any = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Make row rows[i] what row i of `state` was; rows int (m,), by default all in order.

        The other rows stay as they are. Returns what `reset` does. Raises ResetNeeded before the
        first reset, and ValueError, with nothing changed, for another number of rows, a row named
        twice, a state of a world with other settings, and under SameStep for episodes that are
        over, which that mode never shows.
        """
        self._check_usable()
        rows = check_rows(rows, self.num_envs)
        if len(np.unique(rows)) != len(rows):
            raise ValueError(f"Expected every row once, got {rows.tolist()}; drop the repeats.")
        check_state(state, self.get_state(rows))
        if self.autoreset_mode is AutoresetMode.SAME_STEP and np.any(state.over):
            raise ValueError(
                f"Entries {np.flatnonzero(state.over).tolist()} of this state wait for a reset, "
                "which SameStep does at once; choose the others with state.take(...)."
            )
        self._load(rows, state.hidden)
        for name, values in self._clock().items():
            values[rows] = getattr(state, name)
        self._show(rows, state.image)
        none = np.zeros(self.num_envs, np.int64)
        return self._observe(), self._info(~self._over, none, none)

    def fork(self, row: int, n: int) -> WorldState:
        """Return a state of n copies of one row: branches for `set_state`, here or elsewhere.

        `env.set_state(env.fork(3, 2), [0, 1])` makes rows 0 and 1 what row 3 is. The same actions
        lead all copies the same way; see WorldState for copies with seeds of their own.
        """
        return self.get_state([row] * check_count("n", n))

    # Bookkeeping.

    def _clock(self) -> dict[str, np.ndarray]:
        """What the contract itself keeps of every row, by its name in WorldState."""
        return {
            "seeds": self.seeds,
            "episode": self.episode,
            "elapsed": self.elapsed,
            "start": self.start,
            "success": self._success,
            "probability": self._probability,
            "uncertainty": self._uncertainty,
            "over": self._over,
        }

    def _check_usable(self, beginning: bool = False) -> None:
        if self.closed:
            raise ClosedEnvironmentError("This environment is closed; make a new one.")
        if self._image is None and not beginning:
            raise ResetNeeded("Call reset() first, for every row (without reset_mask).")

    def _advance(
        self, active: np.ndarray, actions: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, Played | None]:
        """Play the active rows; return steps int64 (n,), first successes bool (n,) and the rest."""
        played, first = np.zeros(self.num_envs, np.int64), np.zeros(self.num_envs, bool)
        rows = np.flatnonzero(active)
        if not len(rows):
            return played, first, None
        steps = np.minimum(self.chunk, self.horizon - self.elapsed[rows])
        result = self._play(rows, actions[rows], steps)
        self._show(rows, result.image)
        played[rows] = result.played
        first[rows] = result.success.any(1) & ~self._success[rows]
        self.elapsed += played
        self._success |= first
        last = np.arange(len(rows)), result.played - 1
        self._probability[rows] = result.probability[last]
        self._uncertainty[rows] = result.uncertainty[last]
        return played, first, result

    def _enter(self, rows: np.ndarray, starts: np.ndarray | None = None) -> None:
        """Begin the next episode of rows (m,), at starts (m,) or at those that their seeds draw."""
        self._turn(rows)
        if starts is None:
            starts = row_choice(self.seeds[rows], self.episode[rows], len(self.pool))
        self.start[rows] = starts
        self._show(rows, self._begin(rows, starts))

    def _begin_past(self, rows: np.ndarray, frames: Any, actions: Any) -> Any:
        """Check given pictures, put rows (m,) after the last of them and return its image."""
        shape = self.single_observation_space["image"].shape
        frames, actions = check_frames(frames, actions, self.num_envs, shape, self.task.action_dim)
        actions = None if actions is None else actions[rows]
        return self._begin_from_frames(rows, frames[rows], actions)

    def _turn(self, rows: np.ndarray) -> None:
        self.episode[rows] += 1
        self.elapsed[rows] = 0
        self._success[rows] = False
        self._probability[rows] = self._uncertainty[rows] = 0.0
        self._over[rows] = False

    def _info(
        self,
        active: np.ndarray,
        played: np.ndarray,
        clipped: np.ndarray,
        result: Played | None = None,
    ) -> dict[str, Any]:
        """Say where every row stands; `result` is what the m active rows have just played."""
        info = {
            "success": self._success,
            "success_probability": self._probability,
            "uncertainty": self._uncertainty,
            "elapsed_steps": self.elapsed,
            "start": self.start,
            "active": active,
            "clipped": clipped,
            "played": played,
        }
        info = {key: self._give(value) for key, value in info.items()}
        if self.return_frames:
            rows = np.flatnonzero(active)
            kept = np.flatnonzero(played[rows] > 0)  # the others have begun their next episode
            shown = self._blank((self.num_envs, self.chunk, *self._image.shape[1:]))
            shown[:] = self._image[:, None]
            mask = np.arange(self.chunk) < played[:, None]
            success = np.zeros_like(mask)
            if len(kept):
                shown[self._give(rows[kept])] = self._take(result.frames)[self._give(kept)]
                success[rows[kept]] = result.success[kept]
            info |= {"frames": shown, "frames_mask": self._give(mask)}
            info["frames_success"] = self._give(success)
        return info

    def _observe(self) -> dict[str, Any]:
        return {"image": self._give(self._image)}

    def _show(self, rows: np.ndarray, image: Any) -> None:
        if self._image is None:
            with torch.inference_mode(False):  # it outlives the call, wherever that is made
                self._image = self._blank(self.observation_space["image"].shape)
        self._image[self._give(rows)] = self._take(image)

    # Arrays of the kind that `output` names: taken in without a copy, given out always fresh.

    def _take(self, value: Any) -> Any:
        if self.output == "torch":
            return torch.as_tensor(value, device=self.device)
        return to_numpy(value)

    def _give(self, value: Any) -> Any:
        value = self._take(value)
        return value.clone() if self.output == "torch" else value.copy()

    def _blank(self, shape: tuple[int, ...]) -> Any:
        return self._take(np.zeros(shape, np.uint8))
