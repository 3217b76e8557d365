"""One simulator in this process, shared by the tests that look inside."""

from __future__ import annotations

import pytest

from wm_gym.real.simulation import Simulation
from wm_gym.tasks import get_task


@pytest.fixture(scope="session")
def simulation():
    simulation = Simulation(get_task("Lift"))
    yield simulation
    simulation.close()
