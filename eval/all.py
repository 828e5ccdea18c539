# PYTHON_ARGCOMPLETE_OK
"""Evaluates every benchmark that a dataset has and prints one table: `python eval/all.py --checkpoint C`.

    python eval/all.py --checkpoint C --shards ROOT [--only egomcq --only epic_mir] [--config F] [key=value …]

If a dataset has a validation split of clips or summaries, but no multiple-choice benchmark of that level, questions are
generated from the split (`eval/mcq_builder.py`). If a benchmark fails, the others still run. Results are written to
RUN/evaluation/<benchmark>, and the table over all to RUN/evaluation. Exit codes: `configs.cli.ExitCode`.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs.cli import ExitCode, Request, exit_code_of, report
from configs.loading import ConfigError
from eval import charades_ego, egomcq, epic_mir, howto100m, mcq, recall, shufflemcq, summarymcq
from eval.benchmark import Benchmark, Context, Inputs
from eval.command import eval_command, on_all_ranks
from eval.config import BENCHMARKS, EvalConfig, load_eval
from eval.mcq_builder import McqConfig, build, read_candidates
from eval.report.write import write_overview
from eval.results import Result
from eval.run import open_configured, run_benchmark, scores_table
from hiervl_train.checkpoint.open import OpenedCheckpoint
from hiervl_train.distributed import DistributedContext
from shards.companions import Questions
from shards.dataset import Dataset
from shards.sources import open_source

ENTRIES: dict[str, Benchmark[Any]] = {
    entry.name: entry
    for entry in (
        egomcq.BENCHMARK,
        summarymcq.BENCHMARK,
        shufflemcq.BENCHMARK,
        epic_mir.BENCHMARK,
        charades_ego.BENCHMARK,
        howto100m.BENCHMARK,
        recall.BENCHMARK,
    )
}


@dataclass(frozen=True, kw_only=True)
class BenchmarkPlan:
    """A benchmark to run, or why it is not run."""

    name: str  # key of its section in `benchmarks`
    benchmark: Benchmark[Any] | None = None
    absent: str = ""


def main(argv: Sequence[str] | None = None) -> int:
    """Run what the command line asks for; return the exit code."""
    command = eval_command("python eval/all.py", __doc__)
    command.flag("--only", action="append", choices=BENCHMARKS, help="this benchmark; may be repeated")

    def work(request: Request[EvalConfig]) -> int:
        def read(benchmark: str) -> EvalConfig:
            config = load_eval(benchmark, request.file, request.overrides)
            given = {"questions": config.questions, "data.set": config.data.set, "data.split": config.data.split}
            for key, value in given.items():
                if value is not None:
                    raise ConfigError(f"{key} = {value}: applies to a single benchmark; run that one by itself")
            return config

        def evaluate(ranks: DistributedContext) -> int:
            return evaluate_all(read, request.flags.only or BENCHMARKS, ranks, request)

        return on_all_ranks(evaluate, read(BENCHMARKS[0]).distributed)

    return command.run(work, argv)


def evaluate_all(
    read: Callable[[str], EvalConfig], names: Sequence[str], ranks: DistributedContext, request: Request[EvalConfig]
) -> int:
    """Run the benchmarks called `names`, each with its own configuration; return the exit code."""
    console = request.console
    config = read(names[0])
    opened: dict[str, OpenedCheckpoint] = {}
    _open(config, ranks, opened)  # an error of the checkpoint is reported once, before any benchmark runs
    plans = list(plan(open_source(config.data.root, config.data.source).dataset, names))
    if not any(entry.benchmark is not None for entry in plans):
        raise ConfigError(f"{config.data.root} has none of the benchmarks {', '.join(names)}")
    results: list[Result] = []
    codes: list[int] = []
    overview: Path | None = None
    for entry in plans:
        if entry.benchmark is None:
            if ranks.is_main:
                console.print(f"{entry.name}: {entry.absent}", soft_wrap=True, markup=False)
            continue
        try:
            own = read(entry.name)
            model = _open(own, ranks, opened)
            overview = own.output if own.output is not None else own.overview(model)
            own = dataclasses.replace(own, output=overview / entry.benchmark.name)
            done = run_benchmark(entry.benchmark, own, model, ranks, console)
            codes.append(done.code)
            if done.result is not None:
                results.append(done.result)
        except Exception as error:
            if exit_code_of(error) is None and ranks.world > 1:
                raise  # a bug of one rank alone: the others wait for it in the next collective
            report(error, where=entry.benchmark.name, is_debug=request.flags.debug)
            codes.append(ExitCode.FAILED)
    if results and overview is not None:
        page = write_overview(results, overview)
        console.print(scores_table(results))
        console.print(f"report: {page}", soft_wrap=True, markup=False)
    return ExitCode.FAILED if ExitCode.FAILED in codes else max(codes, default=ExitCode.OK)


def plan(dataset: Dataset, names: Sequence[str]) -> Iterator[BenchmarkPlan]:
    """Yield a plan for each of the benchmarks called `names`, in their order."""
    for name in names:
        entry = ENTRIES[name]
        if name == recall.NAME:
            yield from _recalls(dataset)
        elif _has(dataset, entry.set_name, entry.split):
            yield BenchmarkPlan(name=name, benchmark=entry)
        elif name in _GENERATED_FROM and _has(dataset, _GENERATED_FROM[name], "val"):
            yield BenchmarkPlan(name=name, benchmark=_generated(entry, _GENERATED_FROM[name]))
        else:
            yield BenchmarkPlan(name=name, absent=f"not run: the dataset has no {entry.set_name}/{entry.split}")


def _recalls(dataset: Dataset) -> Iterator[BenchmarkPlan]:
    """Yield a plan for the validation split of each level that the dataset has."""
    found = [set_name for set_name in ("clips", "summaries") if _has(dataset, set_name, "val")]
    for set_name in found:
        own = recall.recall_of(set_name, name=f"{recall.NAME}-{set_name}")
        yield BenchmarkPlan(name=recall.NAME, benchmark=own)
    if not found:
        yield BenchmarkPlan(name=recall.NAME, absent="not run: the dataset has neither clips/val nor summaries/val")


_GENERATED_FROM = {"egomcq": "clips", "summarymcq": "summaries", "shufflemcq": "summaries"}


def _has(dataset: Dataset, set_name: str, split: str) -> bool:
    found = dataset.sets.get(set_name, {}).get(split)
    return found is not None and found.samples > 0


def _generated(entry: Benchmark[Any], set_name: str) -> Benchmark[Any]:
    """Return the benchmark over a validation split instead, named after it, as no published score is comparable."""
    if entry.name == "shufflemcq":
        return dataclasses.replace(entry, name=f"{entry.name}-{set_name}", set_name=set_name, split="val")
    return Benchmark(
        name=f"{set_name}-mcq",
        set_name=set_name,
        split="val",
        title=f"Questions generated from {set_name}/val",
        read=_generate_questions,
        inputs=lambda context, questions: Inputs(
            texts=[question.text for question in questions.questions], keys=questions.keys()
        ),
        score=mcq.score,
    )


def _generate_questions(context: Context) -> Questions:
    """Return questions generated from the benchmark's split."""
    config = McqConfig(
        seed=context.config.seed,
        types=("inter",) if context.set_name == "summaries" else ("inter", "intra"),
        questions=context.config.made_questions,
    )
    return build(
        read_candidates(context.source, context.set_name, context.split),
        config,
        fingerprint=context.source.dataset.split(context.set_name, context.split).fingerprint,
        set_name=context.set_name,
        split=context.split,
        name=f"{context.set_name}-mcq",
    ).questions


def _open(config: EvalConfig, ranks: DistributedContext, opened: dict[str, OpenedCheckpoint]) -> OpenedCheckpoint:
    """Return the checkpoint as one benchmark needs it, opened once for all that need it alike."""
    opening = repr(config.opening())
    if opening not in opened:
        opened.clear()  # one model at a time on the device
        opened[opening] = open_configured(config, ranks)
    return opened[opening]


if __name__ == "__main__":
    sys.exit(main())
