"""Reads the questions or labels that lie beside a benchmark's shards, wherever the dataset is."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from shards.companions import Companion, CompanionError, companion_path, read_companion
from shards.config import SourceConfig
from shards.files import write_bytes
from shards.sources import Source, fetch_bytes

Kind = TypeVar("Kind", bound=Companion)


def read_beside(
    kind: type[Kind], source: Source, root: str | Path, set_name: str, split: str, config: SourceConfig
) -> Kind:
    """Return the companion of a split of the dataset at `root`, a path or URL, which `source` has opened.

    Raises `CompanionError` where there is none, it is malformed, or of another kind than asked for.
    """
    folder = source.dataset.root  # of a URL it is the folder that its manifest was copied to
    if "://" in str(root) and not str(root).startswith("file://"):
        path = companion_path(set_name, split)
        data = fetch_bytes(f"{str(root).rstrip('/')}/{path}", config, source.dataset.files.get(path))
        write_bytes(folder / path, data)
    found = read_companion(folder, set_name, split)
    if not isinstance(found, kind):
        raise CompanionError(f"{set_name}/{split} has {type(found).__name__} beside it, not {kind.__name__}")
    return found
