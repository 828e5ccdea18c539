# PYTHON_ARGCOMPLETE_OK
"""Finds the clips and summaries nearest to a text, or to one of themselves, and shows them as a page.

    python eval/search.py ROOT --checkpoint C "a person washes a carrot"
    python eval/search.py ROOT --checkpoint C --key KEY [--sets clips/val,summaries] [--top 24]

Similarity is the cosine of embeddings; the windows of long samples are aggregated. Embeddings are cached, so only the
first search of a split is slow. It may run on several ranks.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from configs.cli import Command, ExitCode, Request
from eval.command import on_all_ranks
from eval.config import EvalConfig
from eval.nearest import Hit, Query, Searcher, choose_splits, find_split, nearest
from eval.report.media import Clip, copy_media
from eval.report.search_page import render, title
from eval.run import open_configured
from hiervl_train.distributed import DistributedContext
from shards.html.page import write_page
from shards.sources import open_source


def main(argv: Sequence[str] | None = None) -> int:
    """Run what the command line asks for; return the exit code."""
    command = Command("python eval/search.py", __doc__, EvalConfig)
    command.positional("root", key="data.root", help="the dataset: a folder or URL")
    command.positional("text", required=False, help="what to search for")
    command.flag("--key", default="", help="search for samples that are similar to this clip or summary")
    command.flag("--checkpoint", key="checkpoint", metavar="PATH", help="a run, one of its checkpoints, or a .pth")
    command.flag("--sets", default="", metavar="SETS", help="as clips,summaries/val (default: both levels)")
    command.flag("--top", type=int, default=12, metavar="N", help="results per set (default: %(default)s)")
    command.flag("--output", type=Path, metavar="FOLDER", help="of the page (default: a folder in runs/search)")
    command.resumes("Finished embeddings are kept: run the same command again to resume.")

    def work(request: Request[EvalConfig]) -> int:
        flags = request.flags
        if bool((flags.text or "").strip()) == bool(flags.key):
            command.error("expected either a text or --key KEY")
        if flags.top < 1:
            command.error(f"--top {flags.top}: must be at least 1")

        def run(ranks: DistributedContext) -> int:
            search(flags, request.config, ranks)
            return ExitCode.OK

        return on_all_ranks(run, request.config.distributed)

    return command.run(work, argv)


def search(flags: argparse.Namespace, config: EvalConfig, ranks: DistributedContext) -> Path | None:
    """Search, write the page and print the table; return the page's path on the first rank, None on the others."""
    source = open_source(config.data.root, config.data.source)
    splits = choose_splits(source.dataset, flags.sets)
    query = Query(text=flags.text or "", key=flags.key)
    if query.key:
        find_split(source, query.key)  # reports an unknown key before anything is embedded
    opened = open_configured(config, ranks)
    settings = config.embedding(opened)
    searcher = Searcher(opened=opened, source=source, settings=settings, ranks=ranks, cache=config.cache)
    embedded = {pair: searcher.embed_set(*pair) for pair in splits}
    query_D = searcher.embed_query(query, embedded)
    if query_D is None:
        return None
    searched = [one for one in embedded.values() if one is not None]
    hits = nearest(query_D, searched, flags.top, exclude=query.key)
    folder = flags.output or _folder(query, opened.digest, config.data.root, splits)
    shown = [query.key] * bool(query.key) + [hit.key for found in hits.values() for hit in found]
    clips = copy_media(source, shown, folder)
    page = folder / "index.html"
    samples = sum(len(one.keys) for one in searched)
    write_page(page, title(query), render(query, hits, clips, checkpoint=str(opened.path), searched=samples))
    _print(hits, clips, page)
    return page


def _folder(query: Query, digest: str, root: str, splits: Sequence[tuple[str, str]]) -> Path:
    """Return the default folder of a search's page, named by the query; different searches get different folders."""
    wanted = query.text or query.key
    identity = repr((wanted, bool(query.text), digest, root, sorted(splits)))
    name = re.sub(r"[^a-z0-9]+", "-", wanted.lower())[:40].strip("-")
    return Path("runs", "search", f"{name or 'query'}-{hashlib.sha256(identity.encode()).hexdigest()[:8]}")


def _print(hits: Mapping[str, Sequence[Hit]], clips: Mapping[str, Clip], page: Path) -> None:
    console = Console()
    for set_name, found in hits.items():
        table = Table(title=set_name, title_justify="left", title_style="bold", header_style="dim", box=None)
        table.add_column("", justify="right", no_wrap=True, min_width=2)
        table.add_column("cosine", justify="right", no_wrap=True)
        table.add_column("split", no_wrap=True)
        table.add_column("text and key", overflow="fold")
        for rank, hit in enumerate(found, 1):
            words = " ".join(clips[hit.key].text.split())[:200] if hit.key in clips else ""
            table.add_row(str(rank), f"{hit.score:.3f}", hit.split, f"{escape(words)}\n[dim]{hit.key}[/]")
        console.print(table, "")
    console.print(f"wrote {page}", highlight=False, markup=False, soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())
