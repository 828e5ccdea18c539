"""Every benchmark of a dataset runs with one command; a failed one is reported and the others still run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from eval import charades_ego
from eval.config import BENCHMARKS
from shards.companions import read_questions
from shards.dataset import hash_json
from tests.eval.conftest import Evaluation, Run


def test_one_command_scores_every_benchmark_of_a_dataset(evaluated: Evaluation, embedded: Path) -> None:
    assert evaluated.code == 0
    out = evaluated.out
    names = [*(name for name in BENCHMARKS if name != "recall"), "recall-clips", "recall-summaries"]
    results = {name: evaluated.result(name) for name in names}
    for name, result in results.items():
        assert result.scores and result.items, name
        assert all(score.value >= 0 and score.items <= score.of for score in result.scores), name
        shares = [score for score in result.scores if score.unit == "%"]
        assert all(score.value <= 100 and score.chance is not None and 0 < score.chance <= 100 for score in shares), (
            name
        )
        assert (out / name / "index.html").is_file() and (out / name / "report.md").is_file()
        assert f'href="{name}/index.html"' in (out / "index.html").read_text()
    every = json.loads((out / "scores.json").read_text())
    assert every == [json.loads((out / entry["benchmark"] / "scores.json").read_text()) for entry in every]
    assert {entry["benchmark"] for entry in every} == set(names)
    assert [score.chance for score in (*results["egomcq"].scores, *results["shufflemcq"].scores)] == [20.0] * 3
    assert {score.name for score in results["egomcq"].scores} == {"inter accuracy", "intra accuracy"}
    assert {"mAP", "nDCG", "mAP, dual softmax", "V2T mAP", "T2V nDCG"} <= {s.name for s in results["epic_mir"].scores}
    # Samples that the build could not pack are missing for the build's own reason.
    (reason,) = {entry.reason.rpartition(": ")[2] for entry in results["egomcq"].missing}
    assert reason == "missing"
    questions = len(read_questions(embedded / "egomcq" / "test" / "questions.json").questions)
    assert len(results["egomcq"].items) + len(results["egomcq"].missing) == questions


def test_after_a_failed_benchmark_the_others_still_run(
    run: Run, embedded: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "shards"
    shutil.copytree(embedded, root)
    path = root / "charades_ego" / "test" / "labels.json"
    labels = json.loads(path.read_text())
    labels["videos"][0]["actions"] = [4711]
    path.write_text(json.dumps(labels))
    done = run(None, "--only", "charades_ego", "--only", "summarymcq", "max_missing_fraction=1", shards=root)
    assert done.code == 1
    assert done.result("summarymcq").items
    assert not (done.out / "charades_ego").exists()
    errors = capfd.readouterr().err
    assert "charades_ego" in errors and "4711" in errors and labels["videos"][0]["key"] in errors
    assert run(charades_ego.BENCHMARK, shards=root).code == 2
    assert "4711" in capfd.readouterr().err


def test_without_a_benchmark_questions_are_generated_from_the_validation_splits(
    run: Run, embedded: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "shards"
    root.mkdir()
    manifest = json.loads((embedded / "dataset.json").read_text())
    manifest.pop("sha256")
    manifest["sets"] = {name: manifest["sets"][name] for name in ("clips", "summaries")}
    manifest["sha256"] = hash_json(manifest)
    (root / "dataset.json").write_text(json.dumps(manifest))
    for name in ("clips", "summaries"):
        (root / name).symlink_to(embedded / name)
    done = run(None, "made_questions=10", shards=root)
    assert done.code == 0
    assert sorted(path.name for path in done.out.iterdir() if path.is_dir()) == [
        "clips-mcq",
        "recall-clips",
        "recall-summaries",
        "shufflemcq-summaries",
        "summaries-mcq",
    ]
    assert "epic_mir: not run: the dataset has no epic_mir/test" in capfd.readouterr().out
    result = done.result("clips-mcq")
    assert {item.group for item in result.items} == {"inter", "intra"}
    assert not any(score.published for score in result.scores)
