"""One environment alone: a plain `gymnasium.Env` over a world with a single row."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np

from wm_gym.checks import check_options, to_numpy
from wm_gym.registration import make_world
from wm_gym.state import WorldState


class SingleEnv(gym.Env):
    """The world of `gym.make`: the vector contract with Python scalars and without the row axis.

    Takes the vector environment's keywords but `num_envs` and `autoreset_mode`. Reset options:
    `start` (int), or `frames` uint8 (T, H, W, 3) with `actions` float32 (T - 1, 7).
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 20}

    def __init__(self, task: str, backend: str = "imagined", **kwargs: Any) -> None:
        """Build the world of one row; `kwargs` are its vector environment's."""
        if decided := {"num_envs", "autoreset_mode"} & kwargs.keys():
            raise TypeError(
                f"{', '.join(sorted(decided))}: gym.make builds one environment that is reset by "
                "hand; gym.make_vec builds many."
            )
        self.world = make_world(
            task, num_envs=1, backend=backend, autoreset_mode="Disabled", **kwargs
        )
        self.observation_space = self.world.single_observation_space
        self.action_space = self.world.single_action_space
        self.render_mode = self.world.render_mode
        self.instruction = self.world.instructions[0]

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Begin a new episode; `seed` is the row seed of the vector environment."""
        super().reset(seed=seed)
        given = {key: to_numpy(value) for key, value in check_options(options).items()}
        if "start" in given and given["start"].ndim:
            raise ValueError(f"The start of one episode is one integer, got {options['start']!r}.")
        options = {key: value[None] for key, value in given.items()}
        obs, info = self.world.reset(seed=seed, options=options)
        return _first(obs), _first(info)

    def step(self, action: Any) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """Play one action (7,), or one chunk (K, 7)."""
        action = to_numpy(action)
        if action.shape != self.action_space.shape:
            raise ValueError(
                f"Actions must have shape {self.action_space.shape}, got {action.shape}; `chunk` "
                "says how many are played a step."
            )
        obs, reward, terminated, truncated, info = self.world.step(action[None])
        flags = bool(terminated[0]), bool(truncated[0])
        return _first(obs), float(reward[0]), *flags, _first(info)

    def get_state(self) -> WorldState:
        """Save the episode as a state of one row; see WorldVectorEnv.get_state."""
        return self.world.get_state()

    def set_state(self, state: WorldState) -> tuple[dict[str, Any], dict[str, Any]]:
        """Go on where a state of one row was saved; returns what `reset` does."""
        obs, info = self.world.set_state(state)
        return _first(obs), _first(info)

    def fork(self, n: int) -> WorldState:
        """Return a state of n copies of the episode, for a vector environment to play on."""
        return self.world.fork(0, n)

    def render(self) -> np.ndarray | None:
        """Return the picture that the observation shows, uint8 (H, W, 3)."""
        pictures = self.world.render()
        return None if pictures is None else pictures[0]

    def close(self) -> None:
        """Close the world behind."""
        self.world.close()


def _first(batch: dict[str, Any]) -> dict[str, Any]:
    rows = {key: value[0] for key, value in batch.items()}
    return {key: value.item() if value.ndim == 0 else value for key, value in rows.items()}
