"""Two runs are compared in pairs on their common items, and refused if they are about different data."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from eval.metrics.paired import compare_paired
from eval.report.comparison import CompareError, compare, load_results
from tests.eval.example_results import example_result


def test_each_score_has_the_paired_test_of_its_own_items() -> None:
    rng = np.random.default_rng(0)
    a = {g: (100.0 * (rng.random(80) < 0.5)).tolist() for g in ("inter", "intra")}
    b = {g: (100.0 * (rng.random(80) < 0.8)).tolist() for g in ("inter", "intra")}
    found = compare(example_result(a), example_result(b, checkpoint="runs/b", checkpoint_digest="bb"))
    for row, group in zip(found.rows, ("inter", "intra"), strict=True):
        assert row.paired == compare_paired(a[group], b[group]) and row.paired.test == "exact McNemar"
        assert (row.a, row.b) == (np.mean(a[group]), np.mean(b[group]))
    assert (found.only_a, found.only_b, found.notes, found.settings) == (0, 0, [], {})
    swapped = compare(example_result(b), example_result(a))
    assert swapped.rows[0].paired.difference == -found.rows[0].paired.difference  # type: ignore[union-attr]


def test_only_items_that_both_scored_are_compared() -> None:
    a, b = example_result({"inter": [100.0, 0, 0, 100]}), example_result({"inter": [100.0, 100, 0, 100, 0, 0]})
    b = dataclasses.replace(b, items=b.items[1:])
    b = dataclasses.replace(b, scores=[dataclasses.replace(b.scores[0], value=40.0)])
    found = compare(a, b)
    assert (found.only_a, found.only_b) == (1, 2)
    row = found.rows[0]
    assert row.paired is not None and row.paired.items == 3
    assert row.paired.difference == pytest.approx(100 / 3) and (row.a, row.b) == (50, 40)


def test_an_average_of_directions_weights_them_equally_and_other_scores_have_no_test() -> None:
    a = {"V2T": [10.0, 20, 30, 40, 50, 60], "T2V": [80.0, 90]}
    b = {"V2T": [20.0, 30, 40, 50, 60, 70], "T2V": [80.0, 94]}
    names = ("mAP V2T", "mAP T2V", "mAP average", "median rank")
    results = [
        example_result(g, named=dict(zip(names, (np.mean(g["V2T"]), np.mean(g["T2V"]), value, 3.25), strict=True)))
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
def test_runs_of_different_benchmarks_or_data_are_refused(changes: dict[str, str], message: str) -> None:
    with pytest.raises(CompareError, match=message):
        compare(example_result({"inter": [0.0]}), example_result({"inter": [0.0]}, **changes))


def test_different_questions_of_the_same_id_are_refused() -> None:
    a, b = example_result({"inter": [0.0, 0]}), example_result({"inter": [0.0, 0]})
    b = dataclasses.replace(b, items=[b.items[0], dataclasses.replace(b.items[1], answer="another")])
    with pytest.raises(
        CompareError, match=r"item 1 \(inter\) is not the same question.*'right-1' of A.*'another' of B"
    ):
        compare(a, b)
    with pytest.raises(CompareError, match="A has 2 items twice"):
        compare(dataclasses.replace(a, items=[*a.items, *a.items]), b)


def test_results_are_found_in_a_run_in_its_evaluation_and_in_one_benchmark(tmp_path: Path) -> None:
    result = example_result({"inter": [100.0, 0.0]})
    overview = tmp_path / "run" / "evaluation"
    saved = result.save(overview / result.benchmark)
    (overview / "scores.json").write_text(json.dumps([result.tree()]))  # over all benchmarks, as eval/all.py writes it
    for folder in (tmp_path / "run", overview, saved):
        assert load_results(folder) == [result]
    with pytest.raises(CompareError, match=r"there is no scores\.json"):
        load_results(tmp_path / "elsewhere")
