"""The toolchain: which ffmpeg is used, what it must be able to do, and its versions."""

from __future__ import annotations

import logging
import shlex
from pathlib import Path

import imageio_ffmpeg
import pytest

from preprocessing import toolchain
from preprocessing.errors import UsageError
from preprocessing.toolchain import (
    REQUIRED_ENCODER,
    REQUIRED_FILTERS,
    REQUIRED_MUXER,
    REQUIRED_OPTIONS,
    Ability,
)
from tests.preprocessing.chunking import FFMPEG

REAL = imageio_ffmpeg.get_ffmpeg_exe()


def wrapper(folder: Path, *rejected: str, banner: str = "ffmpeg version 5.1.6-0+deb12u1 Copyright") -> Path:
    """Return an ffmpeg that fails, as ffmpeg does, where one of its arguments matches a shell pattern in `rejected`."""
    folder.mkdir(parents=True, exist_ok=True)
    script = folder / "ffmpeg"
    cases = "".join(f'{pattern}) echo "Unrecognized option: $word" >&2; exit 8;;\n' for pattern in rejected)
    script.write_text(
        f'#!/bin/sh\nif [ "$1" = -version ]; then echo {shlex.quote(banner)}; exit 0; fi\n'
        f'for word in "$@"; do case "$word" in\n{cases}*) ;;\nesac; done\n'
        f'exec {shlex.quote(REAL)} "$@"\n'
    )
    script.chmod(0o755)
    return script


def pattern_of(ability: Ability) -> str:
    """Return a shell pattern of the argument by which an ability is used."""
    return f"*{ability.name}=*" if ability.kind == "filter" else ability.name


def test_the_versions_of_everything_that_writes_bytes_are_listed() -> None:
    versions = toolchain.versions(FFMPEG)
    assert versions.keys() == {"ffmpeg", "x264", "pyav", "libavformat", "libavcodec", "libswscale", "simplejpeg"}
    assert all(versions.values())


def test_an_ffmpeg_that_does_not_exist_or_does_not_encode_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not an executable file"):
        toolchain.find_ffmpeg(tmp_path / "ffmpeg")
    script = tmp_path / "ffmpeg"
    script.write_text("#!/bin/sh\necho ffmpeg version 1.0\n")
    script.chmod(0o755)
    with pytest.raises(UsageError, match=r"ffmpeg \(1\.0\) cannot be used.*nothing was written"):
        toolchain.find_ffmpeg(script)


@pytest.mark.parametrize("ability", [*REQUIRED_OPTIONS[::4], *REQUIRED_FILTERS[::2]], ids=lambda ability: ability.name)
def test_each_ability_that_is_missing_is_named(ability: Ability, tmp_path: Path) -> None:
    ffmpeg = wrapper(tmp_path, pattern_of(ability))
    assert toolchain.missing_abilities(str(ffmpeg)) == (str(ability),)
    with pytest.raises(UsageError, match=f"lacks the .* {ability.name}: give one with libx264"):
        toolchain.find_ffmpeg(ffmpeg)


def test_several_missing_abilities_are_all_named(tmp_path: Path) -> None:
    missing = toolchain.missing_abilities(str(wrapper(tmp_path, "libx264", "*zscale=*", "-preset")))
    assert missing == (str(REQUIRED_ENCODER), "the filter zscale")  # options of a missing encoder are not judged
    missing = toolchain.missing_abilities(str(wrapper(tmp_path / "b", "mp4", "-filter_threads", "*tonemap=*")))
    assert missing == (str(REQUIRED_MUXER), "the option -filter_threads", "the filter tonemap")
    missing = toolchain.missing_abilities(str(wrapper(tmp_path / "c", "-map_*")))
    assert missing == ("the option -map_metadata", "the option -map_chapters")


def test_abilities_that_fail_only_together_are_reported(tmp_path: Path) -> None:
    ffmpeg = wrapper(tmp_path, "*settb=*setparams=*")
    (missing,) = toolchain.missing_abilities(str(ffmpeg))
    assert missing.startswith("the ability to do everything in one run (Unrecognized option")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("#!/bin/sh\necho error while loading shared libraries: libavdevice.so.59 >&2; exit 127\n", "shared libraries"),
        ("#!/nowhere/sh\n", "No such file"),
        ("no program\n", "Exec format error"),
        ("#!/bin/sh\nkill -SEGV $$\n", "exit status -11"),
    ],
)
def test_an_ffmpeg_that_cannot_run_at_all_is_passed_over(
    content: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "ffmpeg").write_text(content)
    (tmp_path / "ffmpeg").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert toolchain.find_ffmpeg(None) == REAL
    assert f"{tmp_path / 'ffmpeg'} (unknown version) lacks the ability to run" in caplog.text
    assert expected in caplog.text


def test_the_one_on_path_is_used_if_it_can_do_everything_and_passed_over_aloud_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    able = wrapper(tmp_path / "able", banner="ffmpeg version 6.1.1 Copyright")
    unable = wrapper(tmp_path / "unable", "-x264-params")
    monkeypatch.setenv("PATH", f"{able.parent}:/bin:/usr/bin")
    assert toolchain.find_ffmpeg(None) == str(able) and not caplog.text
    assert toolchain.versions(str(able))["ffmpeg"] == "6.1.1"
    monkeypatch.setenv("PATH", f"{unable.parent}:/bin:/usr/bin")
    assert toolchain.find_ffmpeg(None) == REAL
    assert f"{unable} (5.1.6-0+deb12u1) lacks the option -x264-params; using imageio-ffmpeg's" in caplog.text
    assert REAL in caplog.text


def test_without_any_usable_ffmpeg_the_build_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on_path, bundled = wrapper(tmp_path / "p", "-preset"), wrapper(tmp_path / "b", "libx264")
    monkeypatch.setenv("PATH", f"{on_path.parent}:/bin:/usr/bin")
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(bundled))
    with pytest.raises(UsageError, match=r"no usable ffmpeg.*-preset.*cannot encode with libx264"):
        toolchain.find_ffmpeg(None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match="there is no ffmpeg on PATH, and imageio-ffmpeg's"):
        toolchain.find_ffmpeg(None)
