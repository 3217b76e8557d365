"""Videos of episodes: grids, real beside imagined, mp4 and GIF."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import imageio.v2 as imageio
import numpy as np
from PIL import Image, ImageDraw

from wm_gym.files import replacing

GREEN, RED = (46, 160, 67), (207, 34, 46)
_STRIP, _LETTERS = 20, 16
"""Height of a label and of its letters, pixels; pages show videos smaller than they are."""


def tile(frames: np.ndarray, columns: int | None = None) -> np.ndarray:
    """Lay n videos out in a grid: (n, T, H, W, 3) uint8 -> (T, rows * H, columns * W, 3).

    Row by row; as square as n allows unless `columns` is given; empty places are black.
    """
    n, t, h, w, c = frames.shape
    columns = columns or math.ceil(math.sqrt(n))
    rows = math.ceil(n / columns)
    grid = np.zeros((rows * columns, t, h, w, c), frames.dtype)
    grid[:n] = frames
    grid = grid.reshape(rows, columns, t, h, w, c).transpose(2, 0, 3, 1, 4, 5)
    return grid.reshape(t, rows * h, columns * w, c)


def border(frames: np.ndarray, success: bool, width: int = 2) -> np.ndarray:
    """Frame a video (T, H, W, 3) green for success, red for failure; fresh, the same size."""
    framed = np.empty_like(frames)
    framed[:] = GREEN if success else RED
    inner = slice(width, -width)
    framed[:, inner, inner] = frames[:, inner, inner]
    return framed


def label(frames: np.ndarray, text: str) -> np.ndarray:
    """Put a strip with `text` above a video: (T, H, W, 3) -> (T, H + 20, W, 3)."""
    strip = Image.new("RGB", (frames.shape[2], _STRIP))
    ImageDraw.Draw(strip).text((4, 0), text, fill="white", font_size=_LETTERS)
    repeated = np.broadcast_to(np.asarray(strip), (len(frames), *np.asarray(strip).shape))
    return np.concatenate([repeated, frames], axis=1)


def side_by_side(
    real: np.ndarray,
    imagined: np.ndarray,
    *,
    success: tuple[bool, bool] | None = None,
    labels: Sequence[str] = ("real", "imagined"),
    scale: int = 4,
) -> np.ndarray:
    """Two videos (T, H, W, 3) uint8 of any lengths -> one, labelled, with borders for `success`.

    Pictures are enlarged `scale` times so that the labels fit; the shorter one waits on its last
    frame.
    """
    length = max(len(real), len(imagined))
    halves = []
    for i, frames in enumerate((real, imagined)):
        enlarged = enlarge(hold(frames, length), scale)
        enlarged = border(enlarged, success[i], scale) if success else enlarged
        halves.append(label(enlarged, labels[i]))
    return np.concatenate(halves, axis=2)


def hold(frames: np.ndarray, length: int) -> np.ndarray:
    """Repeat the last frame until the video is `length` long; (T, ...) -> (max(T, length), ...)."""
    return np.concatenate([frames, np.repeat(frames[-1:], max(length - len(frames), 0), axis=0)])


def enlarge(frames: np.ndarray, scale: int) -> np.ndarray:
    """Repeat every pixel `scale` times in both directions; (T, H, W, 3)."""
    return frames.repeat(scale, axis=1).repeat(scale, axis=2)


def check_video_path(path: str | Path) -> Path:
    """Return the path; raises ValueError unless it ends in .mp4 or .gif."""
    path = Path(path)
    if path.suffix not in (".mp4", ".gif"):
        raise ValueError(f"A video ends in .mp4 or .gif; got {path.name!r}.")
    return path


def write_video(path: str | Path, frames: np.ndarray, fps: int = 20) -> None:
    """Write (T, H, W, 3) uint8 frames as .mp4 (H.264, yuv420p) or .gif, aside and then renamed.

    Small pictures are enlarged by a whole factor to at least 256 pixels; an odd edge is doubled,
    since yuv420p needs even sizes.
    """
    path = check_video_path(path)
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or len(frames) == 0:
        raise ValueError(f"Frames must be uint8 (T, H, W, 3); got {frames.dtype} {frames.shape}.")
    frames = enlarge(frames, math.ceil(256 / max(frames.shape[1:3])))
    frames = np.pad(
        frames, [(0, 0), (0, frames.shape[1] % 2), (0, frames.shape[2] % 2), (0, 0)], mode="edge"
    )
    with replacing(path) as aside:
        if path.suffix == ".gif":
            first, *rest = [Image.fromarray(frame) for frame in frames]
            first.save(aside, save_all=True, append_images=rest, duration=1000 / fps, loop=0)
        else:
            with imageio.get_writer(
                aside, fps=fps, codec="libx264", pixelformat="yuv420p", macro_block_size=2
            ) as writer:
                for frame in frames:
                    writer.append_data(frame)
