"""The parts of training that fit on a napkin: the loss, the clips, their lengths and the rate."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from wm_gym.data import Episode
from wm_gym.data.windows import Windows
from wm_gym.world_model.training import WorldModelTrainingConfig, clips, frame_loss, schedule

# The loss.


def loss_of(drawn, clean, valid=(True,), change_weight=2.0) -> float:
    """Compare with an anchor of zeros."""
    args = torch.zeros_like(clean), torch.tensor(valid), change_weight
    return frame_loss(drawn, clean, *args).item()


def test_the_loss_around_what_changed_counts_more_by_hand():
    """The green of pixel (4, 0) differs from the anchor, so 5 rows of 3 pixels count threefold."""
    clean = torch.zeros(1, 3, 8, 8)
    clean[0, 1, 4, 0] = 0.5
    drawn = clean.clone()
    drawn[0, 0, 2, 2] = 0.3  # within 2 of it, and as red as it should not be
    drawn[0, 2, 6, 3] = 0.4  # beyond
    weights = 15 * 3 + (64 - 15) * 1
    expected = (0.3**2 * 3 + 0.4**2 * 1) / (weights * 3)
    assert loss_of(drawn, clean) == pytest.approx(expected, rel=1e-5)
    assert loss_of(drawn, clean, change_weight=0.0) == pytest.approx(0.25 / 192, rel=1e-5)


@pytest.mark.parametrize(("value", "weight"), [(0.14, 1), (0.16, 3), (-0.16, 3)])
def test_small_differences_are_no_change(value, weight):
    clean = torch.zeros(1, 3, 8, 8)
    clean[0, 2, 0, 0] = value
    drawn = clean.clone()
    drawn[0, 0, 1, 1] = 1.0
    assert loss_of(drawn, clean) == pytest.approx(weight / ((9 * weight + 55) * 3), rel=1e-5)


def test_what_changed_is_seen_against_each_pictures_own_anchor():
    clean = torch.zeros(2, 3, 8, 8)
    anchor, drawn = clean.clone(), clean.clone()
    anchor[0] = 0.5  # so all of the first has changed
    drawn[:, :, 0, 0] = torch.tensor([[1.0], [2.0]])
    loss = frame_loss(drawn, clean, anchor, torch.ones(2).bool(), 2.0).item()
    assert loss == pytest.approx((3 * 1 + 1 * 4) / (64 * 3 + 64), rel=1e-5)


def test_pictures_that_are_not_there_cost_nothing():
    clean, drawn = torch.zeros(3, 3, 8, 8), torch.ones(3, 3, 8, 8)
    drawn[1] = 7.0
    assert loss_of(drawn, clean, [True, False, True]) == 1.0


def test_a_batch_without_valid_pictures_has_no_loss():
    clean = torch.zeros(2, 3, 8, 8)
    assert loss_of(clean + 1, clean, [False, False]) == 0.0


# What is drawn, and when.


def blank(t: int, source: str = "") -> Episode:
    frames = np.zeros((t + 1, 16, 16, 3), np.uint8)
    return Episode(frames, np.zeros((t, 7), np.float32), np.zeros(t, bool), source=source)


def test_clips_begin_where_they_fit_and_episodes_count_by_their_length():
    """Of 8 steps 6 and 2 belong to each; clips of 4 fit at 3 places and at none but the first."""
    windows = clips(Windows([blank(6), blank(2)]), length=4, beginnings=0.25)
    rest = 0.75 * np.array([0.25, 0.25, 0.25, 0, 0, 0, 0.25, 0])
    first = 0.25 * np.array([0.75, 0, 0, 0, 0, 0, 0.25, 0])
    assert windows.weights.tolist() == pytest.approx((rest + first).tolist())
    assert windows.block == 4 and windows.batch([0])["valid"].shape == (1, 4)


@pytest.mark.parametrize(
    ("beginnings", "expected"), [(1.0, [0.6, 0, 0, 0.4, 0]), (0.0, [0.3, 0.3, 0, 0.4, 0])]
)
def test_all_or_none_of_the_clips_may_be_beginnings(beginnings, expected):
    windows = clips(Windows([blank(3), blank(2)]), length=2, beginnings=beginnings)
    assert windows.weights.tolist() == pytest.approx(expected)


def test_clips_of_clips_are_those_of_the_windows():
    windows = Windows([blank(9), blank(5)], memory=2)
    again = clips(clips(windows, 3, 0.5), 4, 0.25)
    assert torch.equal(again.weights, clips(windows, 4, 0.25).weights)
    assert (again.block, again.memory, windows.block) == (4, 2, 8)


def test_the_length_of_clips_by_hand():
    config = WorldModelTrainingConfig(steps=100)  # until 6, 15, 35, 70 and 100 %
    steps = (0, 5, 6, 14, 15, 34, 35, 69, 70, 99)
    assert [config.length(s) for s in steps] == [4, 4, 8, 8, 16, 16, 32, 32, 56, 56]


def test_the_rate_warms_up_then_falls_to_a_twentieth():
    config = WorldModelTrainingConfig(steps=30, warmup=10)
    shares = [schedule(config, step) for step in (0, 4, 9, 10, 20, 30)]
    assert shares == pytest.approx([0.1, 0.5, 1.0, 1.0, 0.525, 0.05])


def test_the_rate_may_do_without_a_warm_up():
    config = WorldModelTrainingConfig(steps=2, warmup=0)
    assert [schedule(config, s) for s in (0, 1)] == pytest.approx([1.0, 0.525])
