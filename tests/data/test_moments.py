"""Starts in the middle of recorded episodes."""

from __future__ import annotations

import numpy as np
import pytest

from tests.fakes import imagined
from wm_gym.data.moments import PAST, add_moments
from wm_gym.real.vector import RealVectorEnv
from wm_gym.starts import StartPool


@pytest.fixture
def pool() -> StartPool:
    """Two starts: pictures of 100 and 101 everywhere."""
    frames = np.full((2, 4, 4, 3), 100, np.uint8)
    frames[1] = 101
    return StartPool(frames, np.array([[1.0, 2.0], [3.0, 4.0]]), "Lift", "train")


def levels(pool: StartPool) -> np.ndarray:
    """Brightness of what each start remembers, past and present, (s, T)."""
    return np.concatenate([pool.past, pool.frames[:, None]], 1)[..., 0, 0, 0]


def test_starts_stay_and_are_at_rest(pool, make_episode):
    more = add_moments(pool, [make_episode()], 3, seed=0)
    assert len(more) == 5 and (more.task, more.split) == ("Lift", "train")
    assert levels(more)[:2].tolist() == [[100] * (PAST + 1), [101] * (PAST + 1)]
    assert np.array_equal(more.states[:2], pool.states) and np.isnan(more.states[2:]).all()


def test_a_moment_remembers_where_its_episode_began_and_the_pictures_just_before(
    pool, make_episode
):
    episodes = [make_episode(number, t=15) for number in range(4)]  # levels 10 x number + time
    shown = levels(add_moments(pool, episodes, 40, seed=0))[2:].astype(int)
    number, time = np.divmod(shown[:, -1] - shown[:, 0], 100)[0], shown[:, -1] - shown[:, 0]
    assert (shown[:, 0] % 10 == 0).all() and (number == 0).all()  # the first picture of its own
    before = np.arange(1 - PAST, 1)[None]  # the PAST pictures that end with the moment
    expected = shown[:, :1] + (time[:, None] + before).clip(min=0)
    assert np.array_equal(shown[:, 1:], expected)
    assert set(time) <= set(range(1, 16)) and len(set(time)) > 8


def test_episodes_take_turns(pool, make_episode):
    episodes = [make_episode(number, t=3) for number in range(5)]
    firsts = levels(add_moments(pool, episodes, 12, seed=1))[2:, 0]
    assert sorted(np.bincount(firsts // 10)) == [2, 2, 2, 3, 3]


def test_no_moment_comes_after_success(pool, make_episode):
    episode = make_episode(t=9, success=(3, 4))  # done after the action at 3, in picture 4
    shown = levels(add_moments(pool, [episode], 60, seed=0))[2:, -1]
    assert set(shown) == {1, 2, 3}


def test_an_imagined_episode_begins_at_a_moment(make_episode):
    frames = np.full((1, 8, 8, 3), 100, np.uint8)
    past = np.broadcast_to(np.array([10, 20], np.uint8)[None, :, None, None, None], (1, 2, 8, 8, 3))
    pool = StartPool(frames, np.full((1, 1), np.nan), "Lift", "train", past=past.copy())
    by_pool, by_pictures = imagined(1, starts=pool), imagined(1)
    obs, _ = by_pool.reset(seed=0, options={"start": np.array([0])})
    pictures = np.concatenate([past, frames[:, None]], 1)
    actions = np.zeros((1, 2, 7), np.float32)
    by_pictures.reset(seed=0, options={"frames": pictures, "actions": actions})
    assert (obs["image"] == 100).all()
    for step in range(3):
        action = np.full((1, 7), 0.3 * step, np.float32)
        one, other = by_pool.step(action), by_pictures.step(action)
        assert np.array_equal(one[0]["image"], other[0]["image"])
        np.testing.assert_array_equal(
            one[-1]["success_probability"], other[-1]["success_probability"]
        )


def test_the_real_world_cannot_begin_at_a_moment(pool, make_episode):
    with pytest.raises(ValueError, match="pictures alone"):
        RealVectorEnv("Lift", starts=add_moments(pool, [make_episode()], 1, seed=0))


def test_pasts_of_another_shape_are_refused(pool):
    with pytest.raises(ValueError, match=r"uint8 \(2, 3, 4, 4, 3\), got uint8 \(1, 3, 4, 4, 3\)"):
        StartPool(
            pool.frames, pool.states, "Lift", "train", past=np.zeros((1, 3, 4, 4, 3), np.uint8)
        )
