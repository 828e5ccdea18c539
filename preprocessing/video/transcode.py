"""Transcodes one chunk of a source: a child process decodes it once and chooses frames by time, ffmpeg encodes them.

All chunks of a video share one frame grid: frame n of the chunk that starts at S shows the source at S + n/fps, counted
from the source's first frame, wherever decoding starts. The low-rate rendition is every k-th frame of the grid. Which
source frame each stored frame shows is compared with the video's clock before a chunk counts as made.
"""

from __future__ import annotations

import sys
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import av
import ffmpeg
import numpy as np

from preprocessing.config import ChunkConfig
from preprocessing.errors import TransientError, fault_message
from preprocessing.video import ffmpeg as ffmpeg_process
from preprocessing.video.chunks import Chunk, Damage, chunk_path, write_sidecar
from preprocessing.video.clock import VideoClock, clock_path, save_clock, source_identity
from preprocessing.video.damage import find_damage, merge
from preprocessing.video.frames import FramesReport, FramesSpec
from preprocessing.video.picture import Colour, StoredPicture
from preprocessing.video.probe import ProbedVideo, UnreadableError, has_same_content, read_source_clock
from shards.files import publish, temporary_name

# s before a chunk at which decoding starts; the next is tried where frames were missing or broken.
_PREROLLS = (0.0, 60.0)
_TONE_MAP = (
    "zscale=transfer=linear:npl=100,format=gbrpf32le,zscale=primaries=bt709,tonemap=hable:desat=0,"
    "zscale=transfer=bt709:matrix=bt709:range=tv"
)
TONE_MAPPER = "zscale, tonemap=hable"  # recorded where it was applied
_BT709 = Colour(primaries=1, transfer=1, matrix=1)
_LOWEST_LIMIT = 2 << 30  # bytes of address space below which Python and libav do not start


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
    def first_frame(self) -> int:
        """The chunk's first frame on the grid of the whole video."""
        return self.index * self.config.seconds * self.config.fps

    @property
    def expected_frames(self) -> int:
        """The number of frames of the chunk."""
        full = self.config.seconds * self.config.fps
        return min(full, self.source.frames(self.config.fps) - self.first_frame)

    @property
    def end(self) -> float:
        """The end of the chunk, s from the source's first frame."""
        return self.start + self.expected_frames / self.config.fps

    @property
    def tone_maps(self) -> bool:
        """Whether the source is HDR and becomes SDR."""
        return bool(self.source.colour.hdr) and self.config.hdr == "tonemap"


@dataclass(kw_only=True)
class _Attempt:
    """What one run of decoder and encoder gave."""

    report: FramesReport
    damage: list[Damage]
    cpu_seconds: float

    @property
    def outcome(self) -> tuple[list[int], list[Damage]]:
        """What two attempts must agree on to be believed."""
        return self.report.shown, self.damage


def make_chunk(task: ChunkTask) -> Chunk:
    """Write the two renditions and the sidecar of a chunk and return its record. Damage is recorded, not raised.

    Raises `TransientError` for machine faults such as a full disk; no files are left behind then.
    """
    folder = chunk_path(task.work, task.video_uid, task.index, "full").parent
    folder.mkdir(parents=True, exist_ok=True)
    if changed := _change(task):
        return _publish(task, _failed(task, changed), {}, cpu_seconds=0.0, is_interlaced=False)
    try:
        clock = read_source_clock(task.source, clock_path(task.work, task.video_uid))
    except UnreadableError as error:  # it is read again only where the saved clock is of another version
        damage = _failed(task, _change(task) or str(error))
        return _publish(task, damage, {}, cpu_seconds=0.0, is_interlaced=False)
    if lost := _lost(task, clock):
        return _publish(task, lost, {}, cpu_seconds=0.0, is_interlaced=False)
    with ExitStack() as cleanup:
        names = ("full", "summary", "report", "clock")
        temporary = {name: temporary_name(folder / f"{task.index:05d}.{name}") for name in names}
        for path in temporary.values():
            cleanup.callback(path.unlink, missing_ok=True)
        save_clock(temporary["clock"], clock, task.source.identity)
        attempt, cpu_seconds, is_interlaced = _decode_and_encode(task, clock, temporary)
        damage = attempt.damage
        if changed := _change(task):
            damage = _failed(task, changed)
        return _publish(task, damage, temporary, cpu_seconds=cpu_seconds, is_interlaced=is_interlaced)


def _failed(task: ChunkTask, reason: str) -> list[Damage]:
    return [Damage(start=task.start, end=task.end, reason=reason)]


def _change(task: ChunkTask) -> str:
    """Return how a source differs from what was probed; empty if it does not."""
    source = task.source
    try:
        now, ctime_ns = source_identity(source.path), source.path.stat().st_ctime_ns
        if source.frame_folder is not None:
            now = (source.size, *now[1:])
        before = source.identity
        names = ("size", "modification time", "inode")
        changes = [f"{n} {a} before, {b} now" for n, a, b in zip(names, before, now, strict=True) if a != b]
        # Where only the status is another, permissions changed, or the content and its modification time was restored.
        is_suspicious = not changes and ctime_ns != source.ctime_ns and source.frame_folder is None
        if is_suspicious and not has_same_content(source, clock_path(task.work, task.video_uid)):
            changes = ["other content of the same size and modification time"]
    except OSError as error:
        raise TransientError(f"{source.path}: {error.strerror or error}; it was there when the build began") from error
    if not changes:
        return ""
    return f"the source changed during the build ({'; '.join(changes)}); run the build again when it is complete"


def _lost(task: ChunkTask, clock: VideoClock) -> list[Damage]:
    """Return the damage of a chunk of whose span the source has no packets at all; empty where it has some."""
    for span in clock.lost:
        if span.start <= task.start and span.end >= task.end - 1e-6:
            return _failed(task, span.reason)
    shown = clock.time_P[np.isfinite(clock.time_P)]
    inside = (shown >= task.start - 1 / task.config.fps) & (shown < task.end)
    before = shown[shown < task.start]
    held = len(before) and task.start - before.max() <= max(task.config.max_gap_seconds, 2.5 * clock.step)
    return [] if inside.any() or held else _failed(task, "no frames: a gap in the source's time stamps")


def _decode_and_encode(task: ChunkTask, clock: VideoClock, temporary: dict[str, Path]) -> tuple[_Attempt, float, bool]:
    """Return the attempt that counts, the CPU time of all (s), and whether frames were deinterlaced.

    Where frames are broken or missing, decoding is repeated from earlier: that may be due to where it started. Two
    attempts that agree count; the last starts at the first packet.
    """
    is_interlaced = task.source.is_interlaced
    cpu_seconds, previous = 0.0, None
    starts = _starts(task, clock)
    while starts:
        first = starts[0]
        attempt = encode_from(task, clock, temporary, first=first, deinterlace=is_interlaced)
        cpu_seconds += attempt.cpu_seconds
        if attempt.report.needs_deinterlacing and not is_interlaced:
            is_interlaced = True
            continue
        starts = starts[1:]
        if attempt.report.seek_failed:
            starts = [0] if first else []
        elif not attempt.damage or (previous is not None and attempt.outcome == previous.outcome):
            break
        previous = attempt
    return attempt, cpu_seconds, is_interlaced


def _starts(task: ChunkTask, clock: VideoClock) -> list[int]:
    """Return the numbers of the packets at which to start decoding, in the order to try."""
    if task.source.frame_folder is not None:
        return [clock.key_before(task.start)]
    if clock.by_order:
        return [0]
    return [*dict.fromkeys([*(clock.key_before(max(0.0, task.start - preroll)) for preroll in _PREROLLS), 0])]


def encode_from(
    task: ChunkTask, clock: VideoClock, temporary: dict[str, Path], *, first: int, deinterlace: bool
) -> _Attempt:
    """Decode the chunk from packet `first` of the clock on and encode it into the files `temporary`."""
    temporary["report"].unlink(missing_ok=True)
    spec = frames_spec(task, clock_file=temporary["clock"], report=temporary["report"], first=first)
    spec = FramesSpec(**{**spec.__dict__, "deinterlace": deinterlace})
    producer = [sys.executable, "-m", "preprocessing.video.frames", spec.to_json()]
    encoder = encode_command(task, full=temporary["full"], summary=temporary["summary"])
    memory = max(_LOWEST_LIMIT, task.config.memory_gib * 2**30)
    result = ffmpeg_process.run_piped(producer, encoder, timeout=task.config.timeout_seconds, memory=memory)
    if fault := fault_message(result.messages):
        raise TransientError(f"{task.work}: {fault}")
    report = FramesReport.read(temporary["report"])
    if report is None or result.timed_out:
        reason = "it took too long" if result.timed_out else f"decoding failed: {result.cause}"
        return _Attempt(report=FramesReport(), damage=_failed(task, reason), cpu_seconds=result.cpu_seconds)
    if report.seek_failed or report.needs_deinterlacing:
        return _Attempt(report=report, damage=[], cpu_seconds=result.cpu_seconds)
    damage = find_damage(
        report, clock, first=task.first_frame, stop=task.first_frame + task.expected_frames, config=task.config,
        frames=task.source.frame_folder,
    )  # fmt: skip
    if report.shown and result.status != 0:
        damage = _failed(task, f"encoding failed: {result.cause}")
        report = FramesReport()
    elif report.shown and (stored := _stored(temporary)) != (len(report.shown), _every_kth(task, len(report.shown))):
        damage = _failed(task, f"ffmpeg stored {stored} frames at the two rates, of {len(report.shown)} given to it")
        report = FramesReport()
    return _Attempt(report=report, damage=damage, cpu_seconds=result.cpu_seconds)


def _every_kth(task: ChunkTask, frames: int) -> int:
    return -(-frames // task.config.summary_step)


def _stored(temporary: dict[str, Path]) -> tuple[int, int]:
    """Return the number of frames in the two renditions, from their headers."""
    counts = []
    for name in ("full", "summary"):
        with av.open(str(temporary[name])) as container:
            counts.append(container.streams.video[0].frames)
    return counts[0], counts[1]


def frames_spec(task: ChunkTask, *, clock_file: Path, report: Path, first: int) -> FramesSpec:
    """Return what the decoding process is told, to start at packet `first`."""
    width, height = stored_size(task.source, is_stereo=task.is_stereo, short_side=task.config.short_side)
    folder = task.source.frame_folder
    images: tuple[str, ...] = ()
    if folder is not None:
        images = tuple(folder.name(number) for number in folder.present_between(folder.first, folder.last))
    return FramesSpec(
        source=str(task.source.path),
        images=images,
        stream=task.source.stream,
        clock=str(clock_file),
        first_packet=first,
        first=task.first_frame,
        stop=task.first_frame + task.expected_frames,
        fps=task.config.fps,
        picture=StoredPicture(
            width=width,
            height=height,
            pixels="yuv420p10le" if task.tone_maps else "yuv420p",
            colour=task.source.colour,
            is_stereo=task.is_stereo,
        ),
        deinterlace=task.source.is_interlaced,
        report=str(report),
    )


def encode_command(task: ChunkTask, *, full: Path, summary: Path) -> list[str]:
    """Return ffmpeg's command line: raw frames from standard input to the renditions `full` and `summary`."""
    config = task.config
    width, height = stored_size(task.source, is_stereo=task.is_stereo, short_side=config.short_side)
    video = ffmpeg.input(
        "pipe:0",
        f="rawvideo",
        pix_fmt="yuv420p10le" if task.tone_maps else "yuv420p",
        video_size=(width, height),
        framerate=config.fps,
    )["v"]
    colour = _colour_filters(task)
    every_kth = [f"select=not(mod(n\\,{config.summary_step}))", f"settb=1/{config.summary_fps}", "setpts=N"]
    outputs = [
        ffmpeg.output(video, str(full), vf=",".join(colour), **_encoder(config, fps=config.fps, gop=config.gop)),
        ffmpeg.output(
            video,
            str(summary),
            vf=",".join([*every_kth, *colour]),
            **_encoder(config, fps=config.summary_fps, gop=config.summary_gop),
        ),
    ]
    merged = ffmpeg.merge_outputs(*outputs).global_args("-v", "warning", "-nostats", "-filter_threads", "1", "-y")
    return [str(argument) for argument in merged.compile(cmd=task.ffmpeg)]


def _colour_filters(task: ChunkTask) -> list[str]:
    """Return the filters that say which colour space raw frames are in, and that map HDR to SDR."""
    filters = [_tagged(task.source.colour)]
    if task.tone_maps:
        filters += [_TONE_MAP, "format=yuv420p", _tagged(_BT709)]
    return filters


def _tagged(colour: Colour) -> str:
    return (
        f"setparams=range=tv:color_primaries={colour.primaries}:color_trc={colour.transfer}:colorspace={colour.matrix}"
    )


def stored_size(source: ProbedVideo, *, is_stereo: bool, short_side: int) -> tuple[int, int]:
    """Return width and height (px) of a source's chunks: even, never enlarged, one eye of a stereo video."""
    width = source.width // 2 if is_stereo else source.width
    scale = short_side / min(width, source.height)
    if scale >= 1:
        return max(2, width // 2 * 2), max(2, source.height // 2 * 2)
    return max(2, round(width * scale / 2) * 2), max(2, round(source.height * scale / 2) * 2)


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
        "r": fps,
        "flags": "+bitexact",
        "fflags": "+bitexact",
        "map_metadata": -1,
        "map_chapters": -1,
        "f": "mp4",
    }


def _publish(
    task: ChunkTask, damage: list[Damage], temporary: dict[str, Path], *, cpu_seconds: float, is_interlaced: bool
) -> Chunk:
    """Move the renditions to their place, write the sidecar and return it."""
    is_whole = any(d.start <= task.start and d.end >= task.end - 1e-6 for d in damage)
    frames = 0 if is_whole or not temporary else task.expected_frames
    width, height = stored_size(task.source, is_stereo=task.is_stereo, short_side=task.config.short_side)
    chunk = Chunk(
        video_uid=task.video_uid,
        index=task.index,
        start=task.start,
        end=task.end,
        frames=frames,
        summary_frames=_every_kth(task, frames),
        width=width,
        height=height,
        damage=merge(damage, start=task.start, end=task.end),
        stated_end=task.source.stated_duration,
        deinterlaced=is_interlaced,
        tone_mapped=TONE_MAPPER if task.tone_maps else "",
        notes=task.source.notes,
        bytes=sum(temporary[name].stat().st_size for name in ("full", "summary")) if frames else 0,
        cpu_seconds=round(cpu_seconds, 2),
        source_size=task.source.size,
        source_mtime_ns=task.source.mtime_ns,
        toolchain=task.toolchain,
    )
    if frames:
        for rendition in ("full", "summary"):
            publish(temporary[rendition], chunk_path(task.work, task.video_uid, task.index, rendition))
    write_sidecar(task.work, chunk)
    return chunk
