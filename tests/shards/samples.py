"""Creates small samples and datasets with real H.264 videos, awkward texts, and first samples without tags."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from shards import schema
from shards.index import Dataset, FailedItem, ShardStats, finish_split, write_dataset
from shards.keys import make_key
from shards.writer import ShardWriter
from tests.media import key_frame_jpg, make_mp4

WIDTH, HEIGHT, FPS, SUMMARY_FPS = 64, 48, 10, 2
TOOLCHAIN = {"ffmpeg": "7.1", "x264": "165", "pillow": "13"}
DOTTED_VIDEO = "P01_01.take.2"  # readers split member names at the first dot
TEXTS = (
    "#C C opens the drawer",
    "#C C schält die Möhre — 人参を切る 🥕",
    '#C C says "stop", it\'s \\ done',
    "#C C looks\nand\twaits\r\nagain",
    "#Unsure",
)


def clip(
    index: int, *, video: str = "video-a", tags: Sequence[int] = (1, 2), frames: int = 8, **changes: Any
) -> schema.Sample:
    """Return the `index`th clip of a video, 10 s apart; `changes` go into the record."""
    start = 10.0 * index
    fields: dict[str, Any] = {
        "video_uid": video,
        "clip_start": start,
        "clip_end": start + 0.7,
        "media_start": start - 0.1,
        "first_frame": 1,
        "clip_frames": frames - 1,
        "num_frames": frames,
        "fps": float(FPS),
        "width": WIDTH,
        "height": HEIGHT,
        "text": TEXTS[index % len(TEXTS)],
        "narration_source": "narration_pass_1",
        "narration_ind": index,
        "narration_time": start + 0.3,
        "tag_verb": list(tags),
        "tag_noun": list(tags),
        "segment": f"{video}_{int((start + 0.3) // 60)}",
    }
    record = schema.ClipRecord(**{**fields, **changes})
    mp4 = make_mp4(frames, seed=index)
    return schema.Sample(key=make_key(video, "c", 1, index), record=record, jpg=key_frame_jpg(mp4, 4.0), mp4=mp4)


def summary(index: int, *, video: str = "video-a", narrations: Sequence[schema.Sample] = ()) -> schema.Sample:
    """Return a summary over the given clips, at 2 frames/s from the first frame of the video; without any, over 1 s."""
    base = clip(index, video=video, text=f"#Summary C made tea «{index}»").record
    listed = [
        schema.Narration(**{name: getattr(c.record, name) for name in _NARRATION_FIELDS}, key=c.key) for c in narrations
    ]
    start = min([narration.clip_start for narration in listed], default=base.clip_start)
    end = max([narration.clip_end for narration in listed], default=start + 1)
    count = math.ceil((end - start) * SUMMARY_FPS)
    changes: dict[str, Any] = {
        "clip_start": start,
        "clip_end": end,
        "media_start": start,
        "first_frame": 0,
        "clip_frames": count,
        "num_frames": count,
        "fps": float(SUMMARY_FPS),
        "narrations": listed,
    }
    fields = {name: getattr(base, name) for name in schema.ClipRecord.__dataclass_fields__}
    mp4 = make_mp4(count, seed=index, fps=SUMMARY_FPS)
    return schema.Sample(
        key=make_key(video, "s", 1, index),
        record=schema.SummaryRecord(**{**fields, **changes}),
        jpg=key_frame_jpg(mp4, (count - 1) / 2),
        mp4=mp4,
    )


_NARRATION_FIELDS = ("text", "clip_start", "clip_end", "tag_verb", "tag_noun")


def write_shard(
    root: Path,
    samples: Sequence[schema.Sample],
    *,
    number: int = 0,
    set_name: str = "clips",
    split: str = "train",
    failed: Sequence[FailedItem] = (),
    toolchain: dict[str, str] = TOOLCHAIN,
) -> ShardStats:
    """Write one shard below `root`."""
    with ShardWriter(root, set_name, split, number, toolchain=toolchain) as writer:
        for sample in samples:
            writer.add(sample)
        return writer.finish(failed)


def make_dataset(root: Path, *, clips_per_shard: int = 4) -> Dataset:
    """Write a dataset with both levels, train and val, a failed sample, a shard where all failed, and a ledger.

    What comes first has no tags, a summary without narrations comes before one with, and val has no tags at all.
    """
    first = [clip(0, tags=()), *(clip(i, tags=(i, 2)) for i in range(1, clips_per_shard))]
    second = [clip(i, video=DOTTED_VIDEO, tags=() if i < 2 else (5,)) for i in range(clips_per_shard)]
    val = [clip(i, video="val-video", tags=()) for i in range(3)]
    lost = FailedItem(key=make_key("lost", "c", 1, 0), reason="decode_error", detail="no frame could be decoded")
    gone = FailedItem(key=make_key("gone", "c", 1, 0), reason="video_missing", detail="no such file")
    write_shard(root, first, number=0, failed=[lost])
    write_shard(root, [], number=1, failed=[gone])
    write_shard(root, second, number=2)
    write_shard(root, val, split="val")
    summaries = [summary(0), summary(1, narrations=first[1:]), summary(2, narrations=first[1:2])]
    write_shard(root, summaries, set_name="summaries")
    write_shard(root, [summary(0, video="val-video", narrations=val)], set_name="summaries", split="val")
    for set_name, split in (("clips", "train"), ("clips", "val"), ("summaries", "train"), ("summaries", "val")):
        finish_split(root, set_name, split)
    write_ledger(root, failed={"clips": [lost, gone]})
    write_spans(root)
    return write_dataset(
        root,
        config={"chunk": {"fps": FPS}},
        toolchain=TOOLCHAIN,
        provenance={
            "code_revision": "0" * 40,
            "annotations": {"egoclip.csv": "ab" * 32},
            "licence_notice": "Made for tests.",
            "counts": {"narrations": 14},
        },
    )


def write_ledger(root: Path, *, failed: dict[str, list[FailedItem]]) -> None:
    """Write the ledger that fits the shards below `root`, and one filtered row."""
    rows = []
    for parquet in sorted(root.glob("*/*/*.parquet")):
        set_name, split = parquet.parts[-3:-1]
        shard = f"{set_name}/{split}/{parquet.stem}.tar"
        for row in pq.read_table(parquet, columns=["key", "video_uid"]).to_pylist():
            rows.append({"set": set_name, "status": "packed", "reason": "", "detail": "", "shard": shard, **row})
    for set_name, items in failed.items():
        for item in items:
            shard = next(
                path.relative_to(root).as_posix().replace("_stats.json", ".tar")
                for path in sorted(root.glob("*/*/*_stats.json"))
                if item in ShardStats.read(path).failed
            )
            video = item.key.split("_")[0]
            known = {"set": set_name, "video_uid": video, "status": "failed", "shard": shard}
            rows.append({**known, "reason": item.reason, "detail": item.detail, "key": item.key})
    filtered = {"set": "clips", "video_uid": "video-a", "status": "filtered", "reason": "unsure"}
    rows.append({**filtered, "detail": "#unsure", "key": make_key("video-a", "c", 1, 99), "shard": ""})
    names = ("set", "video_uid", "status", "reason", "detail", "key", "shard")
    pq.write_table(
        pa.Table.from_pylist(rows, schema=pa.schema([(name, pa.string()) for name in names])), root / "ledger.parquet"
    )


def write_spans(root: Path) -> None:
    """Write a small spans table: one video packed but for its damaged end."""
    rows = [
        {"video_uid": "video-a", "start": 0.0, "end": 40.0, "status": "packed", "reason": "", "detail": ""},
        {"video_uid": "video-a", "start": 40.0, "end": 60.0, "status": "failed", "reason": "damaged", "detail": ""},
    ]
    pq.write_table(pa.Table.from_pylist(rows), root / "spans.parquet")
