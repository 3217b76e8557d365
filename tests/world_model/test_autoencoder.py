"""The autoencoder of a video transformer: its loss, what it is worth, how large its latents are."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from wm_gym.data import Episode
from wm_gym.runs import Run
from wm_gym.world_model import autoencoder
from wm_gym.world_model.autoencoder import (
    AutoencoderLearner,
    AutoencoderTrainingConfig,
    measure_scaling,
    reconstruction,
    train_autoencoder,
)
from wm_gym.world_model.transformer import VideoTransformer

QUICK = AutoencoderTrainingConfig(steps=3, batch_size=4, warmup=1, validate_every=2)


class Stub(nn.Module):
    """Latents have 4 numbers of mean 2 and variance 1; whatever they are, black is drawn."""

    def __init__(self) -> None:
        super().__init__()
        self.black = nn.Linear(1, 1)
        nn.init.constant_(self.black.bias, -1.0)
        self.device = torch.device("cpu")

    def encode(self, pictures: Tensor) -> SimpleNamespace:
        moments = torch.tensor([2.0] * 4 + [0.0] * 4).expand(len(pictures), 8)[..., None, None]
        return SimpleNamespace(latent_dist=SimpleNamespace(parameters=moments))

    def decode(self, latents: Tensor) -> SimpleNamespace:
        return SimpleNamespace(sample=self.black.bias.expand(len(latents), 3, 8, 8))


@pytest.mark.parametrize("change_weight", [0.0, 2.0])
def test_the_loss_by_hand(change_weight):
    """A green pixel is new, so 5 rows of 3 pixels count more; a blue one was there before."""
    pictures = torch.zeros(2, 8, 8, 3, dtype=torch.uint8)
    pictures[0, 0, 7, 2] = 102  # 0.8 above black, as 0 .. 255 are -1 .. 1
    first = pictures.clone()
    pictures[0, 4, 0, 1] = 255  # 2 above black
    config = AutoencoderTrainingConfig(kl_weight=0.5, change_weight=change_weight)
    batch = {"pictures": pictures, "first": first}
    loss = AutoencoderLearner(Stub(), config)._loss(batch, torch.Generator().manual_seed(0))
    error = ((1 + change_weight) * 2 + 0.8) / (3 * (2 * 64 + 15 * change_weight))
    divergence = 4 * 2**2 / 2  # of 4 numbers with mean 2 and variance 1
    assert loss.item() == pytest.approx(error + 0.5 * divergence / (3 * 64), rel=1e-3)


def white(t: int) -> Episode:
    """Black at first, white from then on."""
    frames = np.full((t + 1, 16, 16, 3), 255, np.uint8)
    frames[0] = 0
    return Episode(frames, np.zeros((t, 7), np.float32), np.zeros(t, bool))


def test_what_a_reconstruction_is_worth_by_hand(monkeypatch, tiny_video):
    """Of 15 pictures 6, 2 of which are an episode's first and equal; white comes out as 127."""
    seen = []

    def halved(_, pictures: Tensor) -> Tensor:
        seen.append(pictures[:, 0, 0, 0].tolist())
        return pictures // 2

    monkeypatch.setattr(autoencoder, "reconstructed", halved)
    monkeypatch.setattr(autoencoder, "JUDGED", 6)
    found = reconstruction(VideoTransformer(tiny_video), [white(10), white(3)])
    assert seen == [[0, 255, 255, 255], [0, 255]]  # the 0th, 3rd, 6th and 8th; 11 - 11 and 14 - 11
    equal, half = 20 * np.log10(255) + 20, 20 * np.log10(255 / 128)  # 1e-2 is the least error
    assert found["psnr"] == pytest.approx((equal + 2 * half) / 3, abs=0.01)
    assert found["psnr_moving"] == pytest.approx(half, abs=0.01)


def test_a_reconstruction_is_judged_away_from_first_pictures_of_many_episodes(
    monkeypatch, tiny_video
):
    monkeypatch.setattr(autoencoder, "reconstructed", lambda _, pictures: pictures // 2)
    monkeypatch.setattr(autoencoder, "JUDGED", 4)
    found = reconstruction(VideoTransformer(tiny_video), [white(3)] * 8)  # 0, 10, 21, 31 of 32
    assert found["psnr_moving"] == pytest.approx(20 * np.log10(255 / 128), abs=0.01)


@pytest.mark.parametrize("before", [1.0, 0.2])
def test_the_scaling_factor_is_one_over_the_deviation_of_latents(tiny_video, clip, before):
    torch.manual_seed(0)
    model = VideoTransformer(replace(tiny_video, scaling_factor=before))
    frames = clip("play", 0).frames
    shown = torch.from_numpy(frames).permute(0, 3, 1, 2) / 127.5 - 1
    with torch.no_grad():
        moments = model.autoencoder.quant_conv(model.autoencoder.encoder(shown))
    expected = 1 / np.std(moments[:, :4].numpy())  # the means; log-variances follow
    found = measure_scaling(model, torch.from_numpy(frames)[None])
    assert found == pytest.approx(expected, rel=0.02) and abs(found / before - 1) > 0.1


def episodes(clip) -> tuple[list[Episode], list[Episode]]:
    return [clip("play", seed) for seed in range(3)], [clip("play", 3)]


def test_training_leaves_all_but_the_autoencoder_and_scales_latents(tiny_video, clip, tmp_path):
    torch.manual_seed(0)
    model, (fit, judged) = VideoTransformer(tiny_video), episodes(clip)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    report = train_autoencoder(model, fit, judged, QUICK, Run(tmp_path))
    changed = {n for n, value in model.state_dict().items() if not torch.equal(value, before[n])}
    assert changed and all(name.startswith("autoencoder.") for name in changed)
    assert report == reconstruction(model, judged) and not model.autoencoder.training
    latents = model.encode(torch.from_numpy(np.stack([e.frames[:-1] for e in fit])))
    assert latents.std().item() == pytest.approx(1, rel=0.05)


def test_a_picture_is_drawn_with_its_own_first_one_and_by_the_chance_of_its_source(
    tiny_video, clip, tmp_path, monkeypatch
):
    """Frames of the others are darker by 40 levels."""
    drawn, step = [], AutoencoderLearner.step

    def noted(self, batch, *args):
        drawn.append(batch)
        return step(self, batch, *args)

    monkeypatch.setattr(AutoencoderLearner, "step", noted)
    fit, judged = episodes(clip)
    dark = [replace(e, frames=e.frames - 40, source="dark") for e in fit]
    model = VideoTransformer(tiny_video)
    train_autoencoder(model, fit + dark, judged, QUICK, Run(tmp_path), {"play": 0.0})
    assert len(drawn) == 3
    known = [frame for e in dark for frame in e.frames]
    for batch in drawn:
        assert len(batch["pictures"]) == 4
        assert all(np.array_equal(first, dark[0].frames[0]) for first in batch["first"])
        assert all(any(np.array_equal(p, k) for k in known) for p in batch["pictures"].numpy())


def test_pictures_come_out_better_after_training(tiny_video, clip, tmp_path):
    torch.manual_seed(0)
    model, (fit, judged) = VideoTransformer(tiny_video), episodes(clip)
    new = reconstruction(model, judged)["psnr"]
    config = replace(QUICK, steps=60, batch_size=8, learning_rate=5e-3, ema=0.9, validate_every=60)
    assert train_autoencoder(model, fit, judged, config, Run(tmp_path))["psnr"] > new + 6
