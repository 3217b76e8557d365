"""The ablations on small models: what each variant sees, and for how long it is trained."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks import ablations
from benchmarks.ablations import AblationConfig, Variant, fitting, main, pace
from wm_gym.data import Episode
from wm_gym.runs import Run
from wm_gym.world_model.autoencoder import AutoencoderTrainingConfig
from wm_gym.world_model.motion import MotionTrainingConfig
from wm_gym.world_model.presets import WorldModelConfig
from wm_gym.world_model.reading import ReadingTrainingConfig
from wm_gym.world_model.training import WorldModelTrainingConfig
from wm_gym.world_model.transformer import VideoTransformerConfig
from wm_gym.world_model.video_training import VideoTrainingConfig

SMALL = WorldModelConfig(
    16, outer=8, width=8, vector=16, draw=(8, 8, 8), embed=16, body=("x",), body_size=1
)
VIDEO = VideoTransformerConfig(
    16,
    depth=1,
    width=16,
    heads=2,
    block_out_channels=(8, 8, 8),
    layers_per_block=1,
    scaling_factor=1.0,
)
QUICK = AblationConfig(
    (Path("all.hdf5"),),
    minutes=0.004,
    pilot=3,
    convolution=WorldModelTrainingConfig(
        lengths=((1.0, 4),),
        transitions=16,
        pictures=8,
        held_out=0.3,
        motion=MotionTrainingConfig(unroll=4, batch_size=4),
        reading=ReadingTrainingConfig(steps=1, batch_size=2),
    ),
    autoencoder=AutoencoderTrainingConfig(batch_size=4),
    video=VideoTrainingConfig(batch_size=4, patience=0, least_psnr=0.0),
)


def episode(seed: int, t: int = 48) -> Episode:
    """Grey noise; every second one succeeds."""
    rng = np.random.default_rng(seed)
    success = np.zeros(t, bool)
    success[-1] = seed % 2
    frames = rng.integers(0, 256, (t + 1, 16, 16, 3), np.uint8)
    actions = rng.uniform(-1, 1, (t, 7)).astype(np.float32)
    low_dim = {"x": rng.normal(size=(t + 1, 1)).astype(np.float32)}
    return Episode(frames, actions, success, low_dim=low_dim)


@pytest.fixture
def seen(monkeypatch, tmp_path) -> list[tuple]:
    """Small variants on 24 episodes; what every training but a trial is given, in turn."""
    monkeypatch.chdir(tmp_path)
    episodes = [episode(seed) for seed in range(24)]
    trainings = []
    monkeypatch.setattr(ablations, "load", lambda paths: episodes)
    monkeypatch.setattr(ablations, "TRANSFORMER", VIDEO)
    monkeypatch.setattr(ablations, "HELD_OUT", 0.3)
    monkeypatch.setattr(ablations, "SAMPLED", 1)
    variants = {
        "convolution": Variant(SMALL),
        "convolution, exact": Variant(SMALL, exact=True, successes=True, mirrored=False),
        "transformer": Variant(VIDEO),
        "transformer, without anchor": Variant(replace(VIDEO, anchor=False)),
    }
    monkeypatch.setattr(ablations, "VARIANTS", variants)
    for name in ("train_world_model", "train_video_transformer", "train_autoencoder"):
        train = getattr(ablations, name)

        def spied(model, fit, *rest, train=train, **options):
            given = next(r for r in rest if hasattr(r, "steps"))
            if given.steps != QUICK.pilot:
                trainings.append((model.config, fit, given))
            return train(model, fit, *rest, **options)

        monkeypatch.setattr(ablations, name, spied)

    def tried_once(run, name, pilot, train):
        return run.once(
            f"{name}-pace", lambda: train(run.stage(f"{name}-pace"), QUICK.pilot) and {}
        )

    monkeypatch.setattr(ablations, "pace", tried_once)
    monkeypatch.setattr(ablations, "fitting", lambda seconds, pace: 4)
    return trainings


def test_as_many_steps_as_fit_into_the_time():
    assert [fitting(60, 2.5), fitting(0.1, 1.0)] == [150, 1]


def test_every_variant_is_trained_and_judged_once(seen):
    only = ("convolution", "transformer", "transformer, without anchor")
    config = replace(QUICK, only=only, path=Path("ablations.json"))
    main(config)
    rows = json.loads(config.path.read_text())["rows"]
    names = [row["variant"] for row in rows]
    assert names == [only[0], *[only[1]] * 4, only[2]]
    assert [row.get("sampling_steps") for row in rows] == [None, 1, 2, 4, 16, 2]
    assert {row["steps"] for row in rows} == {4}
    assert list(rows[0]["psnr"]) == ["1", "8", "16", "32", "48"]
    assert rows[0]["flop"] != rows[1]["flop"]

    done = len(seen)
    main(replace(config, only=(only[2], only[0])))
    assert len(seen) == done
    assert json.loads(config.path.read_text())["rows"] == [rows[-1], rows[0]]


def test_variants_differ_in_what_they_say_they_do(seen):
    main(replace(QUICK, only=("convolution", "convolution, exact", "transformer, without anchor")))
    shared, (_, everything, noisy), (_, successes, exact), *_, (video, all_again, _) = seen
    assert shared[0] == VIDEO  # the autoencoder's
    assert {e.succeeded for e in everything} == {True, False}
    assert {e.succeeded for e in successes} == {True}
    assert (noisy.body_noise, noisy.motion.noise) == (0.01, 0.004)
    assert (exact.body_noise, exact.motion.noise) == (0.0, 0.0)
    assert (noisy.motion.mirrored, exact.motion.mirrored) == (True, False)
    assert not video.anchor and len(all_again) == len(everything) == 24 - 7


def test_an_unknown_variant_is_refused(seen):
    with pytest.raises(ValueError, match="only must be one of"):
        main(replace(QUICK, only=("convolution, with wings",)))


def test_pace_counts_what_a_step_costs_and_not_what_a_training_does_besides(monkeypatch, tmp_path):
    clock = [0.0]
    monkeypatch.setattr(ablations.time, "process_time", lambda: clock[0])

    def train(stage: Run, steps: int) -> None:
        clock[0] += 7 + 0.25 * steps

    run = Run(tmp_path / "run")
    assert pace(run, "named", 12, train) == 4
    assert pace(run, "named", 12, None) == 4  # it is known by now


def test_trials_that_tell_no_pace_are_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(ablations.time, "process_time", lambda: 5.0)
    with pytest.raises(RuntimeError, match="36 steps of 'named' took 0.0 s .* larger --pilot"):
        pace(Run(tmp_path / "run"), "named", 12, lambda stage, steps: None)
