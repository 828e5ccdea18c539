"""Subtitles beside videos, compared with libav's own reader."""

from __future__ import annotations

from pathlib import Path

import av
import pytest

from preprocessing.own.rows import CaptionRow, UnreadableRow
from preprocessing.own.subtitles import open_subtitles
from preprocessing.own.times import parse_time

SRT = """\ufeff1
00:00:01,000 --> 00:00:02,500
<i>He opens</i>
the {\\an8}door

2
00:01:03,250 --> 00:01:04,000 X1:10 X2:20
Tür & Tor

3
nonsense --> 00:00:05,000
lost
"""
VTT = """WEBVTT - a title

NOTE a comment
over two lines

STYLE
::cue { color: red }

intro
00:01.000 --> 00:02.500 align:start
<v Anna>He opens <c.loud>the</c> door

01:03.250 --> 01:04.000
Tür &amp; Tor
"""


def read(path: Path) -> list[CaptionRow | UnreadableRow]:
    with open_subtitles(path, "a.mp4") as source:
        return list(source.rows)


@pytest.mark.parametrize(("name", "text"), [("a.srt", SRT), ("a.vtt", VTT)])
def test_cues_become_captions(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    rows = [row for row in read(tmp_path / name) if isinstance(row, CaptionRow)]
    assert [(parse_time(r.start), parse_time(r.end), r.caption) for r in rows] == [
        (1.0, 2.5, "He opens the door"),
        (63.25, 64.0, "Tür & Tor"),
    ]


def test_a_malformed_cue_is_one_bad_row(tmp_path: Path) -> None:
    (tmp_path / "a.srt").write_text(SRT, encoding="utf-8")
    (bad,) = (row for row in read(tmp_path / "a.srt") if isinstance(row, UnreadableRow))
    assert bad.location == "a.srt:11" and "nonsense" in bad.detail


def test_times_and_texts_are_those_that_libav_reads(tmp_path: Path) -> None:
    lines = []
    for i in range(50):
        start, end = 1234 * i, 1234 * i + 800
        clock = [f"{t // 3600000:02d}:{t // 60000 % 60:02d}:{t // 1000 % 60:02d},{t % 1000:03d}" for t in (start, end)]
        lines += [str(i + 1), " --> ".join(clock), f"line {i}", ""]
    path = tmp_path / "a.srt"
    path.write_text("\n".join(lines), encoding="cp1252")
    with av.open(str(path)) as container:
        stream = container.streams.subtitles[0]
        packets = [p for p in container.demux(stream) if p.pts is not None]
        theirs = [
            (float(p.pts * p.time_base), float((p.pts + p.duration) * p.time_base), bytes(p).decode()) for p in packets
        ]
    ours = [(parse_time(r.start), parse_time(r.end), r.caption) for r in read(path) if isinstance(r, CaptionRow)]
    assert len(ours) == 50 and ours == theirs
