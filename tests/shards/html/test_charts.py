"""Charts show the values they are given, whatever these are, and their data cannot leave its place in the page."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.html import charts
from shards.html.charts import Interval, Series

HOSTILE = "</script><script>document.title='owned'</script>"
NUMBERS = st.floats(allow_nan=True, allow_infinity=True)


def columns(figure: str) -> list[dict[str, Any]]:
    """Return the data columns of a chart's glyphs, in the order in which they were drawn."""
    (data,) = re.findall(r'<script type="application/json">(.*?)</script>', figure, re.S)
    found: list[dict[str, Any]] = []

    def walk(value: object) -> None:
        if isinstance(value, dict):
            if value.get("type") == "map":
                found.append(dict(value.get("entries", [])))
            for child in value.values():
                walk(child)
        elif isinstance(value, list):
            for child in value:
                walk(child)

    walk(json.loads(data, parse_constant=lambda name: pytest.fail(f"{name} is no JSON")))
    return [entry for entry in found if {"x", "y", "top"} & set(entry) and entry]


def test_a_line_goes_through_its_points_without_those_that_are_not_finite() -> None:
    series = Series(name="a", x=[1, 2, 3, 4], y=[1.0, math.nan, 1e300, 4.0])
    figure = charts.lines("Loss", [series], x_title="step", y_title="loss")
    assert (columns(figure)[0]["x"], columns(figure)[0]["y"]) == ([1.0, 4.0], [1.0, 4.0])
    assert "step 1\\na: 1" in figure, "what pointing at the chart shows"


def test_a_chance_level_is_a_dashed_line_in_the_legend() -> None:
    score = Series(name="inter", x=[1, 2], y=[30.0, 40.0])
    chance = Series(name="chance", label="chance 20", x=[0, 2], y=[20.0, 20.0], is_chance=True)
    figure = charts.lines("Evaluation", [score, chance], x_title="step", y_title="score (%)")
    assert re.findall(r"</i>([^<]*)</span>", figure) == ["inter", "chance 20"]
    assert '"line_dash":' in figure and "step 2\\ninter: 40\\nchance: 20" in figure


def test_a_chart_without_a_value_is_left_out() -> None:
    assert charts.lines("a", [Series(name="", x=[1], y=[math.nan])], x_title="x", y_title="y") == ""
    assert charts.intervals("a", [Interval(name="a", value=math.inf)], x_title="x") == ""
    assert charts.histogram("a", {"right": [], "wrong": [math.nan]}, x_title="x", y_title="y") == ""


@given(st.lists(st.tuples(NUMBERS, NUMBERS, NUMBERS), max_size=5), st.booleans())
@settings(max_examples=40, deadline=None)
def test_whatever_the_numbers_are_charts_are_valid_json(
    rows: list[tuple[float, float, float]], from_zero: bool
) -> None:
    x, y, z = ([row[i] for row in rows] for i in range(3))
    named = [Interval(name="a", value=a, low=b, high=c, chance=b, others={"x": c}) for a, b, c in rows]
    figures = (
        charts.lines("a", [Series(name="s", x=x, y=y)], x_title="x", y_title="y", from_zero=from_zero),
        charts.intervals("a", named, x_title="x", from_zero=from_zero),
        charts.histogram("a", {"right": y, "wrong": z}, x_title="x", y_title="y"),
    )
    for figure in figures:
        if figure:
            columns(figure)


@given(st.lists(st.floats(0.001, 2), max_size=50), st.lists(st.floats(-2, -1e-6), max_size=50))
@settings(max_examples=50, deadline=None)
def test_a_histogram_counts_every_value_once_and_no_bin_lies_across_zero(
    right: list[float], wrong: list[float]
) -> None:
    figure = charts.histogram("m", {"right": right, "wrong": wrong}, x_title="margin", y_title="questions")
    counted = {"right": 0, "wrong": 0}
    for entry in columns(figure) if figure else []:
        for left, end, bottom, top, tip in zip(*(entry.get(k, []) for k in ("left", "right", "bottom", "top", "tip"))):  # noqa: B905
            group = "right" if " right," in tip else "wrong"
            counted[group] += top - bottom
            assert left >= -1e-9 if group == "right" else end <= 1e-9
    assert counted == {"right": len(right), "wrong": len(wrong)}


def test_a_score_stands_beside_its_interval_chance_and_published_values() -> None:
    rows = [
        Interval(name="inter", value=61.0, low=50.0, high=72.0, chance=20.0, others={"EgoVLP": 90.6}),
        Interval(name="mAP", value=30.0),
    ]
    figure = charts.intervals("Scores", rows, x_title="score (%)", name="this checkpoint")
    (label,) = re.findall(r'aria-label="([^"]*)"', figure)
    assert label == "Scores: inter: 61 (50 to 72), chance 20; mAP: 30"
    assert [entry["tip"] for entry in columns(figure) if "tip" in entry] == [
        ["EgoVLP: 90.6"], ["chance: 20"], ["inter: 61 (50 to 72), chance 20", "mAP: 30"],
    ]  # fmt: skip
    legend = re.findall(r"</i>([^<]*)</span>", figure)
    assert legend == ["this checkpoint", "chance", "EgoVLP"]
    assert "score (%)" in figure


def test_a_heat_map_shades_by_the_share_of_its_row() -> None:
    figure = charts.heat_map("c", ["a", "b"], [[3, 1], [0, 0]], x_title="predicted", y_title="true")
    cells = next(entry for entry in columns(figure) if "alpha" in entry)
    assert cells["alpha"] == pytest.approx([0.8 * 0.75, 0.8 * 0.25, 0, 0])
    assert cells["tip"][1] == "a → b: 1 (25 %)"


@pytest.mark.parametrize("label", [HOSTILE, "$$x^2$$", "\\(x\\)", "@tip", "a\nb", "\ud800"])
def test_names_stay_inside_their_script_and_are_no_formulas(label: str) -> None:
    figure = (
        charts.lines(label, [Series(name=label, x=[1], y=[2])], x_title=label, y_title=label)
        + charts.intervals(label, [Interval(name=label, value=1.0, others={label: 2.0})], x_title=label)
        + charts.heat_map(label, [label], [[1]], x_title=label, y_title=label)
    )
    assert figure.count("<script") == figure.count("</script") == 3
    labels = re.findall(r'"(?:axis_label|entries)":(.*?)[,}]', figure)
    assert not any("$$" in found or "\\\\(" in found for found in labels if "tip" not in found)


def test_importing_the_module_does_not_import_bokeh() -> None:
    code = "import sys, shards.html.charts, shards.html.page; sys.exit('bokeh' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
