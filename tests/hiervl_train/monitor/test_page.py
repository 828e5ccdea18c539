"""A run's page: what a reader sees in a real browser, that it asks for nothing, and its size for a long run."""

from __future__ import annotations

import html
import html.parser
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
from tests.browser import Browser

MOVE = """(() => {{
  const plot = [...document.querySelectorAll("figure")].find(f => f.textContent.startsWith("{title}"))
    .querySelector(".plot");
  const box = plot.getBoundingClientRect();
  const clientX = box.left + {place} * box.width;
  plot.dispatchEvent(new PointerEvent("pointermove", {{ clientX, clientY: box.top + 9 }}));
  return [...plot.querySelector(".tip").children].map(row => row.textContent);
}})()"""


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
                writer.write(step, {"eval/egomcq/inter": step, "eval/egomcq/intra": step / 2, "eval/top1": 5.0})
    state = {"state": "running", "step": steps, "total": total, "reason": None, "time": time.time()}
    files.write_json(folder.status, state)
    folder.log.write_text("".join(f"a line <script>alert({number})</script>\n" for number in range(3000)))
    return folder


class _Page(html.parser.HTMLParser):
    """Everything in a page that could fetch or run something."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    folder = make_run(tmp_path_factory.mktemp("runs"))
    assert write_page(folder) == folder.page
    return folder


def test_the_page_names_nothing_outside_of_itself(run: RunFolder) -> None:
    text = run.page.read_text()
    page = _Page(text)
    assert not page.attributes & {"src", "href", "srcset", "action", "data", "poster", "xlink:href", "background"}
    assert not page.tags & {
        "a",
        "link",
        "img",
        "iframe",
        "object",
        "embed",
        "base",
        "form",
        "video",
        "i:",
        "u",
        "script:",
    }
    assert not re.search(r"https?:|//[a-z]|url\(|@import|fetch\(|import\(", text)


def test_a_browser_shows_state_and_curves_without_an_error_or_a_request(run: RunFolder) -> None:
    curves = "Object.fromEntries([...document.querySelectorAll('figure')].map(f => [f.querySelector('b').textContent, "
    curves += "[...f.querySelectorAll('.key')].map(k => k.textContent)]))"
    with Browser() as browser:
        report = browser.open_page(
            run.page.as_uri(),
            ask={
                "curves": curves,
                "at 10": MOVE.format(title="Loss", place=0.1667),
                "at 30": MOVE.format(title="Loss", place=0.5),
                "at the end": MOVE.format(title="Evaluation: egomcq", place=1.0),
                "folded": "[...document.querySelectorAll('details')].every(d => !d.open)",
                "config": "document.querySelector('details').textContent",
            },
        )
        unfolded = "document.querySelectorAll('details').forEach(d => d.open = true), "
        unfolded += "document.documentElement.scrollWidth"
        phone = browser.open_page(run.page.as_uri(), width=360, height=740, ask={"unfolded": unfolded})
    assert report.console_errors == [] and report.requests == [run.page.as_uri()]
    assert report.title == "run <b>&amp;" == report.text.splitlines()[0]
    for said in ("60\nof 100 steps", "0:01:20\nleft", "40\nlast checkpoint’s step", "2\nsteps skipped", "running"):
        assert said in report.text, said
    assert "3\ndecode failures of 1,920 samples: <u>torn</u> 3" in report.text
    assert "of 989 TFLOP/s a device: <i>by its data sheet</i>" in report.text
    assert report.answers["curves"] == {
        **{"Loss": ["child 2", "parent 1"], "Learning rate": ["3e-05"], "Gradient norm": ["0.2778"]},
        **{"Clips per second": ["460"], "Model FLOP utilisation": ["41 %"], "Time waiting for data": ["1 %"]},
        **{"Wait for a batch": ["child 0.002 s"], "Time of a step": ["2 s"]},
        **{"Memory": ["process 4 GiB", "gpu peak 61 GiB"], "Decode failures": ["<u>torn</u> 3"]},
        **{"Skipped steps": ["2"], "Evaluation: egomcq": ["inter 60", "intra 30"], "Evaluation": ["top1 5"]},
    }
    assert report.answers["at 10"] == ["step 10", "child 7", "parent 3.5"]
    assert report.answers["at 30"] == ["step 30", "parent 2.5"]  # the child's was not finite
    assert report.answers["at the end"] == ["step 60", "inter 60", "intra 30"]
    assert report.answers["folded"] and "every_steps: 10" in report.answers["config"]
    assert phone.width <= 360 and phone.answers["unfolded"] <= 360, "a phone's reader would have to scroll sideways"


def test_the_page_follows_the_readers_colour_scheme(run: RunFolder) -> None:
    ask = {"ground": "getComputedStyle(document.body).backgroundColor"}
    with Browser() as browser:
        light, dark = (browser.open_page(run.page.as_uri(), is_dark=is_dark, ask=ask) for is_dark in (False, True))

    def brightness(colour: str) -> int:
        return sum(map(int, re.findall(r"\d+", colour)))

    assert brightness(dark.answers["ground"]) < 150 < 600 < brightness(light.answers["ground"])


def curve_of(text: str, title: str) -> list[tuple[float, float]]:
    """Return the points of the first curve of a chart, as fractions of its width and height from below."""
    figure = next(part for part in text.split("<figure>") if f"<b>{title}</b>" in part)
    found = re.search(r'class="mean"[^>]* d="([^"]+)"', figure)
    assert found
    pairs = [pair.split() for pair in found[1].removeprefix("M").split("L")]
    return [(float(x) / 1000, 1 - float(y) / 1000) for x, y in pairs]


def test_a_curve_is_drawn_where_its_values_are(run: RunFolder) -> None:
    points = curve_of(run.page.read_text(), "Clips per second")  # axis from 0 to 600 and of 60 steps
    assert len(points) == 30
    for x, y in points:
        assert y == pytest.approx((400 + 60 * x) / 600, abs=2e-3)


def test_a_chart_over_orders_of_magnitude_is_logarithmic(run: RunFolder) -> None:
    points = curve_of(run.page.read_text(), "Gradient norm")  # 250 … 0.28: axis from 0.1 to 1000
    for x, y in points:
        assert y == pytest.approx((math.log10(1000 / (60 * x) ** 2) + 1) / 4, abs=6e-3)


def test_a_spike_of_one_step_is_seen_in_a_long_run(tmp_path: Path) -> None:
    rows = [line(step, 0.0, {"loss/child": 20.0 if step == 7777 else 1.0}) for step in range(1, 20001)]
    (tmp_path / METRICS).write_bytes(b"".join(rows))
    text = write_page(tmp_path).read_text()
    assert max(y for _, y in curve_of(text, "Loss")) < 0.1
    found = re.search(r'class="band"[^>]* d="M([^"]+)Z"', text)
    assert found
    top_x, top_y = min((pair.split() for pair in found[1].split("L")), key=lambda pair: float(pair[1]))
    assert float(top_y) < 200 and float(top_x) == pytest.approx(7777 / 20000 * 1000, abs=3)


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
    assert time.process_time() - start < 4  # about 0.5 s on one core of a quiet machine
    assert 50_000 < page.stat().st_size < 1_000_000


def test_a_folder_with_nothing_in_it_has_a_page(tmp_path: Path) -> None:
    text = write_page(tmp_path).read_text()
    assert "Nothing was written yet" in text and "No metrics yet" in text


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


@settings(max_examples=60, deadline=None)
@given(st.lists(st.dictionaries(NAMES, NUMBERS), max_size=12), st.integers(0, 2**52))
def test_whatever_the_numbers_are_the_page_is_drawn(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, float]], first: int
) -> None:
    folder = tmp_path_factory.mktemp("run")
    (folder / METRICS).write_bytes(b"".join(line(first + step, 0.5, row) for step, row in enumerate(rows)))
    text = write_page(folder).read_text()
    for path in re.findall(r' d="([^"]*)"', text):
        assert re.fullmatch(r"M-?\d+ -?\d+(L-?\d+ -?\d+)*(Z|h0)?", path)
        heights = [int(pair.split()[1]) for pair in path.strip("MZh").removesuffix("h0").split("L")]
        assert all(-1 <= y <= 1001 for y in heights)


def test_the_command_makes_the_page_and_names_a_missing_folder(tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    command = [sys.executable, "-m", "hiervl_train.monitor.page"]
    done = subprocess.run([*command, str(folder.path)], capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, str(folder.page)) and folder.page.is_file()
    missing = subprocess.run([*command, str(tmp_path / "none")], capture_output=True, text=True)
    assert missing.returncode == 2 and f"{tmp_path / 'none'}: there is no such folder" in missing.stderr


def test_the_values_under_the_pointer_are_json_without_literals_that_it_lacks(run: RunFolder) -> None:
    found = re.findall(r'data-values="([^"]*)"', run.page.read_text())
    assert len(found) > 10
    for text in found:
        values = json.loads(html.unescape(text), parse_constant=lambda name: pytest.fail(name))
        assert all(len(series["y"]) == len(values["x"]) for series in values["series"])
