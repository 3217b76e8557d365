"""The scripted expert: its waypoints by hand, and how often it lifts the cube in robosuite."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from wm_gym.real.expert import DEMONSTRATION, PLAY, ExpertConfig, LiftExpert
from wm_gym.starts import load_starts
from wm_gym.tasks import get_task

STEADY = ExpertConfig(noise=0.0, gain=10.0, speed=0.8)


class Table:
    """What the expert reads of a robosuite Lift; hand and cube are put where a test wants them."""

    cube_body_id = 1
    table_offset = (0.0, 0.0, 0.8)

    def __init__(self, hand, cube) -> None:
        self.robots = [SimpleNamespace(controller=self)]
        self.sim = SimpleNamespace(data=self)
        self.ee_pos = np.array(hand)
        self.body_xpos = np.array([[9.0, 9.0, 9.0], cube])


def at_the_lift(config: ExpertConfig = STEADY) -> tuple[Table, LiftExpert]:
    """Let an expert grasp a cube at (0, 0, 0.83), up to where the lift begins."""
    table = Table(hand=(0, 0, 0.83), cube=(0, 0, 0.83))
    expert = LiftExpert(table, config, np.random.default_rng(0))
    grips = [expert.act()[6] for _ in range(9)]
    assert grips == [-1, -1, *[1] * 7]  # over the cube, at the cube, then it closes
    return table, expert


def test_it_moves_over_the_cube_with_an_open_gripper():
    table = Table(hand=(0, 0, 1.0), cube=(0.05, -0.2, 0.83))
    action = LiftExpert(table, STEADY, np.random.default_rng(0)).act()
    # 10 x 0.05, then cut to 1: 10 x -0.2 and 10 x (0.83 + 0.06 - 1); all times 0.8.
    assert action == pytest.approx([0.4, -0.8, -0.8, 0, 0, 0, -1])
    assert action.dtype == np.float32


def test_it_descends_once_it_is_over_the_cube():
    table = Table(hand=(0.01, 0, 0.89), cube=(0, 0, 0.83))
    expert = LiftExpert(table, STEADY, np.random.default_rng(0))
    assert abs(expert.act()[2]) < 1e-6  # there: where the descent begins
    assert expert.act() == pytest.approx([-0.08, 0, -0.48, 0, 0, 0, -1])


def test_a_shaky_expert_draws_how_noisy_an_episode_is():
    table = Table(hand=(0, 0, 1.0), cube=(0, 0, 0.83))
    drawn = [
        LiftExpert(table, ExpertConfig(shake=0.4), np.random.default_rng(seed)).config.noise
        for seed in range(200)
    ]
    assert 0 <= min(drawn) < 0.05 and 0.35 < max(drawn) <= 0.4
    assert np.mean(drawn) == pytest.approx(0.2, abs=0.03)


def clumsy(seed: int) -> LiftExpert:
    """An expert at the cube whose next grasp is drawn at random."""
    table = Table(hand=(0, 0, 0.83), cube=(0, 0, 0.83))
    config = ExpertConfig(noise=0.0, gain=10.0, speed=0.8, clumsy=1.0)
    return LiftExpert(table, config, np.random.default_rng(seed))


def test_a_clumsy_grasp_is_drawn_at_random():
    drawn = [clumsy(seed) for seed in range(400)]
    ranges = {
        "height": ([expert.error[2] for expert in drawn], -0.03, 0.03),
        "reach": ([expert.reach for expert in drawn], 0.01, 0.04),
        "gain": ([expert.gain for expert in drawn], 5, 30),
        "up": ([expert.drift[2] for expert in drawn], -1, 1),
        "aside": ([expert.drift[0] for expert in drawn], -0.3, 0.3),
    }
    for values, low, high in ranges.values():
        margin = 0.05 * (high - low)
        assert low <= min(values) < low + margin and high - margin < max(values) <= high
    assert {expert.wait for expert in drawn} == set(range(10))
    still = np.mean([not expert.drift.any() for expert in drawn])
    assert still == pytest.approx(0.5, abs=0.1)


def test_the_arm_drifts_while_the_gripper_closes_and_then_lifts():
    expert = clumsy(0)
    expert.gain, expert.reach, expert.wait, expert.error[2] = 10.0, 0.04, 3, 0.0
    expert.drift = np.array([0.1, -0.2, -0.5])
    actions = [expert.act() for _ in range(6)]
    grips = [action[6] for action in actions]
    assert grips == [-1, -1, 1, 1, 1, 1]  # over the cube, at the cube; then it closes
    for action in actions[2:4]:
        assert action[:3] == pytest.approx([0.1, -0.2, -0.5])
    assert actions[4][:3] == pytest.approx([0, 0, 0])  # at the aim
    assert actions[5][2] == pytest.approx(0.72)  # 10 x 0.09 x 0.8: it lifts


def test_where_the_cube_cannot_be_reached_it_closes_all_the_same():
    table = Table(hand=(0, 0, 0.89), cube=(0, 0, 0.83))
    expert = LiftExpert(table, STEADY, np.random.default_rng(0))
    grips = [expert.act()[6] for _ in range(18)]  # the hand never moves
    assert grips == [-1] * 16 + [1] * 2  # one over the cube, 15 to come down


def test_it_lifts_straight_up_from_where_it_grasped():
    table, expert = at_the_lift()
    table.ee_pos[0] = 0.05
    # The lift ends 0.12 over the table at 0.8; the hand is at 0.83.
    assert expert.act() == pytest.approx([-0.4, 0, 0.72, 0, 0, 0, 1])


def test_it_tries_again_when_the_cube_stayed_behind():
    table, expert = at_the_lift()
    table.ee_pos[2] = 0.86
    assert expert.act()[6] == 1  # 3 cm over the cube may still be a grasp
    table.ee_pos[2] = 0.88
    assert expert.act() == pytest.approx([0, 0, 0, 0, 0, 0, -1])
    assert expert.act()[2] == pytest.approx(0.08)  # up to 0.89, over the cube


def test_a_slip_opens_the_gripper_on_the_way_up():
    _, expert = at_the_lift(ExpertConfig(noise=0.0, slip=1.0))
    grips = [expert.act()[6] for _ in range(12)]
    assert 2 <= grips.index(-1) + 1 <= 11


def test_without_a_slip_it_holds_on():
    _, expert = at_the_lift()
    assert {float(expert.act()[6]) for _ in range(100)} == {1.0}


def test_a_wander_goes_elsewhere_first():
    table = Table(hand=(0, 0, 0.83), cube=(0, 0, 0.83))  # the gripper would close at step 3
    config, walks, held = ExpertConfig(noise=0.0, wander=1.0), set(), set()
    for seed in range(100):
        expert = LiftExpert(table, config, np.random.default_rng(seed))
        held.add(expert.fingers)
        expert.fingers = -1
        grips = [expert.act()[6] for _ in range(30)]
        walks.add(grips.index(1) - 2)
    assert walks == set(range(4, 16)) and held == {-1, 1}


def test_an_attempt_with_an_error_misses_sideways():
    table = Table(hand=(0, 0, 0.83), cube=(0, 0, 0.83))
    rng = np.random.default_rng(0)
    config = ExpertConfig(offset=0.01)
    errors = np.array([LiftExpert(table, config, rng).error for _ in range(4000)])
    assert errors[:, :2].std(0) == pytest.approx([0.01, 0.01], rel=0.05)
    assert not errors[:, 2].any()


def test_noise_has_the_given_size_on_the_arm_alone_and_stays_in_the_box():
    table = Table(hand=(0, 0, 0.89), cube=(0, 0.5, 0.83))  # y is at its limit
    expert = LiftExpert(table, ExpertConfig(noise=0.1), np.random.default_rng(0))
    actions = np.array([expert.act() for _ in range(4000)])
    assert actions[:, [0, 2]].std(0) == pytest.approx([0.1, 0.1], rel=0.05)
    assert actions[:, 3:6].std(0) == pytest.approx([0.03, 0.03, 0.03], rel=0.05)
    assert actions[:, 1].max() == 1.0 and set(actions[:, 6]) == {-1.0}


def lifts(simulation, config: ExpertConfig) -> list[bool]:
    """Say from which of the first ten train starts the cube is lifted within the horizon."""
    done = []
    for index, state in enumerate(load_starts("Lift", "train").states[:10]):
        simulation.set_state(state)
        expert = LiftExpert(simulation.env, config, np.random.default_rng(index))
        steps = range(get_task("Lift").horizon)
        done.append(any(simulation.step(expert.act()) or simulation.success() for _ in steps))
    return done


@pytest.mark.sim
def test_a_demonstration_succeeds_nearly_always(simulation):
    assert sum(lifts(simulation, DEMONSTRATION)) >= 9


@pytest.mark.sim
def test_play_succeeds_at_times_and_fails_at_times(simulation):
    assert 1 <= sum(lifts(simulation, PLAY)) <= 9
