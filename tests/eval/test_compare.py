"""Two runs side by side: paired on the common items, refused where they are not of the same thing."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from eval.compare import main
from eval.metrics.paired import compare_paired
from eval.report.comparison import CompareError, compare
from eval.results import Item, Result, Score
from tests.browser import Browser, outside
from tests.paths import REPOSITORY

HOSTILE = "</script><script>document.title='owned'</script>[bold]\x00"


def run(scores: dict[str, list[float]], *, named: dict[str, float] | None = None, **changes: object) -> Result:
    """A result whose groups have these item scores, and each group's mean as a score, unless others are `named`."""
    items = [
        Item(id=str(i), group=group, text=f"#C C does {i}", score=score, answer=f"right-{i}", predicted=f"p-{score}")
        for group, values in scores.items()
        for i, score in enumerate(values)
    ]
    named = named if named is not None else {f"{group} accuracy": float(np.mean(v)) for group, v in scores.items()}
    fields: dict[str, object] = {
        "benchmark": "egomcq",
        "set_name": "egomcq",
        "split": "test",
        "root": "/data",
        "checkpoint": "runs/a",
        "checkpoint_digest": "aa",
        "fingerprint": "f" * 64,
        "settings": {"video": {"frames": 4}},
        "scores": [Score(name=name, value=value, items=len(items), of=len(items)) for name, value in named.items()],
        "items": items,
    }
    return Result(**{**fields, **changes})  # type: ignore[arg-type]


def test_each_score_has_the_paired_test_of_its_own_items() -> None:
    rng = np.random.default_rng(0)
    a = {g: (100.0 * (rng.random(80) < 0.5)).tolist() for g in ("inter", "intra")}
    b = {g: (100.0 * (rng.random(80) < 0.8)).tolist() for g in ("inter", "intra")}
    found = compare(run(a), run(b, checkpoint="runs/b", checkpoint_digest="bb"))
    for row, group in zip(found.rows, ("inter", "intra"), strict=True):
        assert row.paired == compare_paired(a[group], b[group]) and row.paired.test == "exact McNemar"
        assert (row.a, row.b) == (np.mean(a[group]), np.mean(b[group]))
    assert (found.only_a, found.only_b, found.notes, found.settings) == (0, 0, [], {})
    swapped = compare(run(b), run(a))
    assert swapped.rows[0].paired.difference == -found.rows[0].paired.difference  # type: ignore[union-attr]


def test_only_items_that_both_scored_are_compared() -> None:
    a, b = run({"inter": [100.0, 0, 0, 100]}), run({"inter": [100.0, 100, 0, 100, 0, 0]})
    b = dataclasses.replace(b, items=b.items[1:])
    b = dataclasses.replace(b, scores=[dataclasses.replace(b.scores[0], value=40.0)])
    found = compare(a, b)
    assert (found.only_a, found.only_b) == (1, 2)
    row = found.rows[0]
    assert row.paired is not None and row.paired.items == 3
    assert row.paired.difference == pytest.approx(100 / 3) and (row.a, row.b) == (50, 40)


def test_an_average_of_two_directions_weighs_them_the_same_and_what_is_no_mean_has_no_test() -> None:
    a = {"V2T": [10.0, 20, 30, 40, 50, 60], "T2V": [80.0, 90]}
    b = {"V2T": [20.0, 30, 40, 50, 60, 70], "T2V": [80.0, 94]}
    names = ("mAP V2T", "mAP T2V", "mAP average", "median rank")
    results = [
        run(g, named=dict(zip(names, (np.mean(g["V2T"]), np.mean(g["T2V"]), value, 3.25), strict=True)))
        for g, value in ((a, 60.0), (b, 66.0))
    ]
    v2t, t2v, average, median = compare(*results).rows
    assert v2t.paired is not None and v2t.paired.difference == pytest.approx(10)
    assert t2v.paired is not None and t2v.paired.difference == pytest.approx(2) and t2v.paired.items == 2
    assert average.paired is not None and average.paired.difference == pytest.approx(6)
    assert "equal weight per part" in average.note
    assert median.paired is None and "not a mean" in median.note


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"benchmark": "summarymcq"}, "benchmark 'egomcq' of A, 'summarymcq' of B"),
        ({"fingerprint": "0" * 64}, f"fingerprint '{'f' * 64}' of A, '{'0' * 64}' of B"),
        ({"split": "val"}, "split 'test' of A, 'val' of B"),
    ],
)
def test_runs_of_other_benchmarks_or_data_are_refused_with_both_values(changes: dict[str, str], message: str) -> None:
    with pytest.raises(CompareError, match=message):
        compare(run({"inter": [0.0]}), run({"inter": [0.0]}, **changes))


def test_other_questions_of_the_same_name_are_refused() -> None:
    a, b = run({"inter": [0.0, 0]}), run({"inter": [0.0, 0]})
    b = dataclasses.replace(b, items=[b.items[0], dataclasses.replace(b.items[1], answer="another")])
    with pytest.raises(
        CompareError, match=r"item 1 \(inter\) is not the same question.*'right-1' of A.*'another' of B"
    ):
        compare(a, b)
    with pytest.raises(CompareError, match="A has 2 items twice"):
        compare(dataclasses.replace(a, items=[*a.items, *a.items]), b)


def test_one_command_compares_folders_of_one_and_of_several_benchmarks(tmp_path: Path) -> None:
    a, b = run({"inter": [100.0, 0, 50]}), run({"inter": [100.0, 100, 50]}, settings={"video": {"frames": 8}})
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


def test_what_cannot_be_compared_is_named_with_an_exit_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run({"inter": [0.0]}).save(tmp_path / "a")
    run({"inter": [0.0]}, benchmark="epic_mir").save(tmp_path / "b")
    run({"inter": [0.0]}).save(tmp_path / "damaged")
    (tmp_path / "damaged" / "items.jsonl").write_text("{")
    for other, message in (("b", "A has egomcq; B has epic_mir"), ("none", "none"), ("damaged", "items.jsonl")):
        assert main([str(tmp_path / "a"), str(tmp_path / other), "--out", str(tmp_path / "c")]) == 1
        assert message in capsys.readouterr().err
    assert not (tmp_path / "c").exists()


def test_the_page_opens_without_errors_or_requests_and_hostile_texts_stay_texts(tmp_path: Path) -> None:
    with Browser() as browser:
        a, b = run({HOSTILE: [100.0, 0, 20]}, checkpoint=HOSTILE), run({HOSTILE: [0.0, 100, 20]}, checkpoint="runs/b")
        for name, result in (("a", a), ("b", b)):
            items = [dataclasses.replace(item, text=HOSTILE, answer=HOSTILE) for item in result.items]
            dataclasses.replace(result, items=items, settings={HOSTILE: name}).save(tmp_path / name)
        assert main([str(tmp_path / "a"), str(tmp_path / "b"), "--out", str(tmp_path / "c")]) == 0
        report = browser.open_page((tmp_path / "c" / "index.html").as_uri(), max_videos=0)
    assert report.console_errors == [] and outside(report) == [] and report.title == "Comparison"
    assert "Better in B" in report.text and "Worse in B" in report.text and "document.title='owned'" in report.text
