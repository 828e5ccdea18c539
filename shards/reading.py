"""Reads the samples of a batch out of shards and decodes them to arrays; one reader belongs to one process.

Shapes in names: B samples, T frames, K windows or narrations, H and W pixels, C red, green, blue.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Collection
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from shards import sampling, schema
from shards.cache import ShardCache
from shards.config import LoaderConfig
from shards.dataset import Split, read_rows
from shards.keys import is_key
from shards.sampling import Crop, KeyedRng
from shards.schema import ClipRecord, MediaRecord, Narration, SchemaError, SummaryRecord
from shards.sources import Source
from shards.stats import ShardError
from shards.tar import BLOCK
from shards.video.decode import DecodeError, Decoder, open_decoder

_OPEN_TABLES = 1024  # shards whose places of samples are kept in memory: 40 bytes a sample
_COLUMNS = ("json_offset", "json_size", "mp4_offset", "mp4_size")


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A sample that could not be had, and the one that stands in for it."""

    key: str  # or shard and row, where not even the key could be read
    reason: str  # a short code, the same for all failures of a kind
    detail: str  # for a person


@dataclass(frozen=True, kw_only=True)
class DecodedSample:
    """One sample of a batch."""

    key: str
    record: MediaRecord
    frames: np.ndarray  # (T, H, W, C) of a clip, (K, T, H, W, C) in a long set; uint8 RGB
    narrations: tuple[str, ...] = ()  # K of a summary
    failures: tuple[Failure, ...] = ()  # what was tried before this one


class SampleFailedError(ValueError):
    """A sample that could not be had, nor any of those that stand in for it; the message names them."""

    exit_code: ClassVar[int] = 1


@dataclass(frozen=True)
class _Table:
    """Where the members of a shard's samples lie."""

    places: np.ndarray  # (S, 4) int64, as _COLUMNS
    segments: np.ndarray  # (S,) int32, equal numbers for equal segments; empty where nobody asks
    is_denied: np.ndarray  # (S,) bool


class SampleReader:
    """Turns (shard, row) into decoded samples, the same in every process."""

    def __init__(self, source: Source, split: Split, config: LoaderConfig, *, is_training: bool) -> None:
        if config.scene_negatives and "segment" not in schema.scalar_fields(split.set_name):
            raise ShardError(
                f"{split.set_name}: its samples have no segment, which scene_negatives chooses partners by"
            )
        self._source, self._split, self._config = source, split, config
        self._is_training = is_training
        self._denied = source.dataset.denylist
        self._tables: OrderedDict[int, _Table] = OrderedDict()
        self._decoder: Decoder | None = None

    def __getstate__(self) -> dict[str, object]:
        """Leave behind what belongs to this process: decoders do not travel."""
        return {**self.__dict__, "_decoder": None, "_tables": OrderedDict()}

    @property
    def cache(self) -> ShardCache | None:
        """The cache that shards come through; None where they are local."""
        return getattr(self._source, "cache", None)

    def denied_rows(self) -> dict[int, np.ndarray]:
        """Return, for each shard that has any, the rows of withdrawn videos."""
        if not self._denied:
            return {}
        found = {}
        for number, shard in enumerate(self._split.shards):
            rows = np.flatnonzero(self._is_denied(read_rows(self._source.parquet(shard), ["video_uid"])["video_uid"]))
            if len(rows):
                found[number] = rows
        return found

    def rows_except(self, keys: Collection[str]) -> dict[int, np.ndarray]:
        """Return, for each shard that has any, the rows of withdrawn videos and of samples with other keys."""
        wanted = pa.array(sorted(set(keys)), pa.string())
        found = {}
        for number, shard in enumerate(self._split.shards):
            table = read_rows(self._source.parquet(shard), ["key", "video_uid"])
            is_wanted = np.asarray(pc.is_in(table["key"], wanted))
            rows = np.flatnonzero(~is_wanted | self._is_denied(table["video_uid"]))
            if len(rows):
                found[number] = rows
        return found

    def item(self, epoch: int, shard: int, row: int) -> DecodedSample:
        """Return a sample, or by rule the next of its shard that can be had; raise `SampleFailedError` at the end."""
        failures: list[Failure] = []
        table = self._table(shard)
        rows = (np.arange(len(table.places)) + row) % len(table.places)
        for candidate in rows[~table.is_denied[rows]][: self._config.max_substitutes + 1].tolist():
            key = f"{self._split.shards[shard].name} row {candidate}"
            try:
                key, record, mp4 = self._read(shard, table.places[candidate])
                return self._decode(epoch, key, record, mp4, tuple(failures))
            except DecodeError as error:
                failures.append(Failure(key=key, reason=error.reason, detail=str(error)))
            except SchemaError as error:
                failures.append(Failure(key=key, reason="record", detail=str(error)))
            except ShardError as error:
                failures.append(Failure(key=key, reason="read", detail=str(error)))
        named = "; ".join(f"{failure.key}: {failure.detail}" for failure in failures)
        raise SampleFailedError(f"{len(failures)} samples in a row cannot be had: {named}")

    def partner(self, epoch: int, shard: int, row: int) -> tuple[int, bool]:
        """Return a second row of the same shard for a clip, and whether it is of the same 60 s segment.

        Where the segment has no other clip in the shard it is any other clip of the shard; where that has no other,
        the clip itself.
        """
        table = self._table(shard)
        rng = KeyedRng(self._config.seed, epoch, self._split.shards[shard].sha256, row, "partner")
        kept = ~table.is_denied
        same = np.flatnonzero(kept & (table.segments == table.segments[row])).tolist()
        if (found := sampling.partner(row, same, rng)) is not None:
            return found, True
        other = sampling.partner(row, np.flatnonzero(kept).tolist(), rng)
        return (row if other is None else other), False

    def _read(self, shard: int, place: np.ndarray) -> tuple[str, MediaRecord, bytes]:
        """Return key, record and video of a sample: one read, from the json's header to the mp4's end."""
        json_at, json_size, mp4_at, mp4_size = place.tolist()
        start = json_at - BLOCK
        data = self._source.read(self._split.shards[shard], start, mp4_at + mp4_size - start)
        name = data[:100].split(b"\0", 1)[0].decode("ascii", "replace")
        key = name.removesuffix(".json")
        if key == name or not is_key(key):
            raise ShardError(f"{self._split.shards[shard].name}: {name!r} stands where a json is expected")
        try:
            value = json.loads(data[BLOCK : BLOCK + json_size])
        except (ValueError, RecursionError) as error:
            raise SchemaError(f"{key}: not JSON: {error}") from None
        return key, schema.from_json(self._split.set_name, value), data[mp4_at - start :]

    def _decode(
        self, epoch: int, key: str, record: MediaRecord, mp4: bytes, failures: tuple[Failure, ...]
    ) -> DecodedSample:
        if self._decoder is None:  # opened in the process that uses it, after the fork
            self._decoder = open_decoder(self._config.decoder)
        config = self._config
        if record.clip_frames < 1 or record.first_frame < 0:
            raise SchemaError(f"{key}: first_frame {record.first_frame}, clip_frames {record.clip_frames}")
        rng = KeyedRng(config.seed, epoch, key) if self._is_training else None
        if not schema.set_spec(self._split.set_name).is_long or config.clip_seconds is not None:
            if config.clip_seconds is None:
                numbers = sampling.clip_frames(record, frames=config.frames, rng=rng)
            else:
                numbers = sampling.part_frames(record, seconds=config.clip_seconds, frames=config.frames, rng=rng)
            crops = [self._crop(record, rng)] * config.frames
            frames = self._decoder.decode(mp4, numbers, crops, config.size)
            return DecodedSample(key=key, record=record, frames=frames, failures=failures)
        numbers_KT = sampling.window_frames(
            record, windows=config.windows, seconds=config.window_seconds, frames=config.frames, rng=rng
        )
        crops = [crop for _ in numbers_KT for crop in [self._crop(record, rng)] * config.frames]
        frames = self._decoder.decode(mp4, numbers_KT.reshape(-1), crops, config.size)
        chosen: list[Narration | None] = []
        if isinstance(record, SummaryRecord):
            chosen = sampling.narrations_in_order(record, config.narrations, rng)
        return DecodedSample(
            key=key,
            record=record,
            frames=frames.reshape(config.windows, config.frames, config.size, config.size, 3),
            narrations=tuple(record.text if narration is None else narration.text for narration in chosen),
            failures=failures,
        )

    def _crop(self, record: MediaRecord, rng: KeyedRng | None) -> Crop:
        if rng is None:
            return sampling.centre_crop(record.width, record.height)
        config = self._config
        return sampling.random_crop(record.width, record.height, scale=config.crop_scale, flip=config.flip, rng=rng)

    def _table(self, number: int) -> _Table:
        table = self._tables.get(number)
        if table is None:
            names = [*_COLUMNS, "video_uid", *(["segment"] if self._config.scene_negatives else [])]
            rows = read_rows(self._source.parquet(self._split.shards[number]), names)
            segments = rows["segment"].combine_chunks().dictionary_encode().indices if names[-1] == "segment" else []
            table = _Table(
                np.stack([rows[name].to_numpy() for name in _COLUMNS], axis=1),
                np.asarray(segments, np.int32),
                self._is_denied(rows["video_uid"]),
            )
            while len(self._tables) >= _OPEN_TABLES:
                self._tables.popitem(last=False)
            self._tables[number] = table
        else:
            self._tables.move_to_end(number)
        return table

    def _is_denied(self, videos: pa.ChunkedArray) -> np.ndarray:
        if not self._denied:
            return np.zeros(len(videos), bool)
        return np.array([video in self._denied for video in videos.to_pylist()], bool)


def tags(record: MediaRecord) -> tuple[list[int], list[int]]:
    """Return the verb and noun classes of a sample, none where its set has none."""
    return (record.tag_verb, record.tag_noun) if isinstance(record, ClipRecord) else ([], [])
