"""A request that cannot be carried out is reported by message and exit code, and nothing is written."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from eval import charades_ego, egomcq
from tests.eval.checkpoints import READING
from tests.eval.conftest import Run
from tests.paths import REPOSITORY
from tests.shards.manifests import sign_anew


def test_a_checkpoint_whose_weights_do_not_fit_its_configuration_is_refused(
    run: Run, checkpoint: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    other = shutil.copytree(checkpoint, tmp_path / "other")
    (other / "config.yaml").write_text((other / "config.yaml").read_text().replace("embed_dim: 16", "embed_dim: 32"))
    done = run(egomcq.BENCHMARK, check=other)
    assert done.code == 2 and not done.out.exists()
    errors = capfd.readouterr().err
    assert f"{other}: 26 tensors do not fit" in errors and "norm2.bias has shape (16,) instead of (32,)" in errors
    assert run(None, check=other).code == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--checkpoint", "nowhere"], "nowhere: no such checkpoint"),
        (["framse=4"], "did you mean sample.frames"),
        (["sample.windows=9"], "sample.windows = 9"),
        (["tokenizer.source=/no/such/folder"], "/no/such/folder"),
        (["--shards", "nowhere"], "nowhere"),
        (["--set", "summaries", "--split", "val"], "no questions or labels"),
    ],
)
def test_a_wrong_request_is_reported_and_nothing_is_written(
    run: Run, words: list[str], message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    done = run(egomcq.BENCHMARK, *words)
    assert done.code == 2 and not done.out.exists()
    assert message in capfd.readouterr().err.replace("\n", " ")


@pytest.mark.medium
def test_an_interrupted_evaluation_has_its_own_exit_code(embedded: Path, checkpoint: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-u", "eval/egomcq.py", "--checkpoint", str(checkpoint), "--shards", str(embedded)]
    options = [*READING, f"output={tmp_path / 'out'}", "cache=null", "resamples=2000000"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([*command, *options], cwd=REPOSITORY, stdout=subprocess.PIPE, env=environment, text=True)
    assert process.stdout is not None
    assert process.stdout.readline().startswith("egomcq:")
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    process.stdout.close()


@pytest.mark.parametrize("split", ["egomcq/test/questions.json", "charades_ego/test/labels.json"])
def test_questions_and_labels_that_are_not_the_published_ones_are_refused(
    run: Run, own_shards: Path, split: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """The answer of a question moved, or a label dropped: valid, and no longer the benchmark."""
    benchmark = egomcq.BENCHMARK if split.startswith("egomcq") else charades_ego.BENCHMARK
    path = own_shards / split
    tree = json.loads(path.read_bytes())
    if "questions" in tree:
        tree["questions"][0]["answer"] = (tree["questions"][0]["answer"] + 1) % 2
    else:
        tree["videos"][0]["actions"] = []
    path.write_text(json.dumps(tree))
    done = run(benchmark, shards=own_shards)
    assert done.code == 2 and not done.out.exists()
    errors = " ".join(capfd.readouterr().err.split())
    assert f"{path}: altered since dataset.json was written" in errors and "Traceback" not in errors
    sign_anew(own_shards)
    assert run(benchmark, "max_missing_fraction=1", shards=own_shards).code == 0
