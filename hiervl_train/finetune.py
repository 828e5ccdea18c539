# PYTHON_ARGCOMPLETE_OK
"""Fine-tunes a checkpoint from shards: `torchrun … hiervl_train/finetune.py --config F --checkpoint C [key=value …]`.

Runs are resumable: rerun the same command. Exit codes: `configs.cli.ExitCode`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from configs.cli import Command, Request
from configs.loading import ConfigError
from hiervl_train.distributed import DistributedContext
from hiervl_train.launch import launch
from hiervl_train.task import Task
from hiervl_train.tasks.config import FinetuneConfig
from hiervl_train.tasks.finetuning import finetuning_task


def main(argv: Sequence[str] | None = None) -> int:
    """Run what the command line asks for; return the exit code."""
    command = Command("torchrun … hiervl_train/finetune.py", __doc__, FinetuneConfig)
    command.flag("--checkpoint", key="init_from", metavar="PATH", help="start from this run, checkpoint or .pth")
    command.resumes("Run the same command again to resume from the last checkpoint.")
    return command.run(lambda request: launch(_configuration(request), _task), argv)


def _configuration(request: Request[FinetuneConfig]) -> FinetuneConfig:
    if request.file is None:
        raise ConfigError("--config is missing: name a task's, as configs/finetune/charades_ego.yaml")
    return request.config


def _task(config: FinetuneConfig, context: DistributedContext) -> Task:
    """Return the fine-tuning task with its evaluation: the only place where training meets `eval`."""
    from eval.in_training import periodic_benchmark

    return finetuning_task(config, context, evaluate=periodic_benchmark(config))


if __name__ == "__main__":
    sys.exit(main())
