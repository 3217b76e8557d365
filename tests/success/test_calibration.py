"""Reliability and the threshold rule, on episodes short enough to judge by eye."""

from __future__ import annotations

import numpy as np
import pytest

from wm_gym.success.calibration import (
    THRESHOLDS,
    Watched,
    calibrate,
    choose_rule,
    episode_scores,
    first_success,
    reliability_curve,
)


def test_the_calibration_error_by_hand():
    probability = np.array([0.1, 0.3, 0.2, 0.6, 1.0])
    label = np.array([False, True, False, True, True])
    curve, error = reliability_curve(probability, label, bins=2)
    # Below 1/2: 0.2 is predicted and 1/3 happens, 3 windows; above: 0.8 and 1, 2 windows.
    assert curve == [pytest.approx((0.2, 1 / 3, 3)), pytest.approx((0.8, 1.0, 2))]
    assert error == pytest.approx(0.6 * (1 / 3 - 0.2) + 0.4 * 0.2)


def test_bins_without_windows_are_left_out():
    curve, error = reliability_curve(np.array([0.05, 0.95]), np.array([True, False]))
    assert [count for *_, count in curve] == [1, 1]
    assert error == pytest.approx(0.95)


def test_a_sure_and_right_classifier_has_no_error():
    label = np.array([True, False, True])
    assert reliability_curve(label.astype(np.float32), label)[1] == 0.0


def test_the_first_success_is_the_first_step_that_holds():
    probability = np.array([0.6, 0.2, 0.5, 0.4, 0.7])
    assert first_success(probability, 0.5, 1, 1) == 0
    assert first_success(probability, 0.5, 2, 3) == 2
    assert first_success(probability, 0.4, 2, 2) == 3
    assert first_success(probability, 0.8, 1, 1) is None


def spikes(*peaks: tuple[int, float]) -> np.ndarray:
    """Six probabilities that are 0 except at some steps."""
    probability = np.zeros(6)
    for step, value in peaks:
        probability[step] = value
    return probability


def test_scores_by_episode_by_hand():
    probabilities = [spikes((4, 0.9)), spikes((1, 0.9)), spikes((2, 0.9)), spikes(), spikes()]
    successes = [2, 3, None, None, 5]
    # Two hits (2 late, 2 early), one false success of two failures, one of three missed.
    scores = episode_scores(probabilities, successes, 0.5, 1, 1)
    assert scores == pytest.approx((2 / 3, 2 / 3, 2 / 3, 1 / 2, 0.0))


def test_scores_by_episode_with_weights_by_hand():
    probabilities = [spikes((4, 0.9)), spikes((1, 0.9)), spikes((2, 0.9)), spikes(), spikes()]
    successes = [2, 3, None, None, 5]  # as above: two hits, a false success, a failure, a miss
    weights = np.array([1.0, 2.0, 1.0, 4.0, 2.0])
    # Hits weigh 3 of 4 verdicts and of 5 successes, the false one 1 of 5; late by 2, early by 2.
    scores = episode_scores(probabilities, successes, 0.5, 1, 1, weights)
    assert scores == pytest.approx((3 / 4, 3 / 5, 2 / 3, 1 / 5, -2 / 3))


def test_the_delay_is_a_mean_over_the_hits():
    scores = episode_scores([spikes((4, 0.9)), spikes((3, 0.9))], [2, 3], 0.5, 1, 1)
    assert scores == pytest.approx((1.0, 1.0, 1.0, 0.0, 1.0))


@pytest.mark.parametrize(
    ("probability", "success", "scores"),
    [(spikes(), None, (0, 0, 0, 0, 0)), (spikes(), 3, (0, 0, 0, 0, 0))],
)
def test_scores_without_a_verdict_are_zero(probability, success, scores):
    assert episode_scores([probability], [success], 0.5, 1, 1) == scores


def labels(*successes: int | None) -> list[np.ndarray]:
    """True from the given step on."""
    return [np.arange(6) >= (99 if s is None else s) for s in successes]


def test_the_threshold_is_the_middle_of_the_best_ones():
    # Up to 0.45 the failure is a success too; 0.5, 0.55 and 0.6 are right about both.
    found = calibrate([spikes((2, 0.62)), spikes((3, 0.48))], labels(1, None), 1, 1)
    assert found.threshold == 0.55
    assert (found.precision, found.recall, found.f1) == (1, 1, 1)
    assert (found.false_success, found.delay) == (0, 1)


def test_a_threshold_with_too_many_false_successes_is_not_chosen_for_its_f1():
    # At 0.05 to 0.4: three hits, one false success of one failure, F1 6/7. From 0.45 to 0.8: none
    # false, but one hit of three, F1 1/2.
    probabilities = [spikes((2, p)) for p in (0.82, 0.42, 0.42)] + [spikes((2, 0.43))]
    truth = labels(2, 2, 2, None)
    strict = calibrate(probabilities, truth, 1, 1, false_success_limit=0.5)
    assert (strict.threshold, strict.f1, strict.false_success) == (0.65, 0.5, 0)
    loose = calibrate(probabilities, truth, 1, 1, false_success_limit=1.0)
    assert (loose.threshold, loose.false_success) == (0.25, 1)
    assert loose.f1 == pytest.approx(6 / 7)


def test_where_no_threshold_meets_the_limit_the_fewest_false_successes_win():
    # One failure is always called a success, the other up to 0.4.
    probabilities = [spikes((2, 0.52)), spikes((2, 1.0)), spikes((2, 0.42))]
    found = calibrate(probabilities, labels(2, None, None), 1, 1, false_success_limit=0.05)
    assert (found.threshold, found.false_success, found.recall) == (0.5, 0.5, 1)


def test_a_probability_on_the_grid_is_a_hit_at_the_threshold_that_is_kept():
    # Only 0.35 and above is free of false successes, and only 0.35 itself is a hit.
    found = calibrate([spikes((2, 0.35)), spikes((3, 0.34))], labels(2, None), 1, 1)
    assert (found.threshold, found.f1) == (0.35, 1.0)


def test_the_verdict_rule_is_part_of_the_calibration():
    # A single spike is no success when two of three windows must hit.
    episodes = [spikes((3, 0.8), (5, 0.8)), spikes((2, 0.95))]
    found = calibrate(episodes, labels(3, None), 2, 3)
    assert (found.f1, found.false_success, found.delay) == (1, 0, 2)
    assert found.threshold == 0.45  # of 0.05, ..., 0.8, sixteen, the ninth


def test_reliability_is_over_all_windows():
    found = calibrate([spikes((2, 0.62)), spikes((3, 0.48))], labels(2, None), 1, 1)
    assert sum(count for *_, count in found.reliability) == 12
    # Bins: ten zeros of which three succeed, 0.48 which does not, 0.62 which does.
    assert found.expected_calibration_error == pytest.approx((3 + 0.48 + 0.38) / 12)


def test_false_hits_are_counted_where_the_task_is_not_done():
    # Not done in 2 + 6 of 12 windows; at 0.5 one of these 8 hits.
    found = calibrate([spikes((2, 0.62)), spikes((3, 0.51))], labels(2, None), 1, 1, threshold=0.5)
    assert found.false_per_thousand == 125.0


def test_a_threshold_beside_the_grid_is_judged_as_it_is():
    # At 0.4 the failure is called a success too, at 0.42 only the lift is, at 0.45 nothing.
    found = calibrate([spikes((2, 0.43)), spikes((3, 0.41))], labels(2, None), 1, 1, threshold=0.42)
    assert (found.threshold, found.precision, found.recall, found.f1) == (0.42, 1, 1, 1)
    assert (found.false_success, found.false_per_thousand) == (0, 0)
    assert [t for t, *_ in found.by_threshold] == list(THRESHOLDS)


def test_every_threshold_is_told_by_episode():
    # Up to 0.45 both episodes are called a success, which one is; to 0.6 one; then none.
    found = calibrate([spikes((2, 0.62)), spikes((3, 0.48))], labels(1, None), 1, 1)
    table = {t: scores for t, *scores in found.by_threshold}
    assert list(table) == list(THRESHOLDS)
    assert table[0.45] == pytest.approx([1 / 2, 1, 2 / 3])
    assert (table[0.6], table[0.65]) == ([1, 1, 1], [0, 0, 0])


def test_of_holds_that_are_about_as_good_the_shortest_is_chosen():
    # Of 100 lifts one lasts 3 steps only in failure: F1 199/200 at hold 2, 1 at 4. A standard error
    # of the best is 0, and of 100 lifts of which one is too short for every hold it is 0.005.
    lift, failed = np.array([0.0] + [0.9] * 8), np.zeros(9, bool)
    blink = np.array([0.0] + [0.9] * 3 + [0.0] * 5)
    flash = np.array([0.0, 0.9] + [0.0] * 7)
    done = lift > 0
    exact = Watched([lift] * 100 + [blink], [done] * 100 + [failed])
    assert choose_rule(exact, exact, 1.0)[0] == 4
    noisy = Watched([lift] * 100 + [blink, flash], [done] * 100 + [failed, done])
    assert choose_rule(noisy, noisy, 1.0)[0] == 2


def test_the_hold_that_rules_out_a_blink_is_chosen():
    blink = np.array([0.0, 0.9, 0.9, 0.9, 0.0, 0.0, 0.0, 0.0, 0.0])  # 3 hits, then gone
    lift = np.array([0.0, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9])  # 8 hits
    told = Watched([blink, lift], [np.zeros(9, bool), lift > 0])
    hold, found, real = choose_rule(told, told, false_success_limit=0.0)
    assert hold == 4  # 2 calls the blink a success; 4, 6 and 8 are right, 4 is the quickest
    assert (found.f1, found.false_success) == (real.f1, real.false_success) == (1.0, 0.0)


def test_recorded_episodes_have_a_say_in_the_hold():
    # As imagined a lift of 8 hits and one of 7 that never was: a hold of 8 is right, others err.
    failed, lifted = np.zeros(9, bool), np.array([False] + [True] * 8)
    hits = [np.array([0.0] + [0.9] * n + [0.0] * (8 - n)) for n in (7, 8, 5)]
    imagined = Watched([hits[0], hits[1], hits[1], hits[1]], [failed, lifted, lifted, lifted])
    assert choose_rule(imagined, imagined, false_success_limit=1.0)[0] == 8
    # Recorded lifts of 5 hits: 8 and 6 miss both, F1 1 + 0; 4 finds them, F1 6/7 + 1.
    short = Watched([hits[2], hits[2]], [lifted, lifted])
    hold, found, real = choose_rule(imagined, short, false_success_limit=1.0)
    assert (hold, real.f1) == (2, 1.0)  # as right as 4, and quicker
    assert found.f1 == pytest.approx(6 / 7)


def test_the_limit_on_false_successes_comes_before_f1():
    probabilities = [np.full(8, 0.9), np.full(8, 0.9), np.array([0.9] * 3 + [0.0] * 5)]
    # Hold 2 calls the failure a success, too.
    truth = [np.ones(8, bool), np.ones(8, bool), np.zeros(8, bool)]
    told = Watched(probabilities, truth)
    hold, found, _ = choose_rule(told, told, false_success_limit=0.1)
    assert hold == 4 and found.false_success == 0.0 and found.recall == 1.0


def test_of_many_misleading_episodes_a_rule_takes_as_much_as_their_weight():
    """Three of ten failures blink for 2 steps; the success that counts lasts for 3."""
    blink, short = spikes((3, 0.9), (4, 0.9)), spikes((2, 0.9), (3, 0.9), (4, 0.9))
    probabilities = [short, *[blink] * 3, *[spikes()] * 7, *[spikes()] * 2]
    truth = [np.arange(len(short)) >= 2, *[np.zeros(len(short), bool)] * 12]
    alike, light = np.ones(13), np.array([1.0, *[0.01] * 10, *[1.0] * 2])
    chosen = {}
    for name, weights in (("alike", alike), ("light", light)):
        told = Watched(probabilities, truth, weights)
        chosen[name] = choose_rule(told, told, false_success_limit=0.1)
    assert chosen["alike"][1].recall == 0.0  # at most one failure of 12 may be called a success
    hold, found, _ = chosen["light"]
    assert hold == 2 and found.recall == 1.0
    assert found.false_success == pytest.approx(0.03 / 2.1)  # 3 of the 10, beside 2 of weight 1
