"""robosuite itself keeps the promises of the contract."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from gymnasium.utils.env_checker import check_env

from wm_gym.real import vector
from wm_gym.real.vector import RealVectorEnv
from wm_gym.single import SingleEnv
from wm_gym.testing import MODES, check_world

pytestmark = pytest.mark.sim


@pytest.fixture
def shared(simulations, monkeypatch) -> None:
    """Let all worlds play in the two processes that all tests share, and none close them."""
    lent = SimpleNamespace(map=simulations.map, close=lambda: None)
    monkeypatch.setattr(vector, "SimulationPool", lambda *_: lent)


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_robosuite_keeps_its_promises(shared, mode):
    check_world(lambda **options: RealVectorEnv("Lift", chunk=2, **options), [2], [mode])


@pytest.mark.filterwarnings("error")
def test_both_checkers_have_nothing_to_say_of_robosuite(shared):
    check_env(SingleEnv("Lift", backend="real"), skip_render_check=True)
    sb3 = pytest.importorskip("stable_baselines3.common.env_checker")
    sb3.check_env(SingleEnv("Lift", backend="real"))
