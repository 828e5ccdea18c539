"""Shows a training run as an HTML page: its state, its most important curves, and its configuration.

    python -m hiervl_train.monitor.page RUN      writes RUN/index.html again

TensorBoard (`tensorboard --logdir RUN`) has all other metrics.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from configs.cli import Command, Request
from hiervl_train.monitor.metrics import read_columns
from hiervl_train.monitor.phases import PHASES
from hiervl_train.monitor.run_folder import RunFolder
from shards.html import charts
from shards.html import page as html_page
from shards.html.elements import Html, folded, heading, short, table, tag, text, tile, tiles

_COLUMNS = 300  # points of a curve at most: the mean, least and greatest value of the lines that fall into each
_LOG_FROM = 30.0  # an axis is logarithmic if the greatest value is this many times the median
_RECENT = 200  # last lines of metrics, whose speed gives the time left
_TEXT_BYTES = 200_000  # shown of the configuration
_LEAST, _MOST = 1e-100, 1e100  # magnitudes that are drawn
_SERIES = 6  # curves per chart of scores: there are as many colours


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One chart: the metrics it shows and how their values read."""

    title: str
    pattern: str  # of whole metric names; its group, if any, names the curve
    y_title: str  # with the unit
    note: str = ""
    scale: float = 1.0
    from_zero: bool = False


_PANELS = (
    Panel(title="Loss", pattern=r"loss(?:/(.+))?", y_title="loss (nats)"),
    Panel(title="Learning rate", pattern=r"lr", y_title="learning rate", from_zero=True),
    Panel(title="Gradient norm", pattern=r"grad_norm", y_title="L2 norm", note="before clipping"),
    Panel(title="Throughput", pattern=r"clips_per_second", y_title="clips/s", note="all devices", from_zero=True),
    Panel(title="Model FLOP utilisation", pattern=r"mfu", y_title="share of peak (%)", scale=100.0, from_zero=True),
    Panel(
        title="Time waiting for data",
        pattern=r"data_wait_fraction",
        y_title="share of time (%)",
        scale=100.0,
        from_zero=True,
    ),
)
_TIME = re.compile(r"time/([^/]+)/([^/]+)")  # step type, phase
_CHANCE = "chance"  # eval/chance/<name> is the chance level of eval/<name>
_SCORE = re.compile(r"eval(?:uation)?/(?:(.+)/)?([^/]+)")  # benchmark, score


def write_page(folder: str | os.PathLike[str]) -> Path:
    """Write `index.html` of a run's folder from what is in the folder, atomically; return its path."""
    run = RunFolder(folder)
    return html_page.write_page(run.page, run.path.resolve().name, render(run))


def render(run: RunFolder) -> list[object]:
    """Return the body of a run's page; missing or damaged files are left out."""
    columns = read_columns(run)
    environment, status = _read_json(run.environment), _read_json(run.status)
    configuration = _read_text(run.config)
    figures = _charts(columns, str(environment.get("mfu_denominator") or ""))
    return [
        tag("h1", run.path.resolve().name),
        _state(run, columns, environment, status),
        heading("Curves", "TensorBoard has all metrics"),
        tag("div", figures, class_="charts") if figures else tag("p", "No metrics yet.", class_="quiet"),
        *_times(columns),
        heading("The run"),
        folded("Configuration", tag("pre", text(configuration, limit=_TEXT_BYTES))) if configuration else None,
    ]


def _state(
    run: RunFolder, columns: Mapping[str, np.ndarray], environment: Mapping[str, Any], status: Mapping[str, Any]
) -> list[Html]:
    """Return when the page was made, how far the run is, and its newest values."""
    steps = columns.get("step", np.zeros(0))
    step = int(steps[-1]) if len(steps) else 0
    step = max(step, _whole(status.get("step")) or 0)
    total = _whole(status.get("total")) or _whole(environment.get("total_steps"))
    skipped, samples = (_total(columns.get(name, np.zeros(0))) for name in ("skipped_steps", "data/samples"))
    failed = {name: _total(values) for name, values in columns.items() if name.startswith("data/failed/")}
    checkpoints = sorted(path.name for path in _listed(run.checkpoints) if re.fullmatch(r"step-\d+", path.name))
    shown = [tile(f"{step:,}", f"of {total:,} steps" if total else "steps")]
    if status.get("state"):
        state, reason = str(status["state"]), str(status.get("reason") or "")
        shown.append(tile(state, reason[:300] or "state", tone="bad" if state == "failed" else ""))
    left = _seconds_left(columns, step, total)
    if left is not None and status.get("state", "running") == "running":
        shown.append(tile(_duration(left), "left"))
    shown += [tile(short(value), label) for value, label in _latest(columns)]
    shown.append(tile(f"{int(checkpoints[-1][5:]):,}" if checkpoints else "none", "last checkpoint’s step"))
    shown.append(tile(f"{skipped:,}", "steps skipped", tone="bad" if skipped else ""))
    count = sum(failed.values())
    reasons = ", ".join(f"{name.removeprefix('data/failed/')} {value:,}" for name, value in failed.items() if value)
    of = f" of {samples:,} samples" if samples else ""
    label = f"decode failures{of}{f': {reasons}' if reasons else ''}"
    shown.append(tile(f"{count:,}", label, tone="bad" if count else ""))
    times = columns.get("time", np.zeros(0))
    when = f"Last metrics {_moment(float(times[-1]))}, " if len(times) else "No metrics yet, "
    parts = [tag("div", f"{when}page written {_moment(time.time())}", class_="quiet")]
    if total:
        bar = tag("i", style=f"width:{100 * min(step / total, 1.0):.2f}%")
        parts.append(tag("div", bar, class_="progress", role="progressbar", aria_valuenow=step, aria_valuemax=total))
    return [*parts, tiles(shown)]


def _latest(columns: Mapping[str, np.ndarray]) -> list[tuple[float, str]]:
    """Return the newest values of the most important metrics, with labels."""
    wanted = [(name, f"{name.removeprefix('loss/')} loss") for name in columns if name.startswith("loss/")]
    wanted += [("clips_per_second", "clips per second"), ("epoch", "epochs")]
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
    seconds = columns.get("seconds_per_step", np.zeros(0))[-_RECENT:]
    seconds = _plottable(seconds)
    seconds = seconds[np.isfinite(seconds)]
    if total is None or not len(seconds):
        return None
    return float(np.mean(seconds)) * max(total - step, 0)


def _charts(columns: Mapping[str, np.ndarray], peak: str) -> list[Html]:
    """Return the charts of the panels, then those of scores by benchmark; `peak` is what utilisation is a share of."""
    figures = []
    for panel in _PANELS:
        names = [name for name in columns if re.fullmatch(panel.pattern, name)]
        note = f"of {peak}" if panel.pattern == "mfu" and peak else panel.note
        figures.append(_chart(columns, names, panel, note))
    scores: dict[str, list[str]] = {}
    for name in columns:
        found = _SCORE.fullmatch(name)
        if found and found[1] != _CHANCE and not (found[1] or "").startswith(f"{_CHANCE}/"):
            scores.setdefault(found[1] or "", []).append(name)
    for benchmark, names in scores.items():
        title = f"Evaluation: {benchmark}" if benchmark else "Evaluation"
        panel = Panel(title=title, pattern=_SCORE.pattern, y_title="score (%)", from_zero=True)
        for start in range(0, len(names), _SERIES):
            figures.append(_chart(columns, names[start : start + _SERIES], panel, ""))
    return [figure for figure in figures if figure]


def _times(columns: Mapping[str, np.ndarray]) -> list[Html]:
    """Return the time report: seconds of a step of each type by phase, means over the last lines of metrics."""
    found: dict[str, dict[str, float]] = {}
    for name, values in columns.items():
        match = _TIME.fullmatch(name)
        values = _plottable(values[-_RECENT:])
        values = values[np.isfinite(values)]
        if match and len(values):
            found.setdefault(match[1], {})[match[2]] = float(np.mean(values))
    if not found:
        return []
    totals = {step_type: max(sum(seconds.values()), 1e-12) for step_type, seconds in found.items()}
    rows = [
        [phase, *(_share(found[step_type].get(phase), totals[step_type]) for step_type in found)]
        for phase in PHASES
        if any(phase in seconds for seconds in found.values())
    ]
    rows.append(["sum", *(f"{1000 * total:,.1f} ms" for total in totals.values())])
    head = ["phase", *(f"{step_type} step" for step_type in found)]
    return [heading("Time of a step", f"by phase, first rank, last {_RECENT} lines at most"), table(head, rows)]


def _share(seconds: float | None, total: float) -> str:
    return "–" if seconds is None else f"{1000 * seconds:,.1f} ms · {100 * seconds / total:.0f} %"


def _chart(columns: Mapping[str, np.ndarray], names: Sequence[str], panel: Panel, note: str) -> Html:
    """Return one chart, empty if none of its metrics has a value. All charts of a run have the same x axis."""
    if not names:
        return Html()
    series = []
    for name in names:
        found = re.fullmatch(panel.pattern, name)
        label = (found[found.lastindex] if found and found.lastindex else "").replace("_", " ")
        series += _series(label, columns["step"], columns[name] * panel.scale)
    series += _chance(columns, names)
    values = np.concatenate([one.y for one in series if not one.is_chance] or [[]])
    lows = np.concatenate([one.low or one.y for one in series] or [[]])
    highs = np.concatenate([one.high or one.y for one in series] or [[]])
    is_log = (
        bool(len(values)) and not panel.from_zero and lows.min() > 0 and highs.max() > _LOG_FROM * np.median(values)
    )
    return charts.lines(
        panel.title,
        series,
        x_title="step",
        y_title=panel.y_title,
        note=", ".join(part for part in (note, "logarithmic" if is_log else "") if part),
        x_range=(0.0, 1.01 * max(float(columns["step"].max()), 1.0)),
        from_zero=panel.from_zero and bool(len(lows)) and lows.min() >= 0,
        is_log=is_log,
    )


def _chance(columns: Mapping[str, np.ndarray], names: Sequence[str]) -> list[charts.Series]:
    """Return the chance levels of scores, each once, as lines over the whole run."""
    levels: dict[float, None] = {}
    for name in names:
        found = re.fullmatch(r"(eval(?:uation)?)/(.+)", name)
        values = columns.get(f"{found[1]}/{_CHANCE}/{found[2]}", np.zeros(0)) if found else np.zeros(0)
        values = values[np.isfinite(values)]
        if len(values):
            levels[float(values[-1])] = None
    end = max(float(columns["step"].max()), 1.0)
    return [
        charts.Series(name="chance", label=f"chance {short(level)}", x=[0.0, end], y=[level, level], is_chance=True)
        for level in levels
    ]


def _series(name: str, steps: np.ndarray, values: np.ndarray) -> list[charts.Series]:
    """Return a metric as a line of at most `_COLUMNS` points: the mean of equally many steps each, with their range.

    The list is empty if the metric has no value.
    """
    values = _plottable(values)
    is_finite = np.isfinite(values)
    steps, values = steps[is_finite], values[is_finite]
    if not len(steps):
        return []
    label = f"{name} {short(float(values[-1]))}".strip()
    x, column_of = np.unique(steps, return_inverse=True)
    if len(x) > _COLUMNS:
        edges = np.linspace(x[0], x[-1], _COLUMNS + 1)
        column_of = np.clip(np.searchsorted(edges, steps, side="right") - 1, 0, _COLUMNS - 1)
        x = (edges[:-1] + edges[1:]) / 2
        x[0], x[-1] = edges[0], edges[-1]
    count, total = np.bincount(column_of, minlength=len(x)), np.bincount(column_of, values, minlength=len(x))
    low, high = np.full(len(x), np.inf), np.full(len(x), -np.inf)
    np.minimum.at(low, column_of, values)
    np.maximum.at(high, column_of, values)
    kept = count > 0
    mean = total[kept] / count[kept]
    low, high = low[kept], high[kept]
    has_band = bool(np.any(high - low > 1e-6 * np.abs(mean)))
    return [
        charts.Series(
            name=name,
            label=label,
            x=np.round(x[kept]).tolist(),
            y=mean.tolist(),
            low=low.tolist() if has_band else None,
            high=high.tolist() if has_band else None,
        )
    ]


def _plottable(values: np.ndarray) -> np.ndarray:
    """Return values without those whose sums or logarithms would overflow."""
    values = np.where(np.abs(values) < _LEAST, 0.0, values)
    return np.where(np.abs(values) <= _MOST, values, np.nan)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return ""


def _listed(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []


def _whole(value: Any) -> int | None:
    return value if type(value) is int else None


def _duration(seconds: float) -> str:
    return str(timedelta(seconds=round(min(max(seconds, 0.0), 1e11))))


def _moment(seconds: float) -> str:
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (ValueError, OverflowError, OSError):
        return "at an unknown time"


def main(argv: Sequence[str] | None = None) -> int:
    """Write the page of the run named on the command line; return the exit code."""
    command = Command("python -m hiervl_train.monitor.page", "Writes a run's page again.")
    command.positional("run", type=Path, help="the run's folder")

    def work(request: Request[None]) -> None:
        if not request.flags.run.is_dir():
            command.error(f"{request.flags.run}: there is no such folder")
        print(write_page(request.flags.run))

    return command.run(work, argv)


if __name__ == "__main__":
    sys.exit(main())
