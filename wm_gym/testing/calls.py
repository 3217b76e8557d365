"""What the suite does to a world: planned calls, calls that must be refused, and their records."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from gymnasium.vector import VectorEnv

from wm_gym.checks import to_numpy

STEPS = 8  # of a rollout; its episodes are over after three
Record = dict[str, dict[str, np.ndarray]]  # of every call, what every array was


class Plan(NamedTuple):
    """What is done to n rows: seeds at first, then masked resets and actions, step by step."""

    seeds: list[int] | None
    """n of them; None goes on where the world is."""
    masks: np.ndarray
    """(T, n) bool, rows that are reset before the step."""
    actions: np.ndarray
    """(T, n, d) or (T, n, K, d) float32."""

    @classmethod
    def draw(cls, env: VectorEnv) -> Plan:
        """Reset the last row early, so that rows do not end together, and the first one late."""
        masks = np.zeros((STEPS, env.num_envs), bool)
        masks[1, -1] = masks[5, 0] = True
        shape = (STEPS, *env.action_space.shape)
        actions = np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)
        return cls(list(range(5, 5 + env.num_envs)), masks, actions)

    def row(self, i: int) -> Plan:
        """Keep one row."""
        return Plan(self.seeds[i : i + 1], self.masks[:, i : i + 1], self.actions[:, i : i + 1])

    def after(self, t: int) -> Plan:
        """Leave out the first reset and the first t steps."""
        return Plan(None, self.masks[t:], self.actions[t:])

    def calls(self, env: VectorEnv) -> Iterator[tuple[str, np.ndarray | None, tuple]]:
        """Make the calls one by one: (name, rows that a reset was for, what was returned)."""
        if self.seeds is not None:
            yield "reset", np.ones(env.num_envs, bool), env.reset(seed=self.seeds)
        for t, (mask, actions) in enumerate(zip(self.masks, self.actions, strict=True)):
            if mask.any():
                options = {"reset_mask": mask.copy()}
                yield f"masked reset before step {t}", mask, env.reset(options=options)
            yield f"step {t}", None, env.step(actions.copy())


def record(
    env: VectorEnv, plan: Plan, meddle: Callable[[tuple], None] = lambda result: None
) -> Record:
    """Copy all that the planned calls return, and `meddle` with it before the next call."""
    told = {}
    for name, _, result in plan.calls(env):
        told[name] = flat(result)
        meddle(result)
    return told


def refuse(env: VectorEnv) -> None:
    """Make calls that must raise ValueError."""
    n, actions = env.num_envs, zeros(env)
    nan = actions.copy()
    nan.flat[-1] = np.nan
    empty, numbers = np.zeros(n, bool), np.ones(n)
    calls = {
        "actions of another shape": lambda: env.step(actions[..., :-1]),
        "actions that are NaN": lambda: env.step(nan),
        "a reset_mask without a row": lambda: env.reset(options={"reset_mask": empty}),
        "a reset_mask of numbers": lambda: env.reset(options={"reset_mask": numbers}),
        "a start outside the pool": lambda: env.reset(seed=1, options={"start": [-1] * n}),
        "an unknown option": lambda: env.reset(options={"mask": ~empty}),
        "a seed too many": lambda: env.reset(seed=[0] * (n + 1)),
    }
    for what, call in calls.items():
        must_raise(ValueError, call, what)


def must_raise(kind: type[Exception], call: Callable[[], Any], what: str) -> None:
    """Make a call that must raise an error of this kind."""
    try:
        call()
    except kind:
        return
    except Exception as error:
        raise AssertionError(f"{kind.__name__} is raised for {what}, got {error!r}.") from error
    raise AssertionError(f"{kind.__name__} is raised for {what}; nothing was raised.")


def require(condition: Any, sentence: str) -> None:
    """Raise AssertionError with `sentence` unless the condition, or all of an array, holds."""
    if not np.all(condition):
        raise AssertionError(sentence)


def zeros(env: VectorEnv) -> np.ndarray:
    """Actions that ask for nothing."""
    return np.zeros(env.action_space.shape, np.float32)


def leaves(result: tuple) -> dict[str, Any]:
    """Name what `reset` or `step` returned: obs.image, reward, info.success, and so on."""
    names = ("obs", "reward", "terminated", "truncated", "info")
    return _leaves(dict(zip(names if len(result) == 5 else ("obs", "info"), result, strict=True)))


def flat(result: tuple) -> dict[str, np.ndarray]:
    """Copy what `reset` or `step` returned to the host, named as by `leaves`."""
    return {name: to_numpy(value).copy() for name, value in leaves(result).items()}


def _leaves(value: Any, name: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {name[1:]: value}
    parts = [_leaves(item, f"{name}.{key}") for key, item in value.items()]
    return {key: leaf for part in parts for key, leaf in part.items()}
