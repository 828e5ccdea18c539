"""Reads the features of given samples: what the loader collates when it serves features instead of video.

Shapes in names: B samples, R rows of each, S samples of a shard, K narrations.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from shards import sampling
from shards.config import LoaderConfig
from shards.dataset import Split, read_rows
from shards.features.contract import (
    TAGS,
    FeatureError,
    FeatureSplit,
    features_folder,
    has_tags,
    index_columns,
    open_features,
)
from shards.reading import Failure
from shards.sampling import KeyedRng
from shards.sources import LocalSource, Source

NARRATIONS, TEXT = "narrations", "text"
_MAX_SHARDS = 4096  # whose arrays are kept mapped


@dataclass(frozen=True, kw_only=True, eq=False)
class FeatureRows:
    """The features of some samples."""

    keys: list[str]
    texts: list[str]
    arrays: dict[str, np.ndarray]  # array → (B, R, …)
    tags: list[tuple[Sequence[int], Sequence[int]]]  # verb and noun classes of each sample
    unavailable: list[Failure | None]  # of each sample


@dataclass(frozen=True, eq=False)
class _Shard:
    keys: pa.ChunkedArray
    texts: pa.ChunkedArray
    arrays: Mapping[str, np.ndarray]
    first_S: Mapping[str, np.ndarray]
    rows_S: Mapping[str, np.ndarray]
    tags: Mapping[str, tuple[np.ndarray, np.ndarray]]  # column → values, and offsets of each sample's
    available_S: np.ndarray  # the row that stands for each: itself, or the next one with features


@dataclass(eq=False)
class FeatureReader:
    """Turns (shard, row) into features, identically in every process.

    reader = FeatureReader.open(source, split, config)
    rows = reader.read(epoch=0, samples_B2=order.batch(0, 3, lanes), is_training=True)
    """

    source: Source
    split: Split
    features: FeatureSplit
    config: LoaderConfig
    _shards: OrderedDict[int, _Shard] = field(default_factory=OrderedDict)
    _rows: dict[str, int] = field(default_factory=dict)  # array → rows of every sample

    def __getstate__(self) -> dict[str, object]:
        """Return the state without what is mapped, which is opened again in the process that unpickles it."""
        return {**self.__dict__, "_shards": OrderedDict()}

    @classmethod
    def open(cls, source: Source, split: Split, config: LoaderConfig) -> FeatureReader:
        """Open the feature set that `config.features` names; raise `FeatureError` if it does not fit the split."""
        assert config.features is not None
        if "/" not in config.features and not isinstance(source, LocalSource):
            raise FeatureError(f"features = {config.features}: of a dataset behind a URL, give the folder of a copy")
        found = open_features(features_folder(source.dataset, config.features))
        features = found.split(split.set_name, split.split, fingerprint=split.fingerprint)
        if [shard.name for shard in features.shards] != [shard.name for shard in split.shards]:
            raise FeatureError(f"{found.folder}: the shards of {split.set_name}/{split.split} differ: extract again")
        return cls(source, split, features, config)

    def read(self, epoch: int, samples_B2: np.ndarray, *, is_training: bool) -> FeatureRows:
        """Return the features of samples (shard, row) in their order.

        A sample without features is replaced by the next one of its shard that has them. Narrations are chosen as the
        loader chooses them of a summary: K in the order of time, its own text where it has none. Raises `FeatureError`.
        """
        count = len(samples_B2)
        keys, texts = [""] * count, [""] * count
        tags: list[tuple[Sequence[int], Sequence[int]]] = [((), ())] * count
        unavailable: list[Failure | None] = [None] * count
        arrays: dict[str, np.ndarray] = {}
        for number in np.unique(samples_B2[:, 0]).tolist():
            shard = self._shard(number)
            places = np.flatnonzero(samples_B2[:, 0] == number)
            wanted = samples_B2[places, 1]
            rows = shard.available_S[wanted]
            own = pa.array(rows, pa.int64())
            for place, key, text in zip(
                places.tolist(), shard.keys.take(own).to_pylist(), shard.texts.take(own).to_pylist(), strict=True
            ):
                keys[place], texts[place] = key, text
            for place, row, asked in zip(places.tolist(), rows.tolist(), wanted.tolist(), strict=True):
                if shard.tags:
                    tags[place] = (_list(shard.tags[TAGS[0]], row), _list(shard.tags[TAGS[1]], row))
                if row != asked:
                    detail = "it has no features; the stats file of its shard says why"
                    unavailable[place] = Failure(key=shard.keys[asked].as_py(), reason="features", detail=detail)
            for spec in self.features.arrays:
                if spec.name == NARRATIONS:
                    pairs = zip(places.tolist(), rows.tolist(), strict=True)
                    chosen = [self._narrations(shard, row, keys[p], epoch, is_training) for p, row in pairs]
                    values = np.stack(chosen)
                else:
                    each = self._rows_of(shard, spec.name)
                    values = shard.arrays[spec.name][shard.first_S[spec.name][rows][:, None] + np.arange(each)]
                if spec.name not in arrays:
                    arrays[spec.name] = np.empty((count, *values.shape[1:]), values.dtype)
                arrays[spec.name][places] = values
        return FeatureRows(keys=keys, texts=texts, arrays=arrays, tags=tags, unavailable=unavailable)

    def _narrations(self, shard: _Shard, row: int, key: str, epoch: int, is_training: bool) -> np.ndarray:
        """Return the rows (K, …) of K narrations, or K times the row of the summary's text."""
        count, wanted = int(shard.rows_S[NARRATIONS][row]), self.config.narrations
        if count == 0:
            return np.repeat(shard.arrays[TEXT][shard.first_S[TEXT][row]][None], wanted, axis=0)
        rng = KeyedRng(self.config.seed, epoch, key, NARRATIONS) if is_training else None
        chosen = np.arange(wanted) % count if count < wanted else sampling.frame_numbers(count, wanted, rng)
        found: np.ndarray = shard.arrays[NARRATIONS][int(shard.first_S[NARRATIONS][row]) + chosen]
        return found

    def _rows_of(self, shard: _Shard, name: str) -> int:
        """Return the rows that every sample has in an array; raise `FeatureError` where they differ."""
        rows = shard.rows_S[name][shard.available_S]
        each = self._rows.setdefault(name, int(rows[0]))
        if (rows != each).any():
            raise FeatureError(
                f"{self.features.shards[0].folder}: the samples have different numbers of rows in {name}: read such "
                "features by shards.features, not by the loader"
            )
        return each

    def _shard(self, number: int) -> _Shard:
        shard = self._shards.get(number)
        if shard is None:
            while len(self._shards) >= _MAX_SHARDS:
                self._shards.popitem(last=False)
            self._shards[number] = shard = self._open(number)
        return shard

    def _open(self, number: int) -> _Shard:
        shard, features = self.split.shards[number], self.features.shards[number]
        table = features.table()
        listed = read_rows(self.source.parquet(shard), ["key", "text", "video_uid"], rows=shard.samples)
        if table["key"].to_pylist() != listed["key"].to_pylist():
            raise FeatureError(f"{features.folder}/{features.stem}.parquet: keys of another shard: run shards.verify")
        if has_tags(self.split.set_name) and TAGS[0] not in table.column_names:
            raise FeatureError(f"{features.folder}/{features.stem}.parquet: it has no tags: extract the features again")
        first_S, rows_S = {}, {}
        good = np.ones(len(table), bool)
        for spec in self.features.arrays:
            first, rows = (table[name].to_numpy() for name in index_columns(self.features.arrays, spec.name))
            first_S[spec.name], rows_S[spec.name] = first, rows
            if spec.name != NARRATIONS:
                good &= rows > 0
        denied = self.source.dataset.denylist
        if denied:
            good &= np.array([video not in denied for video in listed["video_uid"].to_pylist()], bool)
        if not good.any():
            raise FeatureError(f"{features.folder}/{features.stem}.npy: no sample of this shard has features")
        return _Shard(
            listed["key"],
            listed["text"],
            {spec.name: features.array(spec.name) for spec in self.features.arrays},
            first_S,
            rows_S,
            {name: _values_and_offsets(table[name]) for name in TAGS if name in table.column_names},
            _next_good(good),
        )


def _next_good(good: np.ndarray) -> np.ndarray:
    """Return for each row itself if it is good, else the next good one, from the end on to the start."""
    places = np.flatnonzero(good)
    found: np.ndarray = places[np.searchsorted(places, np.arange(len(good))) % len(places)]
    return found


def _values_and_offsets(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    whole = column.combine_chunks()
    return whole.flatten().to_numpy(), np.concatenate([[0], np.cumsum(whole.value_lengths().to_numpy())])


def _list(column: tuple[np.ndarray, np.ndarray], row: int) -> Sequence[int]:
    values, offsets = column
    found: list[int] = values[offsets[row] : offsets[row + 1]].tolist()
    return found
