"""Fast pictures from MuJoCo: which GL library, which camera, how many triangles."""

from __future__ import annotations

import ctypes.util
import os
import sys
from typing import Any

import numpy as np

from wm_gym.errors import UserError
from wm_gym.tasks import Camera

GL_LIBRARIES = {"egl": ("EGL", "libegl1 libgl1-mesa-dri"), "osmesa": ("OSMesa", "libosmesa6")}


def choose_gl() -> str:
    """Return the value for MUJOCO_GL: the user's own, or the first headless library present.

    Raises UserError that names the system package when there is none.
    """
    chosen = os.environ.get("MUJOCO_GL")
    if chosen:
        return chosen
    if sys.platform != "linux":
        return "glfw" if sys.platform == "win32" else "cgl"
    for backend, (library, _) in GL_LIBRARIES.items():
        if ctypes.util.find_library(library):
            return backend
    raise UserError(
        "Rendering robosuite without a screen needs a GL library; neither libEGL nor libOSMesa was "
        f"found. Install one, e.g. `apt-get install {GL_LIBRARIES['egl'][1]}` or "
        f"`apt-get install {GL_LIBRARIES['osmesa'][1]}`, then try again."
    )


def place_camera(model: Any, camera: Camera) -> None:
    """Move MuJoCo's camera `camera.name` to where the task wants it (horizontal horizon)."""
    import mujoco

    index = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_CAMERA, camera.name)
    back = np.subtract(camera.position, camera.target)
    back /= np.linalg.norm(back)
    right = np.cross([0.0, 0.0, 1.0], back)
    right /= np.linalg.norm(right)
    axes = np.stack([right, np.cross(back, right), back], axis=1)
    mujoco.mju_mat2Quat(model.cam_quat[index], axes.ravel())
    model.cam_pos[index] = camera.position
    model.cam_fovy[index] = camera.fovy


def mesh_cell(camera: Camera, image_size: int) -> float:
    """Width of a pixel at the point the camera looks at; metres."""
    distance = np.linalg.norm(np.subtract(camera.position, camera.target))
    return float(distance * 2 * np.tan(np.radians(camera.fovy) / 2) / image_size)


def simplify_meshes(model: Any, context: Any, cell: float) -> int:
    """Weld the vertices of every mesh that fall in the same cube of side `cell` (metres).

    The Panda is drawn with 182,000 triangles, which is where software GL spends its time at any
    picture size. Only what the GPU draws changes: collision geometry was compiled before. Returns
    the number of triangles left.
    """
    import mujoco

    for mesh in range(model.nmesh):
        first, count = model.mesh_faceadr[mesh], model.mesh_facenum[mesh]
        vertex, vertices = model.mesh_vertadr[mesh], model.mesh_vertnum[mesh]
        key = np.floor(model.mesh_vert[vertex : vertex + vertices] / cell).astype(np.int64)
        _, chosen, group = np.unique(key, axis=0, return_index=True, return_inverse=True)
        faces = chosen[group.ravel()].astype(np.int32)[model.mesh_face[first : first + count]]
        kept = _proper_faces(faces)
        if len(kept) < 4:  # smaller than a pixel: leave as it is rather than lose it
            continue
        n = len(kept)
        model.mesh_face[first : first + n] = faces[kept]
        for attribute in (model.mesh_facenormal, model.mesh_facetexcoord):
            attribute[first : first + n] = attribute[first : first + count][kept]
        model.mesh_facenum[mesh] = n
        mujoco.mjr_uploadMesh(model, context, mesh)
    return int(model.mesh_facenum.sum())


def _proper_faces(faces: np.ndarray) -> np.ndarray:
    """Indices of faces with three different corners, each set of corners once."""
    a, b, c = faces.T
    proper = np.flatnonzero((a != b) & (b != c) & (a != c))
    _, once = np.unique(np.sort(faces[proper], axis=1), axis=0, return_index=True)
    return proper[np.sort(once)]
