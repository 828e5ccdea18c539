"""What the readers of hierarchies yield, and the table that is made of it."""

from __future__ import annotations

import csv
import io
import json
import pickle
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, NoReturn

from preprocessing.errors import UsageError
from shards.files import write_bytes

COLUMNS = ("video", "start", "end", "caption", "level", "split", "verbs", "nouns", "kind", "parent", "annotator", "id")
_MAX_BYTES = 4 << 30  # of one annotation file


@dataclass(frozen=True, kw_only=True)
class Row:
    """One caption of a span of a video."""

    video: str
    start: float  # s
    end: float  # s
    caption: str
    level: Literal["clip", "summary"]
    split: str  # train, val or test; empty: not stated
    kind: str  # what it is in its own dataset: substep, step, goal, …
    parent: str = ""  # `id` of the row above it
    id: str = ""
    annotator: str = ""
    verbs: str = ""
    nouns: str = ""


@dataclass(kw_only=True)
class Rejects:
    """Annotations that cannot become rows, by reason."""

    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)

    def add(self, reason: str, where: str) -> None:
        """Count one."""
        self.counts[reason] += 1
        self.examples.setdefault(reason, where)


class AnnotationFileError(UsageError):
    """An annotation file that cannot be read as what it should be."""

    exit_code: ClassVar[int] = 2


def checked(row: Row, rejects: Rejects, where: str) -> Row | None:
    """Return a row with its caption on one line; None, counted, if it has no caption or no span."""
    caption = " ".join(row.caption.split())
    if not caption:
        rejects.add("no caption", where)
    elif not 0 <= row.start < row.end < 1e6:
        rejects.add("no span of time", f"{where}: {row.start} to {row.end} s")
    elif not row.video:
        rejects.add("no video", where)
    else:
        return Row(**{**vars(row), "caption": caption})
    return None


def write_table(rows: Iterable[Row], path: Path) -> int:
    """Write rows as CSV, atomically; return their number."""
    sink = io.StringIO(newline="")
    writer = csv.DictWriter(sink, COLUMNS, lineterminator="\n")
    writer.writeheader()
    count = 0
    for row in rows:
        writer.writerow({name: getattr(row, name) for name in COLUMNS})
        count += 1
    write_bytes(path, sink.getvalue().encode())
    return count


def read_json(path: Path) -> Any:
    """Return the value of a JSON file; raise `AnnotationFileError`."""
    try:
        return json.loads(_bytes(path))
    except (ValueError, RecursionError) as error:
        raise AnnotationFileError(f"{path}: not JSON: {error}") from None


def read_plain_pickle(path: Path) -> Any:
    """Return a pickle of lists, tuples, dicts, text and numbers; raise `AnnotationFileError` for any other.

    Whatever would import or call something is refused, so nothing of the file is executed.
    """
    try:
        return _PlainUnpickler(io.BytesIO(_bytes(path))).load()
    except Exception as error:  # noqa: BLE001  # hostile bytes raise anything; the message names it
        raise AnnotationFileError(f"{path}: not a pickle of plain values: {type(error).__name__}: {error}") from None


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> NoReturn:
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")

    def persistent_load(self, pid: Any) -> NoReturn:
        raise pickle.UnpicklingError("it refers to something outside of it")


def _bytes(path: Path) -> bytes:
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise AnnotationFileError(f"{path}: more than {_MAX_BYTES} bytes")
        return path.read_bytes()
    except OSError as error:
        raise AnnotationFileError(f"{path}: cannot be read: {error.strerror or error}") from None


def split_of(path: Path, stated: object = None) -> str:
    """Return the split that a file states, or that its name ends in; empty if neither."""
    words = [str(stated), *path.stem.lower().replace("-", "_").split("_")]
    names = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
    return next((names[word] for word in words if word in names), "")
