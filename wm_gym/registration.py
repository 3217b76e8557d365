"""Gymnasium ids: "wm_gym/<Task>-v0", imagined by default, `backend="real"` for the simulator."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import gymnasium as gym

from wm_gym.tasks import TASKS

if TYPE_CHECKING:
    from wm_gym.contract import WorldVectorEnv


def register_envs() -> None:
    """Register every task with Gymnasium; `import wm_gym` does it."""
    for name in TASKS:
        gym.register(
            id=f"wm_gym/{name}-v0",
            entry_point="wm_gym.single:SingleEnv",
            vector_entry_point="wm_gym.registration:make_world",
            kwargs={"task": name},
        )


def make_world(
    task: str, num_envs: int = 1, backend: str = "imagined", **kwargs: Any
) -> WorldVectorEnv:
    """Build a task's vector environment; this is what `gym.make_vec` calls.

    backend: "imagined" (ImaginedVectorEnv) or "real" (RealVectorEnv, needs the extra `real`), and
    `kwargs` are that class's keywords. Raises ValueError for another backend.
    """
    if "max_episode_steps" in kwargs:
        raise TypeError("Episodes of a vector last `horizon` control steps; pass horizon=... .")
    if backend == "imagined":
        from wm_gym.imagined import ImaginedVectorEnv

        return ImaginedVectorEnv(task, num_envs, **kwargs)
    if backend == "real":
        from wm_gym.real.vector import RealVectorEnv

        return RealVectorEnv(task, num_envs, **kwargs)
    raise ValueError(f"backend must be 'imagined' or 'real', got {backend!r}.")
