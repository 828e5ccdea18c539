# PYTHON_ARGCOMPLETE_OK
"""Extracts features of a dataset's samples: `python preprocessing/extract_features.py [--config F] [key=value …]`.

    python preprocessing/extract_features.py data.root=ROOT name=NAME checkpoint=RUN
    torchrun --nproc-per-node 8 preprocessing/extract_features.py …                    on GPUs
    python preprocessing/extract_features.py … dask.workers=16                         on CPU cores, or SLURM jobs

It writes ROOT/features/NAME, which docs/shards.md describes. Extraction is resumable: rerun the same command. Exit
codes: `configs.cli.ExitCode`.
"""

from __future__ import annotations

import dataclasses
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from configs.cli import Command, ExitCode, Request
from hiervl_train.features import (
    DistributedContext,
    ExtractConfig,
    Extraction,
    Outcome,
    distributed_context,
    extract_on_ranks,
    extract_task,
    open_extraction,
    tasks_of,
)
from preprocessing import jobs
from preprocessing.config import DaskConfig


@dataclass(frozen=True, kw_only=True)
class ExtractFeaturesConfig(ExtractConfig):
    """One feature set of one dataset, and where it is computed."""

    # Workers on CPU cores or in SLURM jobs, each with one thread; null: in this process, or on torchrun's ranks.
    dask: DaskConfig | None = None


def main(argv: Sequence[str] | None = None) -> int:
    """Extract what the command line asks for; return the exit code."""
    command = Command("python preprocessing/extract_features.py", __doc__, ExtractFeaturesConfig)
    command.flag("--checkpoint", key="checkpoint", metavar="PATH", help="a run, one of its checkpoints, or a .pth")
    command.flag("--shards", key="data.root", metavar="ROOT", help="the dataset: a folder or URL")
    command.resumes("Shards that are extracted are kept: run the same command again to resume.")
    return command.run(_run, argv)


def _run(request: Request[ExtractFeaturesConfig]) -> int:
    config, console = request.config, request.console
    began = time.perf_counter()
    if config.dask is not None:
        outcome = _on_dask(config, config.dask, console)
    else:
        with distributed_context(config.distributed) as ranks, _progress(console, ranks) as (start, advance):
            outcome = extract_on_ranks(config, ranks, on_start=start, on_samples=advance)
            if not ranks.is_main:
                return ExitCode.OK
    return _report(outcome, config, console, seconds=time.perf_counter() - began)


def _on_dask(config: ExtractFeaturesConfig, dask: DaskConfig, console: Console) -> Outcome:
    """Extract what is missing by Dask workers, a shard at a time each."""
    plain = ExtractConfig(**{each.name: getattr(config, each.name) for each in dataclasses.fields(ExtractConfig)})
    # A Dask worker may not start processes of its own.
    plain = dataclasses.replace(plain, data=dataclasses.replace(plain.data, workers=0))
    extraction = open_extraction(plain)
    work = extraction.missing()
    samples, failed, errors = 0, 0, []
    with _progress(console, DistributedContext()) as (start, advance), tempfile.TemporaryDirectory() as scratch:
        start(extraction, sum(s.samples for s in extraction.splits), sum(s.shards[at].samples for s, at in work))
        listed = [
            jobs.DaskJob(name=task.name, stage="extract", function=extract_task, task=task)
            for task in tasks_of(extraction, plain, work)
        ]
        if listed:
            with jobs.cluster(dask, scratch=scratch) as client:
                for outcome in jobs.run(client, listed):
                    if outcome.error is not None:
                        errors.append(f"{outcome.job.name}: {outcome.error}")
                        continue
                    for done in outcome.value:
                        samples, failed = samples + done.samples, failed + done.failed
                        errors += [f"{done.set_name}/{done.split}/{done.shard}: {done.error}"] if done.error else []
                        advance(done.samples)
    features = extraction.finish() if not errors else None
    return Outcome(features=features, samples=samples, failed=failed, errors=tuple(errors), is_whole=not errors)


@contextmanager
def _progress(
    console: Console, ranks: DistributedContext
) -> Iterator[tuple[Callable[[Extraction, int, int], None], Callable[[int], None]]]:
    """Yield what is called at the start and what is called with samples done: a bar with their rate, of one rank."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"))
    with Progress(*columns, TimeRemainingColumn(), console=console, disable=not ranks.is_main) as bar:
        task = bar.add_task("extracting", total=None, rate="")
        began, done = time.perf_counter(), 0

        def start(extraction: Extraction, samples: int, missing: int) -> None:
            nonlocal began
            began = time.perf_counter()
            sets = ", ".join(f"{split.set_name}/{split.split}" for split in extraction.splits)
            kept = f"; {samples - missing:,} are done" if missing < samples else ""
            console.print(f"{samples:,} samples of {sets}{kept} → {extraction.writer.folder}", soft_wrap=True)
            bar.update(task, total=-(-missing // ranks.world))

        def advance(samples: int) -> None:
            nonlocal done
            done += samples
            rate = done / max(1e-9, time.perf_counter() - began) * ranks.world
            bar.update(task, advance=samples, rate=f"{rate:,.0f} samples/s")

        yield start, advance


def _report(outcome: Outcome, config: ExtractConfig, console: Console, *, seconds: float) -> int:
    rate = outcome.samples / max(seconds, 1e-9)
    console.print(
        f"{outcome.samples:,} samples in {seconds:.1f} s, model and start included ({rate:,.0f}/s); "
        f"{outcome.failed:,} without features",
        soft_wrap=True,
    )
    for error in outcome.errors[:10]:
        console.print(f"[red]✗[/] {escape(error)}", soft_wrap=True)
    if not outcome.is_whole:
        console.print("not finished: some shards could not be extracted; repair them and run the same command again")
        return ExitCode.TOO_MANY_FAILURES
    features = outcome.features
    assert features is not None
    failed = sum(split.failed for split in features.splits.values())
    total = sum(split.samples for split in features.splits.values())
    console.print(f"wrote {features.folder / 'feature.json'}", soft_wrap=True, markup=False)
    if failed > config.max_failed_fraction * max(1, total):
        console.print(f"{failed:,} of {total:,} samples have no features: the stats files say why", soft_wrap=True)
        return ExitCode.TOO_MANY_FAILURES
    return ExitCode.OK


if __name__ == "__main__":
    sys.exit(main())
