"""Finds an ffmpeg that can do what a build needs, and lists the versions that determine bytes.

Shards of different toolchains are never mixed.
"""

from __future__ import annotations

import logging
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import av
import imageio_ffmpeg
import simplejpeg

from preprocessing.errors import UsageError


@dataclass(frozen=True)
class Ability:
    """Something that an ffmpeg must be able to do, with the arguments that a trial gives to it."""

    kind: Literal["encoder", "muxer", "filter", "global option", "input option", "option"]
    name: str
    value: str = ""  # of an option; of a filter, its arguments

    def __str__(self) -> str:
        if self.kind == "encoder":
            return f"an encoder (it cannot encode with {self.name})"
        return f"the {'option' if 'option' in self.kind else self.kind} {self.name}"


# What `preprocessing/video/transcode.py` gives to ffmpeg. An ability that is used there belongs here.
REQUIRED_ENCODER = Ability("encoder", "libx264")
REQUIRED_MUXER = Ability("muxer", "mp4")
REQUIRED_OPTIONS: Sequence[Ability] = (
    Ability("global option", "-filter_threads", "1"),
    Ability("option", "-r", "30"),
    Ability("option", "-threads", "1"),
    Ability("option", "-preset", "superfast"),
    Ability("option", "-crf", "23"),
    Ability("option", "-x264-params", "keyint=16:b-adapt=0:cabac=0:mbtree=1:rc-lookahead=10:force-cfr=1"),
    Ability("option", "-flags", "+bitexact"),
    Ability("option", "-fflags", "+bitexact"),
    Ability("option", "-map_metadata", "-1"),
    Ability("option", "-map_chapters", "-1"),
)
REQUIRED_FILTERS: Sequence[Ability] = (
    Ability("filter", "select", "not(mod(n\\,1))"),
    Ability("filter", "settb", "1/30"),
    Ability("filter", "setpts", "N"),
    Ability("filter", "setparams", "range=tv:color_primaries=9:color_trc=16:colorspace=9"),
    Ability("filter", "zscale", "transfer=linear:npl=100"),  # zscale and tonemap are for HDR sources
    Ability("filter", "format", "gbrpf32le"),
    Ability("filter", "tonemap", "hable:desat=0"),
)
_TRIAL_SECONDS = 60  # after which a trial is given up
logger = logging.getLogger(__name__)


def find_ffmpeg(configured: Path | None) -> str:
    """Return the ffmpeg to run: the configured one, otherwise that on PATH, otherwise imageio-ffmpeg's.

    The one on PATH is passed over, with a warning, where it lacks an ability that a build needs. Raises `UsageError`
    where the configured one is not executable or lacks an ability, and where no ffmpeg is left.
    """
    if configured is not None:
        found = shutil.which(str(configured))
        if found is None:
            raise UsageError(f"ffmpeg = {configured}: not an executable file; null uses the one on PATH")
        if missing := missing_abilities(found):
            raise UsageError(
                f"ffmpeg = {configured} ({_version(found)}) cannot be used, it lacks {_listed(missing)}: give one "
                "with libx264 and libzimg, or null for the one on PATH or else imageio-ffmpeg's"
            )
        return found
    on_path = shutil.which("ffmpeg")
    if on_path is None:
        return _bundled("there is no ffmpeg on PATH")
    on_path = str(Path(on_path).absolute())
    missing = missing_abilities(on_path)
    if not missing:
        return on_path
    reason = f"{on_path} ({_version(on_path)}) lacks {_listed(missing)}"
    bundled = _bundled(reason)
    logger.warning("%s; using imageio-ffmpeg's instead: %s (%s)", reason, bundled, _version(bundled))
    return bundled


@lru_cache(maxsize=16)
def missing_abilities(ffmpeg: str) -> tuple[str, ...]:
    """Return what an ffmpeg lacks of the encoder, the muxer, the options and the filters that a build uses.

    They are tried, not looked up: one run uses all of them, and only if it fails, further runs find out which are
    missing. Something is returned for any failure, be it that the program does not run at all.
    """
    failure = _trial(ffmpeg, (REQUIRED_ENCODER, REQUIRED_MUXER, *REQUIRED_OPTIONS, *REQUIRED_FILTERS))
    if not failure:
        return ()
    if bare := _trial(ffmpeg, ()):
        return (f"the ability to run ({bare})",)
    basic = [ability for ability in (REQUIRED_ENCODER, REQUIRED_MUXER) if _trial(ffmpeg, (ability,))]
    others = [ability for ability in (REQUIRED_ENCODER, REQUIRED_MUXER) if ability not in basic]
    # Some output options belong to the encoder or the muxer: without these, nothing can be said about them.
    options = [ability for ability in REQUIRED_OPTIONS if not basic or ability.kind != "option"]
    lacking = [*basic, *_lacking(ffmpeg, options, others), *_lacking(ffmpeg, REQUIRED_FILTERS, others)]
    return tuple(map(str, lacking)) or (f"the ability to do everything in one run ({failure})",)


def _lacking(ffmpeg: str, abilities: Sequence[Ability], others: Sequence[Ability]) -> list[Ability]:
    """Return those of `abilities` that fail together with `others` alone, found by halving."""
    if not abilities or not _trial(ffmpeg, (*abilities, *others)):
        return []
    if len(abilities) == 1:
        return list(abilities)
    middle = len(abilities) // 2
    return [*_lacking(ffmpeg, abilities[:middle], others), *_lacking(ffmpeg, abilities[middle:], others)]


@lru_cache(maxsize=4)
def versions(ffmpeg: str) -> dict[str, str]:
    """Return the versions of everything that determines bytes: ffmpeg, its x264, PyAV and its libraries, simplejpeg.

    Raises `UsageError` where `ffmpeg` cannot encode with libx264.
    """
    return {
        "ffmpeg": _version(ffmpeg),
        "x264": _x264_version(ffmpeg),
        "pyav": av.__version__,
        "libavformat": ".".join(map(str, av.library_versions["libavformat"])),
        "libavcodec": ".".join(map(str, av.library_versions["libavcodec"])),
        "libswscale": ".".join(map(str, av.library_versions["libswscale"])),
        "simplejpeg": simplejpeg.__version__,
    }


def _bundled(reason: str) -> str:
    """Return imageio-ffmpeg's ffmpeg; raise `UsageError` with `reason` where it cannot be used either."""
    try:
        bundled: str = imageio_ffmpeg.get_ffmpeg_exe()
    except RuntimeError as error:
        raise UsageError(
            f"no usable ffmpeg: {reason}, and imageio-ffmpeg has none for this machine ({error})"
        ) from None
    if missing := missing_abilities(bundled):
        raise UsageError(
            f"no usable ffmpeg: {reason}, and imageio-ffmpeg's, {bundled} ({_version(bundled)}), lacks "
            f"{_listed(missing)}; set ffmpeg to one with libx264 and libzimg"
        )
    return bundled


def _trial(ffmpeg: str, abilities: Sequence[Ability]) -> str:
    """Encode a few frames with `abilities`; return the last line of ffmpeg's messages if it fails, otherwise ""."""
    (encoder,) = [a.name for a in abilities if a.kind == "encoder"] or ["mpeg4"]
    (muxer,) = [a.name for a in abilities if a.kind == "muxer"] or ["avi"]
    filters = ",".join(f"{a.name}={a.value}" for a in abilities if a.kind == "filter")
    with tempfile.TemporaryDirectory(prefix="hiervl-ffmpeg-") as folder:
        command = [
            *(ffmpeg, "-v", "error", "-nostdin", "-y", *_options(abilities, "global option")),
            *(*_options(abilities, "input option"), "-f", "lavfi", "-i", "color=black:size=64x64:duration=0.2:rate=25"),
            *(*_options(abilities, "option"), *(("-vf", filters) if filters else ())),
            *("-c:v", encoder, "-f", muxer, "trial"),
        ]
        try:
            done = subprocess.run(command, capture_output=True, cwd=folder, timeout=_TRIAL_SECONDS, check=False)
        except subprocess.TimeoutExpired:
            return f"no end within {_TRIAL_SECONDS} s"
        except OSError as error:
            return error.strerror or str(error)
        messages = done.stderr.decode(errors="replace").strip().splitlines() or [f"exit status {done.returncode}"]
        if done.returncode:
            return messages[-1][:200]
        return "" if (Path(folder) / "trial").exists() else "nothing was written to the file trial"


def _options(abilities: Sequence[Ability], kind: str) -> list[str]:
    return [word for ability in abilities if ability.kind == kind for word in (ability.name, ability.value)]


def _listed(missing: Sequence[str]) -> str:
    return f"{', '.join(missing[:-1])} and {missing[-1]}" if len(missing) > 1 else missing[0]


@lru_cache(maxsize=16)
def _version(ffmpeg: str) -> str:
    """Return the version that an ffmpeg states, or "unknown version"."""
    try:
        banner = subprocess.run([ffmpeg, "-version"], capture_output=True, timeout=_TRIAL_SECONDS, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return "unknown version"
    stated = re.match(r"ffmpeg version (\S+)", banner.decode(errors="replace"))
    return stated[1] if stated else "unknown version"


def _x264_version(ffmpeg: str) -> str:
    """Return the build of x264 from the signature that it writes into every stream; encodes one frame."""
    source = ["-f", "lavfi", "-i", "color=black:size=64x64:duration=0.04:rate=25"]
    command = [ffmpeg, "-v", "error", *source, "-c:v", "libx264", "-threads", "1", "-f", "h264", "-"]
    encoded = subprocess.run(command, capture_output=True, check=False)
    signature = re.search(rb"x264 - core (\d+(?: r\d+)?)", encoded.stdout)
    if signature is None:
        raise UsageError(f"{ffmpeg} cannot encode with libx264: {encoded.stderr.decode(errors='replace')[:300]}")
    return signature.group(1).decode()
