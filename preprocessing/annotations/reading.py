"""Reads a dataset's annotations: the configured reader, metadata, exclusion, order, and the sums that must close."""

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
from preprocessing.annotations.merge import PRETRAINING, ReaderOutput, Rejects, exclude, finish, videos_table
from preprocessing.annotations.metadata import read_excluded, read_metadata, read_val_list
from preprocessing.annotations.tables import ITEMS, AnnotationError, Annotations
from shards.schema import SETS

Reader = Callable[[AnnotationsConfig, Mapping[str, float], Rejects], ReaderOutput]

READERS: dict[str, Reader] = {
    "egoclip": egoclip.read,
    "narrations": narrations.read,
    "egomcq": questions.read_egomcq,
    "summarymcq": questions.read_summarymcq,
    "epic_mir": epic.read,
    "charades_ego": charades.read,
    "howto100m": howto.read,
}
"""The reader of each key of `AnnotationsConfig` that names annotation files; a new dataset is a key and a line here.

A reader takes the configuration, the durations (s) that metadata state, and the rejects to add to.
"""


def read_annotations(config: AnnotationsConfig) -> Annotations:
    """Return everything that the configured files say; each of their rows is in exactly one of the tables.

    Rows to pretrain on become filtered rejects where `exclude` lists their video. Of rows with the same identity the
    first in the file is kept; the others are rejects, filtered where they say the same and failed where they do not.
    Raises `AnnotationError` where a file as a whole cannot be used (absent, no such columns, not JSON).
    """
    names = [name for name in READERS if getattr(config, name) is not None]
    if not names:
        keys = " or ".join(f"annotations.{name}" for name in READERS)
        raise AnnotationError(f"no annotation file is configured; set {keys}")
    for key, path in _paths(config):
        if not path.is_file():
            raise AnnotationError(f"{key} = {path}: there is no such file")

    rejects = Rejects()
    metadata = read_metadata(config, rejects)
    known = {uid: video.duration for uid, video in metadata.videos.items()}
    parts = [READERS[name](config, known, rejects) for name in names]
    held = {name for part in parts for name in part.rows}
    counts = {name: sum(part.input_rows.get(name, 0) for part in parts) for name in SETS if name in held}
    alpha = next((part.alpha for part in parts if part.alpha is not None), None)
    excluded = read_excluded(config)
    durations = _durations(parts)
    tables = {}
    for name in counts:
        # Taken out of the parts, so that nothing holds the unsorted rows while they are sorted.
        kept = [(part.rows.pop(name), part.places.get(name, str)) for part in parts if name in part.rows]
        out = excluded if name in PRETRAINING else {}
        found = [exclude(rows, name, place, out, rejects) for rows, place in kept]
        del kept
        tables[name] = finish(found, ITEMS[name], name)
    for name, table in tables.items():
        landed = table.num_rows + rejects.count(name)
        assert landed == counts[name], f"{counts[name]} rows of {name} were read, {landed} are accounted for"
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
        companions={path: value for part in parts for path, value in part.companions.items()},
        frame_rates={uid: rate for part in parts for uid, rate in part.frame_rates.items()},
    )


def _durations(parts: Sequence[ReaderOutput]) -> dict[str, float]:
    """Return the duration of every video that a part mentions, in s; NaN where no part states it."""
    found: dict[str, float] = {}
    for part in parts:
        for uid, seconds in part.durations.items():
            if math.isnan(found.get(uid, math.nan)):
                found[uid] = seconds
    return found


def _paths(config: Any, prefix: str = "annotations") -> Iterator[tuple[str, Path]]:
    """Yield every configured file with the key that names it."""
    for name, value in vars(config).items():
        for item in value if isinstance(value, tuple) else (value,):
            if isinstance(item, Path):
                yield f"{prefix}.{name}", item
            elif dataclasses.is_dataclass(item):
                yield from _paths(item, f"{prefix}.{name}")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
