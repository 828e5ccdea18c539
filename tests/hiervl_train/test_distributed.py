"""Ranks connect under any launcher, agree on flags without waiting, and end together when one fails."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from configs.loading import ConfigError, from_dict
from hiervl_train.distributed import (
    DistributedConfig,
    DistributedContext,
    DistributedError,
    FlagConsensus,
    LaunchInfo,
    choose_device,
    distributed_context,
    find_launch_info,
    first_host,
)
from tests.paths import REPOSITORY

pytestmark = pytest.mark.medium

SCRIPT = "tests.hiervl_train.rank_script"
LAUNCHERS = re.compile(r"(SLURM|TORCHELASTIC)_.*|RANK|WORLD_SIZE|LOCAL_RANK|MASTER_(ADDR|PORT)|OMP_NUM_THREADS")
BOUND_SECONDS = 60.0  # within which a dead rank ends the job; about 3 are seen


def environment(**variables: str) -> dict[str, str]:
    """Return this process's environment without what a launcher may have set."""
    return {name: value for name, value in os.environ.items() if not LAUNCHERS.fullmatch(name)} | variables


def torchrun(scenario: str) -> subprocess.Popen[str]:
    """Start two gloo ranks."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--rdzv-backend=c10d"]
    return subprocess.Popen(
        [*command, "--rdzv-endpoint=127.0.0.1:0", "--local-addr=127.0.0.1", "-m", SCRIPT, scenario],
        cwd=REPOSITORY,
        env=environment(CUDA_VISIBLE_DEVICES=""),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finished(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Return the exit code and all that was printed."""
    output, _ = process.communicate(timeout=BOUND_SECONDS)
    return process.returncode, output


def free_port() -> str:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return str(listening.getsockname()[1])


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


AGREED = (
    "[{'save': False, 'stop': False}, {'save': False, 'stop': False}, "
    "{'save': True, 'stop': False}, {'save': False, 'stop': True}] Schritt ü None"
)


def test_ranks_under_torchrun_agree_on_flags() -> None:
    code, output = finished(torchrun("agree"))
    assert code == 0, output
    for rank in (0, 1):
        assert f"{rank}/2 cpu threads 1 {AGREED}" in output
        assert f"{rank}: the ranks began different flags; this rank's are flag {rank}" in output


def test_tasks_of_srun_connect_by_slurms_variables() -> None:
    port = free_port()
    tasks = [
        subprocess.Popen(
            [sys.executable, "-m", SCRIPT, "agree"],
            cwd=REPOSITORY,
            env=environment(
                CUDA_VISIBLE_DEVICES="",
                SLURM_PROCID=str(rank),
                SLURM_NTASKS="2",
                SLURM_LOCALID=str(rank),
                SLURM_STEP_ID="0",
                SLURM_JOB_ID="7",
                SLURM_NNODES="1",
                SLURM_JOB_NODELIST="n[1-2]",
                MASTER_PORT=port,
            ),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in (0, 1)
    ]
    for rank, task in enumerate(tasks):
        code, output = finished(task)
        assert code == 0, output
        assert f"{rank}/2 cpu threads 1 {AGREED}" in output


def test_a_killed_rank_ends_the_job_and_the_log_names_it() -> None:
    job = torchrun("work")
    assert job.stdout is not None
    pids: dict[int, int] = {}
    for line in job.stdout:
        if found := re.search(r"pid (\d) (\d+)", line):
            pids[int(found[1])] = int(found[2])
        if len(pids) == 2:
            break
    time.sleep(0.3)  # into the middle of the reductions
    began = time.monotonic()
    os.kill(pids[1], signal.SIGKILL)
    code, output = finished(job)
    took = time.monotonic() - began
    assert code != 0
    assert took < BOUND_SECONDS
    assert re.search(rf"exitcode\s*: -9 \(pid: {pids[1]}\)", output)
    assert re.search(r"rank\s*: 1 \(local_rank: 1\)", output)
    assert not [pid for pid in pids.values() if is_alive(pid)]


def test_a_rank_that_fails_prints_its_traceback_by_name_and_ends_the_job() -> None:
    code, output = finished(torchrun("fail"))
    assert code != 0
    assert "[rank 1] ValueError: a bad batch" in output
    assert re.search(r"rank 1 of 2 on \S+ failed; the launcher", output)
    assert "[rank 1]   File" in output


def test_a_rank_that_hangs_ends_the_job_after_the_timeout() -> None:
    began = time.monotonic()
    code, output = finished(torchrun("hang"))
    assert code != 0
    assert time.monotonic() - began < BOUND_SECONDS
    assert re.search(r"rank 0 of 2 on \S+ failed; the launcher", output)
    assert re.search(r"\[rank 0\] .*[Tt]imed? ?out", output)


def test_ranks_that_exit_with_a_code_shut_down_in_order() -> None:
    code, output = finished(torchrun("exit_early"))
    assert code == 1, "torchrun turns every code into 1"
    assert "exitcode  : 85" in output
    assert "the launcher ends" not in output


def test_one_process_needs_no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if LAUNCHERS.fullmatch(name):
            monkeypatch.delenv(name)
    with distributed_context(DistributedConfig(backend="gloo")) as mine:
        assert (mine.rank, mine.world, mine.device, mine.is_main) == (0, 1, torch.device("cpu"), True)
        assert not torch.distributed.is_initialized()
        control = FlagConsensus(mine)
        control.begin({"stop": True})
        assert control.agreed() == {"stop": True}
        assert control.agreed() == {}
    with pytest.raises(ZeroDivisionError), distributed_context(DistributedConfig(backend="gloo")):
        _ = 1 / 0


def test_flags_must_be_read_before_the_next_are_begun() -> None:
    control = FlagConsensus(DistributedContext())
    control.begin({"stop": False})
    with pytest.raises(RuntimeError, match="begun and not read"):
        control.begin({"stop": False})


STEP = {"SLURM_PROCID": "5", "SLURM_NTASKS": "8", "SLURM_LOCALID": "1", "SLURM_STEP_ID": "0", "SLURM_JOB_ID": "123"}
NODES = {"SLURM_NNODES": "2", "SLURM_JOB_NODELIST": "gpu[07-08]"}


@pytest.mark.parametrize(
    ("variables", "place"),
    [
        ({}, LaunchInfo()),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "8"}, LaunchInfo()),  # a batch script: no step
        (
            {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", **STEP},
            LaunchInfo(rank=3, world=4, local_rank=1, launcher="torchrun"),
        ),
        (STEP | NODES, LaunchInfo(rank=5, world=8, local_rank=1, launcher="slurm", address="gpu07", port=20123)),
        (
            STEP | NODES | {"MASTER_ADDR": "head", "MASTER_PORT": "99", "SLURM_STEP_NUM_TASKS": "6"},
            LaunchInfo(rank=5, world=6, local_rank=1, launcher="slurm", address="head", port=99),
        ),
    ],
)
def test_the_launcher_is_detected_by_its_variables(variables: Mapping[str, str], place: LaunchInfo) -> None:
    assert find_launch_info(variables) == place


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"RANK": "0"}, "WORLD_SIZE is not set"),
        ({"RANK": "x", "WORLD_SIZE": "2"}, "RANK = 'x': expected an integer"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "rank 2 is out of range for 2 ranks"),
        (STEP | NODES | {"SLURM_JOB_NODELIST": ""}, "names no host; set MASTER_ADDR"),
    ],
)
def test_invalid_variables_are_named(variables: Mapping[str, str], message: str) -> None:
    with pytest.raises(DistributedError, match=message):
        find_launch_info(variables)


@pytest.mark.parametrize(
    ("nodes", "host"),
    [
        ("n1", "n1"),
        ("n[1-2]", "n1"),
        ("gpu[003-010,12],login", "gpu003"),
        ("gpu[12,003-010]", "gpu12"),
        ("login,gpu[1-2]", "login"),
        ("rack[1-2]n[3,4],x", "rack1n3"),
    ],
)
def test_the_first_host_of_a_node_list(nodes: str, host: str) -> None:
    assert first_host(nodes) == host


def test_gloo_uses_the_cpu_and_nccl_without_a_gpu_is_an_error() -> None:
    assert choose_device("gloo", LaunchInfo()) == torch.device("cpu")
    if not torch.cuda.is_available():
        assert choose_device("auto", LaunchInfo()) == torch.device("cpu")
        with pytest.raises(DistributedError, match="backend = nccl: torch finds no GPU"):
            choose_device("nccl", LaunchInfo())


def test_a_timeout_must_be_positive() -> None:
    with pytest.raises(ConfigError, match=r"timeout_seconds = 0\.0: .*greater than 0"):
        from_dict(DistributedConfig, {"timeout_seconds": 0.0})
