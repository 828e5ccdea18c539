"""Shows a run as one self-contained HTML page: its curves, its state, its configuration and environment.

    python -m hiervl_train.monitor.page RUN      makes RUN/index.html anew

The page asks for nothing outside itself. Without JavaScript it is complete; with it, pointing at a curve shows values.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import math
import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from hiervl_train.monitor.metrics import read_columns
from hiervl_train.monitor.run_folder import RunFolder
from shards import files
from shards.inspect.page import BASE_STYLE

_COLUMNS = 360  # of a curve at most: each shows mean, least and greatest of the lines that fall into it
_TICKS = 4
_LOG_FROM = 30.0  # a chart whose greatest value is so many times its median is logarithmic
_LINES = 200  # of metrics, at the end, whose speed the time left follows
_LOG_BYTES = 12_000  # of the log's end
_TEXT_BYTES = 200_000  # of the configuration at most
_LEAST, _MOST = 1e-100, 1e100  # of a chart
_SERIES = 6  # curves of a chart at most, of scores


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One chart: which metrics it shows, and how their values read."""

    title: str
    pattern: str  # of the metrics' whole names; its group, where it has one, names the curve
    note: str = ""
    unit: str = ""
    scale: float = 1.0
    from_zero: bool = False
    is_total: bool = False  # shows the sum of all lines up to a step


_PANELS = (
    Panel(title="Loss", pattern=r"loss/(.+)"),
    Panel(title="Learning rate", pattern=r"lr", from_zero=True),
    Panel(title="Gradient norm", pattern=r"grad_norm", note="before clipping"),
    Panel(title="Clips per second", pattern=r"clips_per_second", note="all devices", from_zero=True),
    Panel(title="Model FLOP utilisation", pattern=r"mfu", unit=" %", scale=100.0, from_zero=True),
    Panel(title="Time waiting for data", pattern=r"data_wait_fraction", unit=" %", scale=100.0, from_zero=True),
    Panel(title="Wait for a batch", pattern=r"wait_seconds/(.+)", unit=" s", from_zero=True),
    Panel(title="Time of a step", pattern=r"seconds_per_step", unit=" s", from_zero=True),
    Panel(title="Memory", pattern=r"memory/(.+)_gib", note="first rank", unit=" GiB", from_zero=True),
    Panel(title="Decode failures", pattern=r"data/failed/(.+)", note="so far", from_zero=True, is_total=True),
    Panel(title="Skipped steps", pattern=r"skipped_steps", note="so far", from_zero=True, is_total=True),
)
_EVALUATION = re.compile(r"eval(?:uation)?/(.+)")
# In no chart: what the axis is, and what follows from others.
_HIDDEN = re.compile(r"step|time|epoch|clips_per_second_per_gpu|data/.*")

_STYLE = (
    BASE_STYLE
    + """
:root { --s0: #b4532a; --s1: #2b6cb0; --s2: #3f8f5b; --s3: #8a5cc2; --s4: #b08a12; --s5: #5f6b7a; }
@media (prefers-color-scheme: dark) { :root {
  --s0: #e8935f; --s1: #6fb1ee; --s2: #74c690; --s3: #bb98ea; --s4: #dcbb4d; --s5: #a3afbf; } }
h1, .tile b { overflow-wrap: anywhere; } .tile b { line-height: 1.25; } .tile.bad b { color: var(--mark); }
.tiles { margin-top: 16px; } .scroll { margin: 0 0 14px; }
.bar { height: 8px; border-radius: 4px; background: var(--track); margin: 22px 0 0; overflow: hidden; }
.bar i { display: block; height: 100%; background: var(--mark); }
figure, details { background: var(--card); border: 1px solid var(--line); border-radius: 12px; }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(380px, 100%), 1fr)); gap: 16px; }
figure { margin: 0; padding: 14px 16px 12px; min-width: 0; display: flex; flex-direction: column;
  justify-content: space-between; }
figcaption { display: flex; flex-wrap: wrap; gap: 2px 14px; align-items: baseline; margin-bottom: 10px; }
figcaption b { font-weight: 650; } figcaption small { color: var(--quiet); font-size: 12.5px; }
.key { font-size: 12.5px; font-variant-numeric: tabular-nums; }
.key::before { content: ""; display: inline-block; width: 10px; height: 10px; border-radius: 3px; margin-right: 5px;
  background: var(--c); }
.plot { position: relative; height: 190px; margin: 0 0 20px 52px; touch-action: pan-y; }
.plot svg { position: absolute; inset: 0; width: 100%; height: 100%; overflow: visible; }
.plot path, .plot line { vector-effect: non-scaling-stroke; }
.plot line { stroke: var(--line); } .plot .mean { fill: none; stroke: var(--c); stroke-width: 1.6;
  stroke-linejoin: round; stroke-linecap: round; } .plot .band { fill: var(--c); opacity: 0.16; }
.plot span { position: absolute; font-size: 11.5px; color: var(--quiet); white-space: nowrap;
  font-variant-numeric: tabular-nums; }
.plot .y { right: 100%; padding-right: 8px; transform: translateY(-50%); }
.plot .x { top: 100%; padding-top: 4px; transform: translateX(-50%); }
.plot .first { transform: none; } .plot .last { transform: translateX(-100%); }
.plot .cursor { position: absolute; top: 0; bottom: 0; width: 1px; background: var(--quiet); display: none; }
.plot .tip { position: absolute; top: 0; display: none; background: var(--card); border: 1px solid var(--line);
  border-radius: 8px; padding: 6px 9px; font-size: 12px; line-height: 1.45; pointer-events: none; z-index: 1;
  white-space: nowrap; font-variant-numeric: tabular-nums; }
details { margin: 0 0 12px; padding: 0 16px; } summary { cursor: pointer; padding: 12px 0; font-weight: 600; }
pre { overflow-x: auto; margin: 0 0 14px; font: 12px/1.5 ui-monospace, "SF Mono", Menlo, Consolas, monospace; }
table { width: auto; }
th, td { text-align: left; padding: 6px 18px 6px 0; vertical-align: top; }
th { white-space: nowrap; border-top: 1px solid var(--line); } td { white-space: normal; overflow-wrap: anywhere; }
thead th { border-top: 0; }
@media (max-width: 600px) { main { padding: 24px 14px 60px; } h1 { font-size: 23px; } .tile b { font-size: 18px; }
  .tiles { grid-template-columns: repeat(2, 1fr); } }
"""
)

_SCRIPT = """
for (const plot of document.querySelectorAll(".plot")) {
  const { x, right, unit, series } = JSON.parse(plot.dataset.values);
  const cursor = plot.appendChild(document.createElement("div")); cursor.className = "cursor";
  const tip = plot.appendChild(document.createElement("div")); tip.className = "tip";
  const hide = () => { cursor.style.display = tip.style.display = "none"; };
  plot.addEventListener("pointermove", event => {
    const box = plot.getBoundingClientRect();
    const wanted = (event.clientX - box.left) / box.width * right;
    let at = 0;
    x.forEach((value, index) => { if (Math.abs(value - wanted) < Math.abs(x[at] - wanted)) at = index; });
    const place = x[at] / right * 100;
    const rows = [["step", Math.round(x[at]).toLocaleString("en")]];
    for (const { name, y } of series) if (y[at] !== null) rows.push([name || "value", y[at] + unit]);
    tip.replaceChildren(...rows.map(([name, value]) => {
      const row = document.createElement("div"); row.textContent = name + " " + value; return row; }));
    cursor.style.display = tip.style.display = "block";
    cursor.style.left = place + "%";
    tip.style.left = place < 50 ? "calc(" + place + "% + 8px)" : "auto";
    tip.style.right = place < 50 ? "auto" : "calc(" + (100 - place) + "% + 8px)";
  });
  plot.addEventListener("pointerleave", hide);
}
"""


@dataclass(kw_only=True)
class Curve:
    """One metric over steps, made narrow: for each column its mean, least and greatest value; NaN where it has none."""

    name: str
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    last: float


@dataclass(kw_only=True)
class Chart:
    """Curves over the same columns of steps."""

    x: np.ndarray
    curves: list[Curve] = field(default_factory=list)


def write_page(folder: str | os.PathLike[str]) -> Path:
    """Write `index.html` of a run's folder anew, atomically, from what is in the folder; return its path."""
    run = RunFolder(folder)
    files.write_bytes(run.page, render(run).encode())
    return run.page


def render(run: RunFolder) -> str:
    """Return the page of a run; what is missing or damaged in the folder is left out of it."""
    columns = read_columns(run)
    environment, status = _read_json(run.environment), _read_json(run.status)
    name = run.path.resolve().name
    body = [
        f"<h1>{_text(name)}</h1>",
        _state(run, columns, environment, status),
        "<h2>Curves</h2>",
        _charts(columns, str(environment.get("mfu_denominator") or "")),
        "<h2>The run</h2>",
        _folded("Configuration", _read_text(run.config)),
        _environment(environment),
        _folded("End of the log", _read_end(run.log)),
    ]
    # Nothing is fetched, and no script runs but ours.
    script = base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{script}'"
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{_text(name)}</title><style>{_STYLE}</style></head>"
        f"<body><main>{''.join(body)}</main><script>{_SCRIPT}</script></body></html>\n"
    )


def _state(
    run: RunFolder, columns: Mapping[str, np.ndarray], environment: Mapping[str, Any], status: Mapping[str, Any]
) -> str:
    steps = columns.get("step", np.zeros(0))
    step = int(steps[-1]) if len(steps) else 0
    step = max(step, _whole(status.get("step")) or 0)
    total = _whole(status.get("total")) or _whole(environment.get("total_steps"))
    skipped, samples = (_total(columns.get(name, np.zeros(0))) for name in ("skipped_steps", "data/samples"))
    failed = {name: _total(values) for name, values in columns.items() if name.startswith("data/failed/")}
    checkpoints = sorted(path.name for path in _listed(run.checkpoints) if re.fullmatch(r"step-\d+", path.name))
    tiles = [(f"{step:,}", f"of {total:,} steps" if total else "steps", False)]
    if status.get("state"):
        reason = str(status.get("reason") or "")
        tiles.append((str(status["state"]), reason[:300] or "state", status["state"] == "failed"))
    left = _seconds_left(columns, step, total)
    if left is not None and status.get("state", "running") == "running":
        tiles.append((_duration(left), "left", False))
    tiles += [(_significant(value), label, False) for value, label in _latest(columns)]
    tiles.append((f"{int(checkpoints[-1][5:]):,}" if checkpoints else "none", "last checkpoint’s step", False))
    tiles.append((f"{skipped:,}", "steps skipped", skipped > 0))
    count = sum(failed.values())
    reasons = ", ".join(f"{name.removeprefix('data/failed/')} {value:,}" for name, value in failed.items() if value)
    of = f" of {samples:,} samples" if samples else ""
    tiles.append((f"{count:,}", f"decode failures{of}{f': {reasons}' if reasons else ''}", count > 0))
    share = 100 * min(step / total, 1.0) if total else 0.0
    bar = f'<div class="bar"><i style="width:{share:.2f}%"></i></div>' if total else ""
    times = columns.get("time", np.zeros(0))
    when = f"Last line of metrics {_moment(float(times[-1]))}, " if len(times) else "No metrics yet, "
    shown = "".join(
        f'<div class="tile{" bad" if is_bad else ""}"><b>{_text(value)}</b><span>{_text(label)}</span></div>'
        for value, label, is_bad in tiles
    )
    return f'<div class="quiet">{when}page made {_moment(time.time())}</div>{bar}<div class="tiles">{shown}</div>'


def _latest(columns: Mapping[str, np.ndarray]) -> list[tuple[float, str]]:
    """Return the newest values of what one looks for first, with labels."""
    wanted = [(name, f"{name.removeprefix('loss/')} loss") for name in columns if name.startswith("loss/")]
    wanted += [("clips_per_second", "clips a second"), ("epoch", "epochs")]
    found = []
    for name, label in wanted:
        values = columns.get(name, np.zeros(0))
        values = values[np.isfinite(values)]
        if len(values):
            found.append((float(values[-1]), label))
    return found


def _total(counts: np.ndarray) -> int:
    return int(np.nansum(_plottable(counts)))


def _seconds_left(columns: Mapping[str, np.ndarray], step: int, total: int | None) -> float | None:
    seconds = columns.get("seconds_per_step", np.zeros(0))[-_LINES:]
    seconds = _plottable(seconds)
    seconds = seconds[np.isfinite(seconds)]
    if total is None or not len(seconds):
        return None
    return float(np.mean(seconds)) * max(total - step, 0)


def _charts(columns: Mapping[str, np.ndarray], denominator: str) -> str:
    """Return all charts: the known ones in their order, scores by benchmark, then what else was written."""
    left = [name for name in columns if not _HIDDEN.fullmatch(name) or name.startswith("data/failed/")]
    charts = []
    for panel in _PANELS:
        names = [name for name in left if re.fullmatch(panel.pattern, name)]
        left = [name for name in left if name not in names]
        note = f"of {denominator}" if panel.pattern == "mfu" and denominator else panel.note
        charts.append(_panel(columns, names, panel, note))
    scores: dict[str, list[str]] = {}
    for name in left:
        if found := _EVALUATION.fullmatch(name):
            scores.setdefault(found[1].rpartition("/")[0], []).append(name)
    for benchmark, names in scores.items():
        for part in (names[start : start + _SERIES] for start in range(0, len(names), _SERIES)):
            prefix = part[0].rpartition("/")[0] + "/"  # all of a benchmark have the same
            title = f"Evaluation: {benchmark}" if benchmark else "Evaluation"
            charts.append(_panel(columns, part, Panel(title=title, pattern=re.escape(prefix) + "(.+)"), ""))
    for name in left:
        if not _EVALUATION.fullmatch(name):
            charts.append(_panel(columns, [name], Panel(title=name, pattern=re.escape(name)), ""))
    shown = "".join(charts)
    return f'<div class="grid">{shown}</div>' if shown else '<p class="quiet">Nothing was written yet.</p>'


def _panel(columns: Mapping[str, np.ndarray], names: Sequence[str], panel: Panel, note: str) -> str:
    """Return one chart as a figure; nothing where no metric of it has a value."""
    if not names:
        return ""
    steps, values = columns["step"], {name: _plottable(columns[name]) * panel.scale for name in names}
    if panel.is_total:
        values = {name: np.cumsum(np.nan_to_num(column)) for name, column in values.items()}
    chart = _narrow(steps, values)
    if not chart.curves:
        return ""
    for curve in chart.curves:
        found = re.fullmatch(panel.pattern, curve.name)
        curve.name = (found[1] if found and found.groups() else "").replace("_", " ")
    low, high, is_log = _range(chart, from_zero=panel.from_zero)
    right = max(float(steps.max()), 1.0)  # all charts of a run have one axis
    x = chart.x / right * 1000

    def height(values: np.ndarray) -> np.ndarray:
        shown = np.log10(np.maximum(values, 1e-300)) if is_log else values
        return 1000 * (1 - (shown - low) / (high - low))

    ticks = _ticks(low, high, is_log=is_log)
    places = height(np.array(ticks))
    grid = "".join(f'<line x1="0" x2="1000" y1="{y:.0f}" y2="{y:.0f}"/>' for y in places)
    paths = "".join(_paths(x, curve, height, index) for index, curve in enumerate(chart.curves))
    labels = "".join(
        f'<span class="y" style="top:{y / 10:.1f}%">{_tick_text(value)}</span>'
        for value, y in zip(ticks, places, strict=True)
    )
    labels += '<span class="x first" style="left:0">0</span>'
    labels += f'<span class="x last" style="left:100%">{round(right):,}</span>'
    legend = [f"{curve.name} {_significant(curve.last)}{panel.unit}".strip() for curve in chart.curves]
    keys = "".join(
        f'<span class="key" style="--c:var(--s{index % 6})">{_text(entry)}</span>' for index, entry in enumerate(legend)
    )
    notes = ", ".join(part for part in (note, "logarithmic" if is_log else "") if part)
    label = f"{panel.title} over steps; last: {', '.join(legend)}"
    return (
        f"<figure><figcaption><b>{_text(panel.title)}</b>{keys}{f'<small>{_text(notes)}</small>' if notes else ''}"
        f'</figcaption><div class="plot" data-values="{_text(_values(chart, right, panel.unit))}">'
        f'<svg viewBox="0 0 1000 1000" preserveAspectRatio="none" role="img" '
        f'aria-label="{_text(label)}">{grid}{paths}</svg>{labels}</div></figure>'
    )


def _plottable(values: np.ndarray) -> np.ndarray:
    """Return values without those that sums and logarithms of float64 cannot take."""
    values = np.where(np.abs(values) < _LEAST, 0.0, values)
    return np.where(np.abs(values) <= _MOST, values, np.nan)


def _narrow(steps: np.ndarray, values: Mapping[str, np.ndarray]) -> Chart:
    """Return curves of at most `_COLUMNS` columns: each step's own where they are few, equal widths of steps else."""
    has_value = np.logical_or.reduce([np.isfinite(column) for column in values.values()])
    steps = steps[has_value]
    if not len(steps):
        return Chart(x=steps)
    x, column_of = np.unique(steps, return_inverse=True)
    if len(x) > _COLUMNS:
        edges = np.linspace(x[0], x[-1], _COLUMNS + 1)
        column_of = np.clip(np.searchsorted(edges, steps, side="right") - 1, 0, _COLUMNS - 1)
        x = (edges[:-1] + edges[1:]) / 2
        x[0], x[-1] = edges[0], edges[-1]
    chart = Chart(x=x)
    for name, all_values in values.items():
        column = all_values[has_value]
        is_finite = np.isfinite(column)
        if not is_finite.any():
            continue
        places, column = column_of[is_finite], column[is_finite]
        count, total = np.bincount(places, minlength=len(x)), np.bincount(places, column, minlength=len(x))
        low, high = np.full(len(x), np.inf), np.full(len(x), -np.inf)
        np.minimum.at(low, places, column)
        np.maximum.at(high, places, column)
        is_empty = count == 0
        low[is_empty] = high[is_empty] = np.nan
        mean = np.where(is_empty, np.nan, total / np.maximum(count, 1))
        chart.curves.append(Curve(name=name, mean=mean, low=low, high=high, last=float(column[-1])))
    return chart


def _range(chart: Chart, *, from_zero: bool) -> tuple[float, float, bool]:
    """Return what the axis spans, in powers of ten where it is logarithmic, and whether it is."""
    lows = np.concatenate([curve.low for curve in chart.curves])
    highs = np.concatenate([curve.high for curve in chart.curves])
    low, high = float(np.nanmin(lows)), float(np.nanmax(highs))
    middle = float(np.nanmedian(np.concatenate([curve.mean for curve in chart.curves])))
    if low > 0 and not from_zero and high > _LOG_FROM * middle:
        return math.floor(math.log10(low)), math.ceil(math.log10(high) + 1e-9), True
    if from_zero and low >= 0:
        low, high = 0.0, high or 1.0
    elif high - low <= 1e-9 * max(abs(high), abs(low), 1e-12):
        pad = abs(high) * 0.1 or 1.0
        low, high = low - pad, high + pad
    step = _nice((high - low) / _TICKS)
    return math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step, False


def _nice(step: float) -> float:
    """Return the smallest 1, 2, 2.5 or 5 times a power of ten that is no smaller than `step`."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= step * (1 - 1e-9))


def _ticks(low: float, high: float, *, is_log: bool) -> list[float]:
    if is_log:
        apart = max(1, math.ceil((high - low) / _TICKS))
        return [10.0**power for power in range(int(low), int(high) + 1, apart)]
    step = _nice((high - low) / (_TICKS + 1))
    return [low + index * step for index in range(round((high - low) / step) + 1)]


def _paths(x: np.ndarray, curve: Curve, height: Any, index: int) -> str:
    """Return a curve: its mean as a line, and a band from the least to the greatest where they differ."""
    has_value = np.isfinite(curve.mean)
    at, mean = x[has_value], height(curve.mean[has_value])
    low, high = height(curve.low[has_value]), height(curve.high[has_value])
    colour = f'style="--c:var(--s{index % 6})"'
    band = ""
    if np.any(low - high > 1.0):
        there = [*zip(at, high, strict=True), *zip(at[::-1], low[::-1], strict=True)]
        band = f'<path class="band" {colour} d="{_path(there)}Z"/>'
    if len(at) == 1:  # a point: a line without length, whose round ends show
        return f'<path class="mean" {colour} style="stroke-width:7" d="{_path([(at[0], mean[0])])}h0"/>'
    return f'{band}<path class="mean" {colour} d="{_path(list(zip(at, mean, strict=True)))}"/>'


def _path(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:.0f} {y:.0f}" for x, y in points)


def _values(chart: Chart, right: float, unit: str) -> str:
    """Return what pointing at a chart shows, as JSON."""
    series = [{"name": curve.name, "y": [_short(value) for value in curve.mean.tolist()]} for curve in chart.curves]
    values = {"x": [round(x) for x in chart.x.tolist()], "right": right, "unit": unit, "series": series}
    return json.dumps(values, separators=(",", ":"), allow_nan=False, ensure_ascii=False)


def _short(value: float) -> float | None:
    return float(f"{value:.5g}") if math.isfinite(value) else None


def _environment(environment: Mapping[str, Any]) -> str:
    if not environment:
        return ""
    rows = []
    for name, value in environment.items():
        if name == "starts":
            continue
        if isinstance(value, dict):
            value = ", ".join(f"{key} {item}" for key, item in value.items())
        elif isinstance(value, list):
            value = " ".join(map(str, value))
        rows.append(f"<tr><th>{_text(name)}</th><td>{_text(str(value))}</td></tr>")
    starts = environment.get("starts")
    listed = [start for start in starts if isinstance(start, dict)] if isinstance(starts, list) else []
    names = ("time", "is_resumed", "config", "revision", "world_size", "hostnames", "job")
    head = "".join(f"<th>{_text(name.replace('_', ' '))}</th>" for name in names)
    lines = "".join(
        "<tr>" + "".join(f"<td>{_text(_plain(start.get(name)))}</td>" for name in names) + "</tr>" for start in listed
    )
    return (
        f'<details><summary>Environment</summary><div class="scroll"><table>{"".join(rows)}</table></div></details>'
        f"<details><summary>Started {_times(len(listed))}</summary>"
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead>{lines}</table></div></details>'
    )


def _plain(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return (
        {None: "", True: "yes", False: "no"}.get(value, str(value))
        if value is None or isinstance(value, bool)
        else str(value)
    )


def _times(count: int) -> str:
    return {1: "once", 2: "twice"}.get(count, f"{count} times")


def _folded(title: str, content: str) -> str:
    return f"<details><summary>{_text(title)}</summary><pre>{_text(content)}</pre></details>" if content else ""


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")[:_TEXT_BYTES]
    except FileNotFoundError:
        return ""


def _read_end(path: Path) -> str:
    """Return the last lines of a file."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(size - _LOG_BYTES, 0))
            text = file.read().decode(errors="replace")
    except FileNotFoundError:
        return ""
    return text.partition("\n")[2] if size > _LOG_BYTES else text


def _listed(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []


def _whole(value: Any) -> int | None:
    return value if type(value) is int else None


def _tick_text(value: float) -> str:
    return f"{value:,.6g}" if value == 0 or 1e-3 <= abs(value) < 1e6 else f"{value:.1e}".replace(".0e", "e")


def _significant(value: float) -> str:
    """Return a number as one reads it: four significant digits, thousands apart."""
    if not math.isfinite(value):
        return "not finite"
    if value and not 1e-3 <= abs(value) < 1e9:
        return f"{value:.3g}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _duration(seconds: float) -> str:
    return str(timedelta(seconds=round(min(max(seconds, 0.0), 1e11))))


def _moment(seconds: float) -> str:
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (ValueError, OverflowError, OSError):
        return "at an unknown time"


def _text(value: str) -> str:
    return escape(value, quote=True)


def main() -> None:
    """Make the page of the run named on the command line."""
    parser = argparse.ArgumentParser(description="Make a run's page anew.")
    parser.add_argument("run", type=Path, help="the run's folder")
    folder = parser.parse_args().run
    if not folder.is_dir():
        parser.error(f"{folder}: there is no such folder")
    print(write_page(folder))


if __name__ == "__main__":
    main()
