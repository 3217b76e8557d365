"""Failures worked out by hand: a hand that comes down, closes and lifts, in 4 steps."""

from __future__ import annotations

import numpy as np
import pytest

from wm_gym.evaluation.taxonomy import KINDS, Track, failure, red

AREA = np.full(5, 40)


def track(hand_z=(0.2, 0.1, 0.0, 0.02, 0.05), object_z=(0, 0, 0, 0.02, 0.05), hand_x=0.0) -> Track:
    """Heights of hand and object over the table; both stand at the same place beside `hand_x`."""
    hand, thing = np.zeros((5, 3)), np.zeros((5, 3))
    hand[:, 0], hand[:, 2], thing[:, 2] = hand_x, hand_z, object_z
    return Track(hand, thing)


FLAT = (0.0, 0.0, 0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("heights", "kind"),
    [
        (FLAT, "never_grasped"),
        ((0, 0, 0, 0.009, 0.009), "never_grasped"),  # 9 mm is no lift
        ((0, 0, 0, 0.02, 0.0), "slipped"),
        ((0, 0, 0, 0.02, 0.03), "late"),
    ],
)
def test_with_hands_together_the_real_object_tells(heights, kind):
    assert failure(track(object_z=heights), track(), AREA, 4) == kind


def test_hands_are_compared_where_the_imagined_object_is_lifted():
    apart = np.array([0.0, 0.0, 0.0, 0.016, 0.0])  # at step 3 alone, by 16 mm
    assert failure(track(object_z=FLAT, hand_x=apart), track(), AREA, 4) == "gripper_drift"
    before = np.array([0.0, 0.05, 0.05, 0.014, 0.05])
    assert failure(track(object_z=FLAT, hand_x=before), track(), AREA, 4) == "never_grasped"


def test_an_object_that_is_never_seen_to_rise_is_compared_at_the_success():
    flat = track(object_z=FLAT)
    apart = np.array([0.0, 0.0, 0.0, 0.0, 0.02])
    assert failure(track(object_z=FLAT, hand_x=apart), flat, AREA, 4) == "gripper_drift"
    assert failure(track(object_z=FLAT, hand_x=apart), flat, AREA, 3) == "never_grasped"


def test_an_object_moves_by_itself_before_the_hand_is_near():
    early = track(object_z=(0, 0.02, 0, 0.02, 0.05))  # the hand is 80 mm above it
    assert failure(track(object_z=FLAT), early, AREA, 4) == "moved_by_itself"
    pushed = track(object_z=(0, 0, 0.02, 0.02, 0.05), hand_z=(0.2, 0.05, 0.03, 0.03, 0.05))
    assert failure(track(object_z=FLAT, hand_z=pushed.hand[:, 2]), pushed, AREA, 4) != (
        "moved_by_itself"
    )


@pytest.mark.parametrize(("pixels", "gone"), [(7, True), (8, False), (80, False), (81, True)])
def test_an_object_of_40_pixels_is_gone_below_8_and_doubled_over_80(pixels, gone):
    area = np.array([40, 40, 0, pixels, 40])  # between, it may be hidden
    kind = failure(track(object_z=FLAT), track(), area, 3)
    assert (kind == "vanished_or_doubled") == gone


def test_every_answer_is_explained():
    assert failure(track(object_z=FLAT), track(), AREA, 4) in KINDS


def test_red_pixels_are_counted():
    frames = np.zeros((2, 3, 3, 3), np.uint8)
    frames[1, 0, 0] = (200, 50, 139)  # 61 more red than blue
    frames[1, 0, 1] = (200, 50, 140)
    frames[1, 0, 2] = (255, 255, 255)
    assert red(frames).tolist() == [0, 1]
