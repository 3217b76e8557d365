"""The parts of training that fit on a napkin: loss, measures, clips, their lengths, the rate."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from wm_gym.data import Episode
from wm_gym.data.windows import Windows
from wm_gym.world_model import training
from wm_gym.world_model.learning import clips, schedule, since_best, split
from wm_gym.world_model.model import WorldModel
from wm_gym.world_model.motion import MotionTrainingConfig
from wm_gym.world_model.presets import BODY, PRESETS, WorldModelConfig
from wm_gym.world_model.training import (
    WorldModelTrainingConfig,
    frame_loss,
    learn_motion,
    measure,
)

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


# What need not be learnt.


def measured(hand: list, fingers: list) -> Episode:
    t = len(hand) - 1
    low_dim = {"fingers": np.float32(fingers)[:, None], "hand": np.float32(hand)}
    frames = np.random.default_rng(t).integers(0, 256, (t + 1, 16, 16, 3)).astype(np.uint8)
    return Episode(frames, np.zeros((t, 7), np.float32), np.zeros(t, bool), low_dim=low_dim)


@pytest.fixture
def two() -> list[Episode]:
    """Episodes of two steps and of one; the second number of the hand never changes."""
    first = measured([[0, 5], [2, 5], [6, 5]], [1, 2, 0])
    return [first, measured([[2, 5], [0, 5]], [0, 2])]


def test_the_scene_is_the_mean_of_the_first_pictures(tiny, two):
    model = WorldModel(tiny).requires_grad_(False)
    measure(model, two)
    shown = model.renderer(torch.randn(1, 8, 2, 2), torch.randn(1, 3))[0]  # (3, 16, 16)
    expected = (two[0].frames[0].astype(float) + two[1].frames[0]) / 2 / 127.5 - 1
    np.testing.assert_allclose(shown.permute(1, 2, 0), expected, atol=1e-6)


def test_the_scale_of_the_body_by_hand(tiny, two):
    model = WorldModel(tiny)
    measure(model, two)
    # 0, 2, 6, 2, 0 with squares 4, 0, 16, 0, 4 about 2; 5s; 1, 2, 0, 0, 2 with 0, 1, 1, 1, 1.
    torch.testing.assert_close(model.body_mean, torch.tensor([2.0, 5.0, 1.0]))
    expected = torch.tensor([6**0.5, 1e-4, 1.0])  # 24 / 4, the least there is, 4 / 4
    torch.testing.assert_close(model.body_std, expected)
    motion = model.transition.motion
    assert torch.equal(motion.mean, model.body_mean) and torch.equal(motion.std, model.body_std)


def test_the_usual_change_is_within_episodes_and_in_units_of_the_scale_by_hand(tiny, two):
    model = WorldModel(tiny)
    measure(model, two)
    # Mean squares of 2, 4, -2 (24 / 3) and of 1, -2, 2 (9 / 3); the least there is.
    expected = torch.tensor([8**0.5 / 6**0.5, 1e-3, 3**0.5])
    torch.testing.assert_close(model.transition.motion.change, expected)


def test_a_body_of_another_size_is_refused(tiny, two):
    model = WorldModel(replace(tiny, body=("hand",)))
    with pytest.raises(ValueError, match="hand hold 2 numbers .* body_size is 3"):
        measure(model, two)


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


def test_clips_come_by_the_weight_of_their_source_too():
    """4 steps that count three times beside 2 that count once: 12 to 2."""
    windows = Windows([blank(4, "a"), blank(2, "b")], weights={"a": 3.0})
    found = clips(windows, length=2, beginnings=0.5).weights.tolist()
    each = 12 / 14 / 3  # a clip of 2 fits at 3 places
    assert found == pytest.approx(
        [0.5 * each + 0.5 * 12 / 14, 0.5 * each, 0.5 * each, 0, 2 / 14, 0]
    )


def test_clips_of_clips_are_those_of_the_windows():
    windows = Windows([blank(9), blank(5)], memory=2)
    again = clips(clips(windows, 3, 0.5), 4, 0.25)
    assert torch.equal(again.weights, clips(windows, 4, 0.25).weights)
    assert (again.block, again.memory, windows.block) == (4, 2, 8)


def test_a_batch_is_cut_into_equal_parts_of_which_none_is_empty():
    batch = {"clips": torch.arange(5), "moments": 10 * torch.arange(2)}
    cut = [{k: v.tolist() for k, v in part.items()} for part in split(batch, 2)]
    assert cut == [{"clips": [0, 1, 2], "moments": [0]}, {"clips": [3, 4], "moments": [10]}]
    assert len(split(batch, 7)) == 2 and len(split(batch, 1)) == 1


@pytest.mark.parametrize(
    ("scores", "expected"), [([], 0), ([3], 0), ([3, 2], 1), ([3, 3], 1), ([1, 4, 2, 3], 2)]
)
def test_lines_since_the_best(scores, expected):
    assert since_best([{"x": score} for score in scores], "x") == expected


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


# Motion.


@pytest.mark.parametrize(("mirror", "wanted"), [(0.0, True), (0.0, False), (None, True)])
def test_motion_is_learnt_in_a_mirror_too_where_there_is_one(monkeypatch, mirror, wanted):
    given = {}
    monkeypatch.setattr(training, "fit_motion", lambda *args: given.update(args=args))
    rng = np.random.default_rng(0)
    episodes = []
    for source, t in (("play", 3), ("rollouts", 5)):
        sizes = BODY | {"object": 10, "object_velocity": 6}
        low_dim = {k: rng.normal(size=(t + 1, n)).astype(np.float32) for k, n in sizes.items()}
        frames, actions = np.zeros((t + 1, 64, 64, 3), np.uint8), np.ones((t, 7), np.float32)
        success = np.zeros(t, bool)
        episodes.append(Episode(frames, actions, success, source=source, low_dim=low_dim))
    model = WorldModel(replace(PRESETS["nano-object"], mirror=mirror))
    config = WorldModelTrainingConfig(
        weights={"rollouts": 3.0}, motion=MotionTrainingConfig(mirrored=wanted)
    )
    learn_motion(model, episodes, config)
    _, bodies, actions, *_, weights = given["args"]
    each = 2 if wanted and mirror is not None else 1
    assert [len(a) for a in actions] == [3] * each + [5] * each
    assert [tuple(b.shape) for b in bodies] == [(4, 46)] * each + [(6, 46)] * each
    assert weights == [1.0] * each + [3.0] * each
    place = episodes[0].low_dim["robot0_eef_pos"]
    np.testing.assert_array_equal(bodies[0][:, :3], place)
    np.testing.assert_array_equal(bodies[each - 1][:, :3], place * ([1, -1, 1] if each > 1 else 1))


@pytest.mark.parametrize("wanted", [False, True])
def test_a_mirror_is_refused_where_it_does_not_show_the_body(monkeypatch, wanted):
    monkeypatch.setattr(training, "fit_motion", lambda *args: None)
    frames, actions = np.zeros((4, 64, 64, 3), np.uint8), np.ones((3, 7), np.float32)
    low_dim = {"robot0_eef_quat": np.ones((4, 4), np.float32)}
    episode = Episode(frames, actions, np.zeros(3, bool), low_dim=low_dim)
    model = WorldModel(WorldModelConfig(body=("robot0_eef_quat",), body_size=4, mirror=0.0))
    config = WorldModelTrainingConfig(motion=MotionTrainingConfig(mirrored=wanted))
    if not wanted:
        return learn_motion(model, [episode], config)
    with pytest.raises(ValueError, match="do not hold 'robot0_eef_quat'"):
        learn_motion(model, [episode], config)


def test_another_robot_is_refused_a_mirror():
    frames, actions = np.zeros((4, 64, 64, 3), np.uint8), np.ones((3, 7), np.float32)
    episode = Episode(frames, actions, np.zeros(3, bool), robot="Kinova3")  # seven joints, too
    with pytest.raises(ValueError, match="known of a Panda, got episodes of Kinova3"):
        training.in_mirror(episode, 0.0)
