"""What a benchmark's run found: scores beside the published ones, every item, and what could not be scored."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from configs.loading import ConfigError, from_dict
from shards.files import write_bytes, write_json

SCORES = "scores.json"
ITEMS = "items.jsonl"
VERSION = 1


class ResultError(ValueError):
    """A folder that holds no result, or a damaged one; the message names the file."""

    exit_code: ClassVar[int] = 1


@dataclass(frozen=True, kw_only=True)
class Score:
    """One number of a benchmark, in percent, with what it stands on."""

    name: str  # as "inter accuracy"
    value: float  # percent
    low: float | None = None  # bootstrap interval, 95 %
    high: float | None = None
    chance: float | None = None  # percent, what random scores get; None if it is not defined
    items: int  # scored
    of: int  # in the benchmark
    tied: int = 0  # items whose best answer tied with others: it counted 1/k
    published: dict[str, float] = field(default_factory=dict)  # model → percent, as {"HierVL-SA": 90.5}


@dataclass(frozen=True, kw_only=True)
class Option:
    """One choice of an item."""

    key: str  # of its sample, or the name of a class
    text: str
    score: float  # similarity


@dataclass(frozen=True, kw_only=True)
class Item:
    """One question, query or video, and what the model made of it."""

    id: str
    group: str  # as "inter"
    text: str
    score: float  # its part of the benchmark's score in percent: 100, 0, 100/k on ties; an average precision
    answer: str  # key or class
    predicted: str
    options: list[Option] = field(default_factory=list)
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Missing:
    """An item that could not be scored."""

    item: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Confusion:
    """How often what was right (rows) was answered with what (columns)."""

    labels: list[str]
    counts: list[list[int]]


@dataclass(frozen=True, kw_only=True)
class Result:
    """All that a run of one benchmark found."""

    benchmark: str
    set_name: str
    split: str
    root: str  # of the dataset
    checkpoint: str
    checkpoint_digest: str  # sha256 of the weights
    fingerprint: str  # of the split
    settings: dict[str, Any]
    scores: list[Score]
    items: list[Item]
    missing: list[Missing] = field(default_factory=list)
    curves: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    curve_axes: dict[str, tuple[str, str]] = field(default_factory=dict)  # curve → titles of its axes, with units
    confusion: Confusion | None = None
    seconds: float = 0.0
    machine: str = ""
    made_at: str = ""  # ISO 8601, UTC

    def save(self, folder: str | Path) -> Path:
        """Write `items.jsonl`, then `scores.json`, each whole or not at all; return the folder."""
        folder = Path(folder)
        lines = [json.dumps(dataclasses.asdict(item), ensure_ascii=False, allow_nan=False) for item in self.items]
        write_bytes(folder / ITEMS, "".join(f"{line}\n" for line in lines).encode())
        write_json(folder / SCORES, self.tree())
        return folder

    def tree(self) -> dict[str, Any]:
        """Return all but the items as JSON: what `scores.json` holds."""
        tree = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "items"}
        return {"version": VERSION, **json.loads(json.dumps(tree, default=_plain))}

    @classmethod
    def load(cls, folder: str | Path) -> Result:
        """Return the result that `save` wrote; raise `ResultError` naming the file that is missing or damaged."""
        folder = Path(folder)
        tree = _read(folder / SCORES)
        if tree.pop("version", None) != VERSION:
            raise ResultError(f"{folder / SCORES}: not a result of version {VERSION}")
        tree["items"] = list(_items(folder / ITEMS))
        try:
            return from_dict(cls, tree)
        except ConfigError as error:
            raise ResultError(f"{folder}: {error}") from None


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"a {type(value).__name__} in a result cannot be written as JSON")


def _read(path: Path) -> dict[str, Any]:
    try:
        tree = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise ResultError(f"{path}: there is no such result") from None
    except ValueError as error:
        raise ResultError(f"{path}: not JSON: {error}") from None
    if not isinstance(tree, dict):
        raise ResultError(f"{path}: an object is expected")
    return tree


def _items(path: Path) -> Iterator[dict[str, Any]]:
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        raise ResultError(f"{path}: there is no such result") from None
    for number, line in enumerate(lines, 1):
        try:
            yield json.loads(line)
        except ValueError as error:
            raise ResultError(f"{path}, line {number}: not JSON: {error}") from None
