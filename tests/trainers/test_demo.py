"""Films of n environments: what they show, and who may play."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import gymnasium as gym
import imageio.v3 as iio
import numpy as np
import pytest
import torch

from tests.fakes import ScriptedEnv, fake_pool
from trainers import demo as module
from trainers.cli import main
from trainers.demo import DemoConfig, demo
from wm_gym.evaluation.video import GREEN, RED

NEVER = 99


@pytest.fixture
def film(monkeypatch) -> dict:
    """Replace the world by one in which row i succeeds at step wins[i]; catch what is filmed."""
    caught = {"wins": [2, NEVER]}

    def make_vec(id, num_envs, backend, split, **options):
        caught.update(id=id, backend=backend, split=split)
        caught["env"] = ScriptedEnv(caught["wins"], **options)
        return caught["env"]

    monkeypatch.setattr(gym, "make_vec", make_vec)
    monkeypatch.setattr(module, "write_video", lambda path, frames: caught.update(frames=frames))
    return caught


def test_a_border_turns_green_with_the_success_and_the_picture_waits(film, capsys):
    demo(DemoConfig(num_envs=2, steps=4))
    frames = film["frames"]  # two pictures of 8 pixels side by side, and the start before 4 steps
    assert frames.shape == (5, 8, 16, 3)
    assert [tuple(pixel) for pixel in frames[:, 0, 0]] == [RED] * 2 + [GREEN] * 3
    assert [tuple(pixel) for pixel in frames[:, 0, 8]] == [RED] * 5
    assert frames[:, 4, [4, 12], 2].tolist() == [[0, 0], [1, 1], [2, 2], [2, 3], [2, 4]]
    assert "demo.mp4: 1 of 2 imagined episodes succeed" in capsys.readouterr().out
    assert (film["id"], film["split"], film["env"].closed) == ("wm_gym/Lift-v0", "validation", True)


def test_a_film_ends_with_its_last_episode(film):
    film["wins"] = [1, 2]
    demo(DemoConfig(num_envs=2, steps=50))
    assert len(film["frames"]) == 3


def test_random_actions_follow_from_the_seed(film, monkeypatch):
    asked, play = [], ScriptedEnv._play

    def spy(env, rows, actions, steps):
        asked.append(actions)
        return play(env, rows, actions, steps)

    monkeypatch.setattr(ScriptedEnv, "_play", spy)
    for seed in (1, 1, 2):
        demo(DemoConfig(num_envs=2, steps=1, seed=seed))
    first, again, other = asked
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    assert first.min() < -0.5 and first.max() > 0.5


def test_a_policy_plays_greedily_in_its_own_chunks(film, monkeypatch):
    told = []

    def act(obs, instructions, greedy):
        told.append((obs["image"].shape, instructions, greedy))
        return SimpleNamespace(action=torch.zeros(2, 3, 7))

    monkeypatch.setattr(
        module.TokenVLA, "from_pretrained", lambda name: SimpleNamespace(chunk=3, act=act)
    )
    demo(DemoConfig(policy="runs/lift/policy", num_envs=2, steps=4))
    assert film["env"].chunk == 3
    assert told == [((2, 8, 8, 3), ["lift the red cube"] * 2, True)] * 2
    assert len(film["frames"]) == 1 + 3 + 3  # two chunks; the second plays one step and waits


def test_the_expert_is_filmed_inside_the_simulators(film, monkeypatch):
    asked = []

    class Pool:
        def __init__(self, task) -> None: ...
        def __enter__(self):
            return self

        def __exit__(self, *_): ...
        def map(self, name, requests):
            asked.extend((name, float(state[0]), *rest) for state, *rest in requests)
            steps = [1, 3, 2]
            return [
                SimpleNamespace(
                    frames=np.full((n + 1, 8, 8, 3), 10 * n, np.uint8),
                    success=np.arange(1, n + 1) == (n if n < 3 else 0),
                )
                for n in steps
            ]

    monkeypatch.setattr("wm_gym.real.pool.SimulationPool", Pool)
    monkeypatch.setattr(module, "load_starts", lambda task, split: fake_pool(2))
    demo(DemoConfig(backend="real", policy="expert", num_envs=3, steps=3, seed=5))
    assert [(name, state) for name, state, *_ in asked] == [("demonstrate", s) for s in (0, 1, 0)]
    assert [rest for *_, _, _, rest in asked] == [0] * 3  # not a step past the success
    assert [(seed, steps) for *_, seed, steps, _ in asked] == [(5, 3), (6, 3), (7, 3)]
    frames = film["frames"]
    assert frames.shape == (4, 16, 16, 3)
    places = [frames[:, y, x] for y, x in ((0, 0), (0, 8), (8, 0))]
    greens = [[tuple(pixel) == GREEN for pixel in place] for place in places]
    assert greens == [[False, True, True, True], [False] * 4, [False, False, True, True]]


def test_the_expert_needs_the_real_world():
    with pytest.raises(ValueError, match="--backend real, or film another policy"):
        demo(DemoConfig(policy="expert"))


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("num_envs", 0, "num_envs must be an integer at least 1, got 0"),
        ("steps", -1, "steps must be an integer at least 1, got -1"),
        ("out", module.Path("demo.avi"), "ends in .mp4 or .gif; got 'demo.avi'"),
        ("task", "Fly", "Fly"),
    ],
)
def test_bad_options_are_refused_before_anything_is_played(film, option, value, message):
    with pytest.raises(ValueError, match=message):
        demo(DemoConfig(**{option: value}))
    assert "env" not in film


def test_the_command_writes_a_video(monkeypatch, tmp_path):
    monkeypatch.setattr(
        gym,
        "make_vec",
        lambda id, num_envs, backend, split, **options: ScriptedEnv([1] * num_envs, **options),
    )
    out = tmp_path / "demo.mp4"
    arguments = "demo --task Lift --backend imagined --policy random --num-envs 5 --steps 3"
    monkeypatch.setattr(sys, "argv", ["wm-gym", *arguments.split(), "--out", str(out)])
    main()
    film = iio.imread(out, plugin="FFMPEG")
    assert film.shape == (2, 176, 264, 3)  # 2 x 3 places of 8 pixels, 11 times as large
    assert np.abs(film[-1, 2, 2].astype(int) - GREEN).max() < 40
