"""Configuration and provenance in `dataset.json`, merged over the builds that added sets to a dataset."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from configs.loading import to_dict
from configs.revision import code_revision
from preprocessing.annotations import Annotations
from preprocessing.config import BuildConfig
from shards.schema import SETS

# Keys that do not affect the content of a dataset, and are therefore not recorded in it.
_UNRECORDED_KEYS = ("output", "work", "ffmpeg", "dask", "retry", "demo_root", "max_failed_fraction")


def merged_config(config: BuildConfig, before: Mapping[str, Any], *, is_pretraining: bool) -> dict[str, Any]:
    """Return this build's configuration; annotation files that it does not set are taken from `before`.

    A build of pretraining sets decides what is excluded and what is validation, also by naming no file for it.
    """
    own = ("exclude", "val_list") if is_pretraining else ()
    value = {name: item for name, item in to_dict(config).items() if name not in _UNRECORDED_KEYS}
    earlier = before.get("annotations", {})
    value["annotations"] = {
        name: earlier.get(name, item) if item in (None, []) and name not in own else item
        for name, item in value["annotations"].items()
    }
    return value


def files_by_key(config: BuildConfig, annotations: Annotations) -> dict[str, list[str]]:
    """Return key of the configuration → sha256s of the annotation files that it names, in their order."""
    hashes: dict[str, list[str]] = {}
    for key, path in _annotation_files(config.annotations):
        hashes.setdefault(key, []).append(annotations.sources.get(path.name) or annotations.sources[str(path)])
    return dict(sorted(hashes.items()))


def has_same_files(config: BuildConfig, annotations: Annotations, before: Mapping[str, Any]) -> bool:
    """Return whether the sets of this build were last made with these files, each for the same key."""
    recorded: Mapping[str, Any] = before.get("annotation_files", {})
    return recorded.get(_names(annotations)) == files_by_key(config, annotations)


def is_pretraining(annotations: Annotations) -> bool:
    """Return whether a build makes sets for pretraining."""
    return any(not SETS[name].is_benchmark for name in annotations.sets)


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
    pretraining = is_pretraining(annotations)
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
        "annotation_files": {
            **before.get("annotation_files", {}),
            _names(annotations): files_by_key(config, annotations),
        },
        "alpha": annotations.alpha if pretraining else before.get("alpha"),
        "licence_notice": "\n\n".join(dict.fromkeys(notice for notice in licences.values() if notice)),
        "licences": licences,
        "excluded_videos": excluded if pretraining else before.get("excluded_videos", 0),
        **_own_videos(annotations, before),
        "counts": dict(counts),
    }


def _own_videos(annotations: Annotations, before: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is recorded of own videos only: the names of classes, further columns, captions that were cut."""
    own = annotations.own
    if own is None:
        return {name: before[name] for name in ("taxonomy", "extra_columns", "clamped_captions") if name in before}
    return {
        "taxonomy": own.taxonomy,
        "extra_columns": list(dict.fromkeys([*before.get("extra_columns", []), *own.extra_columns])),
        "clamped_captions": own.clamped,
    }


def _names(annotations: Annotations) -> str:
    """Return the names of a build's sets, which identify it among the builds of a dataset."""
    return " ".join(name for name in SETS if name in annotations.sets)


def _annotation_files(config: Any, prefix: str = "") -> Iterator[tuple[str, Path]]:
    """Yield the key and the path of every annotation file that is configured."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        for item in value if isinstance(value, tuple) else (value,):
            if isinstance(item, Path):
                yield f"{prefix}{field.name}", item
            elif dataclasses.is_dataclass(item):
                yield from _annotation_files(item, f"{prefix}{field.name}.")
