"""SLURM's forms of a time limit, and when the workers of a job leave."""

from __future__ import annotations

import random

import pytest

from preprocessing.slurm.walltime import CLOSING_SECONDS, MARGIN_SECONDS, STAGGER_SECONDS, departure, parse_walltime

MINUTE, HOUR, DAY = 60, 3600, 86_400


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90 * MINUTE),
        ("30:15", 30 * MINUTE + 15),
        ("12:00:00", 12 * HOUR),
        ("100:00:00", 100 * HOUR),
        ("01:02:03", HOUR + 2 * MINUTE + 3),
        ("2-3", 2 * DAY + 3 * HOUR),
        ("2-03:04", 2 * DAY + 3 * HOUR + 4 * MINUTE),
        ("2-03:04:05", 2 * DAY + 3 * HOUR + 4 * MINUTE + 5),
        ("0-00:01:00", MINUTE),
        (" 5 ", 5 * MINUTE),
        ("0", None),
        ("00:00:00", None),
        ("UNLIMITED", None),
        ("infinite", None),
    ],
)
def test_every_form_of_slurm_is_read(text: str, seconds: int | None) -> None:
    assert parse_walltime(text) == seconds


@pytest.mark.parametrize("text", ["", "12h", "1:2:3:4", "1-", "-5", "1.5", "1:", ":30", "1-2:3:4:5", "१२", "1 2"])
def test_other_texts_are_named_with_the_forms(text: str) -> None:
    with pytest.raises(ValueError, match=r"expected minutes, .*days-hours:minutes:seconds"):
        parse_walltime(text)


def test_workers_leave_with_the_margin_before_the_walltime_however_short_it_is() -> None:
    rng = random.Random(0)
    for walltime in [MINUTE, 30 * DAY, *(int(MINUTE * 10 ** rng.uniform(0, 4)) for _ in range(200))]:
        leaves = departure(walltime)
        margin = min(MARGIN_SECONDS, walltime / 4)
        assert walltime - (leaves.lifetime + leaves.stagger) == pytest.approx(margin)
        assert leaves.lifetime - leaves.stagger > walltime / 2  # most of the job is spent on tasks
        assert leaves.lifetime + leaves.stagger < leaves.deadline < walltime
        assert leaves.stagger <= STAGGER_SECONDS and walltime - leaves.deadline <= CLOSING_SECONDS


def test_a_long_job_keeps_the_time_of_a_chunk_free() -> None:
    leaves = departure(12 * HOUR)
    assert (leaves.lifetime, leaves.stagger, leaves.deadline) == (12 * HOUR - 17 * MINUTE, 2 * MINUTE, 12 * HOUR - 60)
