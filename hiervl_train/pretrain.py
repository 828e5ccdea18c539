# PYTHON_ARGCOMPLETE_OK
"""Pretrains HierVL from shards: `torchrun … hiervl_train/pretrain.py [--config F] [key=value …]`.

Without arguments it trains a small model on the embedded dataset. Runs are resumable: rerun the same command.
Exit codes: `configs.cli.ExitCode`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from configs.cli import Command, Request
from hiervl_train.config import PretrainConfig
from hiervl_train.distributed import DistributedContext
from hiervl_train.launch import launch
from hiervl_train.sizing import sized
from hiervl_train.task import Task
from hiervl_train.tasks.pretraining import pretraining_task

SMALL = Path(__file__).resolve().parent.parent / "configs" / "pretrain" / "small.yaml"


def main(argv: Sequence[str] | None = None) -> int:
    """Run what the command line asks for; return the exit code."""
    command = Command("torchrun … hiervl_train/pretrain.py", __doc__, PretrainConfig, default=SMALL)
    command.resumes("Run the same command again to resume from the last checkpoint.")
    return command.run(_run, argv)


def _run(request: Request[PretrainConfig]) -> int:
    def say(text: str) -> None:
        if os.environ.get("RANK", "0") == "0":
            request.console.print(text, markup=False, soft_wrap=True)

    return launch(sized(request.config, say), _task)


def _task(config: PretrainConfig, context: DistributedContext) -> Task:
    """Return the pretraining task with its evaluation: the only place where training meets `eval`."""
    if not config.evaluation.is_on:
        return pretraining_task(config, context)
    from eval.in_training import periodic_mcq

    return pretraining_task(config, context, evaluate=periodic_mcq(config))


if __name__ == "__main__":
    sys.exit(main())
