"""Copies images and videos of samples from their shards into a page's folder, so that the page requests nothing else.

A stored video starts at a key frame, before its clip: `Clip.begin` and `Clip.end` say where the clip lies in it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from shards import schema
from shards.dataset import Shard, read_rows
from shards.files import write_bytes
from shards.html.elements import Html, absent, clock, image, playback_rate, player
from shards.keys import is_key
from shards.sources import Source

FOLDER = "media"  # below the page's folder
_OFFSETS = [f"{member}_{what}" for member in ("jpg", "json", "mp4") for what in ("offset", "size")]


@dataclass(frozen=True, kw_only=True)
class Clip:
    """A sample on a page. `image` and `video` are paths relative to the page; `video` is None if it was left out."""

    key: str
    set_name: str
    split: str
    text: str
    video_uid: str
    clip_start: float  # s in the source video
    clip_end: float
    fps: float  # stored frames per second; low for low-rate renditions of long samples
    image: str
    video: str | None
    begin: float  # s, where the clip begins and ends in the stored video
    end: float


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a sample is stored."""

    key: str
    set_name: str
    split: str
    shard: Shard
    offsets: Mapping[str, int]  # jpg_offset, jpg_size, and so on of jpg, json and mp4


def copy_media(
    source: Source,
    keys: Iterable[str],
    folder: Path,
    *,
    splits: Sequence[tuple[str, str]] | None = None,
    places: Iterable[Place] | None = None,
    max_bytes: int = 256 << 20,
) -> dict[str, Clip]:
    """Copy images and videos of those `keys` that the dataset has into `folder`/media; return key → clip.

    A video that would take the folder past `max_bytes` is left out and only its image copied; the first of `keys` are
    copied first. `splits` are (set, split) pairs to search, all by default; with `places`, those of the keys, nothing
    is searched. Videos on the dataset's denylist are left
    out. Raises `ShardError` or `SourceError` if the shards cannot be read.
    """
    wanted = [key for key in dict.fromkeys(keys) if is_key(key)]  # anything else is no safe file name
    known = _find(source, wanted, splits) if places is None else places
    found = {sample.key: sample for sample in known}
    denied = source.dataset.denylist
    clips: dict[str, Clip] = {}
    used = 0
    for key in wanted:
        sample = found.get(key)
        if sample is None:
            continue
        record = schema.from_json(sample.set_name, json.loads(_read(source, sample, "json")))
        if record.video_uid in denied:
            continue
        size = sample.offsets["jpg_size"]
        has_video = used + size + sample.offsets["mp4_size"] <= max_bytes
        used += size + has_video * sample.offsets["mp4_size"]
        image_path, video_path = f"{FOLDER}/{key}.jpg", f"{FOLDER}/{key}.mp4"
        write_bytes(folder / image_path, _read(source, sample, "jpg"))
        if has_video:
            write_bytes(folder / video_path, _read(source, sample, "mp4"))
        clips[key] = Clip(
            key=key,
            set_name=sample.set_name,
            split=sample.split,
            text=record.text,
            video_uid=record.video_uid,
            clip_start=record.clip_start,
            clip_end=record.clip_end,
            fps=record.fps,
            image=image_path,
            video=video_path if has_video else None,
            begin=record.first_frame / record.fps,
            end=(record.first_frame + record.clip_frames) / record.fps,
        )
    return clips


def show(clip: Clip | None) -> Html:
    """Return a player of a clip, its image if the video was left out, or a placeholder for None."""
    if clip is None:
        return absent("clip not shown")
    if clip.video is None:
        return image(clip.image, clip.text)
    return player(clip.video, poster=clip.image, label=clip.text, begin=clip.begin, end=clip.end, fps=clip.fps)


def when(clip: Clip) -> str:
    """Return where in its source video a clip lies, and how fast it is played."""
    rate = playback_rate(clip.fps)
    speed = f" · played {rate}× as fast" if rate > 1 and clip.video else ""
    return f"{clock(clip.clip_start)} to {clock(clip.clip_end)}{speed}"


def _find(source: Source, keys: Sequence[str], splits: Sequence[tuple[str, str]] | None) -> Iterator[Place]:
    """Yield the location of each key, reading no more tables than necessary."""
    missing = set(keys)
    for set_name, split_name, split in source.dataset.splits():
        if splits is not None and (set_name, split_name) not in splits:
            continue
        for shard in split.shards:
            if not missing:
                return
            rows = read_rows(source.parquet(shard), ["key", *_OFFSETS])
            rows = rows.filter(pc.is_in(rows["key"], pa.array(sorted(missing), pa.string())))
            for row in rows.to_pylist():
                key = row.pop("key")
                missing.discard(key)
                yield Place(key=key, set_name=set_name, split=split_name, shard=shard, offsets=row)


def _read(source: Source, sample: Place, member: str) -> bytes:
    return source.read(sample.shard, sample.offsets[f"{member}_offset"], sample.offsets[f"{member}_size"])
