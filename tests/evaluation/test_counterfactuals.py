"""Perturbed successes: what each family does to the actions, and the figures by hand."""

from __future__ import annotations

import numpy as np
import pytest

from wm_gym.evaluation import counterfactuals as module
from wm_gym.evaluation.counterfactuals import (
    FAMILIES,
    HELD_OUT,
    NONE,
    Counterfactual,
    auroc,
    moments,
    optimism,
    perturb,
    report,
    score_gap,
    table,
)

CLOSING, LIFT, STEPS = 20, 28, 64
NEVER = None


def success() -> np.ndarray:
    """A failed grasp at 6, then 20 steps down, 8 closing, and a lift to the end."""
    actions = np.zeros((STEPS, 7), np.float32)
    actions[:CLOSING, :3] = (0.2, -0.1, -0.4)
    actions[:, 6] = -1
    actions[6:9, 6] = 1
    actions[CLOSING:, 6] = 1
    actions[LIFT:, 2] = 0.8
    return actions


def changed(family: str, severity: float = 1.0, seed: int = 0) -> np.ndarray:
    """Where and by how much a family changes the actions, (t, 7)."""
    return perturb(success(), family, severity, (seed,)) - success()


def test_the_grasp_is_the_last_one_and_the_lift_what_follows():
    assert moments(success()) == (CLOSING, LIFT)


@pytest.mark.parametrize(("column", "value", "closings"), [(6, -1.0, 0), (2, 0.0, 2)])
def test_actions_that_never_lift_have_no_moments(column, value, closings):
    actions = success()
    actions[:, column] = value
    with pytest.raises(ValueError, match=rf"got {closings} closings and no rise"):
        moments(actions)


def test_overshoot_doubles_the_way_down_and_nothing_else():
    added = changed("overshoot")
    assert added[:CLOSING, :3] == pytest.approx(np.tile([0.2, -0.1, -0.4], (CLOSING, 1)))
    assert not added[CLOSING:].any() and not added[:, 3:].any()
    assert changed("overshoot", 0.5)[0, 2] == pytest.approx(-0.2)


def test_a_late_grasp_stays_open_for_a_while():
    added = changed("late_grasp")
    late = np.flatnonzero(added[:, 6])
    assert late[0] == CLOSING and 4 <= len(late) <= 12 and (np.diff(late) == 1).all()
    assert set(added[late, 6]) == {-2.0} and not added[:, :6].any()
    assert len(np.flatnonzero(changed("late_grasp", 0.5)[:, 6])) in (
        len(late) // 2,
        -(-len(late) // 2),
    )


def test_an_early_release_is_for_good():
    released = perturb(success(), "early_release", 1.0, (3,))[:, 6]
    first = np.flatnonzero(released > 0)[-1] + 1
    assert LIFT - 4 <= first <= LIFT and (released[first:] == -1).all()
    assert (released[:first] == success()[:first, 6]).all()


def test_a_weak_grip_opens_in_half_of_the_steps():
    opened = np.concatenate([changed("weak_grip", 1.0, seed)[CLOSING:, 6] for seed in range(20)])
    assert set(opened) == {0.0, -2.0}
    # 880 draws at a chance of a half: five standard deviations are 0.084.
    assert (opened != 0).mean() == pytest.approx(0.5, abs=0.085)
    assert not changed("weak_grip")[:CLOSING].any()


def test_oscillation_is_a_sine_of_twelve_steps_across_the_whole_episode():
    added = changed("oscillation", 0.2)  # 0.3 at most, so that nothing is clipped
    assert np.linalg.norm(added[:, :2], axis=1).max() == pytest.approx(0.3, rel=0.05)
    assert (
        added[12:] == pytest.approx(added[:-12], abs=1e-6)
        and np.abs(added[6] + added[0]).max() < 1e-6
    )
    assert not added[:, 2:].any()


def test_an_offset_approach_drifts_by_as_much_whatever_its_length():
    added = changed("offset_approach", 0.5)
    assert np.linalg.norm(added.sum(0)[:2]) == pytest.approx(1.6, rel=1e-5)
    assert np.ptp(added[:CLOSING], axis=0) == pytest.approx(0, abs=1e-6)
    assert not added[CLOSING:].any()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_perturbation_depends_on_its_seed_alone_and_leaves_what_it_is_given(family):
    given = success()
    once, again = (perturb(given, family, 1.0, (3, 5)) for _ in range(2))
    assert np.array_equal(once, again) and once.dtype == np.float32
    assert np.array_equal(given, success()) and not np.array_equal(once, given)
    assert np.abs(once).max() <= 1


def test_a_direction_is_one_at_every_severity():
    weak, strong = (changed("offset_approach", severity)[0, :2] for severity in (0.5, 1.0))
    assert strong == pytest.approx(2 * weak, rel=1e-5)


@pytest.mark.parametrize(
    ("family", "severity", "actions", "message"),
    [
        ("sneeze", 1.0, success(), "Unknown family 'sneeze'; expected one of overshoot, "),
        ("overshoot", 0.0, success(), r"severity lies in \(0, 1\], got 0.0"),
        ("overshoot", 1.5, success(), r"severity lies in \(0, 1\], got 1.5"),
        ("overshoot", 1.0, success().astype(np.float64), r"got float64 \(64, 7\)"),
        ("overshoot", 1.0, success()[:, :6], r"got float32 \(64, 6\)"),
    ],
)
def test_what_cannot_be_perturbed_is_refused(family, severity, actions, message):
    with pytest.raises(ValueError, match=message):
        perturb(actions, family, severity, (0,))


def test_auroc_is_the_chance_that_a_success_scores_over_a_failure():
    # Pairs of success and failure: .9 over .4 and .5, .5 over .4 and level with .5.
    assert auroc([0.9, 0.5, 0.4, 0.5], [True, True, False, False]) == 3.5 / 4
    assert auroc([0.1, 0.9], [True, False]) == 0.0
    assert auroc([0.1, 0.9], [True, True]) is None and auroc([0.1], [False]) is None


def test_optimism_counts_failures_alone():
    found = optimism([True, False, False, False], [True, True, False, False])
    assert (found.successes, found.n) == (1, 3)
    assert optimism([True], [True]) is None


def test_the_score_gap_is_of_starts_with_both_outcomes():
    # Start 0: mean of .9 and .7, less .2; start 1: .5 less .9; start 2 only fails.
    score, outcome = [0.9, 0.7, 0.2, 0.5, 0.9, 0.3], [True, True, False, True, False, False]
    found = score_gap(score, outcome, [0, 0, 0, 1, 1, 2])
    assert found == {"mean": pytest.approx((0.6 - 0.4) / 2), "starts": 2}
    assert score_gap([0.5], [True], [0]) is None


def rows(world: str) -> list[Counterfactual]:
    """Two starts; every family fails for real at the severity 1 and not at 0.5."""
    found = [Counterfactual(NONE, 0.0, start, 30, 30, 0.9) for start in (0, 1)]
    for family in FAMILIES:
        for severity, real in ((0.5, 31), (1.0, NEVER)):
            imagined = {"perfect": real, "hopeful": 30, "gloomy": NEVER}[world]
            score = {"perfect": 0.9 if real else 0.1, "hopeful": 0.9, "gloomy": 0.1}[world]
            found += [
                Counterfactual(family, severity, start, real, imagined, score) for start in (0, 1)
            ]
    return found


@pytest.mark.parametrize(
    ("world", "hopes", "area", "gap"),
    [("perfect", 0.0, 1.0, 0.8), ("hopeful", 1.0, 0.5, 0.0)],
)
def test_a_perfect_world_and_one_that_always_says_success(world, hopes, area, gap):
    found = report(rows(world))
    for part in (found, found["held_out"], found["families"]["overshoot"]):
        assert part["optimism"]["rate"] == hopes and part["auroc"] == area
        assert part["auroc_perturbed"] == area
        assert part["score_gap"]["mean"] == pytest.approx(gap) and part["score_gap"]["starts"] == 2
        assert part["real_success"]["rate"] == 0.5
    assert found["sequences"] == 24 and found["unperturbed"]["sequences"] == 2
    assert found["held_out_families"] == list(HELD_OUT) and found["held_out"]["sequences"] == 8


def test_references_count_in_auroc_and_in_no_rate():
    # Without its references, the severity of 1 has failures alone.
    part = report(rows("gloomy"))["families"]["overshoot"]["severities"]["1.0"]
    assert part["auroc"] == 1.0 and part["auroc_perturbed"] is None
    assert part["score_gap"]["mean"] == pytest.approx(0.8)
    assert part["real_success"]["n"] == 2 and part["optimism"]["rate"] == 0.0


def test_the_table_names_every_family_and_what_was_held_out():
    lines = table(report(rows("hopeful"))).splitlines()
    assert len(lines) == 2 + 3 * 6 + 2 + 1
    assert lines[2].split()[:4] == ["overshoot", "0.5", "2", "100.0"]
    assert lines[2].split()[-3:] == ["-", "-", "-"]  # nothing failed
    assert lines[-1] == f"Held out: {', '.join(module.HELD_OUT)}."
