"""The command `wm-gym counterfactuals`: what is perturbed, played and written, how it goes on."""

from __future__ import annotations

import csv
import json
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from trainers import counterfactuals as module
from trainers.counterfactuals import CounterfactualsConfig, counterfactuals, perturbed
from wm_gym.errors import UserError
from wm_gym.evaluation.counterfactuals import FAMILIES, NONE, SEVERITIES


def lifting(push: float) -> np.ndarray:
    """Actions that close at 20 and rise from 28; each makes the picture 12.75 * push brighter."""
    actions = np.zeros((64, 7), np.float32)
    actions[:, 0], actions[:, 6] = push, -1
    actions[20:, 6], actions[28:, 2] = 1, 0.8
    return actions


@pytest.fixture
def expert(world, monkeypatch):
    """An expert that succeeds from the starts 1 and 3 of 4, from level 101 and 103 to 183 and 185.

    `recorded` counts how often it played.
    """
    world.recorded = []
    world.episodes = [
        SimpleNamespace(start=start, actions=lifting(0.1), succeeded=start in (1, 3))
        for start in range(4)
    ]
    monkeypatch.setattr(module, "load_world_model", lambda name, device: world.model)
    monkeypatch.setattr(module, "device", lambda: world.model.device)
    monkeypatch.setattr(module, "record_expert", lambda path, *_, **__: world.recorded.append(path))
    monkeypatch.setattr(module, "SimulationPool", lambda task, workers: nullcontext())
    monkeypatch.setattr(module, "load", lambda paths: world.episodes)
    return world


def settings(**options) -> CounterfactualsConfig:
    return CounterfactualsConfig(**({"episodes": 4, "workers": 3, "out": Path("out")} | options))


def written() -> tuple[dict, list[list[str]]]:
    rows = list(csv.reader(Path("out/counterfactuals.csv").open()))
    return json.loads(Path("out/counterfactuals.json").read_text()), rows


def test_successes_are_perturbed_at_every_severity_in_both_worlds(expert, capsys):
    counterfactuals(settings())
    found, (columns, *rows) = written()
    assert columns == ["family", "severity", "start", "real_step", "imagined_step", "probability"]
    assert [row[:3] for row in rows[:6]] == [
        *([NONE, "0.0", start] for start in "13"),
        *(["overshoot", severity, start] for severity in ("0.5", "1.0") for start in "13"),
    ]
    assert len(rows) == 2 + len(FAMILIES) * len(SEVERITIES) * 2
    assert found["starts"] == {"played": 4, "succeeded": 2} and found["sequences"] == 24
    assert "The expert succeeded from 2 of 4 starts." in capsys.readouterr().out


def test_both_worlds_play_the_same_actions_open_loop(expert):
    counterfactuals(settings())
    imagined, real = expert.played["imagined"], expert.played["real"]
    assert all(map(np.array_equal, imagined, real)) and len(imagined) == len(real) == 7 * 8
    whole = [np.concatenate(imagined[8 * i : 8 * i + 8], axis=1) for i in range(7)]
    assert all(np.array_equal(row, lifting(0.1)) for row in whole[0])
    for i, family in enumerate(FAMILIES, start=1):
        given = [a for _, _, a in perturbed(family, {s: lifting(0.1) for s in (1, 3)}, 0)]
        assert np.array_equal(whole[i], given) and not np.array_equal(given[0], lifting(0.1))


def test_a_world_that_slips_more_than_imagined_is_found_out(expert):
    expert.grip = 0.5  # from level 101 and 103 only 142 and 144 are reached, unless it overshoots
    counterfactuals(settings())
    found, _ = written()
    assert found["unperturbed"]["optimism"]["rate"] == 1.0 and found["optimism"]["rate"] > 0.5
    assert found["unperturbed"]["real_success"]["rate"] == 0.0


def test_it_goes_on_with_the_family_that_is_not_finished(expert, monkeypatch):
    play_family = module.play_family

    def killed(config, family, *rest):
        if family == "weak_grip":
            raise KeyboardInterrupt
        return play_family(config, family, *rest)

    monkeypatch.setattr(module, "play_family", killed)
    with pytest.raises(KeyboardInterrupt):
        counterfactuals(settings())
    assert not Path("out/counterfactuals.json").exists()
    asked = []
    monkeypatch.setattr(
        module,
        "play_family",
        lambda c, family, *rest: asked.append(family) or play_family(c, family, *rest),
    )
    counterfactuals(settings())
    assert asked == ["weak_grip", "oscillation", "offset_approach"]
    assert len(expert.recorded) == 1 and len(written()[1]) == 1 + 26


def test_an_expert_that_never_succeeds_gives_nothing_to_perturb(expert):
    for episode in expert.episodes:
        episode.succeeded = False
    with pytest.raises(UserError, match="did not succeed from any of 4 starts; give it more"):
        counterfactuals(settings())


def test_more_episodes_than_starts_are_refused_before_anything_is_written(expert):
    with pytest.raises(ValueError, match="There are 5 validation starts for 6 episodes"):
        counterfactuals(settings(episodes=6))
    assert not Path("out").exists()
