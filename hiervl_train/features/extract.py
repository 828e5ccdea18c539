"""Extracts the features of a split's shards: reads records and frames, encodes them, writes a shard's files at once.

A batch never spans two shards, and shards are independent: the bytes do not depend on the number of ranks or workers,
nor on how often a run was killed.
"""

from __future__ import annotations

import copy
import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from hiervl_train.data import DeviceLoader
from hiervl_train.features.config import ExtractConfig
from hiervl_train.features.extractor import Extractor, ExtractorError, Reads
from shards import schema
from shards.config import LoaderConfig
from shards.dataset import Shard, Split, read_rows
from shards.features import ArraySpec, Extracted, FeatureWriter
from shards.loader import Batch, Loader
from shards.reading import SampleFailedError, tags
from shards.schema import MediaRecord, SchemaError, SummaryRecord, set_spec
from shards.sources import Source
from shards.stats import FailedItem, ShardError

_MAX_SUBSTITUTES = 64  # the loader fills the place of an undecodable sample with its neighbour; it is ignored here
logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ShardDone:
    """What extracting one shard did."""

    set_name: str
    split: str
    shard: str
    samples: int
    failed: int
    seconds: float  # since the shard before it
    error: str = ""  # why the shard has no features; empty if it has


OnSamples = Callable[[int], None]  # called with a number of samples as they are encoded


def extract_shards(
    extractor: Extractor,
    source: Source,
    split: Split,
    shards: Sequence[int],
    writer: FeatureWriter,
    config: ExtractConfig,
    *,
    device: torch.device,
    on_samples: OnSamples = lambda _: None,
) -> Iterator[ShardDone]:
    """Extract and write the features of some shards of a split, by their places in it; yield each as it is done.

    A sample that cannot be decoded, or whose features are not finite, has no rows and is listed in the shard's stats.
    A shard that cannot be read at all is yielded with its error, and the others go on.
    """
    left = list(shards)
    while left:
        began = time.perf_counter()
        try:
            for place, done in _extract(extractor, source, split, left, writer, config, device, on_samples):
                left = left[left.index(place) + 1 :]
                yield replace(done, seconds=time.perf_counter() - began)
                began = time.perf_counter()
        except (ShardError, SampleFailedError, OSError) as error:
            name = split.shards[left[0]].name
            logger.warning("%s/%s/%s: %s", split.set_name, split.split, name, error)
            yield ShardDone(
                set_name=split.set_name,
                split=split.split,
                shard=name,
                samples=split.shards[left[0]].samples,
                failed=split.shards[left[0]].samples,
                seconds=time.perf_counter() - began,
                error=str(error),
            )
            left = left[1:]


def loader_config(reads: Reads, config: ExtractConfig, *, is_long: bool) -> LoaderConfig:
    """Return how an extractor's frames are loaded; a long sample counts as many clips as it has windows."""
    return LoaderConfig(
        **config.data.reading(),
        global_batch=max(1, config.batch // reads.windows) if is_long else config.batch,
        frames=reads.frames,
        windows=reads.windows,
        window_seconds=reads.window_seconds,
        narrations=1,
        size=reads.size,
        max_substitutes=_MAX_SUBSTITUTES,
    )


def read_records(source: Source, set_name: str, shard: Shard) -> list[tuple[str, MediaRecord | SchemaError]]:
    """Return key and record of each sample of a shard in order; in a damaged record's place what is wrong with it.

    Raises `ShardError` where the shard or its index cannot be read.
    """
    rows = read_rows(source.parquet(shard), ["key", "json_offset", "json_size"], rows=shard.samples)
    found: list[tuple[str, MediaRecord | SchemaError]] = []
    columns = (rows[name].to_pylist() for name in ("key", "json_offset", "json_size"))
    for key, offset, size in zip(*columns, strict=True):
        try:
            found.append((key, schema.from_json(set_name, json.loads(source.read(shard, offset, size)))))
        except FileNotFoundError:
            raise ShardError(f"{shard.path}: no such file") from None
        except (SchemaError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
            found.append((key, SchemaError(str(error))))
    return found


def _extract(
    extractor: Extractor,
    source: Source,
    split: Split,
    places: Sequence[int],
    writer: FeatureWriter,
    config: ExtractConfig,
    device: torch.device,
    on_samples: OnSamples,
) -> Iterator[tuple[int, ShardDone]]:
    arrays = extractor.arrays(split.set_name)
    if not arrays:
        raise ExtractorError(f"extractor.kind = {config.extractor.kind} has no features of {split.set_name}")
    batches: Iterator[Batch] = iter(())
    if extractor.reads is not None:
        is_long = set_spec(split.set_name).is_long
        part = _restricted(source, split, places)
        loader = Loader(
            part,
            split.set_name,
            split.split,
            loader_config(extractor.reads, config, is_long=is_long),
            is_training=False,
            by_shard=True,
        )
        batches = iter(DeviceLoader(loader, device))
    try:
        for place in places:
            shard = split.shards[place]
            records = read_records(source, split.set_name, shard)
            denied = source.dataset.denylist
            kept = [key for key, record in records if _video(record) not in denied]
            failed: dict[str, FailedItem] = {
                key: FailedItem(key=key, reason="withdrawn", detail="its video is in denylist.txt")
                for key, record in records
                if _video(record) in denied
            }
            rows: dict[str, dict[str, np.ndarray]] = {key: {} for key, _ in records}
            if extractor.reads is not None:
                _encode_frames(extractor, batches, kept, arrays, rows, failed, on_samples)
            _encode_texts(extractor, arrays, records, rows, failed)
            if extractor.reads is None:
                on_samples(len(records))
            samples = [
                Extracted(
                    key=key,
                    rows=rows[key],
                    tags=((), ()) if isinstance(record, SchemaError) else tags(record),
                    failed=failed.get(key),
                )
                for key, record in records
            ]
            stats = writer.write(split.set_name, split.split, shard.name, shard.sha256, arrays, samples)
            done = ShardDone(
                set_name=split.set_name,
                split=split.split,
                shard=shard.name,
                samples=len(records),
                failed=len(stats.failed),
                seconds=0.0,
            )
            yield place, done
    finally:
        if extractor.reads is not None:
            loader.close()


def _encode_frames(
    extractor: Extractor,
    batches: Iterator[Batch],
    keys: Sequence[str],
    arrays: Sequence[ArraySpec],
    rows: dict[str, dict[str, np.ndarray]],
    failed: dict[str, FailedItem],
    on_samples: OnSamples,
) -> None:
    """Encode the frames of one shard's samples, of which `keys` are expected in this order."""
    dtypes = {spec.name: spec.dtype for spec in arrays}
    at = 0
    while at < len(keys):
        batch = next(batches)
        found = {name: value.cpu().numpy() for name, value in extractor.encode_frames(batch.video).items()}
        for place, (key, failures) in enumerate(zip(batch.keys, batch.failures, strict=True)):
            wanted = keys[at + place]
            if failures:
                reason, detail = failures[0].reason, failures[0].detail
                failed[wanted] = FailedItem(key=wanted, reason=reason, detail=detail)
            elif key != wanted:
                detail = f"the shard has {key} in its place: run shards.verify"
                failed[wanted] = FailedItem(key=wanted, reason="order", detail=detail)
            elif not all(np.isfinite(value[place]).all() for value in found.values()):
                failed[wanted] = FailedItem(key=wanted, reason="not_finite", detail="its features are not finite")
            else:
                rows[wanted] |= {name: _narrowed(value[place], dtypes[name]) for name, value in found.items()}
        at += len(batch.keys)
        on_samples(len(batch.keys))


def _encode_texts(
    extractor: Extractor,
    arrays: Sequence[ArraySpec],
    records: Sequence[tuple[str, MediaRecord | SchemaError]],
    rows: dict[str, dict[str, np.ndarray]],
    failed: dict[str, FailedItem],
) -> None:
    """Encode the captions of one shard's samples, and the narrations of its summaries in the order of their starts."""
    names = {spec.name for spec in arrays if spec.level in ("text", "token", "narration")}
    if not names:
        return
    good = [(key, record) for key, record in records if not isinstance(record, SchemaError)]
    for key, record in records:
        if isinstance(record, SchemaError):
            failed.setdefault(key, FailedItem(key=key, reason="record", detail=str(record)))
    texts = extractor.encode_texts([record.text for _, record in good])
    for (key, _), own in zip(good, texts, strict=True):
        rows[key]["text"] = own
    if "narrations" not in names:
        return
    listed = [
        [narration.text for narration in sorted(record.narrations, key=lambda one: one.clip_start)]
        if isinstance(record, SummaryRecord)
        else []
        for _, record in good
    ]
    encoded = iter(extractor.encode_texts([text for own in listed for text in own]))
    for (key, _), narrations in zip(good, listed, strict=True):
        if narrations:
            rows[key]["narrations"] = np.concatenate([next(encoded) for _ in narrations])


def _narrowed(values: np.ndarray, dtype: str) -> np.ndarray:
    """Return values in the dtype they are written in, unless they do not fit: the writer says so."""
    with np.errstate(over="ignore"):
        narrow = values.astype(dtype)
    return narrow if np.isfinite(narrow).all() else values


def _video(record: MediaRecord | SchemaError) -> str:
    return "" if isinstance(record, SchemaError) else record.video_uid


def _restricted(source: Source, split: Split, places: Sequence[int]) -> Source:
    """Return a source whose split has only some of its shards."""
    part = replace(split, shards=tuple(split.shards[place] for place in places))
    one = copy.copy(source)
    one.dataset = replace(source.dataset, sets={split.set_name: {split.split: part}})
    return one
