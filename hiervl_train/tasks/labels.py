"""Reads the labels that lie beside a set's shards, and holds them against the samples that are there."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import TypeVar

from hiervl_train.data import DataConfig
from hiervl_train.levels import DataError
from shards.companions import Companion, CompanionError, companion_path, read_companion
from shards.dataset import read_rows
from shards.files import write_bytes
from shards.sources import Source, fetch_bytes

Kind = TypeVar("Kind", bound=Companion)
_SHOWN = 5  # keys that a message spells out


def read_labels(kind: type[Kind], source: Source, set_name: str, data: DataConfig, *, split: str) -> Kind:
    """Return the labels of a split of the dataset that `source` has opened, wherever it is.

    Raises `CompanionError` where there are none, or they are malformed.
    """
    folder = source.dataset.root  # of a URL it is the folder that its manifest was copied to
    if "://" in data.root and not data.root.startswith("file://"):
        path = companion_path(set_name, split)
        url = f"{data.root.rstrip('/')}/{path}"
        write_bytes(folder / path, fetch_bytes(url, data.source, source.dataset.files.get(path)))
    found = read_companion(folder, set_name, split)
    if not isinstance(found, kind):
        raise CompanionError(f"{set_name}/{split} has {type(found).__name__} beside it, not {kind.__name__}")
    return found


def column(source: Source, set_name: str, split: str, name: str) -> Iterator[tuple[str, object]]:
    """Yield key and one field of every sample of a split."""
    for shard in source.dataset.split(set_name, split).shards:
        rows = read_rows(source.parquet(shard), ["key", name] if name != "key" else ["key"])
        yield from zip(rows["key"].to_pylist(), rows[name].to_pylist(), strict=True)


def require_labels(source: Source, set_name: str, split: str, labelled: Collection[str]) -> None:
    """Raise `DataError`, naming some, where samples of a split are not among the keys that have labels."""
    absent = [key for key, _ in column(source, set_name, split, "key") if key not in labelled]
    if absent:
        raise DataError(
            f"{companion_path(set_name, split)}: no label for {_some(absent)}, which the shards hold; "
            "shards and labels are of two builds: build them again"
        )


def refuse(what: str, wrong: Mapping[str, object], hint: str) -> None:
    """Raise `DataError`, naming some, where there are samples with wrong values."""
    if wrong:
        raise DataError(f"{what}: {_some([f'{key} = {value}' for key, value in wrong.items()])}; {hint}")


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
