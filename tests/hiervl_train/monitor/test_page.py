"""A run's page: what a reader sees in a real browser, that it asks for nothing, and its size for a long run."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hiervl_train.monitor.metrics import METRICS, MetricsConfig, MetricsWriter, line
from hiervl_train.monitor.page import write_page
from hiervl_train.monitor.run_folder import RunFolder
from shards import files
from tests.browser import TOOLTIPS, Browser, outside

# What the pointer shows in the middle of the loss, at step 30 of 60.
LOSS = """(() => {
  const figures = [...document.querySelectorAll("figure")];
  const plot = figures.find((figure) => figure.querySelector("b").textContent === "Loss").querySelector(".plot");
  plot.scrollIntoView({ block: "center" });
  const box = plot.getBoundingClientRect();
  return [box.left + box.width / 2, box.top + box.height / 2];
})()"""


def make_run(path: Path, steps: int = 60, total: int = 100) -> RunFolder:
    """A run of a name that HTML would read as a tag, with curves of known values."""
    folder = RunFolder(path / "run <b>&amp;")
    denominator = "989 TFLOP/s a device: <i>by its data sheet</i>"
    folder.create(MetricsConfig(), is_resumed=False, seed=3, facts={"mfu_denominator": denominator})
    for step in (20, 40):
        (folder.checkpoints / f"step-{step:08d}").mkdir(parents=True)
    (folder.checkpoints / ".tmp-step-00000060").mkdir()
    with MetricsWriter(folder, MetricsConfig(tensorboard=False), first_step=1) as writer:
        for step in range(2, steps + 1, 2):
            values = {
                **{"loss/child": 8 - step / 10, "loss/parent": 4 - step / 20, "lr": 3e-5, "epoch": step / 30},
                **{"grad_norm": 1000 / step**2, "clips_per_second": 400.0 + step, "clips_per_second_per_gpu": 50.0},
                **{"mfu": 0.41, "data_wait_fraction": 0.01, "wait_seconds/child": 0.002, "seconds_per_step": 2.0},
                **{"memory/process_gib": 4.0, "memory/gpu_peak_gib": 61.0, "data/samples": 64.0, "skipped_steps": 0},
            }
            if step == 30:
                values |= {"data/failed/<u>torn</u>": 3.0, "skipped_steps": 2, "loss/child": math.nan}
            writer.write(step, values)
            if step % 20 == 0:
                scores = {"eval/egomcq/inter": step, "eval/egomcq/intra": step / 2, "eval/top1": 5.0}
                writer.write(step, scores | {"eval/chance/egomcq/inter": 20.0, "eval/chance/egomcq/intra": 20.0})
    state = {"state": "running", "step": steps, "total": total, "reason": None, "time": time.time()}
    files.write_json(folder.status, state)
    folder.log.write_text("".join(f"a line <script>alert({number})</script>\n" for number in range(3000)))
    return folder


def lines_of(text: str, title: str) -> list[dict[str, list[float]]]:
    """Return the columns of a chart's lines, in the order in which they were drawn."""
    figure = next(part for part in text.split("<figure") if f"<b>{title}</b>" in part)
    (data,) = re.findall(r'<script type="application/json">(.*?)</script>', figure, re.S)
    found: list[dict[str, list[float]]] = []

    def walk(value: object) -> None:
        if isinstance(value, dict):
            if value.get("type") == "map" and {"x", "y"} <= dict(value["entries"]).keys():
                found.append(dict(value["entries"]))
            for child in value.values():
                walk(child)
        elif isinstance(value, list):
            for child in value:
                walk(child)

    walk(json.loads(data, parse_constant=lambda name: pytest.fail(f"{name} is no JSON")))
    return found


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    folder = make_run(tmp_path_factory.mktemp("runs"))
    assert write_page(folder) == folder.page
    return folder


def test_a_browser_shows_state_and_curves_without_an_error_or_a_request_elsewhere(run: RunFolder) -> None:
    curves = "Object.fromEntries([...document.querySelectorAll('figure')].map(f => [f.querySelector('b').textContent, "
    curves += "[...f.querySelectorAll('.legend')].map(k => k.textContent)]))"
    with Browser() as browser:
        report = browser.open_page(
            run.page.as_uri(),
            pointer=LOSS,
            ask={
                "curves": curves,
                "tooltip": TOOLTIPS,
                "folded": "[...document.querySelectorAll('details')].every(d => !d.open)",
                "config": "document.querySelector('details pre').textContent",
            },
        )
        unfolded = "document.querySelectorAll('details').forEach(d => d.open = true), "
        unfolded += "document.documentElement.scrollWidth"
        phone = browser.open_page(run.page.as_uri(), width=390, height=844, ask={"unfolded": unfolded})
    assert report.console_errors == [] and outside(report) == [] and len(report.requests) == 2
    assert report.title == "run <b>&amp;" == report.text.splitlines()[0]
    for shown in ("60\nof 100 steps", "0:01:20\nleft", "40\nlast checkpoint’s step", "2\nsteps skipped", "running"):
        assert shown in report.text, shown
    assert "3\ndecode failures of 1,920 samples: <u>torn</u> 3" in report.text
    assert "of 989 TFLOP/s a device: <i>by its data sheet</i>" in report.text
    assert report.answers["curves"] == {
        **{"Loss": ["child 2", "parent 1"], "Learning rate": ["3e-05"], "Gradient norm": ["0.2778"]},
        **{"Throughput": ["460"], "Model FLOP utilisation": ["41"], "Time waiting for data": ["1"]},
        **{"Evaluation: egomcq": ["inter 60", "intra 30", "chance 20"], "Evaluation": ["top1 5"]},
    }
    (tooltip,) = report.answers["tooltip"]
    step, *values = tooltip.splitlines()
    number = int(step.removeprefix("step "))
    assert 20 <= number <= 40 and number % 2 == 0
    expected = {f"child: {8 - number / 10:.4g}", f"parent: {4 - number / 20:.4g}"}
    assert set(values) == (expected if number != 30 else {"parent: 2.5"}), "the child's of step 30 is not finite"
    assert report.answers["folded"] and "every_steps: 10" in report.answers["config"]
    assert phone.width == 390 and phone.answers["unfolded"] == 390, "a phone's reader would have to scroll sideways"


def test_the_page_follows_the_readers_colour_scheme(run: RunFolder) -> None:
    ask = {"ground": "getComputedStyle(document.body).backgroundColor"}
    with Browser() as browser:
        light, dark = (browser.open_page(run.page.as_uri(), is_dark=is_dark, ask=ask) for is_dark in (False, True))

    def brightness(colour: str) -> int:
        return sum(map(int, re.findall(r"\d+", colour)))

    assert brightness(dark.answers["ground"]) < 150 < 600 < brightness(light.answers["ground"])


def test_a_curve_is_drawn_where_its_values_are(run: RunFolder) -> None:
    drawn = lines_of(run.page.read_text(), "Throughput")[0]
    assert drawn["x"] == list(range(2, 61, 2)) and drawn["y"] == [400 + step for step in range(2, 61, 2)]


def test_a_chart_over_orders_of_magnitude_is_logarithmic(run: RunFolder) -> None:
    figures = {part.partition("</b>")[0].rpartition("<b>")[2]: part for part in run.page.read_text().split("<figure")}
    assert "LogScale" in figures["Gradient norm"] and "logarithmic" in figures["Gradient norm"]
    assert "LogScale" not in figures["Loss"]


def test_a_spike_of_one_step_is_seen_in_a_long_run(tmp_path: Path) -> None:
    rows = [line(step, 0.0, {"loss/child": 20.0 if step == 7777 else 1.0}) for step in range(1, 20001)]
    (tmp_path / METRICS).write_bytes(b"".join(rows))
    text = write_page(tmp_path).read_text()
    figure = next(part for part in text.split("<figure") if "<b>Loss</b>" in part)
    band = re.search(r'\["y2",\[([^]]*)\]', figure)
    x = re.search(r'\["x",\[([^]]*)\]', figure)
    assert band and x
    highs, steps = ([float(value) for value in found[1].split(",")] for found in (band, x))
    assert max(highs) == 20.0 and steps[highs.index(20.0)] == pytest.approx(7777, abs=20000 / 300)
    assert max(y for line in lines_of(text, "Loss") for y in line["y"]) < 2


def test_a_run_of_300_000_steps_makes_a_small_page_in_a_moment(tmp_path: Path) -> None:
    names = [
        "loss/child",
        "loss/parent",
        "lr",
        "grad_norm",
        "clips_per_second",
        "mfu",
        "data_wait_fraction",
        "seconds_per_step",
    ]
    names += ["wait_seconds/child", "wait_seconds/parent", "memory/process_gib", "memory/gpu_peak_gib", "data/samples"]
    with (tmp_path / METRICS).open("wb") as file:
        for step in range(10, 300_001, 10):
            values = {name: 1 + math.sin(step * number) / 3 for number, name in enumerate(names, 1)}
            scores = {f"eval/egomcq/{number}": step / 3001 + number for number in range(6)} if step % 1000 == 0 else {}
            file.write(line(step, 1e9 + step, values | scores))
    start = time.process_time()
    page = write_page(tmp_path)
    assert time.process_time() - start < 6  # about 1 s on one core of a quiet machine, importing Bokeh included
    assert 50_000 < page.stat().st_size < 1_000_000


def test_a_folder_with_nothing_in_it_has_a_page(tmp_path: Path) -> None:
    text = write_page(tmp_path).read_text()
    assert "No metrics yet, page written" in text and "<figure" not in text


def test_damaged_files_are_left_out_of_the_page(tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    folder.environment.write_text("{")
    folder.status.write_text("[1]")
    folder.config.write_bytes(b"\xff\xfe model:\n")
    folder.log.unlink()
    with folder.metrics.open("ab") as file:
        file.write(b"\0\0\0\n" + line(62, 0.0, {"loss/child": 1.5}) + b'{"step": 64, "loss')
    text = write_page(folder).read_text()
    assert "<b>62</b><span>steps</span>" in text and "child 1.5<" in text


def test_a_failed_run_says_so_and_has_no_time_left(tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    status = {"state": "failed", "step": 61, "total": 100, "reason": "DivergedError: <no> end", "time": 0.0}
    files.write_json(folder.status, status)
    text = write_page(folder).read_text()
    assert '<div class="tile bad"><b>failed</b><span>DivergedError: &lt;no&gt; end</span></div>' in text
    assert "<b>61</b><span>of 100 steps</span>" in text and "<span>left</span>" not in text


NUMBERS = st.one_of(st.floats(), st.integers(-(2**70), 2**70))
NAMES = st.sampled_from(
    ["loss/child", "lr", "grad_norm", "mfu", "seconds_per_step", "eval/a/b", "data/failed/x", "<q>"]
)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.dictionaries(NAMES, NUMBERS), max_size=12), st.integers(0, 2**52))
def test_whatever_the_numbers_are_the_page_is_drawn(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, float]], first: int
) -> None:
    folder = tmp_path_factory.mktemp("run")
    (folder / METRICS).write_bytes(b"".join(line(first + step, 0.5, row) for step, row in enumerate(rows)))
    text = write_page(folder).read_text()
    for data in re.findall(r'<script type="application/json">(.*?)</script>', text, re.S):
        json.loads(data, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def test_the_command_makes_the_page_and_names_a_missing_folder(tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    command = [sys.executable, "-m", "hiervl_train.monitor.page"]
    done = subprocess.run([*command, str(folder.path)], capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, str(folder.page)) and folder.page.is_file()
    missing = subprocess.run([*command, str(tmp_path / "none")], capture_output=True, text=True)
    assert missing.returncode == 2 and f"{tmp_path / 'none'}: there is no such folder" in missing.stderr
