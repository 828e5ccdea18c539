"""Brings pictures and films of samples from their shards into a page's own folder, so that the page asks nobody else.

A stored film begins at a key frame, before its clip: `Clip.begin` and `Clip.end` say where the clip lies in it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from shards import schema
from shards.dataset import Shard, read_rows
from shards.files import write_bytes
from shards.keys import is_key
from shards.sources import Source

FOLDER = "media"  # below the page's folder
_PLACES = [f"{member}_{what}" for member in ("jpg", "json", "mp4") for what in ("offset", "size")]


@dataclass(frozen=True, kw_only=True)
class Clip:
    """A sample as a page shows it; `picture` and `film` are paths relative to the page, `film` None where left out."""

    key: str
    set_name: str
    split: str
    text: str
    video_uid: str
    clip_start: float  # s from the source's first frame
    clip_end: float
    fps: float  # stored frames per second: low where a film is a low-rate rendition
    picture: str
    film: str | None
    begin: float  # s, where the clip begins and ends in the stored film
    end: float


@dataclass(frozen=True, kw_only=True)
class _Found:
    key: str
    set_name: str
    split: str
    shard: Shard
    places: dict[str, int]


def bring(
    source: Source,
    keys: Iterable[str],
    folder: Path,
    *,
    splits: Sequence[tuple[str, str]] | None = None,
    max_bytes: int = 256 << 20,
) -> dict[str, Clip]:
    """Return key → clip, with pictures and films copied into `folder`/media, of those of `keys` that the dataset has.

    The first in `keys` come first: a film that would take the folder past `max_bytes` is left out, its picture shown.
    `splits` are where to look, everywhere when None. Videos on the dataset's denylist are left out. Raises
    `ShardError` or `SourceError` where the shards cannot be read.
    """
    wanted = [key for key in dict.fromkeys(keys) if is_key(key)]  # what is no key is no safe file name either
    found = {sample.key: sample for sample in _find(source, wanted, splits)}
    withdrawn = source.dataset.denylist
    clips: dict[str, Clip] = {}
    used = 0
    for key in wanted:
        sample = found.get(key)
        if sample is None:
            continue
        record = schema.from_json(sample.set_name, json.loads(_read(source, sample, "json")))
        if record.video_uid in withdrawn:
            continue
        size = sample.places["jpg_size"]
        has_film = used + size + sample.places["mp4_size"] <= max_bytes
        used += size + has_film * sample.places["mp4_size"]
        picture, film = f"{FOLDER}/{key}.jpg", f"{FOLDER}/{key}.mp4"
        write_bytes(folder / picture, _read(source, sample, "jpg"))
        if has_film:
            write_bytes(folder / film, _read(source, sample, "mp4"))
        clips[key] = Clip(
            key=key,
            set_name=sample.set_name,
            split=sample.split,
            text=record.text,
            video_uid=record.video_uid,
            clip_start=record.clip_start,
            clip_end=record.clip_end,
            fps=record.fps,
            picture=picture,
            film=film if has_film else None,
            begin=record.first_frame / record.fps,
            end=(record.first_frame + record.clip_frames) / record.fps,
        )
    return clips


def _find(source: Source, keys: Sequence[str], splits: Sequence[tuple[str, str]] | None) -> Iterator[_Found]:
    """Yield where each of the keys lies; no more tables are read than that takes."""
    missing = set(keys)
    for set_name, split_name, split in source.dataset.splits():
        if splits is not None and (set_name, split_name) not in splits:
            continue
        for shard in split.shards:
            if not missing:
                return
            rows = read_rows(source.parquet(shard), ["key", *_PLACES])
            rows = rows.filter(pc.is_in(rows["key"], pa.array(sorted(missing), pa.string())))
            for row in rows.to_pylist():
                key = row.pop("key")
                missing.discard(key)
                yield _Found(key=key, set_name=set_name, split=split_name, shard=shard, places=row)


def _read(source: Source, sample: _Found, member: str) -> bytes:
    return source.read(sample.shard, sample.places[f"{member}_offset"], sample.places[f"{member}_size"])
