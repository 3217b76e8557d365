"""What the commands that compare both worlds share."""

from __future__ import annotations

from types import SimpleNamespace

import gymnasium as gym
import pytest
import torch

from tests.fakes import FakeSuccess, FakeWorldModel, fake_pool
from tests.trainers.two_worlds import HALF, Judge, Pusher, Slippery
from trainers import audit as module
from wm_gym.imagined import ImaginedVectorEnv


@pytest.fixture
def world(monkeypatch, tmp_path) -> SimpleNamespace:
    """Models and simulator are fakes: in both worlds start s has level 100 + s, here as imagined.

    `played` lists the actions (n, k, 7) that each world was given, `made` the worlds themselves,
    `films` the path and the frames of each video; the page is not written.
    """
    monkeypatch.chdir(tmp_path)
    here = SimpleNamespace(grip=1.0, predicate=HALF, model=FakeWorldModel(), judge=Judge(HALF))
    here.policies = {"a/bold": Pusher(2.0), "a/shy": Pusher(0.5)}
    here.pool, here.made, here.played = fake_pool(), [], {"imagined": [], "real": []}
    here.films = []
    make_vec = gym.make_vec

    def make(id, num_envs, backend, starts, **options):
        if backend == "imagined":
            env = make_vec(id, num_envs=num_envs, starts=starts, **options)
        else:
            assert options.pop("workers") == 3
            models = {"world_model": Slippery(here.grip), "success": FakeSuccess(here.predicate)}
            env = ImaginedVectorEnv("Lift", num_envs, starts=starts, **models, **options)
        step = env.step
        env.step = lambda actions: here.played[backend].append(actions.copy()) or step(actions)
        here.made.append((backend, env))
        return env

    def starts(task, split, folder):
        here.asked = (task, split, folder)
        return here.pool

    monkeypatch.setattr(gym, "make_vec", make)
    monkeypatch.setattr(module, "load_starts", starts)
    monkeypatch.setattr(module, "device", lambda: torch.device("cpu"))
    monkeypatch.setattr(module, "write_video", lambda *film: here.films.append(film))
    monkeypatch.setattr(module, "write_page", lambda path, folder: None)
    monkeypatch.setattr(module, "load_world_model", lambda name, device: here.model)
    monkeypatch.setattr(
        module.SuccessClassifier, "from_pretrained", lambda name, device: here.judge
    )
    monkeypatch.setattr(
        module.TokenVLA, "from_pretrained", lambda name, device: here.policies[name]
    )
    return here
