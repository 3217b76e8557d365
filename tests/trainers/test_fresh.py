"""New real episodes to judge a world model by: who plays, from where, for how long."""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import pytest

from tests.fakes import ScriptedEnv
from tests.trainers.two_worlds import Pusher
from trainers import fresh as module
from trainers.fresh import play_aside, play_expert, play_policy
from wm_gym.data import EpisodeWriter
from wm_gym.data.episode import Episode
from wm_gym.real.expert import PLAY


@pytest.fixture
def made(monkeypatch) -> list:
    """Let rows of a fake world succeed at steps 3, 99 (never), 3, ...; return what was made."""
    found = []

    def make(task, backend, rows, *, split, workers, **options):
        env = ScriptedEnv(([3, 99] * rows)[:rows], autoreset_mode="disabled", **options)
        found.append((task, backend, rows, split, workers, env))
        return env

    monkeypatch.setattr(module, "make_env", make)
    return found


def test_a_policy_plays_whole_episodes_from_the_starts_asked_for(made, monkeypatch):
    monkeypatch.setattr(module, "ROWS", 2)
    policy = Pusher(5.1, chunk=4)  # acts 5.1 / 12.75 = 0.4
    episodes = play_policy("Lift", policy, [1, 4, 2], 8, seed=0, workers=3)
    [(*asked, env)] = made
    assert asked == ["Lift", "real", 2, "validation", 3]
    assert env.begun == [(0, 1), (1, 4), (0, 2)]  # row and start; the last wave has one row
    assert [(e.source, e.start) for e in episodes] == [("policy", 1), ("policy", 4), ("policy", 2)]
    # A success at step 3 ends nothing: 8 steps and 9 pictures, of (row, episode, step).
    assert [e.success.tolist() for e in episodes[:2]] == [[0, 0, 1, 0, 0, 0, 0, 0], [0] * 8]
    assert [e.frames[:, 0, 0, 2].tolist() for e in episodes] == [list(range(9))] * 3
    assert all(np.allclose(e.actions[:, 0], 0.4) and e.actions.shape == (8, 7) for e in episodes)
    assert [greedy for *_, greedy in policy.told] == [False] * 4  # 2 waves of 2 decisions


@pytest.fixture
def asked(monkeypatch) -> list:
    """Record episodes of nothing, where none are kept yet; return what was asked for."""
    found = []

    def record(path, task, starts, indices, expert, *, source, seed, pool):
        found.append((task.name, starts.split, list(indices), expert, source, seed, pool))
        if path.exists():
            return
        frames = np.zeros((expert.length + 1, 8, 8, 3), np.uint8)
        actions, success = np.zeros((expert.length, 7), np.float32), np.zeros(expert.length, bool)
        with EpisodeWriter(path, {"env_name": "Lift"}) as writer:
            for start in indices:
                writer.append(Episode(frames, actions, success, source=source, start=start))

    monkeypatch.setattr(module, "record_expert", record)
    monkeypatch.setattr(module, "SimulationPool", lambda task, workers: nullcontext(workers))
    return found


def test_the_expert_that_errs_is_recorded_and_kept(asked, tmp_path):
    path = tmp_path / "long.hdf5"
    found = play_expert(path, "Lift", "train", [7], 40, source="long", seed=5, workers=2)
    [(*facts, expert, source, seed, workers)] = asked
    assert facts == ["Lift", "train", [7]] and (source, seed, workers) == ("long", 5, 2)
    assert expert.length == 40 and expert.clumsy == PLAY.clumsy > 0
    assert [(e.source, e.start, len(e)) for e in found] == [("long", 7, 40)] and path.exists()


def test_of_what_is_kept_no_more_is_taken_than_was_asked_for(asked, tmp_path):
    given = {"source": "long", "seed": 5, "workers": 2}
    path = tmp_path / "long.hdf5"
    play_expert(path, "Lift", "train", [7, 2, 4], 6, **given)
    found = play_expert(path, "Lift", "train", [7, 2], 6, **given)
    assert [(e.start, len(e)) for e in found] == [(7, 6), (2, 6)]
    with pytest.raises(ValueError, match=r"Episode 0 in .* has 6 steps from start 7, not 6 from 2"):
        play_expert(path, "Lift", "train", [2, 4], 6, **given)
    with pytest.raises(ValueError, match="has 6 steps from start 7, not 8 from 7; remove the file"):
        play_expert(path, "Lift", "train", [7], 8, **given)


@pytest.mark.sim
def test_what_is_repeated_in_place_is_the_same_and_aside_it_is_not():
    episodes = play_policy("Lift", Pusher(2.0, chunk=4), [3, 1], 10, seed=0, workers=1)
    recorded = np.stack([e.frames[1:] for e in episodes]).astype(int)
    repeated, aside = (
        play_aside("Lift", episodes, 10, metres, seed=0, workers=1) for metres in (0.0, 0.02)
    )
    np.testing.assert_array_equal(repeated, recorded)
    assert aside.shape == recorded.shape and aside.dtype == np.uint8
    differ = (abs(aside - recorded).max(-1) > 30).mean((2, 3))  # share of the pixels, (n, t)
    # Half of a cube that is 10 pixels wide, where it was and where it is now.
    assert differ.min() > 0.005 and differ.max() < 0.06
