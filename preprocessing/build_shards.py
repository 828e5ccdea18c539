# PYTHON_ARGCOMPLETE_OK
"""Builds shards from raw video and annotations: `python preprocessing/build_shards.py [--config F] [key=value …]`.

Without arguments it renders the embedded dataset and builds that. Builds are resumable: rerun the same command. Exit
codes: `configs.cli.ExitCode`.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from rich.console import Console

from configs.cli import Command, Request
from configs.loading import to_yaml
from configs.revision import code_revision
from preprocessing import report, stages
from preprocessing.annotations import Annotations, read_annotations
from preprocessing.annotations.config import CharadesEgoFiles, EpicMirFiles, HowTo100mFiles
from preprocessing.annotations.metadata import read_excluded
from preprocessing.build_lock import build_lock
from preprocessing.config import BuildConfig
from preprocessing.demo import generate
from preprocessing.demo.benchmarks import BenchmarkFiles
from preprocessing.errors import UsageError
from preprocessing.estimate import dry_run
from preprocessing.exclusion import carry_out, required_withdrawal
from preprocessing.own.reading import read_own
from preprocessing.own.videos import find_own_videos
from preprocessing.provenance import has_same_files
from preprocessing.publish import close_ledger, publish, require_companions
from preprocessing.retry import reopen_failed
from preprocessing.selection import (
    PublishedState,
    is_up_to_date,
    read_published,
    require_same_plan,
    require_samples,
    require_unchanged_texts,
    select,
)
from preprocessing.toolchain import find_ffmpeg, versions
from preprocessing.video.sources import find_videos
from shards.files import remove_temporaries, write_bytes

EMBEDDED = Path(__file__).resolve().parent.parent / "configs" / "preprocess" / "embedded.yaml"


def main(argv: Sequence[str] | None = None) -> int:
    """Build what the command line asks for; return the exit code."""
    command = Command("python preprocessing/build_shards.py", __doc__, BuildConfig, default=EMBEDDED)
    command.flag("--dry-run", action="store_true", help="print what would be done and what it costs; write nothing")
    command.resumes("Run the same command again to resume.")
    return command.run(_run, argv)


def _run(request: Request[BuildConfig]) -> None:
    config, is_dry_run = _configuration(request), request.flags.dry_run
    with nullcontext(True) if is_dry_run else build_lock(config.output, config.work_folder) as is_locked:
        config = with_embedded_dataset(config, request.console)
        build(config, request.console, is_dry_run=is_dry_run, is_locked=is_locked)


def _configuration(request: Request[BuildConfig]) -> BuildConfig:
    """Return the configuration; raise `UsageError` where own data are named and the embedded dataset would be built."""
    word = request.gives("videos.root", "annotations") if request.is_default else None
    if word is not None and request.config.demo is not None:
        raise UsageError(
            f"{word}: without --config this command builds the embedded dataset, which has its own videos and "
            "annotations. Give your configuration, such as --config configs/preprocess/ego4d.yaml"
        )
    return request.config


def build(config: BuildConfig, console: Console, *, is_dry_run: bool = False, is_locked: bool = True) -> None:
    """Carry out one build: annotations → hierarchy and plan → chunks → shards → ledger and index files.

    `is_locked`: whether the caller holds locks on the output and the work folder that exclude other builds.
    Raises `UsageError`, `AnnotationError` or `ShardError` for a request that cannot be carried out,
    `TooManyFailuresError` for too many failed samples, and `TransientError` for a fault of the machine.
    """
    began = time.monotonic()
    if config.videos.root is None:
        raise UsageError("videos.root is not set; it is the folder of the files <video_uid>.<extension>")
    ffmpeg = find_ffmpeg(config.ffmpeg)
    toolchain = {**versions(ffmpeg), **config.chunk.format()}
    stages.require_same_format(config, toolchain)

    console.print(f"reading annotations; ffmpeg {toolchain['ffmpeg']}, x264 {toolchain['x264']}")
    published = read_published(config.output)
    annotations, video_paths = _read(config, published, console)
    exclusions = annotations.own.excluded if annotations.own else read_excluded(config.annotations)
    excluded = frozenset(exclusions)
    require_companions(config.output, annotations, published)
    withdrawal = required_withdrawal(config, annotations, exclusions)
    for message in annotations.ignored:
        console.print(message, markup=False, highlight=False)
    selection = select(annotations, video_paths, published, config)
    require_samples(annotations, selection, published)
    if is_dry_run:
        carry_out(withdrawal, config.output, console, is_dry_run=True)
        dry_run(config, annotations, selection, video_paths, ffmpeg=ffmpeg, toolchain=toolchain, console=console)
        return
    done = require_same_plan(config.output, selection.plans, published)
    carry_out(withdrawal, config.output, console)
    is_same = has_same_files(config, annotations, published.provenance)
    if not selection.plans and is_same and is_up_to_date(annotations, published, config.output):
        console.print(f"{config.output} is up to date: nothing to build")
        return

    for folder in (config.output, config.work_folder):
        remove_temporaries(folder, is_locked=is_locked)
    write_bytes(config.work_folder / "config.yaml", f"# {code_revision()}\n{to_yaml(config)}".encode())
    stages.write_format(config, toolchain)
    done = reopen_failed(config, selection.plans, done, video_paths.keys())
    sources: stages.ProbeResults = {}
    if selection.plans:
        with stages.BuildRun(
            config, annotations, video_paths, excluded=excluded, ffmpeg=ffmpeg, toolchain=toolchain, console=console
        ) as run:
            sources = run.probe(selection)
            run.chunk_and_pack(selection, sources, done)
    chunks = stages.chunk_records(config, sources)
    ledger, spans = close_ledger(config, annotations, selection, chunks, excluded)
    report.require_few_failures(config, ledger, spans, annotations.sets)
    dataset = publish(config, annotations, ledger, spans, excluded=excluded, toolchain=toolchain, published=published)
    report.summary(dataset, ledger, chunks, seconds=time.monotonic() - began, console=console)


def _read(config: BuildConfig, published: PublishedState, console: Console) -> tuple[Annotations, dict[str, Path]]:
    """Return the annotations, and video_uid → file of the videos on disk."""
    root, captions = config.videos.root, config.own
    assert root is not None
    if captions is None:
        annotations = read_annotations(config.annotations)
        annotated = frozenset(annotations.videos["video_uid"].to_pylist())
        return annotations, find_videos(root, config.videos.pattern, wanted=annotated)
    files = find_own_videos(root, config.videos.pattern, besides=[config.output, config.work_folder])
    annotations = read_own(
        files,
        config.annotations,
        captions,
        tolerance=config.end_tolerance,
        allow_missing=config.videos.allow_missing,
        before=published.provenance,
        say=lambda text: console.print(text, markup=False, soft_wrap=True),
    )
    require_unchanged_texts(annotations, config)
    return annotations, files.videos


def with_embedded_dataset(config: BuildConfig, console: Console) -> BuildConfig:
    """Render the embedded dataset if the configuration asks for it; return the configuration with its paths set."""
    if config.demo is None:
        return config
    console.print(f"embedded dataset in {config.demo_root} (rendered once)")
    demo = generate(config.demo, config.demo_root, workers=config.dask.workers)
    annotations = dataclasses.replace(
        config.annotations, egoclip=demo.egoclip, egosummary=demo.egosummary, metadata=demo.ego4d
    )
    if config.demo_benchmarks:
        annotations = dataclasses.replace(annotations, **benchmark_annotations(demo.benchmarks))
    videos = dataclasses.replace(config.videos, root=demo.videos)
    return dataclasses.replace(config, annotations=annotations, videos=videos)


def benchmark_annotations(files: BenchmarkFiles) -> dict[str, Any]:
    """Return the fields of `AnnotationsConfig` for the benchmarks of the embedded dataset."""
    return {
        "egomcq": files.egomcq,
        "summarymcq": files.summarymcq,
        "epic_mir": EpicMirFiles(
            train=files.epic_train,
            train_sentences=files.epic_train_sentences,
            test=files.epic_test,
            test_sentences=files.epic_test_sentences,
        ),
        "charades_ego": CharadesEgoFiles(
            classes=files.charades_classes, train=files.charades_train, test=files.charades_test
        ),
        "howto100m": HowTo100mFiles(train=files.howto_train, val=files.howto_val, classes=files.howto_classes),
    }


if __name__ == "__main__":
    sys.exit(main())
