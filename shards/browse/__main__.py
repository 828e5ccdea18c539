# PYTHON_ARGCOMPLETE_OK
"""Serves pages to look at a dataset with, on this machine only: its videos, captions, losses and distributions.

    python -m shards.browse ROOT [--port 8765] [--checkpoint RUN --vectors FOLDER]

The first start makes a catalog of the dataset in the user's cache folder; nothing is written into the dataset.
"""

from __future__ import annotations

import argparse
import importlib.util
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from configs.cli import Command, Request
from shards.browse.embeddings import find_embeddings
from shards.browse.names import add_scenarios, names_in, read_taxonomies
from shards.config import SourceConfig
from shards.search.catalog import Catalog, open_catalog
from shards.sources import Source, open_source
from shards.stats import ShardError
from shards.summary import print_any_text, printable

HOST, PORT = "127.0.0.1", 8765


class BrowseError(RuntimeError):
    """A dataset, a port or an option that cannot be used."""

    exit_code: ClassVar[int] = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Run what the command line asks for; return the exit code."""
    print_any_text()
    command = Command("python -m shards.browse", __doc__)
    command.positional("root", type=Path, help="the dataset's folder")
    command.flag("--port", type=int, default=PORT, help="0: any free one (default: %(default)s)")
    command.flag("--catalog", type=Path, metavar="FILE", help="the catalog's file (default: in the cache folder)")
    command.flag(
        "--vectors", type=Path, action="append", default=[], metavar="FOLDER", help="vectors that eval/search.py wrote"
    )
    command.flag("--checkpoint", metavar="PATH", help="the model of the embeddings, to search them by a text")
    command.flag(
        "--taxonomy", action="append", default=[], metavar="FIELD=FILE", help="names of classes, as tag_verb=verbs.csv"
    )
    command.flag("--metadata", type=Path, metavar="FILE", help="ego4d.json, for the scenarios of videos")

    def work(request: Request[None]) -> None:
        if not 0 <= request.flags.port < 1 << 16:
            command.error(f"--port {request.flags.port}: expected 0 … 65535")
        try:
            serve(request.flags, request.console)
        except (ShardError, OSError) as error:
            raise BrowseError(printable(error)) from error

    return command.run(work, argv)


def serve(flags: argparse.Namespace, console: Console) -> None:
    """Serve a dataset until Ctrl-C."""
    if importlib.util.find_spec("starlette") is None or importlib.util.find_spec("uvicorn") is None:
        raise BrowseError("starlette and uvicorn are not installed: pip install 'hiervl[browse]'")
    import uvicorn

    from shards.browse.app import application
    from shards.browse.frame import Site

    names = read_taxonomies(flags.taxonomy)
    source = open_source(flags.root, SourceConfig())
    catalog = _open(source, flags.catalog, console)
    if flags.metadata is not None:
        add_scenarios(catalog, flags.metadata)
    encoder = None
    if flags.checkpoint:
        from eval.text_queries import TextEncoder  # only this option needs a model

        encoder = TextEncoder(flags.checkpoint)
    site = Site(
        source=source,
        catalog=catalog,
        name=flags.root.resolve().name,
        names={**names_in(source.dataset), **names},
        embeddings=find_embeddings(source.dataset, flags.vectors, catalog.path.parent),
        encoder=encoder,
    )
    listening = _listen(flags.port)
    port = listening.getsockname()[1]
    console.print(f"http://{HOST}:{port}/  (Ctrl-C ends it)", markup=False, soft_wrap=True)
    config = uvicorn.Config(
        application(site), log_level="warning", access_log=False, server_header=False, lifespan="off"
    )
    try:
        uvicorn.Server(config).run(sockets=[listening])
    except KeyboardInterrupt:
        console.print("ended", markup=False)


def _open(source: Source, path: Path | None, console: Console) -> Catalog:
    columns = (TextColumn("making the catalog"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("catalog", total=None, visible=False)
        catalog = open_catalog(
            source, path, progress=lambda done, of: bar.update(task, completed=done, total=of, visible=True)
        )
    console.print(f"catalog: {catalog.path}", markup=False, soft_wrap=True)
    return catalog


def _listen(port: int) -> socket.socket:
    try:
        return socket.create_server((HOST, port))
    except OSError as error:
        raise BrowseError(f"--port {port}: {error.strerror or error}; --port 0 takes any free one") from error


if __name__ == "__main__":
    sys.exit(main())
