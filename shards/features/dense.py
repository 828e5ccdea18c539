"""Dense features of whole videos on disk: one array a video with the times of its rows, and a manifest.

DENSE/dense.json         written last: extractor, window, stride, rate, borders; of each video rows, masked rows, hashes
DENSE/<video>.npy        (rows, D), zeros where a row is masked; <video> is the escaped id
DENSE/<video>_times.npy  (rows, 2) float64: start and end of each window, s from the video's first frame
DENSE/<video>.json       marks the video as done

Shapes in names: N rows of a video, D width.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from shards import files
from shards.dataset import hash_file, hash_json
from shards.features.contract import FeatureError, extractor_hash
from shards.keys import escape_id
from shards.stats import ShardError, read_json_object

DENSE_JSON = "dense.json"
VERSION = 1
BORDERS = "windows [i, i + W) from frame 0; the last is [N - W, N); a shorter video is one window of all its frames"


@dataclass(frozen=True, kw_only=True)
class Damaged:
    """A span of a video that must not be used."""

    start: float  # s
    end: float  # s
    reason: str


@dataclass(frozen=True, kw_only=True, eq=False)
class DenseRows:
    """The features of a video's windows."""

    rows: np.ndarray  # (N, D)
    times: np.ndarray  # (N, 2) float64: start and end, s
    masked: Mapping[int, str]  # row → why it has no features and is zero


@dataclass(frozen=True, kw_only=True)
class DenseVideo:
    """A video of a dense feature set."""

    folder: Path
    video_uid: str
    masked: Mapping[int, str]  # row → reason

    def read(self, *, nan: bool = False) -> DenseRows:
        """Return its rows, masked ones as NaN if `nan`, else zeros; raise `FeatureError` where it is damaged."""
        stem = escape_id(self.video_uid)
        try:
            rows = np.load(self.folder / f"{stem}.npy", allow_pickle=False)
            times = np.load(self.folder / f"{stem}_times.npy", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise FeatureError(f"{self.folder / stem}.npy: cannot be read: {error}: extract it again") from None
        if rows.ndim != 2 or times.shape != (len(rows), 2):
            raise FeatureError(f"{self.folder / stem}.npy: {rows.shape} with times {times.shape}: extract it again")
        if nan and self.masked:
            rows = rows.copy()
            rows[list(self.masked)] = np.nan
        return DenseRows(rows=rows, times=times, masked=self.masked)


class DenseWriter:
    """Writes the videos of a dense feature set, in any order; what is done is kept."""

    def __init__(self, folder: Path, *, about: Mapping[str, Any]) -> None:
        """`about` is JSON-ready: extractor, window, stride and rate; features of another one are refused."""
        self.folder, self._about = Path(folder), dict(about)
        self._identity = extractor_hash(about)

    def is_done(self, video_uid: str, identity: str) -> bool:
        """Return whether a video, in the state that `identity` says, is done; raise `FeatureError` if by another."""
        path = self.folder / f"{escape_id(video_uid)}.json"
        if not path.is_file():
            return False
        mark = _read(path)
        if mark.get("extractor") != self._identity:
            raise FeatureError(f"{path}: made with other weights or settings: choose another `output`, or delete it")
        return mark.get("identity") == identity

    def write(self, video_uid: str, identity: str, found: DenseRows) -> None:
        """Write a video's rows and mark it as done."""
        stem = escape_id(video_uid)
        hashes = {}
        for name, array in ((f"{stem}.npy", found.rows), (f"{stem}_times.npy", found.times)):
            sink = io.BytesIO()
            np.lib.format.write_array(sink, np.ascontiguousarray(array), version=(1, 0), allow_pickle=False)
            files.write_bytes(self.folder / name, sink.getvalue())
            hashes[name] = hash_file(self.folder / name)
        mark = {
            "video_uid": video_uid,
            "extractor": self._identity,
            "identity": identity,
            "rows": len(found.rows),
            "masked": {str(row): reason for row, reason in sorted(found.masked.items())},
            "sha256": hashes,
        }
        files.write_json(self.folder / f"{stem}.json", mark)

    def finish(self, videos: Mapping[str, str]) -> None:
        """Write dense.json over videos, uid → why it has no features (empty if it has)."""
        entries: dict[str, Any] = {}
        for uid, reason in sorted(videos.items()):
            if reason:
                entries[uid] = {"failed": reason}
            else:
                mark = _read(self.folder / f"{escape_id(uid)}.json")
                entries[uid] = {name: mark[name] for name in ("rows", "masked", "sha256")}
        value = {"version": VERSION, **self._about, "borders": BORDERS, "videos": entries}
        files.write_json(self.folder / DENSE_JSON, {**value, "sha256": hash_json(value)})


def read_dense(folder: Path) -> tuple[dict[str, Any], list[DenseVideo]]:
    """Return the manifest and the videos with features of a dense set; raise `FeatureError` if it cannot be used."""
    path = Path(folder) / DENSE_JSON
    value = _read(path)
    if value.get("version") != VERSION or value.pop("sha256", None) != hash_json(value):
        raise FeatureError(f"{path}: of another version, or altered since it was written: extract again")
    return value, list(_videos(Path(folder), value))


def _videos(folder: Path, value: Mapping[str, Any]) -> Iterator[DenseVideo]:
    for uid, entry in value["videos"].items():
        if "failed" not in entry:
            masked = {int(row): str(reason) for row, reason in entry["masked"].items()}
            yield DenseVideo(folder=folder, video_uid=uid, masked=masked)


def _read(path: Path) -> dict[str, Any]:
    try:
        return read_json_object(path)
    except ShardError as error:
        raise FeatureError(f"{error}: extract again") from None
