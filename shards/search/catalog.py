"""Opens the catalog of a dataset, making it if there is none, and finds samples in it by key and by words.

    catalog = open_catalog(open_source("ROOT", SourceConfig()))
    sample = catalog.sample("…_c1_000123")                  # within a millisecond, among millions
    page = catalog.search_captions("cuts carrot", limit=20)  # captions that have both words

A catalog is a file in the user's cache folder, never in the dataset's, and is opened for reading only.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import sqlite3
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import quote

from shards.remote.private import private_folder
from shards.search.making import Progress, identity_of, make_catalog
from shards.sources import Source

RANKED = 2000  # hits that are ranked; those after them come in the order of the dataset
_KEYS_COMPARED = 1000  # neighbours of an unknown key on either side, among which the closest one is searched
_AT_A_TIME = 500  # parameters of one statement
_MAX_WORDS = 32  # of a query
_COLUMNS = """s.id, s.key, p.set_name, p.split, v.uid, s.start, s.stop, s.text, s.fps, s.first_frame,
 s.clip_frames, s.jpg_offset, s.jpg_size, s.json_offset, s.json_size, s.mp4_offset, s.mp4_size, s.tags"""
_JOINED = "samples s JOIN videos v ON v.id = s.video JOIN splits p ON s.id >= p.first AND s.id < p.last"


class CatalogError(RuntimeError):
    """A catalog that cannot be read, or a query that it does not understand."""

    exit_code: ClassVar[int] = 1


@dataclass(frozen=True, kw_only=True)
class Found:
    """A sample in the catalog."""

    id: int
    key: str
    set_name: str
    split: str
    video_uid: str
    start: float  # s in the source video
    stop: float
    text: str
    fps: float  # stored frames per second
    first_frame: int  # where the clip lies in the stored frames
    clip_frames: int
    jpg_offset: int
    jpg_size: int
    json_offset: int
    json_size: int
    mp4_offset: int
    mp4_size: int
    tags: str  # JSON: field of the record → its classes

    @property
    def classes(self) -> dict[str, list[int]]:
        """Field of the record → its classes, such as `tag_verb`."""
        found: dict[str, list[int]] = json.loads(self.tags)
        return found

    @property
    def begin(self) -> float:
        """Seconds in the stored video where the clip begins."""
        return self.first_frame / self.fps

    @property
    def end(self) -> float:
        """Seconds in the stored video where the clip ends."""
        return (self.first_frame + self.clip_frames) / self.fps

    @property
    def annotation_pass(self) -> str:
        """The part of the key that names the set and the pass of its annotator, such as c1."""
        return self.key.rsplit("_", 2)[-2] if self.key.count("_") >= 2 else ""


@dataclass(frozen=True, kw_only=True)
class SplitRange:
    """A split: its samples have the numbers `first` … `last` − 1."""

    id: int
    set_name: str
    split: str
    first: int
    last: int
    seconds: float  # of clips, all together

    @property
    def samples(self) -> int:
        """The number of samples."""
        return self.last - self.first

    @property
    def name(self) -> str:
        """Such as clips/train."""
        return f"{self.set_name}/{self.split}"


@dataclass(frozen=True, kw_only=True)
class CaptionPage:
    """Some captions that have the words of a query."""

    samples: list[Found]
    after: int | None  # for the next page; None: there is none
    total: int  # hits, counted up to `RANKED` + 1


class Catalog:
    """An opened catalog; its methods may be called from any thread."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._local = threading.local()
        self.splits = [
            SplitRange(id=row[0], set_name=row[1], split=row[2], first=row[3], last=row[4], seconds=row[5])
            for row in self.rows("SELECT id, set_name, split, first, last, seconds FROM splits ORDER BY id")
        ]

    def rows(self, statement: str, parameters: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """Return the rows of a statement; raise `CatalogError` where it fails, as with a query that FTS5 refuses."""
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        try:
            if connection is None:
                connection = sqlite3.connect(f"file:{quote(str(self.path.absolute()))}?mode=ro", uri=True)
                connection.execute("PRAGMA query_only = ON")
                connection.execute("PRAGMA mmap_size = 4294967296")
                self._local.connection = connection
            return connection.execute(statement, parameters).fetchall()
        except sqlite3.Error as error:
            raise CatalogError(f"{self.path}: {error}: remove it, and it is made again") from error

    def sample(self, key: str) -> Found | None:
        """Return the sample with a key; None if there is none."""
        return next(iter(self._found("s.key = ?", (key,))), None)

    def samples(self, keys: Iterable[str]) -> dict[str, Found]:
        """Return key → sample of those keys that exist."""
        wanted = list(dict.fromkeys(keys))
        found = []
        for begin in range(0, len(wanted), _AT_A_TIME):
            part = wanted[begin : begin + _AT_A_TIME]
            found += self._found(f"s.key IN ({', '.join('?' * len(part))})", part)
        by_key = {sample.key: sample for sample in found}
        return {key: by_key[key] for key in wanted if key in by_key}

    def of_video(self, video_uid: str, *, begin: float, end: float, limit: int) -> list[Found]:
        """Return up to `limit` samples of a video that start between two times (s), in the order of time."""
        condition = "s.video = (SELECT id FROM videos WHERE uid = ?) AND s.start >= ? AND s.start < ?"
        return self._found(f"{condition} ORDER BY s.start, s.stop DESC, s.id LIMIT ?", (video_uid, begin, end, limit))

    def shard_of(self, sample: Found) -> str:
        """Return the name of the tar that a sample is in."""
        ((name,),) = self.rows("SELECT name FROM shards WHERE first <= ? ORDER BY first DESC LIMIT 1", (sample.id,))
        return str(name)

    def closest_key(self, key: str) -> str | None:
        """Return the key that differs least from `key` among its neighbours in sorted order; None without samples."""
        nearby = [
            row[0]
            for comparison, order in ((">=", ""), ("<", "DESC"))
            for row in self.rows(
                f"SELECT key FROM samples WHERE key {comparison} ? ORDER BY key {order} LIMIT ?",  # noqa: S608
                (key, _KEYS_COMPARED),
            )
        ]

        def similarity(known: str) -> tuple[float, int]:
            matcher = difflib.SequenceMatcher(None, key, known, autojunk=False)
            start = matcher.get_matching_blocks()[0]
            return (
                matcher.ratio(),
                start.size if start.a == start.b == 0 else 0,
            )  # then by the length of the common start

        return max(sorted(nearby), key=similarity, default=None)

    def search_captions(
        self, query: str, *, split: SplitRange | None = None, after: int = 0, limit: int = 20
    ) -> CaptionPage:
        """Return captions that have every word of `query`; a word that ends in `*` stands for all that begin with it.

        The first `RANKED` hits are ranked: captions of which the words are a larger part come first. Later hits follow
        in the order of the dataset. `after` is the former page's.
        """
        match = match_expression(query)
        if match is None:
            return CaptionPage(samples=[], after=None, total=0)
        first, last = (split.first, split.last) if split is not None else (0, 1 << 62)
        condition = "captions MATCH ? AND rowid >= ? AND rowid < ?"
        hits = self.rows(
            f"SELECT rowid, length(text) FROM captions WHERE {condition} ORDER BY rowid LIMIT ?",  # noqa: S608
            (match, first, last, RANKED + 1),
        )
        ranked = [number for number, _ in sorted(hits[:RANKED], key=lambda hit: (hit[1], hit[0]))]
        if after < len(ranked):
            chosen = ranked[after : after + limit]
            has_more = len(hits) > after + len(chosen)
            following = after + len(chosen)
            if following >= len(ranked):
                following = max(ranked) + RANKED
        else:  # `after` is a number of a sample, plus RANKED
            rows = self.rows(
                f"SELECT rowid FROM captions WHERE {condition} ORDER BY rowid LIMIT ?",  # noqa: S608
                (match, max(first, after - RANKED + 1), last, limit + 1),
            )
            chosen, has_more = [row[0] for row in rows[:limit]], len(rows) > limit
            following = chosen[-1] + RANKED if chosen else 0
        return CaptionPage(samples=self._numbered(chosen), after=following if has_more else None, total=len(hits))

    def _numbered(self, numbers: Sequence[int]) -> list[Found]:
        found = {sample.id: sample for sample in self._found(f"s.id IN ({', '.join('?' * len(numbers))})", numbers)}
        return [found[number] for number in numbers]

    def _found(self, condition: str, parameters: Sequence[object]) -> list[Found]:
        names = Found.__dataclass_fields__
        rows = self.rows(f"SELECT {_COLUMNS} FROM {_JOINED} WHERE {condition}", parameters)  # noqa: S608
        return [Found(**dict(zip(names, row, strict=True))) for row in rows]


def match_expression(query: str) -> str | None:
    """Return a query as an FTS5 expression in which every word is quoted; None if it has no word.

    >>> match_expression('cuts "car* -')
    '"cuts" "car"*'
    """
    words = []
    for word in query.split()[:_MAX_WORDS]:
        if any(character.isalnum() for character in word):
            quoted = word.rstrip("*").replace("\0", " ").replace('"', " ")
            words.append(f'"{quoted.strip()}"{"*" if word.endswith("*") else ""}')
    return " ".join(words) or None


def catalog_path(source: Source) -> Path:
    """Return the file of a dataset's catalog in the user's cache folder (`$XDG_CACHE_HOME/hiervl`)."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "hiervl" / f"catalog-{hashlib.sha256(identity_of(source).encode()).hexdigest()[:16]}.sqlite"


def open_catalog(source: Source, path: Path | None = None, *, progress: Progress | None = None) -> Catalog:
    """Return the catalog of a dataset, made first if there is none or if it is another dataset's.

    `path` is its file, by default one in the user's cache folder. Raises as `make_catalog` does, and `CacheError` if
    the folder belongs to someone else.
    """
    if path is None:
        path = catalog_path(source)
        private_folder(path.parent)
    if not _is_of(path, identity_of(source)):
        make_catalog(source, path, progress=progress)
    return Catalog(path)


def _is_of(path: Path, identity: str) -> bool:
    if not path.is_file():
        return False
    try:
        return Catalog(path).rows("SELECT value FROM about WHERE name = 'identity'") == [(identity,)]
    except CatalogError:
        return False
