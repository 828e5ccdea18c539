"""Builds shards from raw video and annotations: `python preprocessing/build_shards.py [--config F] [key=value …]`.

Without arguments it renders the embedded dataset and builds that. A run that was stopped, by whatever, is gone
on with by the same command. Exit codes: 0 done, 2 usage, 3 too many failures, 4 the machine failed (run again), 130
interrupted.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from configs.loading import ConfigError, load, to_yaml
from configs.revision import code_revision
from preprocessing import report, stages
from preprocessing.annotations import AnnotationError, read_annotations
from preprocessing.annotations.config import CharadesEgoFiles, EpicMirFiles, HowTo100mFiles
from preprocessing.annotations.metadata import read_excluded
from preprocessing.build_lock import build_lock
from preprocessing.config import BuildConfig
from preprocessing.demo import generate
from preprocessing.demo.benchmarks import BenchmarkFiles
from preprocessing.errors import ExitCode, TooManyFailuresError, TransientError, UsageError
from preprocessing.estimate import dry_run
from preprocessing.publish import close_account, publish, require_companions
from preprocessing.selection import is_accounted_for, read_published, require_same_plan, select
from preprocessing.toolchain import find_ffmpeg, versions
from preprocessing.video.sources import find_videos
from shards.files import remove_temporaries, write_bytes
from shards.stats import ShardError

EMBEDDED = Path(__file__).resolve().parent.parent / "configs" / "preprocess" / "embedded.yaml"


def main(argv: Sequence[str] | None = None) -> int:
    """Build what the command line asks for; return the exit code."""
    parser = argparse.ArgumentParser(prog="build_shards.py", description=__doc__.split("\n")[0])
    parser.add_argument("--config", type=Path, default=EMBEDDED, help="YAML of BuildConfig (default: embedded dataset)")
    parser.add_argument(
        "--dry-run", action="store_true", help="say what would be done and what it costs; write nothing"
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="as chunk.fps=10 or videos.limit=50")
    arguments = parser.parse_args(argv)
    console = Console(highlight=False, soft_wrap=not sys.stdout.isatty())
    errors = Console(stderr=True, highlight=False, soft_wrap=True)
    try:
        config = load(BuildConfig, arguments.config, arguments.overrides)
        with nullcontext() if arguments.dry_run else build_lock(config.output, config.work_folder):
            build(with_embedded_dataset(config, console), console, is_dry_run=arguments.dry_run)
    except (ConfigError, UsageError, AnnotationError, ShardError) as error:
        errors.print(f"[red]cannot build:[/] {escape(str(error))}")
        return ExitCode.USAGE
    except TooManyFailuresError as error:
        errors.print(f"[red]too many failures:[/] {escape(str(error))}")
        return ExitCode.TOO_MANY_FAILURES
    except TransientError as error:
        errors.print(f"[red]the machine failed:[/] {escape(str(error))}")
        errors.print("Nothing is lost: mend that and run the same command again.")
        return ExitCode.TRANSIENT
    except KeyboardInterrupt:
        errors.print("\nStopped. Run the same command again to go on.")
        return ExitCode.INTERRUPTED
    return ExitCode.OK


def build(config: BuildConfig, console: Console, *, is_dry_run: bool = False) -> None:
    """Carry out one build: annotations → hierarchy and plan → chunks → shards → account and index."""
    began = time.monotonic()
    if config.videos.root is None:
        raise UsageError("videos.root is not set: the folder that holds <video_uid>.<extension>")
    ffmpeg = find_ffmpeg(config.ffmpeg)
    toolchain = {**versions(ffmpeg), **config.chunk.format()}
    stages.require_same_format(config, toolchain)

    console.print(f"reading annotations; ffmpeg {toolchain['ffmpeg']}, x264 {toolchain['x264']}")
    annotations = read_annotations(config.annotations)
    excluded = frozenset(read_excluded(config.annotations))
    found = find_videos(config.videos.root, config.videos.pattern)
    published = read_published(config.output)
    require_companions(config.output, annotations, published)
    selection = select(annotations, found, published, config)
    if is_dry_run:
        dry_run(config, annotations, selection, found, ffmpeg=ffmpeg, toolchain=toolchain, console=console)
        return
    done = require_same_plan(config.output, selection.plans, published)
    if not selection.plans and published.next_number and is_accounted_for(annotations, published, config.output):
        console.print(f"{config.output} is up to date: nothing to build")
        return

    remove_temporaries(config.output)
    remove_temporaries(config.work_folder)
    write_bytes(config.work_folder / "config.yaml", f"# {code_revision()}\n{to_yaml(config)}".encode())
    stages.remember_format(config, toolchain)
    with stages.Run(config, annotations, found, ffmpeg=ffmpeg, toolchain=toolchain, console=console) as run:
        sources = run.probe(selection)
        run.chunk_and_pack(selection, sources, done)
    chunks = stages.chunk_records(config, sources)
    account, spans = close_account(config, annotations, selection, chunks, excluded)
    report.require_few_failures(config, account, annotations.sets)
    dataset = publish(config, annotations, account, spans, excluded=excluded, toolchain=toolchain, published=published)
    report.summary(dataset, account, chunks, seconds=time.monotonic() - began, console=console)


def with_embedded_dataset(config: BuildConfig, console: Console) -> BuildConfig:
    """Render the embedded dataset where the configuration asks for it, and return a configuration that points at it."""
    if config.demo is None:
        return config
    console.print(f"embedded dataset in {config.demo_root} (rendered once)")
    made = generate(config.demo, config.demo_root, workers=config.dask.workers)
    annotations = dataclasses.replace(
        config.annotations, egoclip=made.egoclip, egosummary=made.egosummary, metadata=made.ego4d
    )
    if config.demo_benchmarks:
        annotations = dataclasses.replace(annotations, **benchmark_annotations(made.benchmarks))
    videos = dataclasses.replace(config.videos, root=made.videos)
    return dataclasses.replace(config, annotations=annotations, videos=videos)


def benchmark_annotations(made: BenchmarkFiles) -> dict[str, Any]:
    """Return what configures the benchmarks of the embedded dataset."""
    return {
        "egomcq": made.egomcq,
        "summarymcq": made.summarymcq,
        "epic_mir": EpicMirFiles(
            train=made.epic_train,
            train_sentences=made.epic_train_sentences,
            test=made.epic_test,
            test_sentences=made.epic_test_sentences,
        ),
        "charades_ego": CharadesEgoFiles(
            classes=made.charades_classes, train=made.charades_train, test=made.charades_test
        ),
        "howto100m": HowTo100mFiles(train=made.howto_train, val=made.howto_val, classes=made.howto_classes),
    }


if __name__ == "__main__":
    sys.exit(main())
