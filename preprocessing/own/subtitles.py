"""Reads subtitles beside videos as captions: SubRip (.srt) and WebVTT (.vtt)."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from preprocessing.annotations.files import open_utf8
from preprocessing.annotations.tables import AnnotationError
from preprocessing.annotations.values import plain, show
from preprocessing.own.rows import CaptionRow, CaptionSource, UnreadableRow
from preprocessing.own.text import as_utf8

EXTENSIONS = (".srt", ".vtt")
_MAX_BYTES = 256 << 20
_TIMES = re.compile(r"\s*([\d:.,]+)\s*-->\s*([\d:.,]+)(?:\s.*)?", re.ASCII)
_TAGS = re.compile(r"<[^<>]{0,1000}>|\{\\[^{}]{0,1000}\}")  # <i>, <v Name>, <00:01.000>, {\an8}
_SECTIONS = ("NOTE", "STYLE", "REGION")  # blocks of WebVTT that are no cues


@contextmanager
def open_subtitles(path: Path, video: str) -> Iterator[CaptionSource]:
    """Open the subtitles of a video; `video` names it as `CaptionRow.video` does. Raises `AnnotationError`."""
    with as_utf8(path) as text:
        with open_utf8(text.path) as file:
            data = file.read(_MAX_BYTES + 1)
        if len(data) > _MAX_BYTES:
            raise AnnotationError(f"{path}: more than {_MAX_BYTES} bytes of subtitles")
        lines = data.decode("utf-8-sig", "replace").splitlines()
        yield CaptionSource(path=path, rows=_cues(path.name, video, lines), decided=text.decided)


def _cues(name: str, video: str, lines: list[str]) -> Iterator[CaptionRow | UnreadableRow]:
    """Yield the cues: blocks of lines of which one has times, and those below it are the text."""
    for first, block in _blocks(lines):
        at = next((index for index, line in enumerate(block[:2]) if "-->" in line), None)
        if at is None:
            is_header = first == 1 and block[0].startswith("WEBVTT")
            if not is_header and block[0].split(" ")[0] not in _SECTIONS:
                detail = f"{show(block[0])}: expected times such as 00:00:01,500 --> 00:00:04,000"
                yield UnreadableRow(location=f"{name}:{first}", reason="malformed subtitle", detail=plain(detail))
            continue
        location = f"{name}:{first + at}"
        match = _TIMES.fullmatch(block[at])
        if match is None:
            detail = f"{show(block[at])}: expected times such as 00:00:01,500 --> 00:00:04,000"
            yield UnreadableRow(location=location, reason="malformed subtitle", detail=plain(detail))
            continue
        text = html.unescape(_TAGS.sub("", " ".join(block[at + 1 :])))
        caption = " ".join(text.split())
        yield CaptionRow(location=location, video=video, start=match[1], end=match[2], caption=caption)


def _blocks(lines: list[str]) -> Iterator[tuple[int, list[str]]]:
    """Yield the number of its first line, from 1, and the lines of each run of lines that are not blank."""
    block: list[str] = []
    for number, line in enumerate([*lines, ""], start=1):
        if line.strip():
            block.append(line)
        elif block:
            yield number - len(block), block
            block = []
