"""Training: its parts by hand, resuming bit for bit, and a square that learns to move."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from wm_gym.data import Episode
from wm_gym.data.windows import Windows
from wm_gym.runs import Run
from wm_gym.world_model import training
from wm_gym.world_model.model import WorldModel
from wm_gym.world_model.presets import WorldModelConfig
from wm_gym.world_model.training import (
    Learner,
    WorldModelTrainingConfig,
    event_weights,
    frame_loss,
    learning_rate,
    train_world_model,
)

STEPS = (8, 16, 32, 48)


def square(seed: int, t: int = 48) -> Episode:
    """A white square that falls at the first step, then moves left or right as it is told."""
    rng = np.random.default_rng(seed)
    actions = np.zeros((t, 7), np.float32)
    actions[:, 0] = rng.choice([-1, 1], t)
    frames = np.zeros((t + 1, 16, 16, 3), np.uint8)
    x = 4 * int(rng.integers(3))
    for i in range(t + 1):
        y = 8 if i else 0
        frames[i, y : y + 8, x : x + 8] = 255
        if i < t:
            x = int(np.clip(x + 4 * actions[i, 0], 0, 8))
    return Episode(frames, actions, np.zeros(t, bool))


def small(seed: int, width: int = 8) -> WorldModel:
    torch.manual_seed(seed)
    return WorldModel(
        WorldModelConfig(image_size=16, max_chunk=4, widths=(width, width, 16), embed=width)
    )


@pytest.fixture(scope="module")
def squares() -> list[Episode]:
    return [square(seed) for seed in range(24)]


# The parts.


def test_the_loss_of_patches_that_changed_counts_more_by_hand():
    # One frame of two patches with one channel; the anchor is 0, the second patch has changed.
    clean = torch.tensor([0.1, 0.5]).view(1, 1, 1, 1, 2)
    predicted = torch.tensor([0.3, 0.9]).view(1, 1, 1, 1, 2)
    loss = frame_loss(predicted, clean, torch.zeros(1, 1, 1, 2), torch.ones(1, 1).bool(), 2.0)
    assert loss.item() == pytest.approx((0.04 * 1 + 0.16 * 3) / (1 + 3))


def test_one_changed_channel_makes_a_patch_count_in_all_of_them():
    clean = torch.tensor([0.0, 0.16]).view(1, 1, 2, 1, 1)
    predicted = torch.tensor([1.0, 0.16]).view(1, 1, 2, 1, 1)
    args = torch.zeros(1, 2, 1, 1), torch.ones(1, 1).bool(), 2.0
    assert frame_loss(predicted, clean, *args).item() == pytest.approx(3 * 1 / (3 * 2))


def test_frames_that_are_not_there_cost_nothing():
    clean, predicted = torch.zeros(2, 2, 1, 1, 1), torch.ones(2, 2, 1, 1, 1)
    predicted[0, 1] = 7.0  # not valid
    valid = torch.tensor([[True, False], [True, True]])
    assert frame_loss(predicted, clean, torch.zeros(2, 1, 1, 1), valid, 2.0).item() == 1.0


def test_a_batch_without_valid_frames_has_no_loss():
    clean, valid = torch.zeros(1, 2, 1, 1, 1), torch.zeros(1, 2).bool()
    assert frame_loss(clean + 1, clean, torch.zeros(1, 1, 1, 1), valid, 2.0).item() == 0.0


def test_windows_that_reach_the_first_success_are_drawn_more_often():
    done = np.zeros((2, 8), bool)
    done[0, [4, 5, 7]] = True  # first after the action 4; the other episode fails
    blank = np.zeros((9, 16, 16, 3), np.uint8)
    episodes = [Episode(blank, np.zeros((8, 7), np.float32), d) for d in done]
    weights = event_weights(Windows(episodes, block=3), episodes, 5.0)
    assert weights.tolist() == [1, 1, 5, 5, 5, 1, 1, 1, *[1] * 8]
    assert weights.dtype == torch.float64


def test_the_learning_rate_warms_up_then_falls_to_a_twentieth():
    config = WorldModelTrainingConfig(steps=30, warmup=10, learning_rate=1.0)
    rates = [learning_rate(config, step) for step in (0, 4, 9, 10, 20, 30)]
    assert rates == pytest.approx([0.1, 0.5, 1.0, 1.0, 0.525, 0.05])


def test_the_learning_rate_may_do_without_a_warm_up():
    config = WorldModelTrainingConfig(steps=2, warmup=0, learning_rate=1.0)
    assert [learning_rate(config, s) for s in (0, 1)] == pytest.approx([1.0, 0.525])


def test_averaged_weights_are_lent_and_taken_back(squares):
    learner = Learner(small(0), WorldModelTrainingConfig(ema=0.5))
    for step in range(3):
        windows = Windows(squares[:2], block=4 * 3)
        learner.step(windows.batch([step]), step, torch.Generator().manual_seed(step))
    weights = learner.model.denoiser.leave[-1].bias
    before, average = weights.clone(), learner.average.shadow_params
    with learner.averaged():
        inside = [p.clone() for p in learner.model.parameters()]
    assert all(torch.equal(p, a) for p, a in zip(inside, average, strict=True))
    assert torch.equal(weights, before)
    assert any(
        not torch.equal(p, a) for p, a in zip(learner.model.parameters(), inside, strict=True)
    )


def test_every_frame_is_learnt_under_the_action_that_led_to_it(monkeypatch):
    """Action i has the value i, and frame i + 1, which it leads to, the level i + 1."""
    level = np.arange(21, dtype=np.uint8)[:, None, None, None]
    actions = np.arange(20, dtype=np.float32)[:, None].repeat(7, 1)
    episode = Episode(np.broadcast_to(level, (21, 16, 16, 3)).copy(), actions, np.zeros(20, bool))
    model, pairs = small(0), []
    look_ahead, forward = model.denoiser.look_ahead, model.denoiser.forward

    def marked(memory, actions, level):
        found = look_ahead(memory, actions, level)
        return found._replace(frames=actions[:, :, :1, None, None].expand_as(found.frames))

    def seen(noisy, time, ahead):
        seen.actions = ahead.frames[0, :, 0, 0, 0].tolist()
        return forward(noisy, time, ahead)

    def shown(predicted, clean, anchor, *_):
        assert (model.decode(anchor[:, None]) == 0).all()  # always frame 0
        pairs.append((seen.actions, model.decode(clean)[0, :, 0, 0, 0].tolist()))
        return predicted.mean()

    monkeypatch.setattr(model.denoiser, "look_ahead", marked)
    monkeypatch.setattr(model.denoiser, "forward", seen)
    monkeypatch.setattr(training, "frame_loss", shown)
    learner = Learner(model, WorldModelTrainingConfig(own_blocks=2, frames=2))
    batch = Windows([episode], block=4 * 3).batch([5])
    for seed in range(30):
        learner.step(batch, learner.config.steps - 1, torch.Generator().manual_seed(seed))
    assert all([i + 1 for i in came] == levels for came, levels in pairs)
    assert {i for came, _ in pairs for i in came} == set(range(5, 17))  # three blocks of four


# Whole trainings.

SHORT = WorldModelTrainingConfig(
    steps=5, batch_size=2, warmup=2, validate_every=2, held_out=0.1, learning_rate=1e-2
)


def weights(model: WorldModel) -> list[torch.Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def interrupted(monkeypatch, at: int) -> None:
    """Let the next training be interrupted at a step."""
    step = Learner.step

    def stop(self, batch, number, generator):
        if number == at:
            raise KeyboardInterrupt
        return step(self, batch, number, generator)

    monkeypatch.setattr(Learner, "step", stop)


def test_a_resumed_training_ends_with_the_same_weights(squares, tmp_path, monkeypatch):
    whole = small(0)
    expected = train_world_model(whole, squares, SHORT, Run(tmp_path / "whole"))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupted(patch, at=3)  # the last checkpoint is that of step 2
        train_world_model(small(0), squares, SHORT, Run(tmp_path / "broken"))
    torch.manual_seed(99)
    resumed, run = small(1), Run(tmp_path / "broken", resume=True)
    assert train_world_model(resumed, squares, SHORT, run) == expected
    assert all(torch.equal(a, b) for a, b in zip(weights(whole), weights(resumed), strict=True))
    logged = [
        [{k: v for k, v in line.items() if not k.startswith("time/")} for line in r.metrics()]
        for r in (Run(tmp_path / "whole", resume=True), run)
    ]
    assert [line["step"] for line in logged[0]] == [2, 4, 5]
    assert logged[1] == logged[0]


def test_what_was_logged_before_the_first_checkpoint_is_logged_once(squares, tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Run, "save", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        train_world_model(small(0), squares, SHORT, Run(tmp_path))
    run = Run(tmp_path, resume=True)
    train_world_model(small(0), squares, SHORT, run)
    assert [line["step"] for line in run.metrics()] == [2, 4, 5]


def test_a_finished_training_is_not_repeated(squares, tmp_path, monkeypatch):
    first, again = small(0), small(1)
    expected = train_world_model(first, squares, SHORT, Run(tmp_path))
    interrupted(monkeypatch, at=0)
    assert train_world_model(again, squares, SHORT, Run(tmp_path, resume=True)) == expected
    assert all(torch.equal(a, b) for a, b in zip(weights(first), weights(again), strict=True))


def test_training_ends_with_the_averaged_weights(squares, tmp_path):
    model, run = small(0), Run(tmp_path)
    train_world_model(model, squares, SHORT, run)
    state = run.load()
    average = state["average"]["shadow_params"]
    assert all(torch.equal(p, a) for p, a in zip(model.parameters(), average, strict=True))
    last = state["model"]["denoiser.leave.2.bias"]
    assert not torch.equal(last, model.denoiser.leave[-1].bias) and state["step"] == 5
    assert not model.training


def test_episodes_too_short_to_judge_are_refused_before_training(tmp_path, monkeypatch):
    interrupted(monkeypatch, at=0)
    with pytest.raises(ValueError, match="2 episodes of at least 48 steps, got 0 of 2"):
        episodes = [square(seed, t=47) for seed in range(20)]
        train_world_model(small(0), episodes, SHORT, Run(tmp_path))


def test_it_learns_to_move_a_square_as_it_is_told(squares, tmp_path):
    config = WorldModelTrainingConfig(
        steps=120,
        batch_size=16,
        learning_rate=1e-2,
        warmup=10,
        ema=0.9,
        own_blocks=1,
        frames=3,
        validate_every=120,
        held_out=0.17,
    )
    report = train_world_model(small(0, width=32), squares, config, Run(tmp_path))
    own, first, other = (
        np.mean([report[f"{name}/{step}"] for step in STEPS])
        for name in ("psnr", "psnr_first", "psnr_other")
    )
    # Of 256 pixels the fallen square has 64 where the first had none, and the other way round.
    assert first == pytest.approx(-10 * math.log10(128 / 256), abs=0.01)
    assert own > first + 8
    assert own > other + 2
