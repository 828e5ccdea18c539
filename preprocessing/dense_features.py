# PYTHON_ARGCOMPLETE_OK
"""Extracts dense features of whole videos: `python preprocessing/dense_features.py [--config F] [key=value …]`.

    python preprocessing/dense_features.py work=WORK checkpoint=RUN output=DENSE
    python -m shards.features FORMAT DENSE OUT        exports them as other projects read them

It reads the chunks that a build keeps in its work folder. docs/features.md describes what is written. Extraction is
resumable, video by video: rerun the same command. Exit codes: `configs.cli.ExitCode`.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import Field, PositiveFloat, PositiveInt
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from configs.cli import Command, ExitCode, Request
from hiervl_train.features import (
    DistributedContext,
    ExtractConfig,
    VideoPart,
    WholeVideo,
    all_true,
    build_extractor,
    dense_features,
    distributed_context,
    identity,
)
from preprocessing.video.chunks import Chunk, chunk_path, read_sidecar
from shards.features.dense import Damaged, DenseWriter
from shards.keys import escape_id


class DenseError(ValueError):
    """A work folder without usable chunks; the message names it and the remedy."""

    exit_code: ClassVar[int] = 2


@dataclass(frozen=True, kw_only=True)
class DenseFeaturesConfig(ExtractConfig):
    """Dense features of the videos whose chunks are in a work folder."""

    work: Path | None = None  # the build's work folder, with the chunks (chunk.keep: true)
    videos: tuple[str, ...] | None = None  # ids of videos; null: all
    window: PositiveInt = 32  # frames of a window
    stride: PositiveInt = 16  # frames from one window to the next
    # Frames per second that window and stride count, as those of the chunks must be.
    fps: PositiveFloat = 30.0
    max_failed_fraction: Annotated[float, Field(ge=0, le=1)] = 0.05  # failed videos above which the exit code is 3


def main(argv: Sequence[str] | None = None) -> int:
    """Extract what the command line asks for; return the exit code."""
    command = Command("python preprocessing/dense_features.py", __doc__, DenseFeaturesConfig)
    command.flag("--checkpoint", key="checkpoint", metavar="PATH", help="a run, one of its checkpoints, or a .pth")
    command.resumes("Videos that are extracted are kept: run the same command again to resume.")
    return command.run(_run, argv)


def _run(request: Request[DenseFeaturesConfig]) -> int:
    config = request.config
    if config.work is None or config.output is None:
        raise DenseError("work and output are not set: the build's work folder, and the folder that is written")
    with distributed_context(config.distributed) as ranks:
        return _extract(config, config.work, config.output, ranks, request)


def _extract(
    config: DenseFeaturesConfig,
    work: Path,
    output: Path,
    ranks: DistributedContext,
    request: Request[DenseFeaturesConfig],
) -> int:
    videos = find_videos(work)
    unknown = sorted(set(config.videos or ()) - videos.keys())
    if unknown or not videos:
        absent = unknown[0] if unknown else "any video"
        raise DenseError(f"{work / 'chunks'}: no chunks of {absent}; build with chunk.keep=true")
    wanted = sorted(uid for uid in videos if config.videos is None or uid in config.videos)
    states = {uid: problem_of(work, videos[uid], fps=config.fps) for uid in wanted}
    extractor = build_extractor(config, ranks.device)
    about = {
        "extractor": identity(config, extractor, ranks.device),
        "window": config.window,
        "stride": config.stride,
        "fps": config.fps,
    }
    writer = DenseWriter(output, about=about)
    own = [uid for uid in wanted if not states[uid]][ranks.rank :: ranks.world]
    began, done = time.perf_counter(), 0
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"))
    with Progress(*columns, TimeRemainingColumn(), console=request.console, disable=not ranks.is_main) as bar:
        task = bar.add_task("videos", total=len(own), rate="")
        for uid in own:
            made_of = identity_of(videos[uid])
            if not writer.is_done(uid, made_of):
                video = whole_video(work, videos[uid], fps=config.fps)
                found = dense_features(
                    extractor, video, window=config.window, stride=config.stride, device=ranks.device
                )
                writer.write(uid, made_of, found)
                done += len(found.rows)
            bar.update(task, advance=1, rate=f"{done / (time.perf_counter() - began):,.0f} windows/s")
    all_true(True, ranks.control)  # waits for the others
    if not ranks.is_main:
        return ExitCode.OK
    writer.finish(states)
    failed = {uid: reason for uid, reason in states.items() if reason}
    for uid, reason in list(failed.items())[:10]:
        request.console.print(f"{uid}: {reason}", markup=False, soft_wrap=True)
    request.console.print(
        f"{len(states) - len(failed):,} of {len(states):,} videos → {output}", soft_wrap=True, markup=False
    )
    too_many = len(failed) > config.max_failed_fraction * len(states)
    return ExitCode.TOO_MANY_FAILURES if too_many else ExitCode.OK


def find_videos(work: Path) -> dict[str, list[Chunk]]:
    """Return video → its chunks in order, of all sidecars in a work folder."""
    found: dict[str, list[Chunk]] = {}
    for path in sorted((work / "chunks").glob("*/*.json")):
        try:
            uid = str(json.loads(path.read_bytes())["video_uid"])
        except (OSError, ValueError, KeyError, TypeError):
            continue  # not a sidecar: clocks of videos lie beside them
        if path.stem.isdecimal() and escape_id(uid) == path.parent.name:
            chunk = read_sidecar(work, uid, int(path.stem))
            if chunk is not None:
                found.setdefault(uid, []).append(chunk)
    return {uid: sorted(chunks, key=lambda chunk: chunk.index) for uid, chunks in found.items()}


def identity_of(chunks: Sequence[Chunk]) -> str:
    """Return a text that changes when the chunks of a video do."""
    states = [[c.index, c.frames, c.source_size, c.source_mtime_ns, c.bytes] for c in chunks]
    return json.dumps([states, [[span.start, span.end, span.reason] for c in chunks for span in c.damage]])


def problem_of(work: Path, chunks: Sequence[Chunk], *, fps: float) -> str:
    """Return why a video has no dense features; empty if it has."""
    for place, chunk in enumerate(chunks):
        if chunk.index != place:
            return f"chunk {place} is absent: finish the build"
        rate = chunk.toolchain.get("chunk.fps")
        if rate is None or float(rate) != fps:
            return f"chunk {place} has {rate} frames/s, not fps = {fps:g}: window and stride count frames of fps"
        if chunk.frames and not chunk_path(work, chunk.video_uid, chunk.index, "full").is_file():
            return f"the file of chunk {place} is deleted: build with chunk.keep=true"
    return "" if any(chunk.frames for chunk in chunks) else "no frame of it can be used"


def whole_video(work: Path, chunks: Sequence[Chunk], *, fps: float) -> WholeVideo:
    """Return the chunks of a video as one."""
    parts, damage = [], []
    for chunk in chunks:
        path = chunk_path(work, chunk.video_uid, chunk.index, "full") if chunk.frames else None
        frames = chunk.frames or round((chunk.end - chunk.start) * fps)
        first = round(chunk.start * fps)
        parts.append(VideoPart(path=path, first_frame=first, frames=frames, width=chunk.width, height=chunk.height))
        damage += [Damaged(start=span.start, end=span.end, reason=span.reason) for span in chunk.damage]
        if not chunk.frames:
            damage.append(Damaged(start=chunk.start, end=chunk.end, reason="the chunk could not be made"))
    return WholeVideo(video_uid=chunks[0].video_uid, fps=fps, parts=parts, damage=damage)


if __name__ == "__main__":
    sys.exit(main())
