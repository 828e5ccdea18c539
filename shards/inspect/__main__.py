"""Shows what is in a dataset: tables in the terminal, one sample's record, or a page of pictures."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from shards import files, schema
from shards.dataset import open_dataset
from shards.inspect import page
from shards.inspect.tables import Located, find_sample, table, tables
from shards.stats import ShardError


def _show_sample(found: Located, console: Console) -> None:
    place = f"{found.set_name}/{found.split}/{found.shard.name}"
    console.print(f"[bold]{found.row['key']}[/] in {place}", highlight=False)
    members = [
        (ext, f"{found.row[f'{ext}_offset']:,}", f"{found.row[f'{ext}_size']:,}") for ext in schema.MEMBERS
    ]  # fmt: skip
    console.print(table("Members", ("member", "offset", "bytes"), members))
    console.print_json(json.dumps(found.record, ensure_ascii=False))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code: 0, 1 where there is no such dataset or key, 2 for wrong usage."""
    parser = argparse.ArgumentParser(prog="python -m shards.inspect", description=__doc__)
    parser.add_argument("root", type=Path, help="the dataset's folder")
    parser.add_argument("--key", help="show this sample's place and record")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a self-contained page of pictures there")
    parser.add_argument(
        "--samples", type=int, default=48, metavar="N", help="pictures per split (default: %(default)s)"
    )
    options = parser.parse_args(arguments)
    if options.samples < 1:
        parser.error(f"--samples {options.samples}: 1 or more is expected")
    console = Console()
    try:
        dataset = open_dataset(options.root)
        if options.key is not None:
            _show_sample(find_sample(dataset, options.key), console)
        if options.html is not None:
            files.write_bytes(options.html, page.render(dataset, samples=options.samples).encode())
            console.print(f"wrote {options.html}", highlight=False, soft_wrap=True)
        if options.key is None and options.html is None:
            for table in tables(dataset):
                console.print(table, "")
    except ShardError as error:
        Console(stderr=True).print(f"[bold red]✗[/] {escape(str(error))}", soft_wrap=True, highlight=False)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
