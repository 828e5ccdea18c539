"""The toolchain: which ffmpeg is used, and its versions."""

from __future__ import annotations

from pathlib import Path

import pytest

from preprocessing import toolchain
from preprocessing.errors import UsageError


def test_the_versions_of_everything_that_writes_bytes_are_listed() -> None:
    versions = toolchain.versions(toolchain.find_ffmpeg(None))
    assert versions.keys() == {"ffmpeg", "x264", "pyav", "libavformat", "libavcodec", "simplejpeg"}
    assert all(versions.values())


def test_an_ffmpeg_that_does_not_exist_or_does_not_encode_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not an executable file"):
        toolchain.find_ffmpeg(tmp_path / "ffmpeg")
    script = tmp_path / "ffmpeg"
    script.write_text("#!/bin/sh\necho ffmpeg version 1.0\n")
    script.chmod(0o755)
    with pytest.raises(UsageError, match="cannot encode with libx264"):
        toolchain.versions(toolchain.find_ffmpeg(script))
