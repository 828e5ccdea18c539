"""Makes one chunk: one ffmpeg decodes a stretch of the source once and encodes it at both rates.

The frame grid is that of the whole video: frame n of the chunk that starts at S shows the source at S + n/fps, counted
from the source's first frame, wherever the decoder was started. The low-rate rendition is every k-th frame of the grid.
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
from preprocessing.video.damage import diagnose, frozen_stretches, merge, missing_pictures, sounds_damaged
from preprocessing.video.frame_folder import PictureFolder, link_all
from preprocessing.video.probe import SAFE_INPUT, ProbedVideo
from shards.files import TEMPORARY, publish

_PREROLLS = (1.0, 60.0, math.inf)  # s decoded before a chunk and thrown away; a longer one where the seek went wrong
_PREROLLS_MPEGTS = (12.0, 60.0, math.inf)  # its seeks land between key frames
_SCALER = "bicubic+accurate_rnd+bitexact"  # without the last two, swscale's result depends on the processor


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
        """Where the chunk starts, in seconds from the first frame."""
        return float(self.index * self.config.seconds)

    @property
    def expected_frames(self) -> int:
        """How many frames the chunk has if the source is whole."""
        full = self.config.seconds * self.config.fps
        return min(full, self.source.frames(self.config.fps) - self.index * full)

    @property
    def end(self) -> float:
        """Where the chunk ends, in seconds from the first frame, if the source is whole."""
        return self.start + self.expected_frames / self.config.fps


def make_chunk(task: ChunkTask) -> Chunk:
    """Write the two renditions and the sidecar of a chunk; return its record. Damage is recorded, never raised.

    Raises `TransientError` where the machine failed (disk full), with nothing left behind.
    """
    folder = chunk_path(task.work, task.video_uid, task.index, "full").parent
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as cleanup:
        temporary = {name: folder / f"{TEMPORARY}{task.index:05d}.{name}" for name in ("full", "summary", "stats")}
        for path in temporary.values():
            cleanup.callback(path.unlink, missing_ok=True)
        cpu_seconds = 0.0
        for preroll in _prerolls(task):
            done, shown = _encode(task, temporary, preroll=preroll)
            cpu_seconds += done.cpu_seconds
            if len(shown) == task.expected_frames or _is_tail_rounding(task, len(shown)):
                break
        chunk = _account(task, done, shown, temporary, cpu_seconds)
        for rendition in ("full", "summary"):
            if chunk.frames:
                publish(temporary[rendition], chunk_path(task.work, task.video_uid, task.index, rendition))
    write_sidecar(task.work, chunk)
    return chunk


def _prerolls(task: ChunkTask) -> tuple[float, ...]:
    """Return how far before the chunk to start decoding, try after try; the last is an undivided pass."""
    if task.index == 0:
        return (math.inf,)
    return _PREROLLS_MPEGTS if "mpegts" in task.source.container else _PREROLLS


@dataclass(frozen=True, kw_only=True)
class Opening:
    """How ffmpeg opens a source for one chunk, and where the source's first frame stands on the clock that it sees."""

    decode_from: float  # s from the source's first frame
    path: str
    options: dict[str, object]
    first_pts: int
    first_time: float  # s
    links: tuple[Path, int, int] | None = None  # a folder to be filled with links to the pictures first … last


def _opening(task: ChunkTask, preroll: float) -> Opening:
    """Return how to open the source from `preroll` seconds before the chunk on."""
    source = task.source
    decode_from = max(0.0, task.start - preroll)
    if source.pictures is not None:
        return _pictures_opening(task, source.pictures, decode_from)
    options: dict[str, object] = {"threads": 1, "copyts": None, **SAFE_INPUT}
    if decode_from > 0:
        options["ss"] = f"{decode_from:.6f}"
    return Opening(
        decode_from=decode_from,
        path=f"file:{source.path}",
        options=options,
        first_pts=source.first_pts,
        first_time=source.first_time,
    )


def _pictures_opening(task: ChunkTask, pictures: PictureFolder, decode_from: float) -> Opening:
    """Return how to open a folder of pictures: at the number that stands at `decode_from`, from which ffmpeg counts.

    ffmpeg stops at a number that is not there. Where some are missing, it reads a folder of links without holes.
    """
    folder, links = task.source.path, None
    first, last = pictures.number_at(decode_from), pictures.number_at(task.start + task.config.seconds)
    if pictures.missing_between(first, last):
        chunk = chunk_path(task.work, task.video_uid, task.index, "full")
        folder = chunk.with_name(f"{TEMPORARY}{task.index:05d}.links")
        links = (folder, first, last)
    name = f"{pictures.prefix.replace('%', '%%')}%0{pictures.digits}d{pictures.suffix}"
    return Opening(
        decode_from=decode_from,
        path=f"file:{str(folder.absolute()).replace('%', '%%')}/{name}",
        options={
            "f": "image2",
            "pattern_type": "sequence",
            "framerate": str(pictures.rate),
            "start_number": first,
            "c:v": "mjpeg",
            "threads": 1,
            "copyts": None,
            "protocol_whitelist": "file",
            "format_whitelist": "image2",
        },
        first_pts=pictures.first - first,
        first_time=-pictures.time_of(first),
        links=links,
    )


def command(task: ChunkTask, *, full: Path, summary: Path, stats: Path, preroll: float) -> list[str]:
    """Return ffmpeg's arguments for a chunk, decoding from `preroll` seconds before it."""
    config, source, opening = task.config, task.source, _opening(task, preroll)
    video = ffmpeg.input(opening.path, **opening.options)[str(source.stream)]

    grid = [
        f"setpts=PTS-({opening.first_pts})",
        f"fps={config.fps}:start_time={opening.decode_from:.6f}",
        f"trim={task.start:.6f}:{task.start + config.seconds:.6f}",
    ]
    size = _scale_filters(task)
    every_kth = f"select=not(mod(n\\,{config.summary_step}))"
    # Whichever leaves the scaler fewer frames: a fast source is thinned first, a slow one repeated last.
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
    """Return width and height of a source's chunks: even, never enlarged, one eye of a stereo one."""
    width = source.width // 2 if is_stereo else source.width
    scale = short_side / min(width, source.height)
    if scale >= 1:
        return max(2, width // 2 * 2), max(2, source.height // 2 * 2)
    return max(2, round(width * scale / 2) * 2), max(2, round(source.height * scale / 2) * 2)


def _scale_filters(task: ChunkTask) -> list[str]:
    width, height = stored_size(task.source, is_stereo=task.is_stereo, short_side=task.config.short_side)
    crop = ["crop=iw/2:ih:0:0"] if task.is_stereo else []
    return [*crop, f"scale={width}:{height}:flags={_SCALER}:out_range=tv", "setsar=1", "format=yuv420p"]


def _encoder(config: ChunkConfig, *, fps: int, gop: int) -> dict[str, object]:
    """Return x264's options: short closed GOPs, one thread, and nothing that depends on clock or machine.

    `superfast` with mbtree and a look-ahead of 10 costs 0.6 of `veryfast`'s time at equal SSIM, and CAVLC decodes in
    0.8 of CABAC's (docs/decisions.md has what both cost in bytes).
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
) -> tuple[ffmpeg_process.Finished, list[float]]:
    """Run ffmpeg; return how it ended and, for each encoded frame, the source time of the frame that it shows.

    Times are in s from the source's first frame.
    """
    temporary["stats"].unlink(missing_ok=True)
    opening = _opening(task, preroll)
    with ExitStack() as cleanup:
        if opening.links is not None and task.source.pictures is not None:
            into, first, last = opening.links
            shutil.rmtree(into, ignore_errors=True)
            cleanup.callback(shutil.rmtree, into, ignore_errors=True)
            link_all(task.source.pictures, task.source.path, into, first, last)
        arguments = command(task, **temporary, preroll=preroll)
        memory = task.config.memory_gib * 2**30
        done = ffmpeg_process.run(arguments, timeout=task.config.timeout_seconds, memory=memory)
    if fault := fault_message(done.messages):
        raise TransientError(f"{task.work}: {fault}")
    return done, [time - opening.first_time for time in _read_stats(temporary["stats"])]


def _read_stats(path: Path) -> list[float]:
    """Return, for each encoded frame, the time of the source frame that it shows, in seconds on ffmpeg's clock."""
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
    """Return whether a last chunk differs from the announced length only by how its last frame's end is rounded."""
    is_last = task.expected_frames < task.config.seconds * task.config.fps or (
        task.source.frames(task.config.fps) == (task.index + 1) * task.config.seconds * task.config.fps
    )
    slack = 1 + (task.config.fps / task.source.fps if task.source.fps else 1)
    return is_last and abs(frames - task.expected_frames) <= slack


def _account(
    task: ChunkTask, done: ffmpeg_process.Finished, shown: list[float], temporary: dict[str, Path], cpu_seconds: float
) -> Chunk:
    """Return the record of what ffmpeg made: how many frames, and which stretches of them must not be used.

    `shown` has, for each encoded frame, the time of the source frame that it shows (s from the source's first frame).
    """
    fps = task.config.fps
    damage: list[Damage] = []
    frames = len(shown)
    failed = done.status != 0 or done.timed_out
    if failed:
        frames = 0
        why = "ffmpeg took too long" if done.timed_out else f"ffmpeg failed: {_last_line(done.messages)}"
        damage.append(Damage(start=task.start, end=task.end, reason=why))
    else:
        is_short = frames != task.expected_frames and not _is_tail_rounding(task, frames)
        damage += frozen_stretches(shown, start=task.start, fps=fps, source_fps=task.source.fps, config=task.config)
        if is_short:
            reason = "the source's pictures end before its time"
            damage.append(Damage(start=task.start + frames / fps, end=task.end, reason=reason))
        damage += missing_pictures(task.source, start=task.start, end=task.end)
        if damage or sounds_damaged(done.messages):
            damage += diagnose(task.source, start=task.start, end=task.start + task.config.seconds)
    width, height = stored_size(task.source, is_stereo=task.is_stereo, short_side=task.config.short_side)
    # A tail that is rounded one frame longer or shorter than announced is how long the video is.
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
    lines = [line for line in messages.strip().splitlines() if line.strip()]
    return lines[-1][:300] if lines else "no message"
