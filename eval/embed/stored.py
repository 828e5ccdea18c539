"""Embeddings from a feature set instead of video: which one fits a model and its settings, and its rows by key.

Shapes in names: N samples, K windows, D width of the shared space.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from eval.embed.rows import EmbeddedRows
from eval.embed.settings import EmbedError, EmbedSettings
from hiervl_train.features.towers import tower_hashes
from hiervl_train.models import HierVL
from hiervl_train.models.speed import autocast
from shards.dataset import Split
from shards.features import FeatureSet, features_folder, open_features
from shards.features.contract import index_columns
from shards.schema import set_spec
from shards.sources import LocalSource, Source

VIDEO = "video"
_ROWS_PER_PASS = 1 << 14


def read_stored(
    model: HierVL,
    source: Source,
    split: Split,
    settings: EmbedSettings,
    keys: Sequence[str],
    device: torch.device,
) -> EmbeddedRows:
    """Return the embeddings of the samples `keys` from the feature set `settings.features`.

    Features before the projection are projected by the model. Raises `FeatureError` or `EmbedError` where the set is
    absent, of other shards, of other weights, or of other frames or windows.
    """
    name = str(settings.features)
    if "/" not in name and not isinstance(source, LocalSource):
        raise EmbedError(f"data.features = {name}: of a dataset behind a URL, give the folder of a copy")
    features = open_features(features_folder(source.dataset, name))
    is_long = set_spec(split.set_name).is_long
    _require_fit(features, model, settings, is_long=is_long)
    found = features.split(split.set_name, split.split, fingerprint=split.fingerprint)
    found.spec(VIDEO)
    place = {key: row for row, key in enumerate(keys)}
    each = settings.windows if is_long else 1
    rows: list[int] = []
    values: list[np.ndarray] = []
    failed: dict[int, str] = {}
    for shard in found.shards:
        table = shard.table()
        first_name, count_name = index_columns(shard.arrays, VIDEO)
        columns = (table[column].to_pylist() for column in ("key", first_name, count_name))
        own = [(place[key], first, count) for key, first, count in zip(*columns, strict=True) if key in place]
        if not own:
            continue
        reasons = shard.failed()
        array = shard.array(VIDEO)
        for row, first, count in own:
            if count == each:
                rows.append(row)
                values.append(np.asarray(array[first : first + count], np.float32))
            else:
                failed[row] = reasons.get(keys[row], f"{count} rows of {VIDEO} in the feature set, not {each}")
    width = model.config.projection_dim
    stacked = np.stack(values) if values else np.empty((0, each, width), np.float32)
    if features.extractor.get("layer") == "tower":
        stacked = _projected(model, stacked, settings, device)
    order = np.argsort(rows, kind="stable")
    vectors = stacked[order] if is_long else stacked[order][:, 0]
    return EmbeddedRows(rows=np.array(rows, np.int64)[order], values=vectors, failed=failed)


def _projected(model: HierVL, values_NKD: np.ndarray, settings: EmbedSettings, device: torch.device) -> np.ndarray:
    parts = [np.empty((0, values_NKD.shape[1], model.config.projection_dim), np.float32)]
    with torch.inference_mode(), autocast(device, settings.speed):
        for start in range(0, len(values_NKD), _ROWS_PER_PASS):
            part = torch.from_numpy(values_NKD[start : start + _ROWS_PER_PASS]).to(device)
            parts.append(model.video_projection(part).float().cpu().numpy())
    return np.concatenate(parts)


def _require_fit(features: FeatureSet, model: HierVL, settings: EmbedSettings, *, is_long: bool) -> None:
    """Raise `EmbedError` where a feature set is not what this model gives with these settings."""
    made_by, name = features.extractor, f"data.features = {settings.features}"
    if made_by.get("kind") != "towers":
        raise EmbedError(f"{name}: made by {made_by.get('kind')}, not by the towers of a checkpoint")
    layer, weights = str(made_by.get("layer")), made_by.get("weights")
    own = tower_hashes(model, layer=layer)[VIDEO]
    if not isinstance(weights, Mapping) or weights.get(VIDEO) != own:
        raise EmbedError(f"{name}: extracted with other weights than the checkpoint has: extract again with it")
    reads = made_by.get("reads") or {}
    wanted: dict[str, float] = {"frames": settings.frames}
    if is_long:
        wanted |= {"windows": settings.windows, "window_seconds": settings.window_seconds}
    for key, value in wanted.items():
        if reads.get(key) != value:
            raise EmbedError(f"{name}: extracted with sample.{key} = {reads.get(key)}, evaluated with {value}")
    if settings.channel_order != "rgb":
        raise EmbedError(f"{name}: extracted from rgb frames; compat.channel_order is {settings.channel_order}")
