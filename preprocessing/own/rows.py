"""The rows of own captions as they are read from tables and subtitles: text, with the place of each row."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class CaptionRow:
    """One row as text; a cell that the source lacks is empty."""

    location: str  # file:line, for messages
    video: str  # as the source names it
    start: str
    end: str
    caption: str
    level: str = ""
    split: str = ""
    verbs: str = ""
    nouns: str = ""
    extra: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class UnreadableRow:
    """A row that cannot be split into cells."""

    location: str
    reason: str  # kind of problem, under which rows are counted
    detail: str  # the value


@dataclass(frozen=True, kw_only=True)
class CaptionSource:
    """A file of captions: its rows, and what was decided about it."""

    path: Path
    rows: Iterator[CaptionRow | UnreadableRow]
    decided: str = ""  # a sentence, such as which encoding was taken; empty where there was no choice
    extra: tuple[str, ...] = ()  # names of the further columns
