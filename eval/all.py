"""Runs every benchmark whose set is in a dataset, and makes one table of all: `python eval/all.py --checkpoint C`.

    python eval/all.py --checkpoint C --shards ROOT [--only egomcq --only epic_mir] [--config F] [key=value …]

Where a dataset has clips or summaries to validate on, but no multiple-choice benchmark of that level, questions are
made of them (`eval/mcq_builder.py`). One that fails is named and the others go on. Results lie in
RUN/evaluation/<benchmark>, with the table over all in RUN/evaluation. Exit codes: 0 done, 1 one failed, 2 usage, 3 more
items missing than `max_missing_fraction`, 130 interrupted.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from configs.loading import ConfigError
from eval import charades_ego, egomcq, epic_mir, howto100m, shufflemcq, summarymcq
from eval.benchmark import (
    FAILED,
    FAILURES,
    OK,
    USAGE,
    USAGE_ERRORS,
    Benchmark,
    BenchmarkOutput,
    Context,
    argument_parser,
    config_file,
    guarded,
    open_for,
    overrides,
    run,
    scores_table,
)
from eval.config import BENCHMARKS, EvalConfig, load_eval
from eval.mcq_builder import McqConfig, build, read_candidates
from eval.report.write import write_overview
from eval.results import Result, ResultError
from hiervl_train.checkpoint.open import OpenConfig, OpenedCheckpoint
from hiervl_train.distributed import DistributedContext
from shards.dataset import Dataset
from shards.sources import open_source

ENTRIES: dict[str, Benchmark] = {
    entry.name: entry
    for entry in (
        egomcq.BENCHMARK,
        summarymcq.BENCHMARK,
        shufflemcq.BENCHMARK,
        epic_mir.BENCHMARK,
        charades_ego.BENCHMARK,
        howto100m.BENCHMARK,
    )
}


@dataclass(frozen=True, kw_only=True)
class BenchmarkPlan:
    """A benchmark to run, or why it cannot be."""

    name: str  # of the section in a configuration that is for it
    benchmark: Benchmark | None = None
    absent: str = ""


def main(argv: Sequence[str] | None = None) -> int:
    """Run what the command line asks for; return the exit code."""
    parser = argument_parser("all.py", "Every benchmark whose set is in the dataset, and one table of all")
    parser.add_argument("--only", action="append", choices=BENCHMARKS, help="this one; may be given more than once")
    arguments = parser.parse_intermixed_args(argv)

    def read(benchmark: str) -> EvalConfig:
        config = load_eval(benchmark, config_file(arguments), overrides(arguments))
        for name in ("questions", "set", "split"):
            if getattr(config, name) is not None:
                raise ConfigError(f"{name} = {getattr(config, name)}: it is for one benchmark; run that by itself")
        return config

    def work(here: DistributedContext, console: Console) -> int:
        return evaluate_all(read, arguments.only or BENCHMARKS, here, console)

    return guarded(work, lambda: read(BENCHMARKS[0]))


def evaluate_all(
    read: Callable[[str], EvalConfig], names: Sequence[str], here: DistributedContext, console: Console
) -> int:
    """Run the benchmarks called `names`, each with its own configuration; return the exit code."""
    errors = Console(stderr=True, highlight=False, soft_wrap=True)
    config = read(names[0])
    opened: dict[str, OpenedCheckpoint] = {}
    _open(config, config.opening(), here, opened)  # one that cannot be opened is said once, before anything else
    plans = list(plan(open_source(config.shards, config.source).dataset, names))
    results: list[Result] = []
    codes: list[int] = []
    overview: Path | None = None
    for entry in plans:
        if entry.benchmark is None:
            if here.is_main:
                console.print(f"{entry.name}: {entry.absent}", soft_wrap=True, markup=False)
            continue
        try:
            own = read(entry.name)
            model = _open(own, own.opening(), here, opened)
            overview = own.out if own.out is not None else own.overview(model)
            own = dataclasses.replace(own, out=overview / entry.benchmark.name)
            done = run(entry.benchmark, own, model, here, console)
            codes.append(done.code)
            if done.result is not None:
                results.append(done.result)
        except (*USAGE_ERRORS, *FAILURES, ResultError) as error:
            errors.print(f"[red]{entry.benchmark.name} failed:[/] {escape(f'{type(error).__name__}: {error}')}")
            codes.append(FAILED)
    if not any(entry.benchmark is not None for entry in plans):
        errors.print(f"[red]cannot run:[/] {escape(config.shards)} has none of the benchmarks {', '.join(names)}")
        return USAGE
    if results and overview is not None:
        page = write_overview(results, overview)
        console.print(scores_table(results))
        console.print(f"report: {page}", soft_wrap=True, markup=False)
    return FAILED if FAILED in codes else max(codes, default=OK)


def plan(dataset: Dataset, names: Sequence[str]) -> Iterator[BenchmarkPlan]:
    """Yield what to run of the benchmarks called `names`, in their order, and what is not there."""
    for name in names:
        entry = ENTRIES[name]
        if _has(dataset, entry.set_name, entry.split):
            yield BenchmarkPlan(name=name, benchmark=entry)
        elif name in _MADE_OF and _has(dataset, _MADE_OF[name], "val"):
            yield BenchmarkPlan(name=name, benchmark=_made(entry, _MADE_OF[name]))
        else:
            yield BenchmarkPlan(name=name, absent=f"not run: the dataset has no {entry.set_name}/{entry.split}")


_MADE_OF = {"egomcq": "clips", "summarymcq": "summaries", "shufflemcq": "summaries"}


def _has(dataset: Dataset, set_name: str, split: str) -> bool:
    found = dataset.sets.get(set_name, {}).get(split)
    return found is not None and found.samples > 0


def _made(entry: Benchmark, set_name: str) -> Benchmark:
    """Return the benchmark over a validation split instead: no published figure is of it, so it has its own name."""
    if entry.name == "shufflemcq":
        return dataclasses.replace(entry, name=f"{entry.name}-{set_name}", set_name=set_name, split="val")
    return Benchmark(
        name=f"{set_name}-mcq", set_name=set_name, split="val", evaluate=_evaluate_made, title="made of a split"
    )


def _evaluate_made(context: Context) -> BenchmarkOutput | None:
    """Score questions that are made of the split."""
    config = McqConfig(
        seed=context.config.seed,
        types=("inter",) if context.set_name == "summaries" else ("inter", "intra"),
        questions=context.config.made_questions,
    )
    built = build(
        read_candidates(context.source, context.set_name, context.split),
        config,
        fingerprint=context.source.dataset.split(context.set_name, context.split).fingerprint,
        set_name=context.set_name,
        split=context.split,
        name=f"{context.set_name}-mcq",
    )
    return egomcq.evaluate_questions(context, built.questions, is_all=False)


def _open(
    config: EvalConfig, opening: OpenConfig, here: DistributedContext, opened: dict[str, OpenedCheckpoint]
) -> OpenedCheckpoint:
    """Return the checkpoint as one benchmark wants it, opened once for all that want it alike."""
    if repr(opening) not in opened:
        opened.clear()  # one model at a time on the device
        opened[repr(opening)] = open_for(config, here)
    return opened[repr(opening)]


if __name__ == "__main__":
    sys.exit(main())
