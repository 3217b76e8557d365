"""Which GL library, which camera, how many triangles."""

from __future__ import annotations

import numpy as np
import pytest

from wm_gym.errors import UserError
from wm_gym.real import rendering
from wm_gym.real.rendering import _proper_faces, choose_gl, mesh_cell, place_camera
from wm_gym.tasks import Camera


@pytest.fixture
def libraries(monkeypatch):
    """Say which libraries this Linux machine has."""

    def have(*names: str) -> None:
        monkeypatch.delenv("MUJOCO_GL", raising=False)
        monkeypatch.setattr(rendering.sys, "platform", "linux")
        found = {name: f"lib{name}.so.1" for name in names}
        monkeypatch.setattr(rendering.ctypes.util, "find_library", found.get)

    return have


@pytest.mark.parametrize(
    ("present", "chosen"),
    [(("EGL", "OSMesa"), "egl"), (("EGL",), "egl"), (("OSMesa",), "osmesa")],
)
def test_the_first_headless_library_present_is_chosen(libraries, present, chosen):
    libraries(*present)
    assert choose_gl() == chosen


def test_the_users_own_choice_comes_first(libraries, monkeypatch):
    libraries("EGL")
    monkeypatch.setenv("MUJOCO_GL", "glfw")
    assert choose_gl() == "glfw"


def test_without_a_library_the_error_names_the_packages(libraries):
    libraries()
    with pytest.raises(UserError, match="(?s)neither libEGL.*libegl1.*libosmesa6"):
        choose_gl()


def test_mesh_cell_is_the_width_of_a_pixel_at_the_target():
    # 90 degrees at 5 m show 10 m; 100 pixels share them.
    camera = Camera("any", position=(3.0, 0.0, 4.0), target=(0.0, 0.0, 0.0), fovy=90.0)
    assert mesh_cell(camera, image_size=100) == pytest.approx(0.1)


def test_proper_faces_have_three_corners_and_come_once():
    faces = np.array([[0, 1, 2], [3, 3, 4], [2, 0, 1], [1, 2, 3], [4, 5, 4], [5, 6, 6]])
    assert _proper_faces(faces).tolist() == [0, 3]


def test_the_camera_looks_at_its_target_with_a_level_horizon():
    mujoco = pytest.importorskip("mujoco")
    model = mujoco.MjModel.from_xml_string(
        "<mujoco><worldbody><camera name='other'/><camera name='eye'/></worldbody></mujoco>"
    )
    place_camera(model, Camera("eye", position=(3.0, 0.0, 4.0), target=(0.0, 0.0, 0.0), fovy=31.0))
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    right, up, back = data.cam_xmat[1].reshape(3, 3).T  # MuJoCo looks along -z of the camera
    assert data.cam_xpos[1] == pytest.approx([3.0, 0.0, 4.0])
    assert back == pytest.approx([0.6, 0.0, 0.8], abs=1e-6)
    assert right == pytest.approx([0.0, 1.0, 0.0], abs=1e-6)
    assert up == pytest.approx([-0.8, 0.0, 0.6], abs=1e-6)
    assert model.cam_fovy[1] == 31.0
