"""Intervals against numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from wm_gym.evaluation.statistics import (
    paired_difference,
    pooled_difference,
    pooled_rate,
    rate,
    rate_difference,
    wilson,
)


def test_wilson_of_a_half():
    # z = 1.95996, z^2 = 3.84146: centre 0.5, half = z / (1 + z^2 / 100) sqrt(.25/100 + z^2/40000).
    r = wilson(50, 100)
    assert (r.n, r.successes, r.rate) == (100, 50, 0.5)
    assert (r.low, r.high) == pytest.approx((0.40383, 0.59617), abs=1e-5)


def test_wilson_at_the_ends_stays_inside():
    # 0 of n: high = z^2 / (n + z^2) = 3.84146 / 13.84146.
    assert wilson(0, 10)[2:] == pytest.approx((0.0, 0.0, 0.27753), abs=1e-5)
    assert wilson(10, 10)[2:] == pytest.approx((1.0, 0.72247, 1.0), abs=1e-5)
    assert wilson(0, 10).low == 0.0 and wilson(10, 10).high == 1.0


def test_rate_counts_a_bool_array():
    assert rate(np.array([True, False, True, True]))[:3] == (4, 3, 0.75)


def test_impossible_counts_are_refused():
    for successes, n in ((0, 0), (3, 2), (-1, 2)):
        with pytest.raises(ValueError, match="0 <= successes <= n"):
            wilson(successes, n)


def test_texts_carry_n_and_interval():
    assert str(wilson(50, 100)) == "50.0 % [40.4, 59.6] (n = 100)"
    difference = paired_difference([False] * 4, [True] * 4)
    assert str(difference) == "+100.0 points [100.0, 100.0]"


def test_a_difference_of_rates_agrees_with_newcombes_own_example():
    """56 of 70 and 48 of 80: Table II, example a, of his paper."""
    found = rate_difference(wilson(48, 80), wilson(56, 70))
    assert found == pytest.approx((20.0, 5.24, 33.39), abs=0.005)
    assert rate_difference(wilson(0, 10), wilson(0, 10)).points == 0
    wider = rate_difference(wilson(48, 80), wilson(56, 70), level=0.99)
    assert 0 < wider.low < 0.6 and wider.points == pytest.approx(20)


def test_paired_interval_agrees_with_its_normal_approximation():
    # 30 gains among 100 starts: 30 points, standard error sqrt(.3 * .7 / 100) = 4.583 points.
    base, improved = np.zeros(100, bool), np.arange(100) < 30
    d = paired_difference(base, improved)
    assert d.points == pytest.approx(30.0)
    assert d.low == pytest.approx(30 - 1.96 * 4.583, abs=1.0)
    assert d.high == pytest.approx(30 + 1.96 * 4.583, abs=1.0)


def test_pairing_narrows_the_interval():
    # Both rates are 50 %. Same starts: no spread at all. Opposite starts: the widest.
    half = np.arange(100) < 50
    assert paired_difference(half, half)[:] == (0.0, 0.0, 0.0)
    opposite = paired_difference(half, ~half)
    # Each gain is +1 or -1: standard error 100 / sqrt(100) = 10 points.
    assert (opposite.points, opposite.high) == pytest.approx((0.0, 19.6), abs=1.5)


def test_bootstrap_repeats_with_its_seed():
    base, improved = np.arange(50) % 2 == 0, np.arange(50) % 3 == 0
    assert paired_difference(base, improved) == paired_difference(base, improved)


def test_pooling_resamples_replicates():
    # One replicate gains on every start, the other on none: draws give 0, 50 or 100 points with
    # chances 1/4, 1/2, 1/4, whatever the starts.
    base = np.zeros((2, 40), bool)
    improved = np.array([[True] * 40, [False] * 40])
    assert pooled_difference(base, improved)[:] == pytest.approx((50.0, 0.0, 100.0))


def test_pooling_keeps_starts_together_across_replicates():
    # Two equal replicates: resampling them changes nothing, so the interval is that of one.
    base, improved = np.zeros(100, bool), np.arange(100) < 30
    one, two = paired_difference(base, improved), pooled_difference([base] * 2, [improved] * 2)
    assert two.points == pytest.approx(one.points)
    assert (two.low, two.high) == pytest.approx((one.low, one.high), abs=1.0)


def test_shares_of_successes_are_pooled_as_they_are():
    # Replicate 0 gains on half of its seeds from every start, replicate 1 on all of them.
    base, improved = np.zeros((2, 40)), np.array([[0.5] * 40, [1.0] * 40])
    assert pooled_difference(base, improved)[:] == pytest.approx((75.0, 50.0, 100.0))


def test_different_lengths_are_refused():
    with pytest.raises(ValueError, match=r"one shape.*got \(3,\) and \(4,\)"):
        paired_difference([True] * 3, [True] * 4)
    with pytest.raises(ValueError, match="one shape"):
        paired_difference([], [])


def test_a_rate_of_one_replicate_is_wilsons():
    assert pooled_rate([[True] * 3 + [False]]) == wilson(3, 4)


def test_a_rate_over_replicates_reaches_as_far_as_each_of_them():
    # All or nothing by replicate: draws give 0, 50 or 100 % with chances 1/4, 1/2, 1/4.
    assert pooled_rate([[True] * 40, [False] * 40]) == (80, 40, 0.5, 0.0, 1.0)


def test_a_rate_over_replicates_that_never_succeed_is_no_narrower_than_wilsons():
    assert pooled_rate(np.zeros((2, 40), bool)) == wilson(0, 80)


def test_successes_of_replicates_have_two_axes():
    with pytest.raises(ValueError, match=r"\(replicates, starts\), got \(3,\)"):
        pooled_rate([True] * 3)
