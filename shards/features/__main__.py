# PYTHON_ARGCOMPLETE_OK
"""Exports dense features in the files of other projects: `python -m shards.features FORMAT DENSE OUT`.

FORMAT is pt (a file a video, as Ego4D's and EgoVLP's), npy (ActionFormer), lmdb (GroundNLQ) or hdf5.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from configs.cli import Command, ExitCode, Request
from shards.features.exports import WRITERS, export_dense


def main(argv: Sequence[str] | None = None) -> int:
    """Export what the command line asks for; return the exit code."""
    command = Command("python -m shards.features", __doc__)
    command.positional("format", help=", ".join(WRITERS))
    command.positional("dense", type=Path, help="the folder that preprocessing/dense_features.py wrote")
    command.positional("out", type=Path, help="the folder that is written")
    command.flag("--clips", type=Path, metavar="FILE", help="CSV: clip_uid, video_uid, start, end; or NLQ's, MQ's JSON")
    command.flag("--nan", action="store_true", help="NaN in rows without features, instead of zeros")

    def work(request: Request[None]) -> int:
        flags = request.flags
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(flags.format, total=None)
            written = export_dense(
                flags.format,
                flags.dense,
                flags.out,
                clips=flags.clips,
                nan=bool(flags.nan),
                on_item=lambda total: bar.update(task, total=total, advance=1),
            )
        request.console.print(f"{written:,} → {flags.out}", soft_wrap=True, markup=False)
        return ExitCode.OK

    return command.run(work, argv)


if __name__ == "__main__":
    sys.exit(main())
