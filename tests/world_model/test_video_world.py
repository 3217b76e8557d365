"""An imagined world of a video transformer and a classifier of its latents, loaded by name."""

from __future__ import annotations

from functools import partial

import gymnasium as gym
import numpy as np
import pytest
import torch

import wm_gym  # noqa: F401  registers the ids
from tests.fakes import fake_pool
from wm_gym.data import Episode
from wm_gym.starts import save_starts
from wm_gym.success.classifier import SuccessClassifier, SuccessConfig
from wm_gym.success.training import SuccessTrainingConfig, latents_of, train_classifier
from wm_gym.testing import check_world
from wm_gym.world_model.transformer import VideoTransformer

SHAPE = SuccessConfig(channels=4, side=4, vector=0, width=8, features=4)


def model_of(config) -> VideoTransformer:
    """Make one whose layers change something, for pictures that are not all alike."""
    torch.manual_seed(0)
    model = VideoTransformer(config)
    for part in (model.told, model.leave):
        torch.nn.init.normal_(part.weight, std=0.2)
    return model.eval()


@pytest.fixture(scope="module")
def options(tiny_video, tmp_path_factory) -> dict[str, str]:
    """Name folders of both models and of the starts."""
    folders = {n: tmp_path_factory.mktemp(n) for n in ("world_model", "success", "starts")}
    model_of(tiny_video).save_pretrained(folders["world_model"])
    SuccessClassifier(SHAPE).save_pretrained(folders["success"])
    save_starts([fake_pool(image_size=16)], folders["starts"])
    return {name: str(folder) for name, folder in folders.items()}


@pytest.mark.parametrize("chunk", [1, 8])
def test_it_is_made_by_name_and_stepped(options, chunk):
    options = options | {"chunk": chunk, "return_frames": True, "ignore_terminations": True}
    env = gym.make_vec("wm_gym/Lift-v0", num_envs=3, **options)
    assert type(env.unwrapped.world_model) is VideoTransformer
    env.reset(seed=0)
    env.action_space.seed(0)
    shown = []
    for _ in range(2):
        obs, _, _, _, info = env.step(env.action_space.sample())
        assert info["frames"].shape == (3, chunk, 16, 16, 3)
        assert np.array_equal(info["frames"][:, -1], obs["image"])
        assert (np.abs(info["success_probability"] - 0.5) < 0.5).all()
        shown.append(obs["image"])
    assert info["elapsed_steps"].tolist() == [2 * chunk] * 3
    assert not np.array_equal(*shown)
    env.close()


def test_it_keeps_the_promises_of_a_world(options):
    make = partial(gym.make_vec, "wm_gym/Lift-v0", chunk=2, deterministic=True, **options)
    check_world(make, [2], ["next_step"])


def test_a_model_of_larger_latents_is_refused(options, tmp_path):
    SuccessClassifier(SuccessConfig(channels=4, side=8, vector=0)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="hold 64 numbers and the success classifier reads 256"):
        gym.make_vec("wm_gym/Lift-v0", **options | {"success": str(tmp_path)})


# Its classifier.


def test_episodes_are_followed_block_by_block_without_measurements(tiny_video, clip):
    model, episodes = model_of(tiny_video), [clip("play", 0, 5), clip("play", 1, 10)]
    seen, followed = latents_of(model, episodes, batch_size=2)
    for e, recorded, told in zip(episodes, seen, followed, strict=True):
        assert recorded.shape == told.shape == (len(e) + 1, 64)
        assert recorded.dtype == told.dtype == torch.float16
        assert torch.equal(told[0], recorded[0]) and not torch.equal(told[1], recorded[1])
    # The second block of the longer one begins with frame 8 as recorded.
    other = clip("play", 1, 10)
    other.frames[8] //= 2
    again = latents_of(model, [episodes[0], other], batch_size=2)[1][1]
    assert torch.equal(again[:9], followed[1][:9]) and not torch.equal(again[9:], followed[1][9:])


def test_a_classifier_learns_from_its_latents(tiny_video, clip):
    """A success is a square at the left."""
    episodes = []
    for seed in range(6):
        e = clip("play", seed, 12)
        left = (e.frames[1:, 8, 1, 0] == 200).cumsum() > 0
        episodes.append(Episode(e.frames, e.actions, left, source="play"))
    assert 0 < sum(e.succeeded for e in episodes)
    config = SuccessTrainingConfig(steps=2, batch_size=4, folds=2)
    classifier, *_ = train_classifier(model_of(tiny_video), episodes, SHAPE, config)
    assert classifier.config.latent_size == tiny_video.latent_size
