"""Settings that every test shares."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from functools import cache

import pytest
import torch

from wm_gym.real.pool import SimulationPool
from wm_gym.real.rendering import choose_gl
from wm_gym.tasks import get_task


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)  # runners have few cores, and the fakes are small


@pytest.fixture(scope="session")
def simulations() -> Iterator[SimulationPool]:
    """Two robosuite processes for the tests marked `sim`; starting them takes seconds."""
    with SimulationPool(get_task("Lift"), 2) as simulations:
        yield simulations


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip tests marked `sim` or `gpu` on machines that cannot run them, saying why."""
    if item.get_closest_marker("sim") and (reason := _no_simulator()):
        pytest.skip(reason)
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs CUDA")


@cache
def _no_simulator() -> str | None:
    """Why robosuite cannot draw pictures here, or None where it can."""
    try:
        choose_gl()
        for name in ("mujoco", "cv2"):  # cv2 comes with robosuite, and needs system libraries
            importlib.import_module(name)
        found = importlib.util.find_spec("robosuite")
    except (ImportError, RuntimeError) as error:
        return f"needs robosuite: {error}"
    return None if found else "needs robosuite: pip install 'wm-gym[real]'"
