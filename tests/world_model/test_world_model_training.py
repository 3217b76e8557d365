"""Training: what is learnt from what, resuming bit for bit, and a square that learns to move."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from wm_gym.data import Episode
from wm_gym.data.windows import Windows
from wm_gym.runs import Run
from wm_gym.world_model import training
from wm_gym.world_model.dynamics import State
from wm_gym.world_model.model import WorldModel
from wm_gym.world_model.presets import WorldModelConfig
from wm_gym.world_model.training import (
    Learner,
    WorldModelTrainingConfig,
    draw_scene,
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


def counting(first: int, t: int = 20) -> Episode:
    """Frame i has the level first + i, and action i, which leads to frame i + 1, the value."""
    level = np.arange(first, first + t + 1, dtype=np.uint8)[:, None, None, None]
    frames = np.broadcast_to(level, (t + 1, 16, 16, 3)).copy()
    actions = np.arange(first, first + t, dtype=np.float32)[:, None].repeat(7, 1)
    return Episode(frames, actions, np.zeros(t, bool))


def small(seed: int) -> WorldModel:
    torch.manual_seed(seed)
    return WorldModel(
        WorldModelConfig(
            image_size=16, max_chunk=4, outer=8, width=8, vector=64, draw=(8, 8), embed=8
        )
    )


def levels(pictures: torch.Tensor) -> list:
    """Grey levels of flat pictures (..., 3, H, W) in [-1, 1]."""
    return ((pictures[..., 0, 0, 0] + 1) * 127.5).round().int().tolist()


@pytest.fixture(scope="module")
def squares() -> list[Episode]:
    return [square(seed) for seed in range(24)]


# The learner.


def test_the_scene_is_the_mean_of_the_first_pictures():
    rng = np.random.default_rng(0)
    first = rng.integers(0, 256, (2, 16, 16, 3)).astype(np.uint8)
    episodes = [counting(0, 3), counting(100, 2)]
    for episode, frame in zip(episodes, first, strict=True):
        episode.frames[0] = frame
    model = small(0)
    draw_scene(model, episodes)
    shown = model.renderer(State(torch.randn(1, 8, 2, 2), torch.randn(1, 64)))[0]  # (3, 16, 16)
    expected = first.mean(0) / 127.5 - 1
    np.testing.assert_allclose(shown.detach().permute(1, 2, 0), expected, atol=1e-6)


def test_every_weight_has_one_optimiser_and_vectors_have_adamw():
    learner = Learner(small(0), WorldModelTrainingConfig())
    names = {id(p): name for name, p in learner.model.named_parameters()}
    muon, adamw = (
        [names[id(p)] for group in o.param_groups for p in group["params"]]
        for o in learner.optimizers
    )
    assert sorted(muon + adamw) == sorted(names.values())
    assert "transition.vector.weight_hh" in muon and "encoder.enter.weight" in muon
    apart = {"renderer.mean", "renderer.leave.2.weight", "encoder.place"}
    assert {n for n in adamw if dict(learner.model.named_parameters())[n].dim() > 1} == apart


def test_both_rates_follow_the_schedule():
    config = WorldModelTrainingConfig(steps=30, warmup=10, learning_rate=0.01, most_clips=1)
    learner = Learner(small(0), config)
    batch = Windows([square(0)], block=2).batch([0])
    for step, share in ((0, 0.1), (4, 0.5), (20, 0.525)):
        learner.step(batch, step, torch.Generator().manual_seed(0))
        rates = [group["lr"] for o in learner.optimizers for group in o.param_groups]
        assert rates == pytest.approx([0.01 * share, 0.005 * share])


def test_gradients_are_clipped_and_fresh_at_every_step(monkeypatch):
    learner = Learner(small(0), WorldModelTrainingConfig(grad_clip=1e-3))
    batch = Windows([square(0)], block=2).batch([0])
    for step in range(3):
        learner.step(batch, step, torch.Generator().manual_seed(0))
        squares = [p.grad.square().sum() for p in learner.model.parameters() if p.grad is not None]
        assert 0 < sum(squares) ** 0.5 <= 1e-3 * 1.001


def test_averaged_weights_are_lent_and_taken_back(squares):
    learner = Learner(small(0), WorldModelTrainingConfig(ema=0.5))
    windows = Windows(squares[:2], block=3)
    for step in range(3):
        learner.step(windows.batch([step]), step, torch.Generator().manual_seed(step))
    weights = learner.model.renderer.leave[-1].bias
    before, average = weights.clone(), learner.average.shadow_params
    with learner.averaged():
        inside = [p.clone() for p in learner.model.parameters()]
    assert all(torch.equal(p, a) for p, a in zip(inside, average, strict=True))
    assert torch.equal(weights, before)
    assert any(
        not torch.equal(p, a) for p, a in zip(learner.model.parameters(), inside, strict=True)
    )


def watched(model: WorldModel, monkeypatch) -> dict[str, list]:
    """Make states that remember their action, and list what is encoded, drawn and compared."""
    seen = {"read": [], "played": [], "shown": [], "anchor": [], "valid": []}
    encode, render = model.encoder.forward, model.renderer.forward

    def encoder(pictures):
        seen["read"] += levels(pictures)
        return encode(pictures)

    def transition(state, action):
        return State(state.grid, action[:, :1].expand_as(state.vector))

    def renderer(state):
        seen["played"] += state.vector[:, 0].int().tolist()
        return render(state)

    def loss(drawn, clean, anchor, valid, _):
        seen["shown"] += levels(clean)
        seen["anchor"] += levels(anchor)
        seen["valid"] += valid.tolist()
        return drawn.mean()

    monkeypatch.setattr(model.encoder, "forward", encoder)
    monkeypatch.setattr(model.transition, "forward", transition)
    monkeypatch.setattr(model.renderer, "forward", renderer)
    monkeypatch.setattr(training, "frame_loss", loss)
    return seen


def test_every_frame_is_learnt_under_the_action_that_led_to_it(monkeypatch):
    model = small(0)
    seen = watched(model, monkeypatch)
    learner = Learner(model, WorldModelTrainingConfig(pictures=4))
    windows = Windows([counting(0), counting(100)], block=12)
    for seed in range(30):
        batch = windows.batch([5, 20 + 10])  # one of each; the second ends after 10 steps
        learner.step(batch, 0, torch.Generator().manual_seed(seed))
    assert seen["read"][:2] == [[0, 2, 3, 4, 5], [100, 107, 108, 109, 110]]
    there = [
        (action, shown, anchor)
        for action, shown, anchor, valid in zip(
            seen["played"], seen["shown"], seen["anchor"], seen["valid"], strict=True
        )
        if valid
    ]
    first = {(i, i + 1, 0) for i in range(5, 17)}
    second = {(i, i + 1, 100) for i in range(110, 120)}
    assert set(there) == first | second
    assert len(there) < 30 * 4  # the second's padding is not valid


@pytest.mark.parametrize(("pictures", "each"), [(1, 2), (9, 4), (99, 6)])
def test_pictures_are_shared_by_the_clips_two_each_at_least(monkeypatch, pictures, each):
    model = small(0)
    seen = watched(model, monkeypatch)
    learner = Learner(model, WorldModelTrainingConfig(pictures=pictures))
    batch = Windows([counting(0), counting(100)], block=6).batch([0, 20])
    learner.step(batch, 0, torch.Generator().manual_seed(0))
    first, second = seen["shown"][:each], seen["shown"][each:]
    assert len(set(first)) == len(set(second)) == each  # none twice
    assert set(first) <= set(range(1, 7)) and set(second) <= set(range(101, 107))


# Whole trainings.

SHORT = WorldModelTrainingConfig(
    steps=5,
    lengths=((0.4, 4), (1.0, 8)),  # 2 and 3 steps
    transitions=16,
    pictures=8,
    warmup=2,
    validate_every=2,
    held_out=0.1,
    learning_rate=1e-2,
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


def test_clips_grow_and_batches_keep_their_size(squares, tmp_path, monkeypatch):
    shapes, step = [], Learner.step

    def noted(self, batch, *args):
        shapes.append(tuple(batch["valid"].shape))
        return step(self, batch, *args)

    monkeypatch.setattr(Learner, "step", noted)
    config = WorldModelTrainingConfig(
        steps=8,
        lengths=((0.25, 2), (0.5, 6), (0.75, 8), (1.0, 40)),
        transitions=24,
        most_clips=5,
        pictures=8,
        validate_every=8,
        held_out=0.1,
    )
    train_world_model(small(0), squares, config, Run(tmp_path))
    # 24 / 2 would be 12 clips, which are more than 5; 24 / 40 would be none.
    assert shapes == [(5, 2)] * 2 + [(4, 6)] * 2 + [(3, 8)] * 2 + [(1, 40)] * 2


@pytest.mark.parametrize("length", [4, 8, 48])
def test_the_share_of_beginnings_holds_for_every_length(squares, tmp_path, monkeypatch, length):
    begun, step = [], Learner.step

    def noted(self, batch, *args):
        begun.append(bool((batch["memory"] == batch["anchor"][:, None]).all()))
        return step(self, batch, *args)

    monkeypatch.setattr(Learner, "step", noted)
    config = WorldModelTrainingConfig(
        steps=4,
        lengths=((1.0, length),),
        beginnings=1.0,
        transitions=4 * length,
        pictures=8,
        held_out=0.1,
    )
    train_world_model(small(0), squares, config, Run(tmp_path))
    assert begun == [True] * 4


@pytest.mark.parametrize("at", [1, 3])
def test_a_resumed_training_ends_with_the_same_weights(squares, tmp_path, monkeypatch, at):
    whole = small(0)
    expected = train_world_model(whole, squares, SHORT, Run(tmp_path / "whole"))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupted(patch, at)  # before the first checkpoint, or after it
        train_world_model(small(0), squares, SHORT, Run(tmp_path / "broken"))
    torch.manual_seed(99)
    resumed = small(0 if at == 1 else 1)
    run = Run(tmp_path / "broken", resume=True)
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
    last = state["model"]["renderer.leave.2.bias"]
    assert not torch.equal(last, model.renderer.leave[-1].bias) and state["step"] == 5
    assert not model.training


def test_episodes_too_short_to_judge_are_refused_before_training(tmp_path, monkeypatch):
    interrupted(monkeypatch, at=0)
    with pytest.raises(ValueError, match="2 episodes of at least 48 steps, got 0 of 2"):
        episodes = [square(seed, t=47) for seed in range(20)]
        train_world_model(small(0), episodes, SHORT, Run(tmp_path))


def test_it_learns_to_move_a_square_as_it_is_told(squares, tmp_path):
    config = WorldModelTrainingConfig(
        steps=160,
        lengths=((0.5, 2), (1.0, 8)),
        transitions=128,
        pictures=64,
        learning_rate=1e-2,
        warmup=10,
        ema=0.9,
        validate_every=160,
        held_out=0.17,
    )
    report = train_world_model(small(0), squares, config, Run(tmp_path))
    own, first, other = (
        np.mean([report[f"{name}/{step}"] for step in STEPS])
        for name in ("psnr", "psnr_first", "psnr_other")
    )
    # Of 256 pixels the fallen square has 64 where the first had none, and the other way round.
    assert first == pytest.approx(-10 * math.log10(128 / 256), abs=0.01)
    assert own > first + 10
    assert own > other + 4
