"""The real vector environment: what it makes of its simulators' answers, then robosuite itself."""

from __future__ import annotations

import os
import signal
import threading
import time
from dataclasses import replace

import numpy as np
import pytest

from tests.fakes import fake_pool
from tests.worlds import SMALL, Ladder, assert_same
from wm_gym.real import vector
from wm_gym.real.vector import RealVectorEnv
from wm_gym.tasks import TASKS


@pytest.fixture
def ladder(monkeypatch):
    """Make an environment of ladders: start s shows the level 100 + s and has the state [s]."""
    monkeypatch.setattr(vector, "SimulationPool", Ladder)
    monkeypatch.setitem(TASKS, "Lift", SMALL)

    def make(num_envs: int = 2, **options) -> RealVectorEnv:
        options = {"starts": fake_pool(), "autoreset_mode": "Disabled"} | options
        env = RealVectorEnv("Lift", num_envs, **options)
        env.reset(seed=0, options={"start": np.arange(num_envs)})
        return env

    return make


def climb(env: RealVectorEnv, *rows: list[int]) -> np.ndarray:
    """Actions whose first values are given, a list of K a row."""
    actions = np.zeros((env.num_envs, env.chunk, 7), np.float32)
    actions[..., 0] = rows
    return actions.reshape(env.action_space.shape)


def level(image: np.ndarray) -> list:
    return image[..., 0, 0, 0].tolist()


def test_every_row_goes_on_from_its_own_state(ladder):
    env = ladder()
    env.step(climb(env, [1], [0]))
    obs, *_ = env.step(climb(env, [1], [1]))
    assert level(obs["image"]) == [102, 102]
    states = [[float(state[0]) for state, *_ in requests] for requests in env._simulations.requests]
    assert states == [[0.0, 1.0], [1.0, 1.0]]


def test_a_chunk_stops_at_the_success_and_repeats_its_last_frame(ladder):
    env = ladder(chunk=4, return_frames=True)
    _, reward, terminated, _, info = env.step(climb(env, [1, 0, 0, 0], [1, 1, 1, 1]))
    assert (reward.tolist(), terminated.tolist()) == ([0, 1], [False, True])
    assert info["played"].tolist() == [4, 2]
    assert level(info["frames"]) == [[101, 101, 101, 101], [102, 103, 103, 103]]
    assert info["frames_success"].tolist() == [[False] * 4, [False, True, False, False]]
    assert info["success_probability"].tolist() == [0.0, 1.0]


def test_ignored_terminations_play_past_the_success(ladder):
    env = ladder(1, chunk=4, return_frames=True, ignore_terminations=True)
    _, reward, terminated, _, info = env.step(climb(env, [1, 1, 1, -1]))
    assert (reward[0], terminated[0], info["played"][0]) == (1.0, False, 4)
    assert info["frames_success"].tolist() == [[False, False, True, False]]
    assert info["success"].tolist() == [True] and info["success_probability"].tolist() == [0.0]


def test_only_the_last_frame_is_drawn_unless_frames_are_asked_for(ladder):
    for asked in (False, True):
        env = ladder(chunk=2, return_frames=asked)
        obs, *_ = env.step(climb(env, [1, 1], [1, 0]))
        assert level(obs["image"]) == [102, 102]
        assert [every for *_, every in env._simulations.requests[0]] == [asked, asked]


def test_frozen_rows_and_steps_past_the_horizon_are_not_simulated(ladder):
    env = ladder(chunk=3, horizon=4)
    env.step(climb(env, [0, 0, 0], [1, 1, 0]))  # row 1 succeeds at once
    env.step(climb(env, [0, 0, 0], [0, 0, 0]))
    ((state, actions, *_),) = env._simulations.requests[1]
    assert state.tolist() == [0.0] and actions.shape == (1, 7)


def test_a_row_beside_a_frozen_one_goes_on_from_its_own_state(ladder):
    env = ladder()
    env.reset(options={"start": np.array([2, 0])})
    env.step(climb(env, [1], [0]))  # row 0 succeeds at once
    for expected in (101, 102):
        obs, *_ = env.step(climb(env, [0], [1]))
        assert level(obs["image"]) == [103, expected]


def test_a_reset_row_is_back_at_its_start(ladder):
    env = ladder()
    env.step(climb(env, [1], [1]))
    obs, _ = env.reset(options={"start": np.array([2, 0]), "reset_mask": np.array([True, False])})
    assert level(obs["image"]) == [102, 102]
    obs, *_ = env.step(climb(env, [0], [-1]))
    assert level(obs["image"]) == [102, 101]


def test_a_failing_simulator_is_named_by_its_row(ladder):
    env = ladder(3)
    env.reset(options={"start": np.array([0, 2, 0])})
    env.step(climb(env, [0], [1], [0]))  # row 1 succeeds at once
    env.step(climb(env, [0], [0], [0]))
    assert env._simulations.labels == [["row 0", "row 1", "row 2"], ["row 0", "row 2"]]


def test_a_step_whose_simulator_fails_changes_nothing(ladder, monkeypatch):
    env = ladder(2)
    env.step(climb(env, [1], [0]))
    before, play = env.get_state(), env._simulations.play

    def fail_at_one(state, *rest):
        if state[0] == 1:
            raise RuntimeError("Two simulators died on row 0")
        return play(state, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(env._simulations, "play", fail_at_one)
        with pytest.raises(RuntimeError, match="row 0"):
            env.step(climb(env, [1], [1]))
    assert_same(env.get_state(), before)
    assert level(env.step(climb(env, [1], [1]))[0]["image"]) == [102, 102]


@pytest.mark.parametrize("timeout", [0, -1.0, float("nan")])
def test_a_timeout_is_a_positive_time(ladder, timeout):
    assert ladder(timeout=3.5)._simulations.timeout == 3.5
    with pytest.raises(ValueError, match="timeout must be a positive number of seconds"):
        ladder(timeout=timeout)


def test_closing_ends_the_simulators(ladder):
    env = ladder()
    env.close()
    assert env._simulations.closed


@pytest.mark.parametrize(("cores", "rows", "workers"), [(4, 3, 3), (2, 3, 2), (1, 3, 1)])
def test_there_are_as_many_workers_as_rows_or_cores(ladder, monkeypatch, cores, rows, workers):
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)), raising=False)
    assert ladder(rows)._simulations.workers == workers


def test_starts_that_are_no_simulator_states_are_refused_before_a_worker_starts(monkeypatch):
    monkeypatch.setattr(vector, "SimulationPool", None)  # must not be asked
    small = "draws 64 x 64 pictures and the starts are 8 x 8"
    with pytest.raises(ValueError, match=small):
        RealVectorEnv("Lift", starts=fake_pool())
    unknown = replace(fake_pool(2, image_size=64), states=np.array([[0.0], [np.nan]]))
    with pytest.raises(ValueError, match="known by their pictures alone"):
        RealVectorEnv("Lift", starts=unknown)


def test_workers_must_be_a_positive_number(ladder):
    with pytest.raises(ValueError, match="workers must be an integer at least 1, got 0"):
        ladder(workers=0)


# From here on with robosuite.


def play(env: RealVectorEnv, steps: int, chunk: int) -> list:
    """Play three rows from starts 3, 4 and 5 under actions that do not depend on the chunk."""
    actions = np.random.default_rng(0).uniform(-1, 1, (3, steps, 7)).astype(np.float32)
    found = [env.reset(seed=0, options={"start": np.array([3, 4, 5])})]
    for first in range(0, steps, chunk):
        found.append(env.step(actions[:, first : first + chunk]))
    return found


@pytest.fixture(scope="module")
def one_worker():
    options = {"chunk": 4, "return_frames": True, "autoreset_mode": "Disabled"}
    env = RealVectorEnv("Lift", 3, workers=1, **options)
    yield env
    env.close()


@pytest.fixture(scope="module")
def undisturbed(one_worker):
    return play(one_worker, 8, 4)


@pytest.fixture
def shared(simulations, monkeypatch):
    """Make environments that are played by the two workers that all tests share."""
    monkeypatch.setattr(vector, "SimulationPool", lambda *_: simulations)
    return lambda **options: RealVectorEnv("Lift", 3, autoreset_mode="Disabled", **options)


@pytest.mark.sim
def test_rows_do_not_depend_on_the_number_of_workers(undisturbed, shared):
    assert_same(play(shared(chunk=4, return_frames=True), 8, 4), undisturbed)


@pytest.mark.sim
def test_a_chunk_is_the_same_as_its_actions_one_by_one(undisturbed, shared):
    single = play(shared(chunk=1, return_frames=True), 8, 1)
    frames = np.concatenate([info["frames"] for *_, info in undisturbed[1:]], axis=1)
    assert np.array_equal(np.concatenate([i["frames"] for *_, i in single[1:]], axis=1), frames)


@pytest.mark.sim
def test_the_last_picture_is_the_same_without_the_others(undisturbed, shared):
    found = play(shared(chunk=4), 8, 4)
    assert all(
        np.array_equal(came[0]["image"], wanted[0]["image"])
        for came, wanted in zip(found, undisturbed, strict=True)
    )


@pytest.mark.sim
def test_the_pictures_move_and_differ_by_row(undisturbed):
    frames = np.concatenate([info["frames"] for *_, info in undisturbed[1:]], axis=1)
    assert all((frames[:, i] != frames[:, i + 1]).any((1, 2, 3)).all() for i in range(7))
    assert (frames[0] != frames[1]).any() and (frames[1] != frames[2]).any()


@pytest.mark.sim
def test_kill_9_of_a_busy_worker_changes_nothing(undisturbed, one_worker):
    pool = one_worker._simulations
    worker, victim = pool._processes[0], pool._processes[0]._process

    def kill_while_busy() -> None:
        while worker.job is None:
            time.sleep(0.001)
        victim.send_signal(signal.SIGKILL)

    killer = threading.Thread(target=kill_while_busy)
    killer.start()
    with pytest.warns(RuntimeWarning, match=rf"row . \(play\).*worker 0 \(process {victim.pid}\)"):
        found = play(one_worker, 8, 4)
    killer.join()
    assert victim.poll() == -signal.SIGKILL
    assert_same(found, undisturbed)


@pytest.mark.sim
def test_a_state_of_another_size_is_refused_by_the_simulator(simulations, shared):
    env = shared()
    env.reset(seed=0)
    env._states = env._states[:, :-1]
    with pytest.raises(RuntimeError, match=r"A state of Lift has shape \(74,\), got \(73,\)"):
        env.step(np.zeros((3, 7), np.float32))
