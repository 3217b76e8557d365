"""Plots and film strips: what they show, and where."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.axes import Axes
from PIL import Image

from wm_gym.evaluation.figures import film_strip, plot_agreement, plot_report, write_strips


def film(t: int, colour: int, size: int = 8) -> np.ndarray:
    """A film (t, size, size, 3) whose picture after step s is s in one colour."""
    frames = np.zeros((t, size, size, 3), np.uint8)
    frames[..., colour] = np.arange(1, t + 1)[:, None, None]
    return frames


def test_a_strip_shows_real_above_imagined_at_its_steps():
    strip = film_strip("title", film(20, 0), film(20, 1))
    # Steps 1, 8 and 16; 16 times as large; two labels of 20 pixels, and a line of 16 between.
    assert strip.shape == (20 + 20 + 128 + 16 + 128, 3 * 128, 3) and strip.dtype == np.uint8
    for column, step in enumerate((1, 8, 16)):
        part = strip[40:, 128 * column : 128 * (column + 1)]
        assert (part[:128] == (step, 0, 0)).all()
        assert (part[128:144] == 0).all()
        assert (part[144:] == (0, step, 0)).all()
    assert strip[:20].any() and strip[20:40, 256:].any()  # written there


@pytest.mark.parametrize(("t", "columns"), [(1, 1), (63, 6), (64, 7), (80, 7)])
def test_a_strip_has_as_many_columns_as_the_film_has_steps_for(t, columns):
    assert film_strip("", film(t, 0, 128), film(t, 1, 128)).shape[1] == 128 * columns


def test_strips_are_written_one_above_the_other(tmp_path):
    path = tmp_path / "new" / "strip.png"
    strips = [(name, film(8, colour), film(8, 2)) for colour, name in enumerate(("a", "b"))]
    write_strips(path, strips)
    picture = np.asarray(Image.open(path))
    assert np.array_equal(picture, np.concatenate([film_strip(*strip) for strip in strips]))


def curve(*values: float | None) -> dict:
    return {"mean": list(values), "q50": list(values)}


REPORT = {
    "by_step": {
        region: {
            name: curve(20.0, None, 18.0)
            for name in ("psnr", "psnr_other", "psnr_persistence", "sharpness")
        }
        for region in ("whole", "moving")
    },
    "drift": {"left_out": "no positions"},
}


def test_a_plot_has_a_panel_for_drift_where_there_is_one(tmp_path):
    pictures = {name: curve(5.0, 6.0, 7.0) for name in ("imagined", "real")}
    drift = {"by_step": {"gripper": pictures, "object": pictures}}
    plot_report(tmp_path / "without.png", REPORT)
    plot_report(tmp_path / "with.png", {**REPORT, "drift": drift})
    widths = [Image.open(tmp_path / f"{name}.png").width for name in ("without", "with")]
    assert widths == [1104, 1656]  # panels of 4.6 inches at 120 pixels an inch
    assert not list(tmp_path.glob("partial*"))


def test_a_plot_draws_the_curves_of_the_report(tmp_path, monkeypatch):
    drawn = {}
    monkeypatch.setattr(
        "matplotlib.axes.Axes.plot",
        lambda axes, x, y, *style, label="", **options: drawn.update({label: (list(x), list(y))}),
    )
    monkeypatch.setattr("matplotlib.axes.Axes.legend", lambda axes, **options: None)
    report = {**REPORT, "by_step": {**REPORT["by_step"]}}
    report["by_step"]["whole"] = {**REPORT["by_step"]["whole"], "psnr_other": curve(1.0, 2.0, 3.0)}
    plot_report(tmp_path / "plot.png", report)
    assert drawn["under other actions"] == ([1, 2, 3], [1.0, 2.0, 3.0])
    assert np.isnan(drawn["imagined, moving region"][1][1])
    assert {"imagined", "first picture held", "whole", "moving region"} < set(drawn)


def success(low: float, at: float, high: float) -> dict:
    return {"low": low, "rate": at, "high": high}


def test_agreement_is_drawn_in_percent_with_both_intervals(tmp_path, monkeypatch):
    drawn, errorbar = [], Axes.errorbar

    def record(axes, x, y, yerr, xerr, label, **options):
        drawn.append((label, *(np.round(v, 6).tolist() for v in (x, xerr, y, yerr))))
        return errorbar(axes, x, y, yerr, xerr, label=label, **options)

    monkeypatch.setattr(Axes, "errorbar", record)
    rows = [
        {"policy": "a", "imagined": success(0.5, 0.75, 1), "real": success(0, 0.25, 0.5)},
        {"policy": "b", "imagined": success(0, 0, 0.25), "real": success(0.75, 1, 1)},
        {"policy": "a", "imagined": success(0, 0.5, 1), "real": success(0.25, 0.5, 1)},
    ]
    plot_agreement(tmp_path / "agreement.png", {"policies": rows})
    assert drawn == [
        ("a", [75, 50], [[25, 50], [25, 50]], [25, 50], [[25, 25], [25, 50]]),
        ("b", [0], [[0], [25]], [100], [[25], [0]]),
    ]
    assert Image.open(tmp_path / "agreement.png").width == 768
