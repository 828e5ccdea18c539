"""Creates datasets of coded clips, whose frames show the number of their clip and their own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from shards import schema
from shards.dataset import Dataset
from shards.index import finish_split, write_dataset
from shards.keys import make_key
from tests.media import coded_mp4, key_frame_jpg
from tests.shards.samples import TOOLCHAIN, write_shard

SIDE, FPS, FRAMES_A_CLIP = 128, 30, 64  # pixels; frames/s; the code of a clip's first frame is its number × 64


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
    jpg = key_frame_jpg(mp4, first_frame + (clip_frames - 1) / 2)
    return schema.Sample(key=make_key(video, "c", 1, number), record=record, jpg=jpg, mp4=mp4)


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
    mp4 = coded_mp4(FRAMES_A_CLIP * number, count + 1, fps=2, gop=8)
    return schema.Sample(
        key=make_key(video, "s", 1, number),
        record=schema.SummaryRecord(**fields),
        jpg=key_frame_jpg(mp4, 1 + (count - 1) / 2),
        mp4=mp4,
    )


def coded_dataset(
    root: Path,
    shards: Sequence[int] = (7, 5, 6),
    *,
    clips: Sequence[schema.Sample] = (),
    summaries: Sequence[schema.Sample] = (),
    per_video: int = 4,
) -> Dataset:
    """Write a dataset whose training split has `shards` coded clips per shard, `per_video` of each video.

    With `clips`, it has those in one shard instead.
    """
    number = len(clips)
    if clips:
        write_shard(root, clips)
        shards = ()
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
    """Overwrite a stored member with `data`, starting at its byte `at`."""
    place = dataset.split("clips", "train").shards[shard].rows([f"{member}_offset"]).to_pylist()[row]
    with dataset.split("clips", "train").shards[shard].path.open("r+b") as handle:
        handle.seek(place[f"{member}_offset"] + at)
        handle.write(data)
