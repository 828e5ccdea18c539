"""Derives from the walltime of a SLURM job when its Dask workers leave, so that SLURM never kills one at work."""

from __future__ import annotations

import re
from dataclasses import dataclass

MARGIN_SECONDS = 15 * 60  # for the task that a worker is running: a chunk, or a shard
CLOSING_SECONDS = 60  # for closing a worker; part of the margin
STAGGER_SECONDS = 2 * 60  # workers leave up to this much earlier or later, so that not all of them leave at once
# Of walltimes so short that these would be most of them, the margin and the stagger are at most this share.
MARGIN_SHARE, STAGGER_SHARE = 1 / 4, 1 / 20
CLOSING_SHARE = 1 / 3  # of the margin, at most

_DAYS = re.compile(r"(?P<days>\d+)-(?P<hours>\d+)(:(?P<minutes>\d+)(:(?P<seconds>\d+))?)?", re.ASCII)
_CLOCK = re.compile(r"((?P<hours>\d+):(?=\d+:\d))?(?P<minutes>\d+)(:(?P<seconds>\d+))?", re.ASCII)
_UNLIMITED = ("infinite", "unlimited", "-1")
_SECONDS = {"days": 86_400, "hours": 3_600, "minutes": 60, "seconds": 1}


@dataclass(frozen=True, kw_only=True)
class Departure:
    """When the workers of a job leave, in seconds since the job's start.

    From `lifetime` ± `stagger` on, a worker starts no task; it leaves once its running task has ended, at the latest at
    `deadline`. `lifetime + stagger` is before `deadline`, and `deadline` before the walltime.
    """

    walltime: float
    lifetime: float
    stagger: float
    deadline: float


def parse_walltime(text: str) -> int | None:
    """Return the seconds of a time limit in any of SLURM's forms, or None where it means no limit.

    The forms are `minutes`, `minutes:seconds`, `hours:minutes:seconds`, `days-hours`, `days-hours:minutes` and
    `days-hours:minutes:seconds`; `0`, `infinite` and `unlimited` mean no limit. Raises ValueError on anything else.
    """
    stripped = text.strip()
    if stripped.lower() in _UNLIMITED:
        return None
    match = _DAYS.fullmatch(stripped) or _CLOCK.fullmatch(stripped)
    if match is None:
        raise ValueError(
            f"walltime = {text!r}: expected minutes, minutes:seconds, hours:minutes:seconds, days-hours, "
            "days-hours:minutes or days-hours:minutes:seconds, as SLURM's --time does"
        )
    return sum(int(number) * _SECONDS[unit] for unit, number in match.groupdict().items() if number) or None


def departure(walltime: float) -> Departure:
    """Return when the workers of a job of this walltime, in seconds, leave."""
    margin = min(MARGIN_SECONDS, walltime * MARGIN_SHARE)
    stagger = min(STAGGER_SECONDS, walltime * STAGGER_SHARE)
    return Departure(
        walltime=walltime,
        lifetime=walltime - margin - stagger,
        stagger=stagger,
        deadline=walltime - min(CLOSING_SECONDS, margin * CLOSING_SHARE),
    )
