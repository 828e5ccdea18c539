"""Exports dense features in the files of other projects: a video, or a clip of one, each.

Shapes in names: N rows, D width.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from shards import files
from shards.features.contract import FeatureError
from shards.features.dense import DenseVideo, read_dense
from shards.keys import escape_id
from shards.stats import parse_json

MANIFEST = "manifest.json"


@dataclass(frozen=True, kw_only=True)
class Clip:
    """A part of a video under its own id."""

    clip_uid: str
    video_uid: str
    start: float  # s
    end: float  # s


@dataclass(frozen=True, kw_only=True, eq=False)
class Exported:
    """What is written under one id."""

    id: str
    rows_ND: np.ndarray  # float32
    about: dict[str, Any]  # its entry in the manifest


def read_clips(path: Path) -> list[Clip]:
    """Return the clips of a table: CSV with clip_uid, video_uid, start, end, or Ego4D's NLQ or MQ annotations (JSON).

    Raises `FeatureError` naming the row where it is malformed.
    """
    try:
        data = path.read_bytes()
        if path.suffix == ".json":
            rows = [
                {
                    "clip_uid": clip["clip_uid"],
                    "video_uid": video["video_uid"],
                    "start": clip.get("video_start_sec", clip.get("parent_start_sec")),
                    "end": clip.get("video_end_sec", clip.get("parent_end_sec")),
                }
                for video in parse_json(data)["videos"]
                for clip in video["clips"]
            ]
        else:
            rows = list(csv.DictReader(io.StringIO(data.decode("utf-8-sig"), newline="")))
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise FeatureError(f"{path}: not a table of clips: {type(error).__name__}: {error}") from None
    clips: dict[str, Clip] = {}
    for number, row in enumerate(rows, 1):
        try:
            clip = Clip(
                clip_uid=str(row["clip_uid"]),
                video_uid=str(row["video_uid"]),
                start=float(row["start"]),
                end=float(row["end"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise FeatureError(
                f"{path}: clip {number}: {error!r}: clip_uid, video_uid, start and end are needed"
            ) from None
        if not clip.clip_uid or not 0 <= clip.start < clip.end:
            raise FeatureError(f"{path}: clip {number}: {clip.start} to {clip.end} s is no part of a video")
        clips.setdefault(clip.clip_uid, clip)
    return list(clips.values())


def items(videos: Sequence[DenseVideo], clips: Sequence[Clip] | None, *, nan: bool) -> Iterator[Exported]:
    """Yield the rows of each video, or of each clip whose video has features: those whose window's middle is inside."""
    by_uid = {video.video_uid: video for video in videos}
    for clip in clips if clips is not None else [None] * len(videos):
        video = by_uid.get(clip.video_uid) if clip is not None else None
        if clip is not None and video is None:
            continue
        if video is None:
            video = videos[0]
            videos = videos[1:]
        found = video.read(nan=nan)
        inside_N = np.ones(len(found.rows), bool)
        about: dict[str, Any] = {"video_uid": video.video_uid}
        name = video.video_uid
        if clip is not None:
            middle_N = found.times.mean(axis=1)
            inside_N = (middle_N >= clip.start) & (middle_N < clip.end)
            about |= {"start": clip.start, "end": clip.end}
            name = clip.clip_uid
        rows = np.flatnonzero(inside_N)
        about |= {
            "rows": len(rows),
            "first_row": int(rows[0]) if len(rows) else 0,
            "first_window": found.times[rows[0]].tolist() if len(rows) else [],
            "masked": {str(row - int(rows[0])): found.masked[row] for row in rows.tolist() if row in found.masked},
        }
        yield Exported(id=name, rows_ND=found.rows[inside_N].astype(np.float32), about=about)


def export_dense(
    form: str,
    dense: Path,
    out: Path,
    *,
    clips: Path | None = None,
    nan: bool = False,
    on_item: Callable[[int], None] = lambda total: None,
) -> int:
    """Export a dense set; return the number of ids written. Raises `FeatureError`."""
    if form not in WRITERS:
        raise FeatureError(f"unknown format {form!r}; known are {', '.join(WRITERS)}")
    about, videos = read_dense(dense)
    listed = read_clips(clips) if clips is not None else None
    out.mkdir(parents=True, exist_ok=True)
    entries: dict[str, Any] = {}
    total = len(videos) if listed is None else len(listed)

    def watched() -> Iterator[Exported]:
        for item in items(videos, listed, nan=nan):
            entries[item.id] = item.about
            yield item
            on_item(total)

    WRITERS[form](watched(), out)
    absent = sorted({clip.clip_uid for clip in listed or ()} - entries.keys())
    failed = {uid: entry["failed"] for uid, entry in about["videos"].items() if "failed" in entry}
    manifest = {
        "format": form,
        **{name: about[name] for name in ("extractor", "window", "stride", "fps", "borders")},
        "masked_rows_are": "NaN" if nan else "zeros",
        "rows_of_a_clip": "windows whose middle lies in it",
        "failed_videos": failed,
        "clips_without_video": absent,
        "items": entries,
    }
    files.write_json(out / MANIFEST, manifest)
    return len(entries)


def _write_pt(found: Iterator[Exported], out: Path) -> None:
    """Write <id>.pt: a bare float32 tensor (N, D), as Ego4D's and EgoVLP's features."""
    import torch

    for item in found:
        with files.replacing(out / f"{_file(item.id)}.pt") as temporary:
            torch.save(torch.from_numpy(np.ascontiguousarray(item.rows_ND)), temporary)


def _write_npy(found: Iterator[Exported], out: Path) -> None:
    """Write <id>.npy: (N, D) float32, as ActionFormer reads it (feat_stride: 16, num_frames: 32)."""
    for item in found:
        with files.replacing(out / f"{_file(item.id)}.npy") as temporary, temporary.open("wb") as handle:
            np.save(handle, item.rows_ND, allow_pickle=False)


def _write_lmdb(found: Iterator[Exported], out: Path) -> None:
    """Write an LMDB: id → bytes of a compressed npz with `features`, as GroundNLQ reads it."""
    try:
        import lmdb
    except ImportError:
        raise FeatureError("lmdb: the package is not installed; run `pip install lmdb`") from None
    (out / "data.mdb").unlink(missing_ok=True)
    (out / MANIFEST).unlink(missing_ok=True)
    with lmdb.open(str(out), map_size=1 << 40) as database:
        for item in found:
            sink = io.BytesIO()
            np.savez_compressed(sink, features=item.rows_ND)
            with database.begin(write=True) as transaction:
                transaction.put(item.id.encode(), sink.getvalue())


def _write_hdf5(found: Iterator[Exported], out: Path) -> None:
    """Write features.hdf5: a dataset (N, D) of float32 for each id."""
    try:
        import h5py
    except ImportError:
        raise FeatureError("hdf5: the package h5py is not installed; run `pip install h5py`") from None
    with files.replacing(out / "features.hdf5") as temporary, h5py.File(temporary, "w") as file:
        for item in found:
            file.create_dataset(_file(item.id), data=item.rows_ND)


def _file(name: str) -> str:
    """Return a name that is safe as a file's: the id itself where it is, as Ego4D's are, else escaped."""
    plain = name.replace("-", "").replace("_", "")
    return name if plain.isascii() and plain.isalnum() and len(name) <= 100 else escape_id(name)


WRITERS: dict[str, Callable[[Iterator[Exported], Path], None]] = {
    "pt": _write_pt,
    "npy": _write_npy,
    "lmdb": _write_lmdb,
    "hdf5": _write_hdf5,
}
