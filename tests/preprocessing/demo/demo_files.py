"""Reads the files of the embedded dataset, for tests."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av

EGOCLIP_COLUMNS = [
    "clip_idx",
    "video_uid",
    "video_dur",
    "narration_source",
    "narration_ind",
    "narration_time",
    "clip_start",
    "clip_end",
    "clip_text",
    "tag_verb",
    "tag_noun",
]


def read_table(path: Path) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8", newline="") as file:
        rows: list[dict[str, Any]] = list(csv.DictReader(file, delimiter="\t", strict=True))
    for row in rows:
        assert None not in row and None not in row.values()
        for column in ("video_dur", "narration_time", "clip_start", "clip_end"):
            row[column] = float(row[column])
        row["narration_ind"] = int(row["narration_ind"])
        for column in ("tag_verb", "tag_noun"):
            row[column] = json.loads(row[column])
            assert isinstance(row[column], list)
    return rows


def decode(path: Path) -> Iterator[av.VideoFrame]:
    with av.open(str(path)) as container:
        yield from container.decode(video=0)


def hashes(root: Path) -> dict[str, str]:
    found = sorted(path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in found}
