"""Both worlds, on fakes, keep the promises of the contract; broken worlds hear which they broke."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import closing
from functools import partial

import gymnasium as gym
import imageio.v3 as iio
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.wrappers import TransformAction, TransformObservation, TransformReward
from gymnasium.wrappers import vector as stock

from tests.fakes import FakeSuccess, FakeWorldModel, ScriptedEnv, fake_pool
from tests.worlds import ladder, noisy, unanimous
from wm_gym.imagined import ImaginedVectorEnv
from wm_gym.single import SingleEnv
from wm_gym.testing import MODES, check_world
from wm_gym.testing.calls import Plan, record

NEVER = 99
FLAGS = ("terminated", "truncated")
WORLDS = {
    "real": ladder,
    "imagined": partial(noisy, deterministic=False),
    "unanimous": partial(unanimous, deterministic=False),
}


@pytest.mark.parametrize("num_envs", [1, 3, 8])
@pytest.mark.parametrize("output", ["numpy", "torch"])
@pytest.mark.parametrize("chunk", [None, 3, 8])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("world", WORLDS)
def test_a_world_keeps_its_promises(world, mode, chunk, output, num_envs):
    make = partial(WORLDS[world], chunk=chunk, output=output, return_frames=chunk is not None)
    check_world(make, [num_envs], [mode])


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("options", [{}, {"ignore_terminations": True}], ids=["ends", "goes_on"])
def test_a_world_keeps_them_from_mode_to_mode(world, options):
    check_world(partial(WORLDS[world], chunk=2, **options))


def test_a_world_keeps_them_with_exact_rows():
    check_world(partial(noisy, deterministic=True), [3])


@pytest.mark.parametrize("chunk", [None, 3])
def test_a_world_that_gives_up_where_it_is_unsure_keeps_them_too(chunk):
    unsure = partial(noisy, chunk=chunk, max_uncertainty=0.5, return_frames=chunk is not None)
    with closing(unsure(3, horizon=9)) as env:
        told = record(env, Plan.draw(env))
    early = [c["truncated"] & (c["info.elapsed_steps"] < 9) for c in told.values() if FLAGS[1] in c]
    assert np.any(early)  # the suite does meet it
    check_world(unsure, [3])


@pytest.mark.parametrize("world", WORLDS)
def test_the_suite_meets_successes_and_horizons(world):
    env = WORLDS[world](3, horizon=3)
    told = record(env, Plan.draw(env))
    ends = [[call[kind].sum() for call in told.values() if kind in call] for kind in FLAGS]
    assert sum(ends[0]) >= 1 and sum(ends[1]) >= 1


# Worlds that break one promise each.


class Buffer(ImaginedVectorEnv):
    def _observe(self):
        return {"image": self._image}


class Shared(ImaginedVectorEnv):
    def _observe(self):
        return {"image": self._image}

    def _show(self, rows, image):
        self._image = None if self._image is None else self._image.copy()
        super()._show(rows, image)


class Popping(ImaginedVectorEnv):
    def reset(self, *, seed=None, options=None):
        try:
            return super().reset(seed=seed, options=options)
        finally:
            (options or {}).pop("reset_mask", None)


class Whole(ImaginedVectorEnv):
    def reset(self, *, seed=None, options=None):
        if options and set(options) == {"reset_mask"} and np.any(options["reset_mask"]):
            super().reset(options=options)  # which checks them
            options = {"reset_mask": np.ones(self.num_envs, bool)}
        return super().reset(seed=seed, options=options)


class Unseeded(ImaginedVectorEnv):
    def _begin(self, rows, starts):
        return super()._begin(rows, np.random.default_rng().permutation(len(self.pool))[starts])


class Crowded(ImaginedVectorEnv):
    def _play(self, rows, actions, steps):
        return super()._play(rows, actions * (1 if self.num_envs == 1 else -1), steps)


class Hasty(ImaginedVectorEnv):
    def reset(self, *, seed=None, options=None):
        if options and "start" in options and seed is not None:
            self.seeds[:] = seed
        return super().reset(seed=seed, options=options)


class Deaf(ImaginedVectorEnv):
    def step(self, actions):
        return super().step(np.nan_to_num(actions))


class Elsewhere(ImaginedVectorEnv):
    def _begin(self, rows, starts):
        return super()._begin(rows, (starts + self.episode[rows]) % len(self.pool))


class Forgetful(ImaginedVectorEnv):
    def _load(self, rows, hidden):
        pass


class Told(ImaginedVectorEnv):
    """Changes what it tells: `change(self, obs, reward, terminated, truncated, info)`."""

    change: Callable

    def step(self, actions):
        told = list(super().step(actions))
        changed = type(self).change(self, *told)
        return tuple(changed or told)


def telling(change: Callable) -> type:
    return type("Liar", (Told,), {"change": staticmethod(change)})


def pay_frozen(env, obs, reward, terminated, truncated, info):
    reward[~info["active"]] = 1


def pay_twice(env, obs, reward, terminated, truncated, info):
    reward[info["success"]] = 1


def count_chunks(env, obs, reward, terminated, truncated, info):
    info["elapsed_steps"] //= env.chunk


def never_truncate(env, obs, reward, terminated, truncated, info):
    truncated[:] = False


def never_terminate(env, obs, reward, terminated, truncated, info):
    terminated[:] = False


def forget_success(env, obs, reward, terminated, truncated, info):
    info["success"] &= reward > 0


def speak(env, obs, reward, terminated, truncated, info):
    info["instruction"] = np.array(env.instructions)


def give_tensors(env, obs, reward, terminated, truncated, info):
    return obs, torch.from_numpy(reward), terminated, truncated, info


def give_numbers(env, obs, reward, terminated, truncated, info):
    return obs, reward, terminated.astype(int), truncated, info


def last_picture_after_reset(env, obs, reward, terminated, truncated, info):
    if "final_obs" in info:
        info["final_obs"]["image"] = obs["image"].copy()


def mark_no_row(env, obs, reward, terminated, truncated, info):
    if "final_obs" in info:
        info["_final_obs"][:] = False


def do_not_count_clipped(env, obs, reward, terminated, truncated, info):
    info["clipped"][:] = 0


def move_frozen(env, obs, reward, terminated, truncated, info):
    obs["image"][~info["active"]] += 1


def show_first_frame(env, obs, reward, terminated, truncated, info):
    info["frames"][:] = info["frames"][:, :1]


def mark_all_frames(env, obs, reward, terminated, truncated, info):
    info["frames_mask"][:] = True


def no_probability(env, obs, reward, terminated, truncated, info):
    del info["success_probability"]


FRAMES = {"chunk": 2, "return_frames": True}
BROKEN = {
    "a later call changed `obs.image`": (Buffer, {}),
    "With writing into arrays that were returned, `obs.image`": (Shared, {}),
    "Reset options are read, never changed": (Popping, {}),
    "A masked reset leaves `.*` of the other rows alone": (Whole, {}),
    "With the same seeds and actions, `obs.image` of the call '.*reset": (Unseeded, {}),
    "`obs.image` of the call 'step 0' depends on who else": (Crowded, {}),
    "With calls that were refused, `obs.image`": (Hasty, {}),
    "ValueError is raised for actions that are NaN; nothing was raised": (Deaf, {}),
    "waits for its reset plays nothing, pays 0": (telling(pay_frozen), {}),
    "The reward is 1 on the first success": (telling(pay_twice), {"ignore_terminations": True}),
    "`elapsed_steps` counts the control steps": (telling(count_chunks), {"chunk": 3}),
    "`terminated` is the first success": (telling(never_terminate), {}),
    "`truncated` is the horizon": (telling(never_truncate), {}),
    "A success is not taken back": (telling(forget_success), {"ignore_terminations": True}),
    "`info.instruction` holds numbers, one row an environment, got <U17": (telling(speak), {}),
    "`reward` is a Tensor, the picture a ndarray": (telling(give_tensors), {}),
    "`terminated` has shape .3,. and dtype kind 'b', got int64": (telling(give_numbers), {}),
    "`final_obs` is the last picture": (telling(last_picture_after_reset), {}),
    "The mask `_final_obs` is True in the rows that ended": (telling(mark_no_row), {}),
    "`clipped` counts the values outside": (telling(do_not_count_clipped), {}),
    "A frozen row keeps its `image`.*Disabled": (telling(move_frozen), {}),
    "There is no `info.success_probability`": (telling(no_probability), {}),
    "always shows the same first picture": (Elsewhere, {}),
    "With set_state.get_state..., `obs.image` of the call 'step 0'": (Forgetful, {}),
    "The last of `frames` is the picture": (telling(show_first_frame), FRAMES),
    "`frames_mask` marks what was played": (telling(mark_all_frames), FRAMES),
}


@pytest.mark.parametrize("sentence", BROKEN)
def test_a_broken_promise_is_named(sentence):
    kind, options = BROKEN[sentence]

    def make(num_envs: int, **given) -> VectorEnv:
        models = {"world_model": FakeWorldModel(mix=0.3), "success": FakeSuccess(threshold=0.4)}
        return kind("Lift", num_envs, starts=fake_pool(), **models, **options, **given)

    modes = ["Disabled"] if "Disabled" in sentence else MODES
    with pytest.raises(AssertionError, match=f"(?i){sentence}"):
        check_world(make, [3], modes)


def test_a_broken_promise_says_where():
    with pytest.raises(AssertionError, match=r"\(num_envs=4, autoreset_mode='SameStep'\)$"):
        check_world(lambda **options: noisy(**options | {"num_envs": 3}), [4], ["same_step"])


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("num_envs", 4, "`num_envs` is 3"),
        ("metadata", {"autoreset_mode": "NextStep"}, "got 'NextStep'"),
        ("instructions", ["lift"], "`instructions` is a list of 3 strings, got .'lift'."),
        ("single_action_space", gym.spaces.Box(-2, 2, (7,)), r"Actions are Box\(-1, 1"),
        ("single_observation_space", gym.spaces.Dict(), "Observations are Dict"),
        ("action_space", gym.spaces.Box(-1, 1, (4, 7)), "`action_space` is the single one 3 times"),
        ("render", lambda: None, "tuple of the pictures"),
        ("close", lambda: None, "ClosedEnvironmentError is raised for a step after close"),
    ],
)
def test_a_world_that_misdescribes_itself_is_told_so(name, value, sentence):
    def make(**options) -> VectorEnv:
        env = noisy(**options)
        setattr(env, name, value)
        return env

    with pytest.raises(AssertionError, match=sentence):
        check_world(make, [3])


# Gymnasium's own tools.


def picture(env: VectorEnv) -> VectorEnv:
    """Show the picture alone, for wrappers that take no dictionaries."""
    space = env.single_observation_space["image"]
    take = stock.TransformObservation
    return take(env, lambda obs: obs["image"], single_observation_space=space)


SAME = {"wrapper": TransformObservation, "func": lambda obs: obs, "observation_space": None}
STATISTICS: dict[str, Callable] = {
    "DictInfoToList": stock.DictInfoToList,
    "RecordEpisodeStatistics": stock.RecordEpisodeStatistics,
    "RecordVideo": lambda env: stock.RecordVideo(env, "videos", video_length=3),
    "HumanRendering": stock.HumanRendering,
}
ACTIONS_AND_REWARDS: dict[str, Callable] = {
    "TransformAction": lambda env: stock.TransformAction(env, lambda action: 0.5 * action),
    "VectorizeTransformAction": lambda env: stock.VectorizeTransformAction(
        env, TransformAction, func=lambda action: 0.5 * action, action_space=None
    ),
    "ClipAction": stock.ClipAction,
    "RescaleAction": lambda env: stock.RescaleAction(env, -2.0, 2.0),
    "TransformReward": lambda env: stock.TransformReward(env, lambda reward: 2 * reward),
    "VectorizeTransformReward": lambda env: stock.VectorizeTransformReward(
        env, TransformReward, func=lambda reward: 2 * reward
    ),
    "ClipReward": lambda env: stock.ClipReward(env, 0.0, 0.5),
    "NormalizeReward": stock.NormalizeReward,
}
OBSERVATIONS: dict[str, Callable] = {
    "TransformObservation": picture,
    "VectorizeTransformObservation": lambda env: stock.VectorizeTransformObservation(env, **SAME),
    "FilterObservation": lambda env: stock.FilterObservation(env, ["image"]),
    "FlattenObservation": stock.FlattenObservation,
    "GrayscaleObservation": lambda env: stock.GrayscaleObservation(picture(env)),
    "ResizeObservation": lambda env: stock.ResizeObservation(picture(env), (4, 4)),
    "ReshapeObservation": lambda env: stock.ReshapeObservation(picture(env), (64, 3)),
    "RescaleObservation": lambda env: stock.RescaleObservation(
        stock.DtypeObservation(picture(env), np.float32), 0.0, 1.0
    ),
    "DtypeObservation": lambda env: stock.DtypeObservation(picture(env), np.float32),
    "NormalizeObservation": lambda env: stock.NormalizeObservation(picture(env)),
}
CONVERSIONS: dict[str, Callable] = {
    "ArrayConversion": lambda env: stock.ArrayConversion(env, env_xp=np, target_xp=torch),
    "NumpyToTorch": stock.NumpyToTorch,
}
WRAPPERS = {**STATISTICS, **ACTIONS_AND_REWARDS, **OBSERVATIONS, **CONVERSIONS}
NEEDS = {"RecordVideo": "moviepy", "HumanRendering": "pygame", "ResizeObservation": "cv2"}
NEXT_STEP_ALONE = ("NormalizeObservation", "Disabled")
FOR_JAX = {"JaxToNumpy", "JaxToTorch"}


def test_no_stock_wrapper_is_forgotten():
    assert WRAPPERS.keys() | FOR_JAX == set(stock.__all__)


def as_numpy(env: VectorEnv) -> VectorEnv:
    """Convert the arrays of a torch world for Gymnasium's wrappers, which know numpy alone."""
    if env.unwrapped.output == "numpy":
        return env
    return stock.ArrayConversion(env, env_xp=torch, target_xp=np)


def play(env: VectorEnv, steps: int) -> list:
    """Step with random actions, and reset finished rows where that is up to the caller."""
    rng, told = np.random.default_rng(0), [env.reset(seed=0)]
    for _ in range(steps):
        actions = rng.uniform(-1, 1, env.action_space.shape).astype(np.float32)
        tensors = isinstance(env, (stock.NumpyToTorch, stock.ArrayConversion))
        told.append(env.step(torch.from_numpy(actions) if tensors else actions))
        ended = np.asarray(told[-1][2]) | np.asarray(told[-1][3])
        disabled = env.metadata["autoreset_mode"] is AutoresetMode.DISABLED
        if disabled and ended.any():
            env.reset(options={"reset_mask": ended})
    return told


@pytest.mark.filterwarnings("ignore:.*precision lowered by casting to float32")
@pytest.mark.parametrize("output", ["numpy", "torch"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", WRAPPERS)
def test_a_stock_wrapper_steps_for_50_steps(name, mode, output, tmp_path, monkeypatch):
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    if name in CONVERSIONS and output == "torch":
        pytest.skip("converts from numpy")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    options = {"autoreset_mode": mode, "output": output, "render_mode": "rgb_array"}
    world = as_numpy(ladder(3, chunk=2, horizon=5, **options))
    if mode == "SameStep" and name in OBSERVATIONS or (name, mode) == NEXT_STEP_ALONE:
        with pytest.raises(ValueError, match="AutoresetMode"):
            WRAPPERS[name](world)
        return
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*autoreset mode is same-step")  # RecordVideo
        env = WRAPPERS[name](world)
    told = play(env, 50)
    ends = sum(np.asarray(step[2]).sum() + np.asarray(step[3]).sum() for step in told[1:])
    assert ends >= 30  # episodes of at most 3 steps, and one to reset in NextStep
    env.close()


@pytest.mark.parametrize("output", ["numpy", "torch"])
@pytest.mark.parametrize(
    ("mode", "episodes"),
    [
        # Rows take 2 steps, the whole horizon of 3, and 1; here are six steps of them.
        ("NextStep", {(1.0, 2): 2, (0.0, 3): 1, (1.0, 1): 3}),  # one more step for every reset
        ("SameStep", {(1.0, 2): 3, (0.0, 3): 2, (1.0, 1): 6}),
        ("Disabled", {(1.0, 2): 3, (0.0, 3): 2, (1.0, 1): 6}),
    ],
)
def test_episode_statistics_are_those_counted_by_hand(mode, episodes, output):
    world = as_numpy(ScriptedEnv([2, NEVER, 1], autoreset_mode=mode, output=output))
    env = stock.RecordEpisodeStatistics(world)
    play(env, 6)
    counted = list(zip(env.return_queue, env.length_queue, strict=True))
    assert {pair: counted.count(pair) for pair in counted} == episodes


@pytest.mark.parametrize("output", ["numpy", "torch"])
@pytest.mark.parametrize("mode", ["NextStep", "Disabled"])
def test_record_video_writes_what_was_shown(mode, output, tmp_path):
    pytest.importorskip("moviepy")
    options = {"autoreset_mode": mode, "output": output, "render_mode": "rgb_array"}
    world = as_numpy(ScriptedEnv([NEVER] * 4, horizon=9, **options))
    folder = tmp_path / "videos"
    env = stock.RecordVideo(world, str(folder), video_length=4, step_trigger=lambda t: t == 0)
    play(env, 6)
    env.close()
    (video,) = folder.glob("*.mp4")
    assert len(iio.imread(video, plugin="FFMPEG")) == 5  # it stops once it has more than 4


class LargeModel(FakeWorldModel):
    """Draws 40 pixels, since SB3 warns of pictures below 36."""

    def __init__(self) -> None:
        super().__init__()
        self.config.image_size = 40

    def noise_shape(self, k: int) -> tuple[int, ...]:
        return (k, 3, 40, 40)


@pytest.fixture(params=[None, 4])
def single(request) -> SingleEnv:
    models = {"world_model": LargeModel(), "success": FakeSuccess()}
    starts = fake_pool(image_size=40)
    return SingleEnv("Lift", chunk=request.param, starts=starts, render_mode="rgb_array", **models)


def test_a_single_environment_names_its_own_shapes(single):
    single.reset(seed=0)
    shape = single.action_space.shape
    with pytest.raises(ValueError) as told:
        single.step(np.zeros((1, *shape), np.float32))
    assert f"Actions must have shape {shape}, got {(1, *shape)}" in str(told.value)
    with pytest.raises(ValueError, match=r"The start of one episode is one integer, got \[0\]"):
        single.reset(options={"start": [0]})
    with pytest.raises(ValueError, match=r"Reset options must be a dict, got \[1\]"):
        single.reset(options=[1])


@pytest.mark.filterwarnings("error")
def test_gymnasiums_checker_has_nothing_to_say(single):
    check_env(single, skip_render_check=True)


@pytest.mark.filterwarnings("error")
def test_sb3s_checker_has_nothing_to_say(single):
    pytest.importorskip("stable_baselines3")
    from stable_baselines3.common.env_checker import check_env

    check_env(single)
