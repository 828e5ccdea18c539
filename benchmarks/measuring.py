"""Helpers of the benchmarks: CPU time of a process and its children, medians, machine description, JSON and tables."""

from __future__ import annotations

import json
import os
import platform
import resource
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).resolve().parent / "results"


@dataclass
class Elapsed:
    """The time that a block took."""

    wall: float = 0.0  # s
    cpu: float = 0.0  # s, user and system time of this process and of the children that ended within the block


@contextmanager
def elapsed() -> Iterator[Elapsed]:
    """Measure a block; the yielded object has its time afterwards."""
    result = Elapsed()
    began, used = time.perf_counter(), _cpu()
    yield result
    result.wall, result.cpu = time.perf_counter() - began, _cpu() - used


def interleave(arms: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, Elapsed]:
    """Run all arms one after another, `repeats` times, and return the median of each.

    Interleaving the arms lets drift of the machine affect all of them alike.
    """
    taken: dict[str, list[Elapsed]] = {name: [] for name in arms}
    for _ in range(repeats):
        for name, arm in arms.items():
            with elapsed() as result:
                arm()
            taken[name].append(result)
    return {
        name: Elapsed(wall=statistics.median(r.wall for r in runs), cpu=statistics.median(r.cpu for r in runs))
        for name, runs in taken.items()
    }


def machine() -> dict[str, Any]:
    """Return the processor, the number of usable cores, the load and the date, on which figures depend."""
    model = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.processor(),
    )
    return {
        "processor": model,
        "cores": len(os.sched_getaffinity(0)),
        "load": os.getloadavg()[0],
        "date": time.strftime("%Y-%m-%d"),
    }


def show(
    name: str, rows: Sequence[tuple[str, str, str, str]], figures: Mapping[str, Any], *, out: Path | None = None
) -> None:
    """Print rows of (quantity, measured, target, bound by) and the figures as JSON; save the JSON to `out`.

    The default file is `benchmarks/results/<name>.json`.
    """
    about = machine()
    table = Table(title=f"{name}: {about['processor']}, {about['cores']} cores, {about['date']}")
    for column in ("quantity", "measured", "target", "bound by"):
        table.add_column(column)
    for row in rows:
        table.add_row(*row)
    Console(width=160, highlight=False).print(table)
    text = json.dumps({"benchmark": name, "machine": about, **figures}, indent=1)
    out = out or RESULTS / f"{name}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text + "\n")
    print(text)


def _cpu() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)
