"""The sidecar of a chunk records its source and its files."""

from __future__ import annotations

from pathlib import Path

from preprocessing.video.chunks import read_sidecar
from tests.preprocessing.chunking import make_chunks
from tests.preprocessing.coded_video import steady, write_video


def test_the_sidecar_records_source_and_size(tmp_path: Path) -> None:
    path = write_video(tmp_path / "v.mp4", steady(1))
    (chunk,) = make_chunks(path, tmp_path / "work")
    assert read_sidecar(tmp_path / "work", "video", 0) == chunk
    assert (chunk.source_size, chunk.source_mtime_ns) == (path.stat().st_size, path.stat().st_mtime_ns)
    assert chunk.bytes == sum(p.stat().st_size for p in (tmp_path / "work").rglob("*.mp4"))
