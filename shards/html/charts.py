"""Draws the charts of the project's HTML pages with Bokeh: lines, intervals, stacked histograms, heat maps.

Each function returns a figure for `shards.html.page`, which puts Bokeh's JavaScript beside the page. Colours are those
of the light style; in dark mode the style inverts charts and legends. Bokeh is imported when the first chart is drawn,
as importing it takes half a second. Titles, legends and notes are HTML, so they wrap and can be selected.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeGuard

from shards.html.elements import Html, folded, short, table, tag
from shards.html.page import CHART

if TYPE_CHECKING:
    from bokeh.plotting import figure as Figure

COLOURS = ("#2b6cb0", "#b4532a", "#2f7d4a", "#8a5cc2", "#a67f0a", "#5f6b7a")
GOOD, BAD, MARK = COLOURS[2], COLOURS[1], COLOURS[1]
MAX_CELLS = 40  # rows of a heat map: more cannot be told apart
_INK, _QUIET, _GRID = "#1d1d1f", "#63625e", "rgba(0, 0, 0, 0.1)"
_HEIGHT = 230  # pixels
_LABEL = 24  # characters of a label on an axis
_FEW = 30  # points that are drawn as dots on their line
_VALUES = 60  # points that are listed below a chart
_LARGEST = 1e100  # what is larger is left out: axes and their ticks would overflow
_MATH = str.maketrans({"$": "$\u2060", "\\": "\\\u2060"})  # Bokeh would typeset $$…$$ and \\(…\\)
_DASHES = [3, 2]
_TIP = '<div style="font: 12px system-ui; white-space: pre-line; overflow-wrap: anywhere; max-width: 160px">@tip</div>'


@dataclass(frozen=True, kw_only=True)
class Series:
    """A line through (x, y), with a band from `low` to `high` where they are given; all of one length."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    label: str = ""  # in the legend in place of the name, such as "child 2.31"
    is_chance: bool = False  # drawn dashed in grey


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A value with its confidence interval, its chance level and other values to compare it with."""

    name: str
    value: float
    low: float | None = None
    high: float | None = None
    chance: float | None = None
    others: Mapping[str, float] = field(default_factory=dict)  # such as published values by model


def lines(
    title: str,
    series: Sequence[Series],
    *,
    x_title: str,
    y_title: str,
    note: str = "",
    x_range: tuple[float, float] | None = None,
    from_zero: bool = False,
    is_log: bool = False,
) -> Html:
    """Return lines over a common axis; axis titles carry the units. Points that are not finite are left out."""
    from bokeh.models import DataRange1d, NumeralTickFormatter, PrintfTickFormatter, Range1d

    drawn = [clean for one in series if (clean := _finite(one)).x]
    if not drawn:
        return Html()
    y_range = DataRange1d(start=0) if from_zero and not is_log else DataRange1d()
    plot = _plot(x_title, y_title, y_range=y_range, y_axis_type="log" if is_log else "linear")
    plot.xaxis.formatter = NumeralTickFormatter(format="0,0.[00]")
    if is_log:
        _log_ticks(plot, [y for one in drawn for ys in (one.y, one.low or [], one.high or []) for y in ys])
    elif max(abs(y) for one in drawn for y in one.y) < 1e-2:
        plot.yaxis.formatter = PrintfTickFormatter(format="%.1e")
    if x_range is not None:
        plot.x_range = Range1d(start=x_range[0], end=x_range[1])
    tips: dict[float, list[str]] = {}
    heights: dict[float, float] = {}
    colours = iter(_cycle(sum(not one.is_chance for one in drawn)))
    coloured = [(one, _QUIET if one.is_chance else next(colours)) for one in drawn]
    for one, colour in coloured:
        if one.low is not None and one.high is not None:
            plot.varea(x=one.x, y1=one.low, y2=one.high, fill_color=colour, fill_alpha=0.16)
        plot.line(x=one.x, y=one.y, line_color=colour, line_width=2, line_dash=_DASHES if one.is_chance else "solid")
        if len(one.x) <= _FEW and not one.is_chance:
            plot.scatter(x=one.x, y=one.y, fill_color=colour, line_color=None, size=6)
        for x, y in zip(one.x, one.y, strict=True):
            tips.setdefault(x, []).append(f"{one.name}: {short(y)}" if one.name else short(y))
            heights.setdefault(x, y)
    rows = ["\n".join((f"{x_title} {short(x)}", *parts)) for x, parts in tips.items()]
    _hover(plot, list(heights), list(heights.values()), rows, is_line=True)
    named = [(one.label or one.name, colour) for one, colour in coloured]
    legend = named if len(drawn) > 1 or drawn[0].label else []
    values = None
    if sum(len(one.x) for one in drawn) <= _VALUES:
        cells = [(one.name or y_title, short(x), short(y)) for one in drawn for x, y in zip(one.x, one.y, strict=True)]
        values = table(("series", x_title, y_title), cells)
    spoken = "; ".join(f"{one.label or f'{one.name} {short(one.y[-1])}'}" for one in drawn)
    return _figure(plot, title, legend, note=note, spoken=f"{y_title} over {x_title}, last: {spoken}", values=values)


def intervals(
    title: str, rows: Sequence[Interval], *, x_title: str, name: str = "", from_zero: bool = True, note: str = ""
) -> Html:
    """Return a row per value: a dot with its interval, a dashed mark at chance, coloured marks for the others.

    `name` is what the legend calls the dots. `from_zero` begins the axis at 0; otherwise a line is drawn at 0.
    """
    from bokeh.models import DataRange1d, FixedTicker, Range1d

    drawn = [row for row in rows if _is_drawable(row.value)]
    if not drawn:
        return Html()
    names = list(dict.fromkeys(other for row in drawn for other in row.others))
    colours = dict(zip(names, _cycle(len(names), start=2), strict=True))
    x_range = DataRange1d(start=0) if from_zero else DataRange1d()
    plot = _plot(
        x_title, "", x_range=x_range, y_range=Range1d(start=len(drawn) - 0.5, end=-0.5), height=70 + 30 * len(drawn)
    )
    plot.yaxis.ticker = FixedTicker(ticks=list(range(len(drawn))))
    plot.yaxis.major_label_overrides = {place: _label(row.name) for place, row in enumerate(drawn)}
    plot.ygrid.visible = False
    plot.xgrid.visible = True
    if not from_zero:
        plot.line(x=[0, 0], y=[-0.5, len(drawn) - 0.5], line_color=_INK, line_dash="dashed")
    for other in names:
        at = [(x, place) for place, row in enumerate(drawn) if _is_drawable(x := row.others.get(other))]
        _marks(plot, at, other, colour=colours[other], dash="solid")
    chances = [(row.chance, place) for place, row in enumerate(drawn) if _is_drawable(row.chance)]
    _marks(plot, chances, "chance", colour=_QUIET, dash=_DASHES)
    bars = [(r.low, r.high, place) for place, r in enumerate(drawn) if _is_drawable(r.low) and _is_drawable(r.high)]
    for low, high, place in bars:
        plot.line(x=[low, high], y=[place, place], line_color=MARK, line_width=2)
        plot.scatter(
            x=[low, high], y=[place, place], marker="dash", angle=math.pi / 2, size=12, line_color=MARK, line_width=2
        )
    values = [row.value for row in drawn]
    plot.scatter(x=values, y=list(range(len(drawn))), size=11, fill_color=MARK, line_color=None)
    _hover(plot, values, list(range(len(drawn))), [_spoken(row) for row in drawn])
    legend = [(name, MARK)] if name else []
    legend += [("chance", _QUIET)] if chances else []
    legend += list(colours.items())
    return _figure(plot, title, legend, note=note, spoken="; ".join(map(_spoken, drawn)))


def histogram(
    title: str, groups: Mapping[str, Sequence[float]], *, x_title: str, y_title: str, bins: int = 30, note: str = ""
) -> Html:
    """Return stacked counts by group over one axis with a line at 0; 0 lies between two bins, inside none."""
    from bokeh.models import BasicTicker, Range1d

    values = [value for group in groups.values() for value in group if _is_drawable(value)]
    if not values:
        return Html()
    edges = _edges(min(0.0, *values), max(0.0, *values), bins)
    width, below = edges[1] - edges[0], edges.index(0.0)
    under = [0] * (len(edges) - 1)
    plot = _plot(x_title, y_title, x_range=Range1d(start=edges[0], end=edges[-1]))
    plot.yaxis.ticker = BasicTicker(min_interval=1, desired_num_ticks=4)
    cells: list[tuple[str, str, str]] = []
    colours = dict(zip(groups, (GOOD, BAD, *COLOURS), strict=False))
    for name, group in groups.items():
        counts = [0] * len(under)
        for value in group:
            if _is_drawable(value):
                counts[min(max(math.floor(value / width) + below, 0), len(counts) - 1)] += 1
        there = [place for place, count in enumerate(counts) if count]
        tops = [under[place] + counts[place] for place in there]
        left, right = [edges[place] for place in there], [edges[place + 1] for place in there]
        tips = [f"{counts[p]:,} {name}, {x_title} {short(edges[p])} to {short(edges[p + 1])}" for p in there]
        bottoms = [under[place] for place in there]
        box: dict[str, Sequence[Any]] = {"left": left, "right": right, "bottom": bottoms, "top": tops, "tip": tips}
        bars = plot.quad(
            left="left", right="right", bottom="bottom", top="top", source=_source(box),
            fill_color=colours[name], line_color=None,
        )  # fmt: skip
        _hover_on(plot, bars)
        cells += [
            (f"{short(a)} to {short(b)}", name, f"{counts[p]:,}") for a, b, p in zip(left, right, there, strict=True)
        ]
        under = [below + count for below, count in zip(under, counts, strict=True)]
    plot.y_range = Range1d(start=0, end=1.05 * max(under))
    plot.line(x=[0, 0], y=[0, 1.05 * max(under)], line_color=_INK, line_dash="dashed")
    legend = [(f"{name} {len(group):,}", colours[name]) for name, group in groups.items()]
    spoken = ", ".join(label for label, _ in legend)
    values_table = table((x_title, "group", y_title), cells, align="llr")
    return _figure(plot, title, legend, note=note, spoken=f"{y_title} by {x_title}: {spoken}", values=values_table)


def heat_map(
    title: str, labels: Sequence[str], counts: Sequence[Sequence[float]], *, x_title: str, y_title: str, note: str = ""
) -> Html:
    """Return a square of counts, each shaded by its share of its row; green on the diagonal."""
    from bokeh.models import FixedTicker, Range1d

    count = len(labels)
    cell = 34 if count <= 12 else 15
    names = [_label(label) for label in labels]
    margin = 7 * max(map(len, names), default=0) + 60
    axis = Range1d(start=-0.5, end=count - 0.5)
    plot = _plot(
        x_title,
        y_title,
        x_range=axis,
        y_range=Range1d(start=count - 0.5, end=-0.5),
        height=round(count * cell + 0.8 * margin),
    )
    for axes in (plot.xaxis, plot.yaxis):
        axes.ticker = FixedTicker(ticks=list(range(count)))
        axes.major_label_overrides = dict(enumerate(names))
        axes.major_label_text_font_size = "11px"
    if max(map(len, names), default=0) > 2:
        plot.xaxis.major_label_orientation = math.pi / 3
    plot.ygrid.visible = False
    cells: dict[str, list[Any]] = {key: [] for key in ("x", "y", "colour", "alpha", "tip", "count")}
    for y, row in enumerate(counts):
        total = sum(row) or 1
        for x, value in enumerate(row):
            share = value / total
            alpha = 0.8 * share  # so that a count can be read on it
            tip = f"{labels[y][:80]} → {labels[x][:80]}: {short(value)} ({100 * share:.0f} %)"
            shown = short(value) if value and count <= 12 else ""
            for key, entry in zip(cells, (x, y, GOOD if x == y else BAD, alpha, tip, shown), strict=True):
                cells[key].append(entry)
    source = _source(cells)
    size = {"width": 0.94, "height": 0.94, "line_color": None, "source": source}
    plot.rect("x", "y", fill_color=_GRID, fill_alpha=0.5, **size)
    _hover_on(plot, plot.rect("x", "y", fill_color="colour", fill_alpha="alpha", **size))
    if count <= 12:
        plot.text("x", "y", "count", source=source, text_align="center", text_baseline="middle", text_font_size="12px",
                  text_color=_INK)  # fmt: skip
    note = " ".join(part for part in (note, "Shade: share of the row, 0 to 100 %.") if part)
    width = count * cell + margin
    return _figure(plot, title, [], note=note, spoken=f"{y_title} by {x_title}", width=width, is_wide=count > 12)


def _plot(x_title: str, y_title: str, *, height: int = _HEIGHT, **options: Any) -> Figure:
    """Return an empty Bokeh plot in the pages' style; it is as wide as its place and catches no scrolling."""
    from bokeh.models import BasicTicker
    from bokeh.plotting import figure

    plot = figure(
        height=height, sizing_mode="stretch_width", toolbar_location=None, tools="", outline_line_color=None,
        background_fill_color=None, border_fill_color=None, min_border_right=12, **options,
    )  # fmt: skip
    for axis, title in ((plot.xaxis, x_title), (plot.yaxis, y_title)):
        axis.axis_label = title.translate(_MATH) or None
        axis.axis_label_text_font, axis.axis_label_text_font_style = "system-ui", "normal"
        axis.axis_label_text_font_size = axis.major_label_text_font_size = "12px"
        axis.major_label_text_font = "system-ui"
        axis.axis_label_text_color = axis.major_label_text_color = _QUIET
        axis.axis_line_color = axis.major_tick_line_color = _GRID
        axis.minor_tick_line_color = None
        axis.axis_label_standoff = 4
    tickers: Any = plot.select({"type": BasicTicker})
    for ticker in tickers:
        ticker.desired_num_ticks = 4
    plot.grid.grid_line_color = _GRID
    plot.xgrid.visible = False
    return plot


def _log_ticks(plot: Figure, values: Sequence[float]) -> None:
    """Label a logarithmic axis: Bokeh's own ticks leave most of two decades without a label."""
    from bokeh.models import FixedTicker

    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    steps = (1, 2, 5) if high - low <= 2 else (1,)
    every = max(1, math.ceil((high - low) / 6))
    ticks = [step * 10.0**power for power in range(low, high + 1, every) for step in steps]
    plot.yaxis.ticker = FixedTicker(ticks=ticks)
    plot.yaxis.major_label_overrides = {tick: short(tick) for tick in ticks}


def _marks(plot: Figure, points: Sequence[tuple[float, int]], name: str, *, colour: str, dash: Any) -> None:
    """Draw upright marks at (x, row) of an interval chart, and name them when pointed at."""
    x, rows = [x for x, _ in points], [row for _, row in points]
    plot.segment(
        x0=x, x1=x, y0=[row - 0.3 for row in rows], y1=[row + 0.3 for row in rows],
        line_color=colour, line_width=3, line_dash=dash,
    )  # fmt: skip
    _hover(plot, x, rows, [f"{name}: {short(value)}" for value in x])


def _hover(plot: Figure, x: Sequence[float], y: Sequence[float], tips: Sequence[str], *, is_line: bool = False) -> None:
    """Show texts when the pointer, or a finger, is at invisible points: at any height where `is_line`."""
    source = _source({"x": x, "y": y, "tip": tips})
    if is_line and len(x) > 1:
        _hover_on(plot, plot.line("x", "y", source=source, line_alpha=0), mode="vline")
    else:
        _hover_on(plot, plot.scatter("x", "y", source=source, size=14, fill_alpha=0, line_alpha=0))


def _hover_on(plot: Figure, renderer: Any, *, mode: Literal["mouse", "vline"] = "mouse") -> None:
    from bokeh.models import HoverTool

    # Bokeh escapes what it puts in for @tip.
    plot.add_tools(HoverTool(renderers=[renderer], tooltips=_TIP, mode=mode, line_policy="nearest"))


def _source(columns: Mapping[str, Sequence[Any]]) -> Any:
    from bokeh.models import ColumnDataSource

    return ColumnDataSource({name: list(values) for name, values in columns.items()})


def _figure(
    plot: Figure,
    title: str,
    legend: Sequence[tuple[str, str]],
    *,
    note: str = "",
    spoken: str,
    values: Html | None = None,
    width: int | None = None,
    is_wide: bool = False,
) -> Html:
    """Return a plot as a figure: title and legend above, its values folded below; `width` bounds it, in pixels."""
    from bokeh.embed import json_item

    data = json.dumps(json_item(plot), separators=(",", ":"), ensure_ascii=False).replace("<", "\\u003c")
    script = Html(f'<script type="application/json">{data}</script>')
    keys = [
        tag("span", tag("i", class_="swatch", style=f"background:{c}"), label, class_="legend") for label, c in legend
    ]
    caption = tag("figcaption", tag("b", title), keys, tag("small", note) if note else None)
    style = f"max-width:{width}px" + (f";min-width:{width}px" if is_wide else "") if width else None
    drawn = tag("div", script, class_=CHART, role="img", aria_label=f"{title}: {spoken}", style=style)
    placed = tag("div", drawn, class_="scroll", tabindex=0) if is_wide else drawn
    return tag("figure", caption, placed, folded("Values", values) if values else None, class_="chart")


def _finite(series: Series) -> Series:
    """Return a series without the points that cannot be drawn, in five significant digits."""
    kept = [
        place
        for place, (x, y) in enumerate(zip(series.x, series.y, strict=True))
        if _is_drawable(x) and _is_drawable(y)
    ]

    def pick(values: Sequence[float]) -> list[float]:
        return [float(f"{values[place]:.5g}") for place in kept]

    has_band = series.low is not None and series.high is not None
    return Series(
        name=series.name,
        label=series.label,
        is_chance=series.is_chance,
        x=[float(series.x[place]) for place in kept],
        y=pick(series.y),
        low=pick(series.low) if has_band and series.low is not None else None,
        high=pick(series.high) if has_band and series.high is not None else None,
    )


def _edges(low: float, high: float, bins: int) -> list[float]:
    if high - low < 1e-12:
        low, high = -1.0, 1.0
    width = (high - low) / bins
    below, above = math.ceil(-low / width - 1e-9), math.ceil(high / width - 1e-9)
    return [place * width for place in range(-below, above + 1)]


def _is_drawable(value: float | None) -> TypeGuard[float]:
    return value is not None and math.isfinite(value) and abs(value) <= _LARGEST


def _label(label: str) -> str:
    """Return a name for an axis: on one line, cut, without what Bokeh would typeset as a formula."""
    line = " ".join(label.split())
    return (line if len(line) <= _LABEL else line[: _LABEL - 1] + "…").translate(_MATH)


def _cycle(count: int, *, start: int = 0) -> list[str]:
    return [COLOURS[(start + place) % len(COLOURS)] for place in range(count)]


def _spoken(row: Interval) -> str:
    interval = f" ({short(row.low)} to {short(row.high)})" if row.low is not None and row.high is not None else ""
    chance = f", chance {short(row.chance)}" if row.chance is not None else ""
    return f"{row.name}: {short(row.value)}{interval}{chance}"
