"""Training the classifier: what is drawn, what is imagined, and that it learns a level."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.fakes import FakeWorldModel
from wm_gym.data import Episode
from wm_gym.data.windows import deal
from wm_gym.evaluation.fidelity import recorded_latents
from wm_gym.success import training
from wm_gym.success.calibration import Watched, calibrate, choose_rule
from wm_gym.success.classifier import SuccessConfig
from wm_gym.success.training import (
    LatentWindows,
    SuccessTrainingConfig,
    fit,
    frame_labels,
    imagined_latents,
    latents_of,
    reconstruction_agreement,
    train_classifier,
    watch,
    window_weights,
)
from wm_gym.world_model.model import WorldModel
from wm_gym.world_model.presets import WorldModelConfig

SHAPE = SuccessConfig(channels=8, side=2, vector=6, width=8, features=8, window=4)


class Levels:
    """Pictures have a level of grey, to which 0.1 x the first action value is added.

    A latent is a grid of zeros, and a vector of the level, 1, and whether it is imagined. What is
    imagined is too dark by half, as an imagined cube may be too low. Twice the level is measured.
    """

    device = torch.device("cpu")
    config = SimpleNamespace(max_chunk=8, body=("light[1:]",))

    def noise_shape(self, k: int) -> tuple[int, int]:
        return (k, 1)

    def encode(self, frames: Tensor) -> Tensor:
        return self.latent(frames.float().mean((2, 3, 4)) / 255, 0.0)

    def begin(self, frames: Tensor, robot: Tensor) -> Tensor:
        return frames[:, -1].float().mean((1, 2, 3)) / 255

    def imagine(
        self, memory: Tensor, actions: Tensor, noise: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        level = memory[:, None] + 0.1 * actions[:, :, 0].cumsum(1)
        return level[:, -1], self.latent(level / 2, 1.0), torch.zeros_like(level)

    def follow(self, memory: Tensor, actions: Tensor, measured: Tensor) -> Tensor:
        return self.latent(measured[..., 0] / 4, 1.0)

    def latent(self, level: Tensor, imagined: float) -> Tensor:
        latents = torch.zeros(*level.shape, 8 * 2 * 2 + 6)
        latents[..., 32], latents[..., 33], latents[..., 34] = level, 1.0, imagined
        return latents


def episode(first: int | None, t: int = 16, source: str = "play") -> Episode:
    """The level rises from 0.1 and passes 0.5, which is a success, between two steps.

    Without one it rises to 0.4 and falls again.
    """
    rise = np.zeros(t)
    if first is None:
        rise[:6], rise[6:12] = 0.05, -0.05
    else:
        rise[: first + 2] = 0.4 / (first - 0.5)
    level = 0.1 + np.concatenate([[0], rise.cumsum()])
    frames = np.broadcast_to((255 * level).round()[:, None, None, None], (t + 1, 4, 4, 3))
    actions = np.zeros((t, 7), np.float32)
    actions[:, 0] = rise / 0.1
    light = {"light": np.stack([np.zeros(t + 1), 2 * level], axis=1).astype(np.float32)}
    return Episode(frames.astype(np.uint8), actions, level[1:] >= 0.5, source=source, low_dim=light)


def windows_of(*labels: str, shape: SuccessConfig = SHAPE) -> LatentWindows:
    """One episode a string of 0 and 1; frame i of episode e has the latent [10 e + i]."""
    latents = [torch.arange(10.0 * e, 10 * e + len(x))[:, None] for e, x in enumerate(labels)]
    return LatentWindows(latents, [np.array([c == "1" for c in x]) for x in labels], shape)


# The parts.


def test_labels_have_one_entry_a_frame_and_the_first_is_false():
    assert frame_labels(episode(5, t=7)).tolist() == [False] * 5 + [True] * 3


def test_windows_end_at_every_frame_and_are_padded_with_their_first():
    latents, label = windows_of("000", "0011").batch(torch.tensor([1, 2, 3, 5, 6]))
    assert latents[..., 0].tolist() == [
        [0, 0, 0, 1],
        [0, 0, 1, 2],
        [10, 10, 10, 10],
        [10, 10, 11, 12],
        [10, 11, 12, 13],
    ]
    assert label.tolist() == [0, 0, 0, 1, 1] and label.dtype == torch.float32


def test_half_of_what_is_drawn_are_successes_and_near_misses_come_more_often():
    config = SuccessTrainingConfig(near=3, near_miss_weight=4.0)
    windows = windows_of("00000011", "0000")
    found = window_weights(windows, config, torch.ones(12, dtype=torch.bool))
    # Frames 3, 4 and 5 of the first are near misses; 6 and 7 share the weight of all others.
    rest = [1, 1, 1, 4, 4, 4, 1, 1, 1, 1]
    assert found.tolist() == [*rest[:6], sum(rest) / 2, sum(rest) / 2, *rest[6:]]


def test_the_start_of_the_next_episode_is_not_near_the_end_of_the_last():
    config, every = SuccessTrainingConfig(near=2, near_miss_weight=4.0), torch.ones(7).bool()
    assert window_weights(windows_of("0000", "011"), config, every)[:5].tolist() == [1, 1, 1, 1, 4]


def test_what_is_not_kept_is_never_drawn_and_does_not_count():
    config = SuccessTrainingConfig(near=1, near_miss_weight=4.0)
    windows = windows_of("0011", "00011", "000")
    found = window_weights(windows, config, windows.episode != 0)
    assert found.tolist() == [0, 0, 0, 0, 1, 1, 4, 4.5, 4.5, 1, 1, 1]


def test_episodes_are_there_as_recorded_and_as_followed_from_their_first_picture():
    episodes = [episode(None, t=5), episode(8, t=11), episode(None, t=3)]
    episodes[1].actions[:] = 0  # what was measured counts, not what comes of the actions
    seen, followed = latents_of(Levels(), episodes, batch_size=2)
    for e, recorded, told in zip(episodes, seen, followed, strict=True):
        assert recorded.shape == told.shape == (len(e) + 1, 38)
        assert recorded.dtype == told.dtype == torch.float16
        level = torch.from_numpy(e.frames[:, 0, 0, 0] / 255).float()
        expected = Levels().latent(level, 0.0)
        torch.testing.assert_close(recorded.float(), expected, atol=1e-3, rtol=0)
        assert torch.equal(told[0], recorded[0])
        expected = Levels().latent(level / 2, 1.0)
        torch.testing.assert_close(told[1:].float(), expected[1:], atol=3e-3, rtol=0)


def test_an_imagined_replay_goes_by_the_actions_alone_and_for_so_many_steps():
    episodes = [episode(8, t=11), episode(None, t=3), episode(6, t=10)]
    for e in episodes:
        e.low_dim.clear()
    imagined = imagined_latents(Levels(), episodes, steps=6, batch_size=2)
    assert [len(part) for part in imagined] == [7, 4, 7]
    for e, replayed in zip(episodes, imagined, strict=True):
        level = torch.from_numpy(e.frames[: len(replayed), 0, 0, 0] / 255).float()
        torch.testing.assert_close(
            replayed[:1].float(), Levels().latent(level[:1], 0.0), atol=1e-3, rtol=0
        )
        expected = Levels().latent(level / 2, 1.0)
        torch.testing.assert_close(replayed[1:].float(), expected[1:], atol=3e-3, rtol=0)


def test_a_training_learns_from_the_episodes_as_recorded_and_as_followed(monkeypatch):
    """Two equal episodes of 16 steps in two folds; the success comes at step 8."""
    given, learnt = [], []

    class Noted(LatentWindows):
        def __init__(self, latents, labels, shape):
            given.extend(zip(latents, labels, strict=True))
            super().__init__(latents, labels, shape)

    def noted(windows, kept, *args):
        learnt.append([bool(kept[windows.episode == i].all()) for i in range(4)])
        assert all(kept[windows.episode == i].unique().numel() == 1 for i in range(4))
        return fit(windows, kept, *args)

    monkeypatch.setattr(training, "LatentWindows", Noted)
    monkeypatch.setattr(training, "fit", noted)
    config = SuccessTrainingConfig(steps=1, batch_size=2, folds=2, imagined=9)
    train_classifier(Levels(), [episode(8), episode(8)], SHAPE, config)
    assert [(len(latents), len(labels)) for latents, labels in given] == [(17, 17)] * 4
    assert [int(labels.argmax()) for _, labels in given] == [8] * 4
    assert [latents[1:, 34].unique().tolist() for latents, _ in given] == [[0], [0], [1], [1]]
    # What judges an episode saw neither it nor what was imagined of it; what is kept saw all.
    assert sorted(learnt[:2]) == [[False, True] * 2, [True, False] * 2]
    assert learnt[2:] == [[True] * 4]


def test_an_episode_is_imagined_with_the_same_noise_in_any_batch():
    """Brightness adds up too, so that episodes of the same start and actions can be told apart."""
    frames, actions = np.full((12, 8, 8, 3), 100, np.uint8), np.zeros((11, 7), np.float32)
    episodes = [Episode(frames, actions, np.zeros(11, bool)) for _ in range(5)]
    model = FakeWorldModel(noise=0.1)
    together, apart = (imagined_latents(model, episodes, 80, batch_size=n) for n in (5, 2))
    assert all(torch.equal(a, b) for a, b in zip(together, apart, strict=True))
    assert all(not torch.equal(together[0], other) for other in together[1:])


# Whole trainings.

QUICK = SuccessTrainingConfig(steps=80, batch_size=32, learning_rate=1e-2, folds=4)


EPISODES = [episode(first) for first in [5, 6, 8, 10, None, None, 12, None] * 2]


@pytest.fixture(scope="module")
def trained():
    return train_classifier(Levels(), EPISODES, SHAPE, QUICK)


def test_it_learns_a_success_as_recorded_and_as_imagined(trained):
    """Imagined successes are darker than recorded failures, so it has to have seen both."""
    classifier, real, imagined = trained
    for found in (real, imagined):
        assert found.f1 == 1.0 and found.false_success == 0.0
    for latents in (
        *latents_of(Levels(), [episode(9)]),
        imagined_latents(Levels(), [episode(9)], 80),
    ):
        probability = watch(classifier, latents[0])
        assert probability.shape == (17,) and probability.dtype == np.float32
        assert probability[:8].max() < 0.5 < probability[11:].min()


def test_the_rule_is_chosen_on_imagined_replays_that_each_is_judged_by_a_stranger(trained):
    classifier, real, imagined = trained
    seen, followed = latents_of(Levels(), EPISODES)
    replayed, labels = imagined_latents(Levels(), EPISODES, 80), [frame_labels(e) for e in EPISODES]
    windows = LatentWindows(seen + followed, labels + labels, SHAPE)
    fold = deal(["play"] * 16, 4, QUICK.seed)
    by_fold = [
        fit(
            windows,
            torch.from_numpy(fold != out).repeat(2)[windows.episode],
            SHAPE,
            QUICK,
            Levels.device,
        )
        for out in range(4)
    ]
    told = [
        [watch(by_fold[fold[i]], latents) for i, latents in enumerate(part)]
        for part in (replayed, seen)
    ]
    watched = (Watched(part, labels) for part in told)
    hold, found, recorded = choose_rule(*watched, QUICK.false_success_limit)
    assert found == imagined and recorded == real
    assert (classifier.hold_k, classifier.hold_n) == (hold, hold)
    assert classifier.threshold == imagined.threshold and not classifier.training
    assert real.reliability == calibrate(told[1], labels, hold, hold).reliability


@pytest.mark.parametrize("light", [1.0, 0.0])
def test_pictures_are_judged_again_once_they_are_drawn(trained, light):
    """Drawn as they are they are judged alike; all in black none is a success."""

    class Draws(Levels):
        def decode(self, latents: Tensor) -> Tensor:
            level = (255 * light * latents[..., 32]).round().to(torch.uint8)
            return level[..., None, None, None].expand(*level.shape, 4, 4, 3)

    episodes = [episode(None), episode(6)]
    hits = [
        watch(trained[0], x) >= trained[0].threshold for x in recorded_latents(Draws(), episodes)
    ]
    share = 1.0 if light else 1 - np.concatenate(hits).mean()
    assert 0.5 < share and (light or share < 0.9)
    assert reconstruction_agreement(Draws(), trained[0], episodes) == pytest.approx(share)


@pytest.fixture(scope="module")
def model() -> WorldModel:
    torch.manual_seed(0)
    shape = {"outer": 8, "width": 8, "vector": 4, "draw": (8, 8, 8), "embed": 8}
    body = {"body": ("x",), "body_size": 2}
    return WorldModel(WorldModelConfig(image_size=16, **shape, **body)).eval()


def noisy(seed: int, first: int, t: int = 10) -> Episode:
    frames = np.random.default_rng(seed).integers(0, 256, (t + 1, 16, 16, 3)).astype(np.uint8)
    done, x = np.arange(1, t + 1) >= first, np.zeros((t + 1, 2), np.float32)
    return Episode(frames, np.zeros((t, 7), np.float32), done, source="play", low_dim={"x": x})


def test_training_repeats_with_its_seed(model):
    episodes = [noisy(seed, 4 + seed) for seed in range(6)]
    config = SuccessTrainingConfig(steps=3, batch_size=4, folds=3)
    first, second = (train_classifier(model, episodes, SHAPE, config)[0] for _ in range(2))
    pairs = zip(first.parameters(), second.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("steps", [1, 2, 20])
def test_it_may_train_for_any_number_of_steps(model, steps):
    episodes = [noisy(seed, 4 + seed) for seed in range(4)]
    config = SuccessTrainingConfig(steps=steps, batch_size=2, folds=2)
    classifier, *_ = train_classifier(model, episodes, SHAPE, config)
    assert all(torch.isfinite(p).all() for p in classifier.parameters())


def test_the_world_model_is_left_alone(model):
    before = [p.clone() for p in model.parameters()]
    config = SuccessTrainingConfig(steps=2, batch_size=2, folds=2)
    train_classifier(model, [noisy(seed, 4) for seed in range(4)], SHAPE, config)
    assert all(torch.equal(p, q) for p, q in zip(before, model.parameters(), strict=True))
    assert all(p.grad is None for p in model.parameters())


def test_episodes_without_a_success_are_refused():
    with pytest.raises(ValueError, match="none of 2 episodes succeeds"):
        train_classifier(
            Levels(), [episode(None), episode(None)], SHAPE, SuccessTrainingConfig(steps=1)
        )
