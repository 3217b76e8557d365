"""Whole trainings of a video transformer: the gate, resuming bit for bit, two clips told apart."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from wm_gym.data import Episode
from wm_gym.evaluation.fidelity import recorded_latents
from wm_gym.runs import Run
from wm_gym.world_model import video_training
from wm_gym.world_model.autoencoder import AutoencoderLearner, AutoencoderTrainingConfig
from wm_gym.world_model.transformer import VideoTransformer
from wm_gym.world_model.video_training import (
    VideoLearner,
    VideoTrainingConfig,
    check_quality,
    train_video_transformer,
)

QUICK = VideoTrainingConfig(
    steps=5,
    batch_size=4,
    warmup=2,
    validate_every=2,
    patience=0,
    held_out=0.3,
    least_psnr=0.0,
    autoencoder=AutoencoderTrainingConfig(steps=3, batch_size=4, warmup=1, validate_every=2),
)


@pytest.fixture
def clips(clip) -> list[Episode]:
    return [clip("play", seed) for seed in range(7)]


@pytest.fixture
def make(tiny_video):
    def new(seed: int = 0) -> VideoTransformer:
        torch.manual_seed(seed)
        return VideoTransformer(tiny_video)

    return new


def weights(model: VideoTransformer) -> list[torch.Tensor]:
    return [value.clone() for value in model.state_dict().values()]


def logged(folder: Path, stage: str) -> list[dict[str, float]]:
    lines = (folder / "training" / stage / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def interrupted(monkeypatch, learner: type, at: int) -> None:
    """Let the next training be interrupted at a step of this learner."""
    step = learner.step

    def stop(self, batch, number, generator):
        if isinstance(self, learner) and number == at:
            raise KeyboardInterrupt
        return step(self, batch, number, generator)

    monkeypatch.setattr(learner, "step", stop)


# Before the dynamics.


def test_the_quality_is_said_and_the_bar_is_the_one_that_is_given(capsys):
    check_quality({"psnr": 33.0, "psnr_moving": 21.5}, least=33.0)
    assert "33.0 dB, what moves in them at 21.5 dB" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"32.99 dB.* from 33.0 dB on.*--video.least-psnr"):
        check_quality({"psnr": 32.99, "psnr_moving": 50.0}, least=33.0)
    with pytest.raises(ValueError, match="nan dB"):
        check_quality({"psnr": math.nan, "psnr_moving": 50.0}, least=0.0)


def test_the_bar_is_33_dB_unless_it_is_lowered():
    assert VideoTrainingConfig().least_psnr == 33.0


def test_dynamics_do_not_begin_below_the_bar_and_begin_once_it_is_lowered(
    make, clips, tmp_path, monkeypatch
):
    strict, run = replace(QUICK, least_psnr=33.0), Run(tmp_path)
    with monkeypatch.context() as patch, pytest.raises(ValueError, match="from 33.0 dB on"):
        interrupted(patch, VideoLearner, at=0)
        train_video_transformer(make(), clips, strict, run)
    assert logged(tmp_path, "autoencoder") and not (tmp_path / "training/world_model").exists()
    interrupted(monkeypatch, AutoencoderLearner, at=0)  # it is not trained again
    report = train_video_transformer(make(1), clips, QUICK, run)
    kept = logged(tmp_path, "autoencoder")[-1]
    assert report["reconstruction/psnr"] == kept["eval/psnr"] < 33
    assert report["reconstruction/psnr_moving"] == kept["eval/psnr_moving"]


def test_pictures_of_another_size_are_refused_before_training(make, clips, tmp_path, monkeypatch):
    interrupted(monkeypatch, AutoencoderLearner, at=0)
    small = [replace(e, frames=e.frames[:, ::2, ::2].copy()) for e in clips]
    with pytest.raises(ValueError, match="16 x 16; the episodes have 8 x 8"):
        train_video_transformer(make(), small, QUICK, Run(tmp_path))


# What is drawn.


def test_windows_are_of_latents_and_their_blocks_whole(make, clips, tmp_path, monkeypatch):
    drawn, step = [], VideoLearner.step

    def noted(self, batch, *args):
        drawn.append(batch)
        return step(self, batch, *args)

    monkeypatch.setattr(VideoLearner, "step", noted)
    model = make()
    train_video_transformer(model, clips, QUICK, Run(tmp_path))
    assert [batch["valid"].shape for batch in drawn] == [(4, 8)] * 5
    latents = torch.cat(recorded_latents(model, clips))  # float16
    for batch in drawn[:3]:
        for name, frames in (("anchor", 1), ("memory", 4), ("future", 8)):
            found = batch[name].reshape(4 * frames, 1, -1)
            assert found.dtype == torch.float16
            assert (found == latents).all(2).any(1).all()


def test_a_source_without_weight_is_not_learnt_from(make, clips, tmp_path, monkeypatch):
    seen, step = [], VideoLearner.step

    def noted(self, batch, *args):
        seen.append(batch["actions"][batch["valid"]])
        return step(self, batch, *args)

    monkeypatch.setattr(VideoLearner, "step", noted)
    others = [replace(e, actions=e.actions / 2, source="rollouts") for e in clips]
    config = replace(QUICK, weights={"play": 0.0})
    train_video_transformer(make(), clips + others, config, Run(tmp_path))
    assert torch.cat(seen)[:, 0].abs().unique().tolist() == [0.5]


# The learner.


def test_the_autoencoder_is_left_as_it_is(make, clips, tmp_path):
    model = make()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    train_video_transformer(model, clips, QUICK, Run(tmp_path), fine_tune=True)
    same = {n for n, value in model.state_dict().items() if torch.equal(value, before[n])}
    assert {n for n in before if n.startswith("autoencoder.")} <= same
    assert "leave.bias" not in same and model.config.scaling_factor == 1.0


@pytest.mark.parametrize(
    ("learner", "at"), [(AutoencoderLearner, 1), (AutoencoderLearner, 2), (VideoLearner, 3)]
)
def test_a_resumed_training_ends_with_the_same_weights(
    make, clips, tmp_path, monkeypatch, learner, at
):
    whole = make()
    expected = train_video_transformer(whole, clips, QUICK, Run(tmp_path / "whole"))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupted(patch, learner, at)
        train_video_transformer(make(), clips, QUICK, Run(tmp_path / "broken"))
    resumed = make(1 if learner is VideoLearner else 0)
    if at > 1:  # something was kept, after the second step
        torch.nn.init.zeros_(resumed.autoencoder.encoder.conv_in.weight)
    run = Run(tmp_path / "broken", resume=True)
    assert train_video_transformer(resumed, clips, QUICK, run) == expected
    assert all(torch.equal(a, b) for a, b in zip(weights(whole), weights(resumed), strict=True))
    assert resumed.config == whole.config and resumed.config.scaling_factor != 1.0
    for name in ("autoencoder", "world_model"):
        lines = [logged(tmp_path / folder, name) for folder in ("whole", "broken")]
        for line in lines[0] + lines[1]:
            del line["time/steps_per_second"]
        assert lines[0] == lines[1] != []


def test_training_waits_for_better_replays_as_long_as_it_is_told(
    make, clips, tmp_path, monkeypatch
):
    scores = iter([1.0, 5.0, 4.0, 5.0])

    def report(model, episodes, steps):
        score = next(scores, 5.0)
        return {f"{name}/{t}": score for name in ("psnr", "psnr_other") for t in steps}

    monkeypatch.setattr(video_training, "replay_report", report)
    run = Run(tmp_path)
    config = replace(QUICK, steps=9, validate_every=1, patience=2)
    train_video_transformer(make(), clips, config, run)
    assert [line["step"] for line in logged(tmp_path, "world_model")] == [1, 2, 3, 4]
    assert run.stage("world_model", config).load("best")["step"] == 2


# What a whole one learns.


def test_two_clips_are_learnt_and_told_apart_by_their_actions(make, clip, tmp_path):
    """They begin alike; four of each are learnt from and one of each is judged."""
    clips = [clip(source, seed) for source, seed in (("a", 0), ("b", 1)) for _ in range(5)]
    assert not np.array_equal(clips[0].frames, clips[5].frames)
    config = VideoTrainingConfig(
        steps=100,
        batch_size=16,
        learning_rate=2e-2,
        warmup=10,
        ema=0.9,
        validate_every=50,
        held_out=0.2,
        beginnings=0.3,
        least_psnr=20.0,
        patience=0,
        autoencoder=AutoencoderTrainingConfig(
            steps=100, batch_size=8, learning_rate=2e-2, warmup=10, ema=0.9, validate_every=100
        ),
    )
    report = train_video_transformer(make(), clips, config, Run(tmp_path))
    losses = [line["train/loss"] for line in logged(tmp_path, "world_model")]
    assert losses[-1] < 0.7 * losses[0]
    assert report["psnr/8"] > report["psnr_first/8"] + 15
    assert report["psnr/8"] > report["psnr_other/8"] + 15
