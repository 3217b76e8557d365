"""Grids, labels and files of frames."""

from __future__ import annotations

import imageio.v3 as iio
import numpy as np
import pytest

from wm_gym.evaluation.video import border, label, side_by_side, tile, write_video


def flat(value: int, t: int = 2, size: int = 8) -> np.ndarray:
    return np.full((t, size, size, 3), value, np.uint8)


def test_tile_goes_row_by_row_and_fills_with_black():
    grid = tile(np.stack([flat(10), flat(20), flat(30)]))
    assert grid.shape == (2, 16, 16, 3)
    assert grid[1, ::8, ::8, 0].tolist() == [[10, 20], [30, 0]]


def test_tile_takes_a_number_of_columns():
    grid = tile(np.stack([flat(10), flat(20), flat(30)]), columns=3)
    assert grid.shape == (2, 8, 24, 3) and grid[0, 0, ::8, 0].tolist() == [10, 20, 30]


def test_border_is_green_or_red_and_leaves_the_inside():
    frames = flat(99)
    won, lost = border(frames, True), border(frames, False)
    assert won[0, 0, 0].tolist() == [46, 160, 67] and lost[0, 7, 3].tolist() == [207, 34, 46]
    assert (won[:, 2:-2, 2:-2] == 99).all() and (frames == 99).all()


def test_label_adds_a_strip_with_writing():
    labelled = label(flat(99, size=40), "real")
    assert labelled.shape == (2, 60, 40, 3)
    assert labelled[:, :20].max() > 200 and (labelled[:, 20:] == 99).all()


def test_side_by_side_waits_for_the_longer_one():
    real = np.concatenate([flat(10, 1), flat(20, 1)])
    both = side_by_side(real, flat(30, t=4), success=(True, False))
    assert both.shape == (4, 32 + 20, 64, 3)
    middle = both[:, 36, [16, 48], 0]
    assert middle.tolist() == [[10, 30], [20, 30], [20, 30], [20, 30]]
    assert both[0, -1, [0, 63]].tolist() == [[46, 160, 67], [207, 34, 46]]


def test_mp4_is_enlarged_to_even_sizes_and_keeps_its_pictures(tmp_path):
    frames = np.concatenate([flat(v, 1, 9) for v in (20, 120, 220)])
    write_video(tmp_path / "a.mp4", frames, fps=5)
    back = iio.imread(tmp_path / "a.mp4", plugin="FFMPEG")
    assert back.shape == (3, 262, 262, 3)  # 9 * 29 = 261, and one more row and column
    assert back.mean((1, 2, 3)) == pytest.approx([20, 120, 220], abs=4)
    assert [f.name for f in tmp_path.iterdir()] == ["a.mp4"]


def test_gif_keeps_its_speed(tmp_path):
    frames = np.concatenate([flat(v, 1) for v in (20, 220)])
    write_video(tmp_path / "a.gif", frames, fps=20)
    assert iio.improps(tmp_path / "a.gif").shape == (2, 256, 256, 3)
    assert iio.immeta(tmp_path / "a.gif")["duration"] == 50
    assert iio.imread(tmp_path / "a.gif")[:, 5, 5, 0].tolist() == [20, 220]


def test_other_suffix_or_frames_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r".mp4 or .gif; got 'a.avi'"):
        write_video(tmp_path / "a.avi", flat(0))
    with pytest.raises(ValueError, match="uint8 .T, H, W, 3.; got float64"):
        write_video(tmp_path / "a.mp4", flat(0) / 255)
