"""A page in a real browser: no error, no request outside its folder, and all values visible at phone width."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from shards.html import charts, page
from shards.html.charts import Interval, Series
from shards.html.elements import facts, folded, heading, notice, table, tag, tile, tiles
from tests.browser import TOOLTIPS, Browser, outside, serve

HOSTILE = "</script><script>document.title='owned'</script>$$x^2$$ \\(y\\) @tip"
HEAD = ["score", "percent", "95 %", "chance", "scored", "published by an author of a long name"]
# Every text of a table's cells, unless it is folded, that is outside the window or below another element.
HIDDEN = """[...document.querySelectorAll("td, .tile b, .tile span")].filter((cell) => {
  if (cell.closest("details:not([open])")) return false;
  cell.scrollIntoView({ block: "center" });
  const range = document.createRange();
  range.selectNodeContents(cell);
  const box = range.getBoundingClientRect();
  const top = document.elementFromPoint(box.left + box.width / 2, box.top + box.height / 2);
  return !box.width || box.left < 0 || box.right > document.documentElement.clientWidth ||
    !top || !(cell.contains(top) || top.contains(cell));
}).map((cell) => cell.textContent)"""
LABELS = """[...document.querySelectorAll("td")].map((c) => getComputedStyle(c, "::before").content + c.textContent)"""
# Canvases that Bokeh has painted on.
PAINTED = """(() => {
  const found = [];
  const walk = (root) => { for (const e of root.querySelectorAll("*")) {
    if (e.shadowRoot) walk(e.shadowRoot);
    if (e.tagName === "CANVAS" && e.width) {
      const data = e.getContext("2d").getImageData(0, 0, e.width, e.height).data;
      if (data.some((value) => value)) found.push([e.clientWidth, e.getBoundingClientRect().right]);
    } } };
  walk(document);
  return found;
})()"""
FIRST_CHART = """(() => {
  const plot = document.querySelectorAll(".plot")[1];
  plot.scrollIntoView({ block: "center" });
  const box = plot.getBoundingClientRect();
  return [box.left + box.width / 2, box.top + box.height / 2];
})()"""


def sample_page(path: Path) -> Path:
    """A page with one of everything."""
    rows = [
        Interval(name=name, value=61.0, low=50.0, high=72.0, chance=20.0, others={"EgoVLP": 90.6, HOSTILE: 3.0})
        for name in ("inter accuracy", HOSTILE)
    ]
    loss = Series(name=HOSTILE, x=list(range(100)), y=[2.0] * 100, low=[1.0] * 100, high=[3.0] * 100, label="child 2")
    labels = [f"class {i} with a long name of its own" for i in range(40)]
    counts = [[(i * j) % 7 for j in range(40)] for i in range(40)]
    body = [
        tag("h1", "Page ", HOSTILE),
        notice(HOSTILE),
        tiles([tile("61.0", "inter accuracy", "chance 20.0", tone="bad")] * 5),
        heading("Scores", "percent"),
        charts.intervals("Scores", rows, x_title="score (%)", name="this checkpoint"),
        charts.lines("Loss", [loss], x_title="step", y_title="loss"),
        charts.histogram("Margins", {"right": [0.5], "wrong": [-0.2]}, x_title="margin (cosine)", y_title="questions"),
        charts.heat_map("Confusion", labels, counts, x_title="predicted class", y_title="true class"),
        table(HEAD, [["inter accuracy", "61.0", "50.0 to 72.0", "20.0", "1,036 of 1,038", "90.6"]] * 3),
        table(["item", "why"], [["a" * 300, HOSTILE]], align="ll"),
        folded("Settings", facts([("video.frames", 4), ("long." * 60, "x" * 300)])),
    ]
    return page.write_page(path / "index.html", HOSTILE, body)


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("scheme", ["http", "file"])
def test_a_page_is_whole_at_any_width_without_an_error_or_a_request_elsewhere(
    browser: Browser, tmp_path: Path, width: int, scheme: str
) -> None:
    path = sample_page(tmp_path)
    with serve(tmp_path) as url:
        address = f"{url}/index.html" if scheme == "http" else path.as_uri()
        report = browser.open_page(
            address, width=width, height=844, pointer=FIRST_CHART, ask={"painted": PAINTED, "tooltips": TOOLTIPS}
        )
    assert report.console_errors == [] and outside(report) == []
    assert report.title == HOSTILE and report.width in (width, width - 15), "a desktop's scroll bar takes 15 pixels"
    assert len(report.requests) == 2, "the page and the chart library"
    painted = report.answers["painted"]
    assert len(painted) >= 4 and all(shown > 200 for shown, _ in painted)
    (tooltip,) = report.answers["tooltips"]
    assert tooltip.startswith("step ") and f"{HOSTILE}: 2" in tooltip


def test_all_values_are_visible_at_phone_width_with_the_names_of_their_columns(
    browser: Browser, tmp_path: Path
) -> None:
    path = sample_page(tmp_path)
    report = browser.open_page(path.as_uri(), width=390, height=844, ask={"hidden": HIDDEN, "labels": LABELS})
    assert report.answers["hidden"] == []
    for name, value in (("percent", "61.0"), ("chance", "20.0"), ("scored", "1,036 of 1,038")):
        assert f'"{name}"{value}' in report.answers["labels"]


def test_the_check_of_visible_values_finds_those_that_are_not(browser: Browser, tmp_path: Path) -> None:
    wide = [tag("table", tag("tr", tag("td", "seen"), tag("td", "unseen", style="padding-left:400px")))]
    path = page.write_page(tmp_path / "index.html", "wide", wide)
    report = browser.open_page(path.as_uri(), width=390, height=844, ask={"hidden": HIDDEN})
    assert report.answers["hidden"] == ["unseen"]


def test_a_page_follows_the_readers_colour_scheme(browser: Browser, tmp_path: Path) -> None:
    path = sample_page(tmp_path)
    ask = {
        "ground": "getComputedStyle(document.body).backgroundColor",
        "chart": "getComputedStyle(document.querySelector('.plot')).filter",
    }
    light, dark = (browser.open_page(path.as_uri(), is_dark=is_dark, ask=ask).answers for is_dark in (False, True))

    def brightness(colour: str) -> int:
        return sum(map(int, re.findall(r"\d+", colour)))

    assert brightness(dark["ground"]) < 150 < 600 < brightness(light["ground"])
    assert light["chart"] == "none" and "invert" in dark["chart"]


def test_a_page_without_its_chart_library_says_so(browser: Browser, tmp_path: Path) -> None:
    path = sample_page(tmp_path)
    path.with_name(page.library_name()).unlink()
    assert "copy the whole folder" in browser.open_page(path.as_uri()).text


def test_a_page_without_charts_and_players_has_no_script_and_no_library(tmp_path: Path) -> None:
    written = page.write_page(tmp_path / "index.html", "plain", [tag("p", HOSTILE)]).read_text()
    assert "<script" not in written and "script-src" not in written
    assert [path.name for path in tmp_path.iterdir()] == ["index.html"]


def test_lone_surrogates_do_not_stop_a_page(tmp_path: Path) -> None:
    assert "a?b" in page.write_page(tmp_path / "index.html", "\ud800", [tag("p", "a\ud800b")]).read_text()
