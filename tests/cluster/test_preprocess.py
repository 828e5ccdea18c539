"""`sbatch cluster/preprocess.sbatch` on a real cluster: built by jobs that it submits, with a local run's bytes."""

from __future__ import annotations

import time
from pathlib import Path

import imageio_ffmpeg
import pytest

from tests.cluster.slurm import Slurm
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
