"""Configuration and provenance in `dataset.json`, merged over the builds that added sets to a dataset."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from configs.loading import to_dict
from configs.revision import code_revision
from preprocessing.annotations import Annotations
from preprocessing.config import BuildConfig
from shards.schema import SETS

# Keys that do not affect the content of a dataset, and are therefore not recorded in it.
_UNRECORDED_KEYS = ("output", "work", "ffmpeg", "dask", "retry", "demo_root", "max_failed_fraction")


def merged_config(config: BuildConfig, before: Mapping[str, Any]) -> dict[str, Any]:
    """Return this build's configuration; annotation files that it does not set are taken from `before`."""
    value = {name: item for name, item in to_dict(config).items() if name not in _UNRECORDED_KEYS}
    earlier = before.get("annotations", {})
    value["annotations"] = {
        name: earlier.get(name, item) if item in (None, []) else item for name, item in value["annotations"].items()
    }
    return value


def merged_provenance(
    config: BuildConfig,
    annotations: Annotations,
    before: Mapping[str, Any],
    *,
    excluded: int,
    counts: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the provenance of all sets: of this build's sets from this build, of others as recorded in `before`.

    `before` is the published provenance (empty for a new dataset), `excluded` the number of videos that
    annotations.exclude lists, `counts` the items per set and outcome (set → `status: reason` → items).
    """
    sets = list(annotations.sets)
    pretraining = any(not SETS[name].is_benchmark for name in sets)
    files = {Path(name).name: digest for name, digest in annotations.sources.items()}
    licences = dict(before.get("licences", {}))
    for name in counts:
        if name in SETS and name not in licences and name not in sets:
            licences[name] = before.get("licence_notice", "")
    licences |= dict.fromkeys(sets, config.licence)
    licences = {name: licences[name] for name in SETS if name in licences}
    return {
        "code_revision": code_revision(),
        "seed": config.shard.seed,
        "annotations": {**before.get("annotations", {}), **files},
        "alpha": annotations.alpha if pretraining else before.get("alpha"),
        "licence_notice": "\n\n".join(dict.fromkeys(notice for notice in licences.values() if notice)),
        "licences": licences,
        "excluded_videos": excluded if pretraining else before.get("excluded_videos", 0),
        "counts": dict(counts),
    }
