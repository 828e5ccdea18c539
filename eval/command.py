"""The command line of every evaluation: `python eval/egomcq.py --checkpoint C --shards ROOT [key=value …]`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from configs.cli import Command, Request
from eval.benchmark import Benchmark
from eval.config import EvalConfig, load_eval
from eval.run import open_configured, run_benchmark, scores_table
from hiervl_train.collectives import broadcast_json
from hiervl_train.distributed import DistributedConfig, DistributedContext, distributed_context

EMBEDDED = Path(__file__).resolve().parent.parent / "configs" / "eval" / "embedded.yaml"


def eval_command(prog: str, doc: str | None) -> Command[EvalConfig]:
    """Return the command line of an evaluation; without a dataset or `--config` it is about the embedded dataset."""
    command = Command(prog, doc, EvalConfig, default=EMBEDDED, default_unless=("data.root",))
    command.flag("--checkpoint", key="checkpoint", metavar="PATH", help="a run, one of its checkpoints, or a .pth")
    command.flag("--shards", key="data.root", metavar="ROOT", help="the dataset: a folder or URL")
    command.resumes("Finished embeddings are kept: run the same command again to resume.")
    return command


def main(benchmark: Benchmark[Any], argv: Sequence[str] | None = None) -> int:
    """Run a benchmark as the command line asks; return the exit code."""
    command = eval_command(f"python eval/{benchmark.name}.py", benchmark.title)
    command.flag("--questions", key="questions", metavar="FILE", help="questions instead of the benchmark's own")
    command.flag("--set", key="data.set", help=f"the set whose samples are embedded (default: {benchmark.set_name})")
    command.flag("--split", key="data.split", help=f"its split (default: {benchmark.split})")

    def work(request: Request[EvalConfig]) -> int:
        config = load_eval(benchmark.name, request.file, request.overrides)

        def score(ranks: DistributedContext) -> int:
            done = run_benchmark(benchmark, config, open_configured(config, ranks), ranks, request.console)
            if done.result is not None:
                request.console.print(scores_table([done.result]))
                request.console.print(f"{done.page}", soft_wrap=True, markup=False)
            return done.code

        return on_all_ranks(score, config.distributed)

    return command.run(work, argv)


def on_all_ranks(work: Callable[[DistributedContext], int], config: DistributedConfig) -> int:
    """Join the other ranks and do `work` on each; return the first rank's exit code on all of them."""
    with distributed_context(config) as ranks:
        code: int = broadcast_json(int(work(ranks)), ranks.control)
        if code and ranks.world > 1:
            sys.exit(code)
    return code
