"""Estimates the work and the cost of a build from its plan and one minute of transcoding (`--dry-run`)."""

from __future__ import annotations

import dataclasses
import math
import tempfile
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from preprocessing.annotations import Annotations
from preprocessing.config import BuildConfig
from preprocessing.plan import seconds_of
from preprocessing.selection import Selection
from preprocessing.video.chunks import chunk_path
from preprocessing.video.probe import ProbedVideo
from preprocessing.video.sources import ProbeTask, probe_video
from preprocessing.video.transcode import ChunkTask, make_chunk
from shards.schema import set_spec

_SAMPLED_SECONDS = 60
_PROBED = 50  # videos of unknown duration that are probed, at most


@dataclass(frozen=True, kw_only=True)
class SourceCost:
    """The cost of one second of source video, measured on the start of one video."""

    video_uid: str
    seconds: float  # s of source that were transcoded
    cpu: float  # CPU-seconds per second of source
    bytes: float  # bytes of both renditions per second of source
    full_bytes: float  # bytes of the full-rate rendition per second of source
    summary_bytes: float  # bytes of the low-rate rendition per second of source


def measure(
    source: ProbedVideo, video_uid: str, config: BuildConfig, *, ffmpeg: str, is_stereo: bool, toolchain: dict[str, str]
) -> SourceCost:
    """Transcode up to a minute of a video into a temporary folder and return what it cost."""
    chunk = dataclasses.replace(config.chunk, seconds=_SAMPLED_SECONDS)
    with tempfile.TemporaryDirectory(prefix="hiervl-dry-run-") as folder:
        task = ChunkTask(
            video_uid=video_uid,
            source=source,
            index=0,
            is_stereo=is_stereo,
            config=chunk,
            ffmpeg=ffmpeg,
            work=Path(folder),
            toolchain=toolchain,
        )
        measured = make_chunk(task)
        size = {
            name: path.stat().st_size if (path := chunk_path(Path(folder), video_uid, 0, name)).exists() else 0
            for name in ("full", "summary")
        }
    seconds = max(measured.frames / chunk.fps, 1e-3)
    return SourceCost(
        video_uid=video_uid,
        seconds=seconds,
        cpu=measured.cpu_seconds / seconds,
        bytes=measured.bytes / seconds,
        full_bytes=size["full"] / seconds,
        summary_bytes=size["summary"] / seconds,
    )


def dry_run(
    config: BuildConfig,
    annotations: Annotations,
    selection: Selection,
    video_paths: dict[str, Path],
    *,
    ffmpeg: str,
    toolchain: dict[str, str],
    console: Console,
) -> None:
    """Print what a build would read, write and cost; nothing is written."""
    present = sorted(uid for uid in selection.videos if uid in video_paths)
    missing = sorted(selection.videos - set(present))
    duration = dict(zip(*(annotations.videos[n].to_pylist() for n in ("video_uid", "duration")), strict=True))
    stereo = dict(zip(*(annotations.videos[n].to_pylist() for n in ("video_uid", "is_stereo")), strict=True))
    known = [duration[uid] for uid in present if not math.isnan(duration.get(uid, math.nan))]
    unknown = [uid for uid in present if math.isnan(duration.get(uid, math.nan))]
    probed = _probed_seconds(config, unknown, video_paths, annotations.frame_rates)
    measured = [seconds for seconds in probed if not math.isnan(seconds)]
    hours = (sum(known) + sum(measured) * (len(unknown) / max(1, len(probed)))) / 3600
    table = Table(title="Work of this build (--dry-run: nothing is written)", show_header=False)
    table.add_row("videos found", f"{len(present):,} of {len(selection.videos):,}")
    if missing:
        shown = ", ".join(missing[:5]) + (" …" if len(missing) > 5 else "")
        table.add_row("videos missing", f"{len(missing):,}: {shown}")
    table.add_row("hours", f"{hours:,.2f}{_how_known(len(unknown), len(probed), len(measured))}")
    for set_name in annotations.sets:
        plans = [plan for plan in selection.plans if plan.set_name == set_name]
        table.add_row(set_name, f"{sum(len(plan.items) for plan in plans):,} in {len(plans):,} shards")
    cost = _measure_first_readable(
        config, present, video_paths, stereo, annotations.frame_rates, ffmpeg=ffmpeg, toolchain=toolchain
    )
    if cost is not None:
        _add_costs(table, config, selection, cost, hours)
    console.print(table)


def _probed_seconds(
    config: BuildConfig, unknown: list[str], video_paths: dict[str, Path], frame_rates: dict[str, float]
) -> list[float]:
    """Return the durations (s) of up to `_PROBED` of the videos that no metadata describe; NaN where unreadable."""
    assert config.videos.root is not None
    seconds = []
    for uid in unknown[:: max(1, -(-len(unknown) // _PROBED))]:
        rate = config.videos.frames_fps or frame_rates.get(uid)
        source = probe_video(ProbeTask(video_uid=uid, path=video_paths[uid], root=config.videos.root, frames_fps=rate))
        seconds.append(source.duration if isinstance(source, ProbedVideo) else math.nan)
    return seconds


def _how_known(unknown: int, probed: int, measured: int) -> str:
    """Return how the hours of `unknown` videos, of which some were probed, were estimated."""
    if not unknown:
        return ""
    unreadable = f", {probed - measured} of them unreadable" if measured < probed else ""
    if probed == unknown:
        return f" ({probed:,} videos probed{unreadable})"
    return f" (estimated: {probed:,} of {unknown:,} videos without a stated duration probed{unreadable})"


def _measure_first_readable(
    config: BuildConfig,
    present: list[str],
    video_paths: dict[str, Path],
    stereo: dict[str, bool],
    frame_rates: dict[str, float],
    *,
    ffmpeg: str,
    toolchain: dict[str, str],
) -> SourceCost | None:
    """Measure the first video that can be read; None if there is none."""
    assert config.videos.root is not None
    for uid in present:
        rate = config.videos.frames_fps or frame_rates.get(uid)
        source = probe_video(ProbeTask(video_uid=uid, path=video_paths[uid], root=config.videos.root, frames_fps=rate))
        if isinstance(source, ProbedVideo):
            return measure(source, uid, config, ffmpeg=ffmpeg, is_stereo=bool(stereo.get(uid)), toolchain=toolchain)
    return None


def _add_costs(table: Table, config: BuildConfig, selection: Selection, cost: SourceCost, hours: float) -> None:
    """Add rows for the bytes written and the CPU time used on `hours` of source video."""
    seconds = hours * 3600
    stored = 0.0
    for plan in selection.plans:
        lengths = seconds_of(plan.items, config.shard)
        # A clip is stored from the key frame before it to the anchor after it: half a GOP and half an anchor distance
        # more on average.
        if not set_spec(plan.set_name).is_long:
            slack = (config.chunk.gop / 2 + (config.chunk.b_frames + 1) / 2) / config.chunk.fps
            stored += float((lengths + slack).sum()) * cost.full_bytes
        else:
            slack = config.chunk.summary_gop_seconds / 2
            stored += float((lengths + slack).sum()) * cost.summary_bytes
        stored += len(plan.items) * 16_000  # the JPEG, the JSON and the tar headers
    table.add_row("bytes in output", f"{stored / 1e9:,.3f} GB")
    kept = "kept" if config.chunk.keep else "deleted once packed"
    table.add_row("bytes in work", f"{seconds * cost.bytes / 1e9:,.3f} GB ({kept})")
    table.add_row(
        "core-hours", f"{seconds * cost.cpu / 3600:,.2f} (measured on {cost.seconds:.0f} s of {cost.video_uid})"
    )
