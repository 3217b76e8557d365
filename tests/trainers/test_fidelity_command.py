"""The command `wm-gym fidelity`: who is judged, who teaches the probe, what is written."""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.fakes import SIZE, FakeWorldModel
from trainers import fidelity as module
from trainers import fresh
from trainers.cli import main
from trainers.fidelity import FidelityConfig, fidelity, table
from wm_gym.data import Episode, EpisodeWriter
from wm_gym.data.windows import holdout_episodes
from wm_gym.evaluation.fidelity import Replays, psnr
from wm_gym.evaluation.probe import ProbeConfig
from wm_gym.tasks import get_task

QUICK = ProbeConfig(steps=2, batch_size=4)
LENGTHS = {"play": (9, 8, 12, 7, 10, 8), "rollouts": (8, 5, 9, 6, 11, 16)}


def episode(number: int, t: int, source: str, known: bool = True, size: int = SIZE) -> Episode:
    """FakeWorldModel's own world: the first action value adds 12.75 grey levels times itself."""
    rng = np.random.default_rng(number)
    actions = np.zeros((t, 7), np.float32)
    actions[:, 0] = rng.uniform(0.2, 1.0, t) * rng.choice([-1, 1])
    levels = 120 + 12.75 * np.concatenate([[0], actions[:, 0].cumsum()])
    frames = np.broadcast_to(levels.clip(0, 255)[:, None, None, None], (t + 1, size, size, 3))
    success = np.zeros(t, bool)
    success[-1] = number % 2
    low_dim = {"robot0_eef_pos": np.full((t + 1, 3), number, np.float32)}
    low_dim["object"] = np.zeros((t + 1, 14), np.float32)
    return Episode(
        frames.round().astype(np.uint8),
        actions,
        success,
        source=source,
        start=number,
        low_dim=low_dim if known else {},
    )


def record(folder: Path, **options) -> tuple[Path, ...]:
    """Write six episodes of play, then six rollouts, numbered through."""
    number, paths = 0, []
    for source, lengths in LENGTHS.items():
        paths.append(folder / f"{source}.hdf5")
        with EpisodeWriter(paths[-1], {"env_name": "Lift"}) as writer:
            for t in lengths:
                writer.append(episode(number, t, source, **options))
                number += 1
    return tuple(paths)


@pytest.fixture
def loaded(monkeypatch) -> list:
    """Load fakes instead of weights; return what was asked for."""
    asked = []

    def load(name, device):
        asked.append(name)
        return FakeWorldModel()

    monkeypatch.setattr(module, "load_world_model", load)
    monkeypatch.setattr(module, "device", lambda: torch.device("cpu"))
    return asked


def held(fraction: float = 0.5, seed: int = 0) -> list[int]:
    return holdout_episodes(["play"] * 6 + ["rollouts"] * 6, fraction, seed)


def test_the_episodes_that_training_held_out_are_judged(loaded, tmp_path, capsys):
    paths = record(tmp_path)
    config = FidelityConfig(paths, out=tmp_path / "out", steps=8, held_out=0.5, seed=3, probe=QUICK)
    fidelity(config)
    report = json.loads((tmp_path / "out" / "fidelity.json").read_text())
    assert held(seed=3) == [0, 4, 5, 7, 8, 9]  # 7 has 5 steps, 9 has 6
    assert [row["number"] for row in report["rows"]] == [0, 4, 5, 8]
    assert [row["start"] for row in report["rows"]] == [0, 4, 5, 8]
    assert report["episodes"] == 4 and report["long"] is None
    assert report["counts"] == {
        "all": 12,
        "held_out": 6,
        "too_short": 2,
        "judged": 4,
        "judged_successes": 1,
        "judged_sources": {"play": 3, "rollouts": 1},
    }
    for key, value in {"steps": 8, "seeds": [3], "world_model": "lift"}.items():
        assert report[key] == value
    assert report["files"] == [str(path) for path in paths] and report["machine"]
    assert loaded == ["lift"]
    told = (
        "6 of 12 episodes are held out, 4 of them judged; left out for having less than 8 steps: 2"
    )
    assert told in capsys.readouterr().out


def test_the_figures_are_those_of_the_judged_episodes(loaded, tmp_path):
    fidelity(FidelityConfig(record(tmp_path), out=tmp_path, steps=8, held_out=0.5, probe=QUICK))
    report = json.loads((tmp_path / "fidelity.json").read_text())
    lengths = [*LENGTHS["play"], *LENGTHS["rollouts"]]
    frames = torch.from_numpy(
        np.stack([episode(i, lengths[i], "").frames[:9] for i in held() if lengths[i] >= 8])
    )
    still = psnr(frames[:, :1].expand_as(frames[:, 1:]), frames[:, 1:])  # (n, 8)
    found = report["by_step"]["whole"]["psnr_persistence"]
    assert found["mean"] == pytest.approx(still.mean(0).tolist(), abs=1e-3)
    assert found["q90"] == pytest.approx(still.quantile(0.9, dim=0).tolist(), abs=1e-3)
    own = report["by_step"]["whole"]["psnr"]
    assert min(own["q10"]) > 45  # the model is right to a rounding
    assert own["n"] == [len(still)] * 8
    assert report["by_step"]["whole"]["controllability"]["q50"][7] > 10


def test_the_probe_learns_from_all_episodes_that_are_not_held_out(loaded, tmp_path, monkeypatch):
    taught, train = [], module.train_probe

    def spy(episodes, config, device):
        taught.extend(e.start for e in episodes)
        return train(episodes, config, device)

    monkeypatch.setattr(module, "train_probe", spy)
    fidelity(FidelityConfig(record(tmp_path), out=tmp_path, steps=8, held_out=0.5, probe=QUICK))
    drift = json.loads((tmp_path / "fidelity.json").read_text())["drift"]
    assert taught == sorted(set(range(12)) - set(held()))
    assert drift["training_episodes"] == 6
    # A constant gripper at (i, i, i) metres: the readings hardly differ, so all is metres away.
    assert len(drift["by_step"]["gripper"]["real"]["q50"]) == 8
    assert drift["probe_median_mm"]["gripper"] > 1000 > drift["probe_median_mm"]["object"]


def test_without_positions_the_report_says_why_there_is_no_drift(loaded, tmp_path, capsys):
    paths = record(tmp_path, known=False)
    fidelity(FidelityConfig(paths, out=tmp_path, steps=5, held_out=0.5, probe=QUICK))
    reason = "none of 6 judged episodes has robot0_eef_pos and object"
    assert json.loads((tmp_path / "fidelity.json").read_text())["drift"] == {"left_out": reason}
    assert f"Without drift: {reason}\n" in capsys.readouterr().out


def test_the_strip_has_the_best_the_median_and_the_worst_episode(loaded, tmp_path, monkeypatch):
    shown, model = [], FakeWorldModel(noise=0.05)
    monkeypatch.setattr(module, "load_world_model", lambda name, device: model)
    monkeypatch.setattr(module, "write_strips", lambda path, strips: shown.extend(strips))
    fidelity(FidelityConfig(record(tmp_path), out=tmp_path, steps=8, held_out=0.5, probe=QUICK))
    rows = json.loads((tmp_path / "fidelity.json").read_text())["rows"]
    order = sorted(rows, key=lambda row: -row["psnr"])
    picked = [order[0], order[len(order) // 2], order[-1]]
    assert len({row["psnr"] for row in picked}) == 3
    lengths = [*LENGTHS["play"], *LENGTHS["rollouts"]]
    for (title, real, imagined), name, row in zip(
        shown, ("best", "median", "worst"), picked, strict=True
    ):
        number = row["number"]
        assert title.startswith(f"{name}: episode {number}, {row['source']}, {row['psnr']:.1f} dB")
        frames = episode(number, lengths[number], "").frames[1:9]
        assert np.array_equal(real, frames)
        mean = psnr(torch.from_numpy(imagined), torch.from_numpy(real)).mean().item()
        assert mean == pytest.approx(row["psnr"], abs=1e-3)


def test_the_published_figures_are_the_means_and_medians_by_step(loaded, tmp_path):
    fidelity(FidelityConfig(record(tmp_path), out=tmp_path, steps=8, held_out=0.5, probe=QUICK))
    report = json.loads((tmp_path / "fidelity.json").read_text())
    whole, moved = report["by_step"]["whole"], report["by_step"]["moving"]
    for key, rows in {
        "psnr": whole["psnr"]["mean"],
        "moving_psnr": moved["psnr"]["mean"],
        "psnr_lost_other_actions": whole["controllability"]["mean"],
        "gripper_drift_mm": report["drift"]["by_step"]["gripper"]["imagined"]["q50"],
        "object_drift_mm": report["drift"]["by_step"]["object"]["imagined"]["q50"],
    }.items():
        assert report[key] == {"1": rows[0], "8": rows[7]}, key


def test_a_few_sampling_steps_are_compared_with_many(monkeypatch):
    """Pictures that are off by 51 levels in a few steps, by 5 in many: 20 log10 of it."""

    class Sampler(FakeWorldModel):
        sampling_steps = 2

    def replays(model, judged, steps):
        off = 5 if model.sampling_steps == module.FINE else 51
        real = torch.zeros(1, steps + 1, 4, 4, 3, dtype=torch.uint8)
        return Replays(real, real[:, 1:] + off, real[:, 1:])

    monkeypatch.setattr(module, "replay_episodes", replays)
    monkeypatch.setattr(module, "VideoTransformer", Sampler)
    model = Sampler()
    loss = module.few_step_loss(model, replays(model, [], 3), [])
    assert loss == pytest.approx(20 * np.log10(51 / 5), abs=1e-3)
    assert model.sampling_steps == 2


def test_long_episodes_are_played_once_and_judged_by_step(loaded, tmp_path, monkeypatch, capsys):
    played = []

    def demonstrate(path, task, starts, indices, expert, *, source, seed, pool):
        played.append((len(indices), expert.length, starts.split, seed))
        with EpisodeWriter(path, {"env_name": "Lift"}) as writer:
            for i in indices[len(writer) :]:
                writer.append(episode(i, 16, source))

    monkeypatch.setattr(module, "LONG", 16)
    monkeypatch.setattr(fresh, "record_expert", demonstrate)
    monkeypatch.setattr(fresh, "SimulationPool", lambda task, workers: nullcontext())
    paths = record(tmp_path)
    out = tmp_path / "out"
    settings = {"steps": 8, "held_out": 0.5, "probe": QUICK, "long": 2, "aside": None}
    fidelity(FidelityConfig(paths, out=out, **settings))
    report = json.loads((out / "fidelity.json").read_text())
    long = report["long"]
    assert report["aside"] is None and long["aside"] is None
    assert played == [(2, 16, "validation", 0)]
    assert long["episodes"] == 2 and set(long["psnr"]) == {"1", "8", "16"}
    assert min(long["psnr"].values()) > 45  # the fake is right to a rounding
    assert "2 episodes of 16 steps, PSNR: " in capsys.readouterr().out
    fidelity(FidelityConfig(paths, out=out, **{**settings, "long": 1}))  # of the two kept, one
    assert json.loads((out / "fidelity.json").read_text())["long"]["episodes"] == 1
    assert "1 episodes of 16 steps, PSNR: " in capsys.readouterr().out


def test_without_files_a_policy_and_the_expert_play_new_episodes(loaded, tmp_path, monkeypatch):
    asked = []

    def policy(task, policy, starts, steps, seed, workers):
        asked.append(("policy", policy, list(starts), steps, seed))
        return [episode(i, steps, "policy") for i in starts]

    def expert(path, task, split, starts, steps, *, source, seed, workers):
        asked.append((path.name, split, list(starts), steps, seed))
        return [episode(i, steps, source) for i in starts]

    def again(task, episodes, steps, metres, seed, workers):
        asked.append((metres, [e.start for e in episodes], steps, seed))
        return np.stack([e.frames[1 : steps + 1] for e in episodes]) ^ 1  # off by one level

    small = replace(get_task("Lift"), image_size=8)
    monkeypatch.setattr(module, "get_task", lambda name: small)
    monkeypatch.setattr(module, "play_policy", policy)
    monkeypatch.setattr(module, "play_expert", expert)
    monkeypatch.setattr(fresh, "play_expert", expert)
    monkeypatch.setattr(module, "play_aside", again)
    monkeypatch.setattr(module.TokenVLA, "from_pretrained", lambda name, device: name)
    monkeypatch.setattr(fresh, "PROBED", (3, 9))
    fidelity(FidelityConfig(out=tmp_path, steps=8, fresh=2, policy="mine", seed=5, probe=QUICK))
    assert asked == [
        ("policy", "mine", [0, 1], 8, 5),
        ("expert.hdf5", "validation", [2, 3], 8, 5),  # other starts than the policy's
        ("probe.hdf5", "train", [0, 1, 2], 9, 5),
        (0.0008, [0, 1, 2, 3], 8, 5),
    ]
    report = json.loads((tmp_path / "fidelity.json").read_text())
    assert report["files"] == [] and report["drift"]["training_episodes"] == 3
    off = pytest.approx(20 * np.log10(255), abs=0.01)
    assert report["aside"] == {"mm": 0.8, "psnr": {"1": off, "8": off}}
    assert report["counts"]["judged_sources"] == {"policy": 2, "expert": 2}
    assert [row["start"] for row in report["rows"]] == [0, 1, 2, 3]


def test_the_psnr_of_each_source_by_hand():
    decibels = torch.tensor([[10.0] * 8, [30.0] * 8, [26.0] * 7 + [20.0]])
    judged = [episode(i, 8, source) for i, source in enumerate(["a", "b", "a"])]
    found = module.by_source(decibels, judged)
    assert found == {"a": {"1": 18.0, "8": 15.0}, "b": {"1": 30.0, "8": 30.0}}


def spreads(**values: list) -> dict:
    return {name: {"mean": v, "q50": v} for name, v in values.items()}


def test_the_table_by_hand():
    whole = {name: [20.0, 1.0] for name in ("psnr_other", "psnr_persistence", "psnr_previous")}
    report = {
        "steps": 2,
        "by_step": {
            "whole": spreads(psnr=[31.239, 1.0], ssim=[0.95, 1.0], **whole),
            "moving": spreads(psnr=[None, 1.0], sharpness=[0.5, 1.0]),
        },
        "drift": {"by_step": {"gripper": spreads(imagined=[12.34, 1.0], real=[5.0, 1.0])}},
    }
    assert table(report).splitlines() == [
        "step   PSNR  moving  other  first  previous  SSIM  sharpness  gripper mm",
        "   1  31.24       -  20.00  20.00     20.00  0.95       0.50  12.3 (5.0)",
        "in brackets: the probe's own error on real pictures",
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps must be an integer at least 1, got 0"),
        ({"long": -1}, "long must be an integer from 1 to 128, got -1"),
        ({"long": 129}, "long must be an integer from 1 to 128, got 129"),
        ({"aside": -1}, "aside must be a number above 0, or None, got -1"),
        ({"probe": ProbeConfig(steps=0)}, "probe.steps must be an integer at least 1, got 0"),
        ({"steps": 40}, "2 episodes of at least 40 steps, got 0 of 6; pass more"),
        ({"held_out": 1.0}, "fraction must lie between 0 and 1, got 1.0"),
        ({"episodes": (), "fresh": 65}, "fresh must be an integer from 1 to 64, got 65"),
        ({"episodes": ()}, "pictures of 8 x 8, and Lift is played at 64 x 64; name recordings"),
    ],
)
def test_bad_options_are_refused_before_anything_is_written(loaded, tmp_path, options, message):
    given = {"episodes": record(tmp_path), "out": tmp_path / "out", "held_out": 0.5, "steps": 8}
    with pytest.raises(ValueError, match=message):
        fidelity(FidelityConfig(**(given | options)))
    assert not (tmp_path / "out").exists()


def test_pictures_of_another_size_are_refused(loaded, tmp_path):
    with pytest.raises(ValueError, match="pictures of 8 x 8; the episodes have 12 x 12"):
        fidelity(FidelityConfig(record(tmp_path, size=12), out=tmp_path / "out"))


def run(monkeypatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["wm-gym", "fidelity", *map(str, arguments)])
    main()


def test_the_command_writes_its_three_files(loaded, tmp_path, monkeypatch, capsys):
    paths, out = record(tmp_path), tmp_path / "out"
    model = tmp_path / "model"
    options = "--held-out 0.5 --steps 8 --probe.steps 2 --probe.batch-size 4".split()
    run(monkeypatch, "--world-model", model, "--episodes", *paths, "--out", out, *options)
    assert loaded == [str(model)]
    assert sorted(path.name for path in out.iterdir()) == [
        "fidelity.json",
        "fidelity.png",
        "strip.png",
    ]
    assert Image.open(out / "strip.png").size == (2 * 128, 3 * (20 + 20 + 2 * 128 + 16))
    assert Image.open(out / "fidelity.png").width == 1656  # with its panel of drift
    printed = capsys.readouterr().out
    assert [line.split()[0] for line in printed.splitlines()[2:4]] == ["1", "8"]
    assert json.loads((out / "fidelity.json").read_text())["command"].startswith("wm-gym fidelity")


def test_a_missing_file_is_named_without_a_traceback(loaded, tmp_path, monkeypatch):
    with pytest.raises(SystemExit, match="wm-gym: .*none.hdf5 does not exist"):
        run(monkeypatch, "--episodes", tmp_path / "none.hdf5", "--out", tmp_path)
