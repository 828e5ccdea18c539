"""Compares the labels of a set with the samples in its shards."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

from hiervl_train.data import DataError
from shards.companions import companion_path
from shards.dataset import read_rows
from shards.sources import Source

_SHOWN = 5  # keys that a message lists


def column(source: Source, set_name: str, split: str, name: str) -> Iterator[tuple[str, object]]:
    """Yield key and one field of every sample of a split."""
    for shard in source.dataset.split(set_name, split).shards:
        rows = read_rows(source.parquet(shard), ["key", name] if name != "key" else ["key"])
        yield from zip(rows["key"].to_pylist(), rows[name].to_pylist(), strict=True)


def require_labels(source: Source, set_name: str, split: str, labelled: Collection[str]) -> None:
    """Raise `DataError`, naming some keys, where samples of a split have no label."""
    unlabelled = [key for key, _ in column(source, set_name, split, "key") if key not in labelled]
    if unlabelled:
        raise DataError(
            f"{companion_path(set_name, split)}: no label for {_some(unlabelled)}, which the shards contain; "
            "shards and labels are from different builds: rebuild them"
        )


def refuse(what: str, wrong: Mapping[str, object], hint: str) -> None:
    """Raise `DataError`, naming some keys, where there are samples with wrong values."""
    if wrong:
        raise DataError(f"{what}: {_some([f'{key} = {value}' for key, value in wrong.items()])}; {hint}")


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
