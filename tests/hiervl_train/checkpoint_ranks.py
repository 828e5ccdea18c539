"""What one of two ranks does in the tests of a run's checkpoints; see the scenarios.

python -m tests.hiervl_train.checkpoint_ranks RANK WORLD FOLDER SCENARIO
"""

from __future__ import annotations

import logging
import random
import shutil
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from hiervl_train.checkpoint.files import read_manifest
from hiervl_train.checkpoint.manager import Checkpoints, SaveConfig
from hiervl_train.models.errors import CheckpointError
from hiervl_train.random_states import RandomStates
from tests.hiervl_train.run_states import tiny_state

CONFIG = SaveConfig(timeout_seconds=20.0)


def save_and_load(rank: int, world: int, folder: Path) -> None:
    """Save twice; every rank's random numbers go on where they were."""
    with Checkpoints(folder / "run", CONFIG, rank=rank, world=world) as checkpoints:
        assert checkpoints.load_latest() is None
        random.seed(rank)
        torch.manual_seed(rank)
        for step in (10, 20):
            checkpoints.save(tiny_state(step, random=RandomStates.take()), wait=step == 20)
        # `wait`: complete on return, on every rank.
        assert read_manifest(folder / "run" / "step-00000020").world == world
        drawn = (random.random(), torch.rand(3).tolist())
        torch.manual_seed(100)
        state = checkpoints.load_latest()
        assert state is not None and state.step == 20
        state.random.restore()
        assert (random.random(), torch.rand(3).tolist()) == drawn
        print(f"rank {rank} drew {drawn[0]}")


def file_missing(rank: int, world: int, folder: Path) -> None:
    """Load where the newest checkpoint lacks the file of rank 1."""
    run = folder / "file missing"
    if rank == 0:
        shutil.copytree(folder / "run", run)
        (run / "step-00000020" / "random-00001.safetensors").unlink()
    with Checkpoints(run, CONFIG, rank=rank, world=world) as checkpoints:
        state = checkpoints.load_latest()
        print(f"file missing: rank {rank} loaded {state and state.step}")


def one_node_reads_otherwise(rank: int, world: int, folder: Path) -> None:
    """Load where only rank 1 finds the newest one damaged, as on a node with a bad mount."""
    mine = folder / f"seen by {rank}"
    shutil.copytree(folder / "run", mine)
    if rank == 1:
        weights = mine / "step-00000020" / "model.safetensors"
        data = bytearray(weights.read_bytes())
        data[-1] ^= 1
        weights.write_bytes(data)
    dist.barrier()
    with Checkpoints(mine, CONFIG, rank=rank, world=world) as checkpoints:
        state = checkpoints.load_latest()
        print(f"one node: rank {rank} loaded {state and state.step}")


def rank_1_never_writes(rank: int, world: int, folder: Path) -> None:
    """Save on rank 0 alone: it gives up after the timeout and says so."""
    config = SaveConfig(timeout_seconds=0.5)
    checkpoints = Checkpoints(folder / "other", config, rank=rank, world=world)
    if rank == 0:
        try:
            checkpoints.save(tiny_state(1), wait=True)
        except CheckpointError as error:
            print(f"rank 0: {error}")
        assert not list((folder / "other").iterdir())


SCENARIOS = (save_and_load, file_missing, one_node_reads_otherwise, rank_1_never_writes)


def main(rank: int, world: int, folder: Path) -> None:
    torch.set_num_threads(1)
    logging.basicConfig(stream=sys.stdout, format=f"rank {rank} %(levelname)s %(message)s")
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    for scenario in SCENARIOS:
        scenario(rank, world, folder)
        dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
