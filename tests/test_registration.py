"""The ids: what `make`, `make_vec` and a bare import do."""

from __future__ import annotations

import inspect
import subprocess
import sys

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode

import wm_gym
from tests import fakes, worlds
from wm_gym.imagined import ImaginedVectorEnv
from wm_gym.single import SingleEnv
from wm_gym.starts import save_starts

ID = "wm_gym/Lift-v0"


@pytest.fixture
def starts(tmp_path, monkeypatch) -> str:
    """A folder of starts, with the named models replaced by fakes."""
    model, success = fakes.FakeWorldModel(noise=0.02), fakes.FakeSuccess()
    monkeypatch.setattr("wm_gym.imagined._load_world_model", lambda *_: model)
    monkeypatch.setattr("wm_gym.imagined._load_success_classifier", lambda *_: success)
    save_starts([fakes.fake_pool()], tmp_path)
    return str(tmp_path)


def test_import_needs_neither_torch_nor_a_simulator():
    code = """
import sys, gymnasium, wm_gym
heavy = {"torch", "robosuite", "mujoco", "diffusers", "h5py"} & set(sys.modules)
assert not heavy, heavy
assert "wm_gym/Lift-v0" in gymnasium.registry
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_public_names_are_importable_and_few():
    assert len(wm_gym.__all__) <= 18 and set(wm_gym.__all__) <= set(dir(wm_gym))
    assert all(getattr(wm_gym, name) is not None for name in wm_gym.__all__)
    assert wm_gym.ImaginedVectorEnv is ImaginedVectorEnv
    with pytest.raises(AttributeError, match="no attribute 'Imagined'"):
        _ = wm_gym.Imagined


@pytest.mark.parametrize("num_envs", [1, 3])
def test_make_vec_round_trips_through_its_spec_and_json(starts, num_envs):
    keywords = {"chunk": 2, "autoreset_mode": "disabled", "horizon": 9, "starts": starts}
    env = gym.make_vec(ID, num_envs=num_envs, dtype="bfloat16", **keywords)
    assert env.metadata["autoreset_mode"] is AutoresetMode.DISABLED
    spec = gym.envs.registration.EnvSpec.from_json(env.spec.to_json())
    for again in (gym.make_vec(env.spec), gym.make_vec(spec)):
        assert type(again) is ImaginedVectorEnv and again.num_envs == num_envs
        assert (again.chunk, again.horizon, again.dtype) == (2, 9, "bfloat16")
        assert again.spec == env.spec
        first, second = env.reset(seed=1)[0], again.reset(seed=1)[0]
        assert np.array_equal(first["image"], second["image"])


SHARED = {
    "chunk": 3,
    "split": "validation",
    "horizon": 9,
    "autoreset_mode": "same_step",
    "ignore_terminations": True,
    "return_frames": True,
    "strict_actions": True,
    "output": "torch",
    "render_mode": "rgb_array",
}
OWN = {
    "imagined": {
        "device": "cpu",
        "dtype": "bfloat16",
        "compile": True,
        "deterministic": True,
        "max_uncertainty": 2.5,
        "unanimous": True,
    },
    "real": {"workers": 2, "full_meshes": True, "timeout": 7.5},
}


@pytest.fixture
def everything(starts, tmp_path, monkeypatch):
    """Set every option of a backend to something else than its default."""
    monkeypatch.setattr("wm_gym.real.vector.SimulationPool", worlds.Ladder)
    monkeypatch.setitem(wm_gym.TASKS, "Lift", worlds.SMALL)
    save_starts([fakes.fake_pool(split="validation")], tmp_path)
    named = {"world_model": "some/model", "success": "some/classifier"}

    def options(backend: str) -> dict:
        models = named if backend == "imagined" else {}
        return {"backend": backend, "starts": starts, **SHARED, **OWN[backend], **models}

    return options


@pytest.mark.parametrize("backend", OWN)
def test_a_spec_with_every_option_goes_through_json_and_makes_the_same_world(everything, backend):
    env = gym.make_vec(ID, num_envs=2, **everything(backend))
    asked = {"num_envs": 2, "vectorization_mode": "vector_entry_point", "task": "Lift"}
    assert env.spec.kwargs == everything(backend) | asked
    spec = gym.envs.registration.EnvSpec.from_json(env.spec.to_json())
    again = gym.make_vec(spec)
    assert again.spec == env.spec and type(again) is type(env)
    for first, second in zip(a_few_steps(env), a_few_steps(again), strict=True):
        worlds.assert_same(first, second)


@pytest.mark.parametrize("backend", OWN)
def test_no_option_is_missing_above(everything, backend):
    made = {"imagined": wm_gym.ImaginedVectorEnv, "real": wm_gym.RealVectorEnv}[backend]
    known = [
        name
        for each in (wm_gym.WorldVectorEnv, made)
        for name, parameter in inspect.signature(each).parameters.items()
        if parameter.kind is not parameter.VAR_KEYWORD
    ]
    assert set(everything(backend)) == {"backend", *known} - {"task", "num_envs"}


@pytest.mark.parametrize("backend", OWN)
def test_the_spec_of_a_single_environment_goes_through_json_too(everything, backend):
    options = everything(backend)
    del options["autoreset_mode"], options["output"]  # its checker wants numpy
    env = gym.make(ID, **options)
    again = gym.make(gym.envs.registration.EnvSpec.from_json(env.spec.to_json()))
    assert again.spec == env.spec
    worlds.assert_same(env.reset(seed=1), again.reset(seed=1))


def a_few_steps(env) -> list:
    return [env.reset(seed=1), *(env.step(a / 2) for a in worlds.random_actions(env, 4))]


def test_no_step_limit_is_registered_because_gymnasium_would_count_chunks():
    assert gym.spec(ID).max_episode_steps is None


def test_keywords_of_the_other_way_to_make_it_are_named(starts):
    with pytest.raises(TypeError, match="num_envs: gym.make builds one environment"):
        gym.make("wm_gym/Lift-v0", num_envs=3)
    with pytest.raises(TypeError, match="pass horizon=..."):
        gym.make_vec("wm_gym/Lift-v0", num_envs=3, max_episode_steps=3)


def test_backend_chooses_the_world(starts):
    assert isinstance(gym.make_vec(ID, starts=starts, backend="imagined"), ImaginedVectorEnv)
    with pytest.raises(ValueError, match="'imagined' or 'real', got 'dreamed'"):
        gym.make_vec(ID, backend="dreamed")


def test_make_gives_python_scalars_without_the_row_axis(starts):
    env = gym.make(ID, starts=starts, render_mode="rgb_array")
    obs, info = env.reset(seed=0, options={"start": 3})
    assert (obs["image"] == 103).all() and obs["image"].shape == (8, 8, 3)
    assert info["start"] == 3 and type(info["start"]) is int
    obs, reward, terminated, truncated, info = env.step(env.action_space.sample())
    assert (type(reward), type(terminated), type(truncated)) == (float, bool, bool)
    assert type(info["success"]) is bool and type(info["success_probability"]) is float
    assert np.array_equal(env.render(), obs["image"])
    assert env.unwrapped.instruction == "lift the red cube"
    env.close()


def test_one_environment_equals_the_first_row_of_a_batch(starts):
    one, many = gym.make(ID, starts=starts), gym.make_vec(ID, num_envs=2, starts=starts)
    one.reset(seed=4)
    many.reset(seed=4)
    actions = np.full((2, 7), 0.5, np.float32)
    single, batch = one.step(actions[0]), many.step(actions)
    assert np.array_equal(single[0]["image"], batch[0]["image"][0])
    assert single[-1] == {key: value[0] for key, value in batch[-1].items()}


def test_the_single_environment_passes_gymnasiums_checker(starts):
    env = SingleEnv("Lift", starts=starts, render_mode="rgb_array")
    check_env(env, skip_render_check=True)


def test_pictures_begin_a_single_episode(starts):
    env = SingleEnv("Lift", starts=starts)
    frames = np.full((3, 8, 8, 3), 50, np.uint8)
    obs, info = env.reset(options={"frames": frames, "actions": np.zeros((2, 7))})
    assert np.array_equal(obs["image"], frames[-1]) and info["start"] == -1


def test_gymnasiums_own_vectorisation_works_too(starts):
    env = gym.make_vec(ID, num_envs=2, vectorization_mode="sync", starts=starts)
    obs, _ = env.reset(seed=0)
    assert obs["image"].shape == (2, 8, 8, 3)
