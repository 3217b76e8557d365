"""The position probe: what it is taught, that it learns it, and how its readings are judged."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from wm_gym.data import Episode
from wm_gym.evaluation.probe import (
    PositionProbe,
    ProbeConfig,
    distances,
    positions,
    steady,
    train_probe,
)

SIDE = 24  # pixels
QUICK = ProbeConfig(steps=150, batch_size=32)


def scene(seed: int, t: int) -> Episode:
    """A green spot is the gripper and a red one the object: a pixel is a centimetre each way."""
    rng = np.random.default_rng(seed)
    places = rng.integers(2, SIDE - 2, (t + 1, 2, 2))  # (t + 1, gripper and object, y and x)
    frames = np.full((t + 1, SIDE, SIDE, 3), 128, np.uint8)
    for frame, place in zip(frames, places, strict=True):
        for colour, (y, x) in zip((1, 0), place, strict=True):
            frame[y - 1 : y + 2, x - 1 : x + 2] = 255 * np.eye(3)[colour]
    metres = np.zeros((t + 1, 2, 3), np.float32)
    metres[..., :2] = places / 100
    metres[..., 2] = 0.8
    thing = np.concatenate([metres[:, 1], np.ones((t + 1, 11), np.float32)], axis=1)
    low_dim = {"robot0_eef_pos": metres[:, 0], "object": thing}
    return Episode(frames, np.zeros((t, 7), np.float32), np.zeros(t, bool), low_dim=low_dim)


def blind(seed: int, *without: str) -> Episode:
    """Return a scene of which something is not recorded."""
    e = scene(seed, 5)
    kept = {key: rows for key, rows in e.low_dim.items() if key not in without}
    return Episode(e.frames, e.actions, e.success, low_dim=kept)


def flat_weights(probe: PositionProbe) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in probe.parameters()])


def test_positions_are_the_hand_and_the_first_three_numbers_of_the_object():
    e = scene(0, 4)
    found = positions(e.low_dim)
    assert found.shape == (5, 2, 3) and found.dtype == np.float32
    assert np.array_equal(found[:, 0], e.low_dim["robot0_eef_pos"])
    assert np.array_equal(found[:, 1], e.low_dim["object"][:, :3])


def test_a_jump_of_two_pictures_is_left_out_and_a_step_stays():
    given = np.zeros((9, 2, 3))
    given[3:5, 0, 1] = 9.0
    given[5:, 1, 2] = 7.0
    given[0, 1, 0] = 5.0
    found = steady(given)
    assert not found[:, 0].any() and found[:, 1, 2].tolist() == [0.0] * 5 + [7.0] * 4
    # The first is repeated beyond the end: three of the five around it are itself.
    assert found[:, 1, 0].tolist() == [5.0] + [0.0] * 8


def test_positions_that_were_not_recorded_are_none():
    assert positions(blind(0, "object").low_dim) is None
    assert positions(blind(0, "robot0_eef_pos").low_dim) is None
    short = blind(0)
    short.low_dim["object"] = short.low_dim["object"][:, :2]
    assert positions(short.low_dim) is None


@pytest.fixture(scope="module")
def trained() -> PositionProbe:
    return train_probe([scene(s, 20 + 7 * s) for s in range(8)], QUICK)


def test_a_probe_learns_to_read_positions_from_pictures_it_has_not_seen(trained):
    unseen = scene(100, 199)
    truth = torch.from_numpy(positions(unseen.low_dim))[None]
    away = distances(trained, torch.from_numpy(unseen.frames)[None], truth)
    assert away.shape == (1, 200, 2)
    medians = away[0].median(0).values
    guess = 1000 * (truth - truth.mean(1, keepdim=True)).norm(dim=-1)[0].median(0).values
    assert (guess > 70).all()  # what the mean position is worth
    assert (medians < 10).all()  # a pixel


def test_a_probe_is_small(trained):
    assert flat_weights(trained).numel() < 100_000


def test_the_same_seed_teaches_the_same_probe_and_leaves_global_randomness_alone():
    episodes = [scene(0, 6), scene(1, 9)]
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    one = train_probe(episodes, ProbeConfig(steps=3, batch_size=4, seed=1))
    assert torch.equal(torch.rand(4), expected)
    two = train_probe(episodes, ProbeConfig(steps=3, batch_size=4, seed=1))
    other = train_probe(episodes, ProbeConfig(steps=3, batch_size=4, seed=2))
    assert torch.equal(flat_weights(one), flat_weights(two))
    assert not torch.equal(flat_weights(one), flat_weights(other))
    assert not one.training


def test_episodes_without_positions_teach_nothing():
    config = ProbeConfig(steps=3, batch_size=4)
    alone = train_probe([scene(0, 6)], config)
    among = train_probe([blind(1, "object"), scene(0, 6), blind(2, "robot0_eef_pos")], config)
    assert torch.equal(flat_weights(alone), flat_weights(among))


def test_a_probe_begins_at_the_mean_position_in_the_scale_of_the_data():
    e = scene(0, 9)
    probe = train_probe([e], ProbeConfig(steps=1, batch_size=2))
    truth = positions(e.low_dim).reshape(10, 6)
    assert probe.middle.tolist() == pytest.approx(truth.mean(0).tolist(), abs=1e-6)
    assert probe.spread.item() == pytest.approx(((truth - truth.mean(0)) ** 2).mean() ** 0.5)


def test_no_positions_at_all_are_refused():
    with pytest.raises(ValueError, match="robot0_eef_pos and object .* none of 2 episodes has"):
        train_probe([blind(0, "object"), blind(1, "object")], QUICK)
