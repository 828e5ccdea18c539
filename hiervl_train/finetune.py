# PYTHON_ARGCOMPLETE_OK
"""Fine-tunes a checkpoint from shards: `torchrun … hiervl_train/finetune.py --config F --checkpoint C [key=value …]`.

Runs are resumable: rerun the same command. Exit codes: `configs.cli.ExitCode`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

from rich.console import Console

from configs.cli import Command, Request
from configs.loading import ConfigError
from hiervl_train.distributed import DistributedContext, broadcast_text
from hiervl_train.launch import launch
from hiervl_train.models import HierVL
from hiervl_train.tasks.config import FinetuneConfig
from hiervl_train.tasks.finetuning import finetuning_task
from hiervl_train.tokenizer import Tokenizer
from hiervl_train.trainer import Evaluate, Task
from shards.sources import open_source

# What a run is scored by on the way; eval/charades_ego.py and eval/epic_mir.py say more of a finished one. (HowTo100M's
# head is a part of the run, which scores it itself.)
_SCORES = {"charades_ego": ("mAP",), "epic_mir": ("mAP", "nDCG")}


def main(argv: Sequence[str] | None = None) -> int:
    """Run what the command line asks for; return the exit code."""
    command = Command("torchrun … hiervl_train/finetune.py", __doc__, FinetuneConfig)
    command.flag("--checkpoint", key="init_from", metavar="PATH", help="start from this run, checkpoint or .pth")
    command.resumes("Rerun the same command to resume from the last checkpoint.")
    return command.run(lambda request: launch(_configuration(request), _task), argv)


def _configuration(request: Request[FinetuneConfig]) -> FinetuneConfig:
    if request.file is None:
        raise ConfigError("--config is missing: name a task's, as configs/finetune/charades_ego.yaml")
    return request.config


def _task(config: FinetuneConfig, here: DistributedContext) -> Task:
    """Return the fine-tuning task, with what evaluates it: the two rooms meet only here."""
    evaluate = _benchmark(config) if config.evaluation.is_on and config.task.name in _SCORES else None
    return finetuning_task(config, here, evaluate=evaluate)


def _benchmark(config: FinetuneConfig) -> Evaluate:
    """Return what runs the task's own benchmark on the model as it is, with clips read as in training.

    Raises `ShardError` where the dataset has no such test. Nothing is kept, as the weights change.
    """
    from eval import charades_ego, epic_mir
    from eval.benchmark import Context
    from eval.config import EvalConfig
    from eval.embed import EmbedSettings
    from hiervl_train.checkpoint.open import OpenedCheckpoint

    name, data = config.task.name, config.data
    benchmark = {"charades_ego": charades_ego.BENCHMARK, "epic_mir": epic_mir.BENCHMARK}[name]
    source = open_source(data.root, data.source)
    source.dataset.split(benchmark.set_name, benchmark.split)
    settings = EmbedSettings(
        frames=config.sample.frames,
        channel_order=config.compat.channel_order,
        batch=config.schedule.micro_batch or config.schedule.batch,
        speed=config.speed,
        decoder=data.decoder,
        workers=data.workers,
        worker_timeout_seconds=data.worker_timeout_seconds,
        max_consecutive_failures=data.max_consecutive_failures,
        source=data.source,
    )
    asked = EvalConfig(shards=data.root, cache=None, compat=config.compat, resamples=1, source=data.source)

    def evaluate(model: HierVL, tokenizer: Tokenizer, ranks: DistributedContext) -> dict[str, float]:
        context = Context(
            config=asked,
            settings=settings,
            opened=OpenedCheckpoint(model=model, tokenizer=tokenizer, digest="", path=config.run.folder),
            source=source,
            ranks=ranks,
            set_name=benchmark.set_name,
            split=benchmark.split,
            console=Console(quiet=True),
        )
        found = benchmark.evaluate(context)
        scores = {score.name: score.value for score in found.scores} if found is not None else {}
        told = {f"{name}/{score}": scores[score] for score in _SCORES[name] if score in scores}
        heard: dict[str, float] = json.loads(broadcast_text(json.dumps(told), ranks.control) or "{}")
        return heard

    return evaluate


if __name__ == "__main__":
    sys.exit(main())
