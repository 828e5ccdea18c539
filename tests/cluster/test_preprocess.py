"""`sbatch cluster/preprocess.sbatch` on a real cluster: built by jobs that it submits, with a local run's bytes."""

from __future__ import annotations

import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import imageio_ffmpeg
import pytest

from tests.cluster.slurm import ENDED, Slurm
from tests.paths import REPOSITORY
from tests.preprocessing.slurm.tasks import starts
from tests.preprocessing.world import files_of

WORKERS = "dask.slurm={jobs: 2, cores: 1, memory: 2GB, walltime: '00:20:00', interface: lo}"
SMALL = ("--cpus-per-task=1", "--mem=2G", "--time=20")


def submit(slurm: Slurm, embedded: Path, output: Path) -> int:
    """Submit a build of the embedded dataset, from the source that was rendered for the local build."""
    made_with = f"ffmpeg={imageio_ffmpeg.get_ffmpeg_exe()}"
    source = f"demo_root={embedded.parent / 'source'}"
    options = [f"output={output / 'shards'}", source, "demo.size=tiny", made_with, WORKERS]
    return slurm.submit(*SMALL, f"--output={output}.log", "cluster/preprocess.sbatch", *options)


def wait_for_chunks(output: Path, count: int) -> None:
    """Wait until workers have made some chunks."""
    end = time.monotonic() + 90
    while len(list((output / "work" / "chunks").rglob("*.json"))) < count:
        assert time.monotonic() < end, Path(f"{output}.log").read_text()
        time.sleep(0.05)


def test_two_worker_jobs_build_the_same_bytes_as_a_local_run(slurm: Slurm, embedded: Path, tmp_path: Path) -> None:
    number = submit(slurm, embedded, tmp_path / "built")
    most = 0
    while slurm.job(number)["JobState"] in ("PENDING", "RUNNING"):
        most = max(most, len(slurm.jobs()))
        time.sleep(0.3)
    log = Path(f"{tmp_path}/built.log").read_text()
    assert slurm.job(number)["JobState"] == "COMPLETED", log
    assert most == 3, f"this job and two of workers were expected, {most} were seen\n{log}"
    assert files_of(tmp_path / "built" / "shards") == files_of(embedded)
    slurm.wait_for_nothing()


@pytest.mark.slow
def test_signalled_it_takes_its_workers_back_requeues_itself_and_goes_on(
    slurm: Slurm, embedded: Path, tmp_path: Path
) -> None:
    number = submit(slurm, embedded, tmp_path / "built")
    wait_for_chunks(tmp_path / "built", 3)
    slurm.call("scancel", "--signal=USR2", "--batch", str(number))
    job = slurm.wait(number, seconds=180)
    log = Path(f"{tmp_path}/built.log").read_text()
    assert (job["JobState"], job["Restarts"], job["ExitCode"]) == ("COMPLETED", "1", "0:0"), log
    assert "Interrupted. Run the same command again to resume." in log
    assert files_of(tmp_path / "built" / "shards") == files_of(embedded)
    slurm.wait_for_nothing()


@pytest.mark.slow
def test_jobs_of_workers_that_end_early_are_submitted_anew(slurm: Slurm, embedded: Path, tmp_path: Path) -> None:
    number = submit(slurm, embedded, tmp_path / "built")
    wait_for_chunks(tmp_path / "built", 2)
    workers = [job for job in slurm.jobs() if job != number]
    assert len(workers) == 2
    for worker in workers:
        slurm.call("scancel", str(worker))
    job = slurm.wait(number, seconds=240)
    assert job["JobState"] == "COMPLETED", Path(f"{tmp_path}/built.log").read_text()
    assert files_of(tmp_path / "built" / "shards") == files_of(embedded)


def run_at_walltimes(slurm: Slurm, folder: Path, *, count: int, seconds: float, cores: int) -> list[str]:
    """Run tasks on two worker jobs of a minute, the shortest walltime of SLURM; return how the worker jobs ended."""
    arguments = [str(folder), str(count), str(seconds), str(cores)]
    with (folder / "out.txt").open("w") as out:
        script = subprocess.Popen(
            [sys.executable, "-m", "tests.cluster.worker_jobs", *arguments],
            cwd=REPOSITORY,
            env={**slurm.environment, "PYTHONPATH": str(REPOSITORY), "SBATCH_EXPORT": "ALL"},
            stdout=out,
            stderr=subprocess.STDOUT,
        )
        states: dict[str, str] = {}
        try:
            end = time.monotonic() + 400
            while script.poll() is None and time.monotonic() < end:
                listed = slurm.call("squeue", "--noheader", "--states=all", "--format=%A %T").stdout
                states |= dict(line.split() for line in listed.splitlines())
                time.sleep(1)
        finally:
            script.kill()
            script.wait()
    output = (folder / "out.txt").read_text()
    assert script.returncode == 0, output
    assert sorted(map(int, output.split())) == list(range(count)), output
    slurm.wait_for_nothing()
    return [state for state in states.values() if state in ENDED]


@pytest.mark.slow
@pytest.mark.parametrize("cores", [1, 2])
def test_at_walltimes_no_task_is_lost_or_repeated(slurm: Slurm, tmp_path: Path, cores: int) -> None:
    states = run_at_walltimes(slurm, tmp_path, count=26 * cores, seconds=7, cores=cores)
    assert starts(tmp_path) == Counter(range(26 * cores))
    assert states.count("COMPLETED") >= 2 and "TIMEOUT" not in states, states


@pytest.mark.slow
def test_a_task_too_long_for_the_rest_of_a_walltime_is_repeated_once(slurm: Slurm, tmp_path: Path) -> None:
    run_at_walltimes(slurm, tmp_path, count=6, seconds=30, cores=1)
    counts = starts(tmp_path)
    assert max(counts.values()) == 2, f"no task met a walltime, or one did more than once: {counts}"
