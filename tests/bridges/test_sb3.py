"""Stable-Baselines3 over scripted and imagined worlds: what SB3 reads, on timelines by hand."""

from __future__ import annotations

import sys
import warnings

import gymnasium as gym
import numpy as np
import pytest

pytest.importorskip("stable_baselines3")

from stable_baselines3 import PPO, SAC
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import (
    VecExtractDictObs,
    VecMonitor,
    VecTransposeImage,
    is_vecenv_wrapped,
)

from tests import fakes
from tests.bridges.worlds import NEVER, Large
from wm_gym import imagined
from wm_gym.bridges.sb3 import SB3VecEnv
from wm_gym.starts import save_starts
from wm_gym.state import WorldState
from wm_gym.success.classifier import SuccessClassifier
from wm_gym.world_model import loading

EPISODE = ("episode", "terminal_observation")


def make(wins: list[int], **options) -> SB3VecEnv:
    """Rows succeed at step wins[i]; pictures show (row, episode, elapsed)."""
    return SB3VecEnv(fakes.ScriptedEnv(wins, autoreset_mode="SameStep", **options))


def zeros(env: SB3VecEnv) -> np.ndarray:
    return np.zeros((env.num_envs, *env.action_space.shape), np.float32)


def shown(image: np.ndarray) -> list:
    """Read (row, episode, elapsed) back from a picture, or from every row's."""
    return image[..., 0, 0, :].tolist()


@pytest.mark.parametrize("mode", ["NextStep", "Disabled"])
def test_other_autoreset_modes_are_refused(mode):
    with pytest.raises(ValueError, match="autoreset_mode='SameStep', got AutoresetMode"):
        SB3VecEnv(fakes.ScriptedEnv([1], autoreset_mode=mode))


def test_without_sb3_the_import_says_what_to_install(monkeypatch):
    monkeypatch.delitem(sys.modules, "wm_gym.bridges.sb3")
    monkeypatch.setitem(sys.modules, "stable_baselines3.common.monitor", None)
    with pytest.raises(ImportError, match=r"pip install 'wm-gym\[sb3\]'"):
        import wm_gym.bridges.sb3  # noqa: F401


def test_a_timeline_of_success_horizon_and_the_episodes_after():
    env = make([2, NEVER])  # the horizon is 3
    assert shown(env.reset()["image"]) == [[0, 0, 0], [1, 0, 0]]
    steps = [env.step(zeros(env)) for _ in range(4)]
    assert [shown(obs["image"]) for obs, *_ in steps] == [
        [[0, 0, 1], [1, 0, 1]],
        [[0, 1, 0], [1, 0, 2]],
        [[0, 1, 1], [1, 1, 0]],
        [[0, 2, 0], [1, 1, 1]],
    ]
    assert [reward.tolist() for _, reward, *_ in steps] == [[0, 0], [1, 0], [0, 0], [1, 0]]
    done = [done.tolist() for _, _, done, _ in steps]
    assert done == [[False, False], [True, False], [False, True], [True, False]]
    told = [[(i["is_success"], i["TimeLimit.truncated"]) for i in infos] for *_, infos in steps]
    assert told == [
        [(False, False), (False, False)],
        [(True, False), (False, False)],
        [(False, False), (False, True)],
        [(True, False), (False, False)],
    ]
    assert all(
        (key in info) == ended
        for *_, ended, infos in steps
        for info, ended in zip(infos, ended, strict=True)
        for key in EPISODE
    )


def test_the_last_step_of_an_episode_tells_of_that_episode():
    env = make([2, NEVER])
    env.reset()
    env.step(zeros(env))
    *_, infos = env.step(zeros(env))
    ended = infos[0]
    assert shown(ended["terminal_observation"]["image"]) == [0, 0, 2]
    assert (ended["elapsed_steps"], ended["success_probability"]) == (2, 1.0)
    assert {key: ended["episode"][key] for key in "rl"} == {"r": 1.0, "l": 2}
    assert env.reset_infos[0]["elapsed_steps"] == 0
    *_, infos = env.step(zeros(env))
    assert {key: infos[1]["episode"][key] for key in "rl"} == {"r": 0.0, "l": 3}
    *_, infos = env.step(zeros(env))
    assert {key: infos[0]["episode"][key] for key in "rl"} == {"r": 1.0, "l": 2}


def test_infos_are_python_scalars_without_the_masks():
    env = make([1])
    env.reset()
    info = env.step(zeros(env))[-1][0]
    kinds = {key: type(value) for key, value in info.items() if key not in EPISODE}
    assert kinds == {
        "success": bool,
        "success_probability": float,
        "uncertainty": float,
        "elapsed_steps": int,
        "start": int,
        "active": bool,
        "clipped": int,
        "played": int,
        "is_success": bool,
        "TimeLimit.truncated": bool,
    }


@pytest.mark.parametrize("output", ["numpy", "torch"])
def test_arrays_have_the_kinds_that_sb3_stores(output):
    env = make([1, NEVER], output=output)
    obs = env.reset()
    assert obs["image"].dtype == np.uint8 and env.observation_space["image"].shape == (8, 8, 3)
    obs, reward, done, infos = env.step(zeros(env))
    assert all(isinstance(value, np.ndarray) for value in (obs["image"], reward, done))
    assert (reward.dtype, done.dtype) == (np.float32, np.bool_)
    assert isinstance(infos[0]["terminal_observation"]["image"], np.ndarray)
    assert type(infos[0]["is_success"]) is bool


def test_chunks_are_laid_flat_step_after_step():
    env = make([NEVER] * 2, chunk=3)
    asked = []
    play = env.env._play
    env.env._play = lambda rows, actions, steps: asked.append(actions) or play(rows, actions, steps)
    env.reset()
    assert env.action_space.shape == (21,) and env.action_space.dtype == np.float32
    actions = np.linspace(-1, 1, 42, dtype=np.float32).reshape(2, 21)
    env.step(actions)
    assert np.array_equal(asked[0], actions.reshape(2, 3, 7))
    with pytest.raises(ValueError, match=r"shape \(2, 21\) .*, got \(2, 3, 7\)"):
        env.step(actions.reshape(2, 3, 7))


def test_a_reset_begins_counting_anew():
    env = make([NEVER])
    env.reset()
    env.step(zeros(env))
    env.step_async(zeros(env))  # cancelled by the reset
    assert shown(env.reset()["image"]) == [[0, 1, 0]]
    ends = [env.step(zeros(env))[-1][0].get("episode", {}).get("l") for _ in range(3)]
    assert ends == [None, None, 3]


def test_seeds_are_used_once_and_one_a_row():
    env = make([NEVER] * 3, starts=fakes.fake_pool(50))
    assert env.seed(7) == [7, 8, 9]
    env.reset()
    first = [info["start"] for info in env.reset_infos]
    expected = fakes.ScriptedEnv([NEVER] * 3, starts=fakes.fake_pool(50)).reset(seed=7)[1]["start"]
    assert first == expected.tolist()
    env.reset()
    assert env.get_attr("seeds") == [7, 8, 9] and env.get_attr("episode") == [1, 1, 1]


def test_options_are_those_of_single_environments_and_used_once():
    env = make([NEVER] * 2, starts=fakes.fake_pool(50))
    env.set_options({"start": 3})
    env.reset()
    env.set_options([{"start": 4}, {"start": 1}])
    env.reset()
    assert env.env.begun == [(0, 3), (1, 3), (0, 4), (1, 1)]
    env.seed(0)
    env.reset()
    assert env.env.begun[-2:] != [(0, 4), (1, 1)]
    env.set_options([{"start": 4}, {}])
    with pytest.raises(ValueError, match="the same options"):
        env.reset()


def test_attributes_of_rows_are_split_and_those_of_the_world_repeated():
    env = make([1, NEVER], render_mode="rgb_array")
    assert env.render_mode == "rgb_array"
    assert env.get_attr("wins") == [1, NEVER] and env.get_attr("wins", 1) == [NEVER]
    assert env.get_attr("horizon") == [3, 3] and env.get_attr("horizon", [0]) == [3]
    assert env.get_attr("instructions", [1]) == ["lift the red cube"]
    assert env.has_attr("horizon") and not env.has_attr("height")


def test_attributes_are_set_for_rows_or_for_the_world():
    env = make([NEVER, NEVER])
    env.set_attr("wins", 1, indices=[1])
    env.set_attr("horizon", 2)
    env.reset()
    done = [env.step(zeros(env))[2].tolist() for _ in range(2)]
    assert done == [[False, True], [True, True]]
    with pytest.raises(ValueError, match="All rows share 'horizon'"):
        env.set_attr("horizon", 5, indices=0)


def test_methods_are_called_once_and_their_results_split():
    env = make([NEVER] * 2, render_mode="rgb_array")
    env.reset()
    pictures = env.env_method("render")
    assert [shown(picture) for picture in pictures] == [[0, 0, 0], [1, 0, 0]]
    assert shown(env.env_method("render", indices=1)[0]) == [1, 0, 0]
    with pytest.raises(ValueError, match=r"Call reset\(\) itself"):
        env.env_method("reset")


def test_a_pair_that_a_method_returns_is_not_dealt_out_to_two_rows():
    env = SB3VecEnv(fakes.imagined(2, autoreset_mode="SameStep"))
    env.reset()
    (state, same) = env.env_method("get_state")
    assert state is same and isinstance(state, WorldState)
    for obs, info in env.env_method("set_state", state):
        assert obs["image"].shape[0] == len(info["start"]) == 2


def test_render_tiles_one_picture_a_row():
    env = make([NEVER] * 3, render_mode="rgb_array")
    env.reset()
    assert [shown(picture) for picture in env.get_images()] == [[0, 0, 0], [1, 0, 0], [2, 0, 0]]
    assert env.render().shape == (16, 16, 3)
    with pytest.warns(UserWarning, match="rgb_array"):
        assert make([NEVER] * 2).get_images() == [None, None]


def test_closing_closes_the_world():
    env = make([NEVER])
    env.close()
    assert env.env.closed


def test_evaluation_counts_episodes_without_a_monitor_or_a_warning():
    env = make([2, NEVER])
    assert env.env_is_wrapped(Monitor) == [True, True]
    assert env.env_is_wrapped(gym.Wrapper, 0) == [False]
    assert not is_vecenv_wrapped(env, VecMonitor)

    class Still:
        def predict(self, obs, **_):
            return zeros(env), None

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rewards, lengths = evaluate_policy(Still(), env, 6, return_episode_rewards=True)
    assert sorted(zip(rewards, lengths, strict=True)) == [(0.0, 3)] * 3 + [(1.0, 2)] * 3


def test_ppo_reports_returns_lengths_and_success(tmp_path):
    env = SB3VecEnv(Large([2, NEVER]))
    model = PPO("MultiInputPolicy", env, n_steps=6, batch_size=6, n_epochs=1, seed=0)
    judge = VecTransposeImage(SB3VecEnv(Large([1, 1])))  # as PPO itself wraps its pictures
    check = EvalCallback(judge, n_eval_episodes=4, eval_freq=3, log_path=str(tmp_path), verbose=0)
    model.learn(12, callback=check)
    # In 6 steps row 0 succeeds 3 times after 2 steps, row 1 runs twice to the horizon of 3.
    assert [info["r"] for info in model.ep_info_buffer] == [1, 0, 1, 1, 0]
    assert [info["l"] for info in model.ep_info_buffer] == [2, 3, 2, 2, 3]
    assert list(model.ep_success_buffer) == [True, False, True, True, False]
    with np.load(tmp_path / "evaluations.npz") as told:
        assert told["successes"].all() and (told["ep_lengths"] == 1).all()


def test_sac_stores_the_last_picture_of_an_episode_not_the_next_first():
    env = SB3VecEnv(Large([2, NEVER], chunk=2, horizon=4))
    options = {"buffer_size": 64, "learning_starts": 4, "batch_size": 4, "seed": 0}
    model = SAC("MultiInputPolicy", env, **options)
    model.learn(12)
    buffer = model.replay_buffer
    # Row 0 ends at every step: from (0, episode, 0) to (0, episode, 2). Pictures are (C, H, W).
    before, after = (
        part["image"][:6, 0, :, 0, 0] for part in (buffer.observations, buffer.next_observations)
    )
    assert before.tolist() == [[0, episode, 0] for episode in range(6)]
    assert after.tolist() == [[0, episode, 2] for episode in range(6)]
    assert buffer.dones[:6].tolist() == [[1, 0], [1, 1]] * 3
    assert buffer.timeouts[:6].tolist() == [[0, 0], [0, 1]] * 3


def test_cnn_policy_works_over_the_picture_alone():
    env = VecExtractDictObs(SB3VecEnv(Large([2, NEVER])), "image")
    PPO("CnnPolicy", env, n_steps=4, batch_size=8, n_epochs=1, seed=0).learn(8)


def test_make_vec_env_loads_a_world_model_once(tmp_path, monkeypatch):
    loaded = []

    def load(model):
        def from_pretrained(name, device=None):
            loaded.append(name)
            return model()

        return from_pretrained

    monkeypatch.setattr(loading, "load_world_model", load(fakes.FakeWorldModel))
    monkeypatch.setattr(SuccessClassifier, "from_pretrained", load(fakes.FakeSuccess))
    imagined._load_world_model.cache_clear()
    imagined._load_success_classifier.cache_clear()
    save_starts([fakes.fake_pool()], tmp_path)
    options = {"starts": str(tmp_path), "world_model": "a", "success": "b"}
    env = make_vec_env("wm_gym/Lift-v0", n_envs=4, seed=0, env_kwargs=options)
    env.reset()
    env.step(np.zeros((4, 7), np.float32))
    assert loaded == ["a", "b"]
    models = [world.world_model for world in env.get_attr("world")]
    assert all(model is models[0] for model in models)
