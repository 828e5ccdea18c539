"""Makes the chunks of a video in a test process, without a cluster."""

from __future__ import annotations

from pathlib import Path

from preprocessing import toolchain
from preprocessing.config import ChunkConfig
from preprocessing.video.chunks import Chunk, chunk_path
from preprocessing.video.probe import ProbedVideo, probe
from preprocessing.video.transcode import ChunkTask, make_chunk
from tests.preprocessing.coded_video import numbers

FFMPEG = toolchain.find_ffmpeg(None)
CONFIG = ChunkConfig(seconds=4, short_side=96)


def task(
    source: ProbedVideo,
    work: Path,
    index: int,
    *,
    config: ChunkConfig = CONFIG,
    is_stereo: bool = False,
    uid: str = "video",
) -> ChunkTask:
    """Return the task of one chunk."""
    return ChunkTask(
        video_uid=uid,
        source=source,
        index=index,
        is_stereo=is_stereo,
        config=config,
        ffmpeg=FFMPEG,
        work=work,
        toolchain={"test": "1"},
    )


def make_chunks(path: Path, work: Path, *, config: ChunkConfig = CONFIG, is_stereo: bool = False) -> list[Chunk]:
    """Return the records of all chunks of the video at `path`, made in `work`."""
    source = probe(path)
    count = -(-source.frames(config.fps) // (config.seconds * config.fps))
    return [make_chunk(task(source, work, i, config=config, is_stereo=is_stereo)) for i in range(count)]


def shown(chunks: list[Chunk], work: Path, rendition: str) -> list[int]:
    """Return the numbers encoded in all frames of a rendition, chunk after chunk."""
    return [n for chunk in chunks for n in numbers(chunk_path(work, chunk.video_uid, chunk.index, rendition))]
