"""Pretrains HierVL from shards: `torchrun … hiervl_train/pretrain.py [--config F] [key=value …]`.

Without arguments: a small model on the embedded dataset. The same command goes on with a run that was stopped, by
whatever. Exit codes: 0 done, 1 failed, 2 usage, 3 the losses are not finite any more, 85 stopped before the end and
saved (run again), 130 interrupted.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from configs.loading import load
from hiervl_train.config import PretrainConfig
from hiervl_train.distributed import DistributedContext
from hiervl_train.launch import launch
from hiervl_train.tasks.pretraining import pretraining_task
from hiervl_train.trainer import Task

SMALL = Path(__file__).resolve().parent.parent / "configs" / "pretrain" / "small.yaml"


def main(argv: Sequence[str] | None = None) -> int:
    """Run what the command line asks for; return the exit code."""
    parser = argparse.ArgumentParser(prog="pretrain.py", description=__doc__.split("\n")[0])
    parser.add_argument("--config", type=Path, default=SMALL, help="YAML of PretrainConfig (default: the small model)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="as run.folder=runs/mine")
    arguments = parser.parse_args(argv)
    return launch(lambda: load(PretrainConfig, arguments.config, arguments.overrides), _task)


def _task(config: PretrainConfig, here: DistributedContext) -> Task:
    """Return the pretraining task, with what evaluates it: the two rooms meet only here."""
    if not config.evaluation.is_on:
        return pretraining_task(config, here)
    from eval.in_training import periodic_mcq

    return pretraining_task(config, here, evaluate=periodic_mcq(config))


if __name__ == "__main__":
    sys.exit(main())
