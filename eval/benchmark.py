"""Runs one benchmark from the command line: opens what it needs, has it scored, writes result and report, says how.

Every entry of a benchmark (`python eval/egomcq.py --checkpoint C --shards ROOT …`) is `main` with its own function.
Exit codes: 0 done, 1 failed, 2 usage, 3 more items missing than `max_missing_fraction`, 130 interrupted.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from configs.loading import ConfigError, to_dict
from configs.revision import code_revision
from eval.config import EvalConfig, load_eval
from eval.embed import Embedded, EmbedError, EmbedSettings, Texts, aggregate, embed_split, embed_texts
from eval.metrics.bootstrap import Interval
from eval.report.published import published
from eval.report.write import write_report
from eval.results import Confusion, Item, Missing, Result, Score
from hiervl_train.checkpoint.open import OpenedCheckpoint, open_checkpoint
from hiervl_train.distributed import DistributedContext, DistributedError, broadcast_text, distributed_context
from hiervl_train.models import HierVL
from hiervl_train.models.released import CheckpointError
from hiervl_train.models.text import MissingPretrained
from hiervl_train.tokenizer import TokenizerError
from shards.dataset import read_rows
from shards.loader import LoaderError
from shards.order import OrderError
from shards.reading import SampleFailedError
from shards.schema import SchemaError
from shards.sources import Source, SourceError, open_source
from shards.stats import ShardError

EMBEDDED = Path(__file__).resolve().parent.parent / "configs" / "eval" / "embedded.yaml"
OK, FAILED, USAGE, MISSING, INTERRUPTED = 0, 1, 2, 3, 130
USAGE_ERRORS = (
    ConfigError,
    CheckpointError,
    DistributedError,
    MissingPretrained,
    OrderError,
    SchemaError,
    ShardError,
    TokenizerError,
)
FAILURES = (EmbedError, LoaderError, SampleFailedError, SourceError, ValueError, OSError)
logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class BenchmarkOutput:
    """What a benchmark's function returns on the first rank."""

    scores: list[Score]
    items: list[Item]
    missing: list[Missing]
    of: int  # items that the benchmark has; how many of them are missing decides the exit code
    name: str | None = None  # of the benchmark, where a file of questions has its own
    curves: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    confusion: Confusion | None = None


@dataclass(frozen=True, kw_only=True)
class Context:
    """What a benchmark's function works with, on every rank."""

    config: EvalConfig
    settings: EmbedSettings
    opened: OpenedCheckpoint
    source: Source
    ranks: DistributedContext
    set_name: str
    split: str
    console: Console

    @property
    def is_main(self) -> bool:
        """Whether this rank scores; the others only help to embed."""
        return self.ranks.is_main

    def embed(
        self, set_name: str | None = None, split: str | None = None, keys: Collection[str] | None = None
    ) -> Embedded | None:
        """Return the embeddings of a split, the benchmark's own by default; by all ranks, for the first one."""
        name, part = set_name or self.set_name, split or self.split
        found = embed_split(
            self.opened.model,
            self.source,
            name,
            part,
            self.settings,
            ranks=self.ranks,
            keys=keys,
            cache=self.config.cache,
            digest=self.opened.digest,
        )
        if found is not None:
            how = f"{found.encoded:,} clips or windows encoded" if found.encoded else "all kept from before"
            failed = f", {len(found.failed):,} failed" if found.failed else ""
            self.console.print(f"  {name}/{part}: {len(found.keys):,} samples, {how}{failed}")
        return found

    def texts(self, texts: Sequence[str]) -> Texts | None:
        """Return the embeddings of texts; by all ranks, for the first one."""
        return embed_texts(
            self.opened.model,
            self.opened.tokenizer,
            texts,
            self.settings,
            ranks=self.ranks,
            cache=self.config.cache,
            digest=self.opened.digest,
        )

    def aggregate(self, windows_NKD: np.ndarray) -> np.ndarray:
        """Return the embeddings (N, D) of long samples from those of their windows, in their order."""
        return pool(self.opened.model, windows_NKD, self.settings, self.ranks)

    def captions(self, set_name: str | None = None, split: str | None = None) -> dict[str, str]:
        """Return the text of each sample of a split by key."""
        found: dict[str, str] = {}
        for shard in self.source.dataset.split(set_name or self.set_name, split or self.split).shards:
            table = read_rows(self.source.parquet(shard), ["key", "text"])
            found.update(zip(table["key"].to_pylist(), table["text"].to_pylist(), strict=True))
        return found

    def why(self, embedded: Embedded, key: str) -> str:
        """Return why a sample has no embedding: as the loader said, or as the ledger of the build did."""
        if key in embedded.failed:
            return embedded.failed[key]
        reason = self._ledger.get(key)
        return f"not in the shards: {reason}" if reason else "not in the shards"

    def score(
        self, benchmark: str, name: str, value: float, interval: Interval | None, *, items: int, of: int, tied: int = 0
    ) -> Score:
        """Return a score beside its published figures."""
        return Score(
            name=name,
            value=float(value),
            low=interval.low if interval else None,
            high=interval.high if interval else None,
            items=items,
            of=of,
            tied=tied,
            published=published(benchmark, name, of=of),
        )

    @cached_property
    def _ledger(self) -> dict[str, str]:
        """Why samples of this set were not packed, where the build's ledger lies beside the shards."""
        path = Path(self.source.dataset.root) / "ledger.parquet"
        try:
            table = pq.read_table(path, columns=["set", "item", "status", "reason"])
        except (OSError, ValueError):
            return {}
        table = table.filter((pc.field("set") == self.set_name) & (pc.field("status") != "packed"))
        return dict(zip(table["item"].to_pylist(), table["reason"].to_pylist(), strict=True))


def has_order(model: HierVL) -> bool:
    """Return whether the order of windows means anything to a model: not where their mean is taken."""
    settings = model.config.aggregator
    return settings is not None and settings.kind != "average"


def pool(model: HierVL, windows_NKD: np.ndarray, settings: EmbedSettings, here: DistributedContext) -> np.ndarray:
    """Return the embeddings (N, D) of long samples by the model's aggregator, in float32.

    A model without one, or whose aggregator is the mean, takes the mean in float64: then orders of windows tie, as they
    should, in place of differing by rounding.
    """
    if not has_order(model):
        return windows_NKD.astype(np.float64).mean(axis=1)
    return aggregate(model, windows_NKD, settings.speed, here.device)


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """A benchmark: where its samples lie, and what scores them (on the first rank; None on the others)."""

    name: str
    set_name: str
    split: str
    evaluate: Callable[[Context], BenchmarkOutput | None]
    title: str = ""


@dataclass(frozen=True, kw_only=True)
class BenchmarkRun:
    """One benchmark that was run: on the first rank with its result."""

    code: int
    result: Result | None = None
    page: Path | None = None


def main(benchmark: Benchmark, argv: Sequence[str] | None = None) -> int:
    """Run a benchmark as the command line asks; return the exit code."""
    parser = argument_parser(f"{benchmark.name}.py", benchmark.title)
    parser.add_argument("--questions", metavar="FILE", help="questions in place of the benchmark's own")
    parser.add_argument("--set", metavar="SET", help=f"whose samples are meant (default: {benchmark.set_name})")
    parser.add_argument("--split", help=f"(default: {benchmark.split})")
    arguments = parser.parse_intermixed_args(argv)
    flags = [f"{n}={v}" for n in ("questions", "set", "split") if (v := getattr(arguments, n)) is not None]

    def read() -> EvalConfig:
        return load_eval(benchmark.name, config_file(arguments), overrides(arguments, flags))

    def work(here: DistributedContext, console: Console) -> int:
        config = read()
        opened = open_for(config, here)
        done = run(benchmark, config, opened, here, console)
        if done.result is not None:
            console.print(scores_table([done.result]))
            console.print(f"{done.page}", soft_wrap=True, markup=False)
        return done.code

    return guarded(work, read)


def argument_parser(name: str, title: str) -> argparse.ArgumentParser:
    """Return the arguments that every entry takes."""
    parser = argparse.ArgumentParser(prog=name, description=title)
    parser.add_argument("--checkpoint", help="ours (a folder), a run's folder, or a released .pth")
    parser.add_argument("--shards", metavar="ROOT", help="the dataset: a folder or URL (default: the embedded one)")
    parser.add_argument("--config", type=Path, help="YAML of EvalConfig, as configs/eval/hiervl_sa.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="as frames=16 or bf16=true")
    return parser


def config_file(arguments: argparse.Namespace) -> Path | None:
    """Return the file of the configuration: where neither it nor a dataset is named, that of the embedded dataset."""
    is_named = arguments.shards is not None or any(word.startswith("shards=") for word in arguments.overrides)
    return EMBEDDED if arguments.config is None and not is_named else arguments.config


def overrides(arguments: argparse.Namespace, flags: Sequence[str] = ()) -> list[str]:
    """Return what the command line says as `key=value`."""
    named = [f"{n}={v}" for n in ("checkpoint", "shards") if (v := getattr(arguments, n)) is not None]
    return [*named, *flags, *arguments.overrides]


def guarded(work: Callable[[DistributedContext, Console], int], read: Callable[[], EvalConfig]) -> int:
    """Join the ranks and do `work` on each; return its exit code, or that of what went wrong, after saying it."""
    errors = Console(stderr=True, highlight=False, soft_wrap=True)
    console = Console(highlight=False)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    try:
        settings = read()
    except ConfigError as error:
        errors.print(f"[red]cannot run:[/] {escape(str(error))}")
        return USAGE
    try:
        with distributed_context(settings.distributed) as here:
            try:
                code = int(broadcast_text(str(work(here, console)), here.control) or FAILED)  # as the first rank says
            except USAGE_ERRORS as error:
                errors.print(f"[red]cannot run:[/] {escape(str(error))}")
                code = USAGE
            except FAILURES as error:
                logger.debug("failed", exc_info=True)
                errors.print(f"[red]failed:[/] {escape(f'{type(error).__name__}: {error}')}")
                code = FAILED
            if code and here.world > 1:
                sys.exit(code)
            return code
    except KeyboardInterrupt:
        errors.print("interrupted; embeddings that were finished are kept")
        return INTERRUPTED


def open_for(config: EvalConfig, here: DistributedContext) -> OpenedCheckpoint:
    """Return the configured checkpoint on this rank's device; raise `ConfigError` where none is named."""
    if config.checkpoint is None:
        raise ConfigError("checkpoint is not set: --checkpoint FOLDER, a run's folder, or a released .pth")
    return open_checkpoint(config.checkpoint, config.opening(), device=here.device)


def run(
    benchmark: Benchmark, config: EvalConfig, opened: OpenedCheckpoint, here: DistributedContext, console: Console
) -> BenchmarkRun:
    """Score one benchmark and write its result and report; on the first rank the result is returned."""
    began = time.perf_counter()
    source = open_source(config.shards, config.source)
    context = Context(
        config=config,
        settings=config.embedding(opened),
        opened=opened,
        source=source,
        ranks=here,
        set_name=config.set or benchmark.set_name,
        split=config.split or benchmark.split,
        console=console,
    )
    if here.is_main:
        console.print(f"{benchmark.name}: {opened.path}", soft_wrap=True, markup=False)
    found = benchmark.evaluate(context)
    if found is None:
        return BenchmarkRun(code=OK)
    name = found.name or benchmark.name
    result = Result(
        benchmark=name,
        set_name=context.set_name,
        split=context.split,
        root=str(config.shards),
        checkpoint=str(opened.path),
        checkpoint_digest=opened.digest,
        fingerprint=source.dataset.split(context.set_name, context.split).fingerprint,
        settings=_settings(context),
        scores=found.scores,
        items=found.items,
        missing=found.missing,
        curves=found.curves,
        confusion=found.confusion,
        seconds=time.perf_counter() - began,
        machine=_machine(here),
        made_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    folder = config.folder(opened, name)
    page = result.save(folder)
    if config.report:
        page = write_report(result, folder, root=config.shards, source=config.source)
    share = len(found.missing) / max(1, found.of)
    if found.missing:
        console.print(
            f"[yellow]{len(found.missing):,} of {found.of:,} items could not be scored[/], as "
            f"{escape(f'{found.missing[0].item}: {found.missing[0].reason}')}",
            soft_wrap=True,
        )
    return BenchmarkRun(code=MISSING if share > config.max_missing_fraction else OK, result=result, page=page)


def scores_table(results: Sequence[Result]) -> Table:
    """Return the scores of results as a table for the terminal, beside those published of HierVL-SA."""
    table = Table(box=SIMPLE)
    for column in ("benchmark", "score", "%", "95 %", "scored", "tied", "HierVL-SA"):
        is_text = column in ("benchmark", "score")
        table.add_column(column, justify="left" if is_text else "right", no_wrap=not is_text)
    for result in results:
        for index, score in enumerate(result.scores):
            interval = "" if score.low is None or score.high is None else f"{score.low:.1f}–{score.high:.1f}"
            theirs = score.published.get("HierVL-SA")
            table.add_row(
                escape(result.benchmark) if index == 0 else "",
                escape(score.name),
                f"{score.value:.1f}",
                interval,
                f"{score.items:,}/{score.of:,}",
                f"{score.tied:,}" if score.tied else "",
                "" if theirs is None else f"{theirs:.1f}",
            )
    return table


def _settings(context: Context) -> dict[str, Any]:
    """Return what the scores depend on, as it was resolved."""
    config = context.config
    is_ordered = has_order(context.opened.model)
    return {
        **to_dict(context.settings),
        "compat": to_dict(config.compat),
        "aggregation": "self-attention" if is_ordered else "mean of the windows",
        "questions": str(config.questions) if config.questions else None,
        "options": config.options,
        "seed": config.seed,
        "resamples": config.resamples,
        "probe": to_dict(config.probe),
        "model": to_dict(context.opened.model.config),
        "revision": code_revision(),
    }


def _machine(here: DistributedContext) -> str:
    device = torch.cuda.get_device_name(here.device) if here.device.type == "cuda" else "CPU"
    return f"{device}, {here.world} rank{'s' if here.world > 1 else ''}, torch {torch.__version__}"
