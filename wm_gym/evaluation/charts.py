"""Charts of a page: inline SVG that takes the page's colours, and so reads in light and in dark."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

COLOURS = {
    "#1f77b4": "blue",
    "#ff7f0e": "orange",
    "#2ca02c": "green",
    "#d62728": "red",
    "#9467bd": "purple",
    "#808080": "grey",
    "#cccccc": "rule",
}
"""What matplotlib draws in, and the page's CSS variable that takes its place; black is the text's
colour."""


class Look(NamedTuple):
    """How a policy is drawn, and how a legend in HTML shows that."""

    colour: str  # one that `COLOURS` knows
    marker: str  # matplotlib's name
    sign: str  # the marker as a character


def look(number: int) -> Look:
    """The look of the policy with this number; twenty differ in colour or marker."""
    marker, sign = (("o", "●"), ("s", "■"), ("^", "▲"), ("D", "◆"))[number % 4]
    return Look(list(COLOURS)[number % 5], marker, sign)


def svg(
    draw: Callable[[Axes], None],
    name: str,
    told: str,
    size: tuple[float, float] = (3.6, 2.7),
) -> str:
    """Draw a chart as an <svg> element, `size` inches wide and high.

    `name` tells its ids from those of other charts on the page; `told` says what it shows to those
    who cannot see it.
    """
    options = {"svg.fonttype": "none", "svg.hashsalt": name, "font.size": 9}
    file = io.StringIO()
    with rc_context(options):
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasSVG(figure)
        draw(figure.subplots())
        about = dict.fromkeys(("Creator", "Date", "Format", "Type"))  # none of it
        figure.savefig(file, format="svg", transparent=True, metadata=about)
    text = file.getvalue()
    text = f'<svg role="img" aria-label="{escape(told)}"' + text.partition("<svg")[2]
    text = re.sub(r'( id="|url\(#|href="#)', rf"\g<1>{name}-", text)
    text = text.replace("#000000", "currentColor")
    for colour, variable in COLOURS.items():
        text = text.replace(colour, f"var(--{variable})")
    return text


def draw_by_step(axes: Axes, parts: Sequence[Mapping[str, Any]], figure: str) -> None:
    """Draw a rate and its interval by step, one line for the `by_step` of each policy."""
    for number, by_step in enumerate(parts):
        steps = np.array([int(step) for step in by_step])
        aside = 0.8 * (number - (len(parts) - 1) / 2)  # so that intervals stay apart
        rates = [part[figure] for part in by_step.values()]
        _points(axes, number, steps + aside, rates, linestyle="-", linewidth=1.2)
    around = (steps[0] - 4, steps[-1] + 4)  # the same where nothing is known of the first steps
    axes.set(xlabel="control step", ylabel="%", xlim=around, ylim=(-4, 104), xticks=steps)
    _plain(axes)


def draw_agreement(axes: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    """Draw `real` success over `imagined` success, each with its interval, and the diagonal.

    A point a row, in the look of its `policy`: by its number among the rows' policies.
    """
    axes.axline((0, 0), slope=1, color="#cccccc", linewidth=0.8, zorder=0)
    for number, name in enumerate(dict.fromkeys(row["policy"] for row in rows)):
        imagined, real = (
            [row[world] for row in rows if row["policy"] == name] for world in ("imagined", "real")
        )
        x = 100 * np.array([rate["rate"] for rate in imagined])
        _points(axes, number, x, real, across=imagined, label=name)
    axes.set(xlabel="imagined success, %", ylabel="real success, %")
    axes.set(xlim=(-4, 104), ylim=(-4, 104), aspect="equal")
    _plain(axes)


def draw_drift(axes: Axes, away: Mapping[str, Mapping[str, Sequence[float]]]) -> None:
    """Draw the drift of each thing by step, and dotted what of it is the probe's own error; mm."""
    for number, (thing, worlds) in enumerate(away.items()):
        steps, colour = np.arange(1, 1 + len(worlds["imagined"])), look(number).colour
        axes.plot(steps, worlds["imagined"], color=colour, linewidth=1.4, label=thing)
        label = f"{thing}, the probe's own"
        axes.plot(steps, worlds["real"], color=colour, linewidth=1.0, linestyle=":", label=label)
    axes.set(xlabel="control step", ylabel="mm")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, fontsize="small")
    _plain(axes)


def _points(
    axes: Axes,
    number: int,
    x: Sequence[float],
    rates: Sequence[Mapping[str, Any] | None],
    across: Sequence[Mapping[str, Any]] | None = None,
    linestyle: str = "none",
    **options: Any,
) -> None:
    colour, marker, _ = look(number)
    y, ends = percent(rates)
    axes.errorbar(
        x,
        y,
        yerr=ends,
        xerr=None if across is None else percent(across)[1],
        color=colour,
        marker=marker,
        markersize=4.5,
        linestyle=linestyle,
        elinewidth=0.9,
        **options,
    )


def percent(rates: Sequence[Mapping[str, Any] | None]) -> tuple[np.ndarray, np.ndarray]:
    """Rates (k,) in percent, and how far their intervals reach down and up, (2, k)."""
    missing = {"rate": math.nan, "low": math.nan, "high": math.nan}
    found = [rate or missing for rate in rates]
    middle, low, high = (100 * np.array([r[key] for r in found]) for key in missing)
    return middle, np.stack([middle - low, high - middle]).clip(0)


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#cccccc", linewidth=0.6)
    axes.set_axisbelow(True)
