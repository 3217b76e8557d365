"""Starts in the middle of recorded episodes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.fakes import imagined
from wm_gym.data.moments import (
    PAST,
    Moments,
    draw_moments,
    load_moments,
    save_moments,
    with_moments,
)
from wm_gym.real.vector import RealVectorEnv
from wm_gym.starts import StartPool

NOTHING = Moments(np.zeros((1, 2, 4, 4, 3), np.uint8), {})


@pytest.fixture
def pool() -> StartPool:
    """Two starts: pictures of 100 and 101 everywhere."""
    frames = np.full((2, 4, 4, 3), 100, np.uint8)
    frames[1] = 101
    return StartPool(frames, np.array([[1.0, 2.0], [3.0, 4.0]]), "Lift", "train")


def levels(moments: np.ndarray) -> np.ndarray:
    """Brightness of pictures that are one brightness each, (m, T)."""
    return moments[..., 0, 0, 0].astype(int)


def test_a_moment_shows_where_its_episode_began_and_the_pictures_just_before(make_episode):
    episodes = [make_episode(number, t=15) for number in range(4)]  # levels 10 x number + time
    shown = levels(draw_moments(episodes, 40, seed=0).frames)
    time = shown[:, -1] - shown[:, 0]
    assert (shown[:, 0] % 10 == 0).all()
    before = np.arange(1 - PAST, 1)[None]  # the PAST pictures that end with the moment
    assert np.array_equal(shown[:, 1:], shown[:, :1] + (time[:, None] + before).clip(min=0))
    assert set(time) <= set(range(1, 16)) and len(set(time)) > 8


def test_episodes_take_turns(make_episode):
    episodes = [make_episode(number, t=3) for number in range(5)]
    firsts = levels(draw_moments(episodes, 12, seed=1).frames)[:, 0]
    assert sorted(np.bincount(firsts // 10)) == [2, 2, 2, 3, 3]


@pytest.mark.parametrize("order", [1, -1])
def test_what_an_episode_does_not_say_is_nan(make_episode, order):
    x, y = (np.full((4, 1), value, np.float32) for value in (1, 2))
    both = make_episode(t=3, low_dim={"robot0_x": x, "robot0_y": y})
    one = make_episode(t=3, low_dim={"robot0_x": x})
    found = draw_moments([both, one][::order], 4, seed=0).low_dim
    assert list(found) == ["robot0_x", "robot0_y"] and found["robot0_x"].tolist() == [[1]] * 4
    assert np.sort(found["robot0_y"][:, 0]).tolist()[:2] == [2, 2]
    assert np.isnan(found["robot0_y"]).sum() == 2 and found["robot0_y"].dtype == np.float32


def test_no_moment_comes_after_success(make_episode):
    episode = make_episode(t=9, success=(3, 4))  # done after the action at 3, in picture 4
    assert set(levels(draw_moments([episode], 60, seed=0).frames)[:, -1]) == {1, 2, 3}
    at_once = make_episode(t=2, success=(0,))
    assert set(levels(draw_moments([at_once], 9, seed=0).frames)[:, -1]) == {0}


def test_a_pool_keeps_its_starts_and_these_are_at_rest(pool):
    moments = np.arange(3, dtype=np.uint8)[None, :, None, None, None] + np.zeros(
        (2, 1, 4, 4, 3), np.uint8
    )
    more = with_moments(pool, Moments(moments, {}))
    assert (more.task, more.split, len(more)) == ("Lift", "train", 4)
    assert levels(more.past).tolist() == [[100, 100], [101, 101], [0, 1], [0, 1]]
    assert more.frames[:, 0, 0, 0].tolist() == [100, 101, 2, 2]
    assert np.array_equal(more.states[:2], pool.states) and np.isnan(more.states[2:]).all()


def test_moments_of_another_size_are_refused(pool):
    with pytest.raises(ValueError, match=r"\(m, T, 4, 4, 3\).*got uint8 \(1, 2, 8, 8, 3\)"):
        with_moments(pool, Moments(np.zeros((1, 2, 8, 8, 3), np.uint8), {}))


def test_a_moment_comes_with_what_the_robot_measures_there(make_episode):
    """Its own measurements alone; the hand is where the picture's level says."""
    episodes = []
    for number in range(3):
        low_dim = {"robot0_eef_pos": 10 * number + np.arange(7, dtype=np.float32)[:, None]}
        low_dim["object"] = np.zeros((7, 14), np.float32)
        episodes.append(replace(make_episode(number, t=6), low_dim=low_dim))
    moments = draw_moments(episodes, 20, seed=0)
    assert list(moments.low_dim) == ["robot0_eef_pos"]
    hand = moments.low_dim["robot0_eef_pos"]
    assert hand.dtype == np.float32 and hand.shape == (20, 1)
    assert np.array_equal(hand[:, 0], levels(moments.frames)[:, -1])


def test_a_pool_keeps_its_measurements_and_takes_those_of_the_moments(pool):
    known = {"hand": np.float32([[1], [2]]), "fingers": np.float32([[5], [6]])}
    told = {"hand": np.float32([[3]]), "joints": np.float32([[7, 8]])}
    moments = Moments(np.zeros((1, 2, 4, 4, 3), np.uint8), told)
    found = with_moments(replace(pool, low_dim=known), moments).low_dim
    assert list(found) == ["hand", "fingers", "joints"]
    assert found["hand"].tolist() == [[1], [2], [3]]
    assert found["fingers"][:2].tolist() == [[5], [6]] and np.isnan(found["fingers"][2]).all()
    assert np.isnan(found["joints"][:2]).all() and found["joints"][2].tolist() == [7, 8]


def test_a_pool_is_the_same_however_its_measurements_are_ordered(pool):
    known = {"hand": np.float32([[1], [2]]), "fingers": np.float32([[5], [6]])}
    turned = dict(reversed(known.items()))
    one, same = (replace(pool, low_dim=rows).fingerprint() for rows in (known, turned))
    swapped = dict(zip(known, turned.values(), strict=True))
    assert one == same != replace(pool, low_dim=swapped).fingerprint()


def test_moments_come_back_from_their_file(tmp_path):
    frames = np.random.default_rng(0).integers(0, 256, (3, 2, 4, 4, 3), np.uint8)
    moments = Moments(frames, {"hand": np.float32([[1, 2], [3, 4], [5, 6]])})
    assert save_moments(moments, tmp_path) == tmp_path / "moments.npz"
    found = load_moments("Lift", tmp_path)
    assert np.array_equal(found.frames, frames)
    assert list(found.low_dim) == ["hand"]
    assert np.array_equal(found.low_dim["hand"], moments.low_dim["hand"])


def test_a_missing_or_damaged_file_of_moments_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"No moments for task 'Lift' at .*moments\.npz"):
        load_moments("Lift", tmp_path)
    (tmp_path / "moments.npz").write_bytes(b"PK cut short")
    with pytest.raises(ValueError, match=r"moments\.npz holds no moments"):
        load_moments("Lift", tmp_path)


def test_an_imagined_episode_begins_at_a_moment():
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


def test_the_real_world_cannot_begin_at_a_moment(pool):
    with pytest.raises(ValueError, match="pictures alone"):
        RealVectorEnv("Lift", starts=with_moments(pool, NOTHING))


def test_pasts_of_another_shape_are_refused(pool):
    with pytest.raises(ValueError, match=r"uint8 \(2, 3, 4, 4, 3\), got uint8 \(1, 3, 4, 4, 3\)"):
        StartPool(
            pool.frames, pool.states, "Lift", "train", past=np.zeros((1, 3, 4, 4, 3), np.uint8)
        )
