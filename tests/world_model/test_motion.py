"""How measurements move by themselves: units, precision, and an edge that it has to find."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from wm_gym.world_model import motion as motion_module
from wm_gym.world_model.motion import SCALES, Bounded, Motion, MotionTrainingConfig, fit_motion


def test_a_new_motion_is_none():
    motion = Motion(7, 2, hand=(0, 1, 2), fingers=(3,), objects=(4, 5, 6))
    moves, apart = motion(torch.randn(4, 7), torch.ones(4, 2))
    assert moves.tolist() == [[0.0] * 7] * 4 and apart.tolist() == [0.0] * 4


def by_hand() -> Motion:
    """Measurements: a finger, an object's x y z, the finger's speed, the hand's x y z."""
    where = {"hand": (5, 6, 7), "fingers": (0,), "speeds": (4,), "objects": (1, 2, 3)}
    motion = Motion(8, 1, **where, width=8)
    motion.mean.copy_(torch.tensor([0.0, 0, 0, 1, 0, 0, 0, 1]))
    motion.std.copy_(torch.tensor([1.0, 0.1, 1, 1, 1, 0.2, 1, 1]))
    return motion


def test_contact_is_seen_from_the_hand_by_hand():
    body = torch.tensor([[0.3, 0.2, 1.0, -0.02, 9.0, 0.2, 0.0, 0.04]])
    # Hand (0.04, 0, 1.04), object (0.02, 1, 0.98): away (0.02, -1, 0.06) / 0.08, cut at 1.5. The
    # hand is 0.04 over its mean height.
    seen = np.array([0.3, 0.25, -1.5, 0.75, 0.5])
    waves = np.concatenate([scale * seen for scale in SCALES])
    expected = [*seen, *np.sin(waves), *np.cos(waves), 9.0]
    assert by_hand().near(body)[0].tolist() == pytest.approx(expected, abs=1e-5)


def test_how_objects_are_turned_is_seen_as_it_is_and_moved_with_what_is_met():
    motion = Motion(5, 1, hand=(0, 1, 2), turns=(4, 3)).requires_grad_(False)
    body = torch.tensor([[0.0, 0.0, 0.0, 7.0, 8.0]])
    assert motion.near(body)[0, -2:].tolist() == [8, 7]
    motion.reach[-1].bias.copy_(torch.tensor([1.0, 2, 3]))
    motion.met[-1].bias.copy_(torch.tensor([10.0, 20, 30, 4, 5]))
    assert motion(body, torch.ones(1, 1))[0].tolist() == [[11, 22, 33, 5, 4]]


def test_how_objects_move_is_seen_as_it_is_and_a_fall_is_a_fall():
    motion = Motion(5, 1, hand=(0, 1, 2), velocities=(4, 3)).requires_grad_(False)
    assert motion.near(torch.tensor([[0.0, 0, 0, 2, -9]]))[0, -2:].tolist() == [-4, 2]
    motion.met[-1].bias.copy_(torch.tensor([0.0, 0, 0, 4, 3]))
    assert motion(torch.zeros(1, 5), torch.ones(1, 1))[0].tolist() == [[0, 0, 0, 3, 4]]


@pytest.mark.parametrize("met", [False, True])
def test_how_objects_move_is_told_to_what_is_met_alone(met):
    motion = Motion(6, 1, hand=(0, 1, 2), velocities=(4, 3)).requires_grad_(False)
    for part in (motion.met,) if met else (motion.reach, motion.robot):
        torch.nn.init.normal_(part[-1].weight)
    bodies, action = torch.zeros(2, 6), torch.ones(2, 1)
    bodies[1, 3:5] = 1.0
    still, moving = motion(bodies, action)[0]
    assert torch.equal(still, moving) == (not met) and still.abs().max() > 0.1


def test_what_is_met_may_take_other_units():
    motion = Motion(5, 1, hand=(0, 1, 2), fingers=(3,), width=8, contact=12)
    parts = (motion.reach, motion.met, motion.robot)
    assert [part[2].weight.shape for part in parts] == [(1, 8, 8), (1, 12, 12), (1, 8, 8)]


def test_fingertips_are_seen_from_a_cube_by_hand():
    """An arm whose fingers open along x, the hand 0.03 right of a cube that stands straight."""
    where = {"hand": (0, 1, 2), "fingers": (3, 4), "objects": (5, 6, 7), "turns": range(8, 17)}
    motion = Motion(31, 1, **where, joints=tuple(range(17, 31)), width=8)
    arm = torch.tensor([np.pi / 4, 0, 0, 0, 0, 0, 0])
    robot = torch.tensor([0.03, 0, 0, 0.04, -0.02])
    cube = torch.tensor([0.0, 0, 0, 1, 1, 1, 0, 0, 0, 0, 0, 0])
    body = torch.cat([robot, cube, arm.cos(), arm.sin()])[None]
    expected = [0.07, 0, 0, 0.07, 0.01, 0, 0, 0.01]
    assert motion.touching(body)[0].tolist() == pytest.approx(expected, abs=1e-6)
    # Beside fingers, hand and height; 0.08 m count as 1. The mean is 0 here.
    assert motion.near(body)[0, 6:14].tolist() == pytest.approx([x / 0.08 for x in expected])
    assert motion(body, torch.ones(1, 1))[0].shape == (1, 31)


def test_fingertips_need_to_know_how_an_object_is_turned():
    with pytest.raises(ValueError, match="got 0 turns for 1 objects"):
        Motion(20, 1, hand=(0, 1, 2), objects=(3, 4, 5), joints=tuple(range(6, 20)))


def test_each_network_moves_its_own_part():
    motion = by_hand().requires_grad_(False)
    motion.reach[-1].bias.copy_(torch.tensor([1.0, 2, 3]))
    # How the hand is held, then finger, speed, object.
    motion.met[-1].bias.copy_(torch.tensor([10.0, 20, 30, 4, 5, 6, 7, 8]))
    assert motion(torch.randn(1, 8), torch.ones(1, 1))[0].tolist() == [[4, 6, 7, 8, 5, 11, 22, 33]]


def test_the_robot_follows_its_hand_and_knows_no_object():
    where = {"hand": (0, 1, 2), "objects": (4, 5, 6)}
    motion, action = Motion(7, 1, **where, width=8).requires_grad_(False), torch.ones(1, 1)
    torch.nn.init.normal_(motion.robot[-1].weight)
    body = torch.randn(1, 7)
    still, elsewhere = motion(body, action)[0], body + torch.tensor([0.0] * 4 + [1.0] * 3)
    assert torch.equal(motion(elsewhere, action)[0], still) and still[0, 3] != 0
    motion.met[-1].bias[..., 1] = 2.0  # the hand is pushed along y
    pushed = motion(body, action)[0]
    assert pushed[0, :3].tolist() == [0, 2, 0] and pushed[0, 3] != still[0, 3]


def test_what_is_met_depends_on_where_the_hand_is_from_it_alone():
    """Hand and object 0.3 further along x."""
    motion, action = by_hand().requires_grad_(False), torch.ones(1, 1)
    torch.nn.init.normal_(motion.met[-1].weight)  # the hand's own network still gives 0
    body = torch.tensor([[0.3, 0.2, 0.1, -0.02, 9.0, 0.2, 0.0, 0.04]])
    moved = body + torch.tensor([[0, 3.0, 0, 0, 0, 1.5, 0, 0]])
    apart = body + torch.tensor([[0, 0.1, 0, 0, 0, 0, 0, 0]])
    met, _ = motion(body, action)
    torch.testing.assert_close(motion(moved, action)[0], met)
    assert met.abs().max() > 0.01 and not torch.allclose(motion(apart, action)[0], met)


def test_what_is_met_depends_on_how_the_hand_moves():
    motion, body, action = by_hand().requires_grad_(False), torch.randn(1, 8), torch.ones(1, 1)
    torch.nn.init.normal_(motion.met[-1].weight)
    still = motion(body, action)[0][:, :5]
    motion.reach[-1].bias[..., 2] = 5.0  # its z
    assert not torch.allclose(motion(body, action)[0][:, :5], still)


def test_a_gradient_that_is_too_steep_is_shortened_row_by_row():
    """In units of 1 and 2 the rows are (3, 8) and (0.3, 0.4) long: 8.54 and 0.5, of at most 4."""
    body = torch.zeros(2, 2, requires_grad=True)
    steep = torch.tensor([[3.0, 4.0], [0.3, 0.2]])
    (steep * Bounded.apply(body, torch.tensor([1.0, 2.0]), 4.0)).sum().backward()
    shorter = 4 / 73**0.5
    torch.testing.assert_close(body.grad, steep * torch.tensor([[shorter], [1.0]]))


def two_members() -> Motion:
    """Under any action one moves two measurements by 1 and 2, the other by 3 and 10."""
    motion = Motion(2, 1, fingers=(1,), members=2).requires_grad_(False)
    motion.robot[-1].bias.copy_(torch.tensor([1.0, 3])[:, None, None])
    motion.met[-1].bias.copy_(torch.tensor([2.0, 10])[:, None, None])
    return motion


def test_members_move_a_body_by_their_mean():
    moves, _ = two_members()(torch.randn(3, 2), torch.ones(3, 1))
    assert moves.tolist() == [[2, 6]] * 3


def test_members_are_apart_by_hand():
    # From their mean both are 1 and 4 away.
    _, apart = two_members()(torch.randn(3, 2), torch.ones(3, 1))
    assert apart.tolist() == pytest.approx([(17 / 2) ** 0.5] * 3)
    alone = Motion(2, 1, fingers=(1,))
    torch.nn.init.normal_(alone.met[-1].weight)
    assert alone(torch.randn(3, 2), torch.ones(3, 1))[1].tolist() == [0, 0, 0]


def test_each_member_is_a_network_of_its_own():
    motion = Motion(2, 1, fingers=(1,), members=2, width=8).requires_grad_(False)
    for parameter in motion.parameters():
        torch.nn.init.normal_(parameter)
    body, action = torch.randn(2, 5, 2), torch.randn(2, 5, 1)
    for i, moved in enumerate(motion.each(body, action)):
        alone = Motion(2, 1, fingers=(1,), width=8)
        alone.load_state_dict(
            {
                k: v[i : i + 1] if k[:3] in ("rea", "met", "rob") else v
                for k, v in motion.state_dict().items()
            }
        )
        torch.testing.assert_close(moved, alone(body[i], action[i])[0])


def test_it_is_exact_under_autocast():
    motion, body, action = (
        Motion(2, 1, fingers=(0,), members=2),
        torch.randn(3, 2),
        torch.ones(3, 1),
    )
    torch.nn.init.normal_(motion.robot[-1].weight), torch.nn.init.normal_(motion.met[-1].weight)
    with torch.autocast("cpu", torch.bfloat16):
        found = motion(body, action)
    for told, exact in zip(found, motion(body, action), strict=True):
        assert told.dtype == torch.float32 and torch.equal(told, exact) and told.abs().min() > 0


def falling(seed: int, t: int = 20) -> tuple[torch.Tensor, np.ndarray]:
    """A thing moves by 0.1 x the action, and stops for good where it meets a wall at 0.5."""
    rng = np.random.default_rng(seed)
    actions = rng.uniform(0, 1, (t, 1)).astype(np.float32)
    x = [rng.uniform(-1, 0.4)]
    for (action,) in actions:
        x.append(x[-1] if x[-1] >= 0.5 else min(x[-1] + 0.1 * action, 0.5))
    return torch.tensor(x, dtype=torch.float32)[:, None], actions


QUICK = MotionTrainingConfig(steps=400, unroll=6, batch_size=64, noise=0.0)


@pytest.fixture(scope="module")
def fitted() -> tuple[Motion, float]:
    torch.manual_seed(0)
    motion = Motion(1, 1, fingers=(0,), width=64)
    motion.change.fill_(0.05)
    bodies, actions = zip(*[falling(seed) for seed in range(60)], strict=True)
    return motion, fit_motion(motion, bodies, actions, QUICK, seed=0)


def test_it_learns_to_move_and_to_stop_by_itself(fitted):
    motion, error = fitted
    assert error < 0.25  # of 0.05
    with torch.no_grad():
        for seed in range(100, 110):
            body, actions = falling(seed)
            x = body[:1]
            for action in torch.from_numpy(actions):
                x = x + motion.change * motion(x, action[None])[0]
            assert x.item() == pytest.approx(body[-1].item(), abs=0.05)


def test_the_same_seed_fits_the_same(fitted):
    bodies, actions = zip(*[falling(seed) for seed in range(8)], strict=True)
    found = []
    for seed in (1, 1, 2):
        torch.manual_seed(0)
        motion = Motion(1, 1, fingers=(0,), width=8)
        fit_motion(
            motion, bodies, actions, MotionTrainingConfig(steps=3, single=0.5, unroll=4), seed
        )
        found.append(motion.met[-1].weight.clone())
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


def test_members_begin_apart_and_learn_from_clips_of_their_own():
    bodies, actions = zip(*[falling(seed) for seed in range(8)], strict=True)
    motion = Motion(1, 1, fingers=(0,), width=8, members=2)
    assert not torch.equal(*motion.met[0].weight)
    for layer in (motion.met[0], motion.met[2], motion.met[4]):  # as if they began alike
        layer.weight.data[1], layer.bias.data[1] = layer.weight.data[0], layer.bias.data[0]
    fit_motion(motion, bodies, actions, MotionTrainingConfig(steps=3, single=0.5, unroll=4), seed=0)
    assert not torch.equal(*motion.met[-1].weight)


BOTH = pytest.mark.parametrize("single", [0.0, 1.0])


@BOTH
def test_clips_stay_within_their_episode(single):
    """Nothing moves in either of two episodes, which are far from each other."""
    bodies = [torch.zeros(6, 1), torch.full((9, 1), 50.0), torch.full((3, 1), -50.0)]
    actions = [np.zeros((5, 1), np.float32), np.zeros((8, 1), np.float32)]
    actions.append(np.zeros((2, 1), np.float32))  # shorter than a clip: left out
    config = MotionTrainingConfig(steps=1, single=single, unroll=4, batch_size=500, noise=0.0)
    assert fit_motion(Motion(1, 1, fingers=(0,)), bodies, actions, config, seed=0) == 0.0


@BOTH
def test_single_steps_are_all_those_of_clips(single):
    """One of three clips ends with the only move, which is one of its four steps: a twelfth."""
    bodies, actions = [torch.tensor([0.0] * 6 + [1.0])[:, None]], [np.zeros((6, 1), np.float32)]
    config = MotionTrainingConfig(steps=1, single=single, unroll=4, batch_size=9000, noise=0.0)
    found = fit_motion(Motion(1, 1, fingers=(0,)), bodies, actions, config, seed=0)
    assert found == pytest.approx(1 / 12, abs=0.01)


def test_single_steps_come_first():
    """Twice 20 of them, then twice 5 clips of 4."""
    bodies, actions = [torch.zeros(9, 1)], [np.zeros((8, 1), np.float32)]
    motion, seen = Motion(1, 1, fingers=(0,)), []
    motion.each = lambda body, _: seen.append(body.shape[1]) or 0 * body + 0 * motion.met[-1].bias
    config = MotionTrainingConfig(steps=4, single=0.5, unroll=4, batch_size=5)
    fit_motion(motion, bodies, actions, config, seed=0)
    assert seen == [20, 20] + 8 * [5]


def test_single_steps_and_clips_have_rates_and_schedules_of_their_own(monkeypatch):
    seen = []
    optimizers, schedules = motion_module.muon_and_adamw, motion_module.warm_cosine

    def optimize(matrices, biases, rate, decay):
        seen.append(rate)
        return optimizers(matrices, biases, rate, decay)

    def schedule(found, steps):
        seen.append(steps)
        return schedules(found, steps)

    monkeypatch.setattr(motion_module, "muon_and_adamw", optimize)
    monkeypatch.setattr(motion_module, "warm_cosine", schedule)
    bodies, actions = [torch.zeros(9, 1)], [np.zeros((8, 1), np.float32)]
    for steps, single in ((9, 0.6), (2, 0.0), (2, 1.0)):
        config = MotionTrainingConfig(
            steps, single=single, unroll=2, learning_rate=0.3, clip_rate=0.1
        )
        fit_motion(Motion(1, 1, fingers=(0,), width=8), bodies, actions, config, seed=0)
    assert seen == [0.3, 6, 0.1, 3] + [0.1, 2] + [0.3, 2]


def growing(w: float) -> Motion:
    """Its body becomes ten times itself, and w; so 0 becomes w, then 11 w."""
    motion = Motion(1, 1, fingers=(0,), width=8)
    motion.met[-1].bias.data.fill_(w)
    motion.each = lambda body, _: 9 * body + motion.met[-1].bias
    return motion


def test_a_step_passes_back_four_times_the_gradient_of_its_own_loss():
    """Too high by far after both steps of a clip, each of whose losses counts half.

    w moves the second by 1, half of it .5. The first has .5 of its own, and 10 times .5 of the
    second: 5.5, of which 4 times .5 are left. Unbounded, w would have 6.
    """
    bodies, motion = [torch.tensor([[0.0], [-1000.0], [-1000.0]])], growing(0.05)
    options = {"unroll": 2, "batch_size": 5, "noise": 0.0, "grad_clip": 1e9}
    config = MotionTrainingConfig(steps=1, single=0.0, **options)
    fit_motion(motion, bodies, [np.zeros((2, 1), np.float32)], config, seed=0)
    assert motion.met[-1].bias.grad.item() == pytest.approx(0.5 + 2.0)


def test_no_clip_goes_further_than_a_deviation_from_what_was_recorded():
    """9, then 99, of recordings of nothing but 0: both are taken for 1."""
    config = MotionTrainingConfig(steps=1, single=0.0, unroll=2, batch_size=5, noise=0.0)
    actions = [np.zeros((2, 1), np.float32)]
    assert fit_motion(growing(9.0), [torch.zeros(3, 1)], actions, config, seed=0) == 1.0


def test_clips_are_drawn_by_the_weights_of_their_episodes():
    """Of two episodes the second moves by one usual change a step, which the motion never does."""
    bodies = [torch.zeros(9, 1), torch.arange(6.0)[:, None]]
    actions = [np.zeros((8, 1), np.float32), np.zeros((5, 1), np.float32)]
    config = MotionTrainingConfig(steps=1, unroll=1, batch_size=4000, noise=0.0)
    for weights, share in (((1.0, 0.0), 0), ((0.0, 2.0), 1), ((1.0, 3.0), 15 / 23), (None, 5 / 13)):
        found = fit_motion(Motion(1, 1, fingers=(0,)), bodies, actions, config, 0, weights)
        assert found == pytest.approx(share, abs=0.03)


@BOTH
def test_an_action_comes_before_what_it_leads_to(single):
    """The body is the sum of the actions so far, so with this motion nothing is left to learn."""
    rng = np.random.default_rng(0)
    actions = [rng.normal(size=(t, 1)).astype(np.float32) for t in (7, 5)]
    bodies = [
        torch.from_numpy(np.concatenate([[[0.0]], a.cumsum(0)]).astype("f4")) for a in actions
    ]
    motion = Motion(1, 1, fingers=(0,))
    motion.each = lambda body, action: action + 0 * motion.met[-1].bias
    config = MotionTrainingConfig(steps=1, single=single, unroll=4, batch_size=200, noise=0.0)
    assert fit_motion(motion, bodies, actions, config, seed=0) == pytest.approx(0.0, abs=1e-6)


def test_episodes_shorter_than_a_clip_are_refused():
    with pytest.raises(ValueError, match="clips of 12 steps; none of 1 episodes is as long"):
        fit_motion(
            Motion(1, 1, fingers=(0,)),
            [torch.zeros(12, 1)],
            [np.zeros((11, 1), np.float32)],
            MotionTrainingConfig(),
            seed=0,
        )
