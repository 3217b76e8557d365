"""Charts of a page: what is drawn, and that it can stand in HTML beside others."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.figure import Figure

from wm_gym.evaluation.charts import COLOURS, draw_agreement, draw_by_step, draw_drift, look, svg
from wm_gym.evaluation.statistics import wilson


def rate(successes: int, n: int) -> dict:
    return wilson(successes, n)._asdict()


def by_step(*rates: dict | None) -> dict:
    return {str(16 * (i + 1)): {"wrong": rate} for i, rate in enumerate(rates)}


def test_a_rate_is_drawn_by_step_with_its_interval():
    axes = Figure().subplots()
    draw_by_step(axes, [by_step(rate(3, 4), None), by_step(rate(0, 5), rate(5, 5))], "wrong")
    (first, first_bars), (second, _) = ((c.lines[0], c.lines[2][0]) for c in axes.containers)
    assert first.get_xdata() == pytest.approx([15.6, 31.6])  # half a step aside
    assert first.get_ydata()[0] == 75 and np.isnan(first.get_ydata()[1])
    # 3 of 4: centre (.75 + z^2 / 8) / (1 + z^2 / 4) = 0.62753, half 0.32689.
    assert first_bars.get_segments()[0][:, 1] == pytest.approx([30.064, 95.441], abs=1e-2)
    assert second.get_xdata() == pytest.approx([16.4, 32.4])
    assert second.get_ydata().tolist() == [0, 100]


def test_a_policy_is_a_point_of_real_over_imagined_success():
    axes = Figure().subplots()
    draw_agreement(axes, [{"policy": "p", "imagined": rate(1, 4), "real": rate(3, 4)}])
    point, _, (across, up) = axes.containers[0].lines
    assert (point.get_xdata()[0], point.get_ydata()[0]) == (25, 75)
    assert across.get_segments()[0][:, 0] == pytest.approx([4.559, 69.936], abs=1e-2)
    assert up.get_segments()[0][:, 1] == pytest.approx([30.064, 95.441], abs=1e-2)


def test_drift_is_drawn_by_step_beside_the_probes_own_error():
    axes = Figure().subplots()
    away = {thing: {"imagined": [2.0, 4.0], "real": [1.0, 1.0]} for thing in ("gripper", "object")}
    draw_drift(axes, away)
    assert [list(line.get_ydata()) for line in axes.lines] == [[2, 4], [1, 1]] * 2
    assert [line.get_xdata().tolist() for line in axes.lines] == [[1, 2]] * 4
    assert [line.get_label() for line in axes.lines][:2] == ["gripper", "gripper, the probe's own"]
    assert len({line.get_color() for line in axes.lines}) == 2


def test_twenty_policies_look_different_in_colours_that_the_page_has():
    looks = [look(number) for number in range(20)]
    assert len(set(looks)) == 20 and {by.colour for by in looks} <= set(COLOURS)


def drawn(name: str) -> str:
    return svg(lambda axes: draw_by_step(axes, [by_step(rate(3, 4))], "wrong"), name, 'Of "<b>"')


def test_a_chart_takes_the_pages_colours_and_says_what_it_shows():
    text = drawn("a")
    assert not re.search(r"(fill|stroke): *#(?!fff)", text)
    assert {"currentColor", "var(--blue)", "var(--rule)"} <= set(
        re.findall(r"currentColor|var\(--\w+\)", text)
    )
    root = ElementTree.fromstring(text)
    assert (root.get("role"), root.get("aria-label")) == ("img", 'Of "<b>"')
    texts = ["".join(e.itertext()) for e in root.iter("{http://www.w3.org/2000/svg}text")]
    assert "control step" in texts and "100" in texts


def test_charts_share_no_ids_and_find_their_own():
    ids = [set(re.findall(r' id="([^"]+)"', drawn(name))) for name in ("a", "b")]
    assert ids[0] and not ids[0] & ids[1]
    used = re.findall(r'(?:url\(#|href="#)([^")]+)', drawn("a"))
    assert used and set(used) <= ids[0]
