"""What reports look like: curves by step, strips of real pictures above imagined, scatter."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from wm_gym.evaluation.charts import draw_agreement, percent
from wm_gym.evaluation.video import enlarge, label
from wm_gym.files import replacing

STRIP_STEPS = (1, 8, 16, 24, 32, 48, 64)

_PSNR = {
    "imagined": ("whole", "psnr", "C0", "-"),
    "imagined, moving region": ("moving", "psnr", "C0", "--"),
    "under other actions": ("whole", "psnr_other", "C3", "-"),
    "first picture held": ("whole", "psnr_persistence", "0.5", "-"),
}
_SHARPNESS = {
    "whole": ("whole", "sharpness", "C0", "-"),
    "moving region": ("moving", "sharpness", "C0", "--"),
}


def plot_report(path: str | Path, report: Mapping[str, Any]) -> None:
    """Draw the `panels` of a fidelity report side by side."""
    drawn = panels(report)
    with _picture(path, (4.6 * len(drawn), 3.6)) as figure:
        for axes, draw in zip(figure.subplots(1, len(drawn)), drawn.values(), strict=True):
            draw(axes)


def plot_agreement(path: str | Path, report: Mapping[str, Any]) -> None:
    """Draw the `policies` of an agreement report: real over imagined success, in percent."""
    with _picture(path, (6.4, 4.4)) as figure:
        draw_agreement(figure.subplots(), report["policies"])
        figure.legend(loc="outside right upper", frameon=False, fontsize="small")


def plot_optimisation(path: str | Path, report: Mapping[str, Any]) -> None:
    """Draw the `rows` of an overoptimisation by iteration, percent: success in both worlds, and how
    many real failures are imagined as successes."""
    rows = report["rows"]
    curves = {
        "imagined": ("C1", [row["imagined"] for row in rows]),
        "real": ("C0", [row["real"] for row in rows]),
        "failures imagined as successes": (
            "C3",
            [row["replayed"]["hallucinated_success_rate"] for row in rows],
        ),
    }
    steps = [row["iteration"] for row in rows]
    with _picture(path, (5.4, 3.6)) as figure:
        axes = figure.subplots()
        for name, (colour, rates) in curves.items():
            at, (below, above) = percent(rates)
            axes.plot(steps, at, "o-", color=colour, markersize=3.5, label=name)
            axes.fill_between(steps, at - below, at + above, color=colour, alpha=0.15, linewidth=0)
        for key, style in (("parts_at", ":"), ("misleads_at", "--")):
            if report[key] is not None:
                axes.axvline(report[key], color="0.5", linestyle=style, label=key.replace("_", " "))
        axes.set(xlabel="iterations of GRPO", ylabel="percent", ylim=(-4, 104))
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize="small")


@contextmanager
def _picture(path: str | Path, size: tuple[float, float]) -> Iterator[Figure]:
    """Yield a figure to draw on, `size` inches wide and high; then write it, all or nothing."""
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    yield figure
    with replacing(path) as aside:
        figure.savefig(aside, dpi=120)


def panels(report: Mapping[str, Any]) -> dict[str, Callable[[Axes], None]]:
    """What to draw of a fidelity report, by name: dB, sharpness, and drift if measured."""
    found = {"PSNR": _psnr, "sharpness": _sharpness}
    if "by_step" in report["drift"]:
        found["drift"] = _drift
    return {name: partial(draw, report=report) for name, draw in found.items()}


def _psnr(axes: Axes, report: Mapping[str, Any]) -> None:
    _curves(axes, report["by_step"], _PSNR, "PSNR (dB), mean of episodes")


def _sharpness(axes: Axes, report: Mapping[str, Any]) -> None:
    _curves(axes, report["by_step"], _SHARPNESS, "gradient energy, imagined / real")
    axes.axhline(1, color="0.8", linewidth=0.8, zorder=0)


def _drift(axes: Axes, report: Mapping[str, Any]) -> None:
    by_thing = report["drift"]["by_step"]
    pairs = [(thing, color) for thing, color in zip(by_thing, ("C0", "C1"), strict=True)]
    lines = {thing: (thing, "imagined", color, "-") for thing, color in pairs}
    lines |= {f"{thing}, probe's own": (thing, "real", color, ":") for thing, color in pairs}
    _curves(axes, by_thing, lines, "drift (mm), median of episodes", "q50")
    axes.set_ylim(bottom=0)


def _curves(
    axes: Axes,
    values: Mapping[str, Any],
    lines: Mapping[str, tuple[str, str, str, str]],
    title: str,
    statistic: str = "mean",
) -> None:
    for name, (group, figure, color, style) in lines.items():
        by_step = [math.nan if v is None else v for v in values[group][figure][statistic]]
        steps = np.arange(1, len(by_step) + 1)
        axes.plot(steps, by_step, style, color=color, label=name, marker="." * (len(steps) == 1))
    axes.set(xlabel="control step", title=title)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize="small")


def write_strips(path: str | Path, strips: Sequence[tuple[str, np.ndarray, np.ndarray]]) -> None:
    """Write film strips (title, real, imagined), one above the other, as a picture.

    real and imagined: uint8 (t, H, W, 3), the pictures after each action.
    """
    rows = [film_strip(*strip) for strip in strips]
    with replacing(path) as aside:
        Image.fromarray(np.concatenate(rows)).save(aside)


def film_strip(title: str, real: np.ndarray, imagined: np.ndarray) -> np.ndarray:
    """Real above imagined at `STRIP_STEPS`, as far as there are: (t, H, W, 3) to (h, w, 3) uint8.

    Pictures are enlarged by a whole factor to at least 128 pixels.
    """
    at = [step for step in STRIP_STEPS if step <= len(real)]
    line = np.zeros_like(real[:, :1])  # a row of pixels between the two
    pairs = np.concatenate([real, line, imagined], axis=1)[[step - 1 for step in at]]
    pairs = enlarge(pairs, math.ceil(128 / max(real.shape[1:3])))
    columns = [label(pair[None], f"step {step}")[0] for step, pair in zip(at, pairs, strict=True)]
    return label(np.concatenate(columns, axis=1)[None], title)[0]
