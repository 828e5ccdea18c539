"""Embeddings of a split's samples, each one computed once.

Shapes in names: B samples of a batch, K windows, T frames, C colours, H and W pixels, N samples, D width of the shared
space.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from configs.loading import to_dict
from eval.embed.batches import Progress, compute_batches
from eval.embed.cache import CacheEntry, Covered
from eval.embed.rows import EmbeddedRows
from eval.embed.settings import EmbedError, EmbedSettings
from eval.embed.stored import read_stored
from hiervl_train.data import DeviceLoader
from hiervl_train.distributed import DistributedContext
from hiervl_train.features.towers import tower_hashes
from hiervl_train.models import HierVL
from hiervl_train.models.pixels import normalise
from hiervl_train.models.speed import autocast
from shards.dataset import Split, read_rows
from shards.loader import Batch, Loader
from shards.schema import set_spec
from shards.sources import Source, open_source


@dataclass(frozen=True, kw_only=True, eq=False)
class SampleEmbeddings:
    """The samples of a split that could be embedded, and why the others could not."""

    keys: list[str]  # in the order of the shards
    vectors: np.ndarray  # float32, not normalised: (N, D); of a long set (N, K, D)
    failed: dict[str, str]  # key → reason
    fingerprint: str  # of the split
    encoded: int  # clips and windows that this call ran through the model; 0 if all were cached

    @cached_property
    def index(self) -> dict[str, int]:
        """Key → row."""
        return {key: row for row, key in enumerate(self.keys)}


def embed_split(
    model: HierVL,
    root: str | Path | Source,
    set_name: str,
    split: str,
    settings: EmbedSettings,
    *,
    ranks: DistributedContext | None = None,
    keys: Collection[str] | None = None,
    cache: Path | None = None,
    digest: str = "",
    progress: Progress | None = None,
) -> SampleEmbeddings | None:
    """Return the embeddings of a split's samples on the first rank, None on the others.

    `keys` restricts them to some samples; unknown keys are ignored, and so are withdrawn videos. `cache` is a folder
    that keeps embeddings by `digest` (SHA-256 of the model's weights), the split's fingerprint and the settings. A
    sample that cannot be decoded, or whose embedding is not finite, is in `failed`. With `settings.features` they are
    read from that feature set, and no video is.

    Raises `ShardError` or `SourceError` if the dataset cannot be opened, `EmbedError` if the settings do not fit the
    model or if embedding fails on any rank.

        embeddings = embed_split(model, "data/embedded/shards", "clips", "val", EmbedSettings(frames=4))
    """
    ranks = ranks or DistributedContext()
    source = open_source(root, settings.source) if isinstance(root, (str, Path)) else root
    entry = source.dataset.split(set_name, split)
    is_long = set_spec(set_name).is_long
    if settings.frames > model.config.num_frames:
        raise EmbedError(f"sample.frames = {settings.frames}: the model has {model.config.num_frames} position slots")
    height, width = model.config.image_hw
    if height != width:
        raise EmbedError(f"img_size = {model.config.image_hw}: only square images are supported")
    wanted = _keys_in_order(source, entry, keys)
    if settings.features is not None:
        stored = read_stored(model, source, entry, settings, wanted, ranks.device)
        return _embeddings(stored, wanted, entry, encoded=0) if ranks.is_main else None
    encoder = _Encoder(model, source, entry, settings, wanted, size=height, device=ranks.device)
    sample_shape = (settings.windows, model.config.projection_dim) if is_long else (model.config.projection_dim,)
    found = compute_batches(
        encoder.batches,
        encoder.encode,
        shape=sample_shape,
        part_samples=settings.part_samples,
        ranks=ranks,
        cache=_cache_entry(cache, model, source, entry, settings, wanted, digest, ranks),
        progress=progress,
    )
    return None if found is None else _embeddings(found, wanted, entry, encoded=encoder.encoded)


def _cache_entry(
    cache: Path | None,
    model: HierVL,
    source: Source,
    split: Split,
    settings: EmbedSettings,
    keys: Sequence[str],
    digest: str,
    ranks: DistributedContext,
) -> CacheEntry | None:
    """Return the cache's entry for these embeddings, a feature set; None without a cache."""
    if cache is None:
        return None
    reads = {name: getattr(settings, name) for name in ("frames", "windows", "window_seconds", "decoder")}
    covered = Covered(
        set_name=split.set_name,
        split=split.split,
        fingerprint=split.fingerprint,
        shards=[
            (shard.name, shard.sha256, read_rows(source.parquet(shard), ["key"])["key"].to_pylist())
            for shard in split.shards
        ],
        keys=keys,
        array="video",
        level="window" if set_spec(split.set_name).is_long else "clip",
        width=model.config.projection_dim,
        extractor={
            "kind": "towers" if settings.channel_order == "rgb" else f"towers, {settings.channel_order}",
            "layer": "projected",
            "weights": tower_hashes(model, layer="projected"),
            "reads": reads,
        },
    )
    return CacheEntry(cache, _identity(model, split, settings, keys, digest, ranks), covered)


def _embeddings(found: EmbeddedRows, wanted: Sequence[str], split: Split, *, encoded: int) -> SampleEmbeddings:
    return SampleEmbeddings(
        keys=[wanted[row] for row in found.rows.tolist()],
        vectors=found.values,
        failed={wanted[row]: reason for row, reason in sorted(found.failed.items())},
        fingerprint=split.fingerprint,
        encoded=encoded,
    )


def encoder_hash(model: HierVL) -> str:
    """Return a hash of the model settings that affect embeddings besides the weights.

    The aggregator runs after embedding, and unused position slots have no effect: both are left out.
    """
    tree = to_dict(replace(model.config, aggregator=None, num_frames=1))
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()[:16]


class _Encoder:
    """Encodes any range of a split's batches."""

    def __init__(
        self,
        model: HierVL,
        source: Source,
        split: Split,
        settings: EmbedSettings,
        keys: Sequence[str],
        *,
        size: int,
        device: torch.device,
    ) -> None:
        self._model, self._source, self._split, self._settings = model, source, split, settings
        self._keys, self._device = keys, device
        self._is_long = set_spec(split.set_name).is_long
        self._config = settings.loader_config(is_long=self._is_long, size=size)
        self.batches = -(-len(keys) // self._config.global_batch)
        self.encoded = 0

    def encode(self, begin: int, end: int) -> Iterator[tuple[int, EmbeddedRows]]:
        """Yield the number and the rows of each batch from `begin` to `end` − 1."""
        loader = Loader(
            self._source, self._split.set_name, self._split.split, self._config, is_training=False, keys=self._keys
        )
        with loader:
            batches = DeviceLoader(loader, self._device)
            batches.load_state_dict(loader.state_dict() | {"batch": begin})
            for batch in batches:
                yield batch.number, self._rows(batch)
                if batch.number + 1 == end:
                    return

    def _rows(self, batch: Batch) -> EmbeddedRows:
        first = batch.number * self._config.global_batch
        rows = np.arange(first, first + len(batch.keys))
        values = self._encode(batch.video).float().cpu().numpy()
        failed = self._failures(batch, first)
        is_finite_B = np.isfinite(values.reshape(len(values), -1)).all(axis=1)
        for row in rows[~is_finite_B].tolist():
            failed.setdefault(row, "its embedding is not finite")
        is_embedded_B = ~np.isin(rows, list(failed))
        return EmbeddedRows(rows=rows[is_embedded_B], values=values[is_embedded_B], failed=failed)

    def _failures(self, batch: Batch, first: int) -> dict[int, str]:
        """Return row → reason of the samples in whose place the batch has substitutes."""
        failed = {}
        for row, (key, failures) in enumerate(zip(batch.keys, batch.failures, strict=True), first):
            if failures:
                reason, detail = failures[0].reason, failures[0].detail
                failed[row] = detail if detail.startswith(reason) else f"{reason}: {detail}"
            elif key != self._keys[row]:  # the tar disagrees with its parquet
                failed[row] = f"the shard has {key} in its place: run shards.verify"
        return failed

    def _encode(self, video: Tensor) -> Tensor:
        with torch.inference_mode(), autocast(self._device, self._settings.speed):
            clips_BTCHW = video.flatten(0, 1) if self._is_long else video
            vectors = [
                self._model.encode_video(normalise(part_BTCHW, order=self._settings.channel_order))
                for part_BTCHW in torch.split(clips_BTCHW, max(self._settings.micro_batch, 1))
            ]
            self.encoded += len(clips_BTCHW)
            vectors_BD = torch.cat(vectors)
            return vectors_BD.view(*video.shape[:2], -1) if self._is_long else vectors_BD


def _keys_in_order(source: Source, split: Split, keys: Collection[str] | None) -> list[str]:
    """Return the split's keys, or those among `keys`, in the order of the shards, without withdrawn videos."""
    denied = source.dataset.denylist
    wanted = None if keys is None else set(keys)
    found: list[str] = []
    for shard in split.shards:
        table = read_rows(source.parquet(shard), ["key", "video_uid"])
        for key, video in zip(table["key"].to_pylist(), table["video_uid"].to_pylist(), strict=True):
            if video not in denied and (wanted is None or key in wanted):
                found.append(key)
    return found


def _identity(
    model: HierVL,
    split: Split,
    settings: EmbedSettings,
    keys: Sequence[str],
    digest: str,
    ranks: DistributedContext,
) -> dict[str, Any]:
    """Return the cache key: everything that affects the embeddings."""
    identity: dict[str, Any] = {
        "checkpoint": digest,
        "model": encoder_hash(model),
        "set": split.set_name,
        "split": split.split,
        "fingerprint": split.fingerprint,
        "keys": hashlib.sha256("\n".join(keys).encode()).hexdigest(),
        "frames": settings.frames,
        "channel_order": settings.channel_order,
        "micro_batch": settings.micro_batch,
        "speed": to_dict(settings.speed),
        "decoder": settings.decoder,
        "device": ranks.device.type,
    }
    if set_spec(split.set_name).is_long:
        identity |= {"windows": settings.windows, "window_seconds": settings.window_seconds}
    return identity
