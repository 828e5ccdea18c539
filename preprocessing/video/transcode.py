"""Transcodes one chunk of a source: one ffmpeg process decodes it once and encodes it at both rates.

All chunks of a video share one frame grid: frame n of the chunk that starts at S shows the source at S + n/fps, counted
from the source's first frame, wherever decoding starts. The low-rate rendition is every k-th frame of the grid.
"""

from __future__ import annotations

import math
import shutil
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import ffmpeg

from preprocessing.config import ChunkConfig
from preprocessing.errors import TransientError, fault_message
from preprocessing.video import ffmpeg as ffmpeg_process
from preprocessing.video.chunks import Chunk, Damage, chunk_path, write_sidecar
from preprocessing.video.damage import diagnose, frozen_intervals, merge, missing_frames, suggests_damage
from preprocessing.video.frame_folder import FrameFolder, link_frames
from preprocessing.video.probe import SAFE_INPUT, ProbedVideo
from shards.files import TEMPORARY, publish

# s decoded before a chunk and discarded; the next longer one is tried where a seek was inaccurate.
_PREROLLS = (1.0, 60.0, math.inf)
_PREROLLS_MPEGTS = (12.0, 60.0, math.inf)  # seeks in MPEG-TS land between key frames
_SCALER = "bicubic+accurate_rnd+bitexact"  # without the last two flags, the result depends on the processor


@dataclass(frozen=True, kw_only=True)
class ChunkTask:
    """One unit of work: chunk `index` of a source."""

    video_uid: str
    source: ProbedVideo
    index: int
    is_stereo: bool
    config: ChunkConfig
    ffmpeg: str
    work: Path
    toolchain: dict[str, str]

    @property
    def start(self) -> float:
        """The start of the chunk, s from the source's first frame."""
        return float(self.index * self.config.seconds)

    @property
    def expected_frames(self) -> int:
        """The number of frames of the chunk if the source is complete."""
        full = self.config.seconds * self.config.fps
        return min(full, self.source.frames(self.config.fps) - self.index * full)

    @property
    def end(self) -> float:
        """The end of the chunk if the source is complete, s from the source's first frame."""
        return self.start + self.expected_frames / self.config.fps


def make_chunk(task: ChunkTask) -> Chunk:
    """Write the two renditions and the sidecar of a chunk and return its record. Damage is recorded, not raised.

    Raises `TransientError` for machine faults such as a full disk; no files are left behind then.
    """
    folder = chunk_path(task.work, task.video_uid, task.index, "full").parent
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as cleanup:
        temporary = {name: folder / f"{TEMPORARY}{task.index:05d}.{name}" for name in ("full", "summary", "stats")}
        for path in temporary.values():
            cleanup.callback(path.unlink, missing_ok=True)
        cpu_seconds = 0.0
        for preroll in _prerolls(task):
            result, shown = _encode(task, temporary, preroll=preroll)
            cpu_seconds += result.cpu_seconds
            if len(shown) == task.expected_frames or _is_tail_rounding(task, len(shown)):
                break
        chunk = _record(task, result, shown, temporary, cpu_seconds)
        for rendition in ("full", "summary"):
            if chunk.frames:
                publish(temporary[rendition], chunk_path(task.work, task.video_uid, task.index, rendition))
    write_sidecar(task.work, chunk)
    return chunk


def _prerolls(task: ChunkTask) -> tuple[float, ...]:
    """Return how far before the chunk to start decoding (s), in the order to try; the last decodes from the start."""
    if task.index == 0:
        return (math.inf,)
    return _PREROLLS_MPEGTS if "mpegts" in task.source.container else _PREROLLS


@dataclass(frozen=True, kw_only=True)
class FfmpegInput:
    """The input arguments of ffmpeg for one chunk, and the time of the source's first frame on ffmpeg's clock."""

    decode_from: float  # s from the source's first frame
    path: str
    options: dict[str, object]
    first_pts: int
    first_time: float  # s
    links: tuple[Path, int, int] | None = None  # a folder to fill with links to the frames first … last


def _ffmpeg_input(task: ChunkTask, preroll: float) -> FfmpegInput:
    """Return the input that starts `preroll` seconds before the chunk."""
    source = task.source
    decode_from = max(0.0, task.start - preroll)
    if source.frame_folder is not None:
        return _frame_folder_input(task, source.frame_folder, decode_from)
    options: dict[str, object] = {"threads": 1, "copyts": None, **SAFE_INPUT}
    if decode_from > 0:
        options["ss"] = f"{decode_from:.6f}"
    return FfmpegInput(
        decode_from=decode_from,
        path=f"file:{source.path}",
        options=options,
        first_pts=source.first_pts,
        first_time=source.first_time,
    )


def _frame_folder_input(task: ChunkTask, frames: FrameFolder, decode_from: float) -> FfmpegInput:
    """Return the input for a folder of numbered frames, starting with the frame shown at `decode_from` (s).

    ffmpeg stops at the first missing number. Where frames are missing, it reads a folder of links without gaps instead.
    """
    folder, links = task.source.path, None
    first, last = frames.number_at(decode_from), frames.number_at(task.start + task.config.seconds)
    if frames.missing_between(first, last):
        chunk = chunk_path(task.work, task.video_uid, task.index, "full")
        folder = chunk.with_name(f"{TEMPORARY}{task.index:05d}.links")
        links = (folder, first, last)
    name = f"{frames.prefix.replace('%', '%%')}%0{frames.digits}d{frames.suffix}"
    return FfmpegInput(
        decode_from=decode_from,
        path=f"file:{str(folder.absolute()).replace('%', '%%')}/{name}",
        options={
            "f": "image2",
            "pattern_type": "sequence",
            "framerate": str(frames.rate),
            "start_number": first,
            "c:v": "mjpeg",
            "threads": 1,
            "copyts": None,
            "protocol_whitelist": "file",
            "format_whitelist": "image2",
        },
        first_pts=frames.first - first,
        first_time=-frames.time_of(first),
        links=links,
    )


def command(task: ChunkTask, *, full: Path, summary: Path, stats: Path, preroll: float) -> list[str]:
    """Return ffmpeg's command line for a chunk, decoding from `preroll` seconds before it.

    The renditions go to `full` and `summary`. `stats` receives, for each encoded frame, the timestamp of the source
    frame that it shows.
    """
    config, source, opened = task.config, task.source, _ffmpeg_input(task, preroll)
    video = ffmpeg.input(opened.path, **opened.options)[str(source.stream)]

    grid = [
        f"setpts=PTS-({opened.first_pts})",
        f"fps={config.fps}:start_time={opened.decode_from:.6f}",
        f"trim={task.start:.6f}:{task.start + config.seconds:.6f}",
    ]
    size = _scale_filters(task)
    every_kth = f"select=not(mod(n\\,{config.summary_step}))"
    # The order that gives the scaler fewer frames: a fast source drops frames first, a slow one repeats them last.
    ordered = [*grid, *size] if source.fps > config.fps else [grid[0], *size, *grid[1:]]
    outputs = [
        ffmpeg.output(
            video,
            str(full),
            vf=",".join([*ordered, f"settb=1/{config.fps}", "setpts=N"]),
            stats_enc_pre=str(stats),
            stats_enc_pre_fmt="{n} {ptsi} {tbi}",
            **_encoder(config, fps=config.fps, gop=config.gop),
        ),
        ffmpeg.output(
            video,
            str(summary),
            vf=",".join([*grid, every_kth, *size, f"settb=1/{config.summary_fps}", "setpts=N"]),
            **_encoder(config, fps=config.summary_fps, gop=config.summary_gop),
        ),
    ]
    merged = ffmpeg.merge_outputs(*outputs).global_args(
        "-v", "warning", "-nostdin", "-nostats", "-max_error_rate", "1", "-filter_threads", "1", "-y"
    )
    return [str(argument) for argument in merged.compile(cmd=task.ffmpeg)]


def stored_size(source: ProbedVideo, *, is_stereo: bool, short_side: int) -> tuple[int, int]:
    """Return width and height (px) of a source's chunks: even, never enlarged, one eye of a stereo video."""
    width = source.width // 2 if is_stereo else source.width
    scale = short_side / min(width, source.height)
    if scale >= 1:
        return max(2, width // 2 * 2), max(2, source.height // 2 * 2)
    return max(2, round(width * scale / 2) * 2), max(2, round(source.height * scale / 2) * 2)


def _scale_filters(task: ChunkTask) -> list[str]:
    """Return the filters from a source frame to an encoded one: crop (stereo), scale, square pixels, 4:2:0."""
    width, height = stored_size(task.source, is_stereo=task.is_stereo, short_side=task.config.short_side)
    crop = ["crop=iw/2:ih:0:0"] if task.is_stereo else []
    return [*crop, f"scale={width}:{height}:flags={_SCALER}:out_range=tv", "setsar=1", "format=yuv420p"]


def _encoder(config: ChunkConfig, *, fps: int, gop: int) -> dict[str, object]:
    """Return the encoder's options: short closed GOPs, one thread, output independent of time and machine.

    At equal SSIM, `superfast` with mbtree and a look-ahead of 10 takes 0.6 times as long as `veryfast`, and CAVLC
    decodes in 0.8 of CABAC's time (docs/decisions.md states what both cost in bytes).
    """
    anchors = min(config.b_frames, max(0, gop - 2))
    x264 = {
        "keyint": gop,
        "min-keyint": gop,
        "scenecut": 0,
        "open-gop": 0,
        "bframes": anchors,
        "b-adapt": 0,
        "b-pyramid": "none",
        "cabac": 0,
        "mbtree": 1,
        "rc-lookahead": 10,
        "force-cfr": 1,
    }
    return {
        "c:v": "libx264",
        "preset": "superfast",
        "crf": config.crf,
        "x264-params": ":".join(f"{name}={value}" for name, value in x264.items()),
        "threads": 1,
        "fps_mode": "cfr",
        "r": fps,
        "sws_flags": _SCALER,
        "flags": "+bitexact",
        "fflags": "+bitexact",
        "map_metadata": -1,
        "map_chapters": -1,
        "f": "mp4",
    }


def _encode(
    task: ChunkTask, temporary: dict[str, Path], *, preroll: float
) -> tuple[ffmpeg_process.FfmpegResult, list[float]]:
    """Run ffmpeg; return its result and, for each encoded frame, the time of the source frame that it shows.

    Times are in s from the source's first frame.
    """
    temporary["stats"].unlink(missing_ok=True)
    opened = _ffmpeg_input(task, preroll)
    with ExitStack() as cleanup:
        if opened.links is not None and task.source.frame_folder is not None:
            into, first, last = opened.links
            shutil.rmtree(into, ignore_errors=True)
            cleanup.callback(shutil.rmtree, into, ignore_errors=True)
            link_frames(task.source.frame_folder, task.source.path, into, first, last)
        arguments = command(task, **temporary, preroll=preroll)
        memory = task.config.memory_gib * 2**30
        result = ffmpeg_process.run(arguments, timeout=task.config.timeout_seconds, memory=memory)
    if fault := fault_message(result.messages):
        raise TransientError(f"{task.work}: {fault}")
    return result, [time - opened.first_time for time in _read_stats(temporary["stats"])]


def _read_stats(path: Path) -> list[float]:
    """Return, for each encoded frame, the time of the source frame that it shows, in s on ffmpeg's clock."""
    try:
        lines = path.read_text().splitlines()
    except FileNotFoundError:
        return []
    times = []
    for line in lines:
        _, pts, time_base = line.split()
        numerator, denominator = time_base.split("/")
        times.append(int(pts) * int(numerator) / int(denominator))
    return times


def _is_tail_rounding(task: ChunkTask, frames: int) -> bool:
    """Return whether the last chunk of a video differs from its expected length only by rounding."""
    is_last = task.expected_frames < task.config.seconds * task.config.fps or (
        task.source.frames(task.config.fps) == (task.index + 1) * task.config.seconds * task.config.fps
    )
    slack = 1 + (task.config.fps / task.source.fps if task.source.fps else 1)
    return is_last and abs(frames - task.expected_frames) <= slack


def _record(
    task: ChunkTask,
    result: ffmpeg_process.FfmpegResult,
    shown: list[float],
    temporary: dict[str, Path],
    cpu_seconds: float,
) -> Chunk:
    """Return the record of a chunk made by ffmpeg, with the damage found in its source.

    `shown` has, for each encoded frame, the time of the source frame that it shows (s from the source's first frame).
    """
    fps = task.config.fps
    damage: list[Damage] = []
    frames = len(shown)
    if result.status != 0 or result.timed_out:
        frames = 0
        reason = "ffmpeg took too long" if result.timed_out else f"ffmpeg failed: {_last_line(result.messages)}"
        damage.append(Damage(start=task.start, end=task.end, reason=reason))
    else:
        is_short = frames != task.expected_frames and not _is_tail_rounding(task, frames)
        damage += frozen_intervals(shown, start=task.start, fps=fps, source_fps=task.source.fps, config=task.config)
        if is_short:
            reason = "the frames end before the stated duration"
            damage.append(Damage(start=task.start + frames / fps, end=task.end, reason=reason))
        damage += missing_frames(task.source, start=task.start, end=task.end)
        if damage or suggests_damage(result.messages):
            damage += diagnose(task.source, start=task.start, end=task.start + task.config.seconds)
    width, height = stored_size(task.source, is_stereo=task.is_stereo, short_side=task.config.short_side)
    # The last chunk may be a rounded frame longer or shorter than expected; that is then the length of the video.
    end = task.end if damage else task.start + frames / fps
    return Chunk(
        video_uid=task.video_uid,
        index=task.index,
        start=task.start,
        end=end,
        frames=frames,
        summary_frames=-(-frames // task.config.summary_step),
        width=width,
        height=height,
        damage=merge(damage, start=task.start, end=max(end, task.end)),
        bytes=sum(temporary[name].stat().st_size for name in ("full", "summary")) if frames else 0,
        cpu_seconds=round(cpu_seconds, 2),
        source_size=task.source.size,
        source_mtime_ns=task.source.mtime_ns,
        toolchain=task.toolchain,
    )


def _last_line(messages: str) -> str:
    """Return the last line of ffmpeg's output that is not blank, at most 300 characters of it."""
    lines = [line for line in messages.strip().splitlines() if line.strip()]
    return lines[-1][:300] if lines else "no message"
