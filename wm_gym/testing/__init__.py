"""The promises of `wm_gym.contract` as a suite that can be pointed at anyone's world.

check_world(functools.partial(gym.make_vec, "wm_gym/Lift-v0", chunk=8, return_frames=True))
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial

import numpy as np
from gymnasium.error import ClosedEnvironmentError, ResetNeeded
from gymnasium.spaces import Box, Dict
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from wm_gym.checks import parse_autoreset_mode, to_numpy
from wm_gym.testing.calls import Plan, flat, leaves, must_raise, record, refuse, require, zeros
from wm_gym.testing.ledger import Ledger, before_autoreset, check_arrays

__all__ = ["check_world"]

Make = Callable[..., VectorEnv]
MODES = tuple(mode.value for mode in AutoresetMode)


def check_world(
    make: Make, num_envs: Sequence[int] = (1, 3), autoreset_modes: Sequence[str] = MODES
) -> None:
    """Check that `make(num_envs=, autoreset_mode=, horizon=, render_mode=)` builds true worlds.

    Bind other keywords (`chunk`, `output`, `return_frames`, ...) yourself, but not
    `strict_actions`, which leaves nothing to clip. For every number of environments and mode some
    ten rollouts of 8 steps are played. Raises AssertionError with a sentence that says which
    promise is broken, and where.
    """
    modes = [parse_autoreset_mode(mode) for mode in autoreset_modes]
    for n in num_envs:
        for mode in modes:
            new = partial(make, num_envs=n, autoreset_mode=mode.value, render_mode="rgb_array")
            try:
                chunk = _check_spaces(new, n, mode)
                new = partial(new, horizon=2 * chunk + 1)  # three steps, the last not played whole
                _check_rollouts(new, n, mode, chunk)
                if mode is AutoresetMode.SAME_STEP and AutoresetMode.NEXT_STEP in modes:
                    _check_last_pictures(new, n)
            except AssertionError as error:
                where = f"num_envs={n}, autoreset_mode={mode.value!r}"
                raise AssertionError(f"{error} ({where})") from error


def _check_spaces(new: Make, n: int, mode: AutoresetMode) -> int:
    """Check what an environment says of itself, begins and ends with; return its chunk."""
    with closing(new(horizon=1)) as env:
        require(isinstance(env, VectorEnv), "A world inherits gymnasium.vector.VectorEnv.")
        require(type(env.num_envs) is int and env.num_envs == n, f"`num_envs` is {n}.")
        told = env.metadata.get("autoreset_mode")
        require(told is mode, f"metadata['autoreset_mode'] is {mode}, got {told!r}.")
        picture, action = env.single_observation_space, env.single_action_space
        require(
            isinstance(picture, Dict)
            and list(picture) == ["image"]
            and picture["image"] == Box(0, 255, (*picture["image"].shape[:2], 3), np.uint8),
            f"Observations are Dict(image=Box(0, 255, (H, W, 3), uint8)), got {picture}.",
        )
        require(
            isinstance(action, Box)
            and action == Box(-1, 1, action.shape, np.float32)
            and len(action.shape) in (1, 2),
            f"Actions are Box(-1, 1, (d,) or (K, d), float32), got {action}.",
        )
        for name, single in (("observation_space", picture), ("action_space", action)):
            same = getattr(env, name) == batch_space(single, n)
            require(same, f"`{name}` is the single one {n} times.")
        told = getattr(env.unwrapped, "instructions", None)
        require(
            isinstance(told, list) and len(told) == n and all(isinstance(t, str) for t in told),
            f"`instructions` is a list of {n} strings, got {told!r}.",
        )
        must_raise(ResetNeeded, lambda: env.step(zeros(env)), "a step before the first reset")
        shown, pictures = to_numpy(env.reset(seed=0)[0]["image"]), env.render()
        require(
            isinstance(pictures, tuple) and np.array_equal(pictures, shown),
            "render() gives a tuple of the pictures that the observations show.",
        )
        env.close()
        env.close()
        must_raise(ClosedEnvironmentError, lambda: env.step(zeros(env)), "a step after close()")
    return 1 if len(action.shape) == 1 else action.shape[0]


def _check_rollouts(new: Make, n: int, mode: AutoresetMode, chunk: int) -> None:
    with closing(new()) as env:
        plan = Plan.draw(env)
        _check_every_call(env, plan, Ledger(env, mode, chunk))
        told = record(env, plan)
        _check_same(told, record(env, plan), "the same seeds and actions")
        _check_same(told, record(env, plan, _scribble), "writing into arrays that were returned")
        _check_same(told, record(env, plan, lambda _: refuse(env)), "calls that were refused")
        whole = flat(env.reset(seed=plan.seeds[0]))
        _check_same({"reset": told["reset"]}, {"reset": whole}, "seed=s for [s, s + 1, ...]")
        _check_starts(env)
        _check_clipping(env)
        if hasattr(env.unwrapped, "get_state"):
            _check_state(env, plan)
    with closing(new(num_envs=1)) as alone:
        _check_alone(told, record(alone, plan.row(n - 1)), n - 1)


def _check_every_call(env: VectorEnv, plan: Plan, ledger: Ledger) -> None:
    """Check dtypes, shapes, the ledger, and that nothing returned is touched again."""
    kept = []
    for name, mask, result in plan.calls(env):
        check_arrays(env, result)
        copies = flat(result)
        kept.append((name, leaves(result), copies))
        if mask is None:
            ledger.step(copies)
        else:
            ledger.reset(mask, copies)
    for name, arrays, copies in kept:
        for key, value in arrays.items():
            same = np.array_equal(to_numpy(value), copies[key])
            require(same, f"A later call changed `{key}` that the call {name!r} had returned.")


def _scribble(result: tuple) -> None:
    for value in leaves(result).values():
        value[...] = 1


def _check_starts(env: VectorEnv) -> None:
    """Send the last row alone back to its start; the entries of other rows are not read."""
    first = flat(env.reset(seed=0))
    env.step(zeros(env))
    mask = np.arange(env.num_envs) == env.num_envs - 1
    options = {"start": np.where(mask, first["info.start"], -1), "reset_mask": mask}
    given = {key: value.copy() for key, value in options.items()}
    again = flat(env.reset(options=options))
    require(
        options.keys() == given.keys() and all((options[k] == given[k]).all() for k in given),
        "Reset options are read, never changed.",
    )
    require(
        all((again[key][mask] == first[key][mask]).all() for key in ("info.start", "obs.image")),
        "A start that is asked for is told in info, and always shows the same first picture.",
    )


def _check_clipping(env: VectorEnv) -> None:
    """Ask for what the box just allows, and for more."""
    told, outside = [], zeros(env) + 3
    for actions in (zeros(env) + 1, outside):
        env.reset(seed=0)
        told.append(before_autoreset(flat(env.step(actions))))
    allowed, clipped = told
    require((outside == 3).all(), "The caller's actions are left alone.")
    require(
        allowed["image"] == clipped["image"], "Actions outside the box are clipped to its edges."
    )
    values = env.action_space.shape[-1] * clipped["played"]
    require(
        (clipped["clipped"] == values) & (allowed["clipped"] == 0),
        "`clipped` counts the values outside the box, of the steps that were played.",
    )


def _check_state(env: VectorEnv, plan: Plan) -> None:
    """Save in the middle, play on, restore, and play on again."""
    for name, *_ in plan.calls(env):
        if name == "step 2":
            break
    state, rest = env.unwrapped.get_state(), plan.after(3)
    told = record(env, rest)
    env.unwrapped.set_state(state)
    _check_same(told, record(env, rest), "set_state(get_state())")


def _check_last_pictures(new: Make, n: int) -> None:
    """Compare SameStep with NextStep, which shows an episode's last picture as a plain one."""
    with closing(new()) as same, closing(new(autoreset_mode="NextStep")) as later:
        plan = Plan.draw(same)
        plan = plan._replace(masks=np.zeros_like(plan.masks))
        told, plain = record(same, plan), record(later, plan)
    first = np.ones(n, bool)  # rows in their first episode
    for t in range(len(plan.actions)):
        one, other = told[f"step {t}"], plain[f"step {t}"]
        agree = before_autoreset(one)["image"] == other["obs.image"]
        require(agree[first], "`final_obs` is the last picture of the episode that ended.")
        first = first & ~(one["terminated"] | one["truncated"])


def _check_same(told: dict, again: dict, cause: str) -> None:
    for call, values in told.items():
        other = again[call]
        require(values.keys() == other.keys(), f"With {cause}, {call!r} returned other keys.")
        for name, value in values.items():
            same = np.array_equal(value, other[name])
            require(same, f"With {cause}, `{name}` of the call {call!r} came out different.")


def _check_alone(batch: dict, alone: dict, row: int) -> None:
    """Compare a row of a batch with the same row alone: equal, pictures to rounding."""
    for call, values in alone.items():
        for name, value in values.items():
            here, there = value[0].astype(float), batch[call][name][row].astype(float)
            if value.dtype == np.uint8:
                same = np.abs(here - there).mean() < 0.5
            else:
                same = np.allclose(here, there, rtol=0, atol=0.02 * (value.dtype.kind == "f"))
            require(same, f"`{name}` of the call {call!r} depends on who else is in the batch.")
