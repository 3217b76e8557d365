"""How measurements move by themselves: units, precision, and an edge that it has to find."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from wm_gym.world_model.motion import SCALES, Motion, MotionTrainingConfig, fit_motion


def test_a_new_motion_is_none():
    assert Motion(3, (1,), 2)(torch.randn(4, 3), torch.ones(4, 2)).tolist() == [[0.0] * 3] * 4


def test_it_is_told_the_body_its_places_at_every_scale_and_the_action():
    motion = Motion(3, (0, 2), 1)
    body, action = torch.tensor([[0.3, 9.0, -0.7]]), torch.tensor([[5.0]])
    given = []
    motion.layers[0].register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
    motion(body, action)
    waves = [scale * x for scale in SCALES for x in (0.3, -0.7)]
    expected = [0.3, 9.0, -0.7, *np.sin(waves), *np.cos(waves), 5.0]
    assert given[0][0].tolist() == pytest.approx(expected, abs=1e-6)


def test_it_is_exact_under_autocast():
    motion, body, action = Motion(2, (0,), 1), torch.randn(3, 2), torch.randn(3, 1)
    torch.nn.init.normal_(motion.layers[-1].weight)
    with torch.autocast("cpu", torch.bfloat16):
        moved = motion(body, action)
    assert moved.dtype == torch.float32 and torch.equal(moved, motion(body, action))


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
    motion = Motion(1, (0,), 1, width=64)
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
                x = x + motion.change * motion(x, action[None])
            assert x.item() == pytest.approx(body[-1].item(), abs=0.05)


def test_the_same_seed_fits_the_same(fitted):
    bodies, actions = zip(*[falling(seed) for seed in range(8)], strict=True)
    found = []
    for seed in (1, 1, 2):
        torch.manual_seed(0)
        motion = Motion(1, (0,), 1, width=8)
        fit_motion(motion, bodies, actions, MotionTrainingConfig(steps=3, unroll=4), seed)
        found.append(motion.layers[-1].weight.clone())
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


def test_clips_stay_within_their_episode():
    """Nothing moves in either of two episodes, which are far from each other."""
    bodies = [torch.zeros(6, 1), torch.full((9, 1), 50.0), torch.full((3, 1), -50.0)]
    actions = [np.zeros((5, 1), np.float32), np.zeros((8, 1), np.float32)]
    actions.append(np.zeros((2, 1), np.float32))  # shorter than a clip: left out
    config = MotionTrainingConfig(steps=1, unroll=4, batch_size=500, noise=0.0)
    assert fit_motion(Motion(1, (0,), 1), bodies, actions, config, seed=0) == 0.0


def test_an_action_comes_before_what_it_leads_to():
    """The body is the sum of the actions so far, so with this motion nothing is left to learn."""
    rng = np.random.default_rng(0)
    actions = [rng.normal(size=(t, 1)).astype(np.float32) for t in (7, 5)]
    bodies = [
        torch.from_numpy(np.concatenate([[[0.0]], a.cumsum(0)]).astype("f4")) for a in actions
    ]
    motion = Motion(1, (0,), 1)
    motion.forward = lambda body, action: action + 0 * motion.layers[-1].bias
    config = MotionTrainingConfig(steps=1, unroll=4, batch_size=200, noise=0.0)
    assert fit_motion(motion, bodies, actions, config, seed=0) == pytest.approx(0.0, abs=1e-6)


def test_episodes_shorter_than_a_clip_are_refused():
    with pytest.raises(ValueError, match="clips of 12 steps; none of 1 episodes is as long"):
        fit_motion(
            Motion(1, (0,), 1),
            [torch.zeros(12, 1)],
            [np.zeros((11, 1), np.float32)],
            MotionTrainingConfig(),
            seed=0,
        )
