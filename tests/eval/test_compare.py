"""The command prints and writes the comparison of two runs, and reports what it cannot compare."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

from eval.compare import main
from tests.browser import Browser, outside
from tests.eval.example_results import example_result
from tests.paths import REPOSITORY

HOSTILE = "</script><script>document.title='owned'</script>[bold]\x00"


def test_folders_of_one_and_of_several_benchmarks_are_compared(tmp_path: Path) -> None:
    a, b = (
        example_result({"inter": [100.0, 0, 50]}),
        example_result({"inter": [100.0, 100, 50]}, settings={"video": {"frames": 8}}),
    )
    for name, result in (("a", a), ("b", b)):
        result.save(tmp_path / name / "egomcq")
    dataclasses.replace(b, benchmark="summarymcq").save(tmp_path / "b" / "summarymcq")
    command = [
        sys.executable,
        "eval/compare.py",
        str(tmp_path / "a"),
        str(tmp_path / "b"),
        "--out",
        str(tmp_path / "c"),
    ]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, env={"COLUMNS": "200", "PATH": ""})
    assert done.returncode == 0, done.stderr
    assert "+33.33" in done.stdout and "summarymcq (B)" in done.stdout and "video.frames" in done.stdout
    found = json.loads((tmp_path / "c" / "compare.json").read_text())
    (comparison,) = found["comparisons"]
    assert comparison["rows"][0]["paired"]["difference"] == pytest.approx(100 / 3)
    assert comparison["settings"] == {"video.frames": [4, 8]} and found["only_one_run_has"] == ["summarymcq (B)"]
    assert [change["id"] for change in comparison["changes"]] == ["1"]
    assert main([str(tmp_path / "a" / "egomcq"), str(tmp_path / "b" / "egomcq")]) == 0


def test_results_that_cannot_be_compared_are_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    example_result({"inter": [0.0]}).save(tmp_path / "a")
    example_result({"inter": [0.0]}, benchmark="epic_mir").save(tmp_path / "b")
    example_result({"inter": [0.0]}).save(tmp_path / "damaged")
    (tmp_path / "damaged" / "items.jsonl").write_text("{")
    for other, message in (("b", "A has egomcq; B has epic_mir"), ("none", "none"), ("damaged", "items.jsonl")):
        assert main([str(tmp_path / "a"), str(tmp_path / other), "--out", str(tmp_path / "c")]) == 1
        assert message in capsys.readouterr().err
    assert not (tmp_path / "c").exists()


def test_the_page_opens_without_errors_or_requests_and_hostile_texts_stay_text(tmp_path: Path) -> None:
    with Browser() as browser:
        a, b = (
            example_result({HOSTILE: [100.0, 0, 20]}, checkpoint=HOSTILE),
            example_result({HOSTILE: [0.0, 100, 20]}, checkpoint="runs/b"),
        )
        for name, result in (("a", a), ("b", b)):
            items = [dataclasses.replace(item, text=HOSTILE, answer=HOSTILE) for item in result.items]
            dataclasses.replace(result, items=items, settings={HOSTILE: name}).save(tmp_path / name)
        assert main([str(tmp_path / "a"), str(tmp_path / "b"), "--out", str(tmp_path / "c")]) == 0
        report = browser.open_page((tmp_path / "c" / "index.html").as_uri(), max_videos=0)
    assert report.console_errors == [] and outside(report) == [] and report.title == "Comparison"
    assert "Better in B" in report.text and "Worse in B" in report.text and "document.title='owned'" in report.text
