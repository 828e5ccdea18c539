"""Finds the samples nearest to a text, or to another sample, by the cosine of their embeddings.

Shapes in names: N samples, D width of the shared space.
"""

from __future__ import annotations

import bisect
import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from rich.console import Console
from rich.progress import Progress

from eval.embed import EmbedSettings, aggregate_windows, embed_split, embed_texts
from hiervl_train.checkpoint.open import OpenedCheckpoint
from hiervl_train.distributed import DistributedContext
from shards.dataset import Dataset, read_rows
from shards.schema import set_spec
from shards.sources import Source

_KEYS_COMPARED = 2000  # neighbours of an unknown key in sorted order, among which the closest one is searched


class SearchError(ValueError):
    """A search for an unknown set or sample; the message names what the dataset has instead."""

    exit_code: ClassVar[int] = 2


@dataclass(frozen=True, kw_only=True, eq=False)
class EmbeddedSet:
    """The embedded samples of a split."""

    set_name: str
    split: str
    keys: list[str]
    vectors_ND: np.ndarray  # float32, of length 1


@dataclass(frozen=True, kw_only=True, eq=False)
class Searcher:
    """Embeds splits and queries with one checkpoint; all ranks call its methods together."""

    opened: OpenedCheckpoint
    source: Source
    settings: EmbedSettings
    ranks: DistributedContext
    cache: Path | None

    def embed_set(self, set_name: str, split: str, *, keys: Sequence[str] | None = None) -> EmbeddedSet | None:
        """Return the embeddings of a split's samples, or of those with `keys`; None on other ranks than the first.

        The windows of long samples are aggregated. Samples that cannot be embedded are left out.
        """
        with Progress(console=Console(stderr=True), transient=True, disable=not self.ranks.is_main) as bar:
            task = bar.add_task(f"{set_name}/{split}", total=None)
            found = embed_split(
                self.opened.model,
                self.source,
                set_name,
                split,
                self.settings,
                ranks=self.ranks,
                keys=keys,
                cache=self.cache if keys is None else None,
                digest=self.opened.digest,
                progress=lambda done, of: bar.update(task, completed=done, total=of),
            )
        if found is None:
            return None
        vectors_ND = found.vectors
        if set_spec(set_name).is_long:
            vectors_ND = aggregate_windows(self.opened.model, vectors_ND, self.settings.speed, self.ranks.device)
        return EmbeddedSet(set_name=set_name, split=split, keys=found.keys, vectors_ND=_unit(vectors_ND))

    def embed_query(self, query: Query, embedded: Mapping[tuple[str, str], EmbeddedSet | None]) -> np.ndarray | None:
        """Return the embedding (D,) of a query; None on other ranks than the first.

        `embedded` are the splits that are embedded already. Raises `SearchError` for an unknown or unusable sample.
        """
        if query.text:
            texts = embed_texts(self.opened.model, self.opened.tokenizer, [query.text], self.settings, ranks=self.ranks)
            return None if texts is None else texts.of([query.text])[0]
        place = find_split(self.source, query.key)
        own = embedded[place] if place in embedded else self.embed_set(*place, keys=[query.key])
        if own is None:
            return None
        if query.key not in own.keys:
            raise SearchError(f"--key: {query.key} could not be embedded, or its video is withdrawn")
        vector_D: np.ndarray = own.vectors_ND[own.keys.index(query.key)]
        return vector_D


@dataclass(frozen=True, kw_only=True)
class Hit:
    """A sample among the nearest ones."""

    key: str
    set_name: str
    split: str
    score: float  # cosine of its embedding and the query's


@dataclass(frozen=True, kw_only=True)
class Query:
    """A text, or the key of a sample."""

    text: str = ""
    key: str = ""


def nearest(
    query_D: np.ndarray, embedded: Sequence[EmbeddedSet], top: int, *, exclude: str = ""
) -> dict[str, list[Hit]]:
    """Return set → its `top` nearest samples, nearest first, ties in the order of keys.

    The splits of one set are ranked together. The sample with the key `exclude` is left out.
    """
    query_D = _unit(query_D[None])[0]
    found: dict[str, list[Hit]] = {}
    for own in embedded:
        scores_N = own.vectors_ND @ query_D
        # One more than `top`, as one may be excluded, and all that tie with the last one, until keys are sorted.
        edge = np.partition(scores_N, -top - 1)[-top - 1] if len(scores_N) > top + 1 else -np.inf
        found.setdefault(own.set_name, []).extend(
            Hit(key=own.keys[index], set_name=own.set_name, split=own.split, score=float(scores_N[index]))
            for index in np.flatnonzero(scores_N >= edge)
            if own.keys[index] != exclude
        )
    return {name: sorted(hits, key=lambda hit: (-hit.score, hit.key))[:top] for name, hits in found.items()}


def choose_splits(dataset: Dataset, wanted: str) -> list[tuple[str, str]]:
    """Return the (set, split) pairs that a list such as `clips,summaries/val` names; all of clips and summaries for "".

    Raises `SearchError` for a name that the dataset does not have.
    """
    known = [(set_name, split) for set_name, split, _ in dataset.splits()]
    names = [name.strip() for name in wanted.split(",") if name.strip()]
    if not names:
        return [pair for pair in known if not set_spec(pair[0]).is_benchmark] or known
    for name in names:
        if not any(name in (set_name, f"{set_name}/{split}") for set_name, split in known):
            listed = ", ".join(f"{set_name}/{split}" for set_name, split in known)
            raise SearchError(f"--sets: {dataset.root} has no {name!r}; it has {listed}")
    return [(set_name, split) for set_name, split in known if {set_name, f"{set_name}/{split}"} & set(names)]


def find_split(source: Source, key: str) -> tuple[str, str]:
    """Return the set and the split of a sample; raise `SearchError` with the most similar key for an unknown one."""
    similar = []
    for set_name, split_name, split in source.dataset.splits():
        for shard in split.shards:
            keys = read_rows(source.parquet(shard), ["key"])["key"].to_pylist()
            if key in keys:
                return set_name, split_name
            similar += [found] if (found := closest_key(key, keys)) is not None else []
    found = closest_key(key, similar)
    hint = f"; the most similar key is {found}" if found is not None else ": it is empty"
    raise SearchError(f"--key: {source.dataset.root} has no sample {key!r}{hint}")


def closest_key(key: str, keys: Sequence[str]) -> str | None:
    """Return the most similar key, comparing only the neighbours of `key` in sorted order."""
    ranked = sorted(keys)
    middle = bisect.bisect(ranked, key)
    neighbours = ranked[max(0, middle - _KEYS_COMPARED // 2) : middle + _KEYS_COMPARED // 2]

    def similarity(known: str) -> tuple[float, int]:
        matcher = difflib.SequenceMatcher(None, key, known, autojunk=False)
        start = matcher.get_matching_blocks()[0]
        return matcher.ratio(), start.size if start.a == start.b == 0 else 0  # then by the length of the common start

    return max(neighbours, key=similarity, default=None)


def _unit(vectors_ND: np.ndarray) -> np.ndarray:
    """Return rows of length 1 in float32; rows of length 0 stay."""
    lengths_N1 = np.linalg.norm(vectors_ND.astype(np.float64), axis=1, keepdims=True)
    unit_ND: np.ndarray = (vectors_ND / np.maximum(lengths_N1, 1e-12)).astype(np.float32)
    return unit_ND
