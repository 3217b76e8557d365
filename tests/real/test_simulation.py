"""One simulator: starts, pictures, and states that continue bit for bit."""

from __future__ import annotations

import importlib.metadata
from types import SimpleNamespace

import numpy as np
import pytest

from wm_gym.real import simulation as module
from wm_gym.real.expert import ExpertConfig, LiftExpert
from wm_gym.real.simulation import Simulation, import_robosuite, numpy_seed
from wm_gym.starts import load_starts
from wm_gym.tasks import get_task


def test_numpy_seed_seeds_the_block_and_puts_the_generator_back():
    np.random.seed(3)
    expected = np.random.random(2).tolist()
    np.random.seed(3)
    with numpy_seed(7):
        inside = np.random.random()
    assert np.random.random(2).tolist() == expected
    np.random.seed(7)
    assert np.random.random() == inside


def test_numpy_seed_puts_the_generator_back_after_an_error():
    np.random.seed(3)
    expected = np.random.random()
    np.random.seed(3)
    with pytest.raises(KeyError), numpy_seed(7):
        raise KeyError
    assert np.random.random() == expected


@pytest.fixture
def installed(monkeypatch):
    """Say which versions of robosuite and mujoco are installed; None for not at all."""

    def have(**versions: str | None) -> None:
        def version(name: str) -> str:
            if versions[name] is None:
                raise importlib.metadata.PackageNotFoundError(name)
            return versions[name]

        monkeypatch.setattr(module.importlib.metadata, "version", version)
        monkeypatch.setenv("MUJOCO_GL", "egl")

    return have


def test_without_robosuite_the_error_says_what_to_install(installed):
    installed(robosuite=None, mujoco="3.5.0")
    with pytest.raises(ImportError, match=r"needs robosuite, .*pip install 'wm-gym\[real\]'"):
        import_robosuite()


@pytest.mark.parametrize(
    ("robosuite", "mujoco"),
    [("1.5.1", "3.5.0"), ("1.4.1", "3.2.7"), ("1.4.1", "3.6.0"), ("1.4.1", "4.0.0")],
)
def test_other_versions_are_refused_by_name(installed, robosuite, mujoco):
    installed(robosuite=robosuite, mujoco=mujoco)
    found = (
        f"robosuite 1.4.x with mujoco >=3.3,<3.6, found robosuite {robosuite} with mujoco {mujoco}"
    )
    with pytest.raises(ImportError, match=found):
        import_robosuite()


# From here on with robosuite.


def trace(simulation: Simulation, actions, start, interrupted: bool) -> SimpleNamespace:
    """Play actions from `start`; `interrupted`: every 5 steps, play another episode in between.

    `actions` is a list, or a function that plays an expert.
    """
    seen = SimpleNamespace(actions=[], states=[], frames=[], success=[])
    simulation.set_state(start)
    act = actions(simulation) if callable(actions) else iter(actions).__next__
    for step in range(40):
        if interrupted and step % 5 == 0:
            saved = simulation.get_state()
            simulation.sample_start(step)
            for action in np.random.default_rng(step).uniform(-1, 1, (2, 7)):
                simulation.step(action)
            simulation.render()
            simulation.set_state(saved)
        seen.actions.append(act())
        simulation.step(seen.actions[-1])
        seen.states.append(simulation.get_state())
        seen.frames.append(simulation.render())
        seen.success.append(simulation.success())
    return seen


# Without noise no rotation is ever commanded, so the controller has to keep its goal.
@pytest.mark.sim
@pytest.mark.parametrize("noise", [0.0, 0.05])
def test_a_grasp_and_lift_is_the_same_with_and_without_restores(simulation, noise):
    start = load_starts("Lift", "train").states[1]

    def expert(simulation):
        rng = np.random.default_rng(0)
        return LiftExpert(simulation.env, ExpertConfig(noise=noise), rng).act

    straight = trace(simulation, expert, start, interrupted=False)
    broken = trace(simulation, straight.actions, start, interrupted=True)
    assert not straight.success[0] and straight.success[-1]
    assert np.array_equal(straight.states, broken.states)
    assert np.array_equal(straight.frames, broken.frames)
    assert straight.success == broken.success


@pytest.mark.sim
def test_reading_a_state_right_after_setting_it_gives_it_back(simulation):
    state = load_starts("Lift", "train").states[0]
    simulation.step(np.full(7, 0.5))
    simulation.set_state(state)
    assert np.array_equal(simulation.get_state(), state)


@pytest.mark.sim
def test_a_state_begins_with_what_robomimic_stores(simulation):
    state = load_starts("Lift", "train").states[0]
    simulation.set_state(state)
    theirs = simulation.env.sim.get_state().flatten()
    assert simulation.physics_size == len(theirs) == 32  # time, 9 + 7 positions, 9 + 6 speeds
    assert np.array_equal(state[:32], theirs)


@pytest.mark.sim
@pytest.mark.parametrize("size", [0, 32, 73, 75])
def test_a_state_of_another_size_is_refused(simulation, size):
    with pytest.raises(ValueError, match=rf"state of Lift has shape \(74,\), got \({size},\)"):
        simulation.set_state(np.zeros(size))


@pytest.mark.sim
def test_a_start_follows_from_its_seed_alone(simulation, simulations):
    simulation.set_state(load_starts("Lift", "train").states[0])
    simulation.step(np.ones(7))
    here = simulation.sample_start(5), simulation.render(), simulation.low_dim()
    there = simulations.map("sample_start", [(5,), (6,)])
    assert np.array_equal(here[0], there[0][0]) and np.array_equal(here[1], there[0][1])
    assert all(np.array_equal(row, there[0][2][key]) for key, row in here[2].items())
    assert (there[1][0] != here[0]).any() and (there[1][1] != here[1]).any()


@pytest.mark.sim
def test_starts_are_at_rest_within_the_placement_and_never_done(simulation):
    size, cubes = simulation.physics_size, []
    for seed in range(100, 105):
        state = simulation.sample_start(seed)
        assert state[0] == 0.0 and not simulation.success()
        assert np.abs(state[17:size]).max() < 0.05  # rad/s, m/s
        cubes.append(state[10:12])
    reach = get_task("Lift").placement
    assert np.abs(cubes).max() <= reach + 1e-3
    assert np.ptp(cubes, axis=0).min() > reach / 2


@pytest.mark.sim
@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_bundled_starts_show_what_their_states_do(simulation, split):
    pool = load_starts("Lift", split)
    for index in (0, len(pool) - 1):
        simulation.set_state(pool.states[index])
        difference = np.abs(simulation.render().astype(int) - pool.frames[index])
        # Another GL library may round a colour otherwise, and an edge may fall beside its pixel.
        assert (difference > 8).mean() < 0.01


@pytest.mark.sim
def test_a_picture_is_upright_and_fresh(simulation):
    simulation.set_state(load_starts("Lift", "train").states[0])
    first = simulation.render()
    assert first.shape == (64, 64, 3) and first.dtype == np.uint8
    kept = first.copy()
    for _ in range(3):
        simulation.step(np.array([0, 0, 1, 0, 0, 0, -1]))
    later = simulation.render()
    assert np.array_equal(first, kept)
    moved = np.argwhere((first != later).any(-1))
    # The arm hangs in from above, the cube lies below it on the table and stays where it is.
    assert moved[:, 0].mean() < 32
    red = (later[..., 0] > 100) & (later[..., 1] < 60) & (later[..., 2] < 60)
    assert np.argwhere(red)[:, 0].mean() > 32


@pytest.mark.sim
def test_simple_meshes_change_neither_the_physics_nor_much_of_a_picture(simulation, full):
    states, pictures = zip(*(fling(each) for each in (simulation, full)), strict=True)
    assert np.array_equal(*states)
    assert 0 < np.abs(pictures[0].astype(int) - pictures[1]).mean() < 2  # of 255
    triangles = [each.model.mesh_facenum.sum() for each in (simulation, full)]
    assert triangles[0] * 3 < triangles[1]


@pytest.mark.sim
def test_two_simulators_in_one_process_draw_by_turns(simulation, full):
    alone = fling(simulation)[1]
    fling(full)
    assert np.array_equal(simulation.render(), alone)


@pytest.mark.sim
def test_closing_a_simulator_leaves_the_other_its_pictures(simulation, full):
    alone = fling(simulation)[1]
    full.close()
    full.close()
    assert np.array_equal(simulation.render(), alone)


@pytest.fixture(scope="module")
def full():
    full = Simulation(get_task("Lift"), full_meshes=True)
    yield full
    full.close()


def fling(simulation: Simulation) -> tuple[np.ndarray, np.ndarray]:
    """Return the state and the picture after five given actions from a given start."""
    simulation.set_state(load_starts("Lift", "train").states[3])
    for action in np.random.default_rng(0).uniform(-1, 1, (5, 7)):
        simulation.step(action)
    return simulation.get_state(), simulation.render()
