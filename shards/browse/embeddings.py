"""The embedding sets that a page can search: vectors on disk, and the feature sets of the dataset, opened when used."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from shards.dataset import FEATURES, Dataset
from shards.features import FeatureError, open_features
from shards.search.prepare import vectors_of_features
from shards.search.vectors import VectorError, VectorSet, open_vectors, read_facts


@dataclass(frozen=True)
class EmbeddingSet:
    """The vectors of one model, and which one it was where that is known."""

    splits: Sequence[VectorSet]
    checkpoint: str = ""  # digest of its weights

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to search."""
        return not any(len(split) for split in self.splits)


class Embeddings:
    """Embedding sets by name. A set is opened, and prepared if it must be, by the first page that needs it."""

    def __init__(self, openers: Mapping[str, Callable[[], EmbeddingSet]]) -> None:
        self._openers, self._opened = dict(openers), dict[str, EmbeddingSet]()
        self._lock = threading.Lock()

    @property
    def names(self) -> list[str]:
        """The names of all sets."""
        return list(self._openers)

    def is_open(self, name: str) -> bool:
        """Return whether a set can be searched at once."""
        return name in self._opened

    def get(self, name: str) -> EmbeddingSet:
        """Return a set; raise `KeyError` for an unknown name, and `VectorError` or `FeatureError` for damaged files."""
        opener = self._openers[name]
        with self._lock:  # a second request waits for the first one's preparation
            if name not in self._opened:
                self._opened[name] = opener()
            return self._opened[name]


def find_embeddings(dataset: Dataset, folders: Sequence[Path], cache: Path) -> Embeddings:
    """Return the sets in `folders`, opened, and those in ROOT/features, of which vectors will be kept in `cache`.

    Raises `VectorError` where a folder has no vectors.
    """
    openers: dict[str, Callable[[], EmbeddingSet]] = {}
    for path in sorted((dataset.root / FEATURES).glob("*/feature.json")):
        openers[path.parent.name] = _opener_of_features(dataset, path.parent, cache)
    for folder in folders:
        openers[folder.resolve().name] = _opener_of_vectors(folder)
    embeddings = Embeddings(openers)
    for folder in folders:
        embeddings.get(folder.resolve().name)
    return embeddings


def _opener_of_features(dataset: Dataset, folder: Path, cache: Path) -> Callable[[], EmbeddingSet]:
    def opener() -> EmbeddingSet:
        features = open_features(folder)
        splits = vectors_of_features(features, dataset, cache)
        return EmbeddingSet(splits, str(features.extractor.get("checkpoint", "")))

    return opener


def _opener_of_vectors(folder: Path) -> Callable[[], EmbeddingSet]:
    def opener() -> EmbeddingSet:
        facts = read_facts(folder)
        if facts is None:
            raise VectorError(f"--vectors {folder}: no embeddings there: eval/search.py names its folder")
        return EmbeddingSet(list(open_vectors(folder)), str(facts.get("checkpoint", "")))

    return opener


UNUSABLE = (VectorError, FeatureError)  # what `Embeddings.get` raises for damaged files
