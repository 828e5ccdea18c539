"""Runs tasks on two SLURM jobs of Dask workers with a walltime of a minute, and prints the number of each one's end.

python -m tests.cluster.worker_jobs FOLDER COUNT SECONDS CORES
"""

from __future__ import annotations

import sys
from pathlib import Path

from preprocessing import jobs
from preprocessing.config import DaskConfig, SlurmConfig
from preprocessing.jobs import DaskJob
from tests.preprocessing.slurm.tasks import Work, work


def main(folder: Path, count: int, seconds: float, cores: int) -> None:
    """Run the tasks; every other one is limited to one a worker, as those that run ffmpeg are."""
    slurm = SlurmConfig(jobs=2, cores=cores, memory="2GB", walltime="00:01:00", interface="lo")
    tasks = [Work(folder=folder, number=number, seconds=seconds) for number in range(count)]
    todo = [
        DaskJob(name=f"t{task.number}", stage="a", function=work, task=task, runs_ffmpeg=task.number % 2 == 0)
        for task in tasks
    ]
    with jobs.cluster(DaskConfig(cluster="slurm", slurm=slurm), scratch=str(folder / "dask")) as client:
        for end in jobs.run(client, todo):
            print(end.value, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4]))
