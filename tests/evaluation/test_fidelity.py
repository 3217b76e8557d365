"""Replays: the dB by hand, the blocks, and a model that obeys its actions exactly."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tests.fakes import SIZE, FakeWorldModel
from wm_gym.data import Episode
from wm_gym.evaluation.fidelity import (
    long_enough,
    psnr,
    replay,
    replay_latents,
    replay_report,
)
from wm_gym.noise import row_noise


def flat(*levels: int) -> torch.Tensor:
    """Pictures (1, t, SIZE, SIZE, 3) that are one grey each."""
    return torch.tensor(levels, dtype=torch.uint8).view(1, -1, 1, 1, 1).expand(1, -1, SIZE, SIZE, 3)


def brighten(seed: int, t: int) -> Episode:
    """FakeWorldModel's own world: the first action value adds 12.75 grey levels times itself."""
    rng = np.random.default_rng(seed)
    actions = np.zeros((t, 7), np.float32)
    actions[:, 0] = rng.uniform(0.1, 1.0, t) * np.where(np.arange(t) % 2, -1, 1)
    levels = 120 + 12.75 * np.concatenate([[0], actions[:, 0].cumsum()])
    frames = np.broadcast_to(levels.round()[:, None, None, None], (t + 1, SIZE, SIZE, 3))
    return Episode(frames.astype(np.uint8), actions, np.zeros(t, bool))


def grey(pictures: torch.Tensor) -> list:
    return pictures[..., 0, 0, 0].tolist()


def test_psnr_by_hand():
    # A difference of 51 = 255 / 5 everywhere: 20 log10(5) dB.
    found = psnr(flat(100, 0), flat(151, 255))
    assert found.dtype == torch.float32 and found.shape == (1, 2)
    assert found[0].tolist() == pytest.approx([20 * math.log10(5), 0.0], abs=1e-4)


def test_psnr_is_over_all_pixels_and_channels_of_a_picture():
    picture, reference = torch.zeros(2, 4, 4, 3, dtype=torch.uint8), torch.zeros(4, 4, 3)
    picture[1, 0, 0, 0] = 255  # one of 48 values
    assert psnr(picture, reference)[1].item() == pytest.approx(10 * math.log10(48), abs=1e-4)


def test_psnr_of_equal_pictures_is_bounded():
    # The mean squared error counts as at least 0.01.
    assert psnr(flat(7), flat(7)).item() == pytest.approx(20 * math.log10(255) + 20, abs=1e-4)


def test_differences_do_not_wrap_around():
    assert psnr(flat(0), flat(255)).item() == psnr(flat(255), flat(0)).item() == pytest.approx(0)


@pytest.mark.parametrize(("chunk", "calls"), [(None, [8, 8, 4]), (5, [5, 5, 5, 5]), (1, [1] * 20)])
def test_a_replay_plays_the_recorded_actions_block_by_block(chunk, calls):
    model, played = FakeWorldModel(), []
    imagine = model.imagine

    def watched(memory, actions, noise):
        played.append(actions.shape[1])
        return imagine(memory, actions, noise)

    model.imagine = watched
    episode = brighten(0, 20)
    first, actions = torch.from_numpy(episode.frames[:1]), torch.from_numpy(episode.actions)[None]
    found = replay(model, first, actions, chunk=chunk)
    assert played == calls
    assert found.shape == (1, 20, SIZE, SIZE, 3) and found.dtype == torch.uint8
    assert (
        np.abs(np.subtract(grey(found[0]), grey(torch.from_numpy(episode.frames[1:])))).max() <= 1
    )


def test_a_replays_noise_follows_from_seed_row_and_step():
    model = FakeWorldModel(noise=0.05)
    first, actions = flat(120, 120)[0], torch.zeros(2, 10, 7)
    found = replay(model, first, actions, chunk=8, seed=5)
    rows, none = np.array([5, 6]), np.zeros(2, np.int64)
    noise = torch.cat(
        [
            row_noise(rows, none, none, (8, 3, SIZE, SIZE)),
            row_noise(rows, none, none + 8, (2, 3, SIZE, SIZE)),
        ],
        dim=1,
    )
    levels = 120 / 127.5 - 1 + 0.05 * noise.cumsum(1)
    expected = ((levels + 1) * 127.5).round().clamp(0, 255).movedim(2, -1)
    assert (found.float() - expected).abs().max() <= 1
    assert torch.equal(found, replay(model, first, actions, chunk=8, seed=5))
    assert not torch.equal(found, replay(model, first, actions, chunk=8, seed=6))


def test_the_pictures_of_a_replay_are_those_of_its_latents():
    model = FakeWorldModel(noise=0.05)
    first, actions = flat(120, 130)[0], torch.zeros(2, 19, 7)  # not in one piece of 8
    latents = replay_latents(model, first, actions, chunk=8, seed=5)
    assert latents.shape == (2, 19, 3, SIZE, SIZE)
    pictures = replay(model, first, actions, chunk=8, seed=5)
    assert torch.equal(pictures, model.decode(latents))


def test_a_report_has_three_figures_a_step():
    report = replay_report(FakeWorldModel(), [brighten(s, 16) for s in range(3)], steps=(1, 8, 16))
    names = ("psnr", "psnr_other", "psnr_first")
    assert list(report) == [f"{name}/{step}" for name in names for step in (1, 8, 16)]
    assert all(isinstance(value, float) for value in report.values())


def test_a_model_that_obeys_its_actions_is_right_under_them_and_wrong_under_others():
    report = replay_report(FakeWorldModel(), [brighten(s, 16) for s in range(3)], steps=(5, 16))
    for step in (5, 16):
        assert report[f"psnr/{step}"] > 45  # rounding alone
        assert report[f"psnr_other/{step}"] < report[f"psnr/{step}"] - 10


def test_the_first_frame_held_still_is_compared_at_each_step_by_hand():
    # Levels 120 -> 133 -> 146 and 120 -> 107 -> 94: errors of 13 at step 1 and of 26 at step 2.
    episodes = []
    for sign in (1, -1):
        frames = flat(120, 120 + 13 * sign, 120 + 26 * sign)[0].numpy().copy()
        episodes.append(Episode(frames, np.full((2, 7), sign, np.float32), np.zeros(2, bool)))
    report = replay_report(FakeWorldModel(), episodes, steps=(1, 2))
    assert report["psnr_first/1"] == round(20 * math.log10(255 / 13), 2)
    assert report["psnr_first/2"] == round(20 * math.log10(255 / 26), 2)
    # Under the other's actions it goes the wrong way: errors of 26 and 52, to a rounding.
    assert report["psnr_other/2"] == pytest.approx(20 * math.log10(255 / 52), abs=0.2)


def test_only_episodes_that_are_long_enough_are_judged():
    episodes = [brighten(0, 8), brighten(1, 16), brighten(2, 15), brighten(3, 20)]
    assert [len(e) for e in long_enough(episodes, 16)] == [16, 20]
    kept = [episodes[1], episodes[3]]
    assert replay_report(FakeWorldModel(), episodes, steps=(16,)) == replay_report(
        FakeWorldModel(), kept, steps=(16,)
    )


def test_a_single_episode_is_refused():
    with pytest.raises(ValueError, match="2 episodes of at least 16 steps, got 1 of 2"):
        replay_report(FakeWorldModel(), [brighten(0, 16), brighten(1, 15)], steps=(8, 16))
