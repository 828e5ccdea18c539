"""What a benchmark is: where its samples are, what it needs embedded, and how it is scored.

    BENCHMARK = Benchmark(name="charades_ego", set_name="charades_ego", split="test", title="Charades-Ego: …",
                          read=read_labels, inputs=inputs, score=score)

`eval.run` evaluates one and writes its result; `eval.command` is its command line.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Generic, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from rich.console import Console

from eval.config import EvalConfig
from eval.embed import (
    EmbedSettings,
    SampleEmbeddings,
    TextEmbeddings,
    aggregate_windows,
    embed_split,
    embed_texts,
)
from eval.metrics.bootstrap import Interval, interval_of_mean
from eval.report.published import published
from eval.results import Confusion, Item, Missing, Score
from hiervl_train.checkpoint.open import OpenedCheckpoint
from hiervl_train.distributed import DistributedContext
from shards.dataset import read_rows
from shards.sources import Source

TRAIN = "train"  # the split that a probe learns from
T = TypeVar("T")  # a benchmark's questions or labels
logger = logging.getLogger(__name__)


class BenchmarkError(RuntimeError):
    """Nothing in a benchmark can be scored; the message names the set and the first reason."""

    exit_code: ClassVar[int] = 1


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What a benchmark needs embedded."""

    texts: Sequence[str]
    keys: Collection[str] | None = None  # samples of the benchmark's split; None: all
    train_keys: Collection[str] | None = None  # samples of the set's training split; None: none


@dataclass(frozen=True, kw_only=True, eq=False)
class Embeddings:
    """The embeddings of a benchmark's inputs."""

    samples: SampleEmbeddings
    texts: TextEmbeddings
    train: SampleEmbeddings | None = None


@dataclass(frozen=True, kw_only=True)
class BenchmarkOutput:
    """What scoring a benchmark returns."""

    scores: list[Score]
    items: list[Item]
    missing: list[Missing]
    of: int  # items in the benchmark; the share of missing ones decides the exit code
    name: str | None = None  # of the benchmark, if a file of questions has its own
    curves: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    curve_axes: dict[str, tuple[str, str]] = field(default_factory=dict)  # curve → titles of its axes, with units
    confusion: Confusion | None = None


@dataclass(frozen=True, kw_only=True)
class Context:
    """A checkpoint, a dataset and the settings of one evaluation, on every rank."""

    config: EvalConfig
    settings: EmbedSettings
    opened: OpenedCheckpoint
    source: Source
    ranks: DistributedContext
    set_name: str
    split: str
    console: Console

    def embed(self, inputs: Inputs) -> Embeddings | None:
        """Return the embeddings of the inputs on the first rank, None on the others; called by all ranks."""
        samples = self._embed_split(self.split, inputs.keys)
        train = self._embed_split(TRAIN, inputs.train_keys) if inputs.train_keys is not None else None
        texts = embed_texts(
            self.opened.model,
            self.opened.tokenizer,
            inputs.texts,
            self.settings,
            ranks=self.ranks,
            cache=self.config.cache,
            digest=self.opened.digest,
        )
        if samples is None or texts is None:
            return None
        return Embeddings(samples=samples, texts=texts, train=train)

    def aggregate(self, windows_NKD: np.ndarray) -> np.ndarray:
        """Return the embeddings (N, D) of long samples from those of their windows in temporal order."""
        return aggregate_windows(self.opened.model, windows_NKD, self.settings.speed, self.ranks.device)

    def captions(self) -> dict[str, str]:
        """Return the text of each sample of the split by key."""
        captions: dict[str, str] = {}
        for shard in self.source.dataset.split(self.set_name, self.split).shards:
            table = read_rows(self.source.parquet(shard), ["key", "text"])
            captions.update(zip(table["key"].to_pylist(), table["text"].to_pylist(), strict=True))
        return captions

    def missing(self, samples: SampleEmbeddings, key: str, *, item: str | None = None) -> Missing:
        """Return why a sample has no embedding, from the loader or the build's ledger; `item` its id if not `key`."""
        if key in samples.failed:
            reason = samples.failed[key]
        else:
            ledger_reason = self._ledger.get(key)
            reason = f"not in the shards: {ledger_reason}" if ledger_reason else "not in the shards"
        return Missing(item=item or key, reason=reason if item in (None, key) else f"{key}: {reason}")

    def mean_score(
        self, benchmark: str, name: str, values_N: np.ndarray, *, of: int, chance: float | None = None, tied: int = 0
    ) -> Score:
        """Return a score that is the mean of items' values (percent), with its bootstrap interval."""
        interval = interval_of_mean(values_N, seed=self.config.seed, resamples=self.config.resamples)
        value = float(values_N.mean())
        return self.score(benchmark, name, value, interval, items=len(values_N), of=of, chance=chance, tied=tied)

    def score(
        self,
        benchmark: str,
        name: str,
        value: float,
        interval: Interval | None,
        *,
        items: int,
        of: int,
        chance: float | None = None,
        tied: int = 0,
    ) -> Score:
        """Return a score with its published values; `value` and `chance`, that of random scores, are in percent."""
        return Score(
            name=name,
            value=value,
            low=interval.low if interval else None,
            high=interval.high if interval else None,
            chance=chance,
            items=items,
            of=of,
            tied=tied,
            published=published(benchmark, name, of=of),
        )

    def _embed_split(self, split: str, keys: Collection[str] | None) -> SampleEmbeddings | None:
        samples = embed_split(
            self.opened.model,
            self.source,
            self.set_name,
            split,
            self.settings,
            ranks=self.ranks,
            keys=keys,
            cache=self.config.cache,
            digest=self.opened.digest,
        )
        if samples is not None:
            encoded = f"{samples.encoded:,} clips or windows encoded" if samples.encoded else "all from the cache"
            failed = f", {len(samples.failed):,} failed" if samples.failed else ""
            self.console.print(f"  {self.set_name}/{split}: {len(samples.keys):,} samples, {encoded}{failed}")
        return samples

    @cached_property
    def _ledger(self) -> dict[str, str]:
        """Key → why the build did not pack a sample of this set; empty if the dataset has no ledger."""
        path = Path(self.source.dataset.root) / "ledger.parquet"
        if not path.exists():
            return {}
        try:
            table = pq.read_table(path, columns=["set", "item", "status", "reason"])
            table = table.filter((pc.field("set") == self.set_name) & (pc.field("status") != "packed"))
        except (OSError, pa.ArrowException) as error:
            logger.warning("%s: cannot be read, missing samples have no reason: %s", path, error)
            return {}
        return dict(zip(table["item"].to_pylist(), table["reason"].to_pylist(), strict=True))


@dataclass(frozen=True, kw_only=True)
class Benchmark(Generic[T]):
    """A benchmark over questions or labels of type `T`."""

    name: str
    set_name: str
    split: str
    title: str
    read: Callable[[Context], T]  # the questions or labels, on every rank
    inputs: Callable[[Context, T], Inputs]  # what to embed for them, on every rank
    score: Callable[[Context, T, Embeddings], BenchmarkOutput]  # on the first rank

    def evaluate(self, context: Context) -> BenchmarkOutput | None:
        """Return the benchmark's output on the first rank, None on the others; called by all ranks.

        Raises `CompanionError` for unusable questions or labels, `EmbedError` if embedding fails, and `BenchmarkError`
        if nothing can be scored.
        """
        task = self.read(context)
        embeddings = context.embed(self.inputs(context, task))
        return None if embeddings is None else self.score(context, task, embeddings)
