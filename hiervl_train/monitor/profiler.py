"""Records a few steps of a run with torch's profiler, and writes a trace and a table."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import NonNegativeInt, PositiveInt
from torch.profiler import ProfilerActivity, profile

from shards.files import replacing, write_bytes

_ROWS = 60  # of the table

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ProfileConfig:
    """Which steps are recorded. Recording slows them down; other steps are unaffected."""

    start: NonNegativeInt | None = None  # first recorded step, counted from 0; null: none
    steps: PositiveInt = 5  # recorded steps
    memory: bool = False  # also record allocations


class Profiler:
    """A context around the loop, which calls `step(number)` before step `number`.

    FOLDER/trace-rank00000.json.gz   opens in https://ui.perfetto.dev or chrome://tracing
    FOLDER/table.txt                 operations by time, of the first rank (others: table-rank00001.txt)

    The recording is written when its last step or the context ends. A run that resumes after these steps records
    nothing.
    """

    def __init__(self, folder: str | os.PathLike[str], config: ProfileConfig, *, rank: int = 0) -> None:
        self._folder, self._config, self._rank = Path(folder), config, rank
        self._profile: profile | None = None

    def __enter__(self) -> Profiler:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def step(self, step: int) -> None:
        """Start or end the recording before step number `step` (from 0)."""
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
        recording, self._profile = self._profile, None
        recording.stop()
        name = f"rank{self._rank:05d}"
        trace = self._folder / f"trace-{name}.json.gz"
        with replacing(trace) as temporary:
            recording.export_chrome_trace(str(temporary))
        table = self._folder / ("table.txt" if self._rank == 0 else f"table-{name}.txt")
        write_bytes(table, self._table(recording).encode())
        _log.info("profile: %s and %s", trace, table)

    def _table(self, recording: profile) -> str:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        columns = [f"self_{device}_time_total", *([f"self_{device}_memory_usage"] if self._config.memory else [])]
        averages = recording.key_averages()
        return "\n\n".join(
            f"{column}\n{averages.table(sort_by=column, row_limit=_ROWS, max_name_column_width=80)}"
            for column in columns
        )
