"""Files that are not readable videos are reported with the reason."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from preprocessing.video.probe import UnreadableError, probe
from tests.preprocessing.chunking import FFMPEG
from tests.preprocessing.coded_video import steady, write_video


@pytest.mark.parametrize(
    ("name", "content"),
    [("empty", b""), ("text", b"not a video\n" * 100), ("cut header", b"\0\0\0\x20ftypisom\0\0\2\0")],
)
def test_a_file_that_is_not_a_video_is_unreadable(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / "v.mp4").write_bytes(content)
    with pytest.raises(UnreadableError, match=r"empty|not a video"):
        probe(tmp_path / "v.mp4")


def test_a_file_without_a_video_stream_is_unreadable(tmp_path: Path) -> None:
    source = ["-f", "lavfi", "-i", "sine=duration=1", "-c:a", "aac"]
    subprocess.run([FFMPEG, "-v", "error", *source, str(tmp_path / "v.mp4")], check=True)
    with pytest.raises(UnreadableError, match=r"no video stream .streams: audio"):
        probe(tmp_path / "v.mp4")


def test_a_playlist_disguised_as_a_video_opens_no_other_file(tmp_path: Path) -> None:
    write_video(tmp_path / "other.ts", steady(1))
    (tmp_path / "v.mp4").write_text("#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nother.ts\n#EXT-X-ENDLIST\n")
    with pytest.raises(UnreadableError, match="not a video"):
        probe(tmp_path / "v.mp4")
