"""What a worker does with a simulator; this one only counts its steps."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from wm_gym.real import worker as module
from wm_gym.real.expert import ExpertConfig
from wm_gym.real.worker import Worker


class Counter:
    """The state is [steps, a hidden number]; a picture is filled with the steps."""

    physics_size = 1
    env = "the robosuite environment"
    task = SimpleNamespace(name="Count")

    def __init__(self, wins: tuple[int, ...]) -> None:
        self.wins, self.pictures = wins, 0

    def set_state(self, state):
        self.state = state.copy()

    def get_state(self):
        return self.state.copy()

    def step(self, action):
        self.state += [1, action[0]]

    def success(self):
        return self.state[0] in self.wins

    def low_dim(self):
        return {"hidden": self.state[1:].astype(np.float32)}

    def render(self):
        self.pictures += 1
        return np.full((2, 2, 3), self.state[0], np.uint8)

    def sample_start(self, seed):
        self.state = np.array([seed, 0.0])
        return self.get_state()


class Hundredths:
    """An expert whose actions count 0.01, 0.02, ... from 0.1 x seed."""

    def __init__(self, env, config, rng):
        assert env == Counter.env and config == CONFIG
        self.drawn, self.count = rng.random(), 0

    def act(self):
        self.count += 1
        return np.full(7, self.drawn + self.count / 100, np.float32)


CONFIG = ExpertConfig(noise=0.5)


@pytest.fixture
def worker(monkeypatch):
    """Make a worker whose simulator says success at some steps."""
    monkeypatch.setitem(module.EXPERTS, "Count", Hundredths)

    def make(*wins: int) -> Worker:
        worker = object.__new__(Worker)
        worker.simulation = Counter(wins)
        return worker

    return make


def level(frames: np.ndarray) -> list:
    return frames[..., 0, 0, 0].tolist()


def actions(k: int) -> np.ndarray:
    return np.full((k, 7), 0.5)


START = np.array([0.0, 7.0])


def test_a_start_comes_with_its_picture(worker):
    state, picture, low_dim = worker().sample_start(4)
    assert state.tolist() == [4, 0] and (picture == 4).all()
    assert {key: row.tolist() for key, row in low_dim.items()} == {"hidden": [0]}


def test_play_goes_on_from_the_given_state(worker):
    played = worker(2).play(START, actions(3), stop_on_success=False, every_frame=True)
    assert played.state.tolist() == [3, 8.5]
    assert level(played.frames) == [1, 2, 3]
    assert played.success.tolist() == [False, True, False]
    assert played.states.tolist() == [[0], [1], [2], [3]]
    assert played.low_dim["hidden"].tolist() == [[7], [7.5], [8], [8.5]]
    assert START.tolist() == [0, 7]


def test_play_ends_with_the_first_success_when_told_to(worker):
    played = worker(2, 3).play(START, actions(5), stop_on_success=True, every_frame=True)
    assert played.state[0] == 2 and played.success.tolist() == [False, True]
    assert level(played.frames) == [1, 2] and len(played.states) == 3


def test_play_draws_one_picture_unless_all_are_asked_for(worker):
    one = worker(2)
    played = one.play(START, actions(5), stop_on_success=True, every_frame=False)
    assert level(played.frames) == [2] and one.simulation.pictures == 1


def test_a_demonstration_without_success_has_the_given_length(worker):
    recording = worker().demonstrate(START, CONFIG, seed=0, steps=3, tail=2)
    assert level(recording.frames) == [0, 1, 2, 3]
    assert recording.states.tolist() == [[0], [1], [2], [3]]
    assert recording.low_dim["hidden"].shape == (4, 1)
    assert recording.success.tolist() == [False] * 3
    assert recording.actions.shape == (3, 7) and recording.actions.dtype == np.float32


@pytest.mark.parametrize("wins", [(3,), (3, 4), (3, 5)])
def test_a_demonstration_ends_a_tail_after_its_first_success(worker, wins):
    recording = worker(*wins).demonstrate(START, CONFIG, seed=0, steps=20, tail=2)
    assert level(recording.frames) == [0, 1, 2, 3, 4, 5]
    assert (np.flatnonzero(recording.success) + 1).tolist() == list(wins)


def test_a_success_at_the_last_step_still_has_its_tail(worker):
    assert len(worker(4).demonstrate(START, CONFIG, seed=0, steps=4, tail=2).actions) == 6


def test_a_demonstration_that_nobody_films_is_the_same_without_pictures(worker):
    one = worker()
    seen, unseen = (one.demonstrate(START, CONFIG, 0, 3, 2, filmed) for filmed in (True, False))
    assert unseen.frames.shape == (4, 0, 0, 3) and one.simulation.pictures == 4
    assert seen.actions.tolist() == unseen.actions.tolist()
    assert seen.states.tolist() == unseen.states.tolist()


def test_a_demonstration_follows_from_its_seed(worker):
    a, b, c = (worker().demonstrate(START, CONFIG, s, 3, 2).actions[:, 0] for s in (1, 1, 2))
    assert a.tolist() == b.tolist() != c.tolist()
    assert np.diff(a) == pytest.approx([0.01, 0.01])
