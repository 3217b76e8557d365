"""One robosuite task in this process: start it, step it, look at it, save and restore it."""

from __future__ import annotations

import contextlib
import importlib.metadata
import logging
import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from wm_gym.real.rendering import choose_gl, mesh_cell, place_camera, simplify_meshes
from wm_gym.tasks import Task

SETTLE_STEPS = 10  # control steps at rest after a reset, so that a start is not moving


class Simulation:
    """robosuite's `task.simulator` with our camera, our placement and an exact state vector.

    The state is float64: time, qpos and qvel, which robomimic calls `states`, then what else it
    takes for a restored simulation to continue bit for bit (see `_parts`).
    """

    def __init__(self, task: Task, full_meshes: bool = False) -> None:
        """Build the simulator; `full_meshes=True` draws every triangle, 3 times slower."""
        self.task = task
        self.env = _make_robosuite(task)
        self.env.reset()
        self.model, self.data = self.env.sim.model._model, self.env.sim.data._data
        place_camera(self.model, task.camera)
        context = self.env.sim._render_context_offscreen
        context.scn.flags[_reflection_flag()] = 0
        context.vopt.geomgroup[0] = 0  # collision geometry
        if not full_meshes:
            cell = mesh_cell(task.camera, task.image_size)
            simplify_meshes(self.model, context.con, cell)
        self.robot = self.env.robots[0]
        self.step(np.zeros(task.action_dim))  # gives the gripper command its final shape

    @property
    def physics_size(self) -> int:
        """Length of the leading part of the state that robomimic stores: time, qpos, qvel."""
        return 1 + self.model.nq + self.model.nv

    def sample_start(self, seed: int) -> np.ndarray:
        """Draw a new start, let it come to rest, and return its state."""
        with numpy_seed(seed):
            self.env.reset()
        for _ in range(SETTLE_STEPS):
            self.step(np.zeros(self.task.action_dim))
        self.data.time = 0.0
        return self.get_state()

    def step(self, action: np.ndarray) -> None:
        """Play one control step (1/20 s) of `action` (7,) in [-1, 1]."""
        self.env.timestep = 0  # the episode clock is ours, robosuite's would stop at its horizon
        self.env.step(action)

    def success(self) -> bool:
        """Say whether robosuite's own success predicate holds now."""
        return bool(self.env._check_success())

    def low_dim(self) -> dict[str, np.ndarray]:
        """Return what the robot measures of itself and where the object is, float32 (d,) each.

        Keys, units and order are those of robomimic's observations: `robot0_eef_pos` (3 metres),
        `robot0_joint_vel`, ..., and `object`, which begins with the object's position.
        """
        found = self.env._get_observations(force_update=True)
        wanted = {k: v for k, v in found.items() if k.startswith("robot0_") and "state" not in k}
        wanted["object"] = found["object-state"]
        return {key: np.asarray(value, np.float32) for key, value in wanted.items()}

    def render(self) -> np.ndarray:
        """Return a fresh picture (H, W, 3) uint8, upright."""
        size = self.task.image_size
        self._make_current()
        picture = self.env.sim.render(width=size, height=size, camera_name=self.task.camera.name)
        return np.ascontiguousarray(picture[::-1])

    def get_state(self) -> np.ndarray:
        """Return the full state, (d,) float64, a fresh array."""
        return np.concatenate([[self.data.time], *(part.ravel() for part in self._parts())])

    def set_state(self, state: np.ndarray) -> None:
        """Continue from `state` (d,) exactly as if nothing had happened in between."""
        parts = self._parts()
        size = 1 + sum(part.size for part in parts)
        if np.shape(state) != (size,):
            raise ValueError(
                f"A state of {self.task.name} has shape ({size},), got {np.shape(state)}; "
                "pass one that get_state or a start pool of the same task returned."
            )
        self.data.time = state[0]
        values = np.split(state[1:], np.cumsum([part.size for part in parts])[:-1])
        for part, value in zip(parts, values, strict=True):
            part.flat[:] = value
        self.robot.controller.update(force=True)  # also computes everything that follows from qpos
        self.robot.controller.new_update = True
        self.data.qacc_warmstart[:] = values[2]  # the line above has overwritten it

    def _parts(self) -> list[np.ndarray]:
        """Live arrays that, with the time, decide how the simulation goes on."""
        controller = self.robot.controller
        return [
            self.data.qpos,
            self.data.qvel,
            self.data.qacc_warmstart,  # the solver starts from the last solution
            self.data.ctrl,
            self.robot.gripper.current_action,  # integrates the gripper command
            controller.initial_joint,  # the posture that the null space pulls towards
            controller.goal_ori,  # kept while the commanded rotation is zero
        ]

    def close(self) -> None:
        """Free the simulator and its GL context; safe to call twice."""
        if self.env is not None:
            self._make_current()
            self.env.close()
            self.env = None

    def _make_current(self) -> None:
        # robosuite does it once, at construction; another simulator may have come since.
        self.env.sim._render_context_offscreen.gl_ctx.make_current()


@contextlib.contextmanager
def numpy_seed(seed: int) -> Iterator[None]:
    """Run with NumPy's global generator at `seed`, which robosuite 1.4 draws from."""
    before = np.random.get_state()
    np.random.seed(seed % 2**32)
    try:
        yield
    finally:
        np.random.set_state(before)


def _make_robosuite(task: Task) -> Any:
    suite = import_robosuite()
    from robosuite.controllers import load_controller_config
    from robosuite.utils.placement_samplers import UniformRandomSampler

    reach = [-task.placement, task.placement]
    sampler = UniformRandomSampler(
        name="ObjectSampler",
        x_range=reach,
        y_range=reach,
        rotation=None,
        ensure_object_boundary_in_range=False,
        ensure_valid_placement=True,
        reference_pos=np.array((0.0, 0.0, 0.8)),
        z_offset=0.01,
    )
    with numpy_seed(0):  # Lift draws the size of its cube here; ours always has the same
        return suite.make(
            task.simulator,
            robots="Panda",
            controller_configs=load_controller_config(default_controller="OSC_POSE"),
            has_renderer=False,
            has_offscreen_renderer=True,
            use_camera_obs=False,
            camera_names=task.camera.name,
            camera_heights=task.image_size,
            camera_widths=task.image_size,
            control_freq=20,
            ignore_done=True,
            hard_reset=False,
            renderer="mujoco",
            placement_initializer=sampler,
        )


def import_robosuite() -> Any:
    """Import robosuite 1.4 quietly; raises as `check_robosuite` does."""
    os.environ["MUJOCO_GL"] = choose_gl()
    logging.getLogger("robosuite_logs").setLevel(logging.ERROR)
    check_robosuite()
    import robosuite

    return robosuite


def check_robosuite() -> None:
    """Raise ImportError, or UserError for a GL library, saying what is missing and how to get it.

    Nothing is imported: commands ask at once that need the real world an hour later.
    """
    choose_gl()
    try:
        versions = {name: importlib.metadata.version(name) for name in ("robosuite", "mujoco")}
    except importlib.metadata.PackageNotFoundError as error:
        raise ImportError(
            f"backend='real' needs {error.name}, which is not installed: pip install 'wm-gym[real]'"
        ) from error
    major_minor = {name: tuple(map(int, v.split(".")[:2])) for name, v in versions.items()}
    if major_minor["robosuite"] != (1, 4) or not (3, 3) <= major_minor["mujoco"] < (3, 6):
        raise ImportError(
            "backend='real' needs robosuite 1.4.x with mujoco >=3.3,<3.6, found robosuite "
            f"{versions['robosuite']} with mujoco {versions['mujoco']}: pip install 'wm-gym[real]'"
        )


def _reflection_flag() -> int:
    import mujoco

    return mujoco.mjtRndFlag.mjRND_REFLECTION
