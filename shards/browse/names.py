"""Reads names for what a dataset has as numbers: classes of verbs and nouns, and scenarios of videos."""

from __future__ import annotations

import csv
import io
import json
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from shards.dataset import Dataset
from shards.schema import CLASSES
from shards.search.catalog import Catalog
from shards.stats import ShardError, open_regular

KINDS = {
    "tag_verb": "verb",
    "tag_noun": "noun",
    "verb_class": "EPIC verb",
    "noun_classes": "EPIC noun",
}
_MAX_TAXONOMY, _MAX_METADATA = 16 << 20, 2 << 30  # bytes
_ID_COLUMNS, _NAME_COLUMNS = ("id", "class_id", "index", ""), ("key", "label", "name", "class", "verb", "noun")

_OWN = {"tag_verb": "verbs", "tag_noun": "nouns"}  # field → its entry in `provenance.taxonomy` of own videos

Names = Mapping[str, Mapping[int, str]]  # field of a record → class → name


class NamesError(ValueError):
    """A file of names that cannot be read."""

    exit_code: ClassVar[int] = 2


def names_in(dataset: Dataset) -> dict[str, dict[int, str]]:
    """Return the names that a dataset itself states, as one of own videos does."""
    stated = dataset.provenance.get("taxonomy")
    if not isinstance(stated, dict):
        return {}
    listed = {kind: stated.get(entry) for kind, entry in _OWN.items()}
    return {
        kind: {n: str(name) for n, name in enumerate(names)}
        for kind, names in listed.items()
        if isinstance(names, list)
    }


def read_taxonomies(words: Sequence[str]) -> dict[str, dict[int, str]]:
    """Return the names in files that are given as FIELD=FILE, such as tag_verb=narration_verb_taxonomy.csv.

    A file is a CSV with a column of names (key, label, name or class) and maybe one of classes (id), else the rows are
    numbered from 0; or a JSON list of names; or a JSON object, class → name. Raises `NamesError`.
    """
    found: dict[str, dict[int, str]] = {}
    for word in words:
        kind, equals, path = word.partition("=")
        if not equals or kind not in CLASSES:
            raise NamesError(f"--taxonomy {word}: expected FIELD=FILE, where FIELD is one of {', '.join(CLASSES)}")
        text = _read(Path(path), _MAX_TAXONOMY)
        try:
            found[kind] = _from_json(json.loads(text)) if text.lstrip()[:1] in ("[", "{") else _from_csv(text)
        except (ValueError, TypeError, AttributeError, RecursionError, csv.Error) as error:
            raise NamesError(f"--taxonomy {path}: no list of names: {error}") from None
    return found


def _from_json(value: Any) -> dict[int, str]:
    entries: Iterable[tuple[Any, Any]] = enumerate(value) if isinstance(value, list) else value.items()
    return {int(number): str(name) for number, name in entries}


def _from_csv(text: str) -> dict[int, str]:
    rows = list(csv.DictReader(io.StringIO(text)))
    columns = list(rows[0]) if rows else []
    name = next((column for column in _NAME_COLUMNS if column in columns), None)
    if name is None:
        raise ValueError(f"none of the columns {', '.join(_NAME_COLUMNS)}")
    number = next((column for column in _ID_COLUMNS if column in columns), None)
    return {int(row[number]) if number is not None else place: row[name] for place, row in enumerate(rows)}


def add_scenarios(catalog: Catalog, path: Path) -> int:
    """Put the scenarios in an ego4d.json into the catalog, in place of former ones; return the number of videos.

    Raises `NamesError` if the file has no list `videos` of objects with `video_uid` and `scenarios`.
    """
    try:
        videos = json.loads(_read(path, _MAX_METADATA))["videos"]
        rows = [
            (str(scenario), str(video["video_uid"])) for video in videos for scenario in video.get("scenarios") or ()
        ]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise NamesError(f"--metadata {path}: not an ego4d.json: {type(error).__name__}: {error}") from None
    try:
        connection = sqlite3.connect(catalog.path)
        try:
            with connection:
                connection.execute("DELETE FROM video_scenarios")
                connection.executemany("INSERT OR IGNORE INTO video_scenarios VALUES (?, ?)", rows)
        finally:
            connection.close()
    except sqlite3.Error as error:
        raise NamesError(f"{catalog.path}: cannot be written: {error}: give another file as --catalog") from error
    return len({uid for _, uid in rows})


def _read(path: Path, limit: int) -> str:
    try:
        with open_regular(path) as handle:
            data = handle.read(limit + 1)
    except (OSError, ShardError) as error:
        raise NamesError(f"{path}: cannot be read: {error}") from None
    if len(data) > limit:
        raise NamesError(f"{path}: more than {limit} bytes")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise NamesError(f"{path}: not UTF-8: {error}") from None
