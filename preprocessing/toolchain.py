"""Finds ffmpeg and lists the versions that determine bytes; shards of different toolchains are never mixed."""

from __future__ import annotations

import re
import shutil
import subprocess
from functools import lru_cache
from pathlib import Path

import av
import imageio_ffmpeg
import simplejpeg

from preprocessing.errors import UsageError


def find_ffmpeg(configured: Path | None) -> str:
    """Return the ffmpeg to run: the configured one, otherwise that on PATH, otherwise imageio-ffmpeg's.

    Raises `UsageError` where the configured one is not executable.
    """
    if configured is not None:
        if shutil.which(str(configured)) is None:
            raise UsageError(f"ffmpeg = {configured}: not an executable file; null uses the one on PATH")
        return str(configured)
    return shutil.which("ffmpeg") or imageio_ffmpeg.get_ffmpeg_exe()


@lru_cache(maxsize=4)
def versions(ffmpeg: str) -> dict[str, str]:
    """Return the versions of everything that determines bytes: ffmpeg, its x264, PyAV and its libraries, simplejpeg.

    Raises `UsageError` where `ffmpeg` cannot encode with libx264.
    """
    banner = subprocess.run([ffmpeg, "-version"], capture_output=True, text=True, check=True).stdout
    return {
        "ffmpeg": banner.split()[2],
        "x264": _x264_version(ffmpeg),
        "pyav": av.__version__,
        "libavformat": ".".join(map(str, av.library_versions["libavformat"])),
        "libavcodec": ".".join(map(str, av.library_versions["libavcodec"])),
        "simplejpeg": simplejpeg.__version__,
    }


def _x264_version(ffmpeg: str) -> str:
    """Return the build of x264 from the signature that it writes into every stream; encodes one frame."""
    source = ["-f", "lavfi", "-i", "color=black:size=64x64:duration=0.04:rate=25"]
    command = [ffmpeg, "-v", "error", *source, "-c:v", "libx264", "-threads", "1", "-f", "h264", "-"]
    encoded = subprocess.run(command, capture_output=True, check=False)
    signature = re.search(rb"x264 - core (\d+(?: r\d+)?)", encoded.stdout)
    if signature is None:
        raise UsageError(f"{ffmpeg} cannot encode with libx264: {encoded.stderr.decode(errors='replace')[:300]}")
    return signature.group(1).decode()
