"""Reads samples from shards and decodes them to arrays, with substitutes for samples that cannot be decoded.

Shapes in names: T frames, K windows or narrations, H and W pixels, C red, green, blue, S samples of a shard.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pyarrow as pa

from shards import sampling, schema
from shards.cache import ShardCache
from shards.config import LoaderConfig
from shards.dataset import Split, read_rows
from shards.decode import DecodeError, Decoder, open_decoder
from shards.keys import is_key
from shards.sampling import Crop, KeyedRng
from shards.schema import ClipRecord, MediaRecord, Narration, SchemaError, SummaryRecord
from shards.sources import Source
from shards.stats import ShardError
from shards.tar import BLOCK

_MAX_INDEXES = 1024  # shards whose sample offsets are kept in memory, at 40 bytes per sample
_COLUMNS = ("json_offset", "json_size", "mp4_offset", "mp4_size")


@dataclass(frozen=True, kw_only=True)
class Failure:
    """An undecodable sample that was replaced by a substitute."""

    key: str  # or shard and row, if not even the key could be read
    reason: str  # a short code, equal for all failures of one kind
    detail: str  # human-readable


@dataclass(frozen=True, kw_only=True)
class DecodedSample:
    """A decoded sample: the one asked for, or its substitute."""

    key: str
    record: MediaRecord
    frames: np.ndarray  # (T, H, W, C) for a clip, (K, T, H, W, C) for a long sample; uint8 RGB
    narrations: tuple[str, ...] = ()  # K for a summary
    failures: tuple[Failure, ...] = ()  # the samples that this one substitutes, in the order of the attempts


class SampleFailedError(ValueError):
    """An undecodable sample whose substitutes are undecodable, too; the message names them all."""

    exit_code: ClassVar[int] = 1


@dataclass(frozen=True)
class _ShardIndex:
    """The columns of a shard's parquet that are needed to read its samples."""

    offsets_S4: np.ndarray  # int64: _COLUMNS
    segments_S: np.ndarray  # int32, equal numbers for equal segments; empty unless partners are needed
    is_denied_S: np.ndarray  # bool: of a withdrawn video


class SampleReader:
    """Turns (shard, row) into decoded samples, identically in every process.

    reader = SampleReader(source, source.dataset.split("clips", "train"), config, is_training=True)
    sample = reader.read(epoch=0, shard=3, row=17)
    """

    def __init__(self, source: Source, split: Split, config: LoaderConfig, *, is_training: bool) -> None:
        if config.scene_negatives and "segment" not in schema.scalar_fields(split.set_name):
            raise ShardError(
                f"{split.set_name}: scene_negatives needs the field segment, which the samples of this set do not have"
            )
        self._source, self._split, self._config = source, split, config
        self._is_training = is_training
        self._denied = source.dataset.denylist
        self._indexes: OrderedDict[int, _ShardIndex] = OrderedDict()
        self._decoder: Decoder | None = None

    def __getstate__(self) -> dict[str, object]:
        """Return the state without decoder and indexes, which are opened again in the process that unpickles it."""
        return {**self.__dict__, "_decoder": None, "_indexes": OrderedDict()}

    @property
    def cache(self) -> ShardCache | None:
        """The cache of remote shards; None for local ones."""
        return getattr(self._source, "cache", None)

    def denied_rows(self) -> dict[int, np.ndarray]:
        """Return shard → rows of withdrawn videos, for the shards that have any."""
        if not self._denied:
            return {}
        denied = {}
        for number, shard in enumerate(self._split.shards):
            table = read_rows(self._source.parquet(shard), ["video_uid"], rows=shard.samples)
            rows = np.flatnonzero(self._is_denied(table["video_uid"]))
            if len(rows):
                denied[number] = rows
        return denied

    def rows_except(self, keys: Collection[str]) -> dict[int, np.ndarray]:
        """Return shard → rows of withdrawn videos and of samples with other keys, for the shards that have any."""
        wanted = frozenset(keys)
        excluded = {}
        for number, shard in enumerate(self._split.shards):
            table = read_rows(self._source.parquet(shard), ["key", "video_uid"], rows=shard.samples)
            # Arrow's is_in would hash all wanted keys again for every shard.
            is_wanted = np.fromiter((key in wanted for key in table["key"].to_pylist()), bool, len(table))
            rows = np.flatnonzero(~is_wanted | self._is_denied(table["video_uid"]))
            if len(rows):
                excluded[number] = rows
        return excluded

    def read(self, epoch: int, shard: int, row: int) -> DecodedSample:
        """Return a decoded sample, or else the first decodable one of the `max_substitutes` next rows of its shard.

        The substitute depends on the shard only, so all runs and ranks use the same. Raises `SampleFailedError` if
        there is none, `ShardError` if the shard's index is damaged, and `SourceError` if the shard cannot be fetched.
        """
        failures: list[Failure] = []
        index = self._index(shard)
        rows = (np.arange(len(index.offsets_S4)) + row) % len(index.offsets_S4)
        for candidate in rows[~index.is_denied_S[rows]][: self._config.max_substitutes + 1].tolist():
            result = self._try(epoch, shard, candidate, tuple(failures))
            if isinstance(result, Failure) and self._source.repair(self._split.shards[shard]):
                result = self._try(
                    epoch, shard, candidate, tuple(failures)
                )  # the cached copy was wrong, not the sample
            if isinstance(result, DecodedSample):
                return result
            failures.append(result)
        named = "; ".join(f"{failure.key}: {failure.detail}" for failure in failures)
        raise SampleFailedError(f"{len(failures)} consecutive samples cannot be decoded: {named}")

    def _try(self, epoch: int, shard: int, row: int, failures: tuple[Failure, ...]) -> DecodedSample | Failure:
        """Return a decoded sample, or why it cannot be decoded."""
        key = f"{self._split.shards[shard].name} row {row}"
        try:
            key, record, mp4 = self._fetch(shard, self._index(shard).offsets_S4[row])
            return self._decode(epoch, key, record, mp4, failures)
        except DecodeError as error:
            return Failure(key=key, reason=error.reason, detail=str(error))
        except SchemaError as error:
            return Failure(key=key, reason="record", detail=str(error))
        except ShardError as error:
            return Failure(key=key, reason="read", detail=str(error))

    def partner(self, epoch: int, shard: int, row: int) -> tuple[int, bool]:
        """Return the row of a random second clip of the same shard, and whether it is from the same 60 s segment.

        If the segment has no other clip in the shard, it is any other clip of the shard; if there is none, the clip
        itself.
        """
        index = self._index(shard)
        rng = KeyedRng(self._config.seed, epoch, self._split.shards[shard].sha256, row, "partner")
        kept_S = ~index.is_denied_S
        same = np.flatnonzero(kept_S & (index.segments_S == index.segments_S[row])).tolist()
        if (partner := sampling.partner(row, same, rng)) is not None:
            return partner, True
        other = sampling.partner(row, np.flatnonzero(kept_S).tolist(), rng)
        return (row if other is None else other), False

    def _fetch(self, shard: int, offsets_4: np.ndarray) -> tuple[str, MediaRecord, bytes]:
        """Return key, record and mp4 of a sample with one read, from the header of its json to the end of its mp4.

        Raises `ShardError` if the tar does not have these members of one sample there, and `SchemaError` for a record
        that cannot be that of any sample.
        """
        json_at, json_size, mp4_at, mp4_size = offsets_4.tolist()
        start, name = json_at - BLOCK, self._split.shards[shard].name
        if (
            json_at < BLOCK
            or json_size < 0
            or mp4_size < 0
            or mp4_at != json_at + json_size + -json_size % BLOCK + BLOCK
        ):
            raise ShardError(f"{name}: the index places json at {json_at} + {json_size}, mp4 at {mp4_at} + {mp4_size}")
        try:
            data = self._source.read(self._split.shards[shard], start, mp4_at + mp4_size - start)
        except FileNotFoundError:
            raise ShardError(f"{self._split.shards[shard].path}: no such file") from None
        key = _key_of_header(data[:BLOCK], "json", json_size, name)
        mp4_key = _key_of_header(data[mp4_at - BLOCK - start : mp4_at - start], "mp4", mp4_size, name)
        if mp4_key != key:
            raise ShardError(f"{name}: the index pairs the json of {key} with the mp4 of {mp4_key}")
        try:
            record = schema.from_json(self._split.set_name, json.loads(data[BLOCK : BLOCK + json_size]))
            schema.check_values(record)
        except (ValueError, RecursionError) as error:
            raise SchemaError(f"{key}: {error}") from None
        return key, record, data[mp4_at - start :]

    def _decode(
        self, epoch: int, key: str, record: MediaRecord, mp4: bytes, failures: tuple[Failure, ...]
    ) -> DecodedSample:
        if self._decoder is None:  # opened after the fork, in the process that uses it
            self._decoder = open_decoder(self._config.decoder)
        config = self._config
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

    def _index(self, number: int) -> _ShardIndex:
        index = self._indexes.get(number)
        if index is None:
            names = [*_COLUMNS, "video_uid", *(["segment"] if self._config.scene_negatives else [])]
            shard = self._split.shards[number]
            rows = read_rows(self._source.parquet(shard), names, rows=shard.samples)
            segments = rows["segment"].combine_chunks().dictionary_encode().indices if names[-1] == "segment" else []
            index = _ShardIndex(
                np.stack([rows[name].to_numpy() for name in _COLUMNS], axis=1),
                np.asarray(segments, np.int32),
                self._is_denied(rows["video_uid"]),
            )
            while len(self._indexes) >= _MAX_INDEXES:
                self._indexes.popitem(last=False)
            self._indexes[number] = index
        else:
            self._indexes.move_to_end(number)
        return index

    def _is_denied(self, videos: pa.ChunkedArray) -> np.ndarray:
        if not self._denied:
            return np.zeros(len(videos), bool)
        return np.array([video in self._denied for video in videos.to_pylist()], bool)


def _key_of_header(block: bytes, ext: str, size: int, shard: str) -> str:
    """Return the key in a member's header; raise `ShardError` unless it is the header of such a member."""
    name = block[:100].split(b"\0", 1)[0].decode("ascii", "replace")
    key = name.removesuffix(f".{ext}")
    if key == name or not is_key(key):
        raise ShardError(f"{shard}: expected a {ext} member, found {name!r}")
    if block[124:135] != b"%011o" % size:
        raise ShardError(f"{shard}: the index gives {name} {size} bytes, its header does not")
    return key


def tags(record: MediaRecord) -> tuple[list[int], list[int]]:
    """Return the verb and noun classes of a sample; empty for sets without them."""
    return (record.tag_verb, record.tag_noun) if isinstance(record, ClipRecord) else ([], [])


def multi_hot(tags: Sequence[tuple[Sequence[int], Sequence[int]]]) -> tuple[np.ndarray, np.ndarray]:
    """Return the verb classes (B, V) and the noun classes (B, O) of B samples as float32, 1 where a sample has one."""
    verbs_BV = np.zeros((len(tags), schema.VERBS), np.float32)
    nouns_BO = np.zeros((len(tags), schema.NOUNS), np.float32)
    for row, (verbs, nouns) in enumerate(tags):
        verbs_BV[row, list(verbs)] = 1
        nouns_BO[row, list(nouns)] = 1
    return verbs_BV, nouns_BO
