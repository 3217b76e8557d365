"""Agreement over policies against numbers worked out by hand."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from wm_gym.evaluation.agreement import (
    agreement,
    bootstrap_interval,
    calibration,
    fisher_interval,
    leave_one_out,
    mmrv,
    pearson,
    permutation_floor,
    ranks,
    spearman,
)

# Deviations from the means are (-3, -1, 1, 3) / 10 and (-1, -3, 3, 1) / 10: r = 12 / 20.
REAL, IMAGINED = (0.0, 0.2, 0.4, 0.6), (0.2, 0.0, 0.6, 0.4)


def test_a_perfect_world_agrees_in_everything():
    rates = (0.1, 0.3, 0.5, 0.9)
    found = agreement(rates, rates)
    assert (found["policies"], found["pearson"], found["spearman"]) == (4, 1.0, 1.0)
    assert (found["mmrv"], found["mmrv_inclusive"], found["bias_points"]) == (0, 0, 0)
    assert found["calibration_slope"] == pytest.approx(1)
    assert found["calibration_intercept"] == pytest.approx(0)
    assert found["pearson_without_one"] == {"low": 1.0, "high": 1.0}


def test_a_world_that_always_says_success_has_no_r():
    found = agreement((0.2, 0.4, 0.9), (1, 1, 1))
    undefined = {key for key, value in found.items() if value is None}
    assert undefined == {
        *("pearson", "pearson_fisher", "pearson_without_one", "pearson_over_starts", "spearman"),
        *("permutation_floor", "calibration_slope", "calibration_intercept", "starts"),
    }
    assert found["bias_points"] == pytest.approx(50)  # 80, 60 and 10
    # The imagined tie costs each policy its gap to the best: .7, .5 and 0.
    assert found["mmrv"] == pytest.approx(0.4)
    assert found["mmrv_inclusive"] == 0  # no imagined gap, no cost


def test_a_world_that_ranks_backwards():
    found = agreement((0.1, 0.2, 0.4), (0.9, 0.7, 0.3))
    assert (found["pearson"], found["spearman"]) == (-1.0, -1.0)
    # Every pair is violated: real gaps .3, .2, .3 at most, imagined ones .6, .4, .6.
    assert found["mmrv"] == pytest.approx(0.8 / 3)
    assert found["mmrv_inclusive"] == pytest.approx(1.6 / 3)
    assert found["bias_points"] == pytest.approx(40)  # 80, 50 and -10
    assert found["calibration_slope"] == pytest.approx(-0.5)
    assert found["calibration_intercept"] == pytest.approx(0.55)


def test_r_and_the_line_of_four_policies():
    assert pearson(REAL, IMAGINED) == 0.6
    assert calibration(REAL, IMAGINED) == pytest.approx((0.6, 0.12))  # 12 / 20; .3 - .6 * .3


def test_the_line_is_of_real_on_imagined():
    # Real is half of imagined; the other way round the slope would be 2.
    assert calibration((0.1, 0.2, 0.4), (0.2, 0.4, 0.8)) == pytest.approx((0.5, 0))


def test_r_goes_over_the_last_axis():
    found = pearson(REAL, [IMAGINED, REAL, (0.5, 0.5, 0.5, 0.5)])
    assert found[:2].tolist() == [0.6, 1.0] and math.isnan(found[2])


def test_fishers_interval():
    # atanh .6 = .693147, of 4 policies +- 1.959964, of 12 a third of that.
    low, high = fisher_interval(0.6, 4)
    assert (low, high) == pytest.approx((math.tanh(-1.266817), math.tanh(2.653111)), abs=1e-6)
    low, high = fisher_interval(0.6, 12)
    assert (low, high) == pytest.approx((math.tanh(0.039826), math.tanh(1.346468)), abs=1e-6)


@pytest.mark.parametrize(("r", "policies"), [(0.6, 3), (1.0, 9), (-1.0, 9), (math.nan, 9)])
def test_fishers_interval_is_left_out_where_it_says_nothing(r, policies):
    assert fisher_interval(r, policies) is None


def test_equal_values_share_their_ranks():
    assert ranks((0.5, 0.2, 0.8, 0.2, 0.2)).tolist() == [4, 2, 5, 2, 2]


def test_spearman_with_ties():
    # Ranks 1.5, 1.5, 3, 4 and 1, 2, 3.5, 3.5: deviations (-2, -2, 1, 3) / 2 and (-3, -1, 2, 2) / 2
    # with products 6 + 2 + 2 + 6 = 16 and squares 18 and 18.
    assert spearman((0.2, 0.2, 0.5, 0.8), (0.1, 0.3, 0.6, 0.6)) == pytest.approx(16 / 18)


def test_spearman_knows_order_alone():
    assert spearman((0.1, 0.2, 0.9), (0.1, 0.8, 0.9)) == 1.0


def test_mmrv_of_an_imagined_tie_costs_the_worse_policy_the_real_gap():
    real, imagined = (0.0, 0.1, 1.0), (0.5, 0.5, 0.5)
    assert mmrv(real, imagined) == pytest.approx((1.0 + 0.9 + 0.0) / 3)
    assert mmrv(real, imagined, inclusive=True) == 0


def test_mmrv_of_a_real_tie_costs_the_imagined_gap_if_inclusive():
    real, imagined = (0.5, 0.5, 0.9), (0.2, 0.6, 0.9)
    assert mmrv(real, imagined) == 0
    assert mmrv(real, imagined, inclusive=True) == pytest.approx((0.0 + 0.4 + 0.0) / 3)


def test_mmrv_takes_the_worst_pair_of_every_policy():
    # The best policy is imagined as the worst: its worst pair is that with the first, .6.
    real, imagined = (0.1, 0.4, 0.5, 0.7), (0.3, 0.5, 0.6, 0.2)
    assert mmrv(real, imagined) == pytest.approx((0.6 + 0.3 + 0.2 + 0.6) / 4)
    assert mmrv(real, imagined, inclusive=True) == pytest.approx((0.1 + 0.3 + 0.4 + 0.4) / 4)


def test_one_policy_may_carry_all_the_agreement():
    # Without the last one the others lie on a falling line; without the first, deviations are
    # (-8, -5, 13) / 30 and (-6, -9, 15) / 30: 288 / sqrt(258 * 342).
    low, high = leave_one_out((0.1, 0.2, 0.3, 0.9), (0.3, 0.2, 0.1, 0.9))
    assert (low, high) == pytest.approx((-1.0, 288 / math.sqrt(258 * 342)))


def test_leaving_one_out_needs_an_r_of_the_rest():
    assert leave_one_out((0.1, 0.2, 0.9), (0.1, 0.3, 0.9)) is None
    assert leave_one_out((0.1, 0.2, 0.3, 0.9), (0.0, 0.0, 0.0, 0.9)) is None


@pytest.mark.parametrize(
    ("rates", "floor"),
    [
        ((0.0, 0.5, 1.0), 1.0),  # one order of six is perfect: more than 5 %
        ((0.1, 0.2, 0.3, 0.4), 0.8),  # one of 24 is perfect; the three next have .8
    ],
)
def test_the_permutation_floor_of_few_policies_counts_all_orders(rates, floor):
    assert permutation_floor(rates, rates) == floor
    assert permutation_floor(rates, rates[::-1]) == floor  # whatever was imagined


def test_the_permutation_floor_of_many_policies_is_drawn():
    # Of evenly spaced rates r is Spearman's rho: tables give .564 for 10 policies, 5 % one-sided.
    rates = np.arange(10) / 10
    assert permutation_floor(rates, rates) == pytest.approx(0.564, abs=0.03)
    assert permutation_floor(rates, rates) == permutation_floor(rates, rates)


def test_the_bootstrap_draws_the_same_starts_for_all_policies_and_worlds():
    # Starts (2, 0) times: counts (0, 2, 2) and (0, 0, 2), r = .5; once each: r = 1; (0, 2): .5.
    real = np.array([[0, 0], [1, 0], [1, 1]], bool)
    imagined = np.array([[0, 0], [0, 1], [1, 1]], bool)
    assert bootstrap_interval(real, imagined) == (0.5, 1.0)


def test_the_bootstrap_is_wider_than_nothing_and_holds_r():
    success = np.random.default_rng(0).random((2, 6, 50)) < np.linspace(0.1, 0.9, 6)[:, None]
    found = agreement(*success)
    r, ends = found["pearson"], found["pearson_over_starts"]
    assert 0 < ends["low"] < r < ends["high"] <= 1
    assert found["starts"] == 50
    assert r == float(pearson(*success.mean(-1)))


def test_the_bootstrap_is_left_out_where_a_draw_has_no_r():
    real = np.array([[0, 0], [0, 1], [0, 1]], bool)  # the first start twice: all alike
    assert bootstrap_interval(real, real) is None


def test_agreement_is_ready_for_json():
    success = np.random.default_rng(0).random((2, 4, 20)) < 0.5
    for found in (agreement(*success), agreement(REAL, IMAGINED), agreement(REAL, [1.0] * 4)):
        assert json.loads(json.dumps(found, allow_nan=False)) == found


@pytest.mark.parametrize(
    ("real", "imagined", "message"),
    [
        ((0.1, 0.2, 0.3), (0.1, 0.2), r"same policies.* got \(3,\) and \(2,\)"),
        ((0.1, 0.2, 0.3), np.zeros((3, 5)), r"got \(3,\) and \(3, 5\)"),
        (np.zeros((3, 0)), np.zeros((3, 0)), r"got \(3, 0\)"),
        (np.zeros((3, 2, 2)), np.zeros((3, 2, 2)), r"got \(3, 2, 2\)"),
        ((0.1, 0.2), (0.1, 0.2), "at least 3 policies, got 2.* Play more"),
        ((10, 20, 30), (0.1, 0.2, 0.3), r"real success in \[0, 1\], .* use fractions"),
        ((0.1, 0.2, 0.3), (0.1, 0.2, math.nan), r"imagined success in \[0, 1\]"),
        (np.zeros((3, 2)), np.full((3, 2), 0.5), r"imagined outcomes .* of 0 or 1"),
    ],
)
def test_what_is_no_success_is_refused(real, imagined, message):
    with pytest.raises(ValueError, match=message):
        agreement(real, imagined)
