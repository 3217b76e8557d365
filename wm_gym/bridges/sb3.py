"""Stable-Baselines3 over either world: n rows behind SB3's `VecEnv`.

env = SB3VecEnv(gym.make_vec("wm_gym/Lift-v0", num_envs=16, autoreset_mode="SameStep"))
PPO("MultiInputPolicy", env).learn(100_000)
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.spaces import Box
from gymnasium.vector import AutoresetMode, VectorEnv

from wm_gym.checks import to_numpy

try:
    from stable_baselines3.common.monitor import Monitor
    from stable_baselines3.common.vec_env.base_vec_env import VecEnv, VecEnvIndices
except ImportError as error:
    raise ImportError(
        f"wm_gym.bridges.sb3 needs Stable-Baselines3 ({error}): pip install 'wm-gym[sb3]'."
    ) from error


class SB3VecEnv(VecEnv):
    """A world's vector environment as SB3 wants it.

    Observations are the world's, {"image": uint8 (n, H, W, 3)}, always numpy: use
    `MultiInputPolicy`, or `CnnPolicy` over SB3's own `VecExtractDictObs(env, "image")`. Actions are
    float32 (n, 7); those of a world with `chunk=K` are laid flat, step after step, float32
    (n, K * 7), since SB3's policies know flat boxes alone. Rewards are float32 (n,).

    A row's info holds what the world tells of it, `is_success` (bool, so far in the episode) and
    `TimeLimit.truncated`; on the last step of an episode also `terminal_observation` and SB3's
    `episode` {"r": return, "l": steps of this environment, "t": seconds}, so that `Monitor` and
    `VecMonitor` are not needed and `env_is_wrapped(Monitor)` is True. Options given to
    `set_options` are those of one environment, as for `gym.make`: {"start": 3}.
    """

    def __init__(self, env: VectorEnv) -> None:
        """Take a world made with `autoreset_mode="SameStep"`; ValueError for another mode."""
        mode = env.metadata.get("autoreset_mode")
        if mode is not AutoresetMode.SAME_STEP:
            raise ValueError(
                "SB3 expects finished environments to restart within the step; make the world with "
                f"autoreset_mode='SameStep', got {mode}."
            )
        self.env = env
        single = env.single_action_space
        actions = Box(single.low.ravel(), single.high.ravel(), dtype=single.dtype.type)
        super().__init__(env.num_envs, env.single_observation_space, actions)
        self._began = time.time()
        self._returns = np.zeros(self.num_envs)
        self._lengths = np.zeros(self.num_envs, np.int64)

    def reset(self) -> dict[str, np.ndarray]:
        """Begin an episode in every row, with the seeds and options that were set since the last.

        Raises ValueError where some rows were given an option that others were not.
        """
        keys = {key for options in self._options for key in options}
        if any(options.keys() != keys for options in self._options):
            raise ValueError(f"Give every environment the same options, got {self._options}.")
        options = {key: np.stack([row[key] for row in self._options]) for key in keys}
        obs, info = self.env.reset(seed=self._seeds, options=options)
        self._reset_seeds()
        self._reset_options()
        self._returns[:], self._lengths[:] = 0, 0
        self.reset_infos = self._split(info)
        return _numpy(obs)

    def step_async(self, actions: np.ndarray) -> None:
        """Keep the actions, (n, 7) or (n, K * 7), for `step_wait`; ValueError for other shapes."""
        if np.shape(actions) != (self.num_envs, *self.action_space.shape):
            raise ValueError(
                f"Actions must have shape {(self.num_envs, *self.action_space.shape)} (chunks laid "
                f"flat), got {np.shape(actions)}."
            )
        self._actions = np.reshape(actions, self.env.action_space.shape)

    def step_wait(
        self,
    ) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray, list[dict[str, Any]]]:
        """Play them; `dones` bool (n,) say where an episode ended and the next has begun."""
        obs, *told, info = self.env.step(self._actions)
        reward, terminated, truncated = map(to_numpy, told)
        done = terminated | truncated
        self._returns += reward
        self._lengths += 1
        infos = self._split(info)
        if done.any():
            final_infos, final_obs = self._split(info["final_info"]), _numpy(info["final_obs"])
        for row in np.flatnonzero(done):
            self.reset_infos[row], infos[row] = infos[row], final_infos[row]
            infos[row]["terminal_observation"] = {k: v[row] for k, v in final_obs.items()}
            infos[row]["episode"] = {
                "r": float(self._returns[row]),
                "l": int(self._lengths[row]),
                "t": round(time.time() - self._began, 6),
            }
        for row, told in enumerate(infos):
            told["is_success"] = told["success"]
            told["TimeLimit.truncated"] = bool(truncated[row] and not terminated[row])
        self._returns[done], self._lengths[done] = 0, 0
        return _numpy(obs), reward.astype(np.float32), done, infos

    def close(self) -> None:
        """Close the world."""
        self.env.close()

    def get_images(self) -> Sequence[np.ndarray | None]:
        """One picture a row, uint8 (H, W, 3); needs `render_mode="rgb_array"` at construction."""
        return self.env.render() or [None] * self.num_envs

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """Return an attribute of the world once for each of `indices`.

        An array or list with one entry a row (`seeds`, `instructions`) gives each row its own.
        """
        return self._of_rows(getattr(self.env.unwrapped, attr_name), indices)

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Give the rows `indices` a value of their own where `get_attr` does, or set it for all.

        Raises ValueError where all rows share the attribute and `indices` leaves some out.
        """
        world, rows = self.env.unwrapped, list(self._get_indices(indices))
        current = getattr(world, attr_name, None)
        if self._is_by_row(current):
            for row in rows:
                current[row] = value
        elif set(rows) == set(range(self.num_envs)):
            setattr(world, attr_name, value)
        else:
            raise ValueError(f"All rows share {attr_name!r}: set it without indices, got {rows}.")

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **kwargs: Any
    ) -> list[Any]:
        """Call a method of the world, once for all rows; its result as `get_attr` gives it."""
        if method_name in ("reset", "step"):
            raise ValueError(f"Call {method_name}() itself: it plays all rows and counts episodes.")
        method = getattr(self.env.unwrapped, method_name)
        return self._of_rows(method(*method_args, **kwargs), indices)

    def env_is_wrapped(
        self, wrapper_class: type[gym.Wrapper], indices: VecEnvIndices = None
    ) -> list[bool]:
        """True for `Monitor` alone, whose `episode` is in the infos; nothing wraps single rows."""
        return [wrapper_class is Monitor for _ in self._get_indices(indices)]

    def _split(self, info: dict[str, Any]) -> list[dict[str, Any]]:
        """Turn arrays with one entry a row into one dictionary a row, scalars as Python's."""
        kinds = (np.ndarray, torch.Tensor)  # not the dictionaries final_obs and final_info
        told = {k: to_numpy(v) for k, v in info.items() if isinstance(v, kinds) and k[0] != "_"}
        columns = {key: v.tolist() if v.ndim == 1 else v for key, v in told.items()}
        return [{key: v[row] for key, v in columns.items()} for row in range(self.num_envs)]

    def _is_by_row(self, value: Any) -> bool:
        if not isinstance(value, (list, tuple, np.ndarray, torch.Tensor)):
            return False
        if isinstance(value, tuple) and not all(isinstance(part, np.ndarray) for part in value):
            return False  # what `set_state` returns, or the fields of a state; pictures are by row
        return getattr(value, "ndim", 1) > 0 and len(value) == self.num_envs

    def _of_rows(self, value: Any, indices: VecEnvIndices) -> list[Any]:
        by_row = self._is_by_row(value)
        return [value[row] if by_row else value for row in self._get_indices(indices)]


def _numpy(arrays: dict[str, Any]) -> dict[str, np.ndarray]:
    return {key: to_numpy(value) for key, value in arrays.items()}
