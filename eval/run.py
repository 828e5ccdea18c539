"""Evaluates one benchmark with an opened checkpoint and writes its result and report."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from configs.cli import ExitCode
from configs.loading import ConfigError, to_dict
from configs.revision import code_revision
from eval.benchmark import Benchmark, BenchmarkOutput, Context
from eval.config import EvalConfig
from eval.embed import is_order_sensitive
from eval.report.write import write_report
from eval.results import Result, Score
from hiervl_train.checkpoint.open import OpenedCheckpoint, open_checkpoint
from hiervl_train.distributed import DistributedContext
from shards.sources import open_source


@dataclass(frozen=True, kw_only=True)
class BenchmarkRun:
    """One evaluated benchmark; `result` and `page` are None on other ranks than the first."""

    code: ExitCode
    result: Result | None = None
    page: Path | None = None  # the report, or the result's folder without one


def open_configured(config: EvalConfig, ranks: DistributedContext) -> OpenedCheckpoint:
    """Return the configured checkpoint on this rank's device; raise `ConfigError` if none is configured."""
    if config.checkpoint is None:
        raise ConfigError("checkpoint is not set: --checkpoint FOLDER, a run's folder, or a released .pth")
    return open_checkpoint(config.checkpoint, config.opening(), device=ranks.device)


def run_benchmark(
    benchmark: Benchmark[Any], config: EvalConfig, opened: OpenedCheckpoint, ranks: DistributedContext, console: Console
) -> BenchmarkRun:
    """Score a benchmark and write its result and report; called by all ranks. Raises as `Benchmark.evaluate` does."""
    began = time.perf_counter()
    context = Context(
        config=config,
        settings=config.embedding(opened),
        opened=opened,
        source=open_source(config.data.root, config.data.source),
        ranks=ranks,
        set_name=config.data.set or benchmark.set_name,
        split=config.data.split or benchmark.split,
        console=console,
    )
    if ranks.is_main:
        console.print(f"{benchmark.name}: {opened.path}", soft_wrap=True, markup=False)
    output = benchmark.evaluate(context)
    if output is None:
        return BenchmarkRun(code=ExitCode.OK)
    result = _result(output.name or benchmark.name, context, output, seconds=time.perf_counter() - began)
    folder = config.folder(opened, result.benchmark)
    page = result.save(folder)
    if config.report:
        page = write_report(result, folder, root=config.data.root, source=config.data.source)
    if output.missing:
        first = output.missing[0]
        console.print(
            f"[yellow]{len(output.missing):,} of {output.of:,} items could not be scored[/], such as "
            f"{escape(f'{first.item}: {first.reason}')}",
            soft_wrap=True,
        )
    missing_fraction = len(output.missing) / max(1, output.of)
    code = ExitCode.TOO_MANY_FAILURES if missing_fraction > config.max_missing_fraction else ExitCode.OK
    return BenchmarkRun(code=code, result=result, page=page)


def scores_table(results: Sequence[Result]) -> Table:
    """Return the scores of results as a table that fits a terminal of 80 columns, a section for each benchmark.

    The columns `tied` and `HierVL-SA` (published) are left out where they would be empty.
    """
    rows = [(result, [_cells(score) for score in result.scores]) for result in results]
    columns = ["score", "%", "95 %", "chance", "scored", "tied", "HierVL-SA"]
    shown = [
        index
        for index, name in enumerate(columns)
        if name not in ("tied", "HierVL-SA") or any(cells[index] for _, scores in rows for cells in scores)
    ]
    table = Table(box=SIMPLE)
    for index in shown:
        table.add_column(columns[index], justify="right" if index else "left", no_wrap=index > 0)
    for result, scores in rows:
        table.add_section()
        table.add_row(f"[bold]{escape(result.benchmark)}[/]")
        for cells in scores:
            table.add_row(*(cells[index] for index in shown))
    return table


def _cells(score: Score) -> list[str]:
    """Return a score's row: name, value, interval, chance, items, ties and HierVL-SA's published value, as text."""
    published = score.published.get("HierVL-SA")
    return [
        escape(score.name),
        f"{score.value:.1f}" if score.unit == "%" else f"{score.unit} {score.value:.1f}",
        "" if score.low is None or score.high is None else f"{score.low:.1f}–{score.high:.1f}",
        "" if score.chance is None else f"{score.chance:.1f}",
        f"{score.items:,}/{score.of:,}",
        f"{score.tied:,}" if score.tied else "",
        "" if published is None else f"{published:.1f}",
    ]


def _result(name: str, context: Context, output: BenchmarkOutput, *, seconds: float) -> Result:
    return Result(
        benchmark=name,
        set_name=context.set_name,
        split=context.split,
        root=str(context.config.data.root),
        checkpoint=str(context.opened.path),
        checkpoint_digest=context.opened.digest,
        fingerprint=context.source.dataset.split(context.set_name, context.split).fingerprint,
        settings=_settings(context),
        scores=output.scores,
        items=output.items,
        missing=output.missing,
        curves=output.curves,
        curve_axes=output.curve_axes,
        confusion=output.confusion,
        seconds=seconds,
        machine=_machine(context.ranks),
        made_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _settings(context: Context) -> dict[str, Any]:
    """Return the resolved settings that the scores depend on."""
    config = context.config
    return {
        **to_dict(context.settings),
        "compat": to_dict(config.compat),
        "aggregation": "self-attention" if is_order_sensitive(context.opened.model) else "mean of the windows",
        "questions": str(config.questions) if config.questions else None,
        "options": config.options,
        "seed": config.seed,
        "resamples": config.resamples,
        "probe": to_dict(config.probe),
        "model": to_dict(context.opened.model.config),
        "revision": code_revision(),
    }


def _machine(ranks: DistributedContext) -> str:
    device = torch.cuda.get_device_name(ranks.device) if ranks.device.type == "cuda" else "CPU"
    return f"{device}, {ranks.world} rank{'s' if ranks.world > 1 else ''}, torch {torch.__version__}"
