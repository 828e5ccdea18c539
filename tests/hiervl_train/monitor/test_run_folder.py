"""A run's folder describes itself, keeps earlier configurations, and is locked by one run at a time."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from configs import loading
from configs.revision import code_revision
from hiervl_train.monitor.metrics import MetricsConfig
from hiervl_train.monitor.run_folder import RunFolder, RunFolderError


def test_the_stored_configuration_equals_the_used_one(tmp_path: Path) -> None:
    folder, config = RunFolder(tmp_path / "a" / "run"), MetricsConfig(every_steps=7, peak_tflops=1.5)
    folder.create(config, is_resumed=False)
    assert loading.load(MetricsConfig, folder.config) == config
    assert folder.config.read_text().splitlines()[0] == f"# {code_revision()}"


def test_every_changed_configuration_is_kept(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for every_steps in (1, 1, 2, 2, 1):
        folder.create(MetricsConfig(every_steps=every_steps), is_resumed=True)
    kept = sorted(folder.configs.iterdir())
    assert [path.name for path in kept] == [f"config-{number:05d}.yaml" for number in (1, 2, 3)]
    assert [loading.load(MetricsConfig, path).every_steps for path in kept] == [1, 2, 1]
    assert loading.load(MetricsConfig, folder.config).every_steps == 1
    starts = json.loads(folder.environment.read_text())["starts"]
    assert [start["config"] for start in starts] == [f"config-{number:05d}.yaml" for number in (1, 1, 2, 2, 3)]


def test_the_environment_records_every_start(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.create(MetricsConfig(), is_resumed=False, seed=11, hostnames=["n1", "n2"], facts={"total_steps": 50})
    folder.create(MetricsConfig(), is_resumed=True, seed=11)
    found = json.loads(folder.environment.read_text())
    assert found["torch"] == torch.__version__ and found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert found["command"] == [sys.executable, *sys.argv] and found["seed"] == 11 and found["world_size"] == 1
    assert {"torch", "timm", "transformers", "pyarrow"} <= found["packages"].keys()
    assert {"cuda", "cudnn", "driver", "devices", "platform"} <= found.keys()
    assert [start["is_resumed"] for start in found["starts"]] == [False, True]
    assert found["starts"][0]["hostnames"] == ["n1", "n2"] and found["starts"][1]["hostnames"] == [os.uname().nodename]


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"starts": 3}'])
def test_a_damaged_environment_does_not_prevent_a_start(tmp_path: Path, damage: str) -> None:
    folder = RunFolder(tmp_path)
    folder.environment.write_text(damage)
    folder.create(MetricsConfig(), is_resumed=True)
    assert len(json.loads(folder.environment.read_text())["starts"]) == 1


def test_the_readme_names_everything_in_the_folder(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.create(MetricsConfig(), is_resumed=False)
    readme = folder.readme.read_text()
    places = (
        *(
            folder.page,
            folder.config,
            folder.configs,
            folder.environment,
            folder.status,
            folder.log,
            folder.rank_log(1),
        ),
        *(folder.metrics, folder.tensorboard, folder.checkpoints, folder.profile, folder.evaluation, folder.stop),
    )
    for path in places:
        assert path.parent == tmp_path and f"`{path.name}" in readme, path
    for path in tmp_path.iterdir():
        assert path == folder.readme or f"`{path.name}" in readme, path


def test_the_first_rank_logs_everything_and_others_warnings(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    ours, theirs = logging.getLogger("hiervl_train.some"), logging.getLogger("some.library")
    for rank in (0, 1, 2):
        with folder.logged(rank=rank):
            ours.info("begins")
            theirs.info("talks")
            if rank < 2:
                theirs.warning("matters on %d", rank)
    first, second = folder.rank_log(0).read_text(), folder.rank_log(1).read_text()
    assert folder.rank_log(0) == folder.log and folder.rank_log(1).name == "log-rank00001.txt"
    assert "INFO hiervl_train.some: begins" in first and "WARNING some.library: matters on 0" in first
    assert "begins" not in second and "matters on 1" in second and "talks" not in first + second
    assert not folder.rank_log(2).exists()


def test_logs_are_appended_and_end_with_the_block(tmp_path: Path) -> None:
    folder, logger = RunFolder(tmp_path), logging.getLogger("hiervl_train")
    for text in ("one", "two"):
        with folder.logged():
            logger.info(text)
    logger.warning("three")
    assert [line.rpartition(" ")[2] for line in folder.log.read_text().splitlines()] == ["one", "two"]


def test_warnings_are_also_printed_on_the_terminal(tmp_path: Path) -> None:
    code = (
        "import logging, sys\nfrom hiervl_train.monitor.run_folder import RunFolder\n"
        "with RunFolder(sys.argv[1]).logged():\n"
        "    logging.getLogger('x').warning('look')\n    logging.getLogger('hiervl_train').info('quiet')\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stderr.count("look") == 1 and "quiet" not in done.stderr


_HOLDER = """
import os, signal, sys
from hiervl_train.monitor.run_folder import RunFolder
with RunFolder(sys.argv[1]).exclusive():
    child = os.fork()  # as a loader's worker: it lives on when its parent is killed
    if child == 0:
        signal.pause()
    print(child, flush=True)
    sys.stdin.read()
os.kill(child, signal.SIGKILL)
"""


@contextmanager
def holder(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that has the folder's lock, until its input ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", _HOLDER, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdin is not None
    worker = int(process.stdout.readline())
    try:
        yield process
    finally:
        process.stdin.close()
        process.wait(30)
        if process.returncode:  # it was killed: its child is left
            os.kill(worker, signal.SIGKILL)
        process.stdout.close()


def test_two_runs_cannot_write_into_one_folder(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    with holder(folder.path) as process:
        held = f"{folder.path} is in use by another run (process {process.pid} on "
        with pytest.raises(RunFolderError, match=re.escape(held)), folder.exclusive():
            pass
        with RunFolder(tmp_path / "other").exclusive():
            pass
    with folder.exclusive():
        pass


def test_a_killed_run_releases_the_lock_even_if_its_workers_live(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    with holder(folder.path) as process:
        process.send_signal(signal.SIGKILL)
        process.wait(30)
        with folder.exclusive():
            pass


def test_a_folder_is_a_path(tmp_path: Path) -> None:
    assert Path(RunFolder(tmp_path)) == tmp_path and RunFolder(RunFolder(tmp_path)).path == tmp_path


def test_files_of_a_start_are_written_atomically(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        RunFolder(tmp_path).create(MetricsConfig(), is_resumed=False)
    assert not [path for path in tmp_path.rglob("*") if path.name.startswith(".tmp-")]
