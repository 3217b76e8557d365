"""The command `wm-gym bundle`: what of a run is shipped, and what the cards say."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from policies.token import TokenVLA, TokenVLAConfig
from trainers.bundle import BundleConfig, fidelity_rows, ship
from trainers.settings import WMPOConfig
from wm_gym.data import Episode, EpisodeWriter
from wm_gym.data.moments import load_moments
from wm_gym.runs import Run
from wm_gym.starts import StartPool, load_starts, save_starts
from wm_gym.success.classifier import SuccessClassifier, SuccessConfig
from wm_gym.world_model.model import WorldModel
from wm_gym.world_model.presets import WorldModelConfig

REPORTS = {
    "demonstrations": {"demonstrations": 6, "play": 280},
    "rollouts": {"rollouts": 120},
    "train-world-model": {
        **{"psnr/1": 30.0, "psnr/32": 22.46},
        **{"psnr_other/1": 28.0, "psnr_other/32": 12.0},
        **{"psnr_first/1": 26.0, "psnr_first/32": 13.0},
    },
    "train-success": {
        "hold": 4,
        "reconstruction_agreement": 0.9912,
        "real": {
            "f1": 0.98,
            "false_success": 0.0,
            "threshold": 0.55,
            "expected_calibration_error": 0.0123,
            "false_per_thousand": 2.46,
            "delay": -1.26,
        },
        "imagined": {
            "f1": 0.845,
            "false_success": 0.07,
            "threshold": 0.55,
            "expected_calibration_error": 0.04,
            "false_per_thousand": 11.0,
            "delay": 3.0,
        },
    },
    "grpo": {},
    "clone": {"validation": {"n": 4, "successes": 2, "rate": 0.5, "low": 0.15, "high": 0.85}},
    "test_real_policy_base": {"success": [True, False, False, False]},
    "test_real_policy_improved_3": {"success": [True, True, True, False]},
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A run folder as the stages would leave it, with tiny models."""
    folder = tmp_path_factory.mktemp("run")
    run = Run(folder, WMPOConfig(out=folder, seed=5, grpo_seeds=(3, 4)))
    shape = {"outer": 8, "width": 8, "vector": 8, "draw": (8, 8, 8), "embed": 8}
    body = {"body": ("x",), "body_size": 1, "fingers": (0,)}
    WorldModel(WorldModelConfig(image_size=16, **shape, **body)).save_pretrained(
        folder / "world_model"
    )
    judge = SuccessClassifier(SuccessConfig(channels=8, side=2, vector=9, width=8, features=8))
    judge.save_pretrained(folder / "success")
    small = {"width": 16, "depth": 1, "heads": 2, "stem_width": 8, "stem_depth": 1, "keypoints": 4}
    for name, fill in (("policy_base", 0.0), ("policy_improved_3", 3.0), ("policy_improved_4", 4)):
        policy = TokenVLA(TokenVLAConfig(image_size=16, **small))
        for weights in policy.parameters():
            torch.nn.init.constant_(weights, fill)
        policy.save_pretrained(folder / name)
    frames = np.zeros((2, 16, 16, 3), np.uint8)
    save_starts([StartPool(frames, np.arange(4.0).reshape(2, 2), "Lift", "train")], folder)
    with EpisodeWriter(folder / "data/rollouts.hdf5", {}) as writer:
        writer.append(
            Episode(
                frames=np.full((6, 16, 16, 3), 9, np.uint8),
                actions=np.zeros((5, 7), np.float32),
                success=np.zeros(5, bool),
            )
        )
    for name, report in REPORTS.items():
        run.once(name, lambda report=report: report)
    return folder


@pytest.fixture(scope="module")
def shipped(finished, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("shipped")
    audit = path / "audit.json"
    half = {"n": 4, "successes": 2, "rate": 0.5, "low": 0.15, "high": 0.85}
    rates = {"hallucinated_success_rate": half, "missed_success_rate": None}
    audit.write_text(
        json.dumps(
            {"pairs": 8, "split": "validation", **rates, "paired_accuracy": half}
            | {"drift": {"object": {}}, "usable_horizon": 41}
        )
    )
    ship(BundleConfig(finished, audit=audit, moments=3, path=path / "lift"))
    return path / "lift"


def card(shipped: Path, name: str) -> str:
    return (shipped / name / "README.md").read_text()


def test_models_starts_and_moments_are_shipped(shipped):
    first = next(TokenVLA.from_pretrained(shipped / "policy_improved").parameters())
    assert (first == 3).all()  # of the first GRPO seed
    assert WorldModel.from_pretrained(shipped / "world_model").config.image_size == 16
    assert SuccessClassifier.from_pretrained(shipped / "success").config.channels == 8
    assert len(load_starts("Lift", "train", shipped)) == 2
    moments = load_moments("Lift", shipped)
    assert moments.frames.shape == (3, 11, 16, 16, 3) and (moments.frames == 9).all()


def test_cards_say_what_was_measured(shipped):
    world = card(shipped, "world_model")
    assert "| PSNR at step 32, held-out episodes, recorded actions | 22.5 dB |" in world
    told = "8 paired episodes from validation starts"
    assert f"| real failures imagined as successes, {told} | 50.0 % [15.0, 85.0] (n = 4) |" in world
    assert f"| real successes imagined as failures, {told} | – |" in world
    # What was recorded, whatever was asked for.
    assert "6 scripted demonstrations, 280 episodes of play" in world
    assert "and 120 rollouts of the base policy" in world
    assert "cloned from 6 scripted demonstrations" in card(shipped, "policy_base")
    drift = "median drift of gripper 10 mm or object 15 mm, or outcomes that differ"
    assert f"| usable horizon ({drift}) | 41 control steps |" in world
    judge = card(shipped, "success")
    assert "| F1, imagined replays | 0.84 |" in judge
    assert "| failed episodes judged successes, imagined replays | 7 % |" in judge
    assert "| expected calibration error, recorded episodes | 0.012 |" in judge
    assert "| mean delay of the verdict, recorded episodes | -1.3 control steps |" in judge
    assert "| rule | probability at least 0.55 for 4 steps |" in judge
    assert "world model has drawn them | 99.1 % |" in judge
    base, improved = card(shipped, "policy_base"), card(shipped, "policy_improved")
    assert "| success on test starts, greedy | 25.0 % [4.6, 69.9] (n = 4) |" in base
    assert "| success on test starts, greedy | 75.0 % [30.1, 95.4] (n = 4) |" in improved
    assert "| gain over the base policy, paired by start | +50.0 points [0.0, 100.0] |" in improved


def test_cards_say_which_ground_truth_was_used(shipped):
    assert "the object's pose and velocity as the simulator reports them" in card(
        shipped, "world_model"
    )
    assert "the simulator's own success labels" in card(shipped, "success")
    assert "reports them" not in card(shipped, "policy_base")


def test_replays_are_rows_of_a_card_in_the_order_of_their_steps():
    rows = fidelity_rows(REPORTS["train-world-model"])
    assert list(rows.values()) == ["30.0 dB", "22.5 dB", "28.0 dB", "12.0 dB", "26.0 dB", "13.0 dB"]


def test_an_unfinished_run_is_named(tmp_path):
    Run(tmp_path / "new", WMPOConfig(out=tmp_path / "new"))
    with pytest.raises(FileNotFoundError, match="no finished stage 'demonstrations'"):
        ship(BundleConfig(tmp_path / "new", path=tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_folder_without_a_run_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"There is no .*config\.json"):
        ship(BundleConfig(tmp_path, path=tmp_path / "out"))
