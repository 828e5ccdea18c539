"""Records a few steps of a run with torch's profiler and leaves a trace and a table; outside them it does nothing."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from shards import files

_ROWS = 60  # of the table

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ProfileConfig:
    """Which steps are recorded. Recording slows them; the steps before it and after it are as they always are."""

    start: int | None = None  # the first recorded step, from 0; null for none
    steps: int = 5
    memory: bool = False  # allocations, too

    def __post_init__(self) -> None:
        if self.start is not None and self.start < 0:
            raise ValueError(f"start = {self.start}: a step, from 0, or null")
        if self.steps < 1:
            raise ValueError(f"steps = {self.steps}: at least 1 is needed")


class Profiler:
    """A context around the loop that calls `step(number)` between steps: as many are done, step `number` is next.

    FOLDER/trace-rank00000.json.gz   opens in https://ui.perfetto.dev or chrome://tracing
    FOLDER/table.txt                 operations by time, of the first rank (others: table-rank00001.txt)

    What was recorded is written when the window ends, or when the context does, whichever is first. A run that
    resumes behind the window records nothing.
    """

    def __init__(self, folder: str | os.PathLike[str], config: ProfileConfig, *, rank: int = 0) -> None:
        self._folder, self._config, self._rank = Path(folder), config, rank
        self._profile: profile | None = None

    def __enter__(self) -> Profiler:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def step(self, step: int) -> None:
        """Note that step number `step` (from 0) is next."""
        start = self._config.start
        if start is None:
            return
        if start <= step < start + self._config.steps:
            if self._profile is None:
                self._begin()
            else:
                self._profile.step()
        else:
            self._end()

    def _begin(self) -> None:
        activities = [ProfilerActivity.CPU]
        if torch.cuda.is_available():
            activities.append(ProfilerActivity.CUDA)
        self._profile = profile(activities=activities, profile_memory=self._config.memory, record_shapes=False)
        self._profile.start()

    def _end(self) -> None:
        if self._profile is None:
            return
        recorded, self._profile = self._profile, None
        recorded.stop()
        name = f"rank{self._rank:05d}"
        trace = self._folder / f"trace-{name}.json.gz"
        with files.replacing(trace) as temporary:
            recorded.export_chrome_trace(str(temporary))
        table = self._folder / ("table.txt" if self._rank == 0 else f"table-{name}.txt")
        files.write_bytes(table, self._table(recorded).encode())
        _log.info("profile: %s and %s", trace, table)

    def _table(self, recorded: profile) -> str:
        where = "cuda" if torch.cuda.is_available() else "cpu"
        columns = [f"self_{where}_time_total", *([f"self_{where}_memory_usage"] if self._config.memory else [])]
        averages = recorded.key_averages()
        return "\n\n".join(
            f"{column}\n{averages.table(sort_by=column, row_limit=_ROWS, max_name_column_width=80)}"
            for column in columns
        )
