"""Reads all configured annotation files into one set of tables, and accounts for every row."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from preprocessing.annotations import charades_ego as charades
from preprocessing.annotations import egoclip, narrations
from preprocessing.annotations import epic_mir as epic
from preprocessing.annotations import howto100m as howto
from preprocessing.annotations import mcq as questions
from preprocessing.annotations.config import AnnotationsConfig
from preprocessing.annotations.merge import (
    PRETRAINING,
    ReaderOutput,
    RejectedRows,
    exclude,
    finish,
    redact,
    videos_table,
)
from preprocessing.annotations.metadata import read_excluded, read_metadata, read_val_list
from preprocessing.annotations.tables import ITEM_SCHEMAS, AnnotationError, Annotations
from shards.schema import SETS

Reader = Callable[[AnnotationsConfig, Mapping[str, float], RejectedRows], ReaderOutput]

READERS: dict[str, Reader] = {
    "egoclip": egoclip.read,
    "narrations": narrations.read,
    "egomcq": questions.read_egomcq,
    "summarymcq": questions.read_summarymcq,
    "epic_mir": epic.read,
    "charades_ego": charades.read,
    "howto100m": howto.read,
}
"""Key of `AnnotationsConfig` → reader of its files. To add a dataset, add a key there and a line here.

A reader takes the configuration, the durations of the metadata (uid → s), and the rejected rows, to which it adds.
"""


def read_annotations(config: AnnotationsConfig) -> Annotations:
    """Return the content of the configured files; each input row is in exactly one of the tables.

    Pretraining rows of videos that `exclude` lists, or that touch a redacted interval, are rejected as filtered. Of
    equal rows one is kept, the others are rejected as filtered; rows that would share a key but differ are all kept,
    under keys that depend on their content. Raises `AnnotationError` where a whole file cannot be used (absent, columns
    missing, not JSON), or where no file has any content.
    """
    names = [name for name in READERS if getattr(config, name) is not None]
    if not names:
        keys = " or ".join(f"annotations.{name}" for name in READERS)
        raise AnnotationError(f"no annotation file is configured; set {keys}")
    for key, path in _paths(config):
        if not path.is_file():
            raise AnnotationError(f"{key} = {path}: there is no such file")

    rejects = RejectedRows()
    metadata = read_metadata(config, rejects)
    metadata_durations = {uid: video.duration for uid, video in metadata.videos.items()}
    outputs = [READERS[name](config, metadata_durations, rejects) for name in names]
    if all(output.problem for output in outputs):
        raise AnnotationError("; ".join(output.problem for output in outputs))
    sets = {name for output in outputs for name in output.rows}
    counts = {name: sum(output.input_rows.get(name, 0) for output in outputs) for name in SETS if name in sets}
    alpha = next((output.alpha for output in outputs if output.alpha is not None), None)
    excluded = read_excluded(config)
    durations = _durations(outputs)
    tables = {}
    for name in counts:
        # `pop`, so that no reference to the unsorted rows remains while they are sorted.
        unsorted = [
            (output.rows.pop(name), output.locations.get(name, str)) for output in outputs if name in output.rows
        ]
        excluded_here = excluded if name in PRETRAINING else {}
        videos = metadata.videos if name in PRETRAINING and config.redacted == "exclude" else {}
        kept = [
            redact(exclude(rows, name, location, excluded_here, rejects), name, location, videos, rejects)
            for rows, location in unsorted
        ]
        del unsorted
        tables[name] = finish(kept, ITEM_SCHEMAS[name], name)
    for name, table in tables.items():
        accounted = table.num_rows + rejects.count(name)
        assert accounted == counts[name], f"{counts[name]} rows of {name} were read, {accounted} are accounted for"
    paths = sorted({path for _, path in _paths(config)})
    files = [path.name for path in paths]
    sources = {(path.name if files.count(path.name) == 1 else str(path)): _sha256(path) for path in paths}
    return Annotations(
        videos=videos_table(metadata.videos, durations, read_val_list(config)),
        sets=tables,
        rejects=rejects.table(tables),
        sources=sources,
        input_rows={**counts, "videos": metadata.input_rows},
        alpha=alpha,
        companions={path: value for output in outputs for path, value in output.companions.items()},
        frame_rates={uid: rate for output in outputs for uid, rate in output.frame_rates.items()},
        ignored=rejects.ignored(),
    )


def _durations(outputs: Sequence[ReaderOutput]) -> dict[str, float]:
    """Return the duration (s) of every mentioned video, from the first reader that states it; otherwise NaN."""
    durations: dict[str, float] = {}
    for output in outputs:
        for uid, seconds in output.durations.items():
            if math.isnan(durations.get(uid, math.nan)):
                durations[uid] = seconds
    return durations


def _paths(config: Any, prefix: str = "annotations") -> Iterator[tuple[str, Path]]:
    """Yield the key and the path of every configured file."""
    for name, value in vars(config).items():
        for item in value if isinstance(value, tuple) else (value,):
            if isinstance(item, Path):
                yield f"{prefix}.{name}", item
            elif dataclasses.is_dataclass(item):
                yield from _paths(item, f"{prefix}.{name}")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
