"""Draws figures as inline SVG that takes its colours from the page: scores, curves, histograms and heat maps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from eval.report.document import text

_WIDTH, _HEIGHT = 340, 200  # of a chart, in its own units; the page scales it
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 10, 10, 30
_LABEL = 22  # characters of a label
MAX_CELLS = 40  # rows of a heat map: more cannot be told apart


@dataclass(frozen=True, kw_only=True)
class Dot:
    """A score on a strip: its value and interval, and what others published."""

    value: float
    low: float | None
    high: float | None
    published: Mapping[str, float]


def strip(dot: Dot, names: Sequence[str], top: float) -> str:
    """Return a score as a dot with whiskers on an axis from 0 to `top`, beside a mark for each published figure.

    `names` are all that were published on the page: a name's place among them is its colour.
    """

    def x(value: float) -> str:
        return f"{2 + 96 * min(max(value / top, 0.0), 1.0):.2f}%"

    parts = [f'<line class="axis" x1="{x(0)}" x2="{x(top)}" y1="16" y2="16"/>']
    for step in range(5):
        place = x(top * step / 4)
        parts.append(f'<line class="tick" x1="{place}" x2="{place}" y1="12" y2="20"/>')
    for name, value in dot.published.items():
        if math.isfinite(value):
            title = f"<title>{text(name)}: {value:.1f}</title>"
            place = f'x1="{x(value)}" x2="{x(value)}" y1="4" y2="28"'
            parts.append(f'<line class="published c{names.index(name) % 6}" {place}>{title}</line>')
    if math.isfinite(dot.value):
        if dot.low is not None and dot.high is not None:
            low, high = x(dot.low), x(dot.high)
            parts.append(f'<line class="whisker" x1="{low}" x2="{high}" y1="16" y2="16"/>')
            parts += [f'<line class="whisker" x1="{end}" x2="{end}" y1="11" y2="21"/>' for end in (low, high)]
        interval = f" ({dot.low:.1f} to {dot.high:.1f})" if dot.low is not None and dot.high is not None else ""
        title = f"<title>{dot.value:.1f}{interval}</title>"
        parts.append(f'<circle class="value" cx="{x(dot.value)}" cy="16" r="6">{title}</circle>')
    return f'<svg class="strip" width="100%" height="32" role="img">{"".join(parts)}</svg>'


def scale(top: float) -> str:
    """Return the numbers below strips of an axis from 0 to `top`."""
    places = ((2, "start", 0.0), (50, "middle", top / 2), (98, "end", top))
    labels = "".join(f'<text x="{x}%" y="12" text-anchor="{anchor}">{short(v)}</text>' for x, anchor, v in places)
    return f'<svg class="strip" width="100%" height="16" aria-hidden="true">{labels}</svg>'


def curve(name: str, points: Sequence[tuple[float, float]]) -> str:
    """Return a curve through (x, y) points; points that are not finite are left out."""
    finite = [(float(x), float(y)) for x, y in points if math.isfinite(x) and math.isfinite(y)]
    if not finite:
        return ""
    xs, ys = [x for x, _ in finite], [y for _, y in finite]
    left, right = min(xs), max(xs)
    low, high = min(0.0, *ys), max(ys)
    right, high = (right if right > left else left + 1), (high if high > low else low + 1)
    places = [_place((x - left) / (right - left), (y - low) / (high - low)) for x, y in finite]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    dots = ""
    if len(places) <= 30:
        dots = "".join(
            f'<circle class="point" cx="{x:.1f}" cy="{y:.1f}" r="2.5"><title>{short(a)}: {short(b)}</title></circle>'
            for (x, y), (a, b) in zip(places, finite, strict=True)
        )
    body = f'<polyline class="curve" points="{line}"/>{dots}'
    return _chart(name, body, (short(left), short(right)), (short(low), short(high)))


def histogram(name: str, right: Sequence[float], wrong: Sequence[float], *, bins: int = 30) -> str:
    """Return the stacked counts of margins of right and of wrong answers, over one axis that shows where 0 is."""
    both = [*right, *wrong]
    if not both:
        return ""
    low, high = min(0.0, *both), max(0.0, *both)
    if high - low < 1e-12:
        low, high = -1.0, 1.0
    # 0 lies between two bins, so that none holds right and wrong ones.
    width = (high - low) / bins
    below, above = math.ceil(-low / width - 1e-9), math.ceil(high / width - 1e-9)
    low, high, bins = -below * width, above * width, below + above
    counts = [[0, 0] for _ in range(bins)]
    for part, values in enumerate((right, wrong)):
        for value in values:
            counts[min(int((value - low) / (high - low) * bins), bins - 1)][part] += 1
    top = max(sum(pair) for pair in counts)
    bars = []
    for index, (good, bad) in enumerate(counts):
        under = 0
        for kind, count in (("good", good), ("bad", bad)):
            if count:
                x0, y0 = _place(index / bins, (under + count) / top)
                x1, y1 = _place((index + 1) / bins, under / top)
                span = f"{short(low + (high - low) * index / bins)} to {short(low + (high - low) * (index + 1) / bins)}"
                title = f"<title>{count:,} {'right' if kind == 'good' else 'wrong'}, margin {span}</title>"
                size = f'width="{x1 - x0 - 0.6:.1f}" height="{y1 - y0:.1f}"'
                bars.append(f'<rect class="{kind}" x="{x0:.1f}" y="{y0:.1f}" {size}>{title}</rect>')
                under += count
    zero, bottom = _place((0 - low) / (high - low), 0)
    bars.append(f'<line class="zero" x1="{zero:.1f}" x2="{zero:.1f}" y1="{_TOP}" y2="{bottom:.1f}"/>')
    return _chart(name, "".join(bars), (short(low), short(high)), ("0", f"{top:,}"))


def heat_map(
    labels: Sequence[str], counts: Sequence[Sequence[float]], *, rows: str, columns: str, note: str = ""
) -> str:
    """Return a matrix of counts, each row's shades relative to its sum; `rows` and `columns` say what they are."""
    count = len(labels)
    cell = 26.0 if count <= 12 else 14.0
    space = 16 + 6.5 * max((min(len(label), _LABEL) for label in labels), default=0)
    parts = []
    for i, row in enumerate(counts):
        total = sum(row) or 1
        label = (
            f'<text x="{space - 6:.0f}" y="{i * cell + cell / 2 + 4:.0f}" text-anchor="end">{_cut(labels[i])}</text>'
        )
        parts.append(label)
        for j, value in enumerate(row):
            share = value / total
            kind = "good" if i == j else "bad"
            place = f'x="{space + j * cell:.0f}" y="{i * cell:.0f}" width="{cell - 1}" height="{cell - 1}"'
            title = (
                f"<title>{_cut(labels[i], 60)} → {_cut(labels[j], 60)}: {short(value)} ({100 * share:.0f} %)</title>"
            )
            parts.append(f'<rect class="empty" {place}/>')
            parts.append(f'<rect class="{kind}" fill-opacity="{share:.3f}" {place}>{title}</rect>')
            if count <= 12 and value:
                x, y = space + (j + 0.5) * cell, (i + 0.5) * cell + 4
                parts.append(f'<text class="count" x="{x:.0f}" y="{y:.0f}" text-anchor="middle">{short(value)}</text>')
    bottom = count * cell
    for j in range(count):
        x, y = space + (j + 0.5) * cell + 3, bottom + 8
        turned = f'transform="rotate(-60 {x:.0f} {y:.0f})"'
        parts.append(f'<text x="{x:.0f}" y="{y:.0f}" text-anchor="end" {turned}>{_cut(labels[j])}</text>')
    width, height = space + count * cell + 4, bottom + space * 0.9
    return (
        f'<figure class="heat"><svg viewBox="0 0 {width:.0f} {height:.0f}" style="width:{width:.0f}px" role="img">'
        f"{''.join(parts)}</svg><figcaption>{text(note)}Rows: {text(rows)}. Columns: {text(columns)}. "
        "Each row's shades add up to one.</figcaption></figure>"
    )


def short(value: float) -> str:
    """Return a number in at most four digits, as an axis carries it."""
    if float(value).is_integer() and abs(value) < 1e6:
        return f"{int(value):,}"
    return f"{value:.3g}"


def _place(x: float, y: float) -> tuple[float, float]:
    """Return where in the chart lies what is x and y, 0 to 1, along its axes."""
    return _LEFT + x * (_WIDTH - _LEFT - _RIGHT), _HEIGHT - _BOTTOM - y * (_HEIGHT - _TOP - _BOTTOM)


def _chart(name: str, body: str, x_ends: tuple[str, str], y_ends: tuple[str, str]) -> str:
    (x0, y0), (x1, y1) = _place(0, 0), _place(1, 1)
    axes = f'<path class="axis" d="M{x0:.0f} {y1:.0f}V{y0:.0f}H{x1:.0f}"/>'
    labels = (
        f'<text x="{x0:.0f}" y="{y0 + 18:.0f}">{x_ends[0]}</text>'
        f'<text x="{x1:.0f}" y="{y0 + 18:.0f}" text-anchor="end">{x_ends[1]}</text>'
        f'<text x="{x0 - 6:.0f}" y="{y0:.0f}" text-anchor="end">{y_ends[0]}</text>'
        f'<text x="{x0 - 6:.0f}" y="{y1 + 8:.0f}" text-anchor="end">{y_ends[1]}</text>'
    )
    return (
        f'<figure class="chart"><svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img">{axes}{body}{labels}</svg>'
        f'<figcaption dir="auto">{text(name)}</figcaption></figure>'
    )


def _cut(label: str, length: int = _LABEL) -> str:
    return text(label if len(label) <= length else label[: length - 1] + "…")
