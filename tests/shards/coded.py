"""Datasets whose every frame says its clip and its number, in the GOPs that the build uses: what loader tests read."""

from __future__ import annotations

import io
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache
from pathlib import Path

import av
import numpy as np

from shards import schema
from shards.dataset import Dataset
from shards.index import finish_split, write_dataset
from shards.keys import make_key
from tests.preprocessing.coded_video import coded_frame
from tests.shards.samples import TOOLCHAIN, make_jpg, write_shard

SIDE, FPS, FRAMES_A_CLIP = 128, 30, 64  # pixels; frames/s; the frame code of a clip starts at its number × 64
PRODUCTION = {
    "preset": "superfast",
    "x264-params": "keyint=16:min-keyint=16:scenecut=0:open-gop=0:bframes=7:b-adapt=0:b-pyramid=none",
    "threads": "1",
}


@lru_cache(maxsize=512)
def coded_mp4(
    first: int, frames: int, *, size: tuple[int, int] = (SIDE, SIDE), fps: int = FPS, gop: int = 16, b_frames: int = 7
) -> bytes:
    """Return an mp4 whose frame i shows `first + i`."""
    options = {**PRODUCTION}
    options["x264-params"] = (
        f"keyint={gop}:min-keyint={gop}:scenecut=0:open-gop=0:bframes={b_frames}:b-adapt=0:b-pyramid=none"
    )
    sink = io.BytesIO()
    with av.open(sink, "w", format="mp4", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream("libx264", rate=fps, options=options)
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        for index in range(frames):
            frame = av.VideoFrame.from_ndarray(coded_frame(first + index, *size), format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return sink.getvalue()


def coded_clip(number: int, *, video: str = "video-a", first_frame: int = 2, clip_frames: int = 20) -> schema.Sample:
    """Return clip `number`: its stored frame i shows `64 · number + i`; two frames more than the clip are stored."""
    start = 2.0 * number
    record = schema.ClipRecord(
        video_uid=video,
        clip_start=start,
        clip_end=start + clip_frames / FPS,
        media_start=start - first_frame / FPS,
        first_frame=first_frame,
        clip_frames=clip_frames,
        num_frames=first_frame + clip_frames + 2,
        fps=float(FPS),
        width=SIDE,
        height=SIDE,
        text=f"#C C does {number}",
        narration_source="narration_pass_1",
        narration_ind=number,
        narration_time=start,
        tag_verb=[number % 118],
        tag_noun=[number % 582, 7],
        segment=f"{video}_{int(start // 60)}",
    )
    mp4 = coded_mp4(FRAMES_A_CLIP * number, record.num_frames)
    return schema.Sample(key=make_key(video, "c", 1, number), record=record, jpg=make_jpg(number, SIDE, SIDE), mp4=mp4)


def coded_summary(number: int, *, seconds: int, narrations: int, video: str = "video-a") -> schema.Sample:
    """Return a summary of `seconds` at 2 frames/s, whose stored frame i shows `64 · number + i`."""
    clip = coded_clip(number, video=video).record
    fields = {name: getattr(clip, name) for name in schema.ClipRecord.__dataclass_fields__}
    listed = [
        schema.Narration(
            key=make_key(video, "c", 1, i),
            text=f"#C C part {i}",
            clip_start=float(i),
            clip_end=i + 1.0,
            tag_verb=[i % 118],
            tag_noun=[i % 582],
        )
        for i in range(narrations)
    ]
    count = 2 * seconds
    fields |= {"first_frame": 1, "clip_frames": count, "num_frames": count + 1, "fps": 2.0, "narrations": listed}
    fields |= {"text": f"#Summary C did {number}", "clip_end": clip.clip_start + seconds}
    return schema.Sample(
        key=make_key(video, "s", 1, number),
        record=schema.SummaryRecord(**fields),
        jpg=make_jpg(number, SIDE, SIDE),
        mp4=coded_mp4(FRAMES_A_CLIP * number, count + 1, fps=2, gop=8),
    )


def coded_dataset(
    root: Path, shards: Sequence[int] = (7, 5, 6), *, summaries: Sequence[schema.Sample] = (), per_video: int = 4
) -> Dataset:
    """Write a dataset of coded clips, so many in each shard, `per_video` of each video; train holds all of them."""
    number = 0
    for index, count in enumerate(shards):
        samples = [coded_clip(number + i, video=f"video-{(number + i) // per_video:03d}") for i in range(count)]
        write_shard(root, samples, number=index)
        number += count
    finish_split(root, "clips", "train")
    if summaries:
        write_shard(root, summaries, set_name="summaries")
        finish_split(root, "summaries", "train")
    return write_dataset(
        root,
        config={"chunk": {"fps": FPS}},
        toolchain=TOOLCHAIN,
        provenance={
            "code_revision": "0" * 40,
            "annotations": {"egoclip.csv": "ab" * 32},
            "licence_notice": "Made for tests.",
            "counts": {"narrations": number},
        },
    )


def overwrite_member(dataset: Dataset, shard: int, row: int, data: bytes, *, member: str = "mp4", at: int = 0) -> None:
    """Write `data` over a stored member from its byte `at` on, as a failing disk would."""
    place = dataset.split("clips", "train").shards[shard].rows([f"{member}_offset"]).to_pylist()[row]
    with dataset.split("clips", "train").shards[shard].path.open("r+b") as handle:
        handle.seek(place[f"{member}_offset"] + at)
        handle.write(data)


def rgb_frames(mp4: bytes) -> np.ndarray:
    """Return all frames of an mp4, decoded whole by libavcodec."""
    with av.open(io.BytesIO(mp4)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
