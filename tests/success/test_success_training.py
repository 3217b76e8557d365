"""Training the classifier: what is drawn, what is softened, and that it learns to see red."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from wm_gym.data import Episode
from wm_gym.data.windows import SuccessWindows
from wm_gym.success.classifier import SuccessConfig
from wm_gym.success.training import (
    SuccessTrainingConfig,
    _weights,
    frame_labels,
    soften,
    train_classifier,
    watch,
)
from wm_gym.world_model.model import WorldModel
from wm_gym.world_model.presets import WorldModelConfig


def episode(seed: int, first: int | None, t: int = 16) -> Episode:
    """Noise whose lower half is bright from a step on; that is the success."""
    rng = np.random.default_rng(seed)
    frames = rng.integers(0, 100, (t + 1, 16, 16, 3)).astype(np.uint8)
    done = np.arange(1, t + 1) >= (99 if first is None else first)
    frames[1:][done, 8:] += 150
    return Episode(frames, np.zeros((t, 7), np.float32), done, source="play")


@pytest.fixture(scope="module")
def encode():
    return WorldModel(WorldModelConfig(image_size=16, patch=2, widths=(8, 8, 8), embed=8)).encode


def test_labels_have_one_entry_a_frame_and_the_first_is_false():
    assert frame_labels(episode(0, first=3, t=5)).tolist() == [
        False,
        False,
        False,
        True,
        True,
        True,
    ]


def test_half_of_what_is_drawn_are_successes_and_near_misses_come_more_often():
    episodes = [episode(0, first=6, t=7), episode(1, first=None, t=3)]
    windows = SuccessWindows(episodes)
    config = SuccessTrainingConfig(near=3, near_miss_weight=4.0)
    # Frames 3, 4 and 5 of the first are near misses; 6 and 7 share the weight of all others.
    rest = [1, 1, 1, 4, 4, 4, 1, 1, 1, 1]
    expected = [*rest[:6], sum(rest) / 2, sum(rest) / 2, *rest[6:]]
    assert _weights(windows, config).tolist() == expected


def test_the_start_of_the_next_episode_is_not_near_the_end_of_the_last():
    windows = SuccessWindows([episode(0, None, t=3), episode(1, first=1, t=2)])
    weights = _weights(windows, SuccessTrainingConfig(near=2, near_miss_weight=4.0))
    assert weights[:5].tolist() == [1, 1, 1, 1, 4]


def test_softening_by_nothing_changes_nothing():
    latents = torch.randn(2, 3, 48, 4, 4)
    assert torch.equal(soften(latents, SuccessTrainingConfig(blur=0.0, noise=0.0)), latents)


def test_a_blur_spreads_a_pixel_over_its_neighbours_in_the_picture(encode):
    frames = torch.full((1, 1, 16, 16, 3), 0, dtype=torch.uint8)
    frames[0, 0, 5, 7] = 255  # at the border between latent cells
    latents = encode(frames).expand(400, -1, -1, -1, -1)
    torch.manual_seed(0)
    soft = soften(latents, SuccessTrainingConfig(blur=0.9, noise=0.0))
    pixels = torch.nn.functional.pixel_shuffle(soft[:, 0], 2)[:, 0] + 1  # 0 to 2, as 0 to 255
    share = pixels[:, 6, 8] * 9 / 2  # each neighbour gets a ninth of what is mixed
    torch.testing.assert_close(pixels[:, 5, 7], 2 - share * 2 * 8 / 9)
    torch.testing.assert_close(pixels.sum((1, 2)), torch.full((400,), 2.0), atol=1e-3, rtol=0)
    assert 0 <= share.min() < 0.05 and 0.85 < share.max() <= 0.9


def test_all_frames_of_a_window_are_blurred_alike():
    latents = torch.randn(3, 1, 48, 4, 4).expand(-1, 5, -1, -1, -1)
    soft = soften(latents, SuccessTrainingConfig(noise=0.0))
    torch.testing.assert_close(soft, soft[:, :1].expand_as(soft))
    assert not torch.allclose(soft, latents)


def test_noise_has_at_most_the_given_size_and_differs_by_window():
    torch.manual_seed(0)
    soft = soften(torch.zeros(200, 4, 48, 4, 4), SuccessTrainingConfig(blur=0.0, noise=0.06))
    levels = soft.flatten(1).std(1)
    assert levels.max() < 0.063 and levels.min() < 0.003
    assert levels.mean().item() == pytest.approx(0.03, abs=0.004)


QUICK = SuccessTrainingConfig(steps=60, batch_size=16, held_out=0.25)
SHAPE = SuccessConfig(channels=12, size=8, width=8, features=8, hold_k=1, hold_n=1)


@pytest.fixture(scope="module")
def trained(encode):
    firsts = [4, 6, 8, 10, None, None, 12, None] * 2
    episodes = [episode(seed, first) for seed, first in enumerate(firsts)]
    return train_classifier(encode, episodes, SHAPE, QUICK)


def test_it_learns_a_success_that_can_be_seen(trained, encode):
    classifier, found = trained
    assert found.f1 == 1.0 and found.false_success == 0.0 and abs(found.delay) <= 2
    new = episode(100, first=9)
    probability = watch(classifier, encode, new)
    assert probability.shape == (17,) and probability.dtype == np.float32
    assert probability[:8].max() < 0.5 < probability[11:].min()


def test_the_chosen_threshold_is_the_classifiers_own(trained):
    classifier, found = trained
    assert classifier.threshold == found.threshold
    assert (classifier.hold_k, classifier.hold_n) == (1, 1)
    assert not classifier.training


def test_training_repeats_with_its_seed(encode):
    episodes = [episode(seed, 4 + seed) for seed in range(6)]
    config = SuccessTrainingConfig(steps=3, batch_size=4, held_out=0.4)
    first, second = (train_classifier(encode, episodes, SHAPE, config)[0] for _ in range(2))
    pairs = zip(first.parameters(), second.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("steps", [1, 2, 20])
def test_it_may_train_for_any_number_of_steps(encode, steps):
    episodes = [episode(seed, 4 + seed) for seed in range(4)]
    config = SuccessTrainingConfig(steps=steps, batch_size=2, held_out=0.5)
    classifier, _ = train_classifier(encode, episodes, SHAPE, config)
    assert all(torch.isfinite(p).all() for p in classifier.parameters())


def test_a_window_of_another_length_ends_at_the_frame_of_its_label(encode):
    """With the last frame cut off its windows, a success that lasts one frame could not be seen."""

    def flash(seed: int, at: int | None) -> Episode:
        blank = episode(seed, None)
        frames, done = blank.frames.copy(), np.zeros(16, bool)
        if at is not None:
            frames[at, 8:] += 150
            done[at - 1] = True
        return Episode(frames, blank.actions, done, source="play")

    episodes = [flash(seed, None if seed % 3 == 2 else 3 + seed % 9) for seed in range(16)]
    shape = SuccessConfig(channels=12, size=8, width=8, features=8, window=4, hold_k=1, hold_n=1)
    classifier, _ = train_classifier(encode, episodes, shape, QUICK)
    assert watch(classifier, encode, flash(50, at=7)).argmax() == 7


def test_episodes_without_a_success_are_refused(encode):
    shape = SuccessConfig(channels=12, size=8, width=8, features=8)
    with pytest.raises(ValueError, match="none of 2 episodes succeeds"):
        train_classifier(
            encode, [episode(0, None), episode(1, None)], shape, SuccessTrainingConfig(steps=1)
        )
