"""Finds the samples nearest to a text, or to another sample, by the cosine of their embeddings.

Every split is embedded once, into unit vectors on disk (`shards.search.vectors`); later searches read only those.

Shapes in names: N samples, D width of the shared space.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from rich.console import Console
from rich.progress import Progress

from configs.loading import to_dict
from eval.embed import EmbedSettings, aggregate_windows, embed_split, embed_texts
from hiervl_train.checkpoint.open import OpenedCheckpoint
from hiervl_train.collectives import broadcast_json
from hiervl_train.distributed import DistributedContext
from shards.dataset import Dataset, Shard, read_rows
from shards.schema import set_spec
from shards.search.catalog import Catalog, Found, open_catalog
from shards.search.moments import Moment, join_passes
from shards.search.vectors import VectorSet, finish_vectors, finished, nearest, read_facts, write_vectors
from shards.sources import Source

# Settings that change how fast samples are read, and no embedding.
_READING = ("workers", "prefetch", "worker_timeout_seconds", "max_consecutive_failures", "source", "part_samples")
_FETCHED = 4  # as many hits are fetched for each that is shown, since some are joined or withdrawn


class SearchError(ValueError):
    """A search for an unknown set or sample; the message names what the dataset has instead."""

    exit_code: ClassVar[int] = 2


@dataclass(frozen=True, kw_only=True)
class Query:
    """A text, or the key of a sample."""

    text: str = ""
    key: str = ""


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a search found."""

    moments: dict[str, list[Moment]]  # set → nearest first
    own: Found | None  # the sample that was searched for
    samples: int  # that were compared


@dataclass(frozen=True, kw_only=True, eq=False)
class Searcher:
    """Embeds splits and queries with one checkpoint; all ranks call its methods together."""

    opened: OpenedCheckpoint
    source: Source
    settings: EmbedSettings
    ranks: DistributedContext
    cache: Path  # folder where embeddings and vectors are kept
    keeps: bool = True  # embeddings too, so that an interrupted search goes on where it was

    @property
    def folder(self) -> Path:
        """The folder of the vectors: named by everything that they depend on but the shards."""
        settings = to_dict(self.settings)
        for name in _READING:
            settings.pop(name, None)
        identity = [1, str(self.source.dataset.root.resolve()), self.opened.digest, to_dict(self.opened.model.config)]
        text = json.dumps([*identity, settings, self.ranks.device.type], sort_keys=True)
        return self.cache / f"vectors-{hashlib.sha256(text.encode()).hexdigest()[:16]}"

    def vectors(self, set_name: str, split: str) -> VectorSet | None:
        """Return the vectors of a split, embedding it first if that has not been done; None on other ranks.

        Samples that cannot be embedded have none.
        """
        entry = self.source.dataset.split(set_name, split)
        is_made = self.ranks.is_main and finished(self.folder, set_name, split) == entry.fingerprint
        is_made = is_made and not self._returned(f"{set_name}/{split}")
        if not broadcast_json(is_made, self.ranks.control):
            embedded = self._embed(self.source, set_name, split, is_kept=self.keeps)
            if embedded is not None:
                self._write(set_name, split, *embedded)
        return VectorSet(self.folder / set_name / split, set_name, split) if self.ranks.is_main else None

    def query(self, query: Query, own: Found | None, shard: str) -> np.ndarray | None:
        """Return the embedding (D,) of a query; None on other ranks than the first.

        `own` and the name of its shard are what the query's key stands for; other ranks may pass None. Raises
        `SearchError` for a sample that cannot be embedded.
        """
        if query.text:
            texts = embed_texts(self.opened.model, self.opened.tokenizer, [query.text], self.settings, ranks=self.ranks)
            return None if texts is None else texts.of([query.text])[0]
        stored = self._stored(own, shard) if own is not None else None
        place = [own.set_name, own.split, shard] if own is not None and stored is None else None
        place = broadcast_json(place, self.ranks.control)
        if place is None:
            return stored
        embedded = self._embed(self._only(*place), place[0], place[1], keys=[query.key])
        if embedded is None:
            return None
        keys, vectors_ND = embedded
        if query.key not in keys:
            raise SearchError(f"--key: {query.key} could not be embedded, or its video is withdrawn")
        vector_D: np.ndarray = vectors_ND[keys.index(query.key)]
        return vector_D

    def _stored(self, own: Found, shard: str) -> np.ndarray | None:
        fingerprint = self.source.dataset.split(own.set_name, own.split).fingerprint
        if finished(self.folder, own.set_name, own.split) != fingerprint:
            return None
        return VectorSet(self.folder / own.set_name / own.split, own.set_name, own.split).vector_of(own.key, shard)

    def _only(self, set_name: str, split: str, shard: str) -> Source:
        """Return the source with one shard in place of a split, so that no other index is read."""
        dataset = self.source.dataset
        entry = dataset.split(set_name, split)
        part = replace(entry, shards=tuple(each for each in entry.shards if each.name == shard))
        only = copy.copy(self.source)
        only.dataset = replace(dataset, sets={**dataset.sets, set_name: {**dataset.sets[set_name], split: part}})
        return only

    def _embed(
        self, source: Source, set_name: str, split: str, *, keys: Sequence[str] | None = None, is_kept: bool = False
    ) -> tuple[list[str], np.ndarray] | None:
        """Return keys and embeddings (N, D) on the first rank; the windows of long samples are aggregated."""
        with Progress(console=Console(stderr=True), transient=True, disable=not self.ranks.is_main) as bar:
            task = bar.add_task(f"{set_name}/{split}", total=None)
            found = embed_split(
                self.opened.model,
                source,
                set_name,
                split,
                self.settings,
                ranks=self.ranks,
                keys=keys,
                cache=self.cache if is_kept else None,
                digest=self.opened.digest,
                progress=lambda done, of: bar.update(task, completed=done, total=of),
            )
        if found is None:
            return None
        vectors_ND = found.vectors
        if set_spec(set_name).is_long:
            vectors_ND = aggregate_windows(self.opened.model, vectors_ND, self.settings.speed, self.ranks.device)
        return found.keys, vectors_ND.astype(np.float32, copy=False)

    def _write(self, set_name: str, split: str, keys: Sequence[str], vectors_ND: np.ndarray) -> None:
        """Write vectors shard by shard; `keys` are in the order of the shards."""
        entry, begin = self.source.dataset.split(set_name, split), 0
        for shard in entry.shards:
            there = _keys_of(self.source, shard)
            end = begin
            while end < len(keys) and keys[end] in there:
                end += 1
            write_vectors(self.folder / set_name / split, shard.name, keys[begin:end], vectors_ND[begin:end])
            begin = end
        assert begin == len(keys), "embeddings come in the order of the shards"
        withdrawn: dict[str, Any] = dict((read_facts(self.folder) or {}).get("withdrawn") or {})
        withdrawn[f"{set_name}/{split}"] = sorted(self.source.dataset.denylist)
        facts = {"checkpoint": self.opened.digest, "withdrawn": withdrawn}
        finish_vectors(self.folder, set_name, split, entry.fingerprint, **facts)

    def _returned(self, split: str) -> bool:
        """Return whether a video that was withdrawn when the vectors were made no longer is."""
        withdrawn = ((read_facts(self.folder) or {}).get("withdrawn") or {}).get(split) or []
        return not set(withdrawn) <= self.source.dataset.denylist


def find_key(source: Source, catalog: Catalog, key: str) -> Found:
    """Return the sample with a key; raise `SearchError` with the most similar key for an unknown one."""
    found = catalog.sample(key)
    if found is None:
        near = catalog.closest_key(key)
        hint = f"; the most similar key is {near}" if near is not None else ": it is empty"
        raise SearchError(f"--key: {source.dataset.root} has no sample {key!r}{hint}")
    if found.video_uid in source.dataset.denylist:
        raise SearchError(f"--key: {key} could not be embedded, or its video is withdrawn")
    return found


def run_search(
    searcher: Searcher, splits: Sequence[tuple[str, str]], query: Query, top: int
) -> tuple[Result, Catalog] | None:
    """Return what is nearest to a query in some splits, and the dataset's catalog; None on other ranks than the first.

    The splits of one set are ranked together. What two annotators said of the same seconds is one hit.
    """
    catalog, own, shard, problem = None, None, "", ""
    if searcher.ranks.is_main:
        catalog = _catalog(searcher.source)
        try:
            own = find_key(searcher.source, catalog, query.key) if query.key else None
            shard = catalog.shard_of(own) if own is not None else ""
        except SearchError as error:
            problem = str(error)
    problem = broadcast_json(problem, searcher.ranks.control)  # before anything is embedded
    if problem:
        raise SearchError(problem)
    vectors = [searcher.vectors(*pair) for pair in splits]
    query_D = searcher.query(query, own, shard)
    if query_D is None or catalog is None:
        return None
    searched = [one for one in vectors if one is not None]
    moments = join(catalog, searcher.source.dataset, query_D, searched, top, exclude=query.key)
    return Result(moments=moments, own=own, samples=sum(map(len, searched))), catalog


def join(
    catalog: Catalog,
    dataset: Dataset,
    query_D: np.ndarray,
    vectors: Sequence[VectorSet],
    top: int,
    *,
    exclude: str = "",
) -> dict[str, list[Moment]]:
    """Return set → its `top` nearest moments; withdrawn videos and the sample `exclude` are left out."""
    denied = dataset.denylist
    moments = {}
    for set_name, near in nearest(query_D, vectors, _FETCHED * top + 1).items():
        known = catalog.samples(each.key for each in near)
        hits = [
            (each.score, known[each.key])
            for each in near
            if each.key != exclude and each.key in known and known[each.key].video_uid not in denied
        ]
        moments[set_name] = join_passes(hits, top)
    return moments


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


def _catalog(source: Source) -> Catalog:
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("catalog", total=None, visible=False)
        return open_catalog(source, progress=lambda done, of: bar.update(task, completed=done, total=of, visible=True))


def _keys_of(source: Source, shard: Shard) -> frozenset[str]:
    return frozenset(read_rows(source.parquet(shard), ["key"], rows=shard.samples)["key"].to_pylist())
