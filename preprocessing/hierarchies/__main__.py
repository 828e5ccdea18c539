# PYTHON_ARGCOMPLETE_OK
"""Turns annotations into a table of captions: `python -m preprocessing.hierarchies SOURCE FILES TABLE`.

SOURCE is goalstep (Ego4D Goal-Step), hcap (Ego4D-HCap), egoexo (Ego-Exo4D's descriptions and key steps) or epic
(EPIC-KITCHENS' narrations); FILES is one file or several, separated by commas. `configs/preprocess/custom.yaml` builds
from the table.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from configs.cli import Command, ExitCode, Request
from preprocessing.errors import UsageError
from preprocessing.hierarchies.readers import READERS
from preprocessing.hierarchies.rows import Rejects, Row, write_table


def main(argv: Sequence[str] | None = None) -> int:
    """Write the table that the command line asks for; return the exit code."""
    command = Command("python -m preprocessing.hierarchies", __doc__)
    command.positional("source", help=", ".join(READERS))
    command.positional("files", help="annotation files, separated by commas")
    command.positional("table", type=Path, help="the CSV that is written")

    def work(request: Request[None]) -> int:
        flags, console = request.flags, request.console
        if flags.source not in READERS:
            raise UsageError(f"unknown source {flags.source!r}; known are {', '.join(READERS)}")
        rejects, rows = Rejects(), []
        for name in flags.files.split(","):
            rows += list(READERS[flags.source](Path(name.strip()), rejects))
        if not rows:
            raise UsageError(f"{flags.files}: no annotation can be used: {dict(rejects.counts)}")
        count = write_table(_distinct(rows, rejects), flags.table)
        levels = ", ".join(
            f"{sum(row.kind == kind for row in rows):,} {kind}" for kind in sorted({r.kind for r in rows})
        )
        console.print(f"{count:,} captions ({levels}) → {flags.table}", soft_wrap=True, markup=False)
        for reason, number in rejects.counts.most_common():
            console.print(
                f"{number:,} left out: {reason}, such as {rejects.examples[reason]}", soft_wrap=True, markup=False
            )
        return ExitCode.OK

    return command.run(work, argv)


def _distinct(rows: Sequence[Row], rejects: Rejects) -> list[Row]:
    """Return rows without those that repeat another's span, level and caption."""
    found: dict[tuple[object, ...], Row] = {}
    for row in rows:
        key = (row.video, row.start, row.end, row.level, row.caption, row.annotator)
        if key in found:
            rejects.add("repeats another", row.id)
        found.setdefault(key, row)
    return list(found.values())


if __name__ == "__main__":
    sys.exit(main())
