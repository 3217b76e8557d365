"""The command `wm-gym quickstart`: what it refuses before it writes anything."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from trainers import quickstart as module
from trainers.grpo import GRPOConfig
from trainers.quickstart import QuickstartConfig, quickstart


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "Foo"}, "Unknown task 'Foo'"),
        ({"episodes": 257}, "episodes must be an integer from 1 to 256, got 257"),
        (
            {"imagined_envs": 100},
            "imagined_envs .* must be a multiple of grpo.group_size .* got 100",
        ),
        ({"grpo": GRPOConfig(eval_episodes=60)}, "grpo.eval_episodes .* got 60"),
        ({"grpo": GRPOConfig(minibatch=0)}, "grpo.minibatch must be an integer at least 1, got 0"),
    ],
)
def test_options_that_do_not_fit_are_refused_before_anything_is_written(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        quickstart(QuickstartConfig(out=tmp_path / "run", **options))
    assert not (tmp_path / "run").exists()


def test_practice_alone_is_paid_for_what_every_network_sees(tmp_path, monkeypatch):
    made = {}

    def env(config, world, n, split, **options):
        made[split] = (world, options.get("unanimous", False))
        return split

    def train(settings, policy, world, run, validation):
        assert (world, validation) == ("train", "validation")

    monkeypatch.setattr(module, "_env", env)
    monkeypatch.setattr(module.grpo, "train", train)
    policy = SimpleNamespace(save_pretrained=lambda *given, **told: None)
    module._improve(QuickstartConfig(), policy, SimpleNamespace(folder=tmp_path))
    assert made == {"train": ("imagined", True), "validation": ("imagined", False)}


def test_a_missing_simulator_is_found_before_the_practice(tmp_path, monkeypatch):
    def missing():
        raise ImportError("backend='real' needs robosuite")

    monkeypatch.setattr("trainers.quickstart.check_robosuite", missing)
    with pytest.raises(ImportError, match="needs robosuite"):
        quickstart(QuickstartConfig(out=tmp_path / "run"))
    assert not (tmp_path / "run").exists()
