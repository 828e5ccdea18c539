# PYTHON_ARGCOMPLETE_OK
"""Shows what is in a dataset: tables in the terminal, one sample's record, or a page with players."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from rich.console import Console
from rich.markup import escape

from configs.cli import Command, Request
from shards import schema
from shards.dataset import open_dataset
from shards.inspect import page
from shards.inspect.tables import Located, find_sample, table, tables
from shards.stats import ShardError
from shards.summary import print_any_text, printable


def _show_sample(found: Located, console: Console) -> None:
    place = f"{found.set_name}/{found.split}/{found.shard.name}"
    console.print(f"[bold]{escape(printable(found.row['key']))}[/] in {place}", highlight=False)
    members = [
        (ext, f"{found.row[f'{ext}_offset']:,}", f"{found.row[f'{ext}_size']:,}") for ext in schema.MEMBERS
    ]  # fmt: skip
    console.print(table("Members", ("member", "offset", "bytes"), members))
    # Of each line, since the record quotes an untrusted file; it may be long.
    lines = json.dumps(found.record, ensure_ascii=False, indent=2).split("\n")
    console.print_json("\n".join(printable(line, limit=1 << 20) for line in lines))


class InspectError(RuntimeError):
    """A dataset that cannot be read, or a key that it does not have."""

    exit_code: ClassVar[int] = 1


def main(argv: Sequence[str] | None = None) -> int:
    """Run what the command line asks for; return the exit code: 1 where there is no such dataset or key, or damage."""
    print_any_text()
    command = Command("python -m shards.inspect", __doc__)
    command.positional("root", type=Path, help="the dataset's folder")
    command.flag("--key", help="show this sample's place and record")
    command.flag("--html", type=Path, metavar="FILE", help="write a page there, its images and videos in FILE.media")
    command.flag("--samples", type=int, default=48, metavar="N", help="samples per split (default: %(default)s)")

    def work(request: Request[None]) -> None:
        flags = request.flags
        if flags.samples < 1:
            command.error(f"--samples {flags.samples}: must be at least 1")
        try:
            _inspect(flags.root, key=flags.key, html=flags.html, samples=flags.samples)
        except (ShardError, OSError) as error:
            raise InspectError(printable(error)) from error

    return command.run(work, argv)


def _inspect(root: Path, *, key: str | None, html: Path | None, samples: int) -> None:
    console = Console()
    dataset = open_dataset(root)
    if key is not None:
        _show_sample(find_sample(dataset, key), console)
    if html is not None:
        page.write(dataset, html, samples=samples)
        console.print(f"wrote {html}", highlight=False, soft_wrap=True)
    if key is None and html is None:
        for table in tables(dataset):
            console.print(table, "")


if __name__ == "__main__":
    sys.exit(main())
