"""The result of a benchmark: scores with published ones, every item, and what could not be scored; as JSON files."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from configs.loading import ConfigError, from_dict
from shards.files import write_bytes, write_json

SCORES = "scores.json"
ITEMS = "items.jsonl"
VERSION = 1


class ResultError(ValueError):
    """A folder without a result or with a damaged one; the message names the file."""

    exit_code: ClassVar[int] = 1


@dataclass(frozen=True, kw_only=True)
class Score:
    """One score of a benchmark, with the number of items it is based on."""

    name: str  # such as "inter accuracy"
    value: float  # percent, or what `unit` says
    low: float | None = None  # bootstrap interval, 95 %
    high: float | None = None
    chance: float | None = None  # percent, what random scores get; None if it is not defined
    items: int  # scored items
    of: int  # items in the benchmark
    tied: int = 0  # items whose score depends on the order of ties; a correct answer that ties with k − 1 counts 1/k
    published: dict[str, float] = field(default_factory=dict)  # model → percent, such as {"HierVL-SA": 90.5}
    unit: Literal["%", "rank"] = "%"  # rank: from 1, lower is better


@dataclass(frozen=True, kw_only=True)
class Option:
    """One option of an item."""

    key: str  # of the sample, or a class's name
    text: str
    score: float  # similarity, or a probe's logit


@dataclass(frozen=True, kw_only=True)
class Item:
    """One question, query, class or video with the model's answer."""

    id: str
    group: str  # such as "inter"
    text: str
    score: float  # percent: 100, 0 or, for ties, 100/k; an average precision
    answer: str  # key or class of the correct option
    predicted: str  # key or class of the model's choice
    options: list[Option] = field(default_factory=list)
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Missing:
    """An item that could not be scored."""

    item: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Confusion:
    """How often each correct class (row) was answered with each class (column)."""

    labels: list[str]
    counts: list[list[int]]


@dataclass(frozen=True, kw_only=True)
class Result:
    """The result of evaluating one benchmark."""

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
        """Write `items.jsonl`, then `scores.json`, each atomically; return the folder."""
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
        """Return the result that `save` wrote; raise `ResultError` if a file is missing or damaged."""
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
    raise TypeError(f"{type(value).__name__} in a result: cannot be written as JSON")


def _read(path: Path) -> dict[str, Any]:
    tree = _parse(_bytes(path), str(path))
    if not isinstance(tree, dict):
        raise ResultError(f"{path}: expected a JSON object")
    return tree


def _items(path: Path) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(_bytes(path).splitlines(), 1):
        yield _parse(line, f"{path}, line {number}")


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise ResultError(f"{path}: no such result") from None
    except OSError as error:
        raise ResultError(f"{path}: cannot be read: {error.strerror}") from None


def _parse(data: bytes, where: str) -> Any:
    try:
        return json.loads(data)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ResultError(f"{where}: not JSON: {error}") from None
