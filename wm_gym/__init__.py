"""wm-gym: a learned simulator that is a genuine Gymnasium vector environment.

Importing it registers "wm_gym/<Task>-v0"; torch and robosuite are imported when first needed.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from wm_gym.registration import register_envs
from wm_gym.starts import StartPool, load_starts, save_starts
from wm_gym.tasks import TASKS, Task, get_task

_LAZY = {
    "WorldVectorEnv": "wm_gym.contract",
    "ImaginedVectorEnv": "wm_gym.imagined",
    "RealVectorEnv": "wm_gym.real.vector",
    "SingleEnv": "wm_gym.single",
    "WorldModel": "wm_gym.world_model.model",
    "VideoTransformer": "wm_gym.world_model.transformer",
    "load_world_model": "wm_gym.world_model.loading",
    "SuccessClassifier": "wm_gym.success.classifier",
    "EpisodeFile": "wm_gym.data.reading",
    "EpisodeWriter": "wm_gym.data.writing",
}

__all__ = [
    "TASKS",
    "EpisodeFile",
    "EpisodeWriter",
    "ImaginedVectorEnv",
    "RealVectorEnv",
    "SingleEnv",
    "StartPool",
    "SuccessClassifier",
    "Task",
    "VideoTransformer",
    "WorldModel",
    "WorldVectorEnv",
    "get_task",
    "load_starts",
    "load_world_model",
    "register_envs",
    "save_starts",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'wm_gym' has no attribute {name!r}")
    return getattr(import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


register_envs()
